"""Results come in order, ahead of whoever takes them but not without bound, and threads end with the taking."""

import random
import threading
import time

import pytest

from samtl._runtime import ahead


@pytest.mark.parametrize("workers", [1, 3])
def test_results_come_in_order_and_not_without_bound(workers):
    def work(row):
        started.append(row)
        time.sleep(random.Random(row).uniform(0, 0.005))
        return row

    started, depth = [], 6
    results = ahead(work, iter(range(50)), workers, depth)
    for row, given in enumerate(results):
        assert given == row
        assert len(started) <= row + 1 + depth
    assert sorted(started) == list(range(50))


def test_the_threads_end_when_nobody_takes_any_more():
    before = threading.active_count()
    results = ahead(lambda row: row, iter(range(10**6)), 3, 6)
    assert next(results) == 0
    assert threading.active_count() > before
    results.close()
    assert threading.active_count() == before


def test_reading_keeps_one_ahead():
    loaded = []

    def load(window):
        loaded.append(window)
        return -window

    given = []
    for value in ahead(load, range(6)):
        given.append(value)
        assert len(loaded) <= len(given) + 1
    assert given == [0, -1, -2, -3, -4, -5]


def test_an_error_reaches_whoever_takes_the_result():
    def work(item):
        if item == 2:
            raise ValueError("no two")
        return item

    results = ahead(work, range(5))
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="no two"):
        next(results)
