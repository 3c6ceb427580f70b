"""Loss and accuracy by epoch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from samtl.experiment.run import Run
from samtl.experiment.tables import read_curves
from samtl.report.compare import Comparison, untrained
from samtl.report.page import Part, caption
from samtl.report.style import Look, log_scale, looks, new_figure

Curves = dict[str, list[float]]

_PANELS = {
    "train_loss": "training loss",
    "validation_loss": "validation loss",
    "train_accuracy": "training accuracy",
    "validation_accuracy": "validation accuracy",
}


def training_curves(comparison: Comparison) -> list[Part]:
    """Draw loss and accuracy of training and validation by epoch, on the standard split, one seed of it.

    There is no figure if no model has epochs.
    """
    read = {model: (run, read_curves(run)) for model, run in comparison.together.items()}
    trained = {
        f"{model} (warm)" if run.warm_start else model: (model, run, curves)
        for model, (run, curves) in read.items()
        if curves.get("epoch")
    }
    if not trained:
        return []
    pairs = [(model, run) for model, run, _ in trained.values()]
    one, note = comparison.standard[0], untrained(pairs)
    rows = [
        {
            "model": label,
            "epoch": int(epoch),
            **{title: curves[key][i] for key, title in _PANELS.items()},
            "kept": "kept" if i == _kept(run, curves) else "",
        }
        for label, (_, run, curves) in trained.items()
        for i, epoch in enumerate(curves["epoch"])
    ]
    without = [model for model in read if model not in dict(pairs)]
    text = caption("training", one=one, runs=dict(pairs), without=without)
    figure = _drawn(looks(comparison.models), trained, note)
    name = "training-curves"
    return [Part(name, "Training and validation by epoch", text, rows, note, figure)]


def _drawn(
    style: Mapping[str, Look], trained: Mapping[str, tuple[str, Run, Curves]], note: str
) -> Figure:
    with new_figure(5.2, note=note) as figure:
        grid = figure.subplots(2, 2, sharex=True, sharey="row")
        for (key, title), axes in zip(_PANELS.items(), grid.ravel(), strict=True):
            axes.set_title(title)
            for label, (model, run, curves) in trained.items():
                x, y, look = curves["epoch"], curves[key], style[model]
                axes.plot(x, y, color=look.colour, ls=look.dashes, label=label)
                if key.startswith("validation"):
                    at, ring = _kept(run, curves), {"mfc": "none", "mew": 1.6, "ms": 6.5}
                    axes.plot(x[at], y[at], "o", color=look.colour, **ring)
        losses = [y for line in (*grid[0, 0].lines, *grid[0, 1].lines) for y in line.get_ydata()]
        if 0 < 10 * min(losses) < max(losses):
            log_scale(grid[0, 0], "y")
        for axes in grid[1]:
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        figure.legend(
            handles=grid[0, 0].lines,
            loc="outside lower center",
            ncols=3 if any(run.warm_start for _, run, _ in trained.values()) else 4,
            handlelength=3.2,
        )
    return figure


def _kept(run: Run, curves: Curves) -> int:
    """Return the index of the epoch whose weights were kept."""
    epochs, best = curves["epoch"], run.training.get("best_epoch")
    return epochs.index(best) if best in epochs else int(np.argmin(curves["validation_loss"]))
