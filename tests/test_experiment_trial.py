"""What every trial has in common: times, parts, scores, and tables that people and programs can read."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from stubs import a_record

from samtl import splits
from samtl.errors import InputError
from samtl.experiment import clock as clocks
from samtl.experiment.clock import Clock, Stage
from samtl.experiment.fit import choose
from samtl.experiment.held_out import HeldOut
from samtl.experiment.run import RunFolder
from samtl.experiment.tables import (
    PALETTE,
    mask_name,
    read_curves,
    read_images,
    read_predictions,
    write_mask,
    write_split,
)
from samtl.experiment.trial import versions
from samtl.images.transforms import IGNORE
from samtl.metrics import classification as metrics
from samtl.metrics import segmentation as pixel_metrics
from samtl.splits import Samples, parse, read_split, record_of, select


def samples(n=60, usable=None, parts=(), prefix="image"):
    ids, labels = tuple(f"{prefix}{i:03d}" for i in range(n)), np.arange(n) % 3
    usable = np.ones(n, dtype=bool) if usable is None else usable
    named = ("toy.zarr", "classification", ids, ("a", "b", "c"))
    return Samples(*named, labels, usable, parts=parts)


def saved(folder, some, split, shared=None, name="run"):
    with RunFolder(folder) as run:
        write_split(run, record_of(some.ids, split), shared)
        return run.publish(name)


# Time


def test_stages_are_announced_and_timed(monkeypatch):
    now, seen = [100.0], []
    monkeypatch.setattr(clocks.time, "perf_counter", lambda: now[0])
    clock = Clock(seen.append)
    for stage, seconds in (("read", 2), ("fit", 4), ("fit", 1)):
        clock.start(stage)
        now[0] += seconds
    clock.add("fit", 10)  # of what was computed earlier
    now[0] += 1
    assert clock.stop() == {"read": 2, "fit": 16, "total": 18}
    for stage, seconds in (("fit", 1), ("score", 4)):
        with clock.spending(stage):
            now[0] += seconds
        now[0] += 50  # another's turn
    clock.start("write")
    now[0] += 8
    assert clock.stop() == {"read": 2, "fit": 17, "score": 4, "write": 8, "total": 31}
    assert [str(event) for event in seen] == ["reading the features", "training", "writing the run"]
    assert seen == [Stage("read"), Stage("fit"), Stage("write")]


# Who is in which part


OTHERS = r"other samples than those of toy\.zarr"


def test_a_split_of_others_is_refused(tmp_path):
    some, other = samples(), samples(prefix="other")
    split = choose(some, 0.2, 0)
    run = saved(tmp_path, some, split)
    shipped = samples(parts=tuple(splits.PARTS[i // 3 % 3] for i in range(60)))
    refused = [
        (other, split, None, None, OTHERS),
        (samples(30), split, None, None, OTHERS),
        (other, None, run, None, r"the split of .*run .*toy\.zarr: .*image"),
        (samples(63), None, run, None, r"toy\.zarr: .* differ"),
        (some, 0.2, run, None, "--split and --same-split-as exclude each other"),
        (some, None, run, "image(.)", "--group-by and --same-split-as exclude each other"),
    ]
    for text in (None, "shipped", "label:0.5@shipped", "torchgeo", "file:mine"):
        told = f"--group-by has no bearing on --split {text or 'shipped'}, which"
        refused.append((shipped, text, None, "image(.)", told))
    for others, asked, same, group_by, told in refused:
        with pytest.raises(InputError, match=told):
            choose(others, asked, 0, same, group_by)


@pytest.mark.parametrize("more", [0, 1])
def test_runs_of_a_sweep_share_the_file_of_their_split(tmp_path, more):
    """A sample more that cannot be used makes no other split, and another file."""
    shared, runs, usable = tmp_path / "splits", [], np.arange(60) % 7 != 2
    for name, n in (("a", 60), ("b", 60 + more)):
        some = samples(n, usable=np.append(usable, np.zeros(n - 60, bool)))
        split = choose(some, "label:0.5@fold:2/3", 4)
        runs.append((some, split, saved(tmp_path / "cells", some, split, shared, name)))
    assert (
        runs[0][1] == runs[1][1] == select(samples(usable=usable), parse("label:0.5@fold:2/3"), 4)
    )
    assert len(list(shared.iterdir())) == 1 + more
    alone = read_split(saved(tmp_path, *runs[0][:2]))
    for some, split, run in runs:
        content = json.loads((run / "split.json").read_text())
        assert (tmp_path / "cells" / "a" / content["file"]).is_file()
        assert "held_out" not in content
        found = read_split(run)
        without = np.setdiff1d(np.arange(len(some.ids)), [*split.seen, *split.test])
        assert found.left_out == [some.ids[i] for i in without]
        assert (found.held_out, found.validation) == (alone.held_out, alone.validation)
        assert choose(some, None, 9, run) == split


# Scores and tables


def table(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def run_at(path, some, n, **fields):
    return a_record(path=path, task=some.task, classes=some.classes, n_test=n, **fields)


@pytest.mark.parametrize("lean", [False, True])
def test_scores_of_classes_and_their_tables(tmp_path, lean):
    some = samples(12)
    rows = choose(some, 0.5, 0).test
    truth = some.labels[rows]
    chances = np.random.default_rng(0).dirichlet([1, 1, 1], len(truth))
    held = HeldOut(some, rows)
    for half in (slice(3, None), slice(3)):
        said = {"mlp": chances[half], "other": chances[half][:, ::-1]}
        held.add(np.arange(len(truth))[half], said)
    found = held.scores(2)
    assert found["mlp"] == metrics.bootstrap(truth, chances, seed=2)
    assert found["other"] == metrics.bootstrap(truth, chances[:, ::-1], seed=2)
    assert held.truth == {some.ids[row]: some.classes[some.labels[row]] for row in rows}
    with RunFolder(tmp_path) as folder:
        confusion = held.write(folder, lean)
        path = folder.publish("run")
    assert confusion.tolist() == metrics.confusion(truth, chances.argmax(1), 3).tolist()
    lines = table(path / "predictions.csv")
    assert [line["label"] for line in lines] == [some.classes[c] for c in truth]
    assert ("p_a" in lines[0]) != lean
    if not lean:
        told = [[float(line[f"p_{name}"]) for name in "abc"] for line in lines]
        np.testing.assert_allclose(told, chances, rtol=1e-8)
    again = read_predictions(run_at(path, some, len(truth)))
    assert again.ids == tuple(some.ids[i] for i in rows)
    np.testing.assert_array_equal(again.truth, truth)
    np.testing.assert_array_equal(again.guess, chances.argmax(1))
    with pytest.raises(InputError, match=r"predictions\.csv"):
        read_predictions(run_at(path, some, len(truth) + 1))


def test_scores_of_masks_and_their_tables(tmp_path):
    some = Samples.of(["0.png", "1.png", "2.png"], None, classes=("background", "road"))
    truth = np.zeros((3, 6, 6), dtype=np.uint8)
    truth[:, :3] = 1
    truth[2, 0, 0] = IGNORE
    guess = np.zeros((2, 6, 6), dtype=np.uint8)
    guess[0, :3], guess[1, :2] = 1, 1
    held = HeldOut(some, np.array([0, 2]), truth.__getitem__)
    with RunFolder(tmp_path) as folder:
        for i in (1, 0):  # in any order
            held.add(np.array([i]), {"conv": guess[i : i + 1]}, folder)
        confusion = held.write(folder, lean=False)
        path = folder.publish("run")
    matrices = np.array([[[18, 0], [0, 18]], [[18, 0], [6, 11]]])  # a pixel is not counted
    assert confusion.tolist() == matrices.sum(0).tolist()
    assert held.scores(3) == {"conv": pixel_metrics.bootstrap(matrices, seed=3)}
    assert held.truth.keys() == {"0.png", "2.png"}
    again = read_images(run_at(path, some, 2))
    assert again.ids == ("0.png", "2.png")
    assert again.scores["iou"] == pytest.approx([1, 11 / 17], abs=1e-5)
    for mask, expected in zip(again.masks, guess, strict=True):
        np.testing.assert_array_equal(np.array(Image.open(mask)), expected)
    again.masks[0].unlink()
    with pytest.raises(InputError, match=r"images\.csv is damaged"):
        read_images(run_at(path, some, 2))
    truth[2] = IGNORE
    held.add(np.array([1]), {"conv": guess[1:]})
    with pytest.raises(InputError, match="image 1 has no pixel of a known class"):
        held.scores(0)


def test_the_key_of_what_may_be_compared():
    def key(some, rows, resolution=0):
        return HeldOut(some, np.array(rows)).comparison_key(resolution)

    some = samples(12)
    assert key(some, [0, 5]) == key(some, [5, 0])
    others = [
        replace(some, task="segmentation"),
        replace(some, classes=("c", "b", "a")),
        replace(some, labels=some.labels[::-1].copy()),
    ]
    keys = [key(other, [0, 5]) for other in others]
    keys += [key(some, [0, 5, 6]), key(some, [0, 6]), key(some, [0, 5], 64)]
    assert len({key(some, [0, 5]), *keys}) == 7


def test_curves_are_columns_of_numbers(tmp_path):
    with RunFolder(tmp_path) as folder:
        folder.write_csv("curves.csv", ["scaling", "loss"], [("none", 0.5), ("unit", 0.25)])
        path = folder.publish("run")
    assert read_curves(run_at(path, samples(), 1)) == {"loss": [0.5, 0.25]}
    (path / "curves.csv").unlink()
    with pytest.raises(InputError, match=r"curves\.csv"):
        read_curves(run_at(path, samples(), 1))


def test_a_mask_is_told_by_its_place_and_seen_by_people(tmp_path):
    assert mask_name(3, "a/b c.tif") == "00003_a_b_c.tif.png"
    assert mask_name(3, "a/b-c") != mask_name(4, "a/b-c")
    assert len(mask_name(0, "x" * 500)) < 200
    assert mask_name(1, "../../etc/pässwd\0").count("/") == 0
    classes = np.arange(256, dtype=np.uint8).reshape(16, 16)
    write_mask(tmp_path / "a.png", classes)
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.array(image), classes)
        colours = np.array(image.convert("RGB")).reshape(-1, 3)
    assert colours[0].tolist() == [0, 0, 0]
    assert len({tuple(c) for c in colours[:8].tolist()}) == 8
    assert bytes(colours.astype(np.uint8).ravel()) == PALETTE


def test_versions_are_those_of_what_decides_figures():
    found = versions()
    assert {"python", "samtl", "numpy", "torch", "scikit-learn"} <= found.keys()
    assert found["numpy"] == np.__version__
