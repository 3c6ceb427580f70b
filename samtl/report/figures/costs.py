"""What the encoder's pass and the fits cost, and after how many fits the pass has paid."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from statistics import median

from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from samtl._runtime import duration
from samtl.errors import SamtlError
from samtl.experiment.run import Run
from samtl.report.compare import FLOOR, Comparison, untrained
from samtl.report.parts import Drawing, Value, caption
from samtl.report.style import INK, log_scale, looks, new_figure, rows_of_names
from samtl.store.reader import open_store
from samtl.store.storage import is_url

_PAUSE = 10  # times the usual gap between two commits, above which the encoder was not working


@dataclass(frozen=True, eq=False)
class _Cost:
    """Fits of one model, all from scratch or all warm; `totals` include the fits that warm ones started from."""

    model: str
    warm: bool
    runs: Sequence[Run]
    totals: Sequence[float]

    @property
    def total(self) -> float:
        return median(self.totals)

    @property
    def training(self) -> float:
        """Median seconds of the training itself."""
        return median(run.seconds.get("fit", run.seconds["total"]) for run in self.runs)

    @property
    def is_head(self) -> bool:
        return self.runs[0].kind == "head"


def costs(comparison: Comparison, encoder_seconds: float | None = None) -> Drawing:
    """Draw the time of each fit on the standard split, and tell after how many fits the encoder's pass has paid.

    The pass pays if a head's fit takes less time than that of a model that reads pixels: after
    pass / (pixel fit - head fit) fits, rounded up.

    `encoder_seconds` is the wall time of the pass, if known.
    """
    by_name = {run.path.name: run for run in comparison.runs}
    found = []
    for one in comparison.standard:
        for warm in (False, True):
            if runs := [run for run in one.runs if bool(run.warm_start) == warm]:
                totals = [_with_ancestors(run, by_name) for run in runs]
                found.append(_Cost(one.model, warm, runs, totals))
    rivals = [c for c in found if not c.is_head and not c.warm and c.runs[0].name != FLOOR]
    heads = any(cost.is_head for cost in found)
    note = untrained((cost.model, run) for cost in found for run in cost.runs)
    return Drawing(
        name="costs",
        title="Cost of fits",
        caption=caption(
            "costs",
            one=comparison.standard[0],
            heads=heads,
            encoder_time=encoder_seconds and duration(encoder_seconds),
            warm=any(cost.warm for cost in found),
        ),
        rows=[_row(cost, rivals, encoder_seconds) for cost in found],
        figure=_drawn(comparison, found, encoder_seconds if heads else None, note),
        note=note,
    )


def _with_ancestors(run: Run, by_name: Mapping[str, Run]) -> float:
    """Add up the seconds of a fit and of those that it started from, as far as the comparison has them."""
    chain: dict[str, float] = {}
    one: Run | None = run
    while one is not None and one.path.name not in chain:
        chain[one.path.name] = one.seconds["total"]
        one = by_name.get(Path(one.warm_start).name)
    return sum(chain.values())


def payback(encoder_seconds: float, pixel_fit: float, head_fit: float) -> int | None:
    """Return after how many fits the encoder's pass has paid; None if it never does."""
    saved = pixel_fit - head_fit
    return math.ceil(encoder_seconds / saved) if saved > 0 else None


def _row(cost: _Cost, rivals: Sequence[_Cost], encoder_seconds: float | None) -> dict[str, Value]:
    speeds = [run.training.get("samples_per_second") for run in cost.runs]
    known = [float(speed) for speed in speeds if speed is not None]
    row: dict[str, Value] = {
        "model": cost.model,
        "reads": cost.runs[0].inputs,
        "start": "warm" if cost.warm else "from scratch",
        "fits": len(cost.runs),
        "seconds, median": round(cost.total, 2),
        "fastest": round(min(cost.totals), 2),
        "slowest": round(max(cost.totals), 2),
        "training alone, s": round(cost.training, 2),
        "samples/s": round(median(known), 1) if known else None,
        "peak memory, MiB": round(median(run.peak_memory for run in cost.runs) / 2**20),
    }
    for rival in rivals:
        pays: Value = None
        row[f"saved against {rival.model}, s a fit"] = (
            round(rival.total - cost.total, 1) if cost.is_head else None
        )
        if cost.is_head:
            fits = payback(encoder_seconds or 0.0, rival.total, cost.total)
            pays = "never" if fits is None else "not known" if encoder_seconds is None else fits
        row[f"fits that pay the pass back, against {rival.model}"] = pays
    return row


def _drawn(
    comparison: Comparison, found: Sequence[_Cost], encoder_seconds: float | None, note: str
) -> Figure:
    style = looks(comparison.models)
    rows = sorted(found, key=lambda cost: -cost.total)
    names = [f"{cost.model} (warm)" if cost.warm else cost.model for cost in rows]
    times = [cost.total for cost in rows]
    if encoder_seconds is not None:
        names, times = ["encoder's pass, once", *names], [encoder_seconds, *times]
    with new_figure(1.2 + 0.38 * len(names), note=note) as figure:
        axes = figure.subplots()
        if encoder_seconds is not None:
            axes.plot([encoder_seconds], [0], "*", color=INK, markersize=11)
        for place, cost in enumerate(rows, len(names) - len(rows)):
            colour = style[cost.model].colour
            axes.plot([min(cost.totals), max(cost.totals)], [place] * 2, color=colour, lw=2.4)
            axes.plot([cost.training], [place], "|", color=colour, markersize=16, mew=1.6)
            face = "none" if cost.warm else colour
            axes.plot([cost.total], [place], "o", color=colour, mfc=face, markersize=8, mew=1.6)
        log_scale(axes, "x")
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g} s"))
        rows_of_names(axes, names, [duration(seconds) for seconds in times])
    return figure


def pass_seconds(comparison: Comparison) -> float | None:
    """Return how long the encoder worked on the store that the comparison's heads read.

    Commits of blocks carry their time in seconds. Pauses between two commands are left out. None if there are several
    stores, the store is in a bucket or no longer where the runs found it, or all of it was committed within a second.
    """
    heads = [run for run in comparison.runs if run.store]
    if any(is_url(run.store_path) for run in heads):  # a report contacts no server
        return None
    try:
        # Resolved, since the same store may have been named from several folders.
        places = {Path(run.store_path).resolve() for run in heads}
        if len(places) != 1:
            return None
        store = open_store(places.pop())
        committed = [str(writer["committed"]) for writer in store.writers()]
        times = sorted(datetime.fromisoformat(text).timestamp() for text in committed)
    except (SamtlError, OSError, ValueError):
        return None
    gaps = [later - earlier for earlier, later in pairwise(times)]
    if {store.fingerprint} != {run.fingerprint for run in heads} or not any(gaps):
        return None
    working = [gap for gap in gaps if gap <= _PAUSE * max(median(gaps), 1.0)]
    # The first block has no gap before it, and those after a pause have none that counts.
    return sum(working) / len(working) * len(times)
