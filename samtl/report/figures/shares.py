"""Scores against how much was learnt from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter
from sklearn.isotonic import IsotonicRegression

from samtl.report.content import Drawing, Study, Table
from samtl.report.figures.groups import (
    BAND,
    FIGURES,
    FLOOR,
    TITLES,
    Cell,
    Summary,
    cells,
    floor_words,
    repeats_words,
    sentences,
    split_words,
    untrained,
    untrained_words,
)
from samtl.report.style import (
    LABEL,
    SMALL,
    Look,
    bare,
    figure,
    looks,
    settled,
    styled,
)

_HEADER = ("model", "training share", "repeats", "mean", "deviation", "low", "high")
_WIDE = 12  # times the smallest share, above which shares are drawn on a logarithmic axis
_LINE = 1.35  # height of a label's line, in its size


def by_share(study: Study) -> list[Drawing]:
    """Draw each score against the training share, every model with its band and its seeds.

    Splits made in different ways are drawn apart; where one has a single share, its models stand in rows instead.

    Returns
    -------
    list of Drawing
        One for each score and way of splitting.
    """
    ways: dict[str, list[Cell]] = {}
    for cell in cells(study):
        ways.setdefault(cell.kind[0], []).append(cell)
    for way, some in ways.items():
        some += _whole(way, some, ways)
    drawings = []
    for way, some in ways.items():
        for metric in FIGURES[study.task]:
            scored = [(cell, summary) for cell in some if (summary := cell.summary(metric))]
            if scored:
                suffix = f"-{_slug(way)}" if len(ways) > 1 else ""
                drawings.append(_drawing(study, metric, scored, suffix, way if suffix else ""))
    return drawings


def _whole(way: str, some: Sequence[Cell], ways: Mapping[str, Sequence[Cell]]) -> list[Cell]:
    """Give the cells that learnt from all labels, where the others learnt from some: a curve ends in them."""
    base, _, last = way.rpartition("-")
    if last not in ("label", "shots"):
        return []
    held_out = {cell.kind[1] for cell in some}
    return [cell for cell in ways.get(base or "holdout", ()) if cell.kind[1] in held_out]


Scored = Sequence[tuple[Cell, Summary]]


def _drawing(study: Study, metric: str, scored: Scored, suffix: str, way: str) -> Drawing:
    name, title = f"by-share-{metric.replace('_', '-')}{suffix}", TITLES[metric]
    shares = [cell.share for cell, _ in scored]
    several = len({cell.kind for cell, _ in scored}) > 1 and max(shares) > 1.01 * min(shares)
    style = looks((*study.models, FLOOR))
    trials = [trial for cell, _ in scored for trial in cell.trials]
    headline = f"{title[0].upper()}{title[1:]} against the training share"
    if not several:
        headline = f"{title[0].upper()}{title[1:]} of each model"
    if way:
        headline += f" ({way})"
    mark, dot, band = ("Lines", "Dots", "Bands") if several else ("Marks", "Rings", "Bars")
    if any(cell.repeats > 1 for cell, _ in scored):
        marks = f"{mark}: means over seeds. {dot}: each seed. {band}: {BAND}."
    else:
        marks = f"{band}: 95 % bootstrap intervals over the held-out samples."
    words = sentences(
        "" if several else f"{split_words(scored[0][0])}.",
        marks,
        f"each model was run with {repeats_words(cell for cell, _ in scored)}.",
        floor_words(study) if any(cell.model == FLOOR for cell, _ in scored) else "",
        untrained_words(trials),
    )
    with styled():
        drawn = _lines(metric, scored, style) if several else _rows(metric, scored, style)
        settled(drawn, untrained(trials))
    return Drawing(
        name=name,
        title=headline,
        caption=words,
        alt=sentences(f"{headline}: {_told(scored)}.", untrained_words(trials)),
        figure=drawn,
        table=Table(
            name,
            headline,
            words,
            _HEADER,
            tuple(
                (
                    cell.model,
                    round(cell.share, 4),
                    cell.repeats,
                    round(summary.mean, 4),
                    None if summary.deviation is None else round(summary.deviation, 4),
                    round(summary.low, 4),
                    round(summary.high, 4),
                )
                for cell, summary in scored
            ),
        ),
    )


def _told(scored: Scored) -> str:
    """Give the score at each model's smallest and largest share."""
    by_model: dict[str, list[tuple[Cell, Summary]]] = {}
    for cell, summary in scored:
        by_model.setdefault(cell.model, []).append((cell, summary))
    parts = []
    for model, some in by_model.items():
        ends = [min(some, key=_share), max(some, key=_share)][: min(2, len(some))]
        values = " to ".join(
            f"{summary.mean:.3f} at {cell.share * 100:.3g} %" for cell, summary in ends
        )
        parts.append(f"{model} {values}")
    return "; ".join(parts)


