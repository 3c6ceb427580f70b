"""Batches in a fixed number of parts, each computed in one thread, so that results do not depend on how many there are.

The last digits of a sum over a batch, such as the gradient of a weight, depend on how many threads share it, and
training amplifies the difference. Here the number of parts follows from the batch alone, and sums over parts are taken
in one order; the number of threads that torch may use only decides how many parts are computed at the same time.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

PARTS = 4  # more cost a single thread more than a tenth, because each sums gradients by itself
SMALL = 2**18  # values in a batch below which a part is not worth a thread

Result = TypeVar("Result")
_here = threading.local()  # what the current thread computes
_one_batch = threading.Lock()  # the parts of a batch wait for each other, so all of them must run


class _Batch:
    """Parts that are computed together, as many at the same time as there are threads to use."""

    def __init__(self, parts: int, threads: int) -> None:
        self.turn = threading.Semaphore(min(parts, threads))
        self.values: list[Any] = [None] * parts
        self.exchanged: list[Any] = []
        self.barrier = threading.Barrier(parts, self._publish)

    def _publish(self) -> None:
        self.exchanged = list(self.values)

    def compute(self, index: int, work: Callable[..., Result], *arguments: Any) -> Result:
        _here.batch, _here.index = self, index
        try:
            with self.turn:
                return work(*arguments)
        except BaseException:
            self.barrier.abort()
            raise
        finally:
            _here.batch = None


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute in one thread within a `with` block, except for parts."""
    before, outer = torch.get_num_threads(), getattr(_here, "threads", None)
    _here.threads = outer or before
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        _here.threads = outer


def split(batch: Tensor) -> Sequence[Tensor]:
    """Divide a batch along its first axis into at most `PARTS`; small ones are not divided."""
    count = min(PARTS, len(batch), batch.numel() // SMALL)
    return torch.tensor_split(batch, max(count, 1))


def each(work: Callable[..., Result], *columns: Sequence[Any]) -> list[Result]:
    """Map `work` over sequences of one length, each call in one thread, up to `PARTS` of them together.

    What torch keeps for each thread, such as `no_grad`, is not handed on: `work` sets it.
    """
    calls = list(zip(*columns, strict=True))
    threads = getattr(_here, "threads", None) or torch.get_num_threads()
    if len(calls) == 1:
        with one_thread():
            return [work(*calls[0])]
    found: list[Result] = []
    for start in range(0, len(calls), PARTS):
        some = calls[start : start + PARTS]
        batch = _Batch(len(some), threads)
        with _one_batch:
            pool = _pool()
            running = [pool.submit(batch.compute, i, work, *call) for i, call in enumerate(some)]
            wait(running)
        errors = [error for future in running if (error := future.exception())]
        for error in sorted(errors, key=lambda e: isinstance(e, threading.BrokenBarrierError)):
            raise error
        found += [future.result() for future in running]
    return found


def exchange(value: Any) -> list[Any]:
    """Return the values of all parts of the batch, in their order; every part must call it.

    Outside of a part, it returns the value alone.
    """
    batch = getattr(_here, "batch", None)
    if batch is None:
        return [value]
    batch.values[_here.index] = value
    batch.turn.release()
    try:
        batch.barrier.wait()
    finally:
        batch.turn.acquire()
    return list(batch.exchanged)


def position() -> int | None:
    """Return which part of a batch the current thread computes; None if it computes no part."""
    return _here.index if getattr(_here, "batch", None) else None


@functools.cache
def _pool() -> ThreadPoolExecutor:
    together = threading.Barrier(PARTS)

    def begin() -> None:
        torch.set_num_threads(1)
        together.wait()

    pool = ThreadPoolExecutor(PARTS, "part", begin)
    wait([pool.submit(together.wait) for _ in range(PARTS)])
    torch.set_num_threads(torch.get_num_threads())  # new threads begin with what was set last
    return pool
