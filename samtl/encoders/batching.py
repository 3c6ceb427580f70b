"""How many images at a time a device is fastest with."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from samtl._runtime import out_of_memory

SIZES = (1, 2, 4, 8, 16, 32, 64)
WORTH = 1.03  # how much faster twice as many must be to be taken
SECONDS = 0.3  # that a measurement takes at least


def knee(rate: Callable[[int], float], sizes: Sequence[int] = SIZES) -> int:
    """Find the number from which on more images at a time are no faster, or do not fit.

    Parameters
    ----------
    rate : callable
        Measures images a second with so many at a time.
    sizes : sequence of int
        To be tried, from the smallest on.

    Raises
    ------
    RuntimeError
        Where not even the smallest fits.
    """
    best, at = 0.0, sizes[0]
    for size in sizes:
        try:
            found = rate(size)
        except RuntimeError as error:
            if not out_of_memory(error) or size == sizes[0]:
                raise
            break
        if found < WORTH * best:
            break
        best, at = found, size
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # what the attempts with more have left
    return at


def rate_of(work: Callable[[], object], images: int, device: torch.device) -> float:
    """Measure images a second, for at least `SECONDS` after a first call that warms up."""
    work()
    done, began = 0, now(device)
    while True:
        work()
        done += images
        seconds = now(device) - began
        if seconds >= SECONDS:
            return done / seconds


def now(device: torch.device) -> float:
    """Read the clock when a device is through with what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()
