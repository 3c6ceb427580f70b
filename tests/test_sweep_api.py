"""A sweep comes to the same however it was cut up: every cell once, every row there, what failed done again."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image
from safetensors.numpy import load_file
from stubs import embedded
from threadpoolctl import threadpool_limits
from toys import Reads, blobs, stripes

from samtl.baselines import floor, vgg19
from samtl.errors import (
    InputError,
    MismatchError,
    ResourceError,
    UnknownName,
)
from samtl.experiment.fit import fit_baseline, fit_head
from samtl.experiment.predict import read_trained
from samtl.experiment.run import read_run
from samtl.heads import mlp
from samtl.heads import trainer as _train
from samtl.images.codecs import BadImage
from samtl.metrics.classification import Score
from samtl.splits import read_split
from samtl.splits.spec import parse_many
from samtl.store.maintenance import compact
from samtl.store.reader import open_store
from samtl.sweep import api, worker
from samtl.sweep import plan as planning
from samtl.sweep.api import Progress, sweep
from samtl.sweep.plan import Given, Sources, plan
from samtl.sweep.results import failed_cells, rows_of
from samtl.sweep.worker import CELLS, FAILED, FLOORS, SPLITS

pytestmark = pytest.mark.usefixtures("one_thread")

FAST = {
    "logreg": {"C": 1.0},
    "mlp": {"hidden": (8,), "epochs": 3, "lr": 1e-2},
    "conv": {"width": 4, "epochs": 2},
    "cnn": {"image_size": 32, "epochs": 1},
}
NESTED = "0.6,0.4,0.2"
ONE_CELL = {"heads": ["logreg"], "splits": "0.2"}
# What may differ between two sweeps of the same.
PASSING = {"seconds", "fit_seconds", "peak_memory", "finished"}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return embedded(tmp_path_factory.mktemp("store"), stripes(75), 64, ("pooled", "grid"))


@pytest.fixture
def out(tmp_path):
    return tmp_path / "sweep"


@pytest.fixture(autouse=True)
def _warm(monkeypatch):
    """Let warm starts shorten trainings on few samples, too."""
    monkeypatch.setattr(_train, "WARM_SAMPLES", 30)
    monkeypatch.setattr(planning, "MOST_KNOWN", 1.0)


def run(store, out, heads=("logreg", "mlp"), splits=NESTED, seeds=1, **options):
    names = (*heads, *options.get("baselines", ()))
    known = {name: FAST[name] for name in names if name in FAST}
    return sweep(store, heads, splits, seeds, out, **{"params": known, "jobs": 1, **options})


def planned(store, splits=NESTED, seeds=(0,), heads=("mlp",), baselines=(), features=(), warm=True):
    dataset = stripes(75) if baselines else None
    sources = Sources(Given(Path("out"), {}, dataset))
    paths = [str(store)] if store else []
    return plan(sources, paths, heads, parse_many(splits), seeds, baselines, features, warm, 10**9)


def lasting(rows):
    """Rows in an order of their own, without what passes."""
    kept = [{name: row[name] for name in row if name not in PASSING} for row in rows]
    return sorted(kept, key=lambda row: (row["cell"], row["method"], row["metric_name"]))


def cells_of(out):
    return sorted(path.name for path in (out / CELLS).iterdir())


def hidden(out):
    return [p for folder in (CELLS, SPLITS, FLOORS, FAILED) for p in (out / folder).glob(".*")]


def once_planned(change):
    """Do something between the plan of a sweep and its work."""
    left = [change]

    def on_event(event):
        if isinstance(event, Progress) and event.what == "planned" and left:
            left.pop()()

    return on_event


def predicted(folder):
    with (folder / "predictions.csv").open() as file:
        return [line["sample_id"] for line in csv.DictReader(file)]


def whats(seen):
    return Counter(event.what for event in seen if isinstance(event, Progress))


# The plan


def test_cells_are_heads_by_splits_by_seeds(store):
    cells = planned(store, seeds=(0, 7), heads=("logreg", "mlp", "conv"), baselines=("floor",))
    expected = {
        (name, split, seed)
        for name in ("logreg", "mlp", "conv", "floor")
        for split in NESTED.split(",")
        for seed in (0, 7)
    }
    assert {(cell.name, cell.split, cell.seed) for cell in cells} == expected
    assert len(cells) == len(expected) == 24
    for what in ("digest", "run", "number"):
        assert len({getattr(cell, what) for cell in cells}) == 24
    assert {cell.kind for cell in cells if cell.name == "floor"} == {"baselines"}


def test_what_loses_by_a_start_begins_with_nothing(store):
    cells = planned(store, seeds=(0, 1), heads=("vit",))
    assert len(cells) > 2
    assert {cell.start for cell in cells} == {""}


@pytest.mark.parametrize("name", ["logreg", "mlp", "conv", "cnn"])
def test_a_cell_starts_from_the_largest_within_it(store, name):
    splits = "0.6,0.2,label:0.5@0.2,0.4,label:0.3@0.2"
    kind = {"baselines": (name,), "heads": ()} if name == "cnn" else {"heads": (name,)}
    cells = planned(store, splits, seeds=(0, 1), **kind)
    starts = 0
    for cell in cells:
        train = set(cell.parts.split.train.tolist())
        within = [
            other
            for other in cells
            if other.seed == cell.seed and set(other.parts.split.train.tolist()) < train
        ]
        if not within:
            assert cell.start == ""
            continue
        starts += 1
        (start,) = [other for other in cells if other.run == cell.start]
        assert len(start.parts.split.train) == max(len(o.parts.split.train) for o in within)
        assert not set(start.parts.split.train) & set(cell.parts.split.test)
        assert start in within
    assert starts >= 6


@pytest.mark.parametrize("name", ["floor", "vgg19"])
def test_what_cannot_start_from_another_never_does(store, name):
    assert {cell.start for cell in planned(store, heads=(), baselines=(name,))} == {""}


def test_folds_are_not_within_each_other(store):
    cells = planned(store, "kfold:3", heads=("mlp", "logreg"))
    assert [cell.split for cell in cells[:3]] == ["fold:1/3", "fold:2/3", "fold:3/3"]
    assert {cell.start for cell in cells} == {""}


def test_a_start_is_of_the_same_columns(store):
    cells = planned(store, features=("mean", "std"))
    by_run = {cell.run: cell for cell in cells}
    started = [cell for cell in cells if cell.start]
    assert len(started) == 4
    assert all(by_run[cell.start].features == cell.features for cell in started)


def test_cold_and_warm_are_different_cells(store):
    warm, cold = planned(store), planned(store, warm=False)
    assert {cell.start for cell in cold} == {""}
    both = {cell.digest for cell in warm} & {cell.digest for cell in cold}
    assert both == {cell.digest for cell in warm if not cell.start}


def test_all_heads_for_the_task_are_the_default(store):
    assert {cell.name for cell in planned(store, heads=None)} == {"logreg", "mlp", "conv", "vit"}


# What comes of it


def test_every_cell_has_its_rows_and_its_run(store, out):
    seen = []
    result = run(store, out, ("logreg", "mlp", "conv"), seeds=[0, 5], on_event=seen.append)
    assert (result.done, result.skipped, result.failed, result.notes) == (18, 0, {}, ())
    assert whats(seen)["planned"] == whats(seen)["started"] == whats(seen)["done"] == 18
    assert whats(seen)["event"] > 18
    assert all(str(event) for event in seen)
    done = {event.cell.run: event.figures for event in seen if event.what == "done"}
    assert cells_of(out) == sorted(done)
    assert not hidden(out)
    by_cell = {}
    for row in result.rows:
        by_cell.setdefault(row["cell"], []).append(row)
    assert len(by_cell) == 18
    for rows in by_cell.values():
        folder = out / rows[0]["run"]
        found = read_run(folder)
        assert len(rows) == len(found.metrics)
        assert {row["metric_name"]: row["metric_value"] for row in rows} == done[folder.name]
        for row in rows:
            score = Score(*(row[name] for name in ("metric_value", "ci_lower", "ci_upper")))
            assert score == found.metrics[row["metric_name"]]
        row = rows[0]
        split = read_split(folder)
        assert row["n_test"] == found.n_test == len(split.held_out)
        assert row["n_val"] == found.n_validation == len(split.validation)
        assert row["n_train"] + row["n_val"] + row["n_test"] == 75
        assert row["split_digest"] == split.digest
        assert row["cell"] == found.digest
        assert row["dataset"] == "stripes"
        assert row["best_c"] == (1.0 if row["method"] == "logreg" else None)
        assert (row["epochs"] is None) == (row["method"] == "logreg")
        assert row["warm_start"] == found.warm_start
        assert (row["warm_start"] == "") == (row["split"] == "0.6")
        trained = read_trained(folder)  # what samtl predict begins with
        assert trained.name == row["method"]
    assert lasting(run(store, out, ("logreg", "mlp", "conv"), seeds=[0, 5]).rows) == lasting(
        result.rows
    )
    shared = {path.name for path in (out / SPLITS).iterdir()}
    assert len(shared) == 6  # of three splits with two seeds, for all heads
    json.dumps(result.to_json(), allow_nan=False)


def test_the_same_call_again_skips_all(store, out):
    first = run(store, out)
    seen = []
    again = run(store, out, on_event=seen.append)
    assert (again.done, again.skipped) == (0, first.done) == (0, 6)
    assert whats(seen) == {"planned": 6, "skipped": 6}
    assert again.rows == first.rows


def test_a_sweep_may_grow(store, out):
    run(store, out, ["logreg"], splits="0.6")
    grown = run(store, out, seeds=2)
    assert (grown.done, grown.skipped) == (11, 1)
    assert len({row["cell"] for row in grown.rows}) == 12
    # What is asked for is what is given back.
    assert {row["method"] for row in run(store, out, ["logreg"]).rows} == {"logreg"}


def test_a_sweep_is_the_same_with_the_same_seeds(store, out, tmp_path):
    heads = ("logreg", "mlp", "conv", "vit")
    known = FAST | {"vit": {"width": 64, "epochs": 1}}
    params = {name: known[name] for name in heads}
    first = run(store, out, heads, params=params)
    # In another order, and bit by bit: what a cell starts from is then read from its folder.
    other = tmp_path / "other"
    for split in ("0.6", "0.4,0.6", "0.2,0.4,0.6"):
        for head in reversed(heads):
            run(store, other, [head], splits=split, params={head: params[head]})
    again = run(store, other, heads, params=params)
    assert (again.done, again.skipped) == (0, 12)
    assert lasting(again.rows) == lasting(first.rows)
    assert cells_of(other) == cells_of(out)
    for name in cells_of(out):
        one, two = (folder / CELLS / name / "head.safetensors" for folder in (out, other))
        assert one.read_bytes() == two.read_bytes()


def test_a_start_whose_folder_is_gone_is_trained_again(store, out):
    first = run(store, out, ["mlp"])
    for share in (0.6, 0.2):
        shutil.rmtree(out / CELLS / next(n for n in cells_of(out) if f"-{share}-" in n))
    again = run(store, out, ["mlp"])
    assert (again.done, again.skipped) == (2, 1)
    assert lasting(again.rows) == lasting(first.rows)


def test_cells_know_which_splits_they_came_by(store, out, tmp_path):
    """A start that comes between two cells makes another cell of the larger one."""
    run(store, out, ["mlp"], splits="0.6,0.2")
    grown = run(store, out, ["mlp"])
    assert (grown.done, grown.skipped) == (2, 1)
    assert lasting(grown.rows) == lasting(run(store, tmp_path / "other", ["mlp"]).rows)


def test_other_features_of_the_same_samples_are_other_cells(store, out, tmp_path):
    changed = replace(stripes(75), labels=tuple((i + 1) % 3 for i in range(75)))
    other = embedded(tmp_path, changed, 64, ("pooled",))
    first = run(store, out, **ONE_CELL)
    second = run(other, out, **ONE_CELL)
    assert (second.done, second.skipped) == (1, 0)
    assert {row["cell"] for row in first.rows}.isdisjoint(row["cell"] for row in second.rows)


def test_other_masks_of_the_same_images_are_other_cells(out, tmp_path):
    data = blobs(12, classes=2)
    turned = {name: np.roll(mask, 3, 1) for name, mask in data.read_mask.content.items()}
    other = replace(data, read_mask=turned.__getitem__)
    seen = []
    for source in (data, other, other):
        path = embedded(tmp_path, source, 64, ("dense",))
        result = run(path, out, ("conv",), "0.25")
        seen.append((result.done, result.skipped, {row["cell"] for row in result.rows}))
    assert [of[:2] for of in seen] == [(1, 0), (1, 0), (0, 1)]
    assert seen[0][2].isdisjoint(seen[1][2])
    assert seen[1][2] == seen[2][2]


def test_the_floor_is_that_of_the_images_as_they_are(out, tmp_path):
    """Other images of the same names and labels have the same split."""
    data = stripes(60)
    files = dict(zip(data.sample_ids, data.read.content.values(), strict=True))
    mixed = dict(zip(data.sample_ids, sorted(files.values()), strict=True))
    for source in (data, replace(data, read=mixed.__getitem__)):
        path = embedded(tmp_path, source, 64, ("pooled",))
        result = run(path, out, ["logreg"], "0.4")
        assert result.done == 1
        found = read_run(out / result.rows[0]["run"])
        alone = fit_head(path, "logreg", 0.4, out=tmp_path / "runs", params=FAST["logreg"])
        assert (found.split.digest, found.floor) == (alone.split.digest, alone.floor)


def test_no_warm_start_where_much_of_the_validation_part_was_learnt_from(store, monkeypatch):
    monkeypatch.setattr(planning, "MOST_KNOWN", 0.0)
    assert [cell.start for cell in planned(store, NESTED)] == ["", "", ""]
    assert all(cell.start for cell in planned(store, NESTED, heads=("logreg",))[1:])


@pytest.mark.parametrize("what", ["config.json", "metrics.json"])
def test_a_folder_that_is_damaged_is_told_of_and_left(store, out, what):
    first = run(store, out)
    name = cells_of(out)[0]
    (out / CELLS / name / what).write_text("{}" if what == "config.json" else "{")
    again = run(store, out)
    assert (again.done, again.skipped) == (0, 5)
    (reason,) = again.failed.values()
    assert name in reason
    shutil.rmtree(out / CELLS / name)
    last = run(store, out)
    assert (last.done, last.skipped, last.failed) == (1, 5, {})
    assert lasting(last.rows) == lasting(first.rows)


def test_what_killed_processes_leave_is_swept_away(store, out):
    run(store, out, **ONE_CELL)
    for folder, name in ((CELLS, ".tmp-1"), (SPLITS, ".a.json.tmp-1"), (FLOORS, ".b")):
        (out / folder / name).mkdir() if folder == CELLS else (out / folder / name).write_text("")
    run(store, out, **ONE_CELL)
    assert not hidden(out)


# What fails


def test_a_cell_that_fails_is_recorded_and_the_others_go_on(store, out):
    params = {"mlp": FAST["mlp"] | {"lr": 1e30}}
    result = run(store, out, params=params, warm_start=False)
    assert (result.done, result.skipped, len(result.failed)) == (3, 0, 3)
    assert all("mlp" in name for name in result.failed)
    assert all("lower the learning rate" in text for text in result.failed.values())
    failed = [row for row in result.rows if row["status"] == "failed"]
    assert len(failed) == 3
    for row in failed:
        assert row["error"] == result.failed[f"mlp on pooled, split {row['split']}, seed 0"]
        assert (row["method"], row["kind"], row["seed"]) == ("mlp", "head", 0)
        assert row["split"] in NESTED.split(",")
    assert len(cells_of(out)) == 3
    assert not hidden(out)
    again = run(store, out, params=params, warm_start=False)
    assert (again.done, again.skipped, again.failed) == (0, 3, result.failed)


def test_what_failed_is_tried_again_and_what_was_to_start_from_it_goes_on(
    store, out, tmp_path, monkeypatch
):
    fitted, calls = mlp.Head._fit, []

    def flaky(self, *args):
        calls.append(self)
        if len(calls) == 2:
            raise InputError("the second fails")
        fitted(self, *args)

    monkeypatch.setattr(mlp.Head, "_fit", flaky)
    result = run(store, out)
    assert result.done == 5
    assert list(result.failed.values()) == ["the second fails"]
    assert len(result.notes) == 1
    assert len(failed_cells(out)) == 1
    again = run(store, out)
    assert (again.done, again.skipped, again.failed) == (2, 4, {})
    assert {row["status"] for row in again.rows} == {"done"}
    assert failed_cells(out) == []
    assert lasting(again.rows) == lasting(run(store, tmp_path / "other").rows)


def test_a_damaged_store_fails_the_cells_that_need_the_row(store, out, tmp_path):
    copy = shutil.copytree(store, tmp_path / "stripes.zarr")
    shard = next((copy / "grid").glob("c.0*"))
    content = bytearray(shard.read_bytes())
    content[100] ^= 1  # in row 0
    shard.write_bytes(content)
    result = run(copy, out, ("logreg", "conv"), splits="kfold:3")
    assert result.done == 3
    assert len(result.failed) == 3
    assert all("conv" in n and "fails its checksum" in t for n, t in result.failed.items())
    assert not hidden(out)


def test_a_damaged_row_of_few_features_fails_the_cells_that_need_it(store, out, tmp_path):
    copy = shutil.copytree(store, tmp_path / "stripes.zarr")
    shard = next((copy / "pooled").glob("c.0*"))
    content = bytearray(shard.read_bytes())
    content[270] ^= 1  # of the first row: the index takes 260 bytes
    shard.write_bytes(content)
    splits = "label:0.3@0.5,shots:3@0.3"
    result = run(copy, out, ["logreg"], splits, seeds=4, warm_start=False)
    assert result.done > 0 < len(result.failed)
    assert result.done + len(result.failed) == 8
    assert all("fails its checksum" in text for text in result.failed.values())


@pytest.mark.parametrize("head", ["logreg", "mlp", "conv"])
@pytest.mark.parametrize("change", ["images", "rows"])
def test_a_store_that_changes_after_the_plan_is_not_learnt_from(out, tmp_path, head, change):
    """Row numbers of the plan are of other samples then, and its names of other images."""
    data = stripes(60)
    files = data.read.content
    id_of = dict(zip("abc", data.sample_ids, strict=False))
    tiers = ("pooled", "grid")

    def embed_with(**others):
        changed = {id_of[word]: files[id_of[other]] for word, other in others.items()}
        source = replace(data, read={**files, **changed}.__getitem__)
        return embedded(tmp_path, source, 64, tiers)

    path = embed_with()
    embed_with(a="b")  # whose new row is the last

    def later():
        if change == "images":
            embed_with(a="b", c="b")
        else:
            compact(path)

    options = {"heads": (head,), "splits": "0.2,0.4", "room": 0}
    result = run(path, out, **options, on_event=once_planned(later))
    assert (result.done, len(result.failed)) == (0, 2)
    assert {*result.failed.values()} == {
        f"{path} changed while the sweep ran: run the same sweep again"
    }
    assert not (out / CELLS).exists() or cells_of(out) == []
    assert not (out / SPLITS).exists()
    again = run(path, out, **options)
    assert (again.done, again.skipped, again.failed) == (2, 0, {})
    for name in cells_of(out):
        alone = fit_head(
            path, head, same_split_as=out / CELLS / name, out=tmp_path / "runs", params=FAST[head]
        )
        one, other = (predicted(folder) for folder in (out / CELLS / name, alone.run))
        assert one == other


def test_images_that_come_after_the_plan_are_not_learnt_from(out, tmp_path):
    data = stripes(60)
    for name, content in data.read.content.items():
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def later():
        shutil.copy(path, path.with_name("new.png"))

    spec = f"folder:{tmp_path / 'images'}"
    options = {"baselines": ("floor",), "dataset": spec, "splits": "0.4,0.2"}
    result = run([], out, (), **options, on_event=once_planned(later))
    assert (result.done, len(result.failed)) == (0, 2)
    assert all("changed while the sweep ran" in text for text in result.failed.values())
    assert not (out / CELLS).exists() or cells_of(out) == []
    again = run([], out, (), **options)
    assert (again.done, again.skipped, again.failed) == (2, 0, {})
    assert {row["n_train"] + row["n_val"] + row["n_test"] for row in again.rows} == {61}


def test_a_break_leaves_what_is_done(store, out):
    def stop(event):
        if isinstance(event, Progress) and (event.what, event.cell.split) == ("started", "0.2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(store, out, ["mlp"], on_event=stop)
    assert not hidden(out)
    again = run(store, out, ["mlp"])
    assert (again.done, again.skipped) == (1, 2)


# Beside fit_head


@pytest.mark.parametrize("features", [(), ("mean,block*",), ("std",)])
def test_a_cold_cell_is_the_run_of_fit_head(store, out, tmp_path, features):
    options = {"seeds": [3], "features": features, "warm_start": False}
    result = run(store, out, splits="0.4,fold:2/3,label:0.5@0.2", **options)
    assert result.done == 6
    for row in result.rows:
        if row["metric_name"] != "log_loss":
            continue
        folder = out / row["run"]
        alone = fit_head(
            store,
            row["method"],
            row["split"],
            3,
            tmp_path / "runs" / folder.name,
            params=FAST[row["method"]],
            features=features[0] if features else None,
        )
        found = read_run(folder)
        assert alone.metrics[row["metric_name"]].value == row["metric_value"]
        assert alone.metrics[row["metric_name"]].low == row["ci_lower"]
        assert alone.digest == found.digest == row["cell"]
        for name in ("head.safetensors", "confusion.csv", "curves.csv", "head.json"):
            assert (alone.run / name).read_bytes() == (folder / name).read_bytes()
        assert found.floor == alone.floor
        assert found.comparison_key == alone.comparison_key
        one, other = read_split(folder), read_split(alone.run)
        assert one == other
        with (folder / "predictions.csv").open() as lean, (alone.run / "predictions.csv").open() as full:  # fmt: skip
            keys = ("sample_id", "label", "predicted")
            found = list(csv.DictReader(lean))
            assert found == [{k: line[k] for k in keys} for line in csv.DictReader(full)]


def test_a_store_that_is_not_complete(out, tmp_path):
    whole = embedded(tmp_path, stripes(60), 64, ("pooled", "grid"))
    for record in (whole / "log").glob("3*.json"):
        record.unlink()
    with pytest.raises(InputError, match="is not complete: 12 of 60 rows"):
        run(whole, out)
    result = run(whole, out, ("logreg", "conv"), splits="0.4", allow_partial=True)
    assert (result.done, result.failed) == (2, {})
    assert {row["n_train"] + row["n_val"] + row["n_test"] for row in result.rows} == {48}


# Baselines, masks, several stores


def test_baselines_have_the_splits_of_the_heads(store, out, monkeypatch):
    fits = []
    fit = floor.Baseline.fit
    monkeypatch.setattr(floor.Baseline, "fit", lambda self, *a: fits.append(1) or fit(self, *a))
    data = stripes(75)
    result = run(store, out, ["logreg"], "0.4,0.2", baselines=("cnn", "floor"), dataset=data)
    assert (result.done, result.failed) == (6, {})
    assert len(fits) == 2  # once for each split, whatever it is held against
    digests = {}
    for row in result.rows:
        digests.setdefault(row["split"], set()).add(row["split_digest"])
    assert [len(found) for found in digests.values()] == [1, 1]
    assert len(list((out / SPLITS).iterdir())) == 2
    methods = {row["method"] for row in result.rows}
    assert methods == {"logreg", "cnn", "cnn/knn", "floor", "floor/knn"}
    figures = {
        (row["method"], row["split"], row["metric_name"]): row["metric_value"]
        for row in result.rows
    }
    for name in cells_of(out):
        found = read_trained(out / CELLS / name)
        if found.name == "cnn":
            split = next(r["split"] for r in result.rows if r["run"].endswith(name))
            for metric, score in found.floor.items():
                assert figures["floor", split, metric] == score.value
    assert run(store, out, ["logreg"], "0.4,0.2", baselines=("cnn", "floor"), dataset=data).skipped == 6  # fmt: skip


def with_files(data, **others):
    """The dataset with other files for some of its images, given by their place in it."""
    changed = {data.sample_ids[int(place[1:])]: content for place, content in others.items()}
    return replace(data, read=Reads({**data.read.content, **changed}))


@pytest.mark.parametrize("alone", [True, False])
def test_baselines_of_other_images_are_other_cells(out, tmp_path, alone):
    """Names, labels and split are the same."""
    data = stripes(60)
    mixed = replace(
        data,
        read=Reads(dict(zip(data.sample_ids, sorted(data.read.content.values()), strict=True))),
    )
    n, figures = 1 if alone else 2, []
    for source in (data, mixed):
        paths = [] if alone else embedded(tmp_path, source, 64, ("pooled",))
        heads = () if alone else ("logreg",)
        options = {"baselines": ("floor",), "dataset": source}
        result = run(paths, out, heads, "0.4", **options)
        assert (result.done, result.skipped, result.failed) == (n, 0, {})
        assert run(paths, out, heads, "0.4", **options).skipped == n
        (row,) = (r for r in result.rows if (r["method"], r["metric_name"]) == ("floor", "accuracy"))  # fmt: skip
        expected = fit_baseline(source, "floor", 0.4, out=tmp_path / "runs")
        assert row["metric_value"] == expected.metrics["accuracy"].value
        assert row["split_digest"] == expected.split.digest
        figures.append(row["metric_value"])
    assert figures[0] != figures[1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda d: with_files(d, i3=d.read(d.sample_ids[0])),
            "image of '0/003.png': the store has sha256 .{16}, asked for is sha256 ",
        ),
        (
            lambda d: replace(d, labels=(1, *d.labels[1:])),
            "label of '0/000.png': the store has class0, asked for is class1",
        ),
        (
            lambda d: replace(d, labels=(-1, *d.labels[1:])),
            "label of '0/000.png': the store has class0, asked for is none",
        ),
        (
            lambda d: replace(d, classes=("class1", "class0", "class2")),
            "classes: the store has class0, class1, class2, asked for is class1, class0, class2",
        ),
    ],
)
def test_baselines_of_other_images_than_the_heads_are_refused(store, out, change, said):
    data = change(stripes(75))
    with pytest.raises(MismatchError, match=f"(?s)run samtl embed to bring the store up.*{said}"):
        run(store, out, ["logreg"], baselines=("floor",), dataset=data)
    assert not out.exists()
    assert run(store, out, **ONE_CELL, dataset=data).done == 1  # nothing reads them


def test_baselines_of_other_masks_than_the_heads_are_refused(out, tmp_path):
    data = blobs(12, classes=2)
    path = embedded(tmp_path, data, 64, ("dense",))
    name = data.sample_ids[5]
    for mask, told in (
        (np.roll(data.read_mask(name), 3, 1), "sha256 "),
        (BadImage("mask_values", "it has values that no class has"), "none that can be used"),
    ):
        other = replace(data, read_mask=Reads({**data.read_mask.content, name: mask}))
        said = (
            f"(?s)run samtl embed.*mask of '005.png': the store has sha256 .*, asked for is {told}"
        )
        with pytest.raises(MismatchError, match=said):
            run(path, out, ("conv",), "0.25", baselines=("floor",), dataset=other)


def test_images_of_rows_that_take_no_part_are_not_compared(out, tmp_path):
    data = stripes(60)
    path = embedded(tmp_path, with_files(data, i7=b""), 64, ("pooled",))
    result = run(path, out, ["logreg"], "0.4", baselines=("floor",), dataset=data)
    assert (result.done, result.failed) == (2, {})


def test_an_image_that_cannot_be_read_fails_the_baselines_that_need_it(out, tmp_path):
    data = stripes(60)
    path = embedded(tmp_path, data, 64, ("pooled",))
    gone = with_files(data, i7=FileNotFoundError(2, "No such file"))
    result = run(path, out, ["logreg"], "0.4", baselines=("floor",), dataset=gone)
    assert (result.done, len(result.failed)) == (1, 1)
    again = run(path, out, ["logreg"], "0.4", baselines=("floor",), dataset=data)
    assert (again.done, again.skipped, again.failed) == (1, 1, {})


def test_each_image_is_compared_once_for_all_cells(store):
    data = stripes(75)
    sources = Sources(Given(Path("out"), {}, data))
    splits, baselines = parse_many(NESTED), ("floor", "cnn")
    cells = plan(sources, [str(store)], (), splits, (0, 1), baselines, (), True, 10**9)
    assert len(cells) == 12
    assert sorted(data.read.asked) == sorted(data.sample_ids)


def test_baselines_alone_keep_groups_together(out):
    options = {"baselines": ("floor",), "dataset": stripes(60), "group_by": r"(\d)\.png"}
    result = run([], out, (), "0.3", **options)
    (folder,) = (out / CELLS).iterdir()
    split = read_split(folder)
    held = {name[-5] for name in split.held_out}
    rest = {name[-5] for name in stripes(60).sample_ids if name not in split.held_out}
    assert result.done == 1
    assert split.name == "grouped"
    assert held
    assert not held & rest


def test_frozen_features_are_computed_once_for_all_splits(out, tmp_path, monkeypatch):
    monkeypatch.setattr(vgg19, "BLOCKS", ((4,), (4,), (4,), (4,), (8,)))
    monkeypatch.setattr(vgg19, "N_FEATURES", 16)
    images = []
    forward = vgg19.Baseline._run
    monkeypatch.setattr(
        vgg19.Baseline,
        "_run",
        lambda self, inputs: images.append(len(inputs)) or forward(self, inputs),
    )
    spared = []
    ask = vgg19.Baseline.cached_seconds
    monkeypatch.setattr(
        vgg19.Baseline, "cached_seconds", lambda self: spared.append(ask(self)) or spared[-1]
    )
    data, params = stripes(60), {"checkpoint": "random:0", "image_size": 32}
    given = {"baselines": ("vgg19",), "dataset": data, "params": {"vgg19": params}}
    result = run([], out, (), "0.5,0.3", seeds=2, **given)
    assert (result.done, result.failed) == (4, {})
    assert sum(images) == 60
    for name in cells_of(out):
        found = read_run(out / CELLS / name)
        split, seed = found.given["split"], found.seed
        alone = fit_baseline(data, "vgg19", split, seed, out=tmp_path / "alone", params=params)
        assert found.metrics["accuracy"].value == alone.metrics["accuracy"].value
    # Whatever was found ready is counted all the same: what a fit costs does not hang on its company.
    seconds = [read_run(out / CELLS / name).seconds for name in cells_of(out)]
    assert sum(spared) > 0
    for found in seconds:
        assert found["total"] >= found["fit"] + found["score"] > max(spared) / 2


def test_a_sweep_of_masks(out, tmp_path):
    data = blobs(12, classes=2)
    path = embedded(tmp_path, data, 64, ("dense",))
    given = {"heads": ["conv"], "splits": "0.25", "baselines": ("floor",), "dataset": data}
    result = run(path, out, **given)
    assert (result.done, result.failed) == (2, {})
    assert {row["features"] for row in result.rows if row["method"] == "conv"} == {"dense"}
    assert "pooled_iou" in {row["metric_name"] for row in result.rows}
    for name in cells_of(out):
        trained = read_trained(out / CELLS / name)
        assert trained.task == "segmentation"
        assert (out / CELLS / name / "images.csv").is_file()
        masks = sorted((out / CELLS / name / "masks").glob("*.png"))
        # Of heads and baselines alike, at the encoder's resolution.
        assert {max(np.asarray(Image.open(mask)).shape) for mask in masks} == {64}
    assert run(path, out, **given).skipped == 2


def test_masks_of_several_resolutions_have_no_baseline_in_common(out, tmp_path):
    data = blobs(12, classes=2)
    stores = [embedded(tmp_path / str(size), data, size, ("dense",)) for size in (64, 128)]
    options = {"splits": "0.25", "baselines": ("floor",), "dataset": data}
    with pytest.raises(InputError, match="images of 64 and 128 pixels: sweep each by itself"):
        run(stores, out, ["conv"], **options)


def test_several_stores(store, out, tmp_path):
    other = embedded(tmp_path, replace(stripes(45), name="few"), 64, ("pooled",))
    result = run([store, other], out, ["logreg"], "0.4")
    assert result.done == 2
    assert {row["store"] for row in result.rows} == {"stripes", "few"}
    assert {row["dataset"] for row in result.rows} == {"stripes", "few"}


# What cannot be


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"seeds": [1, 2, 1]}, InputError, "the seed 1 is given twice"),
        ({"seeds": []}, InputError, "--seeds takes how many"),
        ({"seeds": 0}, InputError, "--seeds takes how many"),
        ({"seeds": [-1]}, InputError, "a seed must lie between 0 and"),
        ({"heads": ["mpl"]}, UnknownName, "did you mean mlp"),
        ({"heads": ["mlp", "mlp"]}, InputError, "mlp with seed 0 would be trained twice"),
        ({"heads": []}, InputError, "there is nothing to sweep"),
        ({"features": ["mean,std", "std, mean"]}, InputError, "would be trained twice"),
        ({"features": ["meen"]}, UnknownName, "did you mean mean"),
        ({"splits": "0.2,0.20"}, InputError, "the split 0.2 is listed twice"),
        ({"splits": "half"}, UnknownName, "no split is called 'half'"),
        ({"splits": "shipped"}, InputError, "does not come with a split"),
        ({"baselines": ["cnn"]}, InputError, "the baselines cnn read pixels: say which with --dat"),
        ({"baselines": ["cn"], "dataset": "synthetic:3"}, InputError, "has no image for 75 of 75"),
        ({"params": {"vit": {}}}, InputError, "parameters are given for vit, which is not in"),
        ({"params": {"mlp": {"widht": 3}}}, UnknownName, "no parameter of the head mlp is called"),
        ({"jobs": 0}, InputError, "--jobs must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(store, out, options, error, said):
    with pytest.raises(error, match=said):
        sweep(store, **{"heads": ["mlp"], "splits": "0.2", "out": out, **options})
    assert not out.exists()


def test_a_store_given_twice_or_that_is_none(store, out):
    with pytest.raises(InputError, match="would be trained twice"):
        run([store, store], out)
    with pytest.raises(InputError, match=r"nowhere\.zarr"):
        run("nowhere.zarr", out)
    data = replace(blobs(75), sample_ids=stripes(75).sample_ids)
    with pytest.raises(InputError, match=r"is for classification, and blobs for segmentation"):
        run(store, out, baselines=("unet",), dataset=data)


def test_where_nothing_can_be_written(store, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match=r"cannot write a sweep into .*choose another folder"):
        run(store, tmp_path / "file" / "sweep")


def test_one_sweep_at_a_time(store, out):
    out.mkdir()
    with FileLock(out / ".lock"), pytest.raises(InputError, match="another sweep writes to"):
        run(store, out, **ONE_CELL)
    assert run(store, out, **ONE_CELL).done == 1


def test_the_default_folder_is_named_after_the_store(store, monkeypatch, tmp_path):
    monkeypatch.setenv("SAMTL_RUNS", str(tmp_path / "mine"))
    assert run(store, None, **ONE_CELL).out == tmp_path / "mine" / "sweep-stripes"


# Several processes, and their end

HEADS = ("logreg", "mlp", "conv")
KILLS = 10 if os.environ.get("SAMTL_TORTURE") else 3


@pytest.mark.slow
def test_two_processes_come_to_the_same(store, out, tmp_path, monkeypatch):
    monkeypatch.setattr(_train, "WARM_SAMPLES", 75_000)  # as in the processes
    options = {"baselines": ("cnn", "floor"), "dataset": stripes(75), "seeds": 2}
    with threadpool_limits(1):
        one = run(store, out, HEADS, **options)
        two = run(store, tmp_path / "other", HEADS, jobs=2, **options)
    assert torch.get_num_threads() == 1  # as the workers have on a machine of few cores
    assert (one.done, two.done, two.failed) == (30, 30, {})
    assert cells_of(out) == cells_of(tmp_path / "other")
    if len(os.sched_getaffinity(0)) < 4:
        assert lasting(one.rows) == lasting(two.rows)


SCRIPT = """
    import os, sys
    os.fsync = lambda descriptor: None
    import torch
    torch.set_num_threads(1)
    from samtl.heads import trainer
    trainer.WARM_SAMPLES = 30
    from samtl.sweep import plan
    plan.MOST_KNOWN = 1.0
    from samtl.sweep.api import sweep

    PARAMS = {
        "logreg": {"C": 1.0},
        "mlp": {"hidden": (8,), "epochs": 200, "lr": 1e-2, "patience": 200},
        "conv": {"width": 8, "epochs": 60, "patience": 60},
    }

    def main():
        store, out, room = sys.argv[1:]
        told = lambda event: print(getattr(event, "what", "note"), flush=True)
        result = sweep(store, list(PARAMS), "0.6,0.4,0.2", 2, out, params=PARAMS, jobs=2, room=int(room), on_event=told)
        print("finished", result.done, result.skipped, result.failed, flush=True)

    if __name__ == "__main__":
        main()
