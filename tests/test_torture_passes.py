"""Passes that are killed, fail, lose power or meet others at any moment: no row is wrong, none lost, none there twice.

`make torture` tries every system call and 10,000 reads; here are some of them.
"""

import os
import random
import shutil
import signal
import threading
import time
from multiprocessing.connection import wait
from pathlib import Path

import chaos
import numpy as np
import pytest
from chaos import ALL, BATCH, BLOCK, ROWS, Pass
from power import RECORD, Call, Disk, calls, lay_out
from stubs import toy_dataset

from samtl.datasets import subset
from samtl.embed.api import embed
from samtl.errors import InputError, SamtlError
from samtl.store.reader import open_store

# What changes a file system, or makes what was changed stay.
CALLS = ("write", "fsync", "link", "unlink", "rename", "mkdir", "openat")
ERRORS = ("ENOSPC", "EIO", "EDQUOT", "EMFILE", "EROFS")
# `openat` alone changes nothing to keep, so nothing is killed at it.
FAULTS = [(call, "signal=KILL") for call in CALLS if call != "openat"]
FAULTS += [(call, f"error={error}") for call in CALLS for error in ERRORS]
SOME = [FAULTS[1], FAULTS[2], ("write", "error=ENOSPC"), ("link", "error=EIO")]
KILLS = [(1, ROWS, 500 if ALL else 6, 10), (8, 640, 200 if ALL else 10, 20)]
STATES = 2_000 if ALL else 40
READS = 10_000 if ALL else 200


@pytest.fixture(scope="module")
def whole(ram):
    """What an uninterrupted pass gives, and how long it takes."""
    for out in (ram / "first.zarr", ram / "whole.zarr"):  # the first waits for all that is imported
        began = time.monotonic()
        done = Pass(out).end()
        assert (done.code, done.encoded) == (0, ROWS), done.told
    return open_store(out), time.monotonic() - began


@pytest.fixture
def store(ram):
    """A place for stores that are made one after the other; a test that fails leaves nothing there."""
    yield ram / "a.zarr"
    shutil.rmtree(ram / "a.zarr", ignore_errors=True)


def require_rest(store, expected, had):
    """Check that another pass encodes what is missing, and no more."""
    done = Pass(store).end()
    assert (done.code, done.encoded) == (0, ROWS - had), done.told
    chaos.require_whole(store, expected)


# Kills and errors


@pytest.fixture(scope="module")
def begun(whole, ram):
    """Rows of a store before a pass: none, and one whose first block is committed."""
    half = shutil.copytree(ram / "whole.zarr", ram / "half.zarr")
    for path in [*half.glob("log/*.json"), *half.glob("*/c.*.0")]:
        if path.name.removeprefix("c.").partition(".")[0] in ("1", "2", "3"):
            path.unlink()
    assert open_store(half).missing == ROWS - BLOCK
    return {0: None, BLOCK: half}


@chaos.needs_strace
@pytest.mark.slow
@pytest.mark.parametrize(("call", "fault"), FAULTS if ALL else SOME)
def test_at_any_call(begun, whole, store, record_property, call, fault):
    """Try the nth call for n = 1, 2 ... until a pass ends to which nothing happened."""
    expected, struck = whole[0], 0
    fails = -9 if "KILL" in fault else 5
    for had, before in begun.items():
        n, step = 1, 1 if ALL else 173 if call == "write" else 47
        while True:
            if before is not None:
                shutil.copytree(before, store)
            done = Pass(store, chaos.fault_at(call, n, fault)).end()
            assert done.code in (0, fails), (had, n, done.told)
            struck += done.code == fails
            now = chaos.committed_rows(store, expected, "deep")
            assert now >= had
            assert now == ROWS or done.code != 0
            if fails == -9:  # a block that was being written and the batch beside it may be lost
                assert done.encoded + had - now <= BLOCK + BATCH
            require_rest(store, expected, now)
            shutil.rmtree(store)
            if not done.struck:
                break
            n += step
    record_property("points", struck)
    assert struck >= (2 if call in ("mkdir", "rename") else 3) or not ALL or fails == 5


@pytest.mark.slow
@pytest.mark.parametrize(("writers", "rows", "kills", "most"), KILLS)
def test_writers_that_are_killed(whole, ram, store, record_property, writers, rows, kills, most):
    """They start at once, others in the place of the killed, `most` on a store: every block is committed once."""
    out, chance, killed, wasted = ram / f"{rows}.zarr", random.Random(0), 0, 0
    assert Pass(out, rows=rows).end().code == 0
    expected, pause = open_store(out), 0.02 if writers > 1 else 0.8 * whole[1]
    while killed < kills:
        left, ends, encoded, had = min(most, kills - killed), [], 0, 0
        there = [Pass(store, rows=rows, seconds=0.001) for _ in range(writers)]
        while there:
            sentinels = [one.process.sentinel for one in there]
            if left > 0:
                wait(sentinels, chance.random() * pause)
                chance.choice(there).tell(signal.SIGKILL)
            ended = wait(sentinels)
            for one in [one for one in there if one.process.sentinel in ended]:
                there.remove(one)
                encoded += one.end().encoded
                if one.code != -signal.SIGKILL:
                    ends.append(one)
                    continue
                left, killed = left - 1, killed + 1
                if writers == 1:
                    now = chaos.committed_rows(store, expected)
                    assert now >= had
                    assert one.encoded - (now - had) <= BLOCK + BATCH
                    had = now
                there.append(Pass(store, rows=rows, seconds=0.001))
        assert [one.code for one in ends] == [0] * writers, [one.told for one in ends]
        chaos.require_whole(store, expected)
        wasted += encoded - rows
        shutil.rmtree(store)
    record_property("points", f"{killed} kills, {wasted} images encoded more than once, at")


