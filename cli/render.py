"""Everything that is drawn: messages, tables, progress."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.constrain import Constrain
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from samtl._runtime import duration as duration
from samtl._runtime import size as size

if TYPE_CHECKING:
    from samtl.embed.pipeline import Progress as EmbedProgress

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

LISTED = 20  # bad images, findings and so on that are printed; --json FILE has all of them
SECONDS_BETWEEN_LINES = 20  # in a log file, where a bar cannot move


def complain(message: str) -> None:
    """Print why the command ends, on standard error."""
    err.print(Text("error: ", style="bold red") + Text(message), soft_wrap=True)


def say(message: object, style: str = "", console: Console = out) -> None:
    """Print a line."""
    console.print(Text(str(message), style=style), soft_wrap=True)


def listed(lines: Iterable[object], title: str = "", style: str = "yellow") -> None:
    """Print the first lines of a long list, below a title if there are any, and how many more there are."""
    lines = list(lines)
    if lines and title:
        say(title, style)
    for line in lines[:LISTED]:
        say(f"  {line}", style)
    if len(lines) > LISTED:
        say(f"  and {len(lines) - LISTED} more; --json FILE lists all", style)


def warn_untrained(weights: str, untrained: bool = True, name: str = "the encoder") -> None:
    """Print, beside every score made with random weights, that they are."""
    if untrained:
        say(f"The weights are {weights}: the scores say nothing about {name}.", "yellow")


def facts(rows: Mapping[str, object]) -> None:
    """Print names and values in two columns; empty values are left out."""
    table = Table.grid(padding=(0, 2))
    for name, value in rows.items():
        if value:
            table.add_row(Text(name, "dim"), Text(str(value), overflow="fold"))
    out.print(table)


def grid(headers: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> None:
    """Print a table; `right` lists the columns of numbers. Pipes and files get lines as long as they need."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for index, header in enumerate(headers):
        table.add_column(header, justify="right" if index in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    whole = Measurement.get(out, out.options.update(max_width=10_000), table).maximum
    wide = Console(file=out.file, width=max(out.width, whole), highlight=False)
    (out if out.is_terminal else wide).print(table)


def show_log() -> None:
    """Print what the library logs, such as downloads, on standard error."""
    logger = logging.getLogger("samtl")
    logger.handlers = [_Handler()]
    logger.setLevel(logging.INFO)


class _Handler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage(), "dim", err)


class EmbedBar(Progress):
    """A progress bar for the encoder pass on a terminal, or a line now and then in a log."""

    def __init__(self) -> None:
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[figures]}"),
            console=err,
            disable=not err.is_terminal,
            transient=True,
        )
        self._last_line = time.monotonic()
        self._bar = self.add_task("starting", total=None, figures="")

    def get_renderable(self) -> RenderableType:
        """Leave room for the `^C` that terminals echo, so that it does not begin a line."""
        return Constrain(super().get_renderable(), err.width - len("^C") - 1)

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Take the bar away within a `with` block, for what is printed on standard output."""
        self.stop()
        yield
        if not self.disable:
            self.start()

    def show(self, progress: EmbedProgress) -> None:
        """Draw how far the pass is."""
        rate, left = progress.images_per_second, progress.seconds_left
        figures = [f"{rate:.2f} img/s"] if rate else []
        figures += [] if left is None else [f"{duration(left)} left"]
        figures += [f"{size(progress.bytes_written)} written"] if progress.bytes_written else []
        figures += [f"{progress.quarantined} bad"] if progress.quarantined else []
        self.count(progress.encoded, progress.pending_rows, "embedding", ", ".join(figures))

    def count(self, done: int, total: int, what: str = "reading images", figures: str = "") -> None:
        """Draw how many images are done."""
        told = f"{done}/{total} {figures}".strip()
        self.update(self._bar, description=what, completed=done, total=total, figures=told)
        if not err.is_terminal and time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            say(f"{what} {done}/{total}{': ' if figures else ''}{figures}", console=err)