"""


def table_of(out):
    return [row for run in (out / CELLS).iterdir() for row in rows_of(read_run(run), "")]


def processes(session):
    """Ids of the processes of a session that are still there, zombies not counted."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("whole_group", [False, True])
def test_a_sweep_killed_at_any_moment_ends_with_the_same_rows(store, out, tmp_path, whole_group):
    script = tmp_path / "study.py"
    script.write_text(textwrap.dedent(SCRIPT))

    def start(folder, log):
        # Once with what fits in memory, once with passes that are shared.
        room = "0" if whole_group else str(10**9)
        command = [sys.executable, str(script), str(store), str(folder), room]
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    log = tmp_path / "log"
    with log.open("w") as file:
        assert start(tmp_path / "whole", file).wait(300) == 0
    assert "finished 18 0 {}" in log.read_text()
    expected = table_of(tmp_path / "whole")

    random = np.random.default_rng(whole_group)
    kills = 0
    for _ in range(40):
        with log.open("w") as file:
            process = start(out, file)
            # From the first cell on, which comes after some seconds of loading.
            while process.poll() is None and "started" not in log.read_text():
                time.sleep(0.02)
            if kills < KILLS:
                try:
                    process.wait(random.random() * 0.8)
                except subprocess.TimeoutExpired:
                    kills += 1
                    kill = os.killpg if whole_group else os.kill
                    kill(process.pid, signal.SIGKILL)
            process.wait(300)
        ended = time.monotonic()
        while processes(process.pid) and time.monotonic() - ended < 10:
            time.sleep(0.05)
        assert time.monotonic() - ended < 2  # nobody goes on without the parent
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, log.read_text()
    assert kills == KILLS
    assert "{}" in log.read_text().splitlines()[-1]
    found = table_of(out)
    assert lasting(found) == lasting(expected)
    assert cells_of(out) == cells_of(tmp_path / "whole")
    assert not hidden(out)
    for name in cells_of(out):
        one, two = (
            folder / CELLS / name / "head.safetensors" for folder in (out, tmp_path / "whole")
        )
        assert one.read_bytes() == two.read_bytes()


