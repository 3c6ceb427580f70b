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
    from samtl.metrics.declared import Metric
    from samtl.sweep.api import Progress

_RUNNING_SHOWN = 3  # cells whose last event is shown
_MARKS = {"failed": ("!", "red"), "running": ("*", "cyan")}
_LEAST_DONE = 0.03  # of the work, before the time left is estimated


class Board:
    """Follows a sweep on a console, by default that of standard error; `tell` takes its events."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or render.err
        self.terminal = self.console.is_terminal and not self.console.is_dumb_terminal
        self.cells: dict[int, Progress] = {}  # the last event of each, the latest at the end
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
        return sum(event.what in ("done", "skipped") for event in self.cells.values())

    def tell(self, event: Progress | Note) -> None:
        """Record an event, and print it if it must be seen."""
        if isinstance(event, Note):
            render.say(event, "yellow", self.console)
            return
        with self._lock:
            self.cells.pop(event.cell.number, None)
            self.cells[event.cell.number] = event
        count = Counter(map(_state, self.cells.values()))
        ended = f"{self.finished + count['failed']}/{len(self.cells)} {event.cell}"
        late = time.monotonic() - self._last_line > render.SECONDS_BETWEEN_LINES
        if event.what == "failed":
            render.say(f"{ended}: failed: {event.text}", "red", self.console)
        elif self.terminal:
            return
        elif event.what == "done":
            scores = [f": {m.title} {m.written(x)} {m.unit}".rstrip() for m, x in _headline(event)]
            render.say("".join([ended, *scores]), console=self.console)
        elif event.what == "event" and late:
            self._last_line = time.monotonic()
            render.say(f"{self._status()}; {event}", console=self.console)

    def _status(self) -> str:
        from samtl.sweep.plan import cost

        elapsed, count = time.monotonic() - self._began, Counter(map(_state, self.cells.values()))
        parts = [f"{self.finished}/{len(self.cells)} cells"]
        parts += [f"{count[state]} {state}" for state in _MARKS if count[state]]
        parts.append(render.duration(elapsed))
        work: dict[str, float] = defaultdict(float)
        for event in self.cells.values():
            work[_state(event)] += cost([event.cell])
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
                Text(f"* {event}", no_wrap=True, overflow="ellipsis")
                for event in self.cells.values()
                if _state(event) == "running"
            ][-_RUNNING_SHOWN:]
            status = Text(self._status(), "bold", no_wrap=True, overflow="ellipsis")
            return Group(self._table(max(self.console.height - len(lines) - 4, 1)), status, *lines)

    def _table(self, height: int) -> RenderableType:
        """Draw a row for each model and a column for each split; one column if the splits do not fit."""
        events = sorted(self.cells.values(), key=lambda event: event.cell.number)
        splits = list(dict.fromkeys(event.cell.split for event in events))
        if sum(max(len(split), 5) + 2 for split in splits) + 32 > self.console.width:
            splits = [f"{len(splits)} splits"]
        places: dict[str, dict[str, list[Progress]]] = defaultdict(lambda: defaultdict(list))
        for event in events:
            cell = event.cell
            model = f"{cell.name} on {cell.features}" if cell.features else cell.name
            store = f", {Path(cell.store).name.removesuffix('.zarr')}" if cell.store else ""
            column = cell.split if cell.split in splits else splits[0]
            places[model + store][column].append(event)
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        table.add_column("", max_width=30, no_wrap=True, overflow="ellipsis")
        for split in splits:
            table.add_column(Text(split), justify="right", no_wrap=True)
        for model in list(places)[:height]:
            table.add_row(Text(model), *(self._place(places[model][split]) for split in splits))
        return table

    def _place(self, events: list[Progress]) -> Text:
        """Write the mean score of a model on a split once all seeds are done, else how many are."""
        states = {_state(event) for event in events}
        scores = [score for event in events for score in _headline(event)]
        if not events:
            return Text("")
        if len(scores) == len(events):
            mean = sum(value for _, value in scores) / len(scores)
            return Text(scores[0][0].written(mean), style="green")
        mark, style = next((_MARKS[state] for state in _MARKS if state in states), ("", "dim"))
        return Text(f"{mark}{len(scores)}/{len(events)}", style=style)


def _state(event: Progress) -> str:
    return "running" if event.what in ("started", "event") else event.what


def _headline(event: Progress) -> list[tuple[Metric, float]]:
    """Return the score of a finished cell that models are ranked by, if it has one."""
    from samtl.metrics.declared import ranked_by

    figures = event.figures
    if not figures or event.cell.config is None:
        return []
    metric = ranked_by(event.cell.config.task)
    return [(metric, figures[metric.name])]
