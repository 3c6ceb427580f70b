"""`samtl bench heads` measures every head on grids; tests do not check how fast they are."""

import pytest

from benchmarks.heads import CASES, Case, bench_heads
from samtl import registry


def test_every_head_on_grids_is_measured_on_each_of_its_tasks():
    measured = {(case.head, case.task) for case in CASES}
    expected = {
        (name, task)
        for name in registry.names("heads")
        for task, tier in registry.load("heads", name).Head.tiers.items()
        if tier != "pooled"
    }
    assert measured == expected


GRID, DENSE = ("classification", "grid", 16, 3, 8), ("segmentation", "dense", 64, 2, 2)


@pytest.mark.parametrize("case", [("conv", *GRID), ("vit", *GRID), ("conv", *DENSE)])
def test_figures_of_a_case(case):
    seen, case = [], Case(*case, 1, 1, 1)
    rows = bench_heads(1, [case], seen.append)
    assert rows == seen
    train, waiting = rows
    tier = "grid16" if case.array == "grid" else "dense"
    assert train.name == f"{case.head}/{tier}/train"
    assert (train.unit, train.vs) == ("samples/s", "plain")
    assert train.value > 0
    assert train.ratio > 0
    assert waiting.name == f"{case.head}/{tier}/waiting"
    assert 0 <= waiting.value <= 1
