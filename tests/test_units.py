"""Bytes and seconds in words."""

import pytest

from samtl._runtime import duration, size


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (0.0004, "0 s"),
        (0.25, "0.25 s"),
        (9.9, "9.9 s"),
        (9.99, "10 s"),
        (59.6, "1 min"),
        (61, "1 min 1 s"),
        (7200, "2 h"),
        (3700, "1 h 1 min"),
    ],
)
def test_durations(seconds, words):
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (3.4 * 2**30, "3.4 GiB"),
        (2**40, "1.00 TiB"),
    ],
)
def test_sizes(count, words):
    assert size(count) == words
