"""Passes killed at random, and writers that meet: no row is wrong, none is lost, none is done twice for nothing."""

import contextlib
import os
import random
import shutil
import signal
import time

import numpy as np
import pytest
from chaos import BATCH, ROWS, Machine
from stubs import everything

from samtl.store import durable
from samtl.store.fingerprint import FILE
from samtl.store.layout import BLOCK_ROWS
from samtl.store.reader import open_store
from samtl.store.verify import check

ALL = bool(os.environ.get("SAMTL_TORTURE"))
KILLS, MEETINGS = (500, 200) if ALL else (12, 6)

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


def committed(store, expected):
    if not (store / FILE).exists() or not (store / "rows" / "0.json").exists():
        return 0
    opened = open_store(store)
    there = np.flatnonzero(opened.valid())
    for name in opened.arrays:
        np.testing.assert_array_equal(opened.read(name, there), expected.read(name)[there])
    assert check(store).findings == []
    return len(there)


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
            now = committed(store, expected)
            assert now >= had
            assert done.encoded - (now - had) <= BLOCK_ROWS + BATCH
            had = now
            if chance.random() < 0.2:
                break
        assert machines[0].embed(store).code == 0
        assert everything(open_store(store)) == everything(expected)
        assert not list(store.rglob(f"{durable.TEMPORARY}*"))
        shutil.rmtree(store)
    record_property("points", kills)


def test_of_two_writers_one_wins(machines, whole, tmp_path, record_property):
    expected, seconds = open_store(whole[0]), whole[1]
    chance, met = random.Random(1), 0
    for turn in range(MEETINGS):
        store = tmp_path / f"{turn}.zarr"
        machines[0].begin(store)
        time.sleep(chance.random() * seconds * 0.6)
        machines[1].begin(store)
        ends = [machine.end() for machine in machines]
        assert {done.code for done in ends} <= {0, 4}, [done.told for done in ends]
        assert any(done.code == 0 for done in ends)
        for done in ends:
            if done.code == 4:
                met += 1
                assert "process" in done.told
                assert done.encoded == 0
        assert sum(done.encoded for done in ends) == ROWS
        assert everything(open_store(store)) == everything(expected)
        shutil.rmtree(store)
    record_property("points", met)
    assert met > MEETINGS // 4


def test_a_writer_that_sleeps_through_another(whole, tmp_path, record_property):
    """On a drive that ignores locks: it is stopped, the other comes to the end, and it is woken."""
    expected, seconds = open_store(whole[0]), whole[1]
    chance, overtaken = random.Random(2), 0
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    with (
        Machine(tmp_path / "one", locks=False) as one,
        Machine(tmp_path / "two", locks=False) as two,
    ):
        for turn in range(MEETINGS):
            store = tmp_path / f"{turn}.zarr"
            pid = one.begin(store)
            time.sleep(chance.random() * seconds * 0.6)
            tell(pid, signal.SIGSTOP)
            second = two.embed(store)
            tell(pid, signal.SIGCONT)
            first = one.end()
            # The second may meet a shard that the first published; then it is the one that stops.
            assert {first.code, second.code} <= {0, 4}, (first.told, second.told)
            overtaken += 4 in (first.code, second.code)
            committed(store, expected)
            assert two.embed(store).code == 0
            assert everything(open_store(store)) == everything(expected)
            assert check(store, "deep").findings == []
            shutil.rmtree(store)
    record_property("points", overtaken)