# What fits in memory, and what does not


def weights_of(folder):
    return load_file(folder / "head.safetensors")


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_head_on_grids_learns_what_fit_head_teaches_it(store, out, tmp_path, jobs):
    torch.set_num_threads(jobs)  # which the processes share: one thread each
    run(store, out, ("conv",), seeds=2, jobs=jobs, warm_start=False)
    torch.set_num_threads(1)
    for seed, split in ((0, "0.2"), (1, "0.6")):
        alone = fit_head(store, "conv", split, seed, tmp_path / "runs", params=FAST["conv"])
        (cell,) = (out / CELLS).glob(f"*-conv-{split}-s{seed}-*")
        for name, expected in weights_of(alone.run).items():
            np.testing.assert_array_equal(weights_of(cell)[name], expected)


@pytest.mark.parametrize(("room", "shared"), [(None, 0), (0, 1), (10**9, 0), (1, 1)])
def test_passes_are_shared_over_what_does_not_fit(store, out, monkeypatch, room, shared):
    asked, together = [], worker.fit_together
    monkeypatch.setattr(
        worker, "fit_together", lambda *of: asked.append(len(of[2])) or together(*of)
    )
    result = run(store, out, ("conv", "mlp"), seeds=2, room=room)
    assert not result.failed
    assert asked == [2] * shared  # a lane for each seed
    assert whats_of(result) == {"conv": 6, "mlp": 6}


def whats_of(result):
    done = {(row["method"], row["cell"]) for row in result.rows if row["kind"] == "head"}
    return Counter(method for method, _ in done)


def test_the_room_is_half_of_what_the_process_may_use(store, out, monkeypatch):
    size = open_store(store).bytes_of("grid")
    asked, together = [], worker.fit_together
    monkeypatch.setattr(worker, "fit_together", lambda *of: asked.append(of) or together(*of))
    monkeypatch.setattr(api, "machine_memory", lambda: 2 * size)
    run(store, out / "a", ("conv",), "0.2")
    assert not asked
    monkeypatch.setattr(api, "machine_memory", lambda: 2 * size - 2)
    run(store, out / "b", ("conv",), "0.2")
    assert len(asked) == 1


def test_what_is_trained_in_another_order_is_another_cell(store, out):
    """A sweep that goes on where there is less memory mixes nothing."""
    first = run(store, out, ("conv", "mlp"), "0.2")
    again = run(store, out, ("conv", "mlp"), "0.2", room=0)
    assert (first.done, again.done, again.skipped) == (2, 1, 1)
    assert len([name for name in cells_of(out) if "-conv-" in name]) == 2
