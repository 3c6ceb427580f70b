"""Scores by model and training share: tables with one unit, and curves as small multiples."""

from __future__ import annotations

import textwrap
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, StrMethodFormatter

from samtl.metrics.declared import Metric, metrics_of
from samtl.report.compare import STORE, Comparison, Series, Spread, untrained, weights_of
from samtl.report.page import Cell, Part, Row, caption, slug
from samtl.report.style import (
    GRID,
    SMALL,
    Look,
    capital,
    log_scale,
    looks,
    new_figure,
    panels,
    rows_of_names,
)

_WIDE = 12  # largest share / smallest share above which the axis is logarithmic
_ACROSS = 3  # panels of curves in a row
_LETTERS = 20  # of a panel's title in a line
_FIGURE_SPACE = "\u2007"  # as wide as a digit

Scored = Sequence[tuple[Series, Spread]]


def ways(comparison: Comparison) -> dict[str, list[Series]]:
    """Group series by the way of splitting; a curve over fractions of the labels ends in all labels."""
    found: dict[str, list[Series]] = defaultdict(list)
    for one in comparison.series:
        found[one.kind.split].append(one)
    joined = {}
    for way, some in found.items():
        base, _, last = way.rpartition("-")
        whole = found.get(base or "holdout", []) if last in ("label", "shots") else []
        held_out = {one.kind.held_out for one in some}
        joined[way] = [*some, *(one for one in whole if one.kind.held_out in held_out)]
    return joined


def score_tables(comparison: Comparison) -> list[Part]:
    """Return the score that models are ranked by for each model and share, and all scores on the standard split."""
    found, metric, note = ways(comparison), comparison.metric, untrained(comparison.pairs)
    parts = []
    for way, some in found.items():
        if _has_shares(some):
            several = f" ({way})" if len(found) > 1 else ""
            text = caption("by_share_table", metric=metric, series=some)
            title = f"{capital(metric.title)} by training share{several}"
            rows = [row for one in some for row in _long(one, [metric])]
            parts.append(
                Part(
                    slug(f"scores by share {way if several else ''}"),
                    title,
                    text,
                    rows,
                    note,
                    shown=_by_share_rows(comparison, some),
                )
            )
    standard = [*comparison.standard, *comparison.beside(comparison.standard)]
    parts += _by_encoder(comparison, comparison.standard)
    text = caption("scores", series=standard)
    listed = [m for m in metrics_of(comparison.task) if m.listed]
    every = [row for one in comparison.series for row in _long(one, metrics_of(comparison.task))]
    parts.append(
        Part(
            "scores",
            "Scores of each model",
            text,
            every,
            note,
            shown=_metric_rows(comparison, standard, listed),
        )
    )
    return parts


def _by_encoder(comparison: Comparison, some: Sequence[Series]) -> list[Part]:
    """Return a table of encoders and heads, if there are several of both."""
    metric, cells = comparison.metric, defaultdict[str, dict[str, Spread | None]](dict)
    split = {one.model: one.model.partition(STORE) for one in some if STORE in one.model}
    stores = dict.fromkeys(store for _, _, store in split.values())
    for one in comparison.ranked([one for one in some if one.model in split]):
        head, _, store = split[one.model]
        cells[head].setdefault(store, one.spread(metric.name))
    if min(len(cells), len(stores)) < 2:
        return []
    columns = {
        head: _column(metric, {store: column.get(store) for store in stores}, interval=True)
        for head, column in cells.items()
    }
    shown = [
        {"encoder": store} | {h: column[store] for h, column in columns.items()} for store in stores
    ]
    rows = [row for one in some if one.model in split for row in _long(one, [metric])]
    title = f"{capital(metric.title)} of each head on each encoder"
    text, note = caption("by_encoder", metric=metric, series=some), untrained(comparison.pairs)
    return [Part("scores-by-encoder", title, text, rows, note, shown=shown)]


def _has_shares(some: Sequence[Series]) -> bool:
    shares = [one.share for one in some]
    return len({one.kind for one in some}) > 1 and max(shares) > 1.01 * min(shares)


