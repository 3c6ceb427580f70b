"""The grid of a sweep as it fills up: a live table on a terminal, a line now and then in a log."""

from __future__ import annotations

import itertools
import re
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from . import _render as render

if TYPE_CHECKING:
    from samtl._runtime import Note
    from samtl.sweep.api import Progress
    from samtl.sweep.worker import Cell

HEADLINES = {"iou": "IoU", "accuracy": "accuracy"}  # of segmentation, which has both, and the rest
MARK_RUNNING, MARK_FAILED = "*", "!"
_RUNNING_SHOWN = 3  # cells whose last word is shown
_FINISHED = ("done", "skipped")
_EPOCH = re.compile(r"epoch (\d+) of (\d+)")
_MARKS = ":@/"  # what the parts of a split's spec are parted by
_FEWEST = 0.03  # of the work, before the time left is guessed


class Board:
    """Follows a sweep; `tell` takes what it tells.

    Parameters
    ----------
    console : Console, optional
        By default that of standard error.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or render.err
        self.cells: dict[int, Cell] = {}
        self._state: dict[int, str] = {}
        self._words: dict[int, str] = {}  # the last of each cell that is running
        self._scores: dict[int, float] = {}
        self._headline = ""
        self._began = time.monotonic()
        self._told_at = self._began
        self._skipped_told = False
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
        """Start to draw."""
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the table away."""
        if self._live is not None:
            self._live.stop()

    @property
    def finished(self) -> int:
        """How many cells are done, now or before."""
        return sum(state in _FINISHED for state in self._state.values())

    def tell(self, event: Progress | Note) -> None:
        """Take note of what happens."""
        from samtl._runtime import Note

        if isinstance(event, Note):
            self._line(str(event), "yellow")
            return
        cell, number = event.cell, event.cell.number
        with self._lock:
            self.cells[number] = cell
            self._state[number] = "running" if event.what in ("started", "event") else event.what
            self._words.pop(number, None)
            if self._state[number] == "running":
                self._words[number] = event.text
            for name in HEADLINES:
                if event.figures and name in event.figures:
                    self._headline = name
                    self._scores[number] = event.figures[name]
                    break
        if event.what == "failed":
            self._line(f"{self._counted()} {_called(cell)}: failed: {event.text}", "red")
        elif self._live is None:
            self._log(event)

    def _log(self, event: Progress) -> None:
        now = time.monotonic()
        if event.what in ("started", "done") and not self._skipped_told:
            self._skipped_told = True
            before = sum(state == "skipped" for state in self._state.values())
            if before:
                self._line(f"{before} of {len(self.cells)} cells were finished before")
        if event.what == "done":
            score = self._scores.get(event.cell.number)
            told = f": {HEADLINES[self._headline]} {score:.1%}" if score is not None else ""
            self._line(f"{self._counted()} {_called(event.cell)}{told}")
        elif event.what == "event" and now - self._told_at > render.SECONDS_BETWEEN_LINES:
            self._told_at = now
            self._line(f"{self._status()}; {_called(event.cell)}: {event.text}")

    def _line(self, text: str, style: str = "") -> None:
        self.console.print(Text(text, style=style), soft_wrap=True)

    def _counted(self) -> str:
        ended = self.finished + sum(state == "failed" for state in self._state.values())
        return f"{ended}/{len(self.cells)}"

    def _status(self) -> str:
        count = {"failed": 0, "running": 0}
        for state in self._state.values():
            if state in count:
                count[state] += 1
        told = [f"{self.finished}/{len(self.cells)} cells"]
        told += [f"{n} {state}" for state, n in count.items() if n]
        told.append(render.duration(time.monotonic() - self._began))
        left = self._left()
        return ", ".join([*told, f"about {render.duration(left)} left"] if left else told)

    def _left(self) -> float | None:
        """Guess the seconds that are left, from how long the work so far took; None where that says too little."""
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
            elif found := _EPOCH.match(self._words.get(number, "")):
                done += share * (int(found[1]) - 1) / int(found[2])
        if not work or not _FEWEST < done / work < 1:
            return None
        return (time.monotonic() - self._began) * (work - done) / done

    # The table

    def _draw(self) -> RenderableType:
        with self._lock:
            if not self.cells:
                return Text("planning", style="dim")
            running = [number for number, state in self._state.items() if state == "running"]
            words = [
                self._cut(f"{MARK_RUNNING} {_called(self.cells[number])}: {self._words[number]}")
                for number in running[-_RUNNING_SHOWN:]
            ]
            if len(running) > len(words):
                words.append(Text(f"  and {len(running) - len(words)} more", style="dim"))
            status = self._cut(self._status())
            status.stylize("bold")
            height = self.console.height - len(words) - 4
            return Group(self._table(max(height, 1)), status, *words)

    def _cut(self, text: str) -> Text:
        line = Text(text, no_wrap=True)
        line.truncate(self.console.width - 1, overflow="ellipsis")
        return line

    def _table(self, height: int) -> RenderableType:
        from samtl.sweep.api import labelled

        models: dict[tuple[str, str, str], dict[str, list[int]]] = defaultdict(
            lambda: defaultdict(list)
        )
        for number in sorted(self.cells):
            cell = self.cells[number]
            store = Path(cell.store).name.removesuffix(".zarr")
            models[cell.name, cell.features or "", store][cell.split].append(number)
        names = labelled(models)
        splits = list(dict.fromkeys(split for places in models.values() for split in places))
        heads, pattern = shortened(splits)
        seeds = max(len(numbers) for places in models.values() for numbers in places.values())
        first = max(map(len, names.values()))
        count = 2 * len(str(seeds)) + 1
        # From the most that can be told to the least: mean and count, one of them, and all splits as one.
        wide = [max(len(head), count + 6) for head in heads]
        narrow = [max(min(len(head), 8), count + 1, 5) for head in heads]
        room = self.console.width - 1
        if first + sum(wide) + 2 * len(wide) <= room:
            columns, gap, both = wide, 2, True
        elif min(first, 16) + sum(narrow) + len(narrow) <= room:
            columns, gap, both = narrow, 1, False
            first = min(first, room - sum(narrow) - len(narrow))
        else:
            merged = {m: [n for some in p.values() for n in some] for m, p in models.items()}
            models = {model: {"": numbers} for model, numbers in merged.items()}
            splits, heads, pattern = [""], [f"{len(splits)} splits"], ""
            columns, gap, both = [max(12, len(heads[0]))], 2, True
            first = min(first, room - columns[0] - gap)
        table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="dim")
        table.add_column(pattern, width=first, no_wrap=True, overflow="ellipsis")
        for head, width in zip(heads, columns, strict=True):
            table.add_column(
                Text(head), justify="right", width=width, no_wrap=True, overflow="ellipsis"
            )
        shown = self._most_telling(models, height)
        for model in shown:
            places = [self._place(models[model].get(split, []), both) for split in splits]
            table.add_row(Text(names[model]), *places)
        if len(shown) == len(models):
            return table
        return Group(table, Text(f"and {len(models) - len(shown)} more models", style="dim"))

    def _most_telling(
        self, models: dict[tuple[str, str, str], dict[str, list[int]]], height: int
    ) -> list[tuple[str, str, str]]:
        """Choose the models that fit: those at work first, then the unfinished; in the order of the plan."""
        if len(models) <= height:
            return list(models)

        def urgency(model: tuple[str, str, str]) -> int:
            states = {self._state[n] for numbers in models[model].values() for n in numbers}
            return 0 if "running" in states else 2 if states <= {*_FINISHED, "failed"} else 1

        chosen = set(sorted(models, key=urgency)[: max(1, height - 1)])
        return [model for model in models if model in chosen]

    def _place(self, numbers: Sequence[int], both: bool) -> Text:
        """What became of a model's seeds on a split."""
        states = [self._state[number] for number in numbers]
        done = sum(state in _FINISHED for state in states)
        scores = [self._scores[number] for number in numbers if number in self._scores]
        mean = f"{100 * sum(scores) / len(scores):.1f}" if scores else ""
        count = f"{done}/{len(numbers)}"
        if numbers and done == len(numbers):
            return Text(mean or count, style="green")
        mark = MARK_RUNNING if "running" in states else ""
        style = "cyan" if mark else "" if done else "dim"
        if "failed" in states:
            mark, style = MARK_FAILED, "red"
        text = f"{mean} {count}" if both and mean else count
        return Text(f"{mark}{text}" if numbers else "", style=style)


