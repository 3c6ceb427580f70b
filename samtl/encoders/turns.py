"""Threads that share a device, or have it to themselves for a moment."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Turns:
    """Several threads at the same time, or one alone."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._together, self._alone = 0, False

    @contextmanager
    def together(self) -> Iterator[None]:
        """Work in this `with` block beside others that do."""
        with self._changed:
            self._changed.wait_for(lambda: not self._alone)
            self._together += 1
        try:
            yield
        finally:
            with self._changed:
                self._together -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Work in this `with` block when nobody else does, and keep others waiting."""
        with self._changed:
            self._changed.wait_for(lambda: not self._alone)
            self._alone = True
            self._changed.wait_for(lambda: not self._together)
        try:
            yield
        finally:
            with self._changed:
                self._alone = False
                self._changed.notify_all()
