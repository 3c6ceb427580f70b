"""After a power cut at any moment no row is wrong, and the pass goes on; zarr's own store fails the same test."""

import os
import random
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from chaos import ALL, BATCH, ROWS, Pass, committed_rows, needs_strace, require_whole
from power import Call, Disk, laid_out, recorded

from samtl.errors import SamtlError
from samtl.store.reader import open_store

STATES = 2_000 if ALL else 40

EMBED = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from stubs import StubEncoders, install, toy_dataset
from samtl.embed.api import embed
if sys.argv[2] == "careless":
    os.fsync = lambda descriptor: None
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


def record(ram, program, how=""):
    root = ram / f"recorded-{how}.zarr"
    shutil.rmtree(root, ignore_errors=True)
    return root, recorded([sys.executable, "-c", program, str(root), how], root)


@pytest.fixture(scope="module")
def one_writer(ram):
    return record(ram, EMBED, "one")


def states(root, calls, place, n=STATES):
    """Draw so many moments and what may be lost at each; gives the number of calls made, and what is left."""
    chance = random.Random(0)
    moments = [*sorted(chance.randrange(len(calls)) for _ in range(n - 2)), len(calls), len(calls)]
    disk, done = Disk(root), 0
    for moment in moments:
        for call in calls[done:moment]:
            disk.apply(call)
        done = moment
        yield moment, laid_out(disk.cut(chance), root, place)
        shutil.rmtree(place)


@needs_strace
@pytest.mark.slow
@pytest.mark.parametrize("writers", ["one", "two"])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_no_power_cut_makes_a_row_wrong(ram, record_property, one_writer, writers):
    """And a record that a caller saw is there after every cut that follows."""
    root, calls = one_writer if writers == "one" else record(ram, EMBED, "two")
    expected, log = open_store(root), os.path.realpath(root / "log")
    assert sum(call.what == "sync" for call in calls) > 4 * 2 * len(expected.arrays)
    safe = {}  # name of a record to the call after which it is there
    for at, call in enumerate(calls):
        if call.what == "link" and call.path.startswith(f"{log}/"):
            safe[Path(call.path).name] = calls.index(Call("sync", log), at)
    assert safe.keys() == {f"{block}.0.json" for block in range(4)}
    rows = []
    for moment, store in states(root, calls, ram / "a.zarr"):
        rows.append(committed_rows(store, expected, "deep"))
        for name, at in safe.items():
            assert moment <= at or (store / "log" / name).exists()
        if len(rows) % 20 == 1:
            done = Pass(store).end()
            assert (done.code, done.encoded) == (0, ROWS - rows[-1]), done.told
            require_whole(store, expected)
    record_property("points", len(rows))
    assert {0, 64} < set(rows) <= {0, 16, 32, 48, 64}


@needs_strace
@pytest.mark.slow
def test_a_pass_that_syncs_nothing_does_not_get_through(ram):
    """Or the test above would prove nothing."""
    root, calls = record(ram, EMBED, "careless")
    assert not any(call.what == "sync" for call in calls)
    expected, wrong = open_store(root), 0
    for _, store in states(root, calls, ram / "a.zarr", 40):
        try:
            committed_rows(store, expected, "deep")
        except (AssertionError, SamtlError):
            wrong += 1
    assert wrong > 0


@needs_strace
@pytest.mark.slow
def test_the_harness_finds_fault_with_a_store_that_syncs_nothing(ram):
    root, calls = record(ram, ZARR)
    import zarr

    expected = zarr.open_array(root, mode="r")[:]
    wrong = 0
    for _, store in states(root, calls, ram / "a.zarr", 40):
        for path in store.glob("c/*/*"):
            rows = slice(16 * int(path.parent.name), 16 * int(path.parent.name) + 16)
            try:
                wrong += not np.array_equal(zarr.open_array(store, mode="r")[rows], expected[rows])
            except Exception:  # it notices
                continue
    assert wrong > 0


def test_what_was_synced_is_safe_and_nothing_else(tmp_path):
    root = os.path.realpath(tmp_path)
    disk = Disk(root)
    for step in (
        Call("create", f"{root}/a"),
        Call("write", f"{root}/a", data=b"12345678"),
        Call("sync", f"{root}/a"),
        Call("write", f"{root}/a", data=b"unsafe"),
        Call("link", f"{root}/b", f"{root}/a"),
        Call("sync", root),
        Call("mkdir", f"{root}/c"),
        Call("create", f"{root}/c/d"),
        Call("rename", f"{root}/e", f"{root}/b"),
    ):
        disk.apply(step)
    chance = random.Random(0)
    seen = [disk.cut(chance) for _ in range(300)]
    names = {"".join(sorted(path.rpartition("/")[2] for path in state)) for state in seen}
    assert names == {"ab", "abc", "abcd", "ae", "ace", "acde"}
    contents = {state[f"{root}/a"] for state in seen}
    assert contents > {b"12345678", b"12345678unsafe"}
    assert any(len(content) > 8 and content[8] == 0 for content in contents)
    assert all(content.startswith(b"12345678") for content in contents)
