"""What every trial has in common: times, parts, scores, and tables that people and programs can read."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from samtl import splits
from samtl.errors import InputError
from samtl.experiment import trial
from samtl.experiment.run import RunFolder
from samtl.experiment.trial import (
    PALETTE,
    Clock,
    Samples,
    SharedClock,
    Stage,
    choose,
    left_out,
    mask_name,
    score_classes,
    score_maps,
    score_masks,
    versions,
    write_mask,
    write_scores,
    write_split,
)
from samtl.images.transforms import IGNORE
from samtl.metrics import classification as metrics
from samtl.metrics import segmentation as pixel_metrics
from samtl.splits import read_split
from samtl.splits.spec import parse, select
from samtl.store.documents import digest


def samples(n=60, task="classification", usable=None, groups=(), parts=(), prefix="image"):
    labels = np.arange(n) % 3 if task == "classification" else np.full(n, -1)
    return Samples(
        where="toy.zarr",
        task=task,
        ids=tuple(f"{prefix}{i:03d}" for i in range(n)),
        classes=("a", "b", "c"),
        labels=labels.astype(np.int64),
        usable=np.ones(n, dtype=bool) if usable is None else usable,
        groups=groups,
        parts=parts,
    )


def saved(folder, some, split, inner):
    with RunFolder(folder) as run:
        write_split(run, some, split, inner)
        return run.publish("run")


# Time


def test_stages_are_announced_and_timed(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(trial.time, "perf_counter", lambda: now[0])
    seen = []
    clock = Clock(seen.append)
    now[0] += 1
    clock.start("read")
    now[0] += 2
    clock.start("fit")
    now[0] += 4
    assert clock.stop() == {"read": 2, "fit": 4, "total": 7}
    assert seen == [Stage("read"), Stage("fit")]
    assert [str(stage) for stage in seen] == ["reading the features", "training"]
    Clock(None).start("write")


def test_a_clock_of_one_that_takes_turns_counts_its_own_turns(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(trial.time, "perf_counter", lambda: now[0])
    clock = SharedClock(None)
    for seconds in (1, 2):
        with clock.spending("fit"):
            now[0] += seconds
        now[0] += 50  # another's turn
    with clock.spending("score"):
        now[0] += 4
    now[0] += 50
    clock.start("write")
    now[0] += 8
    assert clock.stop() == {"fit": 3, "score": 4, "write": 8, "total": 15}


# Who is in which part


def test_a_share_is_that_of_the_classes():
    some = samples()
    outer, inner = choose(some, 0.25, 4, None)
    assert outer == splits.holdout(some, 0.25, 4)
    assert inner == splits.inner(some, outer)
    assert choose(some, "0.25", 4, None) == (outer, inner)
    assert choose(some, outer, 9, None) == (outer, inner)


@pytest.mark.parametrize("split", ["fold:2/3", "label:0.5@0.25", "shots:4@fold:1/3"])
def test_a_protocol_is_chosen_and_taken_over(split, tmp_path):
    some = samples()
    parts = choose(some, split, 4, None)
    assert parts == select(some, parse(split), 4)
    run = saved(tmp_path, some, *parts)
    assert choose(some, None, 0, run) == parts
    assert choose(some, f"file:{run / 'split.json'}", 0, None) == parts
    learnt = len(parts[0].train) + len(parts[0].test)
    left = {"not_in_the_split": 60 - learnt} if learnt < 60 else {}
    assert left_out(some, parts[0], {}) == left


def test_of_masks_every_sample_counts_alike():
    some = samples(task="segmentation")
    outer, inner = choose(some, None, 0, None)
    assert outer == splits.holdout(some, 0.2, 0)
    assert (len(outer.test), len(inner.test), len(inner.train)) == (12, 10, 38)


@pytest.mark.parametrize("task", ["classification", "segmentation"])
def test_who_is_not_usable_takes_no_part(task, tmp_path):
    usable = np.arange(60) % 7 != 2
    some = samples(task=task, usable=usable)
    outer, inner = choose(some, 0.2, 0, None)
    used = np.concatenate([outer.test, inner.test, inner.train])
    assert sorted(used) == np.flatnonzero(usable).tolist()
    left = [f"image{i:03d}" for i in range(2, 60, 7)]
    assert read_split(saved(tmp_path, some, outer, inner)).left_out == left
    assert left_out(some, outer, {"missing": len(left)}) == {"missing": len(left)}


@given(
    task=st.sampled_from(["classification", "segmentation"]),
    share=st.floats(0.1, 0.6),
    seed=st.integers(0, 50),
    grouped=st.booleans(),
    order=st.permutations(range(60)),
)
def test_a_split_that_was_written_is_the_same_again(
    tmp_path_factory, task, share, seed, grouped, order
):
    groups = tuple(f"scene{i // 6}" for i in range(60)) if grouped else ()
    usable = np.arange(60) % 9 != 4
    some = samples(task=task, usable=usable, groups=groups)
    parts = choose(some, round(share, 3), seed, None)
    run = saved(tmp_path_factory.mktemp("runs"), some, *parts)
    assert choose(some, None, seed + 1, run) == parts
    moved = replace(  # the same samples in other rows
        some,
        ids=tuple(some.ids[i] for i in order),
        labels=some.labels[list(order)],
        usable=usable[list(order)],
        groups=(),
    )
    again = choose(moved, None, 0, run)
    assert again == parts
    for one, other in zip(again, parts, strict=True):
        assert {moved.ids[i] for i in one.test} == {some.ids[i] for i in other.test}
        assert {moved.ids[i] for i in one.train} == {some.ids[i] for i in other.train}


def test_a_shipped_split_is_the_default_and_its_parts_are_kept():
    parts = tuple(("train", "train", "train", "validation", "test")[i // 3 % 5] for i in range(60))
    some = samples(parts=parts)
    outer, inner = choose(some, None, 0, None)
    assert outer.name == "shipped"
    assert {parts[i] for i in outer.test} == {"test"}
    assert {parts[i] for i in inner.test} == {"validation"}
    assert {parts[i] for i in inner.train} == {"train"}
    assert choose(some, "shipped", 3, None) == (outer, inner)
    assert choose(some, 0.2, 0, None)[0].name == "holdout"


def test_a_class_that_a_shipped_part_lacks_is_named():
    parts = tuple("test" if i % 3 == 0 and i < 30 else "train" for i in range(57))
    some = samples(parts=(*parts, *["validation"] * 3))
    with pytest.raises(InputError, match=r"class 'b' has no test samples in the shipped split"):
        choose(some, None, 0, None)


def test_groups_are_kept_whole_in_every_part():
    some = samples(groups=tuple(f"scene{i // 4}" for i in range(60)))
    outer, inner = choose(some, 0.3, 0, None)
    of = [{some.groups[i] for i in part} for part in (outer.test, inner.test, inner.train)]
    assert len(of[0] | of[1] | of[2]) == sum(map(len, of)) == 15


@pytest.mark.parametrize(
    ("split", "said"),
    [
        ("shipped", "toy.zarr does not come with a split"),
        ("a fifth", "no split is called 'a fifth': known are 0.2, shipped, "),
        (0.0, r"between 0 and 1"),
    ],
)
def test_what_is_no_split_is_refused(split, said):
    with pytest.raises(InputError, match=said):
        choose(samples(), split, 0, None)


def test_a_split_of_others_is_refused(tmp_path):
    some = samples()
    outer, inner = choose(some, 0.2, 0, None)
    for others in (samples(prefix="other"), samples(30)):
        with pytest.raises(InputError, match=r"made for other samples than those of toy\.zarr"):
            choose(others, outer, 0, None)
    run = saved(tmp_path, some, outer, inner)
    with pytest.raises(InputError, match=r"the split of .*run .*toy\.zarr: .*image"):
        choose(samples(prefix="other"), None, 0, run)
    with pytest.raises(InputError, match=r"toy\.zarr: .* differ"):
        choose(samples(63), None, 0, run)
    with pytest.raises(InputError, match="exclude each other"):
        choose(some, 0.2, 0, run)


# Scores and tables


def test_scores_of_classes():
    truth = np.array([0, 1, 2, 1])
    chances = np.eye(3)[[0, 1, 1, 1]] * 0.9 + 0.1 / 3
    scores = score_classes(truth, chances, 3, seed=2)
    assert scores.metrics == metrics.bootstrap(truth, chances, seed=2)
    assert scores.confusion.tolist() == [[1, 0, 0], [0, 2, 0], [0, 1, 0]]
    assert scores.per_class.recall.tolist() == [1, 1, 0]
    assert scores.images == {}


def two_masks():
    truth = np.zeros((2, 6, 6), dtype=np.uint8)
    truth[:, :3] = 1
    truth[1, 0, 0] = IGNORE
    guess = np.zeros_like(truth)
    guess[0, :3], guess[1, :2] = 1, 1
    return truth, guess


def test_scores_of_masks(tmp_path):
    truth, guess = two_masks()
    with RunFolder(tmp_path) as folder:
        matrices = [
            score_maps(folder, i, f"{i}.png", truth[i], guess[i], ("background", "road"))
            for i in range(2)
        ]
        run = folder.publish("run")
    scores = score_masks(matrices, seed=3)
    assert matrices[1].tolist() == [[18, 0], [6, 11]]  # a pixel is not counted
    assert scores.confusion.tolist() == [[36, 0], [6, 29]]
    assert scores.metrics == pixel_metrics.bootstrap(np.stack(matrices), seed=3)
    assert scores.images["iou"].tolist() == [1, 11 / 17]
    for i in range(2):
        with Image.open(run / "masks" / mask_name(i, f"{i}.png")) as image:
            np.testing.assert_array_equal(np.array(image), guess[i])
    assert score_maps(None, 0, "x", truth[0], guess[0], ("a", "b")).tolist() == [[18, 0], [0, 18]]


def test_a_mask_of_which_nothing_is_known_is_named():
    nothing = np.full((4, 4), IGNORE, dtype=np.uint8)
    with pytest.raises(InputError, match=r"mask of sample 'x\.png' has no pixel of a known class"):
        score_maps(None, 0, "x.png", nothing, nothing * 0, ("a", "b"))


def table(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_the_tables_of_a_classification(tmp_path):
    some = samples(12)
    split, _ = choose(some, 0.5, 0, None)
    truth = some.labels[split.test]
    chances = np.random.default_rng(0).dirichlet([1, 1, 1], len(truth))
    scores = score_classes(truth, chances, 3, 0)
    with RunFolder(tmp_path) as folder:
        write_scores(folder, some, split, scores, {"epoch": [1, 2], "loss": [3.5, 0.25]}, chances)
        run = folder.publish("run")
    rows = table(run / "predictions.csv")
    assert [row["sample_id"] for row in rows] == [some.ids[i] for i in split.test]
    assert [row["label"] for row in rows] == [some.classes[c] for c in truth]
    assert [row["predicted"] for row in rows] == [some.classes[c] for c in chances.argmax(1)]
    told = [[float(row[f"p_{name}"]) for name in "abc"] for row in rows]
    np.testing.assert_allclose(told, chances, rtol=1e-8)
    assert table(run / "curves.csv") == [
        {"epoch": "1", "loss": "3.5"},
        {"epoch": "2", "loss": "0.25"},
    ]
    assert [[int(row[name]) for name in "abc"] for row in table(run / "confusion.csv")] == (
        scores.confusion.tolist()
    )


def test_runs_of_a_sweep_share_the_file_of_their_split(tmp_path):
    some = samples(usable=np.arange(60) % 7 != 2)
    parts = choose(some, 0.25, 0, None)
    shared = tmp_path / "splits"
    runs = []
    for name in ("a", "b"):
        with RunFolder(tmp_path / "cells") as folder:
            write_split(folder, some, *parts, shared)
            runs.append(folder.publish(name))
    (file,) = shared.iterdir()
    whole = digest(json.loads(file.read_text()))
    assert file.name == f"{parts[0].digest[:16]}-{parts[1].digest[:8]}-{whole[:8]}.json"
    alone = read_split(saved(tmp_path, some, *parts))
    for run in runs:
        content = json.loads((run / "split.json").read_text())
        assert content["file"] == f"../../splits/{file.name}"
        assert "held_out" not in content
        found = read_split(run)
        assert found == alone
        assert choose(some, None, 9, run) == parts


def test_runs_of_a_sweep_name_who_took_no_part_in_theirs(tmp_path):
    """A sample more that cannot be used makes no other split."""
    runs = []
    for n in (60, 61):
        some = samples(n, usable=np.arange(n) < 60)
        parts = choose(some, 0.25, 0, None)
        with RunFolder(tmp_path / "cells") as folder:
            write_split(folder, some, *parts, tmp_path / "splits")
            runs.append((some, parts, folder.publish(f"of{n}")))
    (_, before, _), (_, after, _) = runs
    assert before == after
    for some, parts, run in runs:
        assert read_split(run).left_out == list(some.ids[60:])
        assert choose(some, None, 9, run) == parts


def test_lean_tables_have_no_probabilities(tmp_path):
    some = samples(12)
    split, _ = choose(some, 0.5, 0, None)
    chances = np.random.default_rng(0).dirichlet([1, 1, 1], len(split.test))
    scores = score_classes(some.labels[split.test], chances, 3, 0)
    found = []
    for lean in (False, True):
        with RunFolder(tmp_path) as folder:
            write_scores(folder, some, split, scores, {}, chances, lean)
            found.append(table(folder.publish("run") / "predictions.csv"))
    kept = ("sample_id", "label", "predicted")
    assert found[1] == [{name: row[name] for name in kept} for row in found[0]]


def test_the_tables_of_a_segmentation(tmp_path):
    some = samples(4, task="segmentation")
    split, _ = choose(some, 0.5, 0, None)
    truth, guess = two_masks()
    with RunFolder(tmp_path) as folder:
        matrices = [
            score_maps(folder, i, some.ids[row], truth[i], guess[i], some.classes)
            for i, row in enumerate(split.test)
        ]
        scores = score_masks(matrices, 0)
        write_scores(folder, some, split, scores, {}, None)
        run = folder.publish("run")
    rows = table(run / "images.csv")
    assert [row["sample_id"] for row in rows] == [some.ids[i] for i in split.test]
    assert all((run / row["mask"]).is_file() for row in rows)
    assert [float(row["iou"]) for row in rows] == pytest.approx([1, 11 / 17], abs=1e-5)
    assert not (run / "predictions.csv").exists()


def test_a_mask_is_told_by_its_place():
    assert mask_name(3, "a/b c.tif") == "00003_a_b_c.tif.png"
    assert mask_name(3, "a/b-c") != mask_name(4, "a/b-c")
    long = mask_name(0, "x" * 500)
    assert len(long) < 200
    assert mask_name(1, "../../etc/pässwd\0").count("/") == 0


def test_a_mask_is_an_image_that_people_can_see(tmp_path):
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
    assert json.loads(json.dumps(found)) == found
    assert found["numpy"] == np.__version__


def test_groups_that_have_no_bearing_are_refused(tmp_path):
    some = samples()
    run = saved(tmp_path, some, *choose(some, 0.25, 0, None))
    with pytest.raises(InputError, match="--group-by and --same-split-as exclude each other"):
        choose(some, None, 0, run, "image(.)")
    shipped = samples(parts=tuple(splits.PARTS[i // 3 % 3] for i in range(60)))
    for split in (None, "shipped", "label:0.5@shipped", "torchgeo", "file:mine"):
        spec = split or "shipped"
        with pytest.raises(InputError, match=f"--group-by has no bearing on --split {spec}, which"):
            choose(shipped, split, 0, None, "image(.)")


def test_a_takeover_has_the_validation_share_of_the_run(tmp_path):
    some = samples(parts=tuple(splits.PARTS[i // 3 % 3] for i in range(60)))
    outer, inner = choose(some, "shipped", 0, None)
    assert choose(some, None, 0, saved(tmp_path, some, outer, inner)) == (outer, inner)
