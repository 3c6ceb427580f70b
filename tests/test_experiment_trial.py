"""What every trial has in common: times, parts, scores, and tables that people and programs can read."""

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
from samtl.experiment.tables import PALETTE, mask_name, read_curves, write_mask, write_split
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
        run = a_record(path=folder.publish("run"))
    assert read_curves(run) == {"loss": [0.5, 0.25]}
    (run.path / "curves.csv").unlink()
    with pytest.raises(InputError, match=r"curves\.csv"):
        read_curves(run)


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
