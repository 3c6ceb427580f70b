"""A run folder is there whole or not at all, and takes nobody's place."""

import json
from pathlib import Path

import pytest

from samtl.errors import InputError, ResourceError
from samtl.experiment.run import RunFolder, read_run, runs_folder
from samtl.splits import SplitRecord, read_split, read_split_file


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


SPLIT = {
    "name": "holdout",
    "share": 0.2,
    "seed": 3,
    "digest": "d" * 64,
    "validation_share": 0.2,
}
LISTS = {"held_out": ["a"], "validation": ["b"], "left_out": []}


def written(folder, content, name="split.json"):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def test_what_was_written_is_read(tmp_path):
    with RunFolder(tmp_path) as folder:
        folder.write_json("config.json", {"kind": "head", "näme": "x"})
        folder.write_json("split.json", {**SPLIT, **LISTS, "validation_digest": ""})
        run = folder.publish("run")
    assert read_run(run) == {"kind": "head", "näme": "x"}
    assert read_split(str(run)) == SplitRecord(**SPLIT, **LISTS)


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


@pytest.mark.parametrize("field", [*SPLIT, *LISTS])
@pytest.mark.parametrize("value", [None, {}, "missing"])
def test_a_split_with_a_wrong_field_is_named(tmp_path, field, value):
    content = {**SPLIT, **LISTS, field: value}
    if value == "missing":
        if field in ("name", "digest"):
            content[field] = 1
        else:
            del content[field]
    with pytest.raises(InputError, match=rf"split\.json is damaged: .*{field}"):
        read_split(written(tmp_path / "run", content))


def shared_split(sweep, digest="d1", **more):
    """A run of a sweep, whose split is kept once beside the runs; gives the run."""
    ids = {"held_out": ["a"], "validation": ["b"], "left_out": [], "validation_share": 0.2}
    own = {"name": "holdout", "share": 0.2, "seed": 0, "digest": "d1"}
    run = sweep / "cells" / "run"
    run.mkdir(parents=True)
    (sweep / "splits").mkdir()
    (sweep / "splits" / "d1.json").write_text(json.dumps({**own, **ids, "digest": digest}))
    named = {**own, "seed": 5, "file": "../../splits/d1.json", **more}
    (run / "split.json").write_text(json.dumps(named))
    return run


def test_the_split_of_a_sweep_is_read_from_where_it_is_kept(tmp_path, monkeypatch):
    run = shared_split(tmp_path)
    monkeypatch.chdir(run)
    for where in (run, "."):
        content = read_split(where)
        assert (content.held_out, content.validation) == (["a"], ["b"])
        assert (content.seed, content.digest) == (5, "d1")
    assert read_split_file(run / "split.json") == read_split(run)


@pytest.mark.parametrize(
    ("digest", "more", "said"),
    [
        (
            "d2",
            {},
            r"d1\.json is not the split that .* names: its digest is 'd2', expected 'd1'",
        ),
        ("d1", {"validation_digest": "v"}, "its validation_digest is None, expected 'v'"),
        ("d1", {"file": "../d1.json"}, "which does not exist: keep the runs of a sweep"),
        ("d1", {"file": ".."}, "which does not exist"),
        ("d1", {"share": None}, r"split\.json is damaged: .*share"),
    ],
)
def test_another_split_than_that_of_the_run_is_refused(tmp_path, digest, more, said):
    run = shared_split(tmp_path, digest, **more)
    with pytest.raises(InputError, match=said):
        read_split(run)


def test_a_split_file_must_be_there(tmp_path):
    with pytest.raises(InputError, match=r"there is no split file .*nothing\.json"):
        read_split_file(tmp_path / "nothing.json")
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(InputError, match=r"a\.json is damaged: expected a JSON object"):
        read_split_file(tmp_path / "a.json")
