"""Loss and accuracy by epoch, with a row of panels for each model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from samtl.experiment.run import Run
from samtl.experiment.tables import read_curves
from samtl.report.compare import Comparison, untrained
from samtl.report.figures.scores import wrapped
from samtl.report.page import Part, caption
from samtl.report.style import INK, SMALL, Look, log_scale, looks, new_figure

Curves = dict[str, list[float]]

_TRAIN, _VALIDATION = "train_", "validation_"
_PERCENT = ("accuracy",)  # which are shares


def training_curves(comparison: Comparison) -> list[Part]:
    """Draw what was seen in training and validation by epoch, on the standard split, one seed of it.

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
    every = [curves for _, _, curves in trained.values()]
    quantities = [
        name
        for name in (key.removeprefix(_VALIDATION) for key in every[0])
        if all(
            _is_seen(curves, prefix + name) for curves in every for prefix in (_TRAIN, _VALIDATION)
        )
    ]
    pairs = [(model, run) for model, run, _ in trained.values()]
    one, note = comparison.standard[0], untrained(pairs)
    rows = [
        {
            "model": label,
            "epoch": int(epoch),
            **{
                f"{what} {_title(name)}": _scale(name) * curves[prefix + name][i]
                for name in quantities
                for prefix, what in ((_TRAIN, "training"), (_VALIDATION, "validation"))
            },
            "kept": "kept" if i == _kept(run, curves) else "",
        }
        for label, (_, run, curves) in trained.items()
        for i, epoch in enumerate(curves["epoch"])
    ]
    without = [model for model in read if model not in dict(pairs)]
    text = caption("training", one=one, runs=dict(pairs), without=without)
    figure = _drawn(looks(comparison.names), trained, quantities, note)
    name = "training-curves"
    return [Part(name, "Training and validation by epoch", text, rows, note, figure)]


def _is_seen(curves: Curves, key: str) -> bool:
    """Tell whether a quantity was recorded; that of another task is NaN."""
    return key in curves and not np.isnan(curves[key]).all()


def _scale(name: str) -> int:
    return 100 if name in _PERCENT else 1


def _title(name: str) -> str:
    return f"{name}, %" if name in _PERCENT else name


def _drawn(
    style: Mapping[str, Look],
    trained: Mapping[str, tuple[str, Run, Curves]],
    quantities: Sequence[str],
    note: str,
) -> Figure:
    with new_figure(0.9 + 1.35 * len(trained), note=note) as figure:
        grid: Any = figure.subplots(len(trained), len(quantities), sharey="col", squeeze=False)
        for row, (label, (model, run, curves)) in zip(grid, trained.items(), strict=True):
            for axes, name in zip(row, quantities, strict=True):
                _panel(axes, name, run, curves, style[model].colour)
            row[0].set_title(wrapped(label), fontsize=SMALL)
        for column, name in zip(grid.T, quantities, strict=True):
            low, high = np.percentile(
                [y for axes in column for line in axes.lines for y in line.get_ydata()], (0, 100)
            )
            if name not in _PERCENT and 0 < 10 * low < high:
                log_scale(column[0], "y")  # the others share it
        for axes in grid[-1]:
            axes.set_xlabel("epoch")
        figure.legend(
            handles=grid[0, 0].lines[:2],
            labels=["training", "validation"],
            loc="outside lower center",
            ncols=2,
            handlelength=3.2,
        )
    return figure


def _panel(axes: Axes, name: str, run: Run, curves: Curves, colour: str) -> None:
    x = curves["epoch"]
    training, validation = (
        [_scale(name) * y for y in curves[prefix + name]] for prefix in (_TRAIN, _VALIDATION)
    )
    axes.plot(x, training, color=INK, lw=1.0, ls=(0, (3, 1.5)))
    axes.plot(x, validation, color=colour)
    kept = _kept(run, curves)
    axes.plot(x[kept], validation[kept], "o", color=colour, mfc="none", mew=1.6, ms=6.5)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_ylabel(_title(name).replace(", %", " (%)"), fontsize=SMALL)


def _kept(run: Run, curves: Curves) -> int:
    """Return the index of the epoch whose weights were kept."""
    epochs, best = curves["epoch"], run.training.get("best_epoch")
    return epochs.index(best) if best in epochs else int(np.argmin(curves["validation_loss"]))
