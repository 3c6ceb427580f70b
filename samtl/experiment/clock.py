"""The stages of a fit: announced as they begin, and timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from samtl._runtime import Note
from samtl.heads.base import Candidate, Epoch

_DOING = {
    "read": "reading the features",
    "fit": "training",
    "score": "scoring the held-out samples",
    "floor": "fitting the floor",
    "write": "writing the run",
}


@dataclass(frozen=True)
class Stage:
    """A part of the work begins: `read`, `fit`, `score`, `floor` or `write`."""

    name: str

    def __str__(self) -> str:
        return _DOING[self.name]


OnEvent = Callable[[Stage | Epoch | Candidate | Note], None]


class Clock:
    """Times the stages of one fit, which may take turns with others."""

    def __init__(self, on_event: OnEvent | None = None) -> None:
        self.on_event: OnEvent = on_event or (lambda event: None)
        self.seconds: dict[str, float] = {}
        self._stage, self._since = "", 0.0

    def start(self, stage: str) -> None:
        """End the current stage and begin another; nothing happens if it goes on."""
        if stage != self._stage:
            self.stop()
            self._stage, self._since = stage, time.perf_counter()
            self.on_event(Stage(stage))

    def add(self, stage: str, seconds: float) -> None:
        """Add time to a stage that was spent elsewhere."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    @contextmanager
    def spending(self, stage: str) -> Iterator[None]:
        """Add the time of a `with` block to a stage, without an event."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - began)

    def stop(self) -> dict[str, float]:
        """End the current stage and return the seconds of each, and their sum as `total`."""
        if self._stage:
            self.add(self._stage, time.perf_counter() - self._since)
            self._stage = ""
        return {**self.seconds, "total": sum(self.seconds.values())}
