"""Paired differences: which of two models is better, and whether other samples could have reversed it.

Both models were scored on the same held-out samples. The variance of the difference of their scores is that of what
each sample contributes to it. Several seeds hold out overlapping samples: the contributions of a sample, by its id, are
added up over the seeds, and those of a group over its samples. Intervals say what other samples, or groups, of the same
kind would change, and are not corrected for the number of comparisons: of twenty comparisons of equal models one is
expected to show a difference.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from samtl.errors import InputError, UnknownName
from samtl.metrics import segmentation
from samtl.metrics.classification import (
    Counts,
    accuracy,
    balanced_accuracy,
    confusion,
    contributions,
    macro_f1,
    stakes,
)
from samtl.metrics.intervals import Floats, by_unit, unbounded, units_of

METRICS: dict[str, Callable[[Counts], Floats]] = {
    "accuracy": accuracy,
    "balanced_accuracy": balanced_accuracy,
    "macro_f1": macro_f1,
}
# With fewer samples, even a model better on each fails a sign test at 5 %: 2 / 2**5 > 0.05.
FEWEST = 6
_POOLED = "pooled_"


@dataclass(frozen=True)
class Difference:
    """How much better the first of two models is.

    The interval holds the value: `low <= value <= high`.
    """

    value: float  #: mean over seeds of the first model's score minus the second's
    low: float
    high: float
    shown: bool  #: whether there are at least `FEWEST` samples, and the interval excludes 0
    n_samples: int  #: different held-out samples, over all seeds
    n_seeds: int
    n_groups: int = 0  #: different groups that these are of; 0 if they count one by one


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a classifier said of the held-out samples of one seed."""

    ids: tuple[str, ...]
    truth: Counts  #: (n,) class indices
    guess: Counts
    confidence: Floats | None = None  #: (n,) probability of the predicted class; None if unknown
    groups: tuple[str, ...] = ()  #: of each sample; empty if there are none


@dataclass(frozen=True, eq=False)
class ImageScores:
    """How well a segmenter did on each held-out image of one seed."""

    ids: tuple[str, ...]
    scores: dict[str, Floats]  #: (n,) each, by name: see `samtl.metrics.segmentation.scores`
    masks: tuple[Path, ...] = ()  #: class indices as PNG files, at the encoder's resolution
    #: (n, K, 3): pixels of each class in the truth, the prediction and both; None if unknown.
    counts: Counts | None = None
    groups: tuple[str, ...] = ()  #: of each image; empty if there are none


Outcome = Predictions | ImageScores


def paired_differences(
    models: Mapping[str, Sequence[Outcome]], metric: str
) -> dict[tuple[str, str], Difference]:
    """Compare each model with each that comes after it on the same held-out samples.

    The interval is a t interval between groups or, without groups, samples. Among few labels there are few that only
    one model is right about: two more, one for each model, are added for the variance (Bonett and Price 2012).

    Raises InputError if samples differ or repeat, or there are none; UnknownName if there is no such metric.

    Parameters
    ----------
    models : mapping
        For each model its outcomes, one for each seed, in the same order of seeds. The n-th outcomes of all models
        hold the same samples, in any order.
    metric : str
        One of `METRICS` for labels; for images the name of a score, whose mean over the images is compared, or
        `pooled_` and that name for the score of all their pixels together.
    """
    by_seed = _same_samples(models)
    names = sorted({name for outcomes in by_seed for name in outcomes[0].ids})
    rank = {name: i for i, name in enumerate(names)}
    group: dict[str, str] = {}
    values = dict.fromkeys(models, 0.0)
    errors = {model: np.zeros(len(names)) for model in models}
    worth = np.zeros(len(names))  # of a hit
    for outcomes in by_seed:
        for model, outcome in zip(models, outcomes, strict=True):
            rows = [rank[name] for name in outcome.ids]
            value, parts = _scored(outcome, metric)
            values[model] += value / len(by_seed)
            errors[model][rows] += parts / len(by_seed)
            group |= dict(zip(outcome.ids, outcome.groups, strict=False))
        if isinstance(outcome, Predictions):
            worth[rows] += stakes(metric, outcome.truth) / len(by_seed)
    units = units_of([group[name] for name in names], len(names)) if group else None
    added = 2 * float(np.square(worth).mean())
    found = {}
    for a, b in itertools.combinations(models, 2):
        parts = by_unit(errors[a] - errors[b], units)
        n = len(parts)
        variance = (float(np.square(parts).sum()) + added) * n / max(n - 1, 1)
        gap = unbounded(values[a] - values[b], variance, n)
        shown = (gap.low > 0 or gap.high < 0) and len(names) >= FEWEST
        figures = (gap.value, max(gap.low, -1.0), min(gap.high, 1.0))
        groups = 0 if units is None else n
        found[a, b] = Difference(*figures, shown, len(names), len(by_seed), groups)
    return found


