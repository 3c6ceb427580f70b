"""`samtl bench heads` measures every head on grids; tests do not check how fast they are."""

import pytest

from benchmarks.heads import CASES, Case, bench_heads
from samtl import registry


def test_every_head_on_grids_is_measured_on_each_of_its_tasks():
    measured = {(case.head, case.task) for case in CASES if case.kind == "heads"}
    expected = {
        (name, task)
        for name in registry.names("heads")
        for task, tier in registry.load("heads", name).Head.tiers.items()
        if tier != "pooled" and task != "multilabel"  # whose networks are those of classification
    }
    assert measured == expected


GRID, DENSE = ("classification", "grid", 16, 3, 8), ("segmentation", "dense", 64, 2, 2)


@pytest.mark.parametrize("case", [("conv", *GRID), ("vit", *GRID), ("conv", *DENSE)])
def test_figures_of_a_case(case):
    seen, case = [], Case(*case, 1, 1, 1)
    rows = bench_heads(1, [case], seen.append)
    assert rows == seen
    *trained, waiting = rows
    tier = "grid16" if case.array == "grid" else "dense"
    for row in trained:
        assert (row.name, row.unit) == (f"{case.head}/{tier}/train", "samples/s")
        assert row.value > 0
        assert row.ratio > 0
    *sides, best = (row.vs for row in trained)
    assert sides == ["float32", "bfloat16", "plain"]
    assert best in ("best: float32", "best: bfloat16")
    assert waiting.name == f"{case.head}/{tier}/waiting"
    assert 0 <= waiting.value <= 1


def test_a_network_on_pixels_is_measured_in_each_dtype():
    rows = bench_heads(1, [Case("unet", "segmentation", "64", 64, 2, 2, 1, 0, 0, "baselines")])
    assert {row.name for row in rows} == {"unet/64/train"}
    assert [row.vs for row in rows][:2] == ["float32", "bfloat16"]
    assert all(row.value > 0 for row in rows)
