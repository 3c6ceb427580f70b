"""`samtl sweep`: heads x splits x seeds over stores, and baselines beside them."""

from __future__ import annotations

import json as json_format
import re
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from samtl._runtime import StopNow, stop_at_once
from samtl.errors import EXIT_FAILED_CELLS, InputError

from . import _render as render
from ._board import Board
from ._options import GroupBy, Jobs, Json, Root

if TYPE_CHECKING:
    from samtl.metrics.bootstrap import Spread
    from samtl.report.summary import Summary
    from samtl.sweep.api import SweepResult

NO_HEADS = "none"
LISTED = 10  # reasons why cells failed, and notes; --json has all
_SETTING = re.compile(r"([^.=\s]+)\.([^.=\s]+)=(.*)", re.DOTALL)


def sweep(
    heads: Annotated[
        str | None,
        typer.Option(
            help=f"Separated by commas; {NO_HEADS} for baselines alone.",
            show_default="all for the store's task",
        ),
    ] = None,
    splits: Annotated[
        str,
        typer.Option(
            help="As --split of fit-head, separated by commas, with ... for a row of them; kfold:5 is five."
        ),
    ] = "0.1,0.2,...,0.9",
    seeds: Annotated[str, typer.Option(help="How many, such as 5, or which, such as 0,5,7.")] = "1",
    cache: Annotated[
        list[Path] | None,
        typer.Option(
            "--cache",
            metavar="STORE",
            help="A store, or a folder with one; give it several times for several stores.",
            show_default="the only store in $SAMTL_CACHE or ./cache",
        ),
    ] = None,
    features: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERNS",
            help="Columns of pooled to learn from, as of fit-head; give it several times to compare.",
            show_default="all",
        ),
    ] = None,
    baselines: Annotated[
        str | None,
        typer.Option(help="Separated by commas; they need --dataset.", show_default="none"),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="Where baselines find their pixels: what the store was made from, as for embed.",
            show_default=False,
        ),
    ] = None,
    root: Root = None,
    group_by: GroupBy = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="MODEL.NAME=VALUE",
            help="A parameter of a head or baseline, such as vit.epochs=5; give it several times for several.",
            show_default=False,
        ),
    ] = None,
    warm_start: Annotated[
        bool,
        typer.Option(
            "--warm-start/--no-warm-start",
            help="Whether a training starts from that on a part of its samples, which is shorter.",
        ),
    ] = True,
    jobs: Jobs = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The sweep's folder; one that is there goes on.",
            show_default="sweep-STORE in $SAMTL_RUNS or ./runs",
        ),
    ] = None,
    allow_partial: Annotated[
        bool, typer.Option("--allow-partial", help="Use a store whose pass is not finished.")
    ] = False,
    json: Json = None,
) -> None:
    """Train every head on every split with every seed, and baselines beside them; skips what is finished."""
    asked = _listed("--heads", heads)
    beside = _listed("--baselines", baselines) or []
    if asked == [NO_HEADS]:
        asked = []
    options: dict[str, Any] = {
        "heads": asked,
        "splits": splits,
        "seeds": _seeds(seeds),
        "out": out,
        "baselines": beside,
        "features": features or [],
        "params": _params(settings or []),
        "dataset": dataset,
        "root": root,
        "group_by": group_by,
        "warm_start": warm_start,
        "allow_partial": allow_partial,
    }
    # Baselines alone read no store, and need none to be here.
    result = run([] if asked == [] and not cache else cache or [None], jobs, options)
    draw(result)
    render.write_json(json, result.to_json())
    if result.failed:
        raise typer.Exit(EXIT_FAILED_CELLS)


def run(caches: list[Path] | list[None], jobs: int | None, options: dict[str, Any]) -> SweepResult:
    """Sweep with a live table."""
    from samtl.store.storage import locate
    from samtl.sweep import api as sweeping

    stores = [locate(cache) for cache in caches]
    board = Board()
    try:
        with stop_at_once(), board:
            return sweeping.sweep(stores, jobs=jobs, **options, on_event=board.tell)
    except StopNow as stop:
        render.say(
            f"stopped with {board.finished} of {len(board.cells)} cells finished; they are kept, and the same command "
            "goes on from there",
            "yellow",
        )
        raise typer.Exit(stop.exit_code) from None


