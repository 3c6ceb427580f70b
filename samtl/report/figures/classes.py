"""Scores of each class, with intervals, of the models that lead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from samtl.experiment.run import Run
from samtl.experiment.tables import read_images, read_outputs, read_predictions
from samtl.metrics.classification import ratio
from samtl.metrics.intervals import Floats, Score, binomial, inflation, units_of
from samtl.metrics.multilabel import LIKELY
from samtl.metrics.segmentation import class_counts, class_ious
from samtl.report.compare import Comparison, untrained
from samtl.report.page import Cell, Part, caption
from samtl.report.style import Look, capital, looks, new_figure, shortened

MOST = 40  # classes that one figure shows
_APART = 0.22  # between the models of a class, in rows

Bounds = tuple[Floats, Floats, Floats]  # values, and their 95 % intervals


class ByClass(NamedTuple):
    """A score of each class in percent, mean over seeds, (K,) each; NaN if a class does not occur."""

    value: Floats
    low: Floats
    high: Floats

    @classmethod
    def over(cls, seeds: Sequence[Bounds]) -> ByClass:
        """Average over the seeds in which a class occurs."""
        known = np.array([~np.isnan(value) for value, _, _ in seeds])
        sums = (np.nansum([part[i] for part in seeds], axis=0) for i in range(3))
        count = np.where(known.any(0), known.sum(0), np.nan)
        return cls(*(100 * total / count for total in sums))


def per_class(comparison: Comparison) -> list[Part]:
    """Draw the score of each class of the best head, the best baseline and the floor, on the standard split.

    It is recall for classifications and IoU over all pixels for segmentations. Of many classes those with the lowest
    scores of the best model are shown.
    """
    if comparison.task == "regression":
        return []
    pixels = comparison.task == "segmentation"
    title, score = ("IoU", _iou) if pixels else ("recall", _recall)
    leading = comparison.leading
    found = {one.model: ByClass.over([*map(score, one.runs)]) for one in leading}
    found = {model: scored for model, scored in found.items() if not np.isnan(scored.value).all()}
    if not found:
        return []
    support = np.mean([_counts(run)[0] for run in leading[0].runs], axis=0)
    precision = {
        one.model: ByClass.over([*map(_precision, one.runs)]) for one in leading if not pixels
    }
    things = "held-out pixels" if pixels else "held out"
    first = next(iter(found.values())).value
    order = np.argsort(np.where(np.isnan(first), np.inf, first), kind="stable")
    shown = [i for i in order.tolist() if support[i]][:MOST]
    rows = [
        {"model": model, "class": name, things: float(support[i])}
        | _figures(title, scored, i)
        | (_figures("precision", precision[model], i) if model in precision else {})
        for model, scored in found.items()
        for i, name in enumerate(comparison.classes)
    ]
    table = [
        {"class": comparison.classes[i], things: round(float(support[i]))}
        | {f"{model}, %": _cell(scored, i) for model, scored in found.items()}
        for i in shown
    ]
    note = untrained(pair for one in leading for pair in one.pairs)
    figure = _drawn(comparison, found, shown, f"{title} (%)", note)
    facts = {"pixels": pixels, "classes": int((support > 0).sum()), "shown": len(shown)}
    text = caption("per_class", series=leading, **facts)
    return [
        Part(
            "classes",
            f"{capital(title)} of each class",
            text,
            rows,
            note,
            figure,
            shown=table,
        )
    ]


def _figures(title: str, scored: ByClass, i: int) -> dict[str, Any]:
    value, low, high = (None if np.isnan(some[i]) else float(some[i]) for some in scored)
    return {f"{title}, %": value, f"{title}, low": low, f"{title}, high": high}


def _cell(scored: ByClass, i: int) -> Cell | None:
    value, low, high = (float(some[i]) for some in scored)
    return None if np.isnan(value) else Cell(value, f"{value:.1f} [{low:.1f}, {high:.1f}]")


def _counts(run: Run) -> NDArray[np.int64]:
    """Count how often each class is in the truth, the prediction and both: (3, K)."""
    if run.task == "multilabel":
        _, false, missed, right = run.confusion.T
        return np.stack([right + missed, right + false, right])
    return class_counts(run.confusion).T


def _recall(run: Run) -> Bounds:
    true, _, right = _counts(run)
    return _shares(right, true, _effects(run, "truth"))


def _precision(run: Run) -> Bounds:
    _, guessed, right = _counts(run)
    return _shares(right, guessed, _effects(run, "guess"))


def _shares(hits: NDArray[np.int64], n: NDArray[np.int64], effects: Floats) -> Bounds:
    low, high = binomial(hits / effects, n / effects)
    value = np.where(n > 0, ratio(hits, n), np.nan)
    return value, np.fmin(low, value), np.fmax(high, value)


def _effects(run: Run, of: Literal["truth", "guess"]) -> Floats:
    """Return by what factor groups multiply the variance of each class's share of hits, (K,)."""
    effects = np.ones(len(run.classes))
    if not run.n_groups:
        return effects
    truth, guess, groups = _said(run)
    for k in range(len(effects)):
        mine = np.flatnonzero((truth if of == "truth" else guess)[:, k])
        hit = (truth & guess)[mine, k].astype(np.float64)
        if len(mine):
            effects[k] = inflation(hit - hit.mean(), units_of([groups[i] for i in mine], len(mine)))
    return effects


def _said(run: Run) -> tuple[NDArray[np.bool_], NDArray[np.bool_], tuple[str, ...]]:
    """Return which classes each sample has, and which were predicted, (n, K) each, and the groups."""
    if run.task == "multilabel":
        outputs = read_outputs(run)
        return outputs.truth == 1, outputs.said >= LIKELY, outputs.groups
    said, classes = read_predictions(run), np.arange(len(run.classes))
    return said.truth[:, None] == classes, said.guess[:, None] == classes, said.groups


def _iou(run: Run) -> Bounds:
    """Return the IoU of each class over all pixels; without counts of pixels it has no interval."""
    images = read_images(run)
    if images.counts is None:
        true, guessed, both = _counts(run)
        union = true + guessed - both
        whole = np.where(union > 0, ratio(both, union), np.nan)
        return whole, whole, whole
    unknown = Score(np.nan, np.nan, np.nan)
    found = [one or unknown for one in class_ious(images.counts, images.groups)]
    value, low, high = np.array([[one.value, one.low, one.high] for one in found]).T
    return value, low, high


def _drawn(
    comparison: Comparison,
    found: Mapping[str, ByClass],
    shown: Sequence[int],
    title: str,
    note: str,
) -> Figure:
    style: Mapping[str, Look] = looks(comparison.names)
    high = 0.28 if len(found) > 1 else 0.22
    with new_figure(1.3 + high * len(shown), note=note) as figure:
        axes = figure.subplots()
        for place, (model, scored) in enumerate(found.items()):
            look = style[model]
            y = np.arange(len(shown)) + (place - (len(found) - 1) / 2) * _APART
            value, low, top = (some[list(shown)] for some in scored)
            axes.hlines(y, low, top, color=look.colour, lw=1.6, alpha=0.6)
            marker = "d" if look.marker == "_" else look.marker
            axes.plot(value, y, marker, color=look.colour, ms=4.5, label=model)
        names = [shortened(comparison.classes[i], 28) for i in shown]
        axes.set_yticks(range(len(shown)), names)
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.set_xlim(-2, 102)
        axes.set_xlabel(title)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        figure.legend(loc="outside lower center", ncols=min(3, len(found)))
    return figure
