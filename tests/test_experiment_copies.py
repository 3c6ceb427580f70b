"""Copies of an image are on one side of a split, or their number is told."""

from dataclasses import replace

import numpy as np
import pytest
import sweeps
from stubs import embedded
from toys import Reads, stripes

from samtl.experiment.fit import fit_baseline, fit_head
from samtl.splits import read_split

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def copied():
    """Twenty images whose labels were drawn by coin, and a copy of each with the same label."""
    images, coin = stripes(20, 1), np.random.default_rng(0).integers(0, 2, 20).tolist()
    files = {f"{copy}/{name}": images.read(name) for copy in "ab" for name in images.sample_ids}
    about = {"sample_ids": tuple(files), "labels": (*coin, *coin), "read": Reads(files)}
    parts = ("train",) * 8 + ("validation",) * 12 + ("test",) * 20
    return replace(images, classes=("heads", "tails"), parts=parts, **about)


@pytest.fixture(scope="module")
def store(copied, tmp_path_factory):
    return embedded(tmp_path_factory.mktemp("copies"), copied, 64, ["pooled"])


def test_nothing_is_learnt_of_labels_drawn_by_coin(copied, store):
    drawn = [fit_head(store, "logreg", 0.3), fit_baseline(copied, "floor", 0.3)]
    assert [(run.n_test, run.copies_held_out) for run in drawn] == [(12, 0)] * 2
    assert drawn[0].split == drawn[1].split
    held_out = read_split(drawn[0].path).held_out
    assert {name[0] for name in held_out} == {"a", "b"}
    assert len({name[2:] for name in held_out}) == 6
    given = fit_head(store, "logreg", "shipped")
    assert given.metrics["accuracy"].value > drawn[0].metrics["accuracy"].value


def test_copies_in_parts_that_are_listed_are_told(run, copied, store):
    assert fit_baseline(copied, "floor", "shipped").copies_held_out == 20
    code, printed, _ = run("fit-head", "--head", "logreg", "--split", "shipped", "--cache", store)
    assert code == 0
    assert "20 held-out images are also, byte for byte, among those to train" in printed


def test_baselines_of_a_sweep_have_the_split_of_its_heads(copied, store, tmp_path):
    options = {"baselines": ["floor"], "dataset": copied}
    sweeps.run(store, tmp_path, ["logreg"], "0.3,shipped,fold:1/4", **options)
    runs = sweeps.runs(tmp_path)
    told = {(run.split.name, run.split.digest, run.copies_held_out) for run in runs}
    assert {name: copies for name, _, copies in told} == {"holdout": 0, "shipped": 20, "fold": 0}
    assert (len(runs), len(told)) == (6, 3)
