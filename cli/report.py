"""`samtl report` and `samtl reproduce`: figures from runs, and a whole case study."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from samtl._runtime import StopRequest, polite_stop, stop_at_once
from samtl.errors import EXIT_FAILED_CELLS, EXIT_QUARANTINED

from . import embed, render, sweep
from .board import Board
from .options import Json, verb

if TYPE_CHECKING:
    from collections.abc import Callable

    from samtl._runtime import Note
    from samtl.report.api import ReportResult
    from samtl.study import Event, Step


@verb("samtl.report.api:make_report", skip=("sources",))
def report(
    options: dict[str, Any],
    sources: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Runs, sweeps, or folders of them.", show_default="$SAMTL_RUNS or ./runs"
        ),
    ] = None,
    json: Json = None,
) -> None:
    """Draw all figures of a study from its runs: one page that needs no network, and PNG, SVG and CSV files."""
    from samtl.report.api import make_report

    with render.err.status("loading") as status:
        result = make_report(sources or (), **options, on_event=status.update)
    draw(result)
    render.write_json(json, result.to_json())


def draw(result: ReportResult) -> None:
    """Print the findings, the caveats, and where the page is."""
    for line in result.lines:
        render.say(line)
    for text in (*result.warnings, *result.missing):
        render.say(text, "yellow")
    render.say(
        f"{result.runs} runs, {result.figures} figures and {result.tables} tables in "
        f"{render.duration(result.seconds)}",
        "dim",
    )
    render.say(f"page: {result.page} ({render.size(result.bytes)})")


@verb("samtl.study:reproduce", skip=("study",))
def reproduce(
    options: dict[str, Any],
    study: Annotated[str, typer.Argument(help="eurosat or roads.")],
    json: Json = None,
) -> None:
    """Run a whole case study: embed, train every head and baseline on every split, draw the report.

    If it was interrupted, the same command resumes.
    """
    from samtl import study as studies

    with _View() as view:
        result = studies.reproduce(
            study, **options, on_event=view.show, should_stop=view.should_stop
        )
    render.write_json(json, result.to_json())
    if result.sweep is None:
        raise typer.Exit(view.stopped_by)
    if result.sweep.failed:
        raise typer.Exit(EXIT_FAILED_CELLS)
    if result.embed.quarantined:
        raise typer.Exit(EXIT_QUARANTINED)


class _View:
    """Draws each step under the command that does it alone, as that command does."""

    def __init__(self) -> None:
        self._drawing = ExitStack()  # what is on the screen now, and what signals do
        self._tell: Callable[[Any], None] = _note
        self._stop: StopRequest | None = None
        self._begun = False

    def __enter__(self) -> _View:
        return self

    def __exit__(self, *error: object) -> None:
        self._drawing.close()

    def should_stop(self) -> bool:
        return self._stop is not None and self._stop()

    @property
    def stopped_by(self) -> int:
        """The exit code of the signal that ended the pass early."""
        return self._stop.exit_code if self._stop else 0

    def show(self, event: Event) -> None:
        from samtl.embed.api import EmbedResult
        from samtl.report.api import ReportResult
        from samtl.study import Step
        from samtl.sweep.api import SweepResult

        if isinstance(event, Step):
            self._begin(event)
        elif isinstance(event, EmbedResult | SweepResult | ReportResult):
            self._drawing.close()
            self._tell = _note
            if isinstance(event, EmbedResult):
                embed.draw_result(event)
            elif isinstance(event, SweepResult):
                sweep.draw(event)
            else:
                draw(event)
        else:
            self._tell(event)

    def _begin(self, step: Step) -> None:
        if self._begun:
            render.say("")
        self._begun = True
        render.say(step.command, "bold")
        if step.name == "embed":
            self._stop = self._drawing.enter_context(polite_stop(embed.STOPPING))
            self._tell = embed.shown_on(self._drawing.enter_context(render.EmbedBar()))
        elif step.name == "sweep":
            self._drawing.enter_context(stop_at_once())
            self._tell = self._drawing.enter_context(Board()).tell
        else:
            self._tell = self._drawing.enter_context(render.err.status("loading")).update


def _note(note: Note) -> None:
    render.say(str(note), "yellow")
