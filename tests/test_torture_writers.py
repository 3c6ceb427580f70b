"""Passes killed at random, and writers that do not know of each other: no row is wrong, none is lost, none twice."""

import random
import shutil
import signal
import time

import pytest
from chaos import ALL, BATCH, BLOCK, ROWS, Pass, committed_rows, crowd, require_whole

from samtl.store.reader import open_store

KILLS, MEETINGS = (500, 200) if ALL else (6, 4)
WRITERS, CROWD_ROWS = 8, 640
CROWD_KILLS, STORES = (200, 10) if ALL else (10, 1)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def whole(ram):
    """What an uninterrupted pass gives, and how long it takes."""
    for out in (ram / "first.zarr", ram / "whole.zarr"):  # the first waits for all that is imported
        began = time.monotonic()
        assert Pass(out).end().code == 0
    return open_store(out), time.monotonic() - began


def test_chains_of_kills(whole, ram, record_property):
    expected, seconds = whole
    chance, kills, store = random.Random(0), 0, ram / "a.zarr"
    while kills < KILLS:
        had = 0
        while had < ROWS:
            one = Pass(store)
            time.sleep(chance.random() * seconds * 0.8)
            one.tell(signal.SIGKILL)
            assert one.end().code in (0, -9), one.told
            kills += one.code < 0
            now = committed_rows(store, expected)
            assert now >= had
            assert one.encoded - (now - had) <= BLOCK + BATCH
            had = now
            if chance.random() < 0.2:
                break
        assert Pass(store).end().code == 0
        require_whole(store, expected)
        shutil.rmtree(store)
    record_property("points", kills)


@pytest.mark.parametrize("sleeps", [False, True])
def test_two_writers_meet(whole, ram, record_property, sleeps):
    """Neither is refused, and of what both encode one counts; the first may sleep until the other has ended."""
    expected, seconds = whole
    chance, met, store = random.Random(sleeps), 0, ram / "a.zarr"
    for _ in range(MEETINGS):
        first = Pass(store, seconds=0.005)
        time.sleep(chance.random() * seconds * 0.8)
        if sleeps:
            first.tell(signal.SIGSTOP)
        second = Pass(store).end() if sleeps else Pass(store)
        first.tell(signal.SIGCONT)
        ends = [first.end(), second if sleeps else second.end()]
        assert [one.code for one in ends] == [0, 0], [one.told for one in ends]
        met += all(one.encoded for one in ends)
        require_whole(store, expected)
        shutil.rmtree(store)
    record_property("points", met)
    assert met >= MEETINGS // 4 or sleeps


def test_a_crowd_of_writers_and_some_are_killed(ram, record_property):
    """Eight start at once on forty blocks: every block is committed once, and no row is wrong."""
    out = ram / "crowd.zarr"
    assert Pass(out, rows=CROWD_ROWS).end().code == 0
    expected, wasted, kills = open_store(out), 0, CROWD_KILLS // STORES
    for seed in range(STORES):
        store = ram / "a.zarr"
        ended, encoded = crowd(store, WRITERS, CROWD_ROWS, kills, random.Random(seed))
        assert [one.code for one in ended] == [0] * WRITERS, [one.told for one in ended]
        require_whole(store, expected)
        wasted += encoded - CROWD_ROWS
        shutil.rmtree(store)
    record_property("points", f"{CROWD_KILLS} kills, {wasted} images encoded more than once, at")
