"""The grid of a sweep as it fills up: a live table on a terminal, a line now and then in a log."""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from samtl._runtime import Note

from . import render

if TYPE_CHECKING:
    from samtl.sweep.api import Progress
    from samtl.sweep.plan import Cell

HEADLINES = {"iou": "IoU", "accuracy": "accuracy"}  # segmentation has both
_RUNNING_SHOWN = 3  # cells whose last event is shown
_MARKS = {"failed": ("!", "red"), "running": ("*", "cyan")}
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
        self.terminal = self.console.is_terminal and not self.console.is_dumb_terminal
        self.cells: dict[int, Cell] = {}
        self._state: dict[int, str] = {}
        self._running: dict[int, str] = {}  # the last event of each cell that is running
        self._scores: dict[int, float] = {}
        self._began = self._last_line = time.monotonic()
        self._lock = threading.Lock()  # the table is drawn by a thread of its own

    def live(self) -> AbstractContextManager[object]:
        """Draw the table, if this is a terminal, within a `with` block."""
        if not self.terminal:
            return nullcontext()
        return Live(
            get_renderable=self._draw, console=self.console, refresh_per_second=2, transient=True
        )

    @property
    def finished(self) -> int:
        """How many cells are done, now or before."""
        return sum(state in ("done", "skipped") for state in self._state.values())

    def tell(self, event: Progress | Note) -> None:
        """Record an event, and print it if it must be seen."""
        if isinstance(event, Note):
            render.say(event, "yellow", self.console)
            return
        cell, number, figures = event.cell, event.cell.number, event.figures or {}
        headline = next((name for name in HEADLINES if name in figures), "")
        with self._lock:
            self.cells[number] = cell
            self._state[number] = "running" if event.what in ("started", "event") else event.what
            self._running.pop(number, None)
            if self._state[number] == "running":
                self._running[number] = event.text
            if headline:
                self._scores[number] = figures[headline]
        count = Counter(self._state.values())
        ended = f"{self.finished + count['failed']}/{len(self.cells)} {_named(cell)}"
        late = time.monotonic() - self._last_line > render.SECONDS_BETWEEN_LINES
        if event.what == "failed":
            render.say(f"{ended}: failed: {event.text}", "red", self.console)
        elif self.terminal:
            return
        elif event.what == "done":
            score = f": {HEADLINES[headline]} {figures[headline]:.1%}" if headline else ""
            render.say(f"{ended}{score}", console=self.console)
        elif event.what == "event" and late:
            self._last_line = time.monotonic()
            render.say(f"{self._status()}; {_named(cell)}: {event.text}", console=self.console)

    def _status(self) -> str:
        from samtl.sweep.plan import cost

        count, elapsed = Counter(self._state.values()), time.monotonic() - self._began
        parts = [f"{self.finished}/{len(self.cells)} cells"]
        parts += [f"{count[state]} {state}" for state in _MARKS if count[state]]
        parts.append(render.duration(elapsed))
        work: dict[str, float] = defaultdict(float)
        for number, cell in self.cells.items():
            work[self._state[number]] += cost([cell])
        # What was finished before took no time, and a failed cell may not have either.
        share = work["done"] / (work["done"] + work["planned"] + work["running"] or 1)
        if _LEAST_DONE < share < 1:
            parts.append(f"about {render.duration(elapsed * (1 - share) / share)} left")
        return ", ".join(parts)

    def _draw(self) -> RenderableType:
        with self._lock:
            if not self.cells:
                return Text("planning", style="dim")
            lines = [
                Text(f"* {_named(self.cells[number])}: {text}", no_wrap=True, overflow="ellipsis")
                for number, text in list(self._running.items())[-_RUNNING_SHOWN:]
            ]
            status = Text(self._status(), "bold", no_wrap=True, overflow="ellipsis")
            return Group(self._table(max(self.console.height - len(lines) - 4, 1)), status, *lines)

    def _table(self, height: int) -> RenderableType:
        """Draw a row for each model and a column for each split; one column if the splits do not fit."""
        splits = list(dict.fromkeys(cell.split for cell in self.cells.values()))
        if sum(max(len(split), 5) + 2 for split in splits) + 32 > self.console.width:
            splits = [f"{len(splits)} splits"]
        places: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        for number, cell in sorted(self.cells.items()):
            store = f", {Path(cell.store).name.removesuffix('.zarr')}" if cell.store else ""
            column = cell.split if cell.split in splits else splits[0]
            places[_model(cell) + store][column].append(number)
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        table.add_column("", max_width=30, no_wrap=True, overflow="ellipsis")
        for split in splits:
            table.add_column(Text(split), justify="right", no_wrap=True)
        for model in list(places)[:height]:
            table.add_row(Text(model), *(self._place(places[model][split]) for split in splits))
        return table

    def _place(self, numbers: list[int]) -> Text:
        """Write the mean score of a model on a split once all seeds are done, else how many are."""
        states = [self._state[number] for number in numbers]
        scores = [self._scores[number] for number in numbers if number in self._scores]
        if not numbers:
            return Text("")
        if len(scores) == len(numbers):
            return Text(f"{100 * sum(scores) / len(scores):.1f}", style="green")
        mark, style = next((_MARKS[state] for state in _MARKS if state in states), ("", "dim"))
        return Text(f"{mark}{len(scores)}/{len(numbers)}", style=style)


def _model(cell: Cell) -> str:
    return f"{cell.name} on {cell.features}" if cell.features else cell.name


def _named(cell: Cell) -> str:
    return f"{_model(cell)}, split {cell.split}, seed {cell.seed}"
