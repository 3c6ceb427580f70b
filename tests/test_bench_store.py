"""The bench of stores reads what was written, commits for real, and opens what it says; its speed is no matter here."""

import numpy as np
import pytest

from benchmarks import store as bench
from benchmarks.store import bench_store
from samtl.errors import InputError
from samtl.store.reader import Store, open_store
from samtl.store.verify import check


def test_names_are_those_that_programs_look_for(tmp_path):
    rows = bench_store(32, 40, rounds=1, out=tmp_path)
    verified = [row for row in rows if row.name == "rows/verified"]
    assert [row.vs for row in verified] == ["memmap", "zarr-python", "tensorstore"]
    assert {("commit/row", "plain-write"), ("open/40", "")} < {(row.name, row.vs) for row in rows}
    assert all(row.value > 0 for row in rows if not row.name.endswith("overhead"))
    alone = {row.name: row.value for row in rows if not row.vs}
    for row in verified:  # of one round
        assert row.ratio == pytest.approx(row.value / alone[f"rows/{row.vs}"])


def test_every_row_is_read_and_verified(tmp_path, monkeypatch):
    read, row = [], Store.row
    monkeypatch.setattr(Store, "row", lambda self, array, i: read.append(i) or row(self, array, i))
    bench_store(32, 0, rounds=1, out=tmp_path)
    assert sorted(read) == sorted([*range(32)] * 2)
    assert not list(tmp_path.iterdir())


def test_all_sides_give_the_same_numbers(tmp_path):
    values = np.random.default_rng(0).standard_normal((16, 256, 64, 64)).astype(np.float16)
    path = bench._store(tmp_path / "a.zarr", values, 32)
    store, theirs = open_store(path), bench._tensorstore(path)
    for i in (3, 20):
        for row in (store.row("dense", i), store.zarr()["dense"][i], theirs[i].read().result()):
            np.testing.assert_array_equal(row, values[i % 16])


def test_the_large_log_is_that_of_a_store(tmp_path):
    store = open_store(bench._log(tmp_path / "a.zarr", 40))
    assert (len(store), store.missing) == (40, 0)
    assert set(store.arrays) >= {"dense", "grid", "pooled"}
    found = check(tmp_path / "a.zarr", "quick")
    assert {one.what for one in found.findings} == {"file", "metadata"}  # records alone


@pytest.mark.parametrize("rows", [0, 17])
def test_rows_fill_blocks(rows):
    with pytest.raises(InputError, match="multiple of 16"):
        bench_store(rows)
