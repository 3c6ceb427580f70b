"""`samtl report`: all figures of a study, as one page and as files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import _render as render
from ._options import Json, Root

if TYPE_CHECKING:
    from samtl.report.api import ReportResult


def report(
    sources: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Runs, sweeps, or folders of them.", show_default="$SAMTL_RUNS or ./runs"
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="The report's folder; an earlier report there is replaced.")
    ] = Path("report"),
    dataset: Annotated[
        str | None,
        typer.Option(
            help="What the runs are on, for figures with images; as it was embedded.",
            show_default="the one that the runs name, if it is here",
        ),
    ] = None,
    root: Root = None,
    separate: Annotated[
        bool,
        typer.Option(
            "--separate", help="Report runs that cannot be compared, each beside the others."
        ),
    ] = False,
    title: Annotated[str | None, typer.Option(help="The page's title.", show_default=False)] = None,
    json: Json = None,
) -> None:
    """Draw all figures of a study from its runs: one page that needs no network, and PNG, SVG and CSV files."""
    from samtl.report.api import make_report

    with render.err.status("loading") as status:
        result = make_report(
            sources or (),
            out,
            dataset=dataset,
            root=root,
            separate=separate,
            title=title,
            on_event=status.update,
        )
    draw(result)
    render.write_json(json, result.to_json())


def draw(result: ReportResult) -> None:
    """Print what was found, what to be careful with, and where the page is."""
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
