"""How scores are spread over the held-out images of a segmentation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from samtl.report.content import (
    Drawing,
    ImageScores,
    Study,
    Table,
    Trial,
)
from samtl.report.figures.groups import (
    FLOOR,
    STANDARD_SHARE,
    TITLES,
    at_share,
    first_seed,
    floor_words,
    sentences,
    split_words,
    untrained,
    untrained_words,
)
from samtl.report.style import (
    INK,
    SMALL,
    bare,
    figure,
    looks,
    settled,
    styled,
)

_SHOWN = ("accuracy", "dice", "f1")


def image_scores(study: Study, share: float = STANDARD_SHARE) -> list[Drawing]:
    """Draw accuracy, Dice and F1 of every held-out image as box and points, models side by side.

    Parameters
    ----------
    study : Study
    share : float
        The held-out share; the split nearest to it is drawn, one seed of it.

    Returns
    -------
    list of Drawing
        One, or none for a classification.
    """
    cells = at_share(study, share)
    found = [(trial, trial.images) for trial in first_seed(cells) if trial.images is not None]
    if not found:
        return []
    trials = [trial for trial, _ in found]
    n = len(found[0][1].ids)
    words = sentences(
        f"{split_words(cells[0])}, seed {trials[0].seed}; {n} held-out images, one point each.",
        "Box: the middle half; line and figure: the median; whiskers: the furthest image within 1.5 boxes' lengths.",
        "Dice is that of the classes beside the background, F1 averages the background in.",
        floor_words(study),
        untrained_words(trials),
    )
    medians = "; ".join(
        f"{trial.model} "
        + ", ".join(f"{TITLES[key]} {np.median(images.scores[key]):.3f}" for key in _SHOWN)
        for trial, images in found
    )
    title = "Scores of the single test images"
    return [
        Drawing(
            name="image-scores",
            title=title,
            caption=words,
            alt=sentences(
                f"Boxes and points of {n} images; medians: {medians}.", untrained_words(trials)
            ),
            figure=_drawn(study, found),
            table=Table(
                "image-scores",
                title,
                words,
                ("model", "image", *(TITLES[key] for key in _SHOWN)),
                tuple(
                    (trial.model, name, *(round(float(images.scores[key][i]), 4) for key in _SHOWN))
                    for trial, images in found
                    for i, name in enumerate(images.ids)
                ),
            ),
        )
    ]


def _drawn(study: Study, found: Sequence[tuple[Trial, ImageScores]]) -> Figure:
    with styled():
        drawn = figure(0.8 + 3 * (0.35 + 0.4 * len(found)))
        panels = drawn.subplots(3, 1)
        for key, axes in zip(_SHOWN, panels, strict=True):
            axes.set_title(TITLES[key])
            _boxes(study, axes, [(trial, images.scores[key]) for trial, images in found])
        return settled(drawn, untrained(trial for trial, _ in found))


def _boxes(study: Study, axes: Axes, rows: Sequence[tuple[Trial, np.ndarray]]) -> None:
    style = looks((*study.models, FLOOR))
    random = np.random.default_rng(0)  # where a point lies within its row means nothing
    for place, (trial, values) in enumerate(reversed(rows)):
        colour = style[trial.model].colour
        box = axes.boxplot(
            values,
            positions=[place],
            widths=0.62,
            orientation="horizontal",
            showfliers=False,
            patch_artist=True,
            medianprops={"color": INK, "linewidth": 1.8},
            boxprops={"edgecolor": colour, "linewidth": 1.2},
            whiskerprops={"color": colour},
            capprops={"color": colour},
            manage_ticks=False,
        )
        face = box["boxes"][0]
        face.set_facecolor((colour, 0.18))
        axes.plot(
            values,
            place + random.uniform(-0.2, 0.2, len(values)),
            "o",
            color=colour,
            alpha=0.6,
            markersize=3.4,
            markeredgewidth=0,
        )
        axes.text(
            1.02,
            place,
            f"{np.median(values):.3f}",
            transform=axes.get_yaxis_transform(),
            va="center",
            fontsize=SMALL,
        )
    axes.set_yticks(range(len(rows)), [trial.model for trial, _ in reversed(rows)])
    axes.set_ylim(-0.55, len(rows) - 0.45)
    bare(axes)
