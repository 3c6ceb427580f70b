"""Ctrl-C and SIGTERM: as a polite request, which lets the block in flight end, or as a stop at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from samtl.errors import EXIT_INTERRUPTED


class StopNow(BaseException):
    """Stop without waiting. Not a KeyboardInterrupt, which Typer would swallow without a word.

    Attributes
    ----------
    exit_code : int
        As of `StopRequest`.
    """

    def __init__(self, exit_code: int = EXIT_INTERRUPTED) -> None:
        super().__init__()
        self.exit_code = exit_code


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
def polite_stop(announcement: str) -> Iterator[StopRequest]:
    """Turn the first SIGINT or SIGTERM into a request, and the next into StopNow.

    Parameters
    ----------
    announcement : str
        Written to standard error when the first one comes.
    """
    request = StopRequest()

    def handle(number: int, frame: FrameType | None) -> None:
        if request():
            raise StopNow
        request.exit_code = 128 + number
        # Straight to the descriptor: a handler may run in the middle of another write to the stream.
        os.write(2, f"\n{announcement}\n".encode())

    with _handled_by(handle):
        yield request


@contextmanager
def stop_at_once() -> Iterator[None]:
    """Turn each SIGINT or SIGTERM into StopNow: for work that loses little by it."""

    def handle(number: int, frame: FrameType | None) -> None:
        raise StopNow(128 + number)

    with _handled_by(handle):
        yield


@contextmanager
def _handled_by(handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
