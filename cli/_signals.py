"""Ctrl-C and SIGTERM as a polite request: the first lets the block in flight end, the second stops at once."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Whether somebody asked the pass to end; call it to know.

    Attributes
    ----------
    exit_code : int
        128 and the signal's number, as shells have it; 130 for Ctrl-C.
    """

    def __init__(self) -> None:
        self.exit_code = 0

    def __call__(self) -> bool:
        """Tell whether a signal came."""
        return self.exit_code != 0


@contextmanager
def polite_stop(announce: Callable[[], None]) -> Iterator[StopRequest]:
    """Turn the first SIGINT or SIGTERM into a request, and the next into KeyboardInterrupt.

    Parameters
    ----------
    announce : callable
        Called when the first one comes.
    """
    request = StopRequest()

    def handle(number: int, frame: FrameType | None) -> None:
        if request():
            raise KeyboardInterrupt
        request.exit_code = 128 + number
        announce()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
