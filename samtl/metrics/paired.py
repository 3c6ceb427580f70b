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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samtl.errors import InputError, UnknownName
from samtl.metrics import classification, multilabel, regression, segmentation
from samtl.metrics.classification import Counts, ratio, stakes
from samtl.metrics.intervals import Figure, Floats, by_unit, effective_units, unbounded, units_of

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


@dataclass(frozen=True, eq=False)
class Outputs:
    """What a model said of the held-out samples of one seed if that is not one class for each."""

    task: str  #: of `FIGURES`
    ids: tuple[str, ...]
    truth: NDArray[Any]  #: (n, K) of 0 and 1, or (n,) numbers
    said: Floats  #: (n, K) probabilities, or (n, 1) numbers
    groups: tuple[str, ...] = ()  #: of each sample; empty if there are none


#: For each task of `Outputs`, its scores with what each sample contributes to their errors.
FIGURES = {"multilabel": multilabel.figures, "regression": regression.figures}

Outcome = Predictions | ImageScores | Outputs


def paired_differences(
    models: Mapping[str, Sequence[Outcome]], metric: str
) -> dict[tuple[str, str], Difference]:
    """Compare each model with each that comes after it on the same held-out samples.

    The interval is a t interval between groups or, without groups, samples. The image, or the group of images, that
    differs most counts twice, since few images show little of a skewed distribution, and one that deviates by as much
    as the models differ is added to those that were seen.

    Raises InputError if samples differ or repeat, or there are none; UnknownName if there is no such metric.

    Parameters
    ----------
    models : mapping
        For each model its outcomes, one for each seed, in the same order of seeds. The n-th outcomes of all models
        hold the same samples, in any order.
    metric : str
        One of `samtl.metrics.classification.OF_MATRIX` for labels; for images the name of a score, whose mean over the
        images is compared, or `pooled_` and that name for the score of all their pixels together.
    """
    by_seed = _same_samples(models)
    names = sorted({name for outcomes in by_seed for name in outcomes[0].ids})
    rank = {name: i for i, name in enumerate(names)}
    group: dict[str, str] = {}
    values = dict.fromkeys(models, 0.0)
    errors = {model: np.zeros(len(names)) for model in models}
    worth = np.zeros(len(names))  # of a hit
    label = np.zeros(len(names), dtype=np.int64)
    for outcomes in by_seed:
        for model, outcome in zip(models, outcomes, strict=True):
            rows = [rank[name] for name in outcome.ids]
            value, parts = _scored(outcome, metric)
            values[model] += value / len(by_seed)
            errors[model][rows] += parts / len(by_seed)
            group |= dict(zip(outcome.ids, outcome.groups, strict=False))
        if isinstance(outcome, Predictions):
            worth[rows] += stakes(metric, outcome.truth) / len(by_seed)
            label[rows] = outcome.truth
    units = units_of([group.get(name, name) for name in names], len(names)) if group else None
    n, groups = effective_units(units, len(names)), 0 if units is None else int(units.max()) + 1
    found = {}
    for a, b in itertools.combinations(models, 2):
        value, parts = values[a] - values[b], errors[a] - errors[b]
        together = np.square(by_unit(parts, units))
        if worth.any():
            effect = max(1.0, float(ratio(together.sum(), np.square(parts).sum())))
            variance = _variance_of_labels(parts, worth, label) * effect
        else:
            largest = value**2 / n  # of one more unit
            variance = ((n - 1) * float(together.sum() + together.max()) + largest) / n
        gap = unbounded(value, variance * n / max(n - 1, 1), n)
        shown = (gap.low > 0 or gap.high < 0) and len(names) >= FEWEST
        limit = math.inf if metric in regression.SCORES else 1.0
        figures = (gap.value, max(gap.low, -limit), min(gap.high, limit))
        found[a, b] = Difference(*figures, shown, len(names), len(by_seed), groups)
    return found


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


def _truth(outcome: Outcome) -> dict[str, Any]:
    """Return the label of each sample by id, -1 for an image with a mask."""
    labels: list[Any] = [-1] * len(outcome.ids)
    if not isinstance(outcome, ImageScores):
        labels = list(map(str, outcome.truth.tolist()))
    truth = dict(zip(outcome.ids, labels, strict=True))
    if not truth or len(truth) < len(outcome.ids):
        raise InputError(
            "a comparison needs held-out samples, each once for each seed, got "
            f"{len(outcome.ids)} with {len(truth)} ids"
        )
    return truth


def _variance_of_labels(parts: Floats, worth: Floats, label: Counts) -> float:
    """Return the variance of a difference from what each sample contributes, and what a hit of it is worth, (n,) each.

    Among few labels there are few that only one model is right about: two more are added, one for each model (Bonett
    and Price 2012), and the rates of such labels in small classes are drawn towards the common one.
    """
    size, most = np.bincount(label), np.bincount(label, np.square(worth))
    differing = size * ratio(np.bincount(label, np.square(parts)), most) + 2 * size / size.sum()
    rate = (differing + 4 * differing.sum() / size.sum()) / (size + 4)
    return float((rate * most).sum())


def _scored(outcome: Outcome, metric: str) -> Figure:
    """Return a score and what each sample contributes to its error, (n,)."""
    if not isinstance(outcome, ImageScores):
        if isinstance(outcome, Predictions):
            k = 1 + int(max(outcome.truth.max(), outcome.guess.max()))
            found = classification.figures(outcome.truth, outcome.guess, k)
        else:
            found = FIGURES[outcome.task](outcome.truth, outcome.said)
        if metric not in found:
            raise UnknownName("compared score", metric, found)
        return found[metric]
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
