"""The grid of a sweep as it fills up: a live table on a terminal, a line now and then in a log."""

from __future__ import annotations

import os.path
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
    from samtl.sweep.plan import Cell

    from samtl.sweep.api import Progress

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
        elif self._live is None and event.what == "event":
            now = time.monotonic()
            if now - self._last_line > render.SECONDS_BETWEEN_LINES:
                self._last_line = now
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
        from samtl.sweep.plan import cost

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
        stores = {cell.store for cell in self.cells.values()}
        for number, cell in sorted(self.cells.items()):
            features = f" on {cell.features}" if cell.features else ""
            store = f", {Path(cell.store).name.removesuffix('.zarr')}" if len(stores) > 1 else ""
            places[f"{cell.name}{features}{store}"][cell.split].append(number)
        splits = list(dict.fromkeys(cell.split for cell in self.cells.values()))
        heads, shared = shortened(splits)
        first = min(max(map(len, places)), 30)
        widths = [max(len(head), 5) for head in heads]
        if first + sum(widths) + 2 * len(widths) > self.console.width - 1:
            merged = {m: [n for some in by.values() for n in some] for m, by in places.items()}
            places = {m: {"": numbers} for m, numbers in merged.items()}  # type: ignore[assignment]
            splits, heads, shared, widths = [""], [f"{len(splits)} splits"], "", [12]
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        table.add_column(shared, width=first, no_wrap=True, overflow="ellipsis")
        for head, width in zip(heads, widths, strict=True):
            table.add_column(Text(head), justify="right", width=width, no_wrap=True)
        running = {number for number, state in self._state.items() if state == "running"}
        # If not all models fit, those that are being trained come first.
        shown = sorted(
            places, key=lambda m: not running & {n for some in places[m].values() for n in some}
        )[:height]
        for model in places if len(places) <= height else shown:
            table.add_row(Text(model), *(self._place(places[model].get(s, [])) for s in splits))
        if len(places) <= height:
            return table
        return Group(table, Text(f"and {len(places) - height} more models", style="dim"))

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


def shortened(splits: Sequence[str]) -> tuple[list[str], str]:
    """Remove what all specs begin and end with; returns the rest, and `BEGIN...END`.

    `label:0.1@0.2` and `label:0.5@0.2` become `0.1` and `0.5`, and `label:...@0.2`.
    """
    if len(splits) < 2:
        return list(splits), ""
    begin = re.sub(r"[^:@/]*$", "", os.path.commonprefix(list(splits)))
    rest = [split[len(begin) :] for split in splits]
    backwards = os.path.commonprefix([split[::-1] for split in rest])
    end = re.sub(r"[^:@/]*$", "", backwards)[::-1]
    short = [split[: len(split) - len(end)] for split in rest]
    return short, f"{begin}...{end}" if begin or end else ""


def _named(cell: Cell) -> str:
    features = f" on {cell.features}" if cell.features else ""
    return f"{cell.name}{features}, split {cell.split}, seed {cell.seed}"
