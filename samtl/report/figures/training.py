"""How training went: losses and accuracies by epoch."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from samtl.report.content import (
    Drawing,
    Study,
    Table,
    Trial,
)
from samtl.report.figures.groups import (
    FLOOR,
    STANDARD_SHARE,
    at_share,
    first_seed,
    listed,
    sentences,
    split_words,
    untrained,
    untrained_words,
)
from samtl.report.style import (
    figure,
    looks,
    settled,
    styled,
)

_PANELS = (
    ("train_loss", "training loss"),
    ("validation_loss", "validation loss"),
    ("train_accuracy", "training accuracy"),
    ("validation_accuracy", "validation accuracy"),
)


def training_curves(study: Study, share: float = STANDARD_SHARE) -> list[Drawing]:
    """Draw loss and accuracy by epoch, of the training and the validation part, of all models that have epochs.

    Parameters
    ----------
    study : Study
    share : float
        The held-out share; the split whose training part comes nearest to the rest is drawn, one seed of it.

    Returns
    -------
    list of Drawing
        One, or none where no model has epochs.
    """
    cells = at_share(study, share)
    trials = first_seed(cells)
    learnt = [trial for trial in trials if trial.curves.get("epoch")]
    if not learnt:
        return []
    others = [trial.model for trial in trials if trial not in learnt]
    what = split_words(cells[0])
    return [
        Drawing(
            name="training-curves",
            title="Training and validation, epoch by epoch",
            caption=sentences(
                f"{what}, seed {learnt[0].seed}.",
                "A ring marks the epoch whose weights were kept: the lowest validation loss.",
                "Figures of the training part are taken while it is learnt from, with whatever dropout a model has.",
                "Curves marked warm go on from weights that were learnt on fewer of these samples: they begin where "
                "those were, and are shorter; `samtl sweep --no-warm-start` begins every one from nothing."
                if any(trial.warm_start for trial in learnt)
                else "",
                f"Without a curve, since they have no epochs: {listed(others)}." if others else "",
                untrained_words(learnt),
            ),
            alt=sentences(
                f"Curves of loss and accuracy, {what}.",
                "At the epoch kept: " + "; ".join(map(_ended, learnt)) + ".",
                untrained_words(learnt),
            ),
            figure=_drawn(study, learnt),
            table=Table(
                "training-curves",
                "Training and validation, epoch by epoch",
                sentences(f"{what}, seed {learnt[0].seed}.", untrained_words(learnt)),
                ("model", "epoch", *(title for _, title in _PANELS), "kept"),
                tuple(
                    (
                        _named(trial),
                        int(epoch),
                        *(_rounded(trial.curves[key][i]) for key, _ in _PANELS),
                        "kept" if i == _kept(trial) else "",
                    )
                    for trial in learnt
                    for i, epoch in enumerate(trial.curves["epoch"])
                ),
            ),
        )
    ]


def _drawn(study: Study, trials: list[Trial]) -> Figure:
    style = looks((*study.models, FLOOR))
    with styled():
        drawn = figure(5.2)
        grid = drawn.subplots(2, 2, sharex=True, sharey="row")
        for (key, title), axes in zip(_PANELS, grid.ravel(), strict=True):
            axes.set_title(title)
            for trial in trials:
                look, values = style[trial.model], trial.curves[key]
                axes.plot(trial.curves["epoch"], values, color=look.colour, linestyle=look.dashes)
                kept = _kept(trial)
                if key.startswith("validation"):
                    axes.plot(
                        trial.curves["epoch"][kept],
                        values[kept],
                        marker="o",
                        markerfacecolor="none",
                        color=look.colour,
                        markeredgewidth=1.6,
                        markersize=6.5,
                    )
        losses = np.concatenate(
            [np.asarray(trial.curves[key]) for trial in trials for key, _ in _PANELS[:2]]
        )
        if losses.min() > 0 and losses.max() > 10 * losses.min():
            _to_log(grid[0, 0])
        for axes in grid[1]:
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        drawn.legend(
            handles=[
                Line2D(
                    [], [], color=style[t.model].colour, ls=style[t.model].dashes, label=_named(t)
                )
                for t in trials
            ],
            loc="outside lower center",
            # Names with a word more need more room.
            ncols=min(2 if any(trial.warm_start for trial in trials) else 4, len(trials)),
            handlelength=3.2,
        )
        return settled(drawn, untrained(trials))


def _to_log(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="y", which="minor", length=0)


def _kept(trial: Trial) -> int:
    """Give the place of the epoch whose weights were kept."""
    epochs, best = trial.curves["epoch"], trial.training.get("best_epoch")
    if best in epochs:
        return epochs.index(best)
    return int(np.argmin(trial.curves["validation_loss"]))


def _named(trial: Trial) -> str:
    return f"{trial.model} (warm)" if trial.warm_start else trial.model


def _ended(trial: Trial) -> str:
    loss, accuracy = (
        trial.curves[key][_kept(trial)] for key in ("validation_loss", "validation_accuracy")
    )
    return f"{_named(trial)} validation loss {loss:.3f}, accuracy {accuracy:.3f}"


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")
