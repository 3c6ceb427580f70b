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
from stubs import a_record, edit_run

from samtl.errors import InputError, ResourceError
from samtl.experiment.run import (
    CONFIG,
    FORMAT,
    METRICS,
    RunFolder,
    comparison_key,
    read_run,
    runs_folder,
)
from samtl.metrics.classification import Score


def written(parent, **fields):
    with RunFolder(parent) as folder:
        folder.write_csv("curves.csv", ["epoch", "loss"], [(1, 0.5)])
        folder.write_json("head.json", {"class_names": ["a", "b"]})
        (folder.path / "head.safetensors").write_bytes(b"weights")
        return folder.record(a_record(**fields))


def test_runs_land_where_they_are_told_to(monkeypatch, tmp_path):
    assert runs_folder() == Path("runs")
    monkeypatch.setenv("SAMTL_RUNS", str(tmp_path))
    assert runs_folder() == tmp_path
    assert runs_folder("here") == Path("here")


def test_what_was_written_is_read(tmp_path):
    fields = {
        "classes": ("wäld", "b"), "columns": ("mean", "std"), "floor": {"ece": Score(0.1 + 0.2, 0.0, 1.0)},
        "left_out_because": {"missing": 2, "quarantined": 1}, "recipe": {"C": 1 / 3},
    }  # fmt: skip
    result = written(tmp_path, **fields)
    run = read_run(str(result.run))
    for name, value in fields.items():
        assert getattr(run, name) == value
    assert run.confusion.tolist() == [[2, 1], [0, 1]]
    assert run.per_class.recall.tolist() == [2 / 3, 1]
    assert (run.left_out, run.inputs, run.format) == (3, "pooled[mean,std]", FORMAT)
    assert run.path == tmp_path / run.run_name == tmp_path / "toy.stub.64-mlp-0.2-s0-dddddddd"
    assert json.dumps(run.to_json()) == json.dumps(result.to_json(), allow_nan=False)
    assert run.to_json()["per_class"]["b"] == {"precision": 0.5, "recall": 1, "f1": 2 / 3, "support": 1}  # fmt: skip
    assert not set(json.loads((run.path / METRICS).read_text())) & set(run.__struct_fields__[:5])


def test_a_taken_name_is_left_alone(tmp_path):
    runs = [written(tmp_path, seed=0, peak_memory=n).run for n in (1, 2)]
    assert [run.name for run in runs] == [runs[0].name, f"{runs[0].name}.2"]
    assert [read_run(run).peak_memory for run in runs] == [1, 2]


def interrupted(parent):
    with RunFolder(parent) as folder:
        folder.write_json("a.json", {})
        assert [path.name[0] for path in parent.iterdir()] == ["."]
        raise KeyboardInterrupt


def test_nothing_is_left_of_a_run_that_failed(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path / "deep" / "er")
    assert list((tmp_path / "deep" / "er").iterdir()) == []


def test_a_disk_that_does_not_take_it_is_said(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match=r"file/runs"):
        RunFolder(tmp_path / "file" / "runs")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(ResourceError, match="No space left on device"):
        written(tmp_path / "runs")
    assert list((tmp_path / "runs").iterdir()) == []


def test_what_is_no_number_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        written(tmp_path, metrics={"accuracy": Score(np.nan, 0, 1)})


# What belongs together


def swap_classes(run):
    edit(run / CONFIG, lambda content: content | {"classes": ["b", "a"]})


def other_name(run):
    edit(run / "head.json", lambda content: content | {"class_names": ["a"]})


def other_score(run):
    edit(
        run / METRICS, lambda c: c | {"metrics": {"accuracy": {"value": 0.9, "low": 0, "high": 1}}}
    )


def no_number(run):
    text = (run / METRICS).read_text()
    (run / METRICS).write_text(text.replace('"value": 0.75', '"value": NaN'))


def other_curve(run):
    with (run / "curves.csv").open("a") as file:
        csv.writer(file).writerow([2, 0.25])


def naming(file):
    return lambda content: content | {"files": content["files"] | {file: "0" * 64}}


def in_place_of(path, target):
    path.unlink()
    path.symlink_to(target)


def edit(path, change):
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (swap_classes, CONFIG),
        (other_name, "head.json"),
        (other_score, METRICS),
        (no_number, METRICS),
        (other_curve, "curves.csv"),
        (lambda run: (run / "curves.csv").unlink(), "curves.csv"),
        (lambda run: (run / METRICS).write_text("{"), METRICS),
        (lambda run: (run / METRICS).write_text("[1]"), METRICS),
        (lambda run: (run / CONFIG).write_text(json.dumps({"format": FORMAT})), "missing|config"),
        (lambda run: edit_run(run, CONFIG, lambda c: c | {"seed": "3"}), "seed"),
        (lambda run: edit_run(run, METRICS, lambda c: c | {"confusion": "x"}), "invalid|x"),
        (lambda run: edit_run(run, METRICS, lambda c: c | {"confusion": [[2**70]]}), "large"),
        (lambda run: edit_run(run, METRICS, lambda c: c | {"confusion": [[1]]}), "classes"),
        (lambda run: edit_run(run, CONFIG, lambda c: c | {"format": 2}), "run format 2"),
        (lambda run: (run / METRICS).unlink(), "is no run"),
        (shutil.rmtree, "is no run"),
        (lambda run: edit_run(run, METRICS, naming("/dev/zero")), "/dev/zero"),
        (lambda run: edit_run(run, METRICS, naming("../pipe")), "pipe"),
        (lambda run: in_place_of(run / CONFIG, "/dev/zero"), CONFIG),
        (lambda run: in_place_of(run / METRICS, "../pipe"), METRICS),
    ],
)
def test_a_run_whose_files_do_not_agree_is_damaged(tmp_path, spoil, named):
    run = written(tmp_path).run
    os.mkfifo(tmp_path / "pipe")  # nobody writes to it: to open it waits for ever
    read_run(run)
    spoil(run)
    with pytest.raises(InputError, match=named):
        read_run(run)


def test_tensors_are_hashed_when_they_are_needed(tmp_path):
    run = written(tmp_path).run
    (run / "head.safetensors").write_bytes(b"other")
    read_run(run)
    with pytest.raises(InputError, match=r"head\.safetensors"):
        read_run(run, whole=True)


def test_an_edited_run_that_was_sealed_again_is_read(tmp_path):
    run = written(tmp_path).run
    edit_run(run, CONFIG, lambda content: content | {"seed": 7})
    edit_run(run, METRICS, lambda content: content | {"n_test": 9})
    assert (read_run(run).seed, read_run(run).n_test) == (7, 9)


def test_the_key_of_what_may_be_compared():
    truth = {"x": "a", "y": "b"}
    first = comparison_key("classification", ("a", "b"), truth, 0)
    assert first == comparison_key("classification", ["a", "b"], {"y": "b", "x": "a"}, 0)
    others = [
        comparison_key("segmentation", ("a", "b"), truth, 0),
        comparison_key("classification", ("b", "a"), truth, 0),
        comparison_key("classification", ("a", "b"), truth | {"x": "b"}, 0),
        comparison_key("classification", ("a", "b"), truth | {"z": "b"}, 0),
        comparison_key("classification", ("a", "b"), truth, 64),
    ]
    assert len({first, *others}) == 6


def test_threads_wait_without_spinning_if_samtl_is_imported_first():
    told = "import samtl, os, sys; print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("O")}
    done = subprocess.run([sys.executable, "-c", told], env=clean, capture_output=True, text=True)
    assert done.stdout.split() == ["passive", "False"]
