"""Which class is taken for which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, PowerNorm, to_rgba
from matplotlib.figure import Figure
from numpy.typing import NDArray

from samtl.metrics.classification import ratio
from samtl.report.content import (
    Drawing,
    Study,
    Table,
    Trial,
)
from samtl.report.figures.groups import (
    FIGURES,
    FLOOR,
    STANDARD_SHARE,
    Cell,
    at_share,
    listed,
    repeats_words,
    sentences,
    split_words,
    untrained,
    untrained_words,
)
from samtl.report.style import (
    INK,
    LOOKS,
    ON_COLOUR,
    SMALL,
    figure,
    settled,
    styled,
)

_BEST = 3
_FEW = 4  # classes up to which several matrices share a figure
_WRITTEN = 20  # classes up to which percentages fit into the cells
_STRONG = 0.7  # of a row, from which light text is read better than dark
_NORM = PowerNorm(0.6, vmin=0, vmax=1)  # so that the small shares off the diagonal are seen

# From nothing to a colour, so that weak cells are the paper's, be it light or dark.
_COLOURS = LinearSegmentedColormap.from_list(
    "share", [to_rgba(LOOKS["logreg"].colour, 0), to_rgba(LOOKS["logreg"].colour, 1)]
)


def confusions(study: Study, share: float = STANDARD_SHARE) -> list[Drawing]:
    """Draw confusion matrices, summed over seeds, in percent of the true class.

    Parameters
    ----------
    study : Study
    share : float
        The held-out share; the split nearest to it is drawn.

    Returns
    -------
    list of Drawing
        One with all models where classes are few; else one for each of the best three and the floor.
    """
    shown = [cell for cell in at_share(study, share) if cell.run]
    if not shown:
        return []
    if len(study.classes) <= _FEW:
        return [_drawing(study, shown, "confusions", "Confusion matrices")]
    metric = FIGURES[study.task][0]

    def score(cell: Cell) -> float:
        summary = cell.summary(metric)
        return -summary.mean if summary else 0.0

    floor = [cell for cell in shown if cell.trials[0].name == FLOOR]
    best = sorted((cell for cell in shown if cell not in floor), key=score)[:_BEST]
    return [
        _drawing(study, [cell], f"confusions-{i}", f"Confusion matrix of {cell.model}")
        for i, cell in enumerate([*best, *floor], 1)
    ]


def _drawing(study: Study, shown: Sequence[Cell], name: str, title: str) -> Drawing:
    matrices = [(cell, _added(cell.trials)) for cell in shown]
    trials = [trial for cell in shown for trial in cell.trials]
    things = "pixels" if study.task == "segmentation" else "samples"
    words = sentences(
        f"rows are the true class, columns the predicted one, in % of the row; {things} of "
        f"{repeats_words(shown)}, added up; small shares are coloured more strongly than in proportion.",
        f"{split_words(shown[0])}.",
        untrained_words(trials),
    )
    with styled():
        drawn = (_one if len(study.classes) > _FEW else _several)(study.classes, matrices)
        settled(drawn, untrained(trials))
    rows = tuple(
        (cell.model, truth, guess, int(counts[i, j]), round(float(part[i, j]) * 100, 2))
        for cell, counts in matrices
        for part in [_of_rows(counts)]
        for i, truth in enumerate(study.classes)
        for j, guess in enumerate(study.classes)
    )
    return Drawing(
        name=name,
        title=title,
        caption=words,
        alt=sentences(
            *(f"with {cell.model}, {_worst(study.classes, counts)}." for cell, counts in matrices),
            untrained_words(trials),
        ),
        figure=drawn,
        table=Table(name, title, words, ("model", "true", "predicted", things, "% of true"), rows),
    )


def _added(trials: Sequence[Trial]) -> NDArray[np.int64]:
    """Add up the confusions, (K, K), of trials."""
    total: NDArray[np.int64] = np.sum([trial.confusion for trial in trials], axis=0)
    return total


def _of_rows(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    return ratio(counts, np.broadcast_to(counts.sum(1, keepdims=True), counts.shape))


def _worst(classes: Sequence[str], counts: NDArray[np.int64]) -> str:
    """Tell the recall of the worst class, and the three pairs that are confused most."""
    part = _of_rows(counts)
    weakest = int(np.argmin(np.diagonal(part)))
    off = part.copy()
    np.fill_diagonal(off, 0)
    pairs = [np.unravel_index(place, off.shape) for place in np.argsort(-off, axis=None)[:3]]
    told = [
        f"{classes[i]} as {classes[j]} {off[i, j] * 100:.0f} %" for i, j in pairs if off[i, j] > 0
    ]
    most = f"; most often confused: {listed(told)}" if told else ""
    return f"least often found is {classes[weakest]}, {part[weakest, weakest] * 100:.0f} %{most}"


Matrices = Sequence[tuple[Cell, NDArray[np.int64]]]


def _one(classes: Sequence[str], matrices: Matrices) -> Figure:
    drawn = figure(min(5.4, 2 + 0.36 * len(classes)))
    axes = drawn.subplots()
    _matrix(axes, classes, matrices[0][1])
    axes.set_title(matrices[0][0].model)
    return drawn


def _several(classes: Sequence[str], matrices: Matrices) -> Figure:
    columns = min(2, len(matrices))
    rows = -(-len(matrices) // columns)
    drawn = figure(0.4 + 2.5 * rows)
    panels: Any = drawn.subplots(rows, columns, squeeze=False)
    for axes, (cell, counts) in zip(panels.ravel(), matrices, strict=False):
        _matrix(axes, classes, counts)
        axes.set_title(cell.model)
    for axes in panels.ravel()[len(matrices) :]:
        axes.remove()
    return drawn


def _matrix(axes: Axes, classes: Sequence[str], counts: NDArray[np.int64]) -> None:
    part, n = _of_rows(counts), len(classes)
    size = SMALL if n <= 12 else max(4.0, 120 / n)
    axes.pcolormesh(part, cmap=_COLOURS, norm=_NORM)
    if n <= _WRITTEN:
        for i, j in np.ndindex(n, n):
            if counts[i, j]:
                axes.text(
                    j + 0.5,
                    i + 0.5,
                    _percent(float(part[i, j])),
                    ha="center",
                    va="center_baseline",
                    fontsize=size,
                    color=ON_COLOUR if part[i, j] >= _STRONG else INK,
                )
    places = np.arange(n) + 0.5
    upright = n > _FEW
    axes.set_xticks(places, classes, fontsize=size, rotation=90 if upright else 0)
    axes.set_yticks(places, classes, fontsize=size)
    axes.set(xlabel="predicted", ylabel="true", aspect="equal")
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(True)


def _percent(part: float) -> str:
    """Write a share so that few is not none, and nearly all is not all."""
    text = f"{part * 100:.0f}"
    return {"0": "<1", "100": ">99" if part < 1 else "100"}.get(text, text)
