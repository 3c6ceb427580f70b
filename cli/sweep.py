"""`samtl sweep`: heads x splits x seeds over stores, and baselines beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import samtl
from samtl._runtime import StopNow, stop_at_once
from samtl.errors import EXIT_FAILED_CELLS

from . import render
from .board import Board
from .options import Outcome, parsed, verb


@verb("samtl.sweep.api:sweep", skip=("stores", "features"), rename={"settings": "set"})
def sweep(
    options: dict[str, Any],
    cache: list[Path] | None = None,
    features: list[str] | None = None,
    settings: list[str] | None = None,
    table: Path | None = None,
) -> Outcome:
    """Train every head on every split with every seed, and baselines beside them; skip what is finished.

    Parameters
    ----------
    cache
        A store, or a folder with one; repeat it for several stores. The only store in $SAMTL_CACHE or ./cache by
        default. --heads none needs no store.
    features
        Columns of pooled to train on, as for fit-head; repeat it to compare several.
    settings
        A parameter of a head or baseline as MODEL.NAME=VALUE, such as vit.epochs=5; repeat it for several.
    table
        Write the scores of all cells to this CSV file.
    """
    from samtl.store.storage import locate

    if options["heads"] == ["none"]:
        options["heads"] = []
    options |= {"features": features or [], "params": parsed(settings or [])}
    caches: list[Path | None] = [*(cache or [])] or ([] if options["heads"] == [] else [None])
    stores, board = [locate(cache) for cache in caches], Board()
    try:
        with stop_at_once(), board.live():
            result = samtl.sweep(stores, **options, on_event=board.tell)
    except StopNow:
        render.say(f"{board.finished} of {len(board.cells)} cells are finished", "yellow")
        raise
    draw(result)
    if table is not None:
        result.write_table(table)
    return result.to_json(), EXIT_FAILED_CELLS if result.failed else 0


def draw(result: samtl.SweepResult) -> None:
    """Print the scores beside those of the floor, the differences, what failed, and the next command."""
    from samtl.report.summary import summarise

    summaries = summarise(result)
    for summary in summaries:
        _draw_summary(summary)
    failed = [f"{cell}: {reason}" for cell, reason in result.failed.items()]
    title = f"{len(failed)} cells failed; the same command tries them again:"
    render.listed(failed, title, "red")
    render.listed(result.notes)
    trained = f"{result.done} cells trained in {render.duration(result.seconds)}"
    render.say(f"{trained}, {result.skipped} were finished before", "dim")
    render.say(f"sweep: {result.out}")
    if summaries:
        render.say(f"next: samtl report {result.out}", "dim")


def _draw_summary(summary: Any) -> None:
    several = any(len(one.values) > 1 for line in summary.scores.values() for one in line.values())
    folds = any(split.startswith("kfold:") for split in summary.splits)
    means = f"mean and deviation over seeds{' and folds' * folds}" if several else "one seed"
    unit = f" in {summary.metric.unit}" if summary.metric.unit else ""
    render.say(f"{summary.metric.title} on {summary.dataset}{unit}, {means}")
    rows = [
        [model, *(_written(summary.metric, line.get(split)) for split in summary.splits)]
        for model, line in summary.scores.items()
    ]
    table = [["", *summary.splits], *rows]
    if len(summary.splits) > len(rows) + 2:  # models as columns
        table = [list(column) for column in zip(*table, strict=True)]
    render.grid(table[0], table[1:], right=range(1, len(table[0])))
    if summary.floor_missing:
        render.say(f"no floor: {summary.floor_missing}", "yellow")
    for words in summary.words:
        render.say(words)
    for weights in summary.weights:
        render.warn_untrained(weights)


def _written(metric: Any, score: Any) -> str:
    """Write a score, with its deviation if there is one."""
    if score is None:
        return ""
    deviation = "" if score.deviation is None else f" ± {metric.written(score.deviation)}"
    return f"{metric.written(score.mean)}{deviation}"
