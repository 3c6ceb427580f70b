"""A pass that is killed, or whose disk fails, at any system call: no row is wrong, nothing is lost, and it goes on.

Some points are tried here; `make torture` tries all of them.
"""

import shutil

import pytest
from chaos import (
    ALL,
    BATCH,
    BLOCK,
    CALLS,
    ROWS,
    Machine,
    committed_rows,
    copied,
    needs_strace,
    require_whole,
)

from samtl.store.reader import open_store

pytestmark = [needs_strace, pytest.mark.slow]

ERRORS = ("ENOSPC", "EIO", "EDQUOT", "EMFILE", "EROFS")
SOME = (("write", "ENOSPC"), ("link", "EIO"))


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
    arrays = [path.parent for path in half.glob("*/c.1.*")]
    for path in [*(half / "log").iterdir(), *(p for folder in arrays for p in folder.glob("c.*"))]:
        if path.name.removeprefix("c.").partition(".")[0] in ("1", "2", "3"):
            path.unlink()
    assert open_store(half).missing == ROWS - BLOCK
    return {"nothing": None, "one block": half}


def points(machine, begun, tmp, call, fault):
    """Try the nth call for n = 1, 2 ... until a pass ends to which nothing happened; gives each outcome."""
    for what, before in begun.items():
        n, step = 1, 1 if ALL else 173 if call == "write" else 29
        while True:
            store = tmp / "a.zarr"
            shutil.rmtree(store, ignore_errors=True)
            if before is not None:
                copied(before, store)
            done = machine.embed(store, call, n, fault)
            yield what, n, store, done
            if not done.struck:
                break
            n += step


def resumed(machine, store, before, expected):
    """Go on to the end; it comes to the same, and no committed block was done again."""
    done = machine.embed(store)
    assert done.code == 0, done.told
    assert done.encoded == ROWS - before
    require_whole(store, expected)


@pytest.mark.parametrize(
    "call", [call for call in CALLS if call != "openat"]
)  # it alone changes nothing to keep
def test_killed_at_any_call(machine, begun, whole, tmp_path, call, record_property):
    if not ALL and call not in ("fsync", "link"):
        pytest.skip("make torture kills at every call")
    expected, killed = open_store(whole), 0
    for what, n, store, done in points(machine, begun, tmp_path, call, "signal=KILL"):
        assert done.code in (0, -9), (what, n, done.told)
        killed += done.code == -9
        before = committed_rows(store, expected, "deep")
        had = BLOCK if what == "one block" else 0
        # Of what was encoded, a block that was being written and the batch beside it may be lost.
        assert done.encoded + had - before <= BLOCK + BATCH
        resumed(machine, store, before, expected)
    record_property("points", killed)
    assert killed >= (2 if call in ("mkdir", "rename") else 3) or not ALL


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("call", CALLS)
def test_the_disk_fails_at_any_call(machine, begun, whole, tmp_path, call, error, record_property):
    if not ALL and (call, error) not in SOME:
        pytest.skip("make torture tries every error at every call")
    expected, failed = open_store(whole), 0
    for what, n, store, done in points(machine, begun, tmp_path, call, f"error={error}"):
        assert done.code in (0, 5), (what, n, done.told)
        failed += done.code == 5
        before = committed_rows(store, expected, "deep")
        if what == "one block":
            assert before >= BLOCK
        if done.code == 0:
            assert before == ROWS
        resumed(machine, store, before, expected)
    record_property("points", failed)
