"""What the encoder's pass and the fits cost, and after how many fits the pass has paid."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from statistics import median

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from samtl._runtime import duration
from samtl.errors import SamtlError
from samtl.experiment.run import Run
from samtl.report.compare import Comparison, Series
from samtl.report.content import Drawing, Value
from samtl.report.style import INK, figure, looks, rows_of_names, settled, styled
from samtl.report.words import FLOOR, sentences, split_words, untrained, untrained_words
from samtl.store.reader import open_store
from samtl.store.storage import is_url

_SECONDS = (0.001, 0.01, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20)
_MINUTES = tuple(60 * minutes for minutes in (1, 2, 5, 10, 30, 60, 120, 300, 720, 1440, 14_400))
_TICKS = (*_SECONDS, *_MINUTES)
_PAUSE = 10  # times the usual gap between two commits, above which the encoder was not working
_HEADER = (
    "model",
    "reads",
    "start",
    "fits",
    "seconds, median",
    "fastest",
    "slowest",
    "training alone, s",
    "samples/s",
    "peak memory, MiB",
)


@dataclass(frozen=True, eq=False)
class _Cost:
    """Fits of one model, all from scratch or all warm; `totals` include the fits that warm ones started from."""

    model: str
    warm: bool
    runs: tuple[Run, ...]
    totals: tuple[float, ...]

    @property
    def total(self) -> float:
        return float(np.median(self.totals))

    @property
    def training(self) -> float:
        """Median seconds of the training itself."""
        return float(np.median([run.seconds.get("fit", run.seconds["total"]) for run in self.runs]))

    @property
    def label(self) -> str:
        return f"{self.model} (warm)" if self.warm else self.model

    @property
    def is_head(self) -> bool:
        return self.runs[0].kind == "head"


def costs(comparison: Comparison, encoder_seconds: float | None = None) -> list[Drawing]:
    """Draw the time of each fit on the standard split, and tell after how many fits the encoder's pass has paid.

    The pass pays if a head's fit takes less time than that of a model that reads pixels: after
    pass / (pixel fit - head fit) fits, rounded up.

    `encoder_seconds` is the wall time of the pass, if known. There is no figure if no times were taken.
    """
    some = comparison.standard()
    by_name = {run.path.name: run for run in comparison.runs}
    found = [cost for one in some for cost in _costs_of(one, by_name)]
    if not found:
        return []
    pairs = [(cost.model, run) for cost in found for run in cost.runs]
    rivals = [c for c in found if not c.is_head and not c.warm and c.runs[0].name != FLOOR]
    if not any(cost.is_head for cost in found):
        known = ""
    elif encoder_seconds is None:
        known = "the time of the encoder's pass is not known here, nor when it has paid."
    else:
        known = f"the encoder's pass took {duration(encoder_seconds)}."
    return [
        Drawing(
            name="costs",
            title="Cost of fits",
            caption=sentences(
                f"Wall time of a whole fit (reading, training, scoring), medians; {split_words(some[0])}.",
                "Line: from the fastest to the slowest fit. Tick: the median of the training alone. The axis is "
                "logarithmic.",
                known,
                "Fits marked warm started from the weights of another, whose time is included."
                if any(cost.warm for cost in found)
                else "",
                untrained_words(pairs),
            ),
            header=(
                *_HEADER,
                *(f"saved against {rival.model}, s a fit" for rival in rivals),
                *(f"fits that pay the pass back, against {rival.model}" for rival in rivals),
            ),
            rows=tuple(_row(cost, rivals, encoder_seconds) for cost in found),
            figure=_drawn(comparison, found, encoder_seconds),
        )
    ]


def _costs_of(one: Series, by_name: Mapping[str, Run]) -> list[_Cost]:
    """Separate warm fits from those from scratch."""
    found = []
    for warm in (False, True):
        runs = [r for r in one.runs if "total" in r.seconds and bool(r.warm_start) == warm]
        if runs:
            totals = tuple(_with_ancestors(run, by_name) for run in runs)
            found.append(_Cost(one.model, warm, tuple(runs), totals))
    return found


def _with_ancestors(run: Run, by_name: Mapping[str, Run]) -> float:
    """Add up the seconds of a fit and of those that it started from, as far as the comparison has them."""
    chain: dict[str, float] = {}
    one: Run | None = run
    while one is not None and one.path.name not in chain:
        chain[one.path.name] = one.seconds.get("total", 0.0)
        one = by_name.get(Path(one.warm_start).name)
    return sum(chain.values())


def payback(encoder_seconds: float, pixel_fit: float, head_fit: float) -> int | None:
    """Return after how many fits the encoder's pass has paid; None if it never does."""
    saved = pixel_fit - head_fit
    return math.ceil(encoder_seconds / saved) if saved > 0 else None