def _long(one: Series, metrics: Sequence[Metric]) -> list[Row]:
    """Return a row of numbers for each score, in its unit."""
    rows: list[Row] = []
    for metric in metrics:
        if all(metric.name in scores for scores in one.scores):
            spread, scale = one.spread(metric.name), metric.factor
            rows.append(
                {
                    "model": one.model,
                    "reads": "pixels" if one.is_floor else one.runs[0].inputs,
                    "encoder and weights": "" if one.is_floor else weights_of(one.runs[0]),
                    "split": one.kind.split,
                    "training share, %": 100 * one.share,
                    "held out": max(run.n_test for run in one.runs),
                    "score": metric.title,
                    "unit": metric.unit,
                    "repeats": len(one.runs),
                    "mean": scale * spread.mean,
                    "deviation": None if spread.deviation is None else scale * spread.deviation,
                    "low": scale * spread.low,
                    "high": scale * spread.high,
                }
            )
    return rows


def _by_share_rows(comparison: Comparison, some: Sequence[Series]) -> list[Row]:
    metric = comparison.metric
    shares = sorted({_percent(one.share) for one in some})
    cells: dict[str, dict[float, Spread]] = defaultdict(dict)
    for one in some:
        cells[one.model][_percent(one.share)] = one.spread(metric.name)
    columns = [{model: spreads.get(share) for model, spreads in cells.items()} for share in shares]
    written = [_column(metric, column) for column in columns]

    def worth(model: str) -> tuple[bool, float]:
        last = columns[-1][model]
        return last is None, 0.0 if last is None else -metric.better(last.mean)

    return [
        {"model": model}
        | {f"{share:g} %": column[model] for share, column in zip(shares, written, strict=True)}
        for model in sorted(cells, key=worth)
    ]


def _percent(share: float) -> float:
    return float(f"{100 * share:.3g}")


def _metric_rows(
    comparison: Comparison, some: Sequence[Series], metrics: Sequence[Metric]
) -> list[Row]:
    ranked = comparison.ranked(some)
    columns = {}
    for metric in (m for m in metrics if any(m.name in one.scores[0] for one in some)):
        column = {
            one.model: one.spread(metric.name) if metric.name in one.scores[0] else None
            for one in ranked
        }
        unit = f", {metric.unit}" if metric.unit else ""
        columns[f"{metric.title}{unit}"] = _column(metric, column, interval=True)
    return [
        {"model": one.model, **{title: cells[one.model] for title, cells in columns.items()}}
        for one in ranked
    ]


def _column(
    metric: Metric, column: Mapping[str, Spread | None], interval: bool = False
) -> dict[str, Any]:
    """Write the cells of a column with aligned decimals, and mark the best."""
    texts = {
        model: [
            metric.written(x)
            for x in (s.mean, *((s.low, s.high) if interval else (s.deviation,)))
            if x is not None
        ]
        for model, s in column.items()
        if s
    }
    widths = [max(map(len, some)) for some in zip(*texts.values(), strict=False)]
    best = min((-metric.better(spread.mean) for spread in column.values() if spread), default=0.0)
    cells: dict[str, Any] = {}
    for model, spread in column.items():
        if spread is None:
            cells[model] = None
            continue
        padded = [
            text.rjust(n, _FIGURE_SPACE) for text, n in zip(texts[model], widths, strict=False)
        ]
        text = padded[0]
        if interval:
            text += f" [{padded[1]}, {padded[2]}]"
        elif len(padded) > 1:
            text += f" ± {padded[1]}"
        cells[model] = Cell(spread.mean, text, -metric.better(spread.mean) == best)
    return cells


def by_share(comparison: Comparison) -> list[Part]:
    """Draw scores against the training share, with a panel for each model: means, bands, and every seed.

    Each way of splitting has a figure for each score. If it has a single share, its models are rows of one panel.
    """
    found = ways(comparison)
    return [
        _by_share(comparison, metric, some, way if len(found) > 1 else "")
        for way, some in found.items()
        for metric in metrics_of(comparison.task)
        if metric.curve
    ]


