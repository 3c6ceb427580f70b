"""Heads that share their passes: each comes out as if it were alone, and an epoch costs one pass."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from stubs import embedded
from sweeps import outcome, runs, trained
from toys import blobs, stripes

from samtl.errors import DamageError, ResourceError
from samtl.experiment import features
from samtl.experiment.features import Pool
from samtl.experiment.fit import fit_head
from samtl.experiment.trial import Trial
from samtl.splits import read_split
from samtl.store.reader import Store, open_store
from samtl.sweep import shared_pass
from samtl.sweep.api import sweep

pytestmark = pytest.mark.usefixtures("one_thread", "warm_starts")

PARAMS = {
    "conv": {"width": 8, "epochs": 3, "lr": 1e-2},
    "vit": {"width": 64, "epochs": 2, "dropout": 0.5},
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return embedded(tmp_path_factory.mktemp("classes"), stripes(75), 64, ("grid",))


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    return embedded(tmp_path_factory.mktemp("masks"), blobs(40, classes=2), 64, ("dense",))


@pytest.fixture
def windows(monkeypatch):
    """Let a window hold one block of rows."""
    monkeypatch.setattr(features, "WINDOW_BYTES", 1)


@pytest.fixture
def reads(monkeypatch):
    """Samples whose features were read, and the bytes of them; reading fails for some, and some are infinite."""
    read, watch = Store.read, SimpleNamespace(names=set(), bytes=0, damaged="", infinite="")

    def watched(self, array, rows=None):
        found = read(self, array, rows)
        if array in ("grid", "dense"):
            names = [self.sample_ids[row] for row in rows]
            if watch.damaged in names:
                raise DamageError(f"{watch.damaged} fails its checksum")
            if watch.infinite in names:
                found[names.index(watch.infinite), 3, 0, 0] = np.inf
            watch.names |= {*names}
            watch.bytes += found.nbytes
        return found

    monkeypatch.setattr(Store, "read", watched)
    return watch


def run(store, out, heads=("conv",), splits="0.2", seeds=1, warm_start=False, **params):
    """Sweep over a store as if it were larger than the memory; `params` are by head."""
    known = {head: PARAMS[head] | params.get(head, {}) for head in heads}
    options = {"params": known, "warm_start": warm_start, "jobs": 1, "room": 0}
    return sweep(store, heads, splits, seeds, out, **options)


@pytest.mark.parametrize("task", ["store", "dense"])
def test_a_head_comes_out_the_same_whoever_shares_its_passes(request, windows, tmp_path, task):
    shop, alone, together = request.getfixturevalue(task), tmp_path / "a", tmp_path / "t"
    assert run(shop, together, ["conv", "vit"], "0.2,0.6", [3]).done == 4
    for head, split in (("conv", "0.2"), ("vit", "0.6"), ("conv", "0.6")):
        run(shop, alone, [head], split, [3])
    assert len(outcome(alone)) == 3
    assert outcome(alone).items() <= outcome(together).items()


def test_a_head_comes_out_the_same_whatever_comes_before_it(store, windows, tmp_path):
    run(store, tmp_path / "lane", splits="0.6,0.4,0.2", warm_start=True)
    for splits in ("0.6", "0.4,0.6", "0.2,0.4,0.6"):
        run(store, tmp_path / "steps", splits=splits, warm_start=True)
    assert [bool(one.warm_start) for one in runs(tmp_path / "lane")] == [True, True, False]
    assert outcome(tmp_path / "lane") == outcome(tmp_path / "steps")


def test_what_torch_is_set_to_neither_matters_nor_changes(store, tmp_path):
    run(store, tmp_path / "a", ["vit"])
    torch.rand(7)
    state = torch.get_rng_state()
    with torch.no_grad():
        run(store, tmp_path / "b", ["vit"])
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), state)
    assert outcome(tmp_path / "a") == outcome(tmp_path / "b")


# Each pass serves all


def test_an_epoch_is_a_pass_however_many_heads_there_are(
    dense, windows, reads, tmp_path, monkeypatch
):
    monkeypatch.setattr(shared_pass, "STATISTICS_ROWS", 1)  # of each head
    n, row = len(open_store(dense)), open_store(dense).row("dense", 0).nbytes

    def cost(name, *args, **params):
        before = reads.bytes
        run(dense, tmp_path / name, *args, **params)
        return reads.bytes - before

    assert cost("9", splits="0.1,0.3,0.5", seeds=3) <= ((3 + 2) * n + 9) * row
    assert [one.training["epochs"] for one in runs(tmp_path / "9")] == [3] * 9
    # An epoch more is a pass more, and a head more is none.
    two = cost("2", conv={"epochs": 2})
    three = cost("3", conv={"epochs": 3})
    both = cost("both", ["conv", "vit"], conv={"epochs": 3}, vit={"epochs": 3})
    (alone,) = runs(tmp_path / "3")
    assert three - two == (alone.n_train + alone.n_validation) * row
    assert both == three


def test_rows_that_nobody_wants_are_not_read(store, reads, tmp_path):
    run(store, tmp_path, splits="label:0.25@0.5")
    left_out = read_split(*(one.path for one in runs(tmp_path))).left_out
    assert len(left_out) > 20
    assert reads.names == {*open_store(store).sample_ids} - {*left_out}


# As good as alone


def test_a_shared_pass_teaches_as_well(store, windows, tmp_path):
    longer = {"conv": {"epochs": 12, "width": 32}, "vit": {"epochs": 12, "dropout": 0.1}}
    run(store, tmp_path, ["conv", "vit"], **longer)
    for one in runs(tmp_path):
        assert one.metrics["accuracy"].value > 0.9
        assert {"fit", "score", "total"} <= one.seconds.keys()
        assert one.training["samples_per_second"] > 0
        assert 0 <= one.training["waiting"] <= 1


@pytest.mark.parametrize(
    ("params", "stopped"),
    [
        ({"epochs": 3}, "epochs"),
        ({"epochs": 40, "patience": 1, "lr": 1e-1}, "patience"),
        ({"epochs": 9, "lr": 1.0, "weight_decay": 10.0}, "diverged at step "),
    ],
)
@pytest.mark.parametrize("held", [True, False])
def test_it_ends_as_alone(store, windows, tmp_path, monkeypatch, params, stopped, held):
    """To the last bit, whether a head that is trained alone holds its features in memory or streams them."""
    if not held:
        monkeypatch.setattr(features, "HELD_BYTES", 0)
    run(store, tmp_path / "a", ["conv", "vit"], conv=params)
    for one in runs(tmp_path / "a"):
        settings = PARAMS[one.name] | (params if one.name == "conv" else {})
        alone = fit_head(store, one.name, 0.2, out=tmp_path / "b" / "cells", params=settings)
        assert alone.path.name == one.path.name
        assert one.name != "conv" or one.training["stopped"].startswith(stopped)
    assert trained(tmp_path / "a") == trained(tmp_path / "b")


def test_masks_end_as_alone(dense, windows, tmp_path):
    run(dense, tmp_path / "a", ["conv"])
    fit_head(dense, "conv", 0.2, out=tmp_path / "b" / "cells", params=PARAMS["conv"])
    assert trained(tmp_path / "a") == trained(tmp_path / "b")


# What fails, fails alone


@pytest.mark.parametrize(
    ("what", "part"),
    [("infinite", "held_out"), ("damaged", "train"), ("damaged", "validation")],
)
def test_rows_that_cannot_be_used_fail_who_needs_them(store, windows, reads, tmp_path, what, part):
    def trained(out):
        result = run(store, tmp_path / out, splits="label:0.5@0.4", seeds=4, conv={"epochs": 1})
        return result, outcome(tmp_path / out)

    _, whole = trained("whole")
    splits = {one.path.name: read_split(one.path) for one in runs(tmp_path / "whole")}
    every = {*open_store(store).sample_ids}
    needs = {cell: every - {*split.left_out} for cell, split in splits.items()}
    first = next(iter(splits))
    parts = {"held_out": {*splits[first].held_out}, "validation": {*splits[first].validation}}
    parts["train"] = needs[first] - parts["held_out"] - parts["validation"]
    name = min(parts[part] - set.intersection(*needs.values()))
    setattr(reads, what, name)
    result, kept = trained("rest")
    assert kept == {cell: whole[cell] for cell in whole if name not in needs[cell]}
    assert len(kept) + len(result.failed) == 4
    said = f"{name!r} is not finite" if what == "infinite" else f"{name} fails its checksum"
    assert all(said in reason for reason in result.failed.values())
    assert not list(tmp_path.glob("rest/*/.*"))


@pytest.mark.parametrize("what", ["RunFolder", "write"])
def test_what_fails_fails_alone_and_the_next_in_its_lane_begins(store, tmp_path, monkeypatch, what):
    owner, called = shared_pass if what == "RunFolder" else Trial, []
    made = getattr(owner, what)

    def second_fails(*args):
        called.append(args)
        if len(called) == 2:
            raise ResourceError("the disk is full")
        return made(*args)

    lanes = {"splits": "0.6,0.4,0.2", "seeds": 2, "warm_start": True}
    run(store, tmp_path / "whole", **lanes)
    monkeypatch.setattr(owner, what, second_fails)
    result = run(store, tmp_path / "rest", **lanes)
    assert (result.done, list(result.failed.values())) == (5, ["the disk is full"])
    (cell,) = result.failed
    seed = "-s0-" if cell.endswith("seed 0") else "-s1-"  # of the lane
    kept, whole = outcome(tmp_path / "rest"), outcome(tmp_path / "whole")
    assert {n: one for n, one in whole.items() if seed not in n}.items() <= kept.items()
    assert not list(tmp_path.glob("rest/*/.*"))


@given(n=st.integers(1, 120), batch=st.integers(1, 40), capacity=st.integers(1, 60), data=st.data())
def test_a_pool_gives_each_row_once_an_epoch(n, batch, capacity, data):
    """Whatever the windows: empty ones, and leftovers from one to the next."""
    pool, orders = Pool(batch, capacity, torch.Generator().manual_seed(0)), []
    for _ in range(2):
        cuts, found = sorted(data.draw(st.lists(st.integers(0, n), max_size=12))), []
        for rows in torch.tensor_split(torch.arange(n), cuts):
            pool.add(rows, rows * 10)
            found += pool.batches()
            assert all(len(targets) == batch for _, targets in found)
        last = list(pool.batches(last=True))
        assert all(len(targets) == batch for _, targets in last[:-1])
        assert all(torch.equal(10 * x, y) for x, y in found + last)
        orders.append(torch.cat([x for x, _ in found + last]).tolist())
        assert sorted(orders[-1]) == list(range(n))
    assert n < 20 or orders[0] != orders[1]
