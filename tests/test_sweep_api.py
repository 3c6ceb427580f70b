"""A sweep comes to the same however it was cut up: every cell once, every row there, what failed done again."""

import errno
import functools
import json
import os
import shutil
from collections import Counter
from dataclasses import replace

import pytest
from stubs import embedded, image_folder
from sweeps import FAST, counts, outcome, runs
from sweeps import run as run_cold
from toys import stripes

from samtl import _io
from samtl.errors import InputError, ResourceError
from samtl.experiment.fit import fit_head
from samtl.experiment.predict import read_trained
from samtl.experiment.run import read_run
from samtl.metrics.classification import Score
from samtl.splits import read_split
from samtl.store.maintenance import compact
from samtl.store.reader import Store, open_store
from samtl.sweep import api, worker
from samtl.sweep.api import Progress, sweep
from samtl.sweep.results import failed_cells
from samtl.sweep.worker import CELLS, FLOORS, SPLITS

HEADS = ("logreg", "mlp", "conv")
# What may differ between two sweeps of the same.
PASSING = {"seconds", "fit_seconds", "peak_memory", "finished"}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return embedded(tmp_path_factory.mktemp("store"), stripes(75), 64, ("pooled", "grid"))


@pytest.fixture
def out(tmp_path):
    return tmp_path / "sweep"


run = functools.partial(run_cold, warm_start=True)  # cells depend on one another

pytestmark = pytest.mark.usefixtures("one_thread", "warm_starts")


@pytest.fixture(scope="module")
def finished(store, warm_starts, one_thread, tmp_path_factory):
    """A sweep of three heads, and what it told."""
    seen = []
    out = tmp_path_factory.mktemp("finished") / "sweep"
    return run(store, out, HEADS, seeds=[0, 5], on_event=seen.append), seen


@pytest.fixture
def again(store, finished, out):
    """Run the finished sweep again, in a copy of its folder."""
    shutil.copytree(finished[0].out, out)
    return lambda **options: run(store, out, HEADS, **{"seeds": [0, 5], **options})


def lasting(rows):
    """Rows in an order of their own, without what passes."""
    kept = [{name: row[name] for name in row if name not in PASSING} for row in rows]
    return sorted(kept, key=lambda row: (row["cell"], row["method"], row["metric_name"]))


def cells_of(out):
    return sorted(path.name for path in (out / CELLS).iterdir())


def once_planned(change):
    """Do something between the plan of a sweep and its work."""
    left = [change]
    return lambda event: left and left.pop()()


def whats(seen):
    return Counter(event.what for event in seen)


# What comes of it


def test_every_cell_has_its_rows_and_its_run(finished):
    result, seen = finished
    assert (counts(result), result.notes) == ((18, 0, 0), ())
    assert whats(seen)["planned"] == whats(seen)["started"] == whats(seen)["done"] == 18
    assert whats(seen)["event"] > 18
    assert all(str(event) for event in seen)
    figures = [event.figures for event in seen if event.what == "done"]
    by_cell = {}
    for row in result.rows:
        by_cell.setdefault(row["run"], []).append(row)
    assert sorted(f"cells/{name}" for name in cells_of(result.out)) == sorted(by_cell)
    assert not list(result.out.glob("*/.*"))
    for name, rows in by_cell.items():
        found = read_run(result.out / name)
        assert {row["metric_name"]: row["metric_value"] for row in rows} in figures
        for row in rows:
            score = Score(*(row[name] for name in ("metric_value", "ci_lower", "ci_upper")))
            assert score == found.metrics[row["metric_name"]]
        row, split = rows[0], read_split(result.out / name)
        assert row["n_test"] == found.n_test == len(split.held_out)
        assert row["n_val"] == found.n_validation == len(split.validation)
        assert row["n_train"] + row["n_val"] + row["n_test"] == 75
        assert (row["split_digest"], row["cell"]) == (split.digest, found.digest)
        assert (row["dataset"], row["status"], row["kind"]) == ("stripes", "done", "head")
        assert row["best_c"] == (1.0 if row["method"] == "logreg" else None)
        assert (row["epochs"] is None) == (row["method"] == "logreg")
        assert row["warm_start"] == found.warm_start
        assert (row["warm_start"] == "") == (row["split"] == "0.6")
        assert read_trained(result.out / name).name == row["method"]  # what predict begins with
    assert len(list((result.out / SPLITS).iterdir())) == 6  # three splits with two seeds
    assert len(list((result.out / FLOORS).iterdir())) == 6
    json.dumps(result.to_json(), allow_nan=False)


