"""The knee of a curve, and a clock; how fast anything is is no matter of a test."""

import time

import pytest
import torch

from samtl.encoders.batching import (
    SECONDS,
    SIZES,
    knee,
    rate_of,
)


def faster_up_to(most, tried, fits=10**6):
    def rate(size):
        tried.append(size)
        if size > fits:
            raise torch.OutOfMemoryError("no room")
        return 100.0 * min(size, most)

    return rate


@pytest.mark.parametrize("most", SIZES)
def test_the_knee_is_where_more_is_no_faster(most):
    tried = []
    assert knee(faster_up_to(most, tried)) == most
    assert tried == [size for size in SIZES if size <= 2 * most]


@pytest.mark.parametrize("fits", [1, 5, 63])
def test_what_does_not_fit_is_not_taken(fits):
    assert knee(faster_up_to(64, [], fits)) == max(size for size in SIZES if size <= fits)


def test_a_gain_of_a_hundredth_is_none():
    assert knee(lambda size: 100 + size / 100) == 1


def test_one_that_does_not_fit_and_defects_are_raised():
    with pytest.raises(torch.OutOfMemoryError):
        knee(faster_up_to(64, [], 0))

    def broken(size):
        raise RuntimeError("a defect")

    with pytest.raises(RuntimeError, match="a defect"):
        knee(broken)


def test_the_rate_is_images_by_time_and_does_not_count_the_first_call():
    calls = []

    def work():
        calls.append(time.perf_counter())
        time.sleep(0.5 if len(calls) == 1 else 0.02)

    rate = rate_of(work, 4, torch.device("cpu"))
    assert len(calls) > 2
    seconds = time.perf_counter() - calls[1]
    assert seconds >= SECONDS
    assert rate == pytest.approx(4 * (len(calls) - 1) / seconds, rel=0.05)
