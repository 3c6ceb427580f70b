"""Predicted against true numbers of a regression."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from samtl.experiment.tables import read_outputs
from samtl.metrics.paired import Outputs
from samtl.report.compare import Comparison, Series, untrained
from samtl.report.figures.scores import drop_empty, wrapped
from samtl.report.page import Part, caption
from samtl.report.style import INK, SMALL, Look, looks, new_figure

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
    across = min(_ACROSS, len(found))
    down = -(-len(found) // across)
    every = np.concatenate([one.truth for one in found.values()])
    ends = [float(every.min()), float(every.max())]
    with new_figure(0.6 + 2.1 * down, note=note) as figure:
        grid: Any = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
        for axes, (model, one) in zip(grid.flat, found.items(), strict=False):
            shown = np.random.default_rng(0).permutation(len(one.ids))[:MOST]
            colour = style[model].colour
            axes.plot(
                one.truth[shown], one.said[shown, 0], "o", color=colour, ms=3, alpha=0.5, mew=0
            )
            axes.plot(ends, ends, color=INK, lw=0.9, ls=(0, (4, 3)))
            metric = comparison.metric
            score = f"{metric.title} {metric.written(series[model].spread(metric.name).mean)}"
            axes.set_title(f"{wrapped(model)}\n{score}", fontsize=SMALL - 1)
        drop_empty(grid, len(found))
        name = comparison.classes[0] if comparison.classes else "number"
        figure.supxlabel(f"true {name}", fontsize=10)
        figure.supylabel(f"predicted {name}", fontsize=10)
    return figure
