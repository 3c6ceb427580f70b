"""`samtl bench sweep` at a small scale."""

import pytest

from benchmarks import sweep as bench
from samtl.errors import InputError
from samtl.experiment.run import read_run
from samtl.store.reader import open_store
from samtl.sweep.api import sweep


def test_a_line_through_some_times_gives_the_others():
    assert bench._over_all([10, 30], [3.0, 7.0], [10, 20, 30]) == pytest.approx(15.0)
    assert bench._over_all([10, 30], [3.0, 7.0], [10, 30]) == 10.0  # all were measured
    assert bench._over_all([10], [3.0], [10, 20]) == 6.0


def test_a_sweep_beside_the_loop_can_be_resumed(one_thread, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "POOLED_COLUMNS", 64)
    kept, seen = tmp_path / "kept", []
    options = {"rows": 160, "splits": "0.5,0.6", "seeds": 1, "out": kept}
    rows = bench.bench_sweep(["pooled"], **options, on_row=seen.append)
    name = "logreg+mlp/2x1"
    assert [row.name for row in rows] == [name, f"{name}/naive", f"{name}/peak memory"]
    assert seen == rows
    ours, naive, peak = rows
    assert peak.unit == "GiB a process"
    assert (ours.unit, ours.vs, naive.unit) == ("s", "naive", "s")
    assert ours.ratio == pytest.approx(naive.value / ours.value)
    assert {path.name for path in kept.iterdir()} == {"loop", "pooled.zarr", "sweep-pooled"}
    out = kept / "sweep-pooled"
    largest = max(read_run(run).peak_memory for run in (out / "cells").iterdir())
    assert peak.value * 2**30 == largest > 0
    again = sweep(kept / "pooled.zarr", ("logreg", "mlp"), "0.5,0.6", 1, out)
    assert (again.skipped, again.done) == (4, 0)
    with pytest.raises(InputError, match=r"kept is not empty, .* name a new folder"):
        bench.bench_sweep(["pooled"], **options)


@pytest.mark.parametrize("case", bench.CASES)
def test_features_are_generated_for_every_case(tmp_path, case):
    """Fault: the bench of heads on `grid` failed with a KeyError."""
    store = open_store(bench._made_up(tmp_path / "a.zarr", case, 32))
    assert store.arrays == (bench.CASES[case].array,)
    assert len(store) == 32


@pytest.mark.slow
def test_heads_on_dense_embeddings_read_the_store_once_an_epoch(one_thread, monkeypatch):
    monkeypatch.setattr(bench, "DENSE_HEADS", 3)
    monkeypatch.setattr(bench, "DENSE_EPOCHS", 2)
    monkeypatch.setattr(bench, "SIDE", 16)
    passes, seconds = bench.bench_sweep(["dense"], dense_rows=48)
    assert passes.name == "3xconv/dense/passes"
    assert bench.DENSE_EPOCHS < passes.value <= bench.DENSE_EPOCHS + 3
    assert passes.ratio > 0
    assert seconds.value > 0