def _row(cost: _Cost, rivals: Sequence[_Cost], encoder_seconds: float | None) -> tuple[Value, ...]:
    speeds = [
        float(run.training["samples_per_second"])
        for run in cost.runs
        if "samples_per_second" in run.training
    ]
    memory = float(np.median([run.peak_memory for run in cost.runs]))
    return (
        cost.model,
        cost.runs[0].inputs,
        "warm" if cost.warm else "from scratch",
        len(cost.runs),
        round(cost.total, 2),
        round(min(cost.totals), 2),
        round(max(cost.totals), 2),
        round(cost.training, 2),
        round(float(np.median(speeds)), 1) if speeds else None,
        round(memory / 2**20),
        *(round(rival.total - cost.total, 1) if cost.is_head else None for rival in rivals),
        *(_pays(cost, rival, encoder_seconds) if cost.is_head else None for rival in rivals),
    )


def _pays(head: _Cost, rival: _Cost, encoder_seconds: float | None) -> int | str:
    if encoder_seconds is None:
        return "never" if head.total >= rival.total else "not known"
    fits = payback(encoder_seconds, rival.total, head.total)
    return "never" if fits is None else fits


def _drawn(comparison: Comparison, found: Sequence[_Cost], encoder_seconds: float | None) -> Figure:
    style = looks(comparison.models)
    rows = sorted(found, key=lambda cost: -cost.total)
    names, times = [cost.label for cost in rows], [cost.total for cost in rows]
    with_pass = encoder_seconds is not None and any(cost.is_head for cost in found)
    if encoder_seconds is not None and with_pass:
        names, times = ["encoder's pass, once", *names], [encoder_seconds, *times]
    with styled():
        drawn = figure(1.0 + 0.38 * len(names))
        axes = drawn.subplots()
        if with_pass:
            axes.plot(times[:1], [0], "*", color=INK, markersize=11)
        for place, cost in enumerate(rows, int(with_pass)):
            colour = style[cost.model].colour
            axes.plot([min(cost.totals), max(cost.totals)], [place] * 2, color=colour, lw=2.4)
            axes.plot([cost.training], [place], "|", color=colour, markersize=16, mew=1.6)
            face = "none" if cost.warm else colour
            axes.plot([cost.total], [place], "o", color=colour, mfc=face, markersize=8, mew=1.6)
        axes.set_xscale("log")
        low, high = axes.dataLim.intervalx
        first = max((tick for tick in _TICKS if tick < low), default=low)
        last = min((tick for tick in _TICKS if tick > high), default=high)
        axes.set_xlim(first, last)
        ticks = [tick for tick in _TICKS if first <= tick <= last]
        axes.set_xticks(ticks[:: -(-len(ticks) // 5)])
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: duration(value)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(axis="x", which="minor", length=0)
        rows_of_names(axes, names, [duration(seconds) for seconds in times])
        return settled(drawn, untrained((cost.model, run) for cost in found for run in cost.runs))


def pass_seconds(comparison: Comparison) -> float | None:
    """Return how long the encoder worked on the store that the comparison's heads read.

    Commits of blocks carry their time in seconds. Pauses between two commands are left out. None if there are several
    stores, the store is in a bucket or no longer where the runs found it, or all of it was committed within a second.
    """
    heads = [run for run in comparison.runs if run.store]
    fingerprints = {run.fingerprint for run in heads}
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
    except (
        SamtlError,
        OSError,
        KeyError,
        ValueError,
        RuntimeError,
    ):  # RuntimeError: links in a circle
        return None
    gaps = [later - earlier for earlier, later in pairwise(times)]
    if {store.fingerprint} != fingerprints or not any(gaps):
        return None
    working = [gap for gap in gaps if gap <= _PAUSE * max(median(gaps), 1.0)]
    # The first block has no gap before it, and those after a pause have none that counts.
    return sum(working) / len(working) * len(times)
