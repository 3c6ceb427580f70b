"""Scores against the share of the samples that models were trained on."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter, StrMethodFormatter

from samtl.report.compare import SCORES, Comparison, Series, Summary
from samtl.report.content import Drawing
from samtl.report.style import Look, figure, looks, rows_of_names, settled, styled
from samtl.report.words import (
    BAND,
    FLOOR,
    TITLES,
    floor_words,
    repeats_words,
    sentences,
    split_words,
    untrained,
    untrained_words,
)

_HEADER = ("model", "training share", "repeats", "mean", "deviation", "low", "high")
_WIDE = 12  # largest share / smallest share above which the axis is logarithmic

Scored = Sequence[tuple[Series, Summary]]


def by_share(comparison: Comparison) -> list[Drawing]:
    """Draw each score against the training share: means, bands, and every seed.

    Each way of splitting has a figure for each score. If it has a single share, its models are rows instead.
    """
    ways: dict[str, list[Series]] = {}
    for one in comparison.series:
        ways.setdefault(one.kind.split, []).append(one)
    drawings = []
    for way, some in ways.items():
        some = [*some, *_with_all_labels(way, some, ways)]
        for metric in SCORES[comparison.task]:
            scored = [(one, summary) for one in some if (summary := one.summary(metric))]
            if scored:
                drawings.append(_drawing(comparison, metric, scored, way if len(ways) > 1 else ""))
    return drawings


def _with_all_labels(
    way: str, some: Sequence[Series], ways: Mapping[str, Sequence[Series]]
) -> list[Series]:
    """Return the series trained on all labels in which a curve over fractions of the labels ends."""
    base, _, last = way.rpartition("-")
    if last not in ("label", "shots"):
        return []
    held_out = {one.kind.held_out for one in some}
    return [one for one in ways.get(base or "holdout", ()) if one.kind.held_out in held_out]


def _drawing(comparison: Comparison, metric: str, scored: Scored, way: str) -> Drawing:
    shares = [one.share for one, _ in scored]
    several = len({one.kind for one, _ in scored}) > 1 and max(shares) > 1.01 * min(shares)
    name = "-".join(re.findall(r"[a-z0-9]+", f"by-share-{metric}-{way}".lower()))
    title = f"{TITLES[metric][0].upper()}{TITLES[metric][1:]}"
    title += " against the training share" if several else " of each model"
    title += f" ({way})" if way else ""
    mark, dot, band = ("Lines", "Dots", "Bands") if several else ("Marks", "Rings", "Bars")
    repeated = any(len(one.runs) > 1 for one, _ in scored)
    pairs = [(one.model, run) for one, _ in scored if not one.beside for run in one.runs]
    style = looks((*comparison.models, FLOOR))
    with styled():
        drawn = _lines(metric, scored, style) if several else _rows(metric, scored, style)
        settled(drawn, untrained(pairs))
    return Drawing(
        name=name,
        title=title,
        caption=sentences(
            "" if several else f"{split_words(scored[0][0])}.",
            f"{mark}: means over seeds. {dot}: each seed. {band}: {BAND}."
            if repeated
            else f"{band}: 95 % bootstrap intervals over the held-out samples.",
            f"each model was run with {repeats_words(one for one, _ in scored)}.",
            floor_words(comparison) if any(one.model == FLOOR for one, _ in scored) else "",
            untrained_words(pairs),
        ),
        header=_HEADER,
        rows=tuple(
            (
                one.model,
                round(one.share, 4),
                len(one.runs),
                round(summary.mean, 4),
                None if summary.deviation is None else round(summary.deviation, 4),
                round(summary.low, 4),
                round(summary.high, 4),
            )
            for one, summary in scored
        ),
        figure=drawn,
    )


def _lines(metric: str, scored: Scored, style: Mapping[str, Look]) -> Figure:
    drawn = figure(4.2)
    axes = drawn.subplots()
    ends = {}
    for model in dict.fromkeys(one.model for one, _ in scored):
        some = sorted((pair for pair in scored if pair[0].model == model), key=_share)
        look, x = style[model], [one.share * 100 for one, _ in some]
        low, high = ([getattr(s, end) for _, s in some] for end in ("low", "high"))
        axes.fill_between(x, low, high, color=look.colour, alpha=0.13, linewidth=0)
        for place, (_, summary) in zip(x, some, strict=True):
            dots = [place] * len(summary.values)
            axes.plot(dots, summary.values, "o", color=look.colour, alpha=0.55, ms=2.8, mew=0)
        (line,) = axes.plot(
            x,
            [summary.mean for _, summary in some],
            color=look.colour,
            linestyle=look.dashes,
            marker=look.marker,
            markeredgewidth=1.6 if look.marker == "_" else 0.0,
            label=model,
        )
        ends[line] = some[-1][1].mean
    shares = sorted({round(one.share * 100, 1) for one, _ in scored})
    if shares[-1] > _WIDE * shares[0]:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(axis="x", which="minor", length=0)
    else:
        axes.xaxis.set_major_locator(FixedLocator(shares, nbins=10))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.set_xlabel("training share (% of all samples)")
    axes.set_title(TITLES[metric])
    # In the order in which lines end, so that a legend reads like labels.
    ordered = sorted(ends, key=lambda line: -ends[line])
    drawn.legend(handles=ordered, loc="outside right center", handlelength=3.2)
    return drawn


def _share(pair: tuple[Series, Summary]) -> float:
    return pair[0].share


def _rows(metric: str, scored: Scored, style: Mapping[str, Look]) -> Figure:
    ordered = sorted(scored, key=lambda pair: pair[1].mean)
    drawn = figure(0.9 + 0.36 * len(ordered))
    axes = drawn.subplots()
    for place, (one, summary) in enumerate(ordered):
        colour, marker = style[one.model].colour, style[one.model].marker
        ends, values = [summary.low, summary.high], list(summary.values)
        axes.plot(ends, [place] * 2, color=colour, alpha=0.35, lw=7, solid_capstyle="butt")
        axes.plot(values, [place] * len(values), "o", mfc="none", mec=colour, ms=4.5, alpha=0.8)
        marker = "d" if marker == "_" else marker
        axes.plot([summary.mean], [place], marker, color=colour, markersize=7)
    names = [one.model for one, _ in ordered]
    rows_of_names(axes, names, [f"{summary.mean:.3f}" for _, summary in ordered])
    axes.set_xlabel(TITLES[metric])
    return drawn
