"""After a power cut at any moment no row is wrong, and the pass goes on; zarr's own store fails the same test."""

import os
import random
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from chaos import (
    ALL,
    BATCH,
    ROWS,
    Machine,
    committed_rows,
    needs_strace,
    require_whole,
)
from power import Call, Disk, laid_out, recorded

from samtl.errors import SamtlError
from samtl.store.reader import open_store

STATES = 2_000 if ALL else 40

EMBED = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from stubs import StubEncoders, install, toy_dataset
from samtl.embed.api import embed
install(StubEncoders())
if sys.argv[2] == "two":  # writers, which do not wait for each other
    os.fork()
embed(toy_dataset({ROWS}), "stub", out=sys.argv[1], device="cpu", batch_size={BATCH})
"""

ZARR = """
import sys
import numpy as np
import zarr
array = zarr.create_array(sys.argv[1], shape=(64, 1024), chunks=(1, 1024), shards=(16, 1024), dtype="f4", fill_value=0)
for block in range(4):
    array[16 * block : 16 * block + 16] = 1 + np.random.default_rng(block).random((16, 1024), np.float32)
"""


def states(calls, root, n):
    """Draw so many moments and what may be lost at each; gives the number of calls made, and the state."""
    chance = random.Random(0)
    moments = [*sorted(chance.randrange(len(calls)) for _ in range(n - 2)), len(calls), len(calls)]
    disk, done = Disk(root), 0
    for moment in moments:
        for call in calls[done:moment]:
            disk.apply(call)
        done = moment
        yield moment, disk.cut(chance)


@needs_strace
@pytest.mark.slow
@pytest.mark.parametrize("writers", ["one", "two"])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_no_power_cut_makes_a_row_wrong(tmp_path, record_property, writers):
    root = tmp_path / "recorded.zarr"
    calls = recorded([sys.executable, "-c", EMBED, str(root), writers], root)
    expected = open_store(root)
    assert sum(call.what == "sync" for call in calls) > 4 * 2 * len(expected.arrays)
    rows = []
    with Machine(tmp_path) as machine:
        for number, (_, state) in enumerate(states(calls, root, STATES)):
            store = laid_out(state, root, tmp_path / "cut" / "a.zarr")
            rows.append(committed_rows(store, expected, "deep"))
            if number % 20 == 0:
                done = machine.embed(store)
                assert done.code == 0, done.told
                assert done.encoded == ROWS - rows[-1]
                require_whole(store, expected)
            shutil.rmtree(tmp_path / "cut")
    record_property("points", len(rows))
    assert {0, 64} < set(rows) <= {0, 16, 32, 48, 64}


@needs_strace
@pytest.mark.slow
def test_a_pass_that_syncs_nothing_does_not_get_through(tmp_path):
    """Or the test above would prove nothing."""
    root = tmp_path / "recorded.zarr"
    careless = "import os; os.fsync = lambda descriptor: None" + EMBED
    calls = recorded([sys.executable, "-c", careless, str(root), "one"], root)
    assert not any(call.what == "sync" for call in calls)
    expected = open_store(root)
    wrong = 0
    for _, state in states(calls, root, 40):
        store = laid_out(state, root, tmp_path / "cut" / "a.zarr")
        try:
            committed_rows(store, expected, "deep")
        except (AssertionError, SamtlError):
            wrong += 1
        shutil.rmtree(tmp_path / "cut")
    assert wrong > 0


@needs_strace
@pytest.mark.slow
def test_what_was_committed_stays(tmp_path):
    """A record that a caller saw is there after every power cut that follows."""
    root = tmp_path / "recorded.zarr"
    calls = recorded([sys.executable, "-c", EMBED, str(root), "one"], root)
    end = {
        number: next(
            i for i, call in enumerate(calls)
            if call.what == "link" and call.path.endswith(f"/log/{number}.0.json")
        )
        for number in range(4)
    }  # fmt: skip
    folder = os.path.realpath(root / "log")
    synced = {
        number: next(i for i in range(at, len(calls)) if calls[i] == Call("sync", folder))
        for number, at in end.items()
    }
    for moment, state in states(calls, root, STATES):
        for number, at in synced.items():
            if moment > at:
                assert f"{folder}/{number}.0.json" in state


@needs_strace
@pytest.mark.slow
def test_the_harness_finds_fault_with_a_store_that_syncs_nothing(tmp_path):
    root = tmp_path / "recorded.zarr"
    calls = recorded([sys.executable, "-c", ZARR, str(root)], root)
    import zarr

    expected = zarr.open_array(root, mode="r")[:]
    wrong = 0
    for _, state in states(calls, root, 40):
        store = laid_out(state, root, tmp_path / "cut" / "a.zarr")
        for path in store.glob("c/*/*"):
            block = int(path.parent.name)
            try:
                rows = zarr.open_array(store, mode="r")[16 * block : 16 * block + 16]
            except Exception:  # it notices
                continue
            wrong += not np.array_equal(rows, expected[16 * block : 16 * block + 16])
        shutil.rmtree(tmp_path / "cut")
    assert wrong > 0


def test_what_was_synced_is_safe_and_nothing_else(tmp_path):
    root = os.path.realpath(tmp_path)
    steps = [
        Call("create", f"{root}/a"),
        Call("write", f"{root}/a", data=b"12345678"),
        Call("sync", f"{root}/a"),
        Call("write", f"{root}/a", data=b"unsafe"),
        Call("link", f"{root}/b", f"{root}/a"),
        Call("sync", root),
        Call("mkdir", f"{root}/c"),
        Call("create", f"{root}/c/d"),
        Call("rename", f"{root}/e", f"{root}/b"),
    ]
    disk = Disk(root)
    for step in steps:
        disk.apply(step)
    chance = random.Random(0)
    seen = [disk.cut(chance) for _ in range(300)]
    names = {frozenset(path.rpartition("/")[2] for path in state) for state in seen}
    assert all("a" in state for state in names)
    assert all({"b", "e"} & state for state in names)
    assert any("e" in state for state in names)
    assert not any({"b", "e"} <= state for state in names)
    assert any("b" in state for state in names)
    assert any("c" not in state for state in names)
    assert not any("d" in state and "c" not in state for state in names)
    contents = {state[f"{root}/a"] for state in seen}
    assert b"12345678" in contents
    assert b"12345678unsafe" in contents
    assert any(len(content) > 8 and content[8] == 0 for content in contents)
    assert all(content.startswith(b"12345678") for content in contents)
