"""The grid of a sweep as it fills up: a live table on a terminal, a line now and then in a log."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
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
_FINISHED = ("done", "skipped")
_STYLES = {"failed": ("!", "red"), "running": ("*", "cyan")}
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
        self.terminal = self.console.is_terminal and not self.console.is_dumb_terminal
        self.cells: dict[int, Cell] = {}
        self._state: dict[int, str] = {}
        self._running: dict[int, str] = {}  # the last event of each cell that is running
        self._scores: dict[int, float] = {}
        self._headline = ""
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
        return sum(state in _FINISHED for state in self._state.values())

    def tell(self, event: Progress | Note) -> None:
        """Record an event, and print it if it must be seen."""
        if isinstance(event, Note):
            render.say(str(event), "yellow", self.console)
            return
        cell, number = event.cell, event.cell.number
        with self._lock:
            self.cells[number] = cell
            self._state[number] = "running" if event.what in ("started", "event") else event.what
            self._running.pop(number, None)
            if self._state[number] == "running":
                self._running[number] = event.text
            name = next((name for name in HEADLINES if name in (event.figures or {})), "")
            if event.figures and name:
                self._headline, self._scores[number] = name, event.figures[name]
        ended = f"{self.finished + self._count('failed')}/{len(self.cells)} {_named(cell)}"
        now = time.monotonic()
        if event.what == "failed":
            render.say(f"{ended}: failed: {event.text}", "red", self.console)
        elif event.what == "done" and not self.terminal:
            score = self._scores.get(number)
            text = f": {HEADLINES[self._headline]} {score:.1%}" if score is not None else ""
            render.say(f"{ended}{text}", console=self.console)
        elif (
            event.what == "event"
            and not self.terminal
            and now - self._last_line > render.SECONDS_BETWEEN_LINES
        ):
            self._last_line = now
            render.say(f"{self._status()}; {_named(cell)}: {event.text}", console=self.console)

    def _count(self, state: str) -> int:
        return Counter(self._state.values())[state]

    def _status(self) -> str:
        elapsed = time.monotonic() - self._began
        parts = [f"{self.finished}/{len(self.cells)} cells"]
        parts += [f"{n} {state}" for state in ("failed", "running") if (n := self._count(state))]
        parts.append(render.duration(elapsed))
        if _LEAST_DONE < (share := self._share_done()) < 1:
            parts.append(f"about {render.duration(elapsed * (1 - share) / share)} left")
        return ", ".join(parts)

    def _share_done(self) -> float:
        """Estimate how much of the work of this command is done; a failed cell may take no time at all."""
        from samtl.sweep.plan import cost

        work = done = 0.0
        for number, cell in self.cells.items():
            state = self._state[number]
            share = 0.0 if state in ("skipped", "failed") else cost([cell])
            work += share
            if state == "done":
                done += share
            elif found := _EPOCH.match(self._running.get(number, "")):
                done += share * (int(found[1]) - 1) / int(found[2])
        return done / work if work else 0.0

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
        splits = list(dict.fromkeys(cell.split for cell in self.cells.values()))
        if sum(max(len(split), 5) + 2 for split in splits) + 32 > self.console.width:
            splits = [f"{len(splits)} splits"]
        places: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        for number, cell in sorted(self.cells.items()):
            features = f" on {cell.features}" if cell.features else ""
            model = f"{cell.name}{features}, {Path(cell.store).name.removesuffix('.zarr')}"
            column = cell.split if cell.split in splits else splits[0]
            places[model.removesuffix(", ")][column].append(number)
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        table.add_column("", max_width=30, no_wrap=True, overflow="ellipsis")
        for split in splits:
            table.add_column(Text(split), justify="right", no_wrap=True)
        for model in list(places)[:height]:
            table.add_row(Text(model), *(self._place(places[model][split]) for split in splits))
        return table

    def _place(self, numbers: Sequence[int]) -> Text:
        """Write the mean score of a model on a split once all seeds are done, else how many are."""
        states = [self._state[number] for number in numbers]
        scores = [self._scores[number] for number in numbers if number in self._scores]
        done = sum(state in _FINISHED for state in states)
        if not numbers:
            return Text("")
        if done == len(numbers) and scores:
            return Text(f"{100 * sum(scores) / len(scores):.1f}", style="green")
        mark, style = next((_STYLES[state] for state in _STYLES if state in states), ("", "dim"))
        return Text(f"{mark}{done}/{len(numbers)}", style=style)


def _named(cell: Cell) -> str:
    features = f" on {cell.features}" if cell.features else ""
    return f"{cell.name}{features}, split {cell.split}, seed {cell.seed}"
