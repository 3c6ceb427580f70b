"""Scores of single held-out images of a segmentation; images without foreground are counted apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from samtl.experiment.tables import read_images
from samtl.metrics.declared import metric_of
from samtl.metrics.paired import ImageScores
from samtl.report.compare import Comparison, untrained
from samtl.report.page import Part, Row, caption
from samtl.report.style import INK, Look, looks, new_figure, rows_of_names

_SHOWN = ("iou", "dice", "accuracy")


def without_foreground(images: ImageScores) -> NDArray[np.bool_]:
    """Tell for each image, (n,), whether its true mask has no pixel but background; False if that was not kept."""
    if images.counts is None:
        return np.zeros(len(images.ids), dtype=bool)
    return np.asarray(images.counts[:, 1:, 0].sum(1) == 0, dtype=np.bool_)


def image_scores(comparison: Comparison) -> list[Part]:
    """Draw the scores of every held-out image with foreground, on the standard split, one seed of it.

    A table says what models find on images without foreground. For other tasks there is nothing.
    """
    if comparison.task != "segmentation":
        return []
    runs, one = comparison.together, comparison.standard[0]
    images = {model: read_images(run) for model, run in runs.items()}
    empty = {model: without_foreground(found) for model, found in images.items()}
    metrics = [metric_of(comparison.task, name) for name in _SHOWN]
    rows = [
        {"model": model, "image": name}
        | {f"{m.title}, %": 100 * float(found.scores[m.name][i]) for m in metrics}
        | {"has foreground": "no" if empty[model][i] else "yes"}
        for model, found in images.items()
        for i, name in enumerate(found.ids)
    ]
    first, note = next(iter(runs.values())), untrained(runs.items())
    counts = sorted({int(some.sum()) for some in empty.values()})
    text = caption("image_scores", comparison=comparison, one=one, run=first, empty=counts[-1])
    kept = {
        model: {m.title: 100 * found.scores[m.name][~empty[model]] for m in metrics}
        for model, found in images.items()
        if not empty[model].all()
    }
    parts = []
    if kept:
        figure = _boxes(kept, [m.title for m in metrics], looks(comparison.names), note)
        parts.append(
            Part("image-scores", "Scores of single held-out images", text, rows, note, figure)
        )
    if counts[-1]:
        claimed = [
            _false_alarms(model, found, empty[model])
            for model, found in images.items()
            if empty[model].any()
        ]
        text = caption("empty", count=counts[-1], run=first)
        parts.append(Part("empty-images", "Held-out images without foreground", text, claimed))
    return parts


def _false_alarms(model: str, images: ImageScores, empty: NDArray[np.bool_]) -> Row:
    assert images.counts is not None  # or none would be known to be empty
    counts = images.counts[empty]
    claimed = counts[:, 1:, 1].sum(1)
    pixels = counts[:, :, 0].sum(1)
    return {
        "model": model,
        "images": len(counts),
        "with false alarms": int((claimed > 0).sum()),
        "foreground predicted, % of their pixels": 100 * float(claimed.sum() / pixels.sum()),
    }


def _boxes(
    images: Mapping[str, Mapping[str, NDArray[np.float64]]],
    titles: Sequence[str],
    style: Mapping[str, Look],
    note: str,
) -> Figure:
    models = list(images)[::-1]
    with new_figure(0.8 + len(titles) * (0.35 + 0.4 * len(images)), note=note) as figure:
        for title, axes in zip(titles, figure.subplots(len(titles), 1), strict=True):
            axes.set_title(f"{title} (%)")
            random = np.random.default_rng(0)  # the height of a point within its row means nothing
            values = [images[model][title] for model in models]
            for place, (model, found) in enumerate(zip(models, values, strict=True)):
                colour = style[model].colour
                axes.boxplot(
                    found,
                    positions=[place],
                    widths=0.62,
                    orientation="horizontal",
                    showfliers=False,
                    patch_artist=True,
                    medianprops={"color": INK, "linewidth": 1.8},
                    boxprops={"edgecolor": colour, "facecolor": (colour, 0.18), "linewidth": 1.2},
                    whiskerprops={"color": colour},
                    capprops={"color": colour},
                    manage_ticks=False,
                )
                height = place + random.uniform(-0.2, 0.2, len(found))
                axes.plot(found, height, "o", color=colour, alpha=0.6, ms=3.4, mew=0)
            if not np.ptp(np.concatenate(values)):  # or the axis would show thousandths around it
                axes.set_xlim(-2, 102)
            rows_of_names(axes, models, [f"{np.median(found):.1f}" for found in values])
    return figure
