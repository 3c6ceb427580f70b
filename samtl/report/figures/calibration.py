"""Reliability diagrams: how often a model is right, by how sure it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from samtl.experiment.tables import read_predictions
from samtl.metrics.declared import metrics_of
from samtl.metrics.intervals import binomial
from samtl.metrics.paired import Predictions
from samtl.report.compare import Comparison, Series, untrained
from samtl.report.figures.scores import wrapped
from samtl.report.page import Part, Row, caption
from samtl.report.style import GRID, INK, SMALL, Look, looks, panels

BINS = 10
_ACROSS = 3


def reliability(comparison: Comparison) -> list[Part]:
    """Draw the accuracy of predictions against their probability, on the standard split, a panel for each model.

    The diagram is that of Niculescu-Mizil and Caruana (2005) for the predicted class. For other tasks than
    classification, and for runs that kept no probabilities, there is nothing.
    """
    if comparison.task != "classification":
        return []
    found = {}
    for one in comparison.ranked(comparison.standard):
        outcomes = [read_predictions(run) for run in one.runs]
        if all(outcome.confidence is not None for outcome in outcomes):
            found[one.model] = (one, _bins(one.model, outcomes))
    if not found:
        return []
    rows = [row for _, some in found.values() for row in some]
    note = untrained(pair for one, _ in found.values() for pair in one.pairs)
    figure = _drawn(comparison, found, looks(comparison.names), note)
    without = [one.model for one in comparison.standard if one.model not in found]
    series = [one for one, _ in found.values()]
    text = caption("reliability", series=series, bins=BINS, without=without)
    return [Part("reliability", "Reliability", text, rows, note, figure)]


def _bins(model: str, outcomes: Sequence[Predictions]) -> list[Row]:
    """Return a row for each bin of confidence that has samples, over all seeds."""
    chance = np.concatenate(
        [outcome.confidence for outcome in outcomes if outcome.confidence is not None]
    )
    hit = np.concatenate([outcome.truth == outcome.guess for outcome in outcomes])
    place = np.clip((chance * BINS).astype(int), 0, BINS - 1)
    n, hits, sums = (np.bincount(place, values, BINS) for values in (None, hit, chance))
    # Seeds hold out overlapping samples, so an interval counts the samples of one.
    low, high = binomial(hits / len(outcomes), n / len(outcomes))
    return [
        {
            "model": model,
            "from, %": 100 * i / BINS,
            "to, %": 100 * (i + 1) / BINS,
            "predictions": int(n[i]),
            "of all, %": 100 * float(n[i] / n.sum()),
            "mean probability, %": 100 * float(sums[i] / n[i]),
            "right, %": 100 * float(hits[i] / n[i]),
            "low": 100 * float(low[i]),
            "high": 100 * float(high[i]),
        }
        for i in np.flatnonzero(n).tolist()
    ]


def _drawn(
    comparison: Comparison,
    found: Mapping[str, tuple[Series, Sequence[Row]]],
    style: Mapping[str, Look],
    note: str,
) -> Figure:
    shape = (len(found), _ACROSS, 2.15, 0.5)
    with panels(*shape, note, shared=True) as (figure, every):
        for axes, (model, (one, rows)) in zip(every, found.items(), strict=True):
            _panel(axes, rows, style[model])
            said = [
                f"{metric.title} {metric.written(one.spread(metric.name).mean)} {metric.unit}"
                for metric in metrics_of(comparison.task)
                if not metric.higher_is_better and metric.name in one.scores[0]
            ]
            axes.set_title("\n".join((wrapped(model), *said)), fontsize=SMALL - 1)
        figure.supxlabel("probability of the predicted class (%)", fontsize=10)
        figure.supylabel("right (%)", fontsize=10)
    return figure


def _panel(axes: Axes, rows: Sequence[Row], look: Look) -> None:
    axes.plot([0, 100], [0, 100], color=INK, lw=0.9, ls=(0, (4, 3)))
    x = [row["mean probability, %"] for row in rows]
    # How many predictions each bin has: bars of at most a quarter of the panel.
    most = max(row["of all, %"] for row in rows)
    width = 100 / BINS
    for row in rows:
        height = 25 * row["of all, %"] / most
        axes.bar(row["from, %"] + width / 2, height, 0.9 * width, color=GRID, zorder=0)
    axes.vlines(
        x, [row["low"] for row in rows], [row["high"] for row in rows], color=look.colour, alpha=0.6
    )
    axes.plot(x, [row["right, %"] for row in rows], color=look.colour, marker="o", ms=4, lw=1.2)
    axes.set(xlim=(0, 100), ylim=(0, 100), aspect="equal", xticks=(0, 50, 100), yticks=(0, 50, 100))
