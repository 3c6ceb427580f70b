"""`samtl report`, `reproduce` and `demo`: figures from runs, a whole case study, and a small one."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import samtl
from samtl._runtime import StopRequest, polite_stop, stop_at_once
from samtl.errors import EXIT_FAILED_CELLS, EXIT_QUARANTINED

from . import embed, fit, render, sweep
from .board import Board
from .options import Outcome, verb

DEMO_PASSES: tuple[dict[str, Any], ...] = (
    {"dataset": "eurosat-sample", "encoder": "rcf", "tiers": "pooled"},
    {"dataset": "eurosat-sample", "encoder": "tiny", "image_size": 256, "limit": 16},
)


@verb("samtl.report.api:make_report", skip=("sources",), arguments=("sources",))
def report(options: dict[str, Any], sources: list[Path] | None = None) -> Outcome:
    """Draw all figures of a study from its runs: one page that needs no network, and PNG, SVG and CSV files.

    Parameters
    ----------
    sources
        Runs, sweeps, or folders of them; $SAMTL_RUNS or ./runs by default.
    """
    with render.err.status("loading") as status:
        result = samtl.make_report(sources or (), **options, on_event=status.update)
    draw(result)
    return result.to_json(), 0


def draw(result: samtl.ReportResult) -> None:
    """Print the findings, the caveats, and where the page is."""
    for line in result.lines:
        render.say(line)
    for text in (*result.warnings, *result.missing):
        render.say(text, "yellow")
    drawn = f"{result.runs} runs, {result.figures} figures and {result.tables} tables"
    render.say(f"{drawn} in {render.duration(result.seconds)}", "dim")
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
    if options["vgg19"] == "none":
        options["vgg19"] = None

    draws: dict[str, Any] = {
        "EmbedResult": embed.draw_result,
        "SweepResult": sweep.draw,
        "ReportResult": draw,
    }
    stopping = StopRequest()
    tell: Callable[[Any], None] = functools.partial(render.say, style="yellow")

    def show(event: Any) -> None:
        nonlocal stopping, tell
        kind = type(event).__name__
        if kind in draws or kind == "Step":
            drawing.close()
        if kind != "Step":
            draws.get(kind, tell)(event)
            return
        render.say(f"\n{event.command}", "bold")
        if event.name == "embed":
            stopping = drawing.enter_context(polite_stop(embed.STOPPING))
            tell = embed.shown_on(drawing.enter_context(render.EmbedBar()))
        elif event.name == "sweep":
            board = Board()
            drawing.enter_context(stop_at_once())
            drawing.enter_context(board.live())
            tell = board.tell
        else:
            tell = drawing.enter_context(render.err.status("loading")).update

    with ExitStack() as drawing:
        result = samtl.reproduce(study, **options, on_event=show, should_stop=lambda: stopping())
    if result.sweep is None:
        return result.to_json(), stopping.exit_code
    code = EXIT_QUARANTINED if result.embed.quarantined else 0
    return result.to_json(), EXIT_FAILED_CELLS if result.sweep.failed else code


@verb()
def demo(out: Path | None = None, runs: Path | None = None) -> Outcome:
    """Embed 1,000 real images that come with samtl, fit two heads, and pass some through SAM's architecture.

    Parameters
    ----------
    out
        Folder for the stores; demo in $SAMTL_CACHE or ./cache by default.
    runs
        Folder for the runs; $SAMTL_RUNS or ./runs by default.
    """
    from samtl.store.storage import below, cache_folder

    # A folder of its own keeps the demo's stores apart from the user's.
    place = out or below(cache_folder(), "demo")
    passes, fits = [], []
    for given in DEMO_PASSES:
        told = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in given.items())
        render.say(f"samtl embed {told} --out {place}", "bold")
        result, stopped_by = embed.run({**given, "out": place})
        passes.append(result.to_json())
        for head in () if stopped_by or result.untrained else ("logreg", "mlp"):
            render.say("")
            render.say(f"samtl fit-head --head {head} --split 0.2 --cache {result.store}", "bold")
            fits.append(fit.run({"store": result.store, "head": head, "split": 0.2, "out": runs}))
        if stopped_by:
            break
        render.say("")
    return {"embed": passes, "fits": fits}, stopped_by
