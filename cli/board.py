"""The grid of a sweep as it fills up: a live table on a terminal, a line now and then in a log."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from samtl._runtime import Note

from . import render

if TYPE_CHECKING:
    from samtl.sweep.api import Progress
    from samtl.sweep.worker import Cell

HEADLINES = {"iou": "IoU", "accuracy": "accuracy"}  # segmentation has both
_RUNNING_SHOWN = 3  # cells whose last event is shown
_FINISHED = ("done", "skipped")
_EPOCH = re.compile(r"epoch (\d+) of (\d+)")
_LEAST_DONE = 0.03  # of the work, before the time left is estimated


class Board:
    """Follows a sweep; `tell` takes its events.

    Parameters
    ----------
    console : Console, optional
        By default that of standard error.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or render.err
        self.cells: dict[int, Cell] = {}
        self._state: dict[int, str] = {}
        self._running: dict[int, str] = {}  # the last event of each cell that is running
        self._scores: dict[int, float] = {}
        self._headline = ""
        self._began = self._last_line = time.monotonic()
        self._lock = threading.Lock()  # the table is drawn by a thread of its own
        self._live: Live | None = None
        if self.console.is_terminal and not self.console.is_dumb_terminal:
            self._live = Live(
                get_renderable=self._draw,
                console=self.console,
                refresh_per_second=2,
                transient=True,
            )

    def __enter__(self) -> Board:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    @property
    def finished(self) -> int:
        """How many cells are done, now or before."""
        return sum(state in _FINISHED for state in self._state.values())

    def tell(self, event: Progress | Note) -> None:
        """Record an event, and print it if it must be seen."""
        if isinstance(event, Note):
            self._line(str(event), "yellow")
            return
        cell, number = event.cell, event.cell.number
        with self._lock:
            self.cells[number] = cell
            self._state[number] = "running" if event.what in ("started", "event") else event.what
            self._running.pop(number, None)
            if self._state[number] == "running":
                self._running[number] = event.text
            for name in HEADLINES:
                if event.figures and name in event.figures:
                    self._headline = name
                    self._scores[number] = event.figures[name]
                    break
        ended = f"{self.finished + self._count('failed')}/{len(self.cells)} {_named(cell)}"
        if event.what == "failed":
            self._line(f"{ended}: failed: {event.text}", "red")
        elif self._live is None and event.what == "done":
            score = self._scores.get(number)
            text = f": {HEADLINES[self._headline]} {score:.1%}" if score is not None else ""
            self._line(f"{ended}{text}")
        elif (
            event.what == "event"
            and time.monotonic() - self._last_line > render.SECONDS_BETWEEN_LINES
        ):
            self._last_line = time.monotonic()
            if self._live is None:
                self._line(f"{self._status()}; {_named(cell)}: {event.text}")

    def _line(self, text: str, style: str = "") -> None:
        self.console.print(Text(text, style=style), soft_wrap=True)

    def _count(self, state: str) -> int:
        return Counter(self._state.values())[state]

    def _status(self) -> str:
        parts = [f"{self.finished}/{len(self.cells)} cells"]
        parts += [f"{n} {state}" for state in ("failed", "running") if (n := self._count(state))]
        parts.append(render.duration(time.monotonic() - self._began))
        if left := self._seconds_left():
            parts.append(f"about {render.duration(left)} left")
        return ", ".join(parts)

    def _seconds_left(self) -> float | None:
        """Estimate the time left from how long the work so far took; None if too little is done."""
        from samtl.sweep.api import cost

        work = done = 0.0
        for number, cell in self.cells.items():
            state = self._state[number]
            if state in ("skipped", "failed"):  # a failure may take no time at all
                continue
            share = cost([cell])
            work += share
            if state == "done":
                done += share
            elif found := _EPOCH.match(self._running.get(number, "")):
                done += share * (int(found[1]) - 1) / int(found[2])
        if not work or not _LEAST_DONE < done / work < 1:
            return None
        return (time.monotonic() - self._began) * (work - done) / done

    def _draw(self) -> RenderableType:
        with self._lock:
            if not self.cells:
                return Text("planning", style="dim")
            lines = [
                self._cut(f"* {_named(self.cells[number])}: {text}")
                for number, text in list(self._running.items())[-_RUNNING_SHOWN:]
            ]
            height = self.console.height - len(lines) - 4
            return Group(self._table(max(height, 1)), self._cut(self._status(), "bold"), *lines)

    def _cut(self, text: str, style: str = "") -> Text:
        line = Text(text, style, no_wrap=True)
        line.truncate(self.console.width - 1, overflow="ellipsis")
        return line

    def _table(self, height: int) -> RenderableType:
        """Draw a row for each model and a column for each split; one column if the splits do not fit."""
        places: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        splits = list(dict.fromkeys(cell.split for cell in self.cells.values()))
        wide = sum(max(len(split), 5) + 2 for split in splits) + 32 > self.console.width
        for number, cell in sorted(self.cells.items()):
            features = f" on {cell.features}" if cell.features else ""
            model = f"{cell.name}{features}, {Path(cell.store).name.removesuffix('.zarr')}"
            places[model.removesuffix(", ")][
                f"{len(splits)} splits" if wide else cell.split
            ].append(number)
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        table.add_column("", max_width=30, no_wrap=True, overflow="ellipsis")
        columns = list(dict.fromkeys(column for found in places.values() for column in found))
        for column in columns:
            table.add_column(Text(column), justify="right", no_wrap=True)
        for model in list(places)[:height]:
            table.add_row(Text(model), *(self._place(places[model].get(c, [])) for c in columns))
        return table

    def _place(self, numbers: Sequence[int]) -> Text:
        """Write the mean score of a model on a split once all seeds are done, else how many are."""
        states = [self._state[number] for number in numbers]
        scores = [self._scores[number] for number in numbers if number in self._scores]
        done = sum(state in _FINISHED for state in states)
        if numbers and done == len(numbers):
            mean = f"{100 * sum(scores) / len(scores):.1f}" if scores else f"{done}/{done}"
            return Text(mean, style="green")
        mark, style = (
            ("!", "red")
            if "failed" in states
            else ("*", "cyan")
            if "running" in states
            else ("", "dim")
        )
        return Text(f"{mark}{done}/{len(numbers)}" if numbers else "", style=style)


def _named(cell: Cell) -> str:
    features = f" on {cell.features}" if cell.features else ""
    return f"{cell.name}{features}, split {cell.split}, seed {cell.seed}"
