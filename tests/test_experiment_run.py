"""A run folder is there whole or not at all, takes nobody's place, and is read only if its files belong together."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace
from stubs import a_record, edit_run

from samtl.errors import InputError, ResourceError
from samtl.experiment.fit import fit_head
from samtl.experiment.run import (
    CONFIG,
    FORMAT,
    METRICS,
    MOST_TABLE,
    RunFolder,
    read_run,
    runs_folder,
)
from samtl.metrics.classification import Score


def written(parent, **fields):
    with RunFolder(parent) as folder:
        folder.write_csv("curves.csv", ["epoch", "loss"], [(1, 0.5)])
        run = a_record(**fields)
        folder.write_json("head.json", {"task": run.task, "class_names": run.classes})
        digests = {"digest": run.split.digest, "validation_digest": run.validation.digest}
        folder.write_json("split.json", digests)
        (folder.path / "head.safetensors").write_bytes(b"weights")
        return folder.record(run)


def test_runs_land_where_they_are_told_to(monkeypatch, tmp_path):
    assert runs_folder() == Path("runs")
    monkeypatch.setenv("SAMTL_RUNS", str(tmp_path))
    assert runs_folder() == tmp_path
    assert runs_folder("here") == Path("here")
    (tmp_path / "file").write_text("notes")
    for place in ("file", "file/runs", "file/a/b"):
        with pytest.raises(InputError, match="is a file"):
            runs_folder(tmp_path / place)


def test_what_was_written_is_read(tmp_path):
    fields = {
        "classes": ("wäld", "b"), "columns": ("mean", "std"), "floor": {"ece": Score(0.1 + 0.2, 0.0, 1.0)},
        "left_out_because": {"missing": 2, "quarantined": 1}, "recipe": {"C": 1 / 3}, "training": {"epochs": 3},
    }  # fmt: skip
    result = written(tmp_path, **fields)
    run = read_run(str(result.path))
    for name, value in fields.items():
        assert getattr(run, name) == value
    assert run.confusion.tolist() == [[2, 1], [0, 1]]
    assert run.per_class.recall.tolist() == [2 / 3, 1]
    assert (run.left_out, run.inputs, run.format) == (3, "pooled[mean,std]", FORMAT)
    assert run.path == tmp_path / run.run_name == tmp_path / "toy.stub.64-mlp-0.2-s0-dddddddd"
    assert json.dumps(run.to_json()) == json.dumps(result.to_json(), allow_nan=False)
    assert run.to_json()["per_class"]["b"] == {"precision": 0.5, "recall": 1, "f1": 2 / 3, "support": 1}  # fmt: skip
    assert not set(json.loads((run.path / METRICS).read_text())) & set(run.__struct_fields__[:5])
    assert run.with_digest().digest != replace(run, warm_start="another").with_digest().digest


def test_a_taken_name_is_left_alone(tmp_path):
    paths = [written(tmp_path, peak_memory=n).path for n in (1, 2)]
    assert [path.name for path in paths] == [paths[0].name, f"{paths[0].name}.2"]
    assert [read_run(path).peak_memory for path in paths] == [1, 2]


@pytest.mark.parametrize("name", ["n" * 240, "\N{CJK UNIFIED IDEOGRAPH-6797}" * 83])
def test_the_name_of_a_run_is_one_that_a_disk_takes(tmp_path, name):
    paths = [written(tmp_path, store=name).path for _ in range(2)]
    assert len(set(paths)) == 2
    for path in paths:
        assert name.startswith(path.name[:60])
        assert len(f"{path.name}.json".encode()) < 250
    assert written(tmp_path, store="n" * 180).path.name.startswith("n" * 180 + "-mlp-0.2-s0-")


def test_nothing_is_left_of_a_run_that_failed(tmp_path):
    for error, fields in (
        (ValueError, {"metrics": {"accuracy": Score(np.nan, 0, 1)}}),
        (TypeError, {"recipe": {"C": np.random.default_rng()}}),
    ):
        with pytest.raises((error, AttributeError)):
            written(tmp_path / "deep" / "er", **fields)
    assert list((tmp_path / "deep" / "er").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match=r"file/runs"):
        RunFolder(tmp_path / "file" / "runs")


def changed(file, **changes):
    return lambda run: edit_run(run, file, lambda content: content | changes)


def edited(file, old, new):
    return lambda run: (run / file).write_text((run / file).read_text().replace(old, new))


def scored(value, low, high):
    """Give both metrics a score."""
    score = {"value": value, "low": low, "high": high}
    return changed(METRICS, metrics={"accuracy": score, "macro_f1": score})


def grown(file):
    def spoil(run):
        os.truncate(run / file, MOST_TABLE + 1)

    return spoil


OTHER_SPLIT = {"name": "holdout", "share": 0.2, "seed": 0, "digest": "f" * 64}


def in_place_of(file, target):
    def spoil(run):
        (run / file).unlink()
        (run / file).symlink_to(target)

    return spoil


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (edited(CONFIG, '"a"', '"c"'), CONFIG),
        (edited("curves.csv", "0.5", "0.25"), "curves.csv"),
        (edited(METRICS, '"value": 0.75', '"value": 0.9'), METRICS),
        (edited(METRICS, '"value": 0.75', '"value": NaN'), METRICS),
        (lambda run: (run / "curves.csv").unlink(), "curves.csv"),
        (lambda run: (run / METRICS).write_text("{"), METRICS),
        (lambda run: (run / METRICS).write_text("[1]"), METRICS),
        (lambda run: (run / CONFIG).write_text(json.dumps({"format": FORMAT})), "missing|config"),
        (changed(CONFIG, seed="3"), "seed"),
        (changed(CONFIG, kind="robot"), "kind"),
        (changed(CONFIG, format=2), "run format 2"),
        (changed(METRICS, confusion="x"), "array"),
        (changed(METRICS, confusion=[[2**70]]), "int"),
        (changed(METRICS, confusion=[[0.5, 0], [0, 0]]), "int"),
        (changed(METRICS, confusion=[[1]]), "classes"),
        (changed(METRICS, confusion=[[1, 2], [3]]), "damaged"),
        (changed(METRICS, n_test=-1), "n_test"),
        (changed(METRICS, left_out_because={"missing": -2}), "left_out_because"),
        (lambda run: (run / METRICS).unlink(), "is no run"),
        (shutil.rmtree, "is no run"),
        (changed(METRICS, files={"/dev/zero": "0" * 64}), "/dev/zero"),
        (changed(METRICS, files={"../pipe": "0" * 64}), "pipe"),
        # Sealed anew, so that no checksum tells
        (changed(CONFIG, classes=["b", "a"]), r"head\.json"),
        (changed("head.json", class_names=["a"]), r"head\.json"),
        (changed("head.json", task="segmentation"), r"head\.json"),
        (changed(CONFIG, split=OTHER_SPLIT), r"split\.json"),
        (changed("split.json", validation_digest="0" * 64), r"split\.json"),
        (scored(0.9, 0.1, 0.8), "accuracy"),
        (scored(0.1, 0.2, 0.8), "accuracy"),
        (changed(METRICS, metrics={}), "accuracy"),
        (changed(METRICS, seconds={}), "total"),
        (changed(METRICS, floor={"accuracy": {"value": 0.1, "low": 0.2, "high": 0.8}}), "accuracy"),
        (changed(METRICS, also={"knn": {"ece": {"value": 0.9, "low": 0.1, "high": 0.8}}}), "ece"),
        (changed(METRICS, metrics={"accuracy": {"value": None, "low": 0, "high": 1}}), "float"),
        (grown("curves.csv"), r"curves\.csv.*bytes"),
        (in_place_of(CONFIG, "/dev/zero"), CONFIG),
        (in_place_of(METRICS, "../pipe"), METRICS),
    ],
)
def test_a_run_whose_files_do_not_agree_is_damaged(tmp_path, spoil, named):
    run = written(tmp_path).path
    os.mkfifo(tmp_path / "pipe")  # nobody writes to it: to open it waits for ever
    read_run(run)
    spoil(run)
    with pytest.raises(InputError, match=named):
        read_run(run)


def test_tensors_are_hashed_when_they_are_needed(tmp_path):
    run = written(tmp_path).path
    (run / "head.safetensors").write_bytes(b"other")
    read_run(run)
    with pytest.raises(InputError, match=r"head\.safetensors"):
        read_run(run, whole=True)


def test_threads_wait_without_spinning_if_samtl_is_imported_first():
    told = "import samtl, os, sys; print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("O")}
    done = subprocess.run([sys.executable, "-c", told], env=clean, capture_output=True, text=True)
    assert done.stdout.split() == ["passive", "False"]


def test_a_carriage_return_ends_no_line_of_a_table(tmp_path):
    rows = [["a", "b"], ["x\ry", "z\r\n"], ["'", 'c"d']]
    with RunFolder(tmp_path) as folder:
        folder.write_csv("t.csv", rows[0], rows[1:])
        with (folder.path / "t.csv").open(newline="") as file:
            assert list(csv.reader(file)) == rows


def test_a_folder_whose_name_is_not_utf8_is_no_obstacle(run, embedded, tmp_path):
    place = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9 a")
    Path(place).mkdir()
    shutil.move("cache", f"{place}/cache")
    fit = ("fit-head", "--head", "logreg", "--split", "0.25", "--cache", f"{place}/cache")
    code, _, errors = run(*fit, "--out", f"{place}/runs", "--json", tmp_path / "a.json")
    assert code == 0, errors
    (path,) = Path(place, "runs").iterdir()
    assert read_run(path).store_path.endswith(".zarr")
    code, _, errors = run("predict", "--run", path, "--from-store", "--cache", f"{place}/cache")
    assert code == 0, errors
    again = (*fit[:3], "--cache", f"{place}/cache", "--same-split-as", path, "--out", "runs")
    code, _, errors = run(*again)
    assert code == 0, errors
    (same,) = Path("runs").iterdir()
    assert read_run(same).split == read_run(path).split
    assert read_run(same).given["same_split_as"].endswith(path.name)


def test_a_pattern_that_is_not_utf8_is_kept_as_far_as_text_can_hold_it(small, tmp_path):
    found = fit_head(small, "logreg", 0.25, out=tmp_path, group_by="(.+)\udce9?")
    assert read_run(found).given["group_by"] == "(.+)\ufffd?"