def describe(name_a: str, name_b: str, difference: Difference, unit: str = "points") -> str:
    """Describe a difference in hundredths of the score, the better model first.

    Such as "vit beats mlp by 1.2 points [0.4, 2.0]", or "no difference shown between vit and mlp (0.3 points
    [-0.2, 0.8])".
    """
    value, low, high = difference.value, difference.low, difference.high
    if difference.shown and value < 0:
        name_a, name_b, value, low, high = name_b, name_a, -value, -high, -low
    digits = 1
    if difference.shown:  # enough that the interval does not seem to hold 0
        digits = max(1, math.ceil(-math.log10(100 * low)))
    amount, left, right = (f"{round(100 * x, digits) + 0.0:.{digits}f}" for x in (value, low, high))
    figures = f"{amount} {unit} [{left}, {right}]"
    if difference.shown:
        return f"{name_a} beats {name_b} by {figures}"
    few = f", of {difference.n_samples} samples only" if difference.n_samples < FEWEST else ""
    return f"no difference shown between {name_a} and {name_b} ({figures}{few})"


def _same_samples(models: Mapping[str, Sequence[Outcome]]) -> list[tuple[Outcome, ...]]:
    """Return the outcomes of all models for each seed, after checking that they are of the same samples."""
    counts = [len(outcomes) for outcomes in models.values()]
    if len(counts) < 2 or not min(counts) or len({*counts}) > 1:
        raise InputError(
            f"a comparison needs the same seeds, at least one, of at least two models, got {counts} of {[*models]}"
        )
    by_seed = list(zip(*models.values(), strict=True))
    for outcomes in by_seed:
        first, *others = map(_truth, outcomes)
        for other in others:
            odd = {name for name, _ in first.items() ^ other.items()}
            if odd:
                raise InputError(
                    "models can only be compared on the same held-out samples with the same truth, and "
                    f"{len(odd)} differ, such as {min(odd)!r}"
                )
    return by_seed


def _truth(outcome: Outcome) -> dict[str, int]:
    """Return the label of each sample by id, -1 for an image with a mask."""
    labels = outcome.truth.tolist() if isinstance(outcome, Predictions) else [-1] * len(outcome.ids)
    truth = dict(zip(outcome.ids, labels, strict=True))
    if not truth or len(truth) < len(outcome.ids):
        raise InputError(
            "a comparison needs held-out samples, each once for each seed, got "
            f"{len(outcome.ids)} with {len(truth)} ids"
        )
    return truth


def _scored(outcome: Outcome, metric: str) -> tuple[float, Floats]:
    """Return a score and what each sample contributes to its error, (n,)."""
    if isinstance(outcome, Predictions):
        if metric not in METRICS:
            raise UnknownName("metric of labels", metric, METRICS)
        k = 1 + int(max(outcome.truth.max(), outcome.guess.max()))
        matrix = confusion(outcome.truth, outcome.guess, k)
        parts = contributions(metric, outcome.truth, outcome.guess, k)
        return float(METRICS[metric](matrix)), parts
    n, pooled = len(outcome.ids), metric.removeprefix(_POOLED)
    if outcome.counts is not None and pooled != metric:
        total = outcome.counts.sum(0)
        value = float(segmentation.scores_of_counts(total)[pooled])
        if n == 1:
            return value, np.zeros(1)
        without = segmentation.scores_of_counts(total - outcome.counts)[pooled]
        return value, (without.mean() - without) * (n - 1) / n
    if metric not in outcome.scores:
        raise UnknownName("score of images", metric, outcome.scores)
    each = outcome.scores[metric]
    return float(each.mean()), (each - each.mean()) / n
