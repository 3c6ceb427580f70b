"""Loss and accuracy by epoch."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from samtl.experiment.run import Run
from samtl.experiment.tables import read_curves
from samtl.report.compare import Comparison
from samtl.report.content import Drawing
from samtl.report.style import figure, looks, settled, styled
from samtl.report.words import listed, sentences, split_words, untrained, untrained_words

Curves = dict[str, list[float]]

_PANELS = {
    "train_loss": "training loss",
    "validation_loss": "validation loss",
    "train_accuracy": "training accuracy",
    "validation_accuracy": "validation accuracy",
}


def training_curves(comparison: Comparison) -> list[Drawing]:
    """Draw loss and accuracy of training and validation by epoch, on the standard split, one seed of it.

    There is no figure if no model has epochs.
    """
    runs = comparison.together()
    curves = {
        model: found for model, run in runs.items() if (found := read_curves(run)).get("epoch")
    }
    trained = {model: runs[model] for model in curves}
    if not trained:
        return []
    others = [model for model in runs if model not in trained]
    split = f"{split_words(comparison.standard()[0])}, seed {next(iter(trained.values())).seed}"
    return [
        Drawing(
            name="training-curves",
            title="Training and validation by epoch",
            caption=sentences(
                f"{split}.",
                "A ring marks the epoch whose weights were kept: the lowest validation loss.",
                "Training figures are taken during the epoch, with the model's dropout.",
                "Curves marked warm start from weights trained on fewer of these samples, so they begin lower and are "
                "shorter; `samtl sweep --no-warm-start` trains every model from scratch."
                if any(run.warm_start for run in trained.values())
                else "",
                f"Models without epochs have no curve: {listed(others)}." if others else "",
                untrained_words(trained.items()),
            ),
            header=("model", "epoch", *_PANELS.values(), "kept"),
            rows=tuple(
                (
                    _named(model, run),
                    int(epoch),
                    *(float(f"{curves[model][key][i]:.5g}") for key in _PANELS),
                    "kept" if i == _kept(run, curves[model]) else "",
                )
                for model, run in trained.items()
                for i, epoch in enumerate(curves[model]["epoch"])
            ),
            figure=_drawn(comparison, trained, curves),
        )
    ]


def _drawn(comparison: Comparison, runs: dict[str, Run], curves: dict[str, Curves]) -> Figure:
    style = looks(comparison.models)
    with styled():
        drawn = figure(5.2)
        grid = drawn.subplots(2, 2, sharex=True, sharey="row")
        for (key, title), axes in zip(_PANELS.items(), grid.ravel(), strict=True):
            axes.set_title(title)
            for model, run in runs.items():
                x, y, look = curves[model]["epoch"], curves[model][key], style[model]
                axes.plot(x, y, color=look.colour, ls=look.dashes, label=_named(model, run))
                if key.startswith("validation"):
                    at, ring = _kept(run, curves[model]), {"mfc": "none", "mew": 1.6, "ms": 6.5}
                    axes.plot(x[at], y[at], "o", color=look.colour, **ring)
        losses = np.concatenate(
            [found[key] for found in curves.values() for key in ("train_loss", "validation_loss")]
        )
        if losses.min() > 0 and losses.max() > 10 * losses.min():
            axes = grid[0, 0]
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.tick_params(axis="y", which="minor", length=0)
        for axes in grid[1]:
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        drawn.legend(
            handles=grid[0, 0].lines,
            loc="outside lower center",
            # "(warm)" needs more room.
            ncols=min(2 if any(run.warm_start for run in runs.values()) else 4, len(runs)),
            handlelength=3.2,
        )
        return settled(drawn, untrained(runs.items()))


def _kept(run: Run, curves: Curves) -> int:
    """Return the index of the epoch whose weights were kept."""
    epochs, best = curves["epoch"], run.training.get("best_epoch")
    return epochs.index(best) if best in epochs else int(np.argmin(curves["validation_loss"]))


def _named(model: str, run: Run) -> str:
    return f"{model} (warm)" if run.warm_start else model
