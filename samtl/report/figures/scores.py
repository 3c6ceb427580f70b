"""Scores against the share of the samples that models were trained on, and scores of single images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, StrMethodFormatter

from samtl.experiment.tables import read_images
from samtl.metrics.paired import ImageScores
from samtl.report.compare import FLOOR, SCORES, TITLES, Comparison, Series, Spread, untrained
from samtl.report.page import Part, caption, slug
from samtl.report.style import INK, Look, log_scale, looks, new_figure, rows_of_names

_WIDE = 12  # largest share / smallest share above which the axis is logarithmic
_OF_IMAGES = ("accuracy", "dice", "f1")

Scored = Sequence[tuple[Series, Spread]]


def by_share(comparison: Comparison) -> list[Part]:
    """Draw each score against the training share: means, bands, and every seed.

    Each way of splitting has a figure for each score. If it has a single share, its models are rows instead.
    """
    ways: dict[str, list[Series]] = defaultdict(list)
    for one in comparison.series:
        ways[one.kind.split].append(one)
    drawings = []
    for way, some in ways.items():
        base, _, last = way.rpartition("-")
        # A curve over fractions of the labels ends in the series that was trained on all labels.
        whole = ways.get(base or "holdout", []) if last in ("label", "shots") else []
        held_out = {one.kind.held_out for one in some}
        shown = [*some, *(one for one in whole if one.kind.held_out in held_out)]
        drawings += [
            _by_share(comparison, metric, shown, way if len(ways) > 1 else "")
            for metric in SCORES[comparison.task]
        ]
    return drawings


def _by_share(comparison: Comparison, metric: str, some: Sequence[Series], way: str) -> Part:
    scored = [(one, one.spread(metric)) for one in some]
    shares = [one.share for one in some]
    several = len({one.kind for one in some}) > 1 and max(shares) > 1.01 * min(shares)
    what = "against the training share" if several else "of each model"
    text = caption("by_share", comparison=comparison, series=some, several=several)
    rows = [
        {
            "model": one.model,
            "training share": one.share,
            "repeats": len(one.runs),
            **{key: getattr(found, key) for key in ("mean", "deviation", "low", "high")},
        }
        for one, found in scored
    ]
    note = untrained(pair for one in some for pair in one.pairs)
    draw, style = _lines if several else _rows, looks((*comparison.models, FLOOR))
    return Part(
        slug(f"by share {metric} {way}"),
        f"{TITLES[metric][0].upper()}{TITLES[metric][1:]} {what}{f' ({way})' if way else ''}",
        text,
        rows,
        note,
        draw(metric, scored, style, note),
    )


def _lines(metric: str, scored: Scored, style: Mapping[str, Look], note: str) -> Figure:
    with new_figure(4.2, note=note) as figure:
        axes = figure.subplots()
        ends = {}
        for model in dict.fromkeys(one.model for one, _ in scored):
            some = sorted((p for p in scored if p[0].model == model), key=lambda p: p[0].share)
            look, x = style[model], [100 * one.share for one, _ in some]
            low, high = ([getattr(found, end) for _, found in some] for end in ("low", "high"))
            axes.fill_between(x, low, high, color=look.colour, alpha=0.13, linewidth=0)
            for place, (_, found) in zip(x, some, strict=True):
                dots = [place] * len(found.values)
                axes.plot(dots, found.values, "o", color=look.colour, alpha=0.55, ms=2.8, mew=0)
            (line,) = axes.plot(
                x,
                [found.mean for _, found in some],
                color=look.colour,
                linestyle=look.dashes,
                marker=look.marker,
                markeredgewidth=1.6 if look.marker == "_" else 0.0,
                label=model,
            )
            ends[line] = some[-1][1].mean
        shares = sorted({round(100 * one.share, 1) for one, _ in scored})
        if shares[-1] > _WIDE * shares[0]:
            log_scale(axes, "x")
        else:
            axes.xaxis.set_major_locator(FixedLocator(shares, nbins=10))
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.set_xlabel("training share (% of all samples)")
        axes.set_title(TITLES[metric])
        # In the order in which lines end, so that a legend reads like labels.
        ordered = sorted(ends, key=lambda line: -ends[line])
        figure.legend(handles=ordered, loc="outside right center", handlelength=3.2)
    return figure


def _rows(metric: str, scored: Scored, style: Mapping[str, Look], note: str) -> Figure:
    ordered = sorted(scored, key=lambda pair: pair[1].mean)
    with new_figure(0.9 + 0.36 * len(ordered), note=note) as figure:
        axes = figure.subplots()
        for place, (one, found) in enumerate(ordered):
            look, values = style[one.model], found.values
            ends = [found.low, found.high]
            axes.plot(ends, [place] * 2, color=look.colour, alpha=0.35, lw=7, solid_capstyle="butt")
            rings: Any = {"mfc": "none", "mec": look.colour, "ms": 4.5, "alpha": 0.8}
            axes.plot(values, [place] * len(values), "o", **rings)
            marker = "d" if look.marker == "_" else look.marker
            axes.plot([found.mean], [place], marker, color=look.colour, markersize=7)
        means = [f"{found.mean:.3f}" for _, found in ordered]
        rows_of_names(axes, [one.model for one, _ in ordered], means)
        axes.set_xlabel(TITLES[metric])
    return figure


def image_scores(comparison: Comparison) -> list[Part]:
    """Draw accuracy, Dice and F1 of every held-out image of the standard split, one seed of it, models side by side.

    There is no figure for a classification.
    """
    if comparison.task != "segmentation":
        return []
    runs, one = comparison.together, comparison.standard[0]
    images = {model: read_images(run) for model, run in runs.items()}
    rows = [
        {"model": model, "image": name}
        | {TITLES[key]: float(found.scores[key][i]) for key in _OF_IMAGES}
        for model, found in images.items()
        for i, name in enumerate(found.ids)
    ]
    first, note = next(iter(runs.values())), untrained(runs.items())
    text = caption("image_scores", comparison=comparison, one=one, run=first)
    figure = _boxes(images, looks(comparison.models), note)
    return [Part("image-scores", "Scores of single test images", text, rows, note, figure)]


def _boxes(images: Mapping[str, ImageScores], style: Mapping[str, Look], note: str) -> Figure:
    models = list(images)[::-1]
    with new_figure(0.8 + 3 * (0.35 + 0.4 * len(images)), note=note) as figure:
        for key, axes in zip(_OF_IMAGES, figure.subplots(3, 1), strict=True):
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
    return figure
