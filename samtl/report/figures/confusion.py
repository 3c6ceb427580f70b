"""Confusion matrices: which class is mistaken for which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, PowerNorm, to_rgba
from matplotlib.figure import Figure
from numpy.typing import NDArray

from samtl.metrics.classification import ratio
from samtl.report.compare import Comparison, Series, untrained
from samtl.report.figures.scores import wrapped
from samtl.report.page import Part, caption
from samtl.report.style import INK, LOOKS, ON_COLOUR, SMALL, panels

_FEW = 4  # classes up to which several matrices share a figure
_WRITTEN = 20  # classes up to which percentages fit into the cells
_MOST = 40  # classes that are readable in one matrix
_PAIRS = 20  # of classes, of each model, if there are more
_STRONG = 0.7  # share of a row from which light text is more readable than dark
_NORM = PowerNorm(0.6, vmin=0, vmax=1)  # makes small shares off the diagonal visible
# From transparent to a colour, so that weak cells look like the page, light or dark.
_COLOURS = LinearSegmentedColormap.from_list(
    "share", [to_rgba(LOOKS["logreg"].colour, 0), to_rgba(LOOKS["logreg"].colour, 1)]
)

Parts = NDArray[np.float64]


def confusions(comparison: Comparison) -> list[Part]:
    """Draw confusion matrices of the standard split, summed over seeds, in percent of the true class.

    Up to four classes, one figure has all models; else there is one for each of the best head, the best baseline and
    the floor. Of more than 40 classes the pairs that are confused most are listed.
    """
    if comparison.task not in ("classification", "segmentation"):
        return []
    if len(comparison.classes) <= _FEW:
        shown = comparison.ranked(comparison.standard)
        return [_matrices(comparison, shown, "confusions", "Confusion matrices")]
    if len(comparison.classes) > _MOST:
        return _worst_pairs(comparison)
    return [
        _matrices(comparison, [one], f"confusions-{i}", f"Confusion matrix of {one.model}")
        for i, one in enumerate(comparison.leading, 1)
    ]


def _worst_pairs(comparison: Comparison) -> list[Part]:
    """List the pairs of classes that leading models confuse most; nothing if they confuse none."""
    shown, things = comparison.leading, _things(comparison)
    rows = []
    for one in shown:
        counts: NDArray[np.int64] = np.sum([run.confusion for run in one.runs], axis=0)
        support = counts.sum(1)
        np.fill_diagonal(counts, 0)
        for flat in np.argsort(-counts, axis=None, kind="stable")[:_PAIRS].tolist():
            true, guess = divmod(flat, len(counts))
            if counts[true, guess]:
                rows.append(
                    {
                        "model": one.model,
                        "true": comparison.classes[true],
                        "predicted": comparison.classes[guess],
                        things: int(counts[true, guess]),
                        "% of true": 100 * float(counts[true, guess] / support[true]),
                    }
                )
    note = untrained(pair for one in shown for pair in one.pairs)
    text = caption("worst_pairs", series=shown, things=things, most=_PAIRS)
    title = "Pairs of classes that are confused most"
    return [Part("confusions", title, text, rows, note)] if rows else []


def _things(comparison: Comparison) -> str:
    return "pixels" if comparison.task == "segmentation" else "samples"


def _matrices(comparison: Comparison, shown: Sequence[Series], name: str, title: str) -> Part:
    classes = comparison.classes
    counts: dict[str, NDArray[np.int64]] = {
        one.model: np.sum([run.confusion for run in one.runs], axis=0) for one in shown
    }
    parts: dict[str, Parts] = {
        model: ratio(matrix, np.broadcast_to(matrix.sum(1, keepdims=True), matrix.shape))
        for model, matrix in counts.items()
    }
    things = _things(comparison)
    rows = [
        {
            "model": model,
            "true": classes[i],
            "predicted": classes[j],
            things: int(matrix[i, j]),
            "% of true": 100 * float(parts[model][i, j]),
        }
        for model, matrix in counts.items()
        for i, j in np.ndindex(matrix.shape)
    ]
    note = untrained(pair for one in shown for pair in one.pairs)
    text = caption("confusion", series=shown, things=things)
    return Part(name, title, text, rows, note, _drawn(classes, parts, note))


def _drawn(classes: Sequence[str], matrices: Mapping[str, Parts], note: str) -> Figure:
    height, more = (2.5, 0.4) if len(matrices) > 1 else (min(5.4, 2 + 0.36 * len(classes)), 0)
    with panels(len(matrices), 2, height, more, note) as (figure, every):
        for axes, (model, part) in zip(every, matrices.items(), strict=True):
            _matrix(axes, classes, part)
            axes.set_title(wrapped(model))
    return figure


def _matrix(axes: Axes, classes: Sequence[str], part: Parts) -> None:
    n = len(classes)
    size = SMALL if n <= 12 else max(4.0, 120 / n)
    axes.pcolormesh(part, cmap=_COLOURS, norm=_NORM)
    for i, j in np.argwhere(part) if n <= _WRITTEN else ():
        colour = ON_COLOUR if part[i, j] >= _STRONG else INK
        at: Any = {"ha": "center", "va": "center_baseline", "fontsize": size}
        axes.text(j + 0.5, i + 0.5, percent(float(part[i, j])), color=colour, **at)
    places = np.arange(n) + 0.5
    axes.set_xticks(places, classes, fontsize=size, rotation=90 if n > _FEW else 0)
    axes.set_yticks(places, classes, fontsize=size)
    axes.set(xlabel="predicted", ylabel="true", aspect="equal")
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(True)


def percent(part: float) -> str:
    """Write a share in percent so that few is not 0 and nearly all is not 100."""
    text = f"{part * 100:.0f}"
    return {"0": "<1", "100": ">99" if part < 1 else "100"}.get(text, text)