def _share(one: tuple[Cell, Summary]) -> float:
    return one[0].share


def _lines(metric: str, scored: Scored, style: Mapping[str, Look]) -> Figure:
    drawn = figure(4.2)
    axes = drawn.subplots()
    ends = {}
    for model in dict.fromkeys(cell.model for cell, _ in scored):
        some = sorted((one for one in scored if one[0].model == model), key=_share)
        look, x = style[model], np.array([cell.share * 100 for cell, _ in some])
        summaries = [summary for _, summary in some]
        axes.fill_between(
            x,
            [s.low for s in summaries],
            [s.high for s in summaries],
            color=look.colour,
            alpha=0.13,
            linewidth=0,
        )
        for cell, summary in some:
            shares = [trial.share * 100 for trial in cell.trials][: len(summary.values)]
            axes.plot(
                shares, summary.values, "o", color=look.colour, alpha=0.55, markersize=2.8, mew=0
            )
        axes.plot(
            x,
            [s.mean for s in summaries],
            color=look.colour,
            linestyle=look.dashes,
            marker=look.marker,
            markeredgewidth=1.6 if look.marker == "_" else 0.0,
        )
        ends[model] = (float(x[-1]), summaries[-1].mean)
    shares = sorted({round(cell.share * 100, 1) for cell, _ in scored})
    if shares[-1] > _WIDE * shares[0]:
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(axis="x", which="minor", length=0)
    axes.xaxis.set_major_locator(FixedLocator(_apart(shares, axes.get_xscale() == "log")))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("training share (% of all samples)")
    axes.set_title(TITLES[metric])
    _label_ends(drawn, axes, ends, style)
    return drawn


def _apart(shares: list[float], log: bool) -> list[float]:
    """Leave out the ticks that would touch the one before."""
    place = np.log(shares) if log else np.array(shares)
    least = (place[-1] - place[0]) / 11
    kept = [0]
    for i in range(1, len(shares)):
        if place[i] - place[kept[-1]] >= least:
            kept.append(i)
    return [shares[i] for i in kept]


def _label_ends(
    drawn: Figure, axes: Axes, ends: Mapping[str, tuple[float, float]], style: Mapping[str, Look]
) -> None:
    """Name each line at the right of where it ends, moved up or down as little as keeps names apart."""
    drawn.draw_without_rendering()  # so that heights are known
    names = sorted(ends, key=lambda model: ends[model][1])
    height = axes.get_window_extent().height
    to_place = axes.transData.transform([ends[model] for model in names])[:, 1]
    gap = LABEL * _LINE * drawn.dpi / 72 / height
    wanted = (to_place - axes.get_window_extent().y0) / height
    for model, place in zip(names, spaced(wanted, gap), strict=True):
        axes.annotate(
            model,
            ends[model],
            xytext=(1.05, float(place)),
            textcoords="axes fraction",
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": style[model].colour,
                "linewidth": 0.9,
                "shrinkA": 1,
                "shrinkB": 3,
                "relpos": (0, 0.5),
            },
        )


def spaced(wanted: Sequence[float], gap: float) -> list[float]:
    """Move ascending places apart to at least a gap, all together as little as possible (least squares)."""
    steps = gap * np.arange(len(wanted))
    moved = IsotonicRegression().fit_transform(steps, np.asarray(wanted) - steps) + steps
    return [float(place) for place in moved]


def _rows(metric: str, scored: Scored, style: Mapping[str, Look]) -> Figure:
    ordered = sorted(scored, key=lambda one: one[1].mean)
    drawn = figure(0.9 + 0.36 * len(ordered))
    axes = drawn.subplots()
    for place, (cell, summary) in enumerate(ordered):
        look = style[cell.model]
        axes.plot(
            [summary.low, summary.high],
            [place, place],
            color=look.colour,
            alpha=0.35,
            linewidth=7,
            solid_capstyle="butt",
        )
        axes.plot(
            summary.values,
            [place] * len(summary.values),
            "o",
            markerfacecolor="none",
            markeredgecolor=look.colour,
            markersize=4.5,
            alpha=0.8,
        )
        marker = "d" if look.marker == "_" else look.marker
        axes.plot([summary.mean], [place], marker, color=look.colour, markersize=7)
        axes.text(
            1.02,
            place,
            f"{summary.mean:.3f}",
            transform=axes.get_yaxis_transform(),
            va="center",
            fontsize=SMALL,
        )
    axes.set_yticks(range(len(ordered)), [cell.model for cell, _ in ordered], fontsize=LABEL)
    axes.set_ylim(-0.6, len(ordered) - 0.4)
    axes.set_xlabel(TITLES[metric])
    bare(axes)
    return drawn


def _slug(text: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in text.lower()).split())