def test_the_same_call_again_skips_all(again, finished):
    seen = []
    result = again(on_event=seen.append)
    assert counts(result) == (0, 18, 0)
    assert whats(seen) == {"planned": 18, "skipped": 18}
    assert lasting(result.rows) == lasting(finished[0].rows)
    # What is asked for is what is given back.
    some = again(seeds=[5], splits="0.4")
    assert {(row["split"], row["seed"]) for row in some.rows} == {("0.4", 5)}


def test_a_sweep_may_grow_and_what_is_gone_is_trained_again(again, finished, out):
    before = outcome(out)
    for share in (0.6, 0.2):
        shutil.rmtree(next((out / CELLS).glob(f"*-mlp-{share}-s0-*")))
    for folder, name in ((CELLS, ".tmp-1"), (SPLITS, ".tmp-2"), (FLOORS, ".tmp-3")):
        (out / folder / name).mkdir() if folder == CELLS else (out / folder / name).write_text("")
    assert counts(again(seeds=[0, 5, 6])) == (9 + 2, 16, 0)
    assert not list(out.glob("*/.*"))
    after = outcome(out)
    assert {name: after[name] for name in before} == before
    assert lasting(again().rows) == lasting(finished[0].rows)


def test_a_sweep_is_the_same_in_another_order_and_bit_by_bit(store, finished, out):
    """What a cell starts from is then read from its folder."""
    for split in ("0.6", "0.4,0.6", "0.2,0.4,0.6"):
        for head in reversed(HEADS):
            run(store, out, [head], splits=split, seeds=[5])
    whole = outcome(finished[0].out)
    assert outcome(out) == {name: whole[name] for name in whole if "-s5-" in name}


def test_a_start_that_comes_between_two_cells_makes_another_of_the_larger(store, out):
    run(store, out, ["mlp"], splits="0.6,0.2")
    assert counts(run(store, out, ["mlp"])) == (2, 1, 0)


@pytest.mark.parametrize("what", ["config.json", "metrics.json"])
def test_a_folder_that_is_damaged_is_told_of_and_left(again, finished, out, what):
    name = cells_of(out)[0]
    (out / CELLS / name / what).write_text("{}" if what == "config.json" else "{")
    result = again()
    assert counts(result) == (0, 17, 1)
    (reason,) = result.failed.values()
    assert name in reason
    assert reason in dict(failed_cells(out)).values()


# What fails


@pytest.mark.parametrize(
    ("good", "bad", "array", "room"),
    [("logreg", "mlp", "pooled", None), ("vit", "conv", "grid", 0)],
)
def test_a_cell_that_fails_is_recorded_and_the_others_go_on(store, out, good, bad, array, room):
    params = {good: FAST[good], bad: FAST[bad] | {"lr": 1e30}}
    cells = {f"{bad} on {array}, split {split}, seed 0" for split in ("0.2", "0.4", "0.6")}
    for done, skipped in ((3, 0), (0, 3)):
        result = run(store, out, (good, bad), params=params, warm_start=False, room=room)
        assert counts(result) == (done, skipped, 3)
        assert {*result.failed} == cells
        assert all("lower the learning rate" in text for text in result.failed.values())
        failed = [row for row in result.rows if row["status"] == "failed"]
        assert {row["error"] for row in failed} == set(result.failed.values())
        assert {(row["method"], row["kind"]) for row in failed} == {(bad, "head")}
        assert sorted(failed_cells(out)) == sorted(result.failed.items())
        assert len(cells_of(out)) == 3


