"""What the encoder's pass cost, what fits cost, and when the pass has paid."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from samtl._runtime import duration
from samtl.report.content import Cell as Value
from samtl.report.content import (
    Drawing,
    Study,
    Table,
    Trial,
)
from samtl.report.figures.groups import (
    FLOOR,
    STANDARD_SHARE,
    Cell,
    at_share,
    sentences,
    split_words,
    untrained,
    untrained_words,
)
from samtl.report.style import (
    INK,
    SMALL,
    bare,
    figure,
    looks,
    settled,
    styled,
)

_MIB = 2**20
_MINUTE, _HOUR, _DAY = 60, 3600, 24 * 3600
_DECADES = (0.001, 0.01, 0.1, 1, 10, _MINUTE, 10 * _MINUTE, _HOUR, 6 * _HOUR, _DAY, 10 * _DAY)
_BETWEEN = (
    *(step * unit for unit in (0.01, 0.1, 1) for step in (2, 5)),
    *(step * unit for unit in (1, _MINUTE) for step in (20, 30)),
    *(step * unit for unit in (_MINUTE, _HOUR) for step in (2, 5)),
    *(12 * _HOUR, 2 * _DAY, 5 * _DAY),
)
_MOST_TICKS = 5


@dataclass(frozen=True, eq=False)
class _Cost:
    """Fits of one model that began in the same way.

    Attributes
    ----------
    model : str
    warm : bool
        Whether they went on from the weights of other fits.
    trials : tuple of Trial
    totals : tuple of float
        Seconds of each whole fit, and of those that it went on from.
    """

    model: str
    warm: bool
    trials: tuple[Trial, ...]
    totals: tuple[float, ...]

    @property
    def total(self) -> float:
        return float(np.median(self.totals))

    @property
    def training(self) -> float:
        """Median seconds of the training alone, without that of other fits."""
        return float(np.median([t.seconds.get("fit", t.seconds["total"]) for t in self.trials]))

    @property
    def label(self) -> str:
        return f"{self.model} (warm)" if self.warm else self.model

    @property
    def is_head(self) -> bool:
        return self.trials[0].kind == "head"


def costs(
    study: Study, encoder_seconds: float | None = None, share: float = STANDARD_SHARE
) -> list[Drawing]:
    """Draw what each fit took, and tell after how many fits the encoder's pass has paid.

    The pass pays where a head's fit takes less than that of a model that reads pixels: after
    pass / (pixel fit - head fit) fits, rounded up.

    Parameters
    ----------
    study : Study
    encoder_seconds : float, optional
        Wall time of the encoder's pass, where it is known.
    share : float
        The held-out share; fits on the split nearest to it are compared.

    Returns
    -------
    list of Drawing
        One, or none where no time was taken.
    """
    cells = [cell for cell in at_share(study, share) if cell.run]
    runs = {trial.path.name: trial for trial in study.trials}
    found = [cost for cell in cells for cost in _told_apart(cell, runs)]
    if not found:
        return []
    trials = [trial for cost in found for trial in cost.trials]
    rivals = [
        cost
        for cost in found
        if not cost.is_head and not cost.warm and cost.trials[0].name != FLOOR
    ]
    known = (
        f"the encoder's pass took {duration(encoder_seconds)}."
        if encoder_seconds is not None
        else "what the encoder's pass cost is not known here, so when it has paid is not told."
    )
    words = sentences(
        f"Wall time of a whole fit (reading, training, scoring), medians; {split_words(cells[0])}.",
        "Line: from the fastest to the slowest fit. Tick: the median of the training alone. The axis is logarithmic.",
        known if any(cost.is_head for cost in found) else "",
        "Fits marked warm went on from the weights of another, whose time is counted in them."
        if any(cost.warm for cost in found)
        else "",
        untrained_words(trials),
    )
    title = "What fits cost"
    rows = tuple(_row(cost, rivals, encoder_seconds) for cost in found)
    return [
        Drawing(
            name="costs",
            title=title,
            caption=words,
            alt=sentences(
                "Median time of a fit: "
                + "; ".join(f"{cost.label} {duration(cost.total)}" for cost in found)
                + ".",
                *_payback_words(found, rivals, encoder_seconds),
                untrained_words(trials),
            ),
            figure=_drawn(study, found, encoder_seconds),
            table=Table("costs", title, words, _header(rivals), rows),
        )
    ]


def _told_apart(cell: Cell, runs: Mapping[str, Trial]) -> list[_Cost]:
    """Part the fits that began with the weights of others from those that did not."""
    timed = [trial for trial in cell.trials if "total" in trial.seconds]
    parts = [
        (warm, tuple(t for t in timed if bool(t.warm_start) == warm)) for warm in (False, True)
    ]
    return [
        _Cost(cell.model, warm, some, tuple(_with_ancestors(trial, runs) for trial in some))
        for warm, some in parts
        if some
    ]


def _with_ancestors(trial: Trial, runs: Mapping[str, Trial]) -> float:
    """Add up the seconds of a fit and of those that it went on from, as far as the study has them."""
    seconds, seen = 0.0, set()
    one: Trial | None = trial
    while one is not None and one.path.name not in seen:
        seconds += one.seconds.get("total", 0.0)
        seen.add(one.path.name)
        one = runs.get(Path(one.warm_start).name) if one.warm_start else None
    return seconds


def payback(encoder_seconds: float, pixel_fit: float, head_fit: float) -> int | None:
    """Give after how many fits the encoder's pass has paid; None where it never does."""
    saved = pixel_fit - head_fit
    return math.ceil(encoder_seconds / saved) if saved > 0 else None


