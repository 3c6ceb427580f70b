"""Samples on a plane, coloured by class or by a number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from samtl.report.style import SMALL, panels, shortened

MOST_COLOURS = 20  # classes that have a colour
_OTHERS = "#808080"
_HEIGHT = {1: 4.4, 2: 2.7}  # inches of a panel, by how many are in a row


def plane(
    found: Mapping[str, tuple[NDArray[np.float32], tuple[str, str]]],
    classes: Sequence[str] | None,
    values: NDArray[np.float64],
    unit: str,
    note: str,
) -> Figure:
    """Draw the same samples in a panel for each store: (n, 2) points and the names of their axes.

    Samples have the colours of their `classes`, else of their `values`, of which `unit` is the name.
    """
    across = min(len(found), 2)
    colours, legend = _by_class(classes) if classes is not None else (values, {})
    size = 14.0 if len(values) <= 500 else 6.0
    order = np.random.default_rng(0).permutation(len(values))  # no class hides the others
    below = 0.3 * -(-len(legend) // 3) if legend else 0.0
    with panels(len(found), across, _HEIGHT[across], 0.3 + below, note) as (figure, every):
        for axes, (name, (points, labels)) in zip(every, found.items(), strict=True):
            shown = axes.scatter(
                *points[order].T, s=size, c=colours[order], alpha=0.75, lw=0, rasterized=True
            )
            axes.set(xlabel=labels[0], ylabel=labels[1])
            axes.set_title(shortened(name, 60 // across), fontsize=SMALL)
        if legend:
            marks = [
                Line2D([], [], marker="o", ls="", color=c, label=shortened(label, 24))
                for label, c in legend.items()
            ]
            figure.legend(handles=marks, loc="outside lower left", ncols=3)
        else:
            figure.colorbar(shown, ax=list(every), label=unit, shrink=0.8, aspect=30)
    return figure


def _by_class(names: Sequence[str]) -> tuple[NDArray[Any], dict[str, Any]]:
    """Return the colour of each sample, and those of the classes: of the most frequent ones if there are many."""
    classes = sorted(set(names))
    kept = sorted(name for name, _ in Counter(names).most_common(MOST_COLOURS))
    palette = colormaps["tab10" if len(kept) <= 10 else "tab20"]
    legend: dict[str, Any] = {name: palette(i)[:3] for i, name in enumerate(kept)}
    colours = np.array([legend.get(name, (0.5,) * 3) for name in names])
    return colours, legend if len(kept) == len(classes) else {**legend, "others": _OTHERS}
