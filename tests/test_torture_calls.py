"""A pass that is killed, or whose disk fails, at any system call: no row is wrong, nothing is lost, and it goes on.

Some points are tried here; `make torture` tries all of them.
"""

import os
import shutil

import numpy as np
import pytest
from chaos import BATCH, CALLS, ROWS, Machine, copied, needs_strace
from stubs import everything

from samtl.store import durable
from samtl.store.fingerprint import FILE
from samtl.store.layout import BLOCK_ROWS
from samtl.store.reader import open_store
from samtl.store.verify import check

pytestmark = needs_strace

ALL = bool(os.environ.get("SAMTL_TORTURE"))
ERRORS = ("ENOSPC", "EIO", "EDQUOT", "EMFILE", "EROFS")
SOME = (("write", "ENOSPC"),)


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    with Machine(tmp_path_factory.mktemp("machine")) as made:
        yield made


@pytest.fixture(scope="module")
def whole(machine, tmp_path_factory):
    """What an uninterrupted pass gives."""
    out = tmp_path_factory.mktemp("whole") / "a.zarr"
    done = machine.embed(out)
    assert (done.code, done.encoded) == (0, ROWS), done.told
    return out


@pytest.fixture(scope="module")
def begun(whole, tmp_path_factory):
    """Stores as they are before a pass: none, and one whose first block is committed."""
    half = copied(whole, tmp_path_factory.mktemp("begun") / "a.zarr")
    for path in half.rglob("*"):
        block = path.name.removeprefix("c.").partition(".")[0]
        if (
            path.is_file()
            and block in "123"
            and (path.name.startswith("c.") or path.parent.name == "log")
        ):
            path.unlink()
    assert open_store(half).missing == ROWS - BLOCK_ROWS
    return {"nothing": None, "one block": half}


def prepared(begun, what, place):
    if begun[what] is not None:
        return copied(begun[what], place)
    shutil.rmtree(place, ignore_errors=True)
    return place


def committed_rows(store, expected):
    """Check every row that counts; gives how many there are."""
    if not (store / FILE).exists() or not (store / "rows" / "0.json").exists():
        return 0
    opened = open_store(store)
    there = np.flatnonzero(opened.valid())
    for name in opened.arrays:
        rows = opened.read(name, there)
        np.testing.assert_array_equal(rows, expected.read(name)[there])
    assert check(store, "deep").findings == []
    return len(opened) - opened.missing if opened.arrays else 0


def resumed(machine, store, before, expected):
    """Go on to the end; it comes to the same, and no committed block was done again."""
    done = machine.embed(store)
    assert done.code == 0, done.told
    assert done.encoded == ROWS - before
    assert everything(open_store(store)) == everything(expected)
    assert check(store, "deep").findings == []
    assert check(store, "quick").leftovers == []
    assert not list(store.rglob(f"{durable.TEMPORARY}*"))


def points(machine, begun, tmp, call, fault):
    """Try the nth call for n = 1, 2 ... until a pass ends to which nothing happened; gives each outcome."""
    for what in begun:
        n, step = 1, 1 if ALL else 29
        while True:
            store = prepared(begun, what, tmp / "a.zarr")
            done = machine.embed(store, call, n, fault)
            yield what, n, store, done
            if not done.struck:
                break
            n += step


@pytest.mark.slow
@pytest.mark.parametrize(
    "call", [call for call in CALLS if call != "openat"]
)  # it alone changes nothing to keep
def test_killed_at_any_call(machine, begun, whole, tmp_path, call, record_property):
    if not ALL and call not in ("fsync", "link"):
        pytest.skip("make torture kills at every call")
    expected = open_store(whole)
    killed = 0
    for what, n, store, done in points(machine, begun, tmp_path, call, "signal=KILL"):
        assert done.code in (0, -9), (what, n, done.told)
        killed += done.code == -9
        before = committed_rows(store, expected)
        had = BLOCK_ROWS if what == "one block" else 0
        # Of what was encoded, a block that was being written and the batch beside it may be lost.
        assert done.encoded + had - before <= BLOCK_ROWS + BATCH
        resumed(machine, store, before, expected)
    record_property("points", killed)
    assert killed >= (2 if call == "mkdir" else 3) or not ALL


@pytest.mark.slow
@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("call", CALLS)
def test_the_disk_fails_at_any_call(machine, begun, whole, tmp_path, call, error, record_property):
    if not ALL and (call, error) not in SOME:
        pytest.skip("make torture tries every error at every call")
    expected = open_store(whole)
    failed = 0
    for what, n, store, done in points(machine, begun, tmp_path, call, f"error={error}"):
        assert done.code in (0, 5), (what, n, done.told)
        failed += done.code == 5
        before = committed_rows(store, expected)
        if what == "one block":
            assert before >= BLOCK_ROWS
        if done.code == 0:
            assert before == ROWS
        resumed(machine, store, before, expected)
    record_property("points", failed)
