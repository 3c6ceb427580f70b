"""Everything that is drawn: messages, tables, progress."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from samtl._runtime import duration as duration
from samtl._runtime import size as size

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

# In a log file, where a bar cannot move, this often a line.
SECONDS_BETWEEN_LINES = 20


def complain(message: str) -> None:
    """Print why the command ends, on standard error."""
    err.print(Text("error: ", style="bold red") + Text(message), soft_wrap=True)


def say(message: str, style: str = "") -> None:
    """Print a line."""
    out.print(Text(message, style=style), soft_wrap=True)


def warn_untrained(weights: str) -> None:
    """Print, beside every figure made with random weights, that they are."""
    say(f"The encoder's weights are {weights}: its figures say nothing about SAM.", "yellow")


def facts(rows: Mapping[str, str]) -> None:
    """Print names and values in two columns."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, Text(value))
    out.print(table)


def grid(headers: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> None:
    """Print a table; `right` names the columns of numbers. What is no terminal gets lines as long as they need."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for index, header in enumerate(headers):
        table.add_column(header, justify="right" if index in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    if out.is_terminal:
        out.print(table)
        return
    whole = Measurement.get(out, out.options.update(max_width=10_000), table).maximum
    Console(file=out.file, width=max(out.width, whole)).print(table)


def write_json(path: Path | None, content: Mapping[str, object]) -> None:
    """Write what was printed as one JSON object, if a file was asked for."""
    if path is not None:
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def show_log() -> None:
    """Print what the library logs, such as downloads, on standard error."""
    logger = logging.getLogger("samtl")
    logger.handlers = [_Told()]
    logger.setLevel(logging.INFO)


class _Told(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        err.print(Text(record.getMessage(), style="dim"), soft_wrap=True)


class EmbedBar:
    """A progress bar for the encoder pass on a terminal, or a line now and then in a log."""

    def __init__(self, what: str = "embedding") -> None:
        self._last_line = 0.0
        self._what = what
        self._bar = Progress(
            TextColumn("{task.fields[what]}"),
            BarColumn(bar_width=None),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[rate]}"),
            TextColumn("{task.fields[left]}"),
            TextColumn("{task.fields[written]} written"),
            TextColumn("{task.fields[bad]}"),
            console=err,
            disable=not err.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task(
            "", total=1, what=what, rate="", left="", written="0 B", bad=""
        )

    def __enter__(self) -> EmbedBar:
        """Start to draw."""
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the bar away."""
        self._bar.stop()

    def line(self, message: str, style: str = "") -> None:
        """Print a line above the bar."""
        err.print(Text(message, style=style), soft_wrap=True)

    def count(self, done: int, total: int) -> None:
        """Draw how many images were read to be compared."""
        self._bar.update(self._task, completed=done, total=total, what="reading images")
        now = time.monotonic()
        if not err.is_terminal and now - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = now
            self.line(f"reading images {done}/{total} to see whether they changed")

    def update(
        self, done: int, total: int, rate: float, left: float | None, written: int, bad: int
    ) -> None:
        """Draw how far the pass is."""
        cells = {
            "rate": f"{rate:.2f} img/s" if rate else "",
            "left": f"{duration(left)} left" if left is not None else "",
            "written": size(written),
            "bad": f"{bad} bad" if bad else "",
        }
        self._bar.update(self._task, completed=done, total=total, what=self._what)
        self._bar.tasks[self._task].fields.update(cells)
        now = time.monotonic()
        if not err.is_terminal and now - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = now
            told = ", ".join(
                filter(
                    None,
                    [cells["rate"], cells["left"], f"{cells['written']} written", cells["bad"]],
                )
            )
            self.line(f"embedding {done}/{total}: {told}")