@pytest.mark.parametrize(("head", "room"), [("mlp", None), ("conv", 0)])
def test_what_failed_is_tried_again_and_what_was_to_start_from_it_goes_on(
    store, out, tmp_path, monkeypatch, head, room
):
    started, failing = worker.Worker.begin, ["0.4"]

    def flaky(self, cell):
        if cell.split in failing:
            raise InputError("the second fails")
        return started(self, cell)

    monkeypatch.setattr(worker.Worker, "begin", flaky)
    result = run(store, out, [head], room=room)
    assert counts(result) == (2, 0, 1)
    assert list(result.failed.values()) == ["the second fails"]
    assert len(result.notes) == len(failed_cells(out)) == 1
    starts = {row["split"]: row["warm_start"] for row in result.rows if row["status"] == "done"}
    assert starts == {"0.6": "", "0.2": ""}
    failing.clear()
    again = run(store, out, [head], room=room)
    assert counts(again) == (2, 1, 0)
    assert failed_cells(out) == []
    assert lasting(again.rows) == lasting(run(store, tmp_path / "other", [head], room=room).rows)


@pytest.mark.parametrize("room", [None, 0])
def test_what_all_of_a_unit_need_fails_all_of_it(store, out, monkeypatch, room):
    def gone(*of):
        raise OSError("the drive\n  was unplugged")

    monkeypatch.setattr(worker, "fit_together", gone)
    monkeypatch.setattr(worker.Worker, "begin", gone)
    result = run(store, out, ["conv"], room=room)
    assert list(result.failed.values()) == ["OSError: the drive was unplugged"] * 3


@pytest.mark.parametrize(
    ("array", "head", "byte"), [("grid", "conv", 100), ("pooled", "logreg", 270)]
)
def test_a_damaged_row_fails_the_cells_that_need_it(store, out, tmp_path, array, head, byte):
    copy = shutil.copytree(store, tmp_path / "stripes.zarr")
    shard = next((copy / array).glob("c.0*"))
    content = bytearray(shard.read_bytes())
    content[byte] ^= 1  # in row 0
    shard.write_bytes(content)
    splits = "label:0.3@0.5,shots:3@0.3"
    result = run(copy, out, [head], splits, seeds=4, warm_start=False)
    assert result.done > 0 < len(result.failed)
    assert result.done + len(result.failed) == 8
    assert all("fails its checksum" in text for text in result.failed.values())
    assert not list(out.glob("*/.*"))


def test_failures_on_stores_of_one_name_are_told_apart(store, out, tmp_path):
    other = embedded(tmp_path, stripes(75), 32, ("pooled",))
    diverging = {"mlp": {"hidden": (8,), "epochs": 2, "lr": 1e30}}
    result = run([store, other], out, ["mlp"], "0.4", params=diverging)
    assert counts(result) == (0, 0, 2)
    assert [name.rpartition(", ")[2] for name in result.failed] == [str(store), str(other)]


@pytest.mark.parametrize(("head", "change"), [("logreg", "rows"), ("conv", "images")])
def test_a_store_that_changes_after_the_plan_is_not_learnt_from(out, tmp_path, head, change):
    """Row numbers of the plan are of other samples then, and its names of other images."""
    data = stripes(60)
    files = data.read.content
    first, second, third, *_ = data.sample_ids

    def embed_with(*twice):
        same = dict.fromkeys(twice, files[second])
        source = replace(data, read={**files, **same}.__getitem__)
        return embedded(tmp_path, source, 64, ("pooled", "grid"))

    embed_with()
    path = embed_with(first)  # whose new row is the last

    def later():
        if change == "images":
            embed_with(first, third)
        else:
            compact(path)

    options = {"heads": (head,), "splits": "0.2,0.4", "room": 0}
    result = run(path, out, **options, on_event=once_planned(later))
    assert len(result.failed) == 2
    assert all("changed while the sweep ran" in text for text in result.failed.values())
    assert not list(out.glob("cells/*"))
    assert not (out / SPLITS).exists()
    again = run(path, out, **options)
    assert counts(again) == (2, 0, 0)
    listed = set(open_store(path).sample_ids)
    for name in cells_of(out):
        assert set(read_split(out / CELLS / name).held_out) <= listed


