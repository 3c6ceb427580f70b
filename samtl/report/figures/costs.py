"""What the encoder's pass and the fits cost, and after how many fits the pass has paid."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from samtl._runtime import duration
from samtl.experiment.run import Run
from samtl.report.compare import STORE, Comparison, untrained
from samtl.report.load import read_stores
from samtl.report.page import Part, Row, caption
from samtl.report.style import INK, Look, log_scale, looks, new_figure, rows_of_names
from samtl.store.reader import Store

_TOTAL, _TRAINING = "seconds, median", "training alone, s"
_PAUSE = 10  # times the usual gap between two commits, above which the encoder was not working


def costs(comparison: Comparison, encoder_seconds: float | None = None) -> Part:
    """Draw the time of each fit on the standard split, and tell after how many fits the encoder's pass has paid.

    The pass pays if a head's fit takes less time than that of a model that reads pixels: after
    pass / (pixel fit - head fit) fits, rounded up.

    `encoder_seconds` is the wall time of the pass, if known.
    """
    series, by_name = comparison.standard, {run.path.name: run for run in comparison.runs}
    rows = [
        {"model": one.model, **_row(runs, by_name)}
        for one in series
        for warm in (False, True)
        if (runs := [run for run in one.runs if bool(run.warm_start) == warm])
    ]
    heads = [row for row in rows if row["reads"] != "pixels"]
    floors = [one.model for one in series if one.is_floor]
    for rival in rows:
        if rival in heads or rival["start"] == "warm" or rival["model"] in floors:
            continue
        for row in rows:
            saved, fits = rival[_TOTAL] - row[_TOTAL], None
            if row in heads:
                known = "never" if saved <= 0 else "not known"
                fits = known if encoder_seconds is None else payback(encoder_seconds, saved)
            row[f"saved against {rival['model']}, s a fit"] = saved if row in heads else None
            row[f"fits that pay the pass back, against {rival['model']}"] = fits
    note = untrained(pair for one in series for pair in one.pairs)
    time = encoder_seconds and duration(encoder_seconds)
    warm = any(row["start"] == "warm" for row in rows)
    text = caption("costs", one=series[0], heads=heads, encoder_time=time, warm=warm)
    figure = _drawn(looks(comparison.names), rows, encoder_seconds if heads else None, note)
    return Part("costs", "Cost of fits", text, rows, note, figure)


def _row(runs: Sequence[Run], by_name: Mapping[str, Run]) -> dict[str, Any]:
    """Summarise fits of one model, all from scratch or all warm."""
    totals = [_with_ancestors(run, by_name) for run in runs]
    speeds = [run.training.get("samples_per_second") for run in runs]
    known = [speed for speed in speeds if speed is not None]
    return {
        "reads": runs[0].inputs,
        "start": "warm" if runs[0].warm_start else "from scratch",
        "fits": len(runs),
        _TOTAL: median(totals),
        "fastest": min(totals),
        "slowest": max(totals),
        _TRAINING: median(run.seconds.get("fit", run.seconds["total"]) for run in runs),
        "samples/s": median(known) if known else None,
        "peak memory, MiB": round(median(run.peak_memory for run in runs) / 2**20),
    }


def _with_ancestors(run: Run, by_name: Mapping[str, Run]) -> float:
    """Add up the seconds of a fit and of those that it started from, as far as the comparison has them."""
    chain: dict[str, float] = {}
    one: Run | None = run
    while one is not None and one.path.name not in chain:
        chain[one.path.name] = one.seconds["total"]
        one = by_name.get(Path(one.warm_start).name)
    return sum(chain.values())


def payback(encoder_seconds: float, saved: float) -> int | str:
    """Return after how many fits that each save so many seconds the encoder's pass has paid, or "never"."""
    return math.ceil(encoder_seconds / saved) if saved > 0 else "never"


def _drawn(
    style: Mapping[str, Look], rows: Sequence[Row], encoder_seconds: float | None, note: str
) -> Figure:
    rows = sorted(rows, key=lambda row: -row[_TOTAL])
    names = [f"{row['model']}{' (warm)' * (row['start'] == 'warm')}" for row in rows]
    times = [row[_TOTAL] for row in rows]
    if encoder_seconds is not None:
        names, times = [*names, "encoder's pass, once"], [*times, encoder_seconds]
    with new_figure(1.2 + 0.38 * len(names), note=note) as figure:
        axes = figure.subplots()
        if encoder_seconds is not None:
            axes.plot([encoder_seconds], [len(rows)], "*", color=INK, markersize=11)
        for place, row in enumerate(rows):
            colour = style[row["model"]].colour
            axes.plot([row["fastest"], row["slowest"]], [place] * 2, color=colour, lw=2.4)
            axes.plot([row[_TRAINING]], [place], "|", color=colour, markersize=16, mew=1.6)
            face = "none" if row["start"] == "warm" else colour
            axes.plot([row[_TOTAL]], [place], "o", color=colour, mfc=face, markersize=8, mew=1.6)
        log_scale(axes, "x")
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g} s"))
        rows_of_names(axes, names, [duration(seconds) for seconds in times])
    return figure


def pass_seconds(comparison: Comparison) -> float | None:
    """Return how long the encoder worked on the store that the comparison's heads read.

    Commits of blocks carry their time in seconds. Pauses between two commands are left out. None if there are several
    stores, the store is in a bucket or no longer where the runs found it, or all of it was committed within a second.
    """
    stores, absent = read_stores(comparison)
    return None if absent or len(stores) != 1 else _working_seconds(*stores.values())


def encoder_costs(comparison: Comparison, stores: Mapping[str, Store]) -> list[Part]:
    """Return what an image costs each of several encoders, beside the best score on what it gives."""
    metric, ranked = comparison.metric, comparison.ranked(comparison.standard)
    rows: list[Row] = []
    for name, store in stores.items() if len(stores) > 1 else ():
        best = next((one for one in ranked if one.model.endswith(f"{STORE}{name}")), None)
        if best is None:
            continue
        seconds, images = _working_seconds(store), int(store.valid().sum())
        spread, unit = best.spread(metric.name), f", {metric.unit}" if metric.unit else ""
        device = next((str(writer["device"]) for writer in store.writers()), "")
        rows.append(
            {
                "encoder": name,
                "ms an image": seconds and 1000 * seconds / max(images, 1),
                "device": device,
                "computed in": store.identity["compute_dtype"],
                "image size": store.image_size or None,
                "KiB an image": sum(map(store.bytes_of, store.tiers)) / 1024 / max(len(store), 1),
                "best model": best.model,
                f"{metric.title}{unit}": metric.factor * spread.mean,
            }
        )
    text = caption("encoder_costs", one=comparison.standard[0])
    return [Part("encoders", "Cost and score of each encoder", text, rows)] if rows else []


def _working_seconds(store: Store) -> float | None:
    """Add up the time between the commits of a store, without pauses; None if all are of one second."""
    committed = [str(writer["committed"]) for writer in store.writers()]
    times = sorted(datetime.fromisoformat(text).timestamp() for text in committed)
    gaps = [later - earlier for earlier, later in pairwise(times)]
    if not any(gaps):
        return None
    working = [gap for gap in gaps if gap <= _PAUSE * max(median(gaps), 1.0)]
    # The first block has no gap before it, and those after a pause have none that counts.
    return sum(working) / len(working) * len(times)
