"""`samtl report` and `samtl reproduce`: figures from runs, and a whole case study."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samtl._runtime import StopRequest, polite_stop, stop_at_once
from samtl.errors import EXIT_FAILED_CELLS, EXIT_QUARANTINED

from . import embed, render, sweep
from .board import Board
from .options import Outcome, verb

if TYPE_CHECKING:
    from samtl.report.api import ReportResult
    from samtl.study import Event


@verb("samtl.report.api:make_report", skip=("sources",), arguments=("sources",))
def report(options: dict[str, Any], sources: list[Path] | None = None) -> Outcome:
    """Draw all figures of a study from its runs: one page that needs no network, and PNG, SVG and CSV files.

    Parameters
    ----------
    sources
        Runs, sweeps, or folders of them; $SAMTL_RUNS or ./runs by default.
    """
    from samtl.report.api import make_report

    with render.err.status("loading") as status:
        result = make_report(sources or (), **options, on_event=status.update)
    draw(result)
    return result.to_json(), 0


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


@verb("samtl.study:reproduce", skip=("study",), arguments=("study",))
def reproduce(options: dict[str, Any], study: str) -> Outcome:
    """Run a whole case study: embed, train every head and baseline on every split, draw the report.

    If it was interrupted, the same command resumes.

    Parameters
    ----------
    study
        eurosat or roads.
    """
    from samtl import study as studies

    if options["vgg19"] == "none":
        options["vgg19"] = None

    stopping: StopRequest | None = None
    tell: Callable[[Any], None] = _note

    def show(event: Event) -> None:
        nonlocal stopping, tell
        if isinstance(event, studies.Step):
            drawing.close()
            render.say(f"\n{event.command}", "bold")
            if event.name == "embed":
                stopping = drawing.enter_context(polite_stop(embed.STOPPING))
                tell = embed.shown_on(drawing.enter_context(render.EmbedBar()))
            elif event.name == "sweep":
                drawing.enter_context(stop_at_once())
                board = Board()
                drawing.enter_context(board.live())
                tell = board.tell
            else:
                tell = drawing.enter_context(render.err.status("loading")).update
        elif type(event).__name__ in _DRAW:
            drawing.close()
            _DRAW[type(event).__name__](event)
        else:
            tell(event)

    with ExitStack() as drawing:
        result = studies.reproduce(
            study,
            **options,
            on_event=show,
            should_stop=lambda: stopping is not None and stopping(),
        )
    if result.sweep is None:
        code = stopping.exit_code if stopping else 0
    elif result.sweep.failed:
        code = EXIT_FAILED_CELLS
    else:
        code = EXIT_QUARANTINED if result.embed.quarantined else 0
    return result.to_json(), code


_DRAW: dict[str, Callable[[Any], None]] = {
    "EmbedResult": embed.draw_result,
    "SweepResult": sweep.draw,
    "ReportResult": draw,
}


def _note(note: object) -> None:
    render.say(str(note), "yellow")