def test_images_that_come_after_the_plan_are_not_learnt_from(out, tmp_path):
    town = image_folder(tmp_path / "images") / "town"
    options = {"baselines": ("floor",), "dataset": f"folder:{tmp_path / 'images'}"}

    def later():
        shutil.copy(town / "0.png", town / "new.png")

    result = run([], out, (), "0.4,0.2", **options, on_event=once_planned(later))
    assert all("changed while the sweep ran" in text for text in result.failed.values())
    assert (len(result.failed), list(out.glob("cells/*"))) == (2, [])
    again = run([], out, (), "0.4,0.2", **options)
    assert counts(again) == (2, 0, 0)
    assert {row["n_train"] + row["n_val"] + row["n_test"] for row in again.rows} == {25}


def test_a_break_leaves_what_is_done(store, out):
    def stop(event):
        if isinstance(event, Progress) and (event.what, event.cell.split) == ("started", "0.2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(store, out, ["mlp"], on_event=stop)
    assert not list(out.glob("*/.*"))
    assert counts(run(store, out, ["mlp"])) == (1, 2, 0)


# Beside fit_head


@pytest.mark.parametrize(("features", "split"), [((), "0.4"), (("mean,block*",), "label:0.5@0.2")])
def test_a_cold_cell_is_the_run_of_fit_head(store, out, tmp_path, features, split):
    run(store, out, HEADS, split, seeds=[3], features=features, warm_start=False)
    for folder in (out / CELLS).iterdir():
        found = read_run(folder)
        columns = features[0] if features and found.features == "pooled" else None
        alone = fit_head(
            store, found.name, split, 3, tmp_path, params=FAST[found.name], features=columns
        )
        assert found.digest == alone.digest
        assert (found.metrics, found.floor) == (alone.metrics, alone.floor)
        assert found.comparison_key == alone.comparison_key
        for name in ("head.safetensors", "confusion.csv", "curves.csv", "head.json"):
            assert (alone.run / name).read_bytes() == (folder / name).read_bytes()
        assert read_split(folder) == read_split(alone.run)


def test_a_store_that_is_not_complete(out, tmp_path):
    whole = embedded(tmp_path, stripes(60), 64, ("pooled", "grid"))
    for record in (whole / "log").glob("3*.json"):
        record.unlink()
    with pytest.raises(InputError, match="is not complete: 12 of 60 rows"):
        run(whole, out)
    result = run(whole, out, ("logreg", "conv"), splits="0.4", allow_partial=True)
    assert counts(result) == (2, 0, 0)
    assert {row["n_train"] + row["n_val"] + row["n_test"] for row in result.rows} == {48}


# What cannot be


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"seeds": [1, 2, 1]}, "the seed 1 is given twice"),
        ({"seeds": 0}, "--seeds takes how many"),
        ({"seeds": [-1]}, "a seed must lie between 0 and"),
        ({"heads": ["mpl"]}, "did you mean mlp"),
        ({"heads": []}, "there is nothing to sweep"),
        ({"features": ["mean,std", "std, mean"]}, "would be trained twice"),
        ({"features": ["meen"]}, "did you mean mean"),
        ({"heads": ["conv"], "features": ["mean"]}, "no head of this sweep reads these"),
        ({"splits": "shipped"}, "does not come with a split"),
        ({"splits": "shipped", "group_by": "."}, "--group-by has no bearing"),
        ({"baselines": ["cnn"]}, "the baselines cnn read pixels: say which with --dat"),
        ({"baselines": ["cn"], "dataset": "synthetic:3"}, "has no image for 75 of 75"),
        ({"params": {"vit": {}}}, "parameters are given for vit, which is not in"),
        ({"params": {"mlp": {"widht": 3}}}, "no parameter of the head mlp is called"),
        ({"jobs": 0}, "--jobs must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(store, out, options, said):
    given = {"stores": [store], "heads": ["mlp"], "splits": "0.2", "out": out}
    with pytest.raises(InputError, match=said):
        sweep(**given | options)
    assert not out.exists()


def test_where_nothing_can_be_written(store, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        run(store, tmp_path / "file" / "sweep")

    def refuse(*args, **options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    with pytest.raises(ResourceError, match=r"cannot write a sweep into .*choose another place"):
        run(store, tmp_path / "sweep")


def test_one_sweep_at_a_time_in_the_default_folder(store, monkeypatch, tmp_path):
    monkeypatch.setenv("SAMTL_RUNS", str(tmp_path / "mine"))
    out = tmp_path / "mine" / "sweep-stripes"
    out.mkdir(parents=True)
    held = _io.lock_folder(out)
    with pytest.raises(InputError, match="another sweep writes to"):
        run(store, None, ["logreg"], "0.2")
    os.close(held)
    (out / ".lock").touch()  # which earlier versions left behind
    assert run(store, None, ["logreg"], "0.2").out == out


def test_a_sweep_needs_no_locks(store, out, monkeypatch):
    """Without them it may not be alone, and leaves alone what another one may be writing."""

    def refuse(*args):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    other = out / "cells" / ".tmp-elsewhere-0"
    other.mkdir(parents=True)
    assert counts(run(store, out, ["logreg"], "0.2")) == (1, 0, 0)
    assert counts(run(store, out, ["logreg"], "0.2")) == (0, 1, 0)
    assert other.is_dir()


# What fits in memory, and what does not


def test_passes_are_shared_over_what_does_not_fit_into_half_of_the_memory(store, out, monkeypatch):
    size = open_store(store).bytes_of("grid")
    asked, together = [], worker.fit_together

    def asking(store, array, lanes, here):
        asked.append(len(lanes))
        together(store, array, lanes, here)

    monkeypatch.setattr(worker, "fit_together", asking)
    for memory, lanes in ((2 * size, []), (2 * size - 2, [2])):  # a lane for each seed
        monkeypatch.setattr(api, "machine_memory", lambda memory=memory: memory)
        result = run(store, out / str(memory), ("conv", "mlp"), "0.2,0.4", seeds=2)
        assert counts(result) == (8, 0, 0)
        assert asked == lanes


def test_a_sweep_goes_on_where_there_is_less_memory(store, out):
    """The passes that heads share come to the same as those of their own."""
    run(store, out, ("conv", "mlp"), "0.2")
    assert counts(run(store, out, ("conv", "mlp"), "0.2", room=0)) == (0, 2, 0)


def test_what_cells_have_in_common_is_read_and_fitted_once(store, out, monkeypatch):
    reads, read = [], Store.read
    monkeypatch.setattr(Store, "read", lambda self, *of: reads.append(of[0]) or read(self, *of))
    run(store, out, ["logreg"], "0.4", seeds=3)
    assert reads.count("pooled") == 1
    for path in (out / FLOORS).iterdir():
        content = json.loads(path.read_text())
        content["floor"]["accuracy"] = dict.fromkeys(("value", "low", "high"), 0.125)
        path.write_text(json.dumps(content))
    (row, *_) = run(store, out, ["mlp"], "0.4").rows
    assert read_run(out / row["run"]).floor["accuracy"].value == 0.125


def test_stores_of_one_dataset_hold_out_the_same_samples(store, out, tmp_path):
    """Whatever one of them lacks is in no part of any, and is counted."""
    dataset = stripes(75)
    broken = {dataset.sample_ids[5], dataset.sample_ids[40]}
    files = {name: b"" if name in broken else dataset.read(name) for name in dataset.sample_ids}
    other = embedded(tmp_path, replace(dataset, read=files.__getitem__), 32, ("pooled",))
    run([store, other], out, ["logreg"], "0.4,0.2")
    found = runs(out)
    assert len({one.split.digest for one in found}) == 2
    assert len({one.comparison_key for one in found}) == 2
    assert {one.left_out_because.get("not_in_every_store") for one in found} == {0, 2}
