"""The distribution of scores over the held-out images of a segmentation."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from samtl.experiment.tables import ImageScores, read_images
from samtl.report.compare import Comparison
from samtl.report.content import Drawing
from samtl.report.style import INK, figure, looks, rows_of_names, settled, styled
from samtl.report.words import (
    TITLES,
    floor_words,
    sentences,
    split_words,
    untrained,
    untrained_words,
)

_SHOWN = ("accuracy", "dice", "f1")


def image_scores(comparison: Comparison) -> list[Drawing]:
    """Draw accuracy, Dice and F1 of every held-out image of the standard split, one seed of it, models side by side.

    There is no figure for a classification.
    """
    runs = comparison.together()
    if comparison.task != "segmentation" or not runs:
        return []
    first, images = (
        next(iter(runs.values())),
        {model: read_images(run) for model, run in runs.items()},
    )
    return [
        Drawing(
            name="image-scores",
            title="Scores of single test images",
            caption=sentences(
                f"{split_words(comparison.standard()[0])}, seed {first.seed}; {first.n_test} held-out images, "
                "one point each.",
                "Box: the middle half; line and number: the median; whiskers: the furthest image within 1.5 box "
                "lengths.",
                "Dice covers the classes other than the background, F1 is the mean over all classes.",
                floor_words(comparison),
                untrained_words(runs.items()),
            ),
            header=("model", "image", *(TITLES[key] for key in _SHOWN)),
            rows=tuple(
                (model, name, *(round(float(found.scores[key][i]), 4) for key in _SHOWN))
                for model, found in images.items()
                for i, name in enumerate(found.ids)
            ),
            figure=_drawn(comparison, images, untrained(runs.items())),
        )
    ]


def _drawn(comparison: Comparison, images: Mapping[str, ImageScores], note: str) -> Figure:
    style, models = looks(comparison.models), list(images)[::-1]
    with styled():
        drawn = figure(0.8 + 3 * (0.35 + 0.4 * len(images)))
        for key, axes in zip(_SHOWN, drawn.subplots(3, 1), strict=True):
            axes.set_title(TITLES[key])
            random = np.random.default_rng(0)  # the height of a point within its row means nothing
            values = [images[model].scores[key] for model in models]
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
            rows_of_names(axes, models, [f"{np.median(found):.3f}" for found in values])
        return settled(drawn, note)
