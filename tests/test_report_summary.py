"""The table at the end of a sweep: every model, in the order asked for, never without its floor."""

import json
from pathlib import Path

import pytest

from samtl.report.summary import summarise
from samtl.sweep.api import SweepResult, labelled


def row(method, split, seed, value, **other):
    """A row of a results file, as far as it is looked at."""
    return {
        "dataset": "toy", "task": "classification", "status": "done", "method": method, "metric_name": "accuracy",
        "metric_value": value, "features": "pooled", "store": "s", "split": split, "split_digest": f"{split}-{seed}",
        "seed": seed, "n_train": 60, "n_val": 20, "n_test": 20, "run": f"cells/{method}-{split}-{seed}",
        "untrained": False, "weights": "official", **other,
    }  # fmt: skip


def result(*rows):
    return SweepResult(Path("out"), len(rows), 0, {}, list(rows), 1.0, ())


def write_floor(row, value, missing=""):
    """Write the part of a run in which its floor is."""
    folder = Path("out") / row["run"]
    folder.mkdir(parents=True)
    floor = None if value is None else {"accuracy": {"value": value, "low": 0.0, "high": 1.0}}
    (folder / "metrics.json").write_text(json.dumps({"floor": floor, "floor_missing": missing}))


def test_means_and_deviations_are_over_seeds():
    rows = [
        row("mlp", split, seed, 0.5 + 0.1 * seed) for split in ("0.5", "0.2") for seed in (0, 1)
    ]
    (found,) = summarise(result(*rows))
    assert found.splits == ("0.5", "0.2")
    spread = found.lines[0].scores["0.5"]
    assert (spread.mean, spread.n) == (pytest.approx(0.55), 2)
    assert spread.deviation == pytest.approx(0.1 / 2**0.5)


def test_the_floor_of_the_sweep_comes_last():
    rows = [row(m, "0.2", 0, 0.5) for m in ("floor", "floor/knn", "mlp")]
    (found,) = summarise(result(*rows))
    assert [(line.model, line.floor) for line in found.lines] == [
        ("mlp", False),
        ("floor", True),
        ("floor/knn", True),
    ]


def test_else_the_floor_beside_the_heads_takes_its_place():
    rows = [row(m, "0.2", seed, 0.5) for m in ("mlp", "logreg") for seed in (0, 1)]
    for each in rows:
        write_floor(each, 0.3 + 0.2 * each["seed"])
    (found,) = summarise(result(*rows))
    floor = found.lines[-1]
    assert (floor.model, floor.floor) == ("floor", True)
    assert (floor.scores["0.2"].mean, floor.scores["0.2"].n) == (pytest.approx(0.4), 2)


def test_it_is_told_why_there_is_no_floor():
    one = row("mlp", "0.2", 0, 0.5)
    write_floor(one, None, "the store has no image_stats")
    (found,) = summarise(result(one))
    assert [line.model for line in found.lines] == ["mlp"]
    assert found.floor_missing == "the store has no image_stats"


def test_what_failed_has_no_line_but_its_split_keeps_its_place():
    failed = {
        **row("mlp", "0.1", 0, None),
        "status": "failed",
        "task": "",
        "dataset": "",
        "metric_name": "",
    }
    (found,) = summarise(result(failed, row("mlp", "0.2", 0, 0.5)))
    assert found.splits == ("0.1", "0.2")
    assert list(found.lines[0].scores) == ["0.2"]
    assert summarise(result(failed)) == []


def test_each_dataset_has_its_own():
    masks = row("conv", "0.2", 0, 0.4, dataset="roads", task="segmentation", metric_name="iou")
    found = summarise(result(row("mlp", "0.2", 0, 0.5), masks))
    assert [(one.dataset, one.title) for one in found] == [("toy", "accuracy"), ("roads", "IoU")]


def test_weights_that_are_not_trained_are_named_once():
    rows = [row("mlp", "0.2", s, 0.5, untrained=True, weights="random:0") for s in (0, 1)]
    (found,) = summarise(result(*rows))
    assert found.weights == ("random:0",)


def test_models_are_told_apart_by_what_differs():
    assert list(labelled([("mlp", "pooled", "a"), ("vit", "grid", "a")]).values()) == [
        "mlp",
        "vit",
    ]
    assert list(labelled([("mlp", "", "a"), ("mlp", "mean", "a"), ("mlp", "mean", "b")]).values()) == [
        "mlp on all @ a",
        "mlp on mean @ a",
        "mlp on mean @ b",
    ]  # fmt: skip