def _header(rivals: Sequence[_Cost]) -> tuple[str, ...]:
    return (
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
        *(f"saved against {rival.model}, s a fit" for rival in rivals),
        *(f"fits that pay the pass back, against {rival.model}" for rival in rivals),
    )


def _row(cost: _Cost, rivals: Sequence[_Cost], encoder_seconds: float | None) -> tuple[Value, ...]:
    speeds = [
        float(trial.training["samples_per_second"])
        for trial in cost.trials
        if "samples_per_second" in trial.training
    ]
    return (
        cost.model,
        cost.trials[0].features,
        "warm" if cost.warm else "from scratch",
        len(cost.trials),
        round(cost.total, 2),
        round(min(cost.totals), 2),
        round(max(cost.totals), 2),
        round(cost.training, 2),
        round(float(np.median(speeds)), 1) if speeds else None,
        round(float(np.median([trial.peak_memory for trial in cost.trials])) / _MIB),
        *(round(rival.total - cost.total, 1) if cost.is_head else None for rival in rivals),
        *(_pays(cost, rival, encoder_seconds) if cost.is_head else None for rival in rivals),
    )


def _pays(head: _Cost, rival: _Cost, encoder_seconds: float | None) -> int | str:
    if encoder_seconds is None:
        return "never" if head.total >= rival.total else "not known"
    fits = payback(encoder_seconds, rival.total, head.total)
    return "never" if fits is None else fits


def _payback_words(
    found: Sequence[_Cost], rivals: Sequence[_Cost], encoder_seconds: float | None
) -> list[str]:
    if encoder_seconds is None:
        return []
    told = []
    for rival in rivals:
        parts = []
        for cost in found:
            if cost.is_head:
                fits = payback(encoder_seconds, rival.total, cost.total)
                parts.append(f"{cost.label} {'never' if fits is None else f'after {fits} fits'}")
        if parts:
            told.append(f"Against {rival.model} the pass has paid: {', '.join(parts)}.")
    return told


def _drawn(study: Study, found: Sequence[_Cost], encoder_seconds: float | None) -> Figure:
    style = looks((*study.models, FLOOR))
    rows = sorted(found, key=lambda cost: -cost.total)
    has_heads = any(cost.is_head for cost in found)
    with styled():
        drawn = figure(1.0 + 0.38 * (len(rows) + (encoder_seconds is not None and has_heads)))
        axes = drawn.subplots()
        names, times = [], []
        if encoder_seconds is not None and has_heads:
            axes.plot([encoder_seconds], [0], "*", color=INK, markersize=11)
            names.append("encoder's pass, once")
            times.append(encoder_seconds)
        for place, cost in enumerate(rows, len(names)):
            colour = style[cost.label if cost.label in style else cost.model].colour
            axes.plot(
                [min(cost.totals), max(cost.totals)], [place] * 2, color=colour, linewidth=2.4
            )
            axes.plot(
                [cost.training], [place], "|", color=colour, markersize=16, markeredgewidth=1.6
            )
            face = "none" if cost.warm else colour
            axes.plot(
                [cost.total],
                [place],
                "o",
                color=colour,
                markerfacecolor=face,
                markersize=8,
                markeredgewidth=1.6,
            )
            names.append(cost.label)
            times.append(cost.total)
        for place, seconds in enumerate(times):
            axes.text(
                1.02,
                place,
                duration(seconds),
                transform=axes.get_yaxis_transform(),
                va="center",
                fontsize=SMALL,
            )
        axes.set_xscale("log")
        ticks = _ticks(*axes.dataLim.intervalx)
        axes.set_xlim(ticks[0], ticks[-1])
        axes.set_xticks(ticks)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: duration(value)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(axis="x", which="minor", length=0)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(-0.6, len(names) - 0.4)
        bare(axes)
        return settled(drawn, untrained(trial for cost in found for trial in cost.trials))


def _ticks(low: float, high: float) -> list[float]:
    """Give round times from at most the lowest to at least the highest."""
    for known in (sorted(_DECADES + _BETWEEN), _DECADES):
        first = max((tick for tick in known if tick < low), default=low)
        last = min((tick for tick in known if tick > high), default=high)
        ticks = [tick for tick in known if first < tick < last]
        if len(ticks) + 2 <= _MOST_TICKS:
            break
    return [first, *ticks, last]
