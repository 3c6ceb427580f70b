"""Predicted against true numbers of a regression."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from samtl.experiment.tables import read_outputs
from samtl.metrics.paired import Outputs
from samtl.report.compare import Comparison, Series, untrained
from samtl.report.figures.scores import wrapped
from samtl.report.page import Part, caption
from samtl.report.style import INK, SMALL, Look, looks, panels

MOST = 500  # points of a panel
_ACROSS = 3


def predicted_numbers(comparison: Comparison) -> list[Part]:
    """Draw what models predict against the truth, on the standard split, one seed of it, a panel for each model.

    There is nothing for other tasks than regression.
    """
    if comparison.task != "regression":
        return []
    ranked = {one.model: one for one in comparison.ranked(comparison.standard)}
    runs = {model: comparison.together[model] for model in ranked if model in comparison.together}
    found = {model: read_outputs(run) for model, run in runs.items()}
    rows = [
        {"model": model, "sample_id": name, "truth": float(true), "predicted": float(said)}
        for model, one in found.items()
        for name, true, said in zip(one.ids, one.truth, one.said[:, 0], strict=True)
    ]
    note, first = untrained(runs.items()), next(iter(runs.values()))
    figure = _drawn(comparison, found, ranked, looks(comparison.names), note)
    text = caption("numbers", one=comparison.standard[0], run=first, most=MOST)
    return [Part("numbers", "Predicted against true numbers", text, rows, note, figure)]


def _drawn(
    comparison: Comparison,
    found: Mapping[str, Outputs],
    series: Mapping[str, Series],
    style: Mapping[str, Look],
    note: str,
) -> Figure:
    every = np.concatenate([one.truth for one in found.values()])
    ends = [float(every.min()), float(every.max())]
    shape = (len(found), _ACROSS, 2.1, 0.6)
    with panels(*shape, note, shared=True) as (figure, every):
        for axes, (model, one) in zip(every, found.items(), strict=True):
            shown = np.random.default_rng(0).permutation(len(one.ids))[:MOST]
            colour = style[model].colour
            axes.plot(
                one.truth[shown], one.said[shown, 0], "o", color=colour, ms=3, alpha=0.5, mew=0
            )
            axes.plot(ends, ends, color=INK, lw=0.9, ls=(0, (4, 3)))
            metric = comparison.metric
            score = f"{metric.title} {metric.written(series[model].spread(metric.name).mean)}"
            axes.set_title(f"{wrapped(model)}\n{score}", fontsize=SMALL - 1)
        name = comparison.classes[0] if comparison.classes else "number"
        figure.supxlabel(f"true {name}", fontsize=10)
        figure.supylabel(f"predicted {name}", fontsize=10)
    return figure
