"""A run folder is there whole or not at all, and takes nobody's place."""

import json
from pathlib import Path

import pytest

from samtl.errors import InputError, ResourceError
from samtl.experiment.run import RunFolder, read_run, runs_folder


def publish(parent, name="run", content=1):
    with RunFolder(parent) as folder:
        folder.write_json("a.json", {"content": content})
        return folder.publish(name)


def test_runs_land_where_they_are_told_to(monkeypatch, tmp_path):
    assert runs_folder() == Path("runs")
    monkeypatch.setenv("SAMTL_RUNS", str(tmp_path))
    assert runs_folder() == tmp_path
    assert runs_folder("here") == Path("here")


def test_a_taken_name_is_left_alone(tmp_path):
    for count, name in enumerate(["run", "run.2", "run.3"]):
        assert publish(tmp_path, content=count) == tmp_path / name
    assert json.loads((tmp_path / "run" / "a.json").read_text()) == {"content": 0}
    (tmp_path / "other").write_text("a file")
    assert publish(tmp_path, "other") == tmp_path / "other.2"
    assert (tmp_path / "other").read_text() == "a file"


def interrupted(parent):
    with RunFolder(parent) as folder:
        folder.write_json("a.json", {})
        raise KeyboardInterrupt


def test_nothing_is_left_of_a_run_that_failed(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path / "deep" / "er")
    assert list((tmp_path / "deep" / "er").iterdir()) == []


def test_a_run_is_not_seen_before_it_is_whole(tmp_path):
    with RunFolder(tmp_path) as folder:
        folder.write_csv("a.csv", ["x", "y"], [(1, "a,b")])
        assert [path.name[0] for path in tmp_path.iterdir()] == ["."]
        folder.publish("run")
    assert (tmp_path / "run" / "a.csv").read_text() == 'x,y\n1,"a,b"\n'
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match=r"cannot write a run into .*file/runs: .*--out"):
        RunFolder(tmp_path / "file" / "runs")


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(ResourceError, match="No space left on device"):
        publish(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_number_is_not_written(tmp_path):
    with RunFolder(tmp_path) as folder, pytest.raises(ValueError, match="not JSON compliant"):
        folder.write_json("a.json", {"x": float("nan")})


def test_folders_within_are_published_too(tmp_path):
    with RunFolder(tmp_path) as folder:
        (folder.path / "masks").mkdir()
        (folder.path / "masks" / "0.png").write_bytes(b"mask")
        run = folder.publish("run")
    assert (run / "masks" / "0.png").read_bytes() == b"mask"


# Reading one again


def written(folder, content, name="split.json"):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def test_what_was_written_is_read(tmp_path):
    with RunFolder(tmp_path) as folder:
        folder.write_json("config.json", {"kind": "head", "näme": "x"})
        run = folder.publish("run")
    assert read_run(run) == {"kind": "head", "näme": "x"}


@pytest.mark.parametrize("file", ["config.json", "split.json"])
def test_what_is_no_run_is_said(tmp_path, file):
    for path in (tmp_path, tmp_path / "none", Path(__file__)):
        with pytest.raises(
            InputError, match=f"is (no run|not a run): expected a folder with {file}, which"
        ):
            read_run(path, file)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"a": 1', "[" * 100_000])
def test_what_is_no_object_is_damage(tmp_path, content):
    with pytest.raises(InputError, match=r"config\.json is damaged"):
        read_run(written(tmp_path / "run", content, "config.json"))