def draw(result: SweepResult) -> None:
    """Print the scores beside those of the floor, which differences are shown, what failed, and what is next."""
    from samtl.report.summary import summarise

    summaries = summarise(result)
    for summary in summaries:
        _draw_summary(summary)
    if result.failed:
        _draw_failed(result)
    for note in result.notes[:LISTED]:
        render.say(note, "yellow")
    before = f", {result.skipped} were finished before" if result.skipped else ""
    failed = f", {len(result.failed)} failed" if result.failed else ""
    render.say(
        f"{result.done} cells trained in {render.duration(result.seconds)}{before}{failed}", "dim"
    )
    render.say(f"sweep: {result.out}")
    if result.failed:
        render.say("the same command tries again what failed", "dim")
    if summaries:
        render.say(f"next: samtl report {result.out}", "dim")


def _draw_summary(summary: Summary) -> None:
    means = "mean and deviation over seeds" if _repeated(summary) else "one seed"
    render.say(f"{summary.title} on {summary.dataset} in %, {means}")
    rows = [
        [line.model, *(written(line.scores.get(split)) for split in summary.splits)]
        for line in summary.lines
    ]
    _draw_table([["", *summary.splits], *rows])
    if not any(line.floor for line in summary.lines):
        render.say(f"no floor: {summary.floor_missing}", "yellow")
    for words in summary.words:
        render.say(words)
    for weights in summary.weights:
        render.warn_untrained(weights)


def _repeated(summary: Summary) -> bool:
    return any(score.n > 1 for line in summary.lines for score in line.scores.values())


def _draw_table(rows: list[list[str]]) -> None:
    """Print models as rows where that fits, else as columns, else each score in a row of its own.

    The first row and column are names.
    """
    turned = [list(column) for column in zip(*rows, strict=True)]
    for table in (rows, turned):
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        if sum(widths) + 2 * (len(widths) - 1) <= render.out.width:
            render.grid(table[0], table[1:], right=range(1, len(widths)))
            return
    headers, *models = rows
    scores = [
        [model, split, score]
        for model, *found in models
        for split, score in zip(headers[1:], found, strict=True)
        if score
    ]
    render.grid(["", "split", ""], scores, right=[2])


def written(score: Spread | None) -> str:
    """Write a score in percent, with its deviation where there is one."""
    if score is None:
        return ""
    deviation = "" if score.deviation is None else f" ± {100 * score.deviation:.1f}"
    return f"{100 * score.mean:.1f}{deviation}"


def _draw_failed(result: SweepResult) -> None:
    """Print each reason once, and what failed for it."""
    reasons: dict[str, list[str]] = defaultdict(list)
    for cell, reason in result.failed.items():
        reasons[reason].append(cell)
    render.say(f"{len(result.failed)} cells failed:", "red")
    for reason, (first, *others) in list(reasons.items())[:LISTED]:
        more = f" and {len(others)} more" if others else ""
        render.say(f"  {first}{more}: {reason}", "red")
    if len(reasons) > LISTED:
        render.say(f"  and {len(reasons) - LISTED} other reasons; --json FILE lists all", "red")


def _listed(option: str, text: str | None) -> list[str] | None:
    if text is None:
        return None
    names = [name.strip() for name in text.split(",")]
    if "" in names:
        raise InputError(f"{option} takes names separated by commas, got {text!r}")
    return names


def _seeds(text: str) -> int | list[int]:
    """Read how many seeds there are, or which."""
    try:
        numbers = [int(number) for number in text.split(",")]
    except ValueError:
        raise InputError(
            f"--seeds takes how many, such as 3, or which, such as 0,5,7, got {text!r}"
        ) from None
    return numbers if "," in text else numbers[0]


def _params(settings: list[str]) -> dict[str, dict[str, Any]]:
    """Read MODEL.NAME=VALUE; a value is JSON, or else text."""
    found: dict[str, dict[str, Any]] = defaultdict(dict)
    for setting in settings:
        parts = _SETTING.fullmatch(setting)
        if parts is None:
            raise InputError(f"--set takes MODEL.NAME=VALUE, such as vit.epochs=5, got {setting!r}")
        model, name, text = parts.groups()
        if name in found[model]:
            raise InputError(f"--set gives {model}.{name} twice; leave one out")
        try:
            found[model][name] = json_format.loads(text)
        except ValueError:
            found[model][name] = text
    return dict(found)