def _by_share(comparison: Comparison, metric: Metric, some: Sequence[Series], way: str) -> Part:
    scored = [(one, one.spread(metric.name)) for one in some]
    several = _has_shares(some)
    what = "against the training share" if several else "of each model"
    text = caption("by_share", comparison=comparison, series=some, several=several)
    note = untrained(pair for one in some for pair in one.pairs)
    draw, style = _panels if several else _rows, looks(comparison.names)
    return Part(
        slug(f"by share {metric.name} {way}"),
        f"{capital(metric.title)} {what}{f' ({way})' if way else ''}",
        text,
        [row for one in some for row in _long(one, [metric])],
        note,
        draw(metric, scored, style, note),
    )


def axis_title(metric: Metric) -> str:
    """Name a score with its unit."""
    return f"{metric.title} ({metric.unit})" if metric.unit else metric.title


def _panels(metric: Metric, scored: Scored, style: Mapping[str, Look], note: str) -> Figure:
    lines: dict[str, list[tuple[float, Spread]]] = defaultdict(list)
    for one, spread in scored:
        lines[one.model].append((100 * one.share, spread))
    for line in lines.values():
        line.sort(key=lambda point: point[0])
    # From the best at the largest share to the worst, as in the table.
    order = sorted(lines, key=lambda model: -metric.better(lines[model][-1][1].mean))
    shape = (len(order), _ACROSS, 1.75, 0.7)
    with panels(*shape, note, shared=True) as (figure, every):
        shares = sorted({round(x, 1) for line in lines.values() for x, _ in line})
        for axes, model in zip(every, order, strict=True):
            for other in order:
                if other != model:
                    x, means = zip(
                        *((x, metric.factor * s.mean) for x, s in lines[other]), strict=True
                    )
                    axes.plot(x, means, color=GRID, lw=1.0, zorder=1)
            _panel(axes, metric, lines[model], style[model])
            axes.set_title(wrapped(model), fontsize=SMALL)
            if shares[-1] > _WIDE * shares[0]:
                log_scale(axes, "x")
            else:
                axes.xaxis.set_major_locator(FixedLocator(shares, nbins=5))
                axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.yaxis.set_major_locator(MaxNLocator(5))
        figure.supxlabel("training share (% of all samples)", fontsize=10)
        figure.supylabel(axis_title(metric), fontsize=10)
    return figure


def _panel(axes: Axes, metric: Metric, line: Sequence[tuple[float, Spread]], look: Look) -> None:
    x = [place for place, _ in line]
    mean, low, high = (
        [metric.factor * getattr(spread, end) for _, spread in line]
        for end in ("mean", "low", "high")
    )
    axes.fill_between(x, low, high, color=look.colour, alpha=0.18, linewidth=0)
    for place, spread in line:
        dots = [metric.factor * value for value in spread.values]
        axes.plot([place] * len(dots), dots, "o", color=look.colour, alpha=0.55, ms=2.8, mew=0)
    edge = 1.6 if look.marker == "_" else 0.0
    axes.plot(x, mean, color=look.colour, ls=look.dashes, marker=look.marker, mew=edge, ms=4.5)


def wrapped(name: str) -> str:
    """Break a model's name so that it fits above a panel."""
    return "\n".join(textwrap.wrap(name, _LETTERS)[:2]) or name


def _rows(metric: Metric, scored: Scored, style: Mapping[str, Look], note: str) -> Figure:
    ordered = sorted(scored, key=lambda pair: metric.better(pair[1].mean))
    with new_figure(0.9 + 0.36 * len(ordered), note=note) as figure:
        axes = figure.subplots()
        for place, (one, found) in enumerate(ordered):
            look, values = style[one.model], [metric.factor * value for value in found.values]
            ends = [metric.factor * found.low, metric.factor * found.high]
            axes.plot(ends, [place] * 2, color=look.colour, alpha=0.35, lw=7, solid_capstyle="butt")
            rings: Any = {"mfc": "none", "mec": look.colour, "ms": 4.5, "alpha": 0.8}
            axes.plot(values, [place] * len(values), "o", **rings)
            marker = "d" if look.marker == "_" else look.marker
            axes.plot(
                [metric.factor * found.mean], [place], marker, color=look.colour, markersize=7
            )
        means = [metric.written(found.mean) for _, found in ordered]
        rows_of_names(axes, [one.model for one, _ in ordered], means)
        axes.set_xlabel(axis_title(metric))
    return figure