def test_readers_beside_a_writer(tmp_path, encoders, record_property):
    """A row is what its image makes it, or not there yet; the writer makes stores until there were reads enough."""
    images, options = toy_dataset(80), {"device": "cpu", "tiers": ["pooled", "dense"]}
    whole = open_store(embed(images, "stub", out=tmp_path / "whole" / "a.zarr", **options).store)
    true = {
        name: dict(zip(whole.sample_ids, whole.read(name), strict=True)) for name in whole.arrays
    }
    encoders.seconds = 0.001
    reads, early, wrong = [0], [0], []
    over, place = threading.Event(), tmp_path / "stores"
    place.mkdir()

    def look(seed):
        chance = random.Random(seed)
        while not over.is_set():
            path = place / f"{len(list(place.iterdir())) - 1}.zarr"
            if not list(path.glob("samples/*.parquet")):
                continue
            store = open_store(path)
            for _ in range(20):
                row, array = chance.randrange(len(store)), chance.choice(("pooled", "dense"))
                try:
                    found = store.row(array, row)
                except InputError:
                    early[0] += 1
                    continue
                reads[0] += 1
                if not np.array_equal(found, true[array][store.sample_ids[row]]):
                    wrong.append((path.name, row, array))

    threads = [threading.Thread(target=look, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    number = 0
    try:
        while reads[0] < READS:
            for limit in (30, 50, 80):
                embed(subset(images, limit), "stub", out=place / f"{number}.zarr", **options)
            number += 1
    finally:
        over.set()
        for thread in threads:
            thread.join()
    record_property("points", reads[0])
    assert (wrong, early[0] > 0) == ([], True)


# Power cuts


def test_a_name_counts_from_the_moment_at_which_others_may_see_it():
    trace = """1 link("/s/.tmp", "/s/a" <unfinished ...>
2 fsync(3</s>) = 0
1 <... link resumed>) = 0
"""
    assert calls(trace, "/s") == [Call("link", "/s/a", "/s/.tmp"), Call("sync", "/s")]


def recorded(ram, how):
    """What a pass made, and its calls."""
    root = ram / f"recorded-{how}.zarr"
    done = Pass(root, RECORD, how=how).end()
    assert done.code == 0, done.told
    return open_store(root), root, calls(done.trace, root)


def cuts(root, calls, place, n):
    """Draw so many moments and lay out what may be left at each; gives the number of calls made."""
    chance = random.Random(0)
    moments = [*sorted(chance.randrange(len(calls)) for _ in range(n - 2)), len(calls), len(calls)]
    disk, done = Disk(root), 0
    for moment in moments:
        for call in calls[done:moment]:
            disk.apply(call)
        done = moment
        lay_out(disk.cut(chance), root, place)
        yield moment
        shutil.rmtree(place)


@chaos.needs_strace
@pytest.mark.slow
@pytest.mark.parametrize("writers", ["one", "two"])
def test_no_power_cut_makes_a_row_wrong(ram, store, record_property, writers):
    """And a record that a caller saw is there after every cut that follows."""
    expected, root, made = recorded(ram, writers)
    log = os.path.realpath(root / "log")
    assert sum(call.what == "sync" for call in made) > 4 * 2 * len(expected.arrays)
    safe = {}  # name of a record to the call after which it is there
    for at, call in enumerate(made):
        if call.what == "link" and call.path.startswith(f"{log}/"):
            safe[Path(call.path).name] = made.index(Call("sync", log), at)
    assert safe.keys() == {f"{block}.0.json" for block in range(4)}
    rows = []
    for moment in cuts(root, made, store, STATES):
        rows.append(chaos.committed_rows(store, expected, "deep"))
        for name, at in safe.items():
            assert moment <= at or (store / "log" / name).exists()
        if len(rows) % 20 == 1:
            require_rest(store, expected, rows[-1])
    record_property("points", len(rows))
    assert {0, 64} < set(rows) <= {0, 16, 32, 48, 64}


@chaos.needs_strace
@pytest.mark.slow
def test_a_pass_that_syncs_nothing_does_not_get_through(ram, store):
    """Or the test above would prove nothing."""
    expected, root, made = recorded(ram, "careless")
    assert not any(call.what == "sync" for call in made)
    wrong = 0
    for _ in cuts(root, made, store, 40):
        try:
            chaos.committed_rows(store, expected, "deep")
        except (AssertionError, SamtlError):
            wrong += 1
    assert wrong > 0
