"""Work done ahead of whoever takes its results: in threads, in order, and not without bound."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def ahead(
    work: Callable[[_Item], _Result], items: Iterable[_Item], workers: int = 1, depth: int = 2
) -> Generator[_Result, None, None]:
    """Map over items in order, in threads.

    Parameters
    ----------
    work : callable
        An exception that it raises reaches whoever takes the result.
    items : iterable
    workers : int
        Threads.
    depth : int
        Results that are in work or waiting before the first is taken; from then on one less, so that with 2 the next
        one is made while the last is in use.
    """
    coming = iter(items)
    with ThreadPoolExecutor(workers, thread_name_prefix="ahead") as pool:
        waiting = deque(pool.submit(work, item) for item in itertools.islice(coming, depth))
        try:
            while waiting:
                yield waiting.popleft().result()
                waiting.extend(pool.submit(work, item) for item in itertools.islice(coming, 1))
        finally:
            for future in waiting:
                future.cancel()
