"""Scores of samples to which several classes may apply, and their 95 % intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from samtl.errors import InputError
from samtl.metrics.classification import Counts, PerClass, drawn_together, mean_f1, ratio
from samtl.metrics.intervals import (
    NORMAL,
    Figure,
    Floats,
    Rows,
    Score,
    by_unit,
    effective,
    inflation,
    share,
    share_of_units,
    student,
    units_of,
    variance_between,
)

LIKELY = 0.5  # probability from which on a class is said to apply
TRUE_NEGATIVE, FALSE_POSITIVE, FALSE_NEGATIVE, TRUE_POSITIVE = range(4)  # columns of `counts`


def score(
    truth: ArrayLike, probabilities: ArrayLike, groups: Sequence[str] | None = None
) -> dict[str, Score]:
    """Score the probabilities of classes that apply or not.

    Intervals are those of a share whose variance is the sum of the squares of what each sample, or group, contributes
    to the error (the infinitesimal jackknife), and of at most as many trials as there are samples that count.

    Parameters
    ----------
    truth : (n, K) int
        1 where the class applies, else 0.
    probabilities : (n, K) float
        In [0, 1].
    groups : (n,) str, optional
        What each sample was cut from: intervals then say what other groups would change.

    Returns
    -------
    dict of Score
        `macro_ap`, the mean over classes that occur of the average precision (area under the steps of the
        precision-recall curve, as scikit-learn's `average_precision_score`); `micro_ap`, that of all pairs of a sample
        and a class; `macro_f1`, the mean over classes that occur in truth or prediction, and `micro_f1`, of classes
        with a probability of at least 0.5.

    Raises
    ------
    InputError
        If there are no samples, or these are no such arrays.
    """
    found = figures(truth, probabilities)
    chances = np.asarray(probabilities, dtype=np.float64)
    true, guess = np.asarray(truth) > 0, chances >= LIKELY
    units = units_of(groups, len(true))

    def of_pairs(name: str, pairs: NDArray[np.bool_]) -> Score:
        value, parts = found[name]
        trials = effective(by_unit(pairs.sum(1), units))
        return share_of_units(value, variance_between(parts, units)[0], float(trials))

    effect = inflation(found["macro_f1"][1], units)
    return {
        "macro_ap": _mean_ap(*found["macro_ap"], true, chances, units),
        "micro_ap": of_pairs("micro_ap", true),
        "macro_f1": mean_f1((true & guess).sum(0), (true | guess).sum(0), effect),
        "micro_f1": of_pairs("micro_f1", true | guess),
    }


def figures(truth: ArrayLike, probabilities: ArrayLike) -> dict[str, Figure]:
    """Compute each score, and what each sample contributes to its error, (n,) float64 with the sum 0."""
    true, chances = np.asarray(truth), np.asarray(probabilities, dtype=np.float64)
    if true.ndim != 2 or not true.size or true.shape != chances.shape:
        raise InputError(
            f"expected truth and probabilities (samples, classes), got {true.shape} and {chances.shape}"
        )
    if not np.isin(true, (0, 1)).all() or not ((chances >= 0) & (chances <= 1)).all():
        raise InputError("truth must be 0 or 1, and probabilities must lie between 0 and 1")
    positive = true.astype(bool)
    guess = chances >= LIKELY
    each = [average_precision(positive[:, k], chances[:, k]) for k in range(true.shape[1])]
    both, either = positive & guess, positive.astype(np.int64) + guess
    micro_ap, of_pairs = average_precision(positive.ravel(), chances.ravel())
    f1, parts = _f1(both, either)
    micro_f1, of_samples = _f1(both.sum(1, keepdims=True), either.sum(1, keepdims=True))
    return {
        "macro_ap": _mean(
            [one for one, some in zip(each, positive.T, strict=True) if some.any()], len(true)
        ),
        "micro_ap": (micro_ap, of_pairs.reshape(true.shape).sum(1)),
        "macro_f1": _mean(
            [(float(f1[k]), parts[:, k]) for k in np.flatnonzero(either.any(0))], len(true)
        ),
        "micro_f1": (float(micro_f1[0]), of_samples[:, 0]),
    }


def average_precision(positive: NDArray[np.bool_], chances: Floats) -> Figure:
    """Compute the mean over positives of the precision down to each, and what each sample contributes to its error.

    Samples with the same probability come together. The mean is 0 if there is no positive.
    """
    total = int(positive.sum())
    if not total:
        return 0.0, np.zeros(len(positive))
    _, group = np.unique(-chances, return_inverse=True)
    hits = np.bincount(group, positive)
    seen = np.cumsum(np.bincount(group))
    precision = np.cumsum(hits) / seen
    value = float((hits * precision).sum()) / total
    # A sample changes the precision at its own place and at all places below.
    gained = np.cumsum((hits / seen)[::-1])[::-1]
    lost = np.cumsum((hits * precision / seen)[::-1])[::-1]
    parts: Floats = (positive * (precision - value + gained)[group] - lost[group]) / total
    return value, parts


def counts(truth: ArrayLike, probabilities: ArrayLike) -> Counts:
    """Count, of each class, true negatives, false positives, false negatives and true positives: (K, 4) int64."""
    cell = 2 * np.asarray(truth, dtype=np.int64) + (np.asarray(probabilities) >= LIKELY)
    return np.stack([(cell == i).sum(0) for i in range(4)], axis=1)


def per_class(counted: Counts) -> PerClass:
    """Compute precision, recall, F1 and support of each class from `counts`."""
    _, wrong, missed, right = counted.T
    return PerClass.of(right, right + missed, right + wrong)


def _mean_ap(
    value: float, parts: Floats, truth: NDArray[np.bool_], chances: Floats, units: Rows | None
) -> Score:
    """Return the mean average precision with its interval.

    An average precision is a mean of precisions at the positives, so few of these leave it uncertain, however they
    happen to agree: the variance of a class is at least that of a share of as many hits. It is too high on average,
    because a positive counts in its own precision; that is added to the error.
    """
    some = truth.any(0)
    n = truth.sum(0)[some]
    if not len(n):
        return Score(0.0, 0.0, 1.0)
    each = [average_precision(truth[:, k], chances[:, k])[0] for k in np.flatnonzero(some)]
    rate = drawn_together(n * each, n)
    least = float((rate * (1 - rate) / n).sum()) / len(n) ** 2
    bias = float(((1 - rate) / (n + 1)).mean())
    variance, number = variance_between(parts, units)
    error = max(variance, least * inflation(parts, units)) + bias**2
    mean = float(rate.mean())
    return share(value, mean * (1 - mean) / error * (NORMAL / student(number - 1)) ** 2)


def _f1(both: NDArray[Any], either: NDArray[Any]) -> tuple[Floats, Floats]:
    """Return F1 of each column, (K,), and what each sample contributes to its error, (n, K)."""
    total = either.sum(0)
    value = ratio(2 * both.sum(0), total)
    parts: Floats = (2 * both - value * either) / np.maximum(total, 1)
    return value, parts


def _mean(some: Sequence[Figure], n: int) -> Figure:
    """Average figures of n samples; 0 if there are none."""
    if not some:
        return 0.0, np.zeros(n)
    values, parts = zip(*some, strict=True)
    return float(np.mean(values)), np.mean(parts, axis=0)
