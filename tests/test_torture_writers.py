"""Passes killed at random, and writers that do not know of each other: no row is wrong, none is lost, none twice."""

import contextlib
import os
import random
import shutil
import signal
import time

import pytest
from chaos import (
    ALL,
    BATCH,
    BLOCK,
    ROWS,
    Machine,
    committed_rows,
    once_each,
    require_whole,
)

from samtl.store.reader import open_store

KILLS, MEETINGS = (500, 200) if ALL else (6, 4)
WRITERS, BLOCKS = 8, 40
CROWD_KILLS, STORES = (200, 10) if ALL else (10, 1)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def machines(tmp_path_factory):
    with (
        Machine(tmp_path_factory.mktemp("one")) as one,
        Machine(tmp_path_factory.mktemp("two")) as two,
    ):
        yield one, two


@pytest.fixture(scope="module")
def whole(machines, tmp_path_factory):
    """What an uninterrupted pass gives, and how long it takes."""
    folder = tmp_path_factory.mktemp("whole")
    for out in (folder / "a.zarr", folder / "b.zarr"):  # the first waits for all that is imported
        began = time.monotonic()
        assert machines[0].embed(out).code == 0
    return out, time.monotonic() - began


def tell(pid, what):
    """Send a signal to a process that may have ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, what)


def test_chains_of_kills(machines, whole, tmp_path, record_property):
    expected, seconds = open_store(whole[0]), whole[1]
    chance, kills, stores = random.Random(0), 0, 0
    while kills < KILLS:
        store = tmp_path / f"{stores}.zarr"
        stores += 1
        had = 0
        while had < ROWS:
            pid = machines[0].begin(store)
            time.sleep(chance.random() * seconds * 0.8)
            tell(pid, signal.SIGKILL)
            done = machines[0].end()
            kills += done.code < 0
            assert done.code in (0, -9), done.told
            now = committed_rows(store, expected)
            assert now >= had
            assert done.encoded - (now - had) <= BLOCK + BATCH
            had = now
            if chance.random() < 0.2:
                break
        assert machines[0].embed(store).code == 0
        require_whole(store, expected)
        shutil.rmtree(store)
    record_property("points", kills)


def test_two_writers_meet(machines, whole, tmp_path, record_property):
    """Neither is refused, and of what both encode at the same time one counts."""
    expected, seconds = open_store(whole[0]), whole[1]
    chance, met = random.Random(1), 0
    for turn in range(MEETINGS):
        store = tmp_path / f"{turn}.zarr"
        machines[0].begin(store)
        time.sleep(chance.random() * seconds * 0.6)
        machines[1].begin(store)
        ends = [machine.end() for machine in machines]
        assert [done.code for done in ends] == [0, 0], [done.told for done in ends]
        met += all(done.encoded for done in ends)
        require_whole(store, expected)
        assert once_each(store) == ROWS // BLOCK
        shutil.rmtree(store)
    record_property("points", met)
    assert met >= MEETINGS // 4


def test_a_writer_that_sleeps_through_another(machines, whole, tmp_path, record_property):
    """It is stopped anywhere, the other comes to the end, and it is woken."""
    expected, seconds = open_store(whole[0]), whole[1]
    chance, overtaken = random.Random(2), 0
    for turn in range(MEETINGS):
        store = tmp_path / f"{turn}.zarr"
        pid = machines[0].begin(store)
        time.sleep(chance.random() * seconds * 0.6)
        tell(pid, signal.SIGSTOP)
        second = machines[1].embed(store)
        tell(pid, signal.SIGCONT)
        first = machines[0].end()
        assert (first.code, second.code) == (0, 0), (first.told, second.told)
        overtaken += first.encoded > 0
        require_whole(store, expected)
        assert once_each(store) == ROWS // BLOCK
        shutil.rmtree(store)
    record_property("points", overtaken)


def test_a_crowd_of_writers_and_some_are_killed(machines, tmp_path, record_property):
    """Eight start at once on forty blocks: every block is committed once, no row is wrong, no lock is left."""
    rows = BLOCKS * BLOCK
    out = tmp_path / "whole.zarr"
    machines[0].begin(out, rows=rows)
    assert machines[0].end().code == 0
    expected, killed, wasted = open_store(out), 0, 0
    for seed in range(STORES):
        store = tmp_path / f"{seed}.zarr"
        codes, kills, done = machines[0].crowd(store, WRITERS, rows, CROWD_KILLS // STORES, seed)
        assert set(codes) <= {0, -9}, done.told
        assert codes.count(0) == WRITERS
        require_whole(store, expected)
        assert once_each(store) == BLOCKS
        killed, wasted = killed + kills, wasted + done.encoded - rows
        shutil.rmtree(store)
    record_property("points", f"{killed} kills, {wasted} images encoded more than once, at")
    assert killed >= CROWD_KILLS