def shortened(splits: Sequence[str]) -> tuple[list[str], str]:
    """Take from specs of splits what all begin and end with; gives them, and what was taken as `BEGIN...END`.

    Of `label:0.1@0.2` and `label:0.5@0.2` are left `0.1` and `0.5`, and `label:...@0.2`.
    """
    parts = [re.findall(r"[^:@/]+|[:@/]", split) for split in splits]
    begin = _shared(parts) if len(parts) > 1 else []
    rest = [words[len(begin) :] for words in parts]
    end = _shared([words[::-1] for words in rest])[::-1] if len(parts) > 1 else []
    short = ["".join(words[: len(words) - len(end)]) for words in rest]
    return short, f"{''.join(begin)}...{''.join(end)}" if begin or end else ""


def _shared(lists: Sequence[Sequence[str]]) -> list[str]:
    """What all lists begin with, up to the last mark in it."""
    alike = itertools.takewhile(lambda words: len(set(words)) == 1, zip(*lists, strict=False))
    shared = [words[0] for words in alike]
    while shared and shared[-1] not in _MARKS:
        shared.pop()
    return shared


def _called(cell: Cell) -> str:
    features = f" on {cell.features}" if cell.features else ""
    return f"{cell.name}{features}, split {cell.split}, seed {cell.seed}"
