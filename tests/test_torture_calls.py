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
    Pass,
    committed_rows,
    needs_strace,
    require_whole,
)

from samtl.store.reader import open_store

pytestmark = [needs_strace, pytest.mark.slow]

ERRORS = ("ENOSPC", "EIO", "EDQUOT", "EMFILE", "EROFS")
# `openat` alone changes nothing to keep, so nothing is killed at it.
FAULTS = [(call, "signal=KILL") for call in CALLS if call != "openat"]
FAULTS += [(call, f"error={error}") for call in CALLS for error in ERRORS]
SOME = [
    ("fsync", "signal=KILL"),
    ("link", "signal=KILL"),
    ("write", "error=ENOSPC"),
    ("link", "error=EIO"),
]


@pytest.fixture(scope="module")
def whole(ram):
    """What an uninterrupted pass gives."""
    done = Pass(ram / "whole.zarr").end()
    assert (done.code, done.encoded) == (0, ROWS), done.told
    return ram / "whole.zarr"


@pytest.fixture(scope="module")
def begun(whole, ram):
    """Rows of a store before a pass: none, and one whose first block is committed."""
    half = shutil.copytree(whole, ram / "half.zarr")
    for path in [*half.glob("log/*.json"), *half.glob("*/c.*.0")]:
        if path.name.removeprefix("c.").partition(".")[0] in ("1", "2", "3"):
            path.unlink()
    assert open_store(half).missing == ROWS - BLOCK
    return {0: None, BLOCK: half}


@pytest.mark.parametrize(("call", "fault"), FAULTS if ALL else SOME)
def test_at_any_call(begun, whole, ram, record_property, call, fault):
    """Try the nth call for n = 1, 2 ... until a pass ends to which nothing happened."""
    expected, struck, store = open_store(whole), 0, ram / "a.zarr"
    fails = -9 if "KILL" in fault else 5
    for had, before in begun.items():
        n, step = 1, 1 if ALL else 173 if call == "write" else 47
        while True:
            if before is not None:
                shutil.copytree(before, store)
            done = Pass(store, call, n, fault).end()
            assert done.code in (0, fails), (had, n, done.told)
            struck += done.code == fails
            now = committed_rows(store, expected, "deep")
            assert now >= had
            assert now == ROWS or done.code != 0
            if fails == -9:  # a block that was being written and the batch beside it may be lost
                assert done.encoded + had - now <= BLOCK + BATCH
            again = Pass(store).end()
            assert (again.code, again.encoded) == (0, ROWS - now), again.told
            require_whole(store, expected)
            shutil.rmtree(store)
            if not done.struck:
                break
            n += step
    record_property("points", struck)
    assert struck >= (2 if call in ("mkdir", "rename") else 3) or not ALL or fails == 5
