"""Classification scores and their intervals.

Scores of a confusion matrix take any number of leading axes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from samtl.errors import InputError
from samtl.metrics.calibration import calibration_error
from samtl.metrics.intervals import (
    Figure,
    Floats,
    Rows,
    binomial,
    design_effect,
    effective_units,
    inflation,
    share,
    student,
    units_of,
)
from samtl.metrics.intervals import Score as Score

Counts = NDArray[np.int64]

_ADDED = 1  # hits and errors each that are added for the interval of the log loss


@dataclass(frozen=True)
class PerClass:
    """Scores of each class, (K,) float64 in [0, 1], 0 if undefined, and its number of true samples, (K,) int64."""

    precision: Floats
    recall: Floats
    f1: Floats
    support: Counts

    @classmethod
    def of(cls, right: Counts, true: Counts, guessed: Counts) -> PerClass:
        """Compute them from how often each class is right, in the truth, and predicted, (K,) each."""
        return cls(
            ratio(right, guessed), ratio(right, true), ratio(2 * right, true + guessed), true
        )


def confusion(truth: ArrayLike, predicted: ArrayLike, n_classes: int) -> Counts:
    """Count each pair of true and predicted class: (K, K) int64, rows are the truth, columns the prediction.

    From class indices, (n,) each; raises InputError if one is out of range.
    """
    true = _indices(truth, n_classes, "labels")
    guess = _indices(predicted, n_classes, "predictions")
    return np.bincount(true * n_classes + guess, minlength=n_classes**2).reshape(n_classes, -1)


def accuracy(matrix: Counts) -> Floats:
    """Share of correct predictions, (..., K, K) to (...)."""
    return ratio(np.trace(matrix, axis1=-2, axis2=-1), matrix.sum((-2, -1)))


def balanced_accuracy(matrix: Counts) -> Floats:
    """Mean recall over the classes that occur in the truth, (..., K, K) to (...)."""
    support = matrix.sum(-1)
    recall = ratio(np.diagonal(matrix, axis1=-2, axis2=-1), support)
    return ratio(recall.sum(-1), (support > 0).sum(-1))


def macro_f1(matrix: Counts) -> Floats:
    """Mean F1 over the classes that occur in the truth or the predictions, (..., K, K) to (...)."""
    either = matrix.sum(-1) + matrix.sum(-2)
    f1 = ratio(2 * np.diagonal(matrix, axis1=-2, axis2=-1), either)
    return ratio(f1.sum(-1), (either > 0).sum(-1))


#: The scores of a confusion matrix.
OF_MATRIX: dict[str, Callable[[Counts], Floats]] = {
    "accuracy": accuracy,
    "balanced_accuracy": balanced_accuracy,
    "macro_f1": macro_f1,
}


def per_class(matrix: Counts) -> PerClass:
    """Precision, recall and F1 of each class of one (K, K) confusion matrix."""
    return PerClass.of(np.diagonal(matrix), matrix.sum(1), matrix.sum(0))


def score(
    truth: ArrayLike, probabilities: ArrayLike, groups: Sequence[str] | None = None
) -> dict[str, Score]:
    """Score class probabilities, with 95 % intervals.

    Intervals are those of a share of hits (Clopper and Pearson 1934) with the effective number of samples (Korn and
    Graubard 1998) that the variance of a score is equivalent to. Raises InputError if there are no samples, or these
    are not labels and probabilities.

    Parameters
    ----------
    truth : (n,) int
        Class indices.
    probabilities : (n, K) float
        Rows sum to 1; the first largest is the prediction.
    groups : (n,) str, optional
        What each sample was cut from: intervals then say what other groups would change.

    Returns
    -------
    dict of Score
        `accuracy`, `balanced_accuracy`, `macro_f1`; `ece`, see `samtl.metrics.calibration`; and `log_loss` in nats,
        probabilities clipped at 2.2e-16.
    """
    chances = np.asarray(probabilities, dtype=np.float64)
    if chances.ndim != 2 or not chances.size or len(chances) != np.size(truth):
        raise InputError(
            "expected probabilities (samples, classes) for each label, at least one, got shape "
            f"{chances.shape} for {np.size(truth)} labels"
        )
    n, k = chances.shape
    true = _indices(truth, k, "labels")
    bad = ~(np.isfinite(chances) & (chances >= 0)).all(1) | (abs(chances.sum(1) - 1) > 1e-3)
    if bad.any():
        raise InputError(
            f"each row must hold probabilities that sum to 1, but row {bad.argmax()} is {chances[bad.argmax()][:8]}"
        )
    guess, top = chances.argmax(1), np.minimum(chances.max(1), 1)
    hit, units = guess == true, units_of(groups, n)
    matrix = confusion(true, guess, k)
    effect = {name: inflation(parts, units) for name, (_, parts) in figures(true, guess, k).items()}
    gap, right = top - hit, np.diagonal(matrix)
    return {
        "accuracy": share(hit.mean(), n / effect["accuracy"]),
        "balanced_accuracy": _balanced(matrix, effect["balanced_accuracy"]),
        "macro_f1": mean_f1(right, matrix.sum(0) + matrix.sum(1) - right, effect["macro_f1"]),
        "ece": calibration_error(top, hit, inflation(gap - gap.mean(), units)),
        "log_loss": _log_loss(chances, true, guess, units),
    }


def figures(truth: Counts, guess: Counts, n_classes: int) -> dict[str, Figure]:
    """Compute each score of `OF_MATRIX`, and what each sample contributes to its error, (n,); sums to 0.

    A score is linear in these numbers up to terms that vanish with many samples (its influence function).
    """
    matrix = confusion(truth, guess, n_classes)
    right, true, either = np.diagonal(matrix), matrix.sum(1), matrix.sum(0) + matrix.sum(1)
    hit = truth == guess
    of_class = ratio(true > 0, true) / (true > 0).sum()
    of_both = ratio(either > 0, either) / (either > 0).sum()
    loss = ratio(2 * right, either) * of_both
    parts = {
        "accuracy": (hit - hit.mean()) / len(hit),
        "balanced_accuracy": of_class[truth] * (hit - ratio(right, true)[truth]),
        "macro_f1": 2 * of_both[truth] * hit - loss[truth] - loss[guess],
    }
    return {name: (float(value(matrix)), parts[name]) for name, value in OF_MATRIX.items()}


def stakes(metric: str, truth: Counts) -> Floats:
    """Return by how much a hit more or less changes a score, about, for each sample, (n,)."""
    if metric == "accuracy":
        return np.full(len(truth), 1 / len(truth))
    support = np.bincount(truth)
    return np.asarray(1 / (support[truth] * (support > 0).sum()), dtype=np.float64)


def _balanced(matrix: Counts, effect: float) -> Score:
    """Return the balanced accuracy, a mean of shares, with its interval.

    The shares of small classes are drawn towards the common one to estimate their variance, or a class of one sample
    would seem to be known. The interval holds what the worst known class alone leaves possible.
    """
    true = matrix.sum(1)
    right, true = np.diagonal(matrix)[true > 0], true[true > 0]
    rate = drawn_together(right, true)
    variance = float((rate * (1 - rate) / true).sum()) / len(true) ** 2
    value, mean = float(balanced_accuracy(matrix)), float(rate.mean())
    found = share(value, mean * (1 - mean) / variance / effect)
    low, high = binomial(right / effect, true / effect)
    below, above = (right / true - low).max(), (high - right / true).max()
    return Score.around(
        value,
        max(0.0, min(found.low, value - below / len(true))),
        min(1.0, max(found.high, value + above / len(true))),
    )


def mean_f1(right: Counts, union: Counts, effect: float = 1.0) -> Score:
    """Return the mean F1 over classes with its interval.

    F1 is 2 J / (1 + J), where J is the share of hits among the samples that are or are called a class. Each error
    counts in two classes, which at most doubles its part of the variance. For few samples F1 is too low on average, by
    half the second derivative times the variance; that is added to the error.

    Parameters
    ----------
    right, union : (K,) int64
        Hits of each class, and samples that are of it or called it; classes without any do not count.
    effect : float
        By what factor groups multiply the variance.
    """
    right, union = right[union > 0], union[union > 0]
    if not len(union):
        return Score(0.0, 0.0, 1.0)
    rate = drawn_together(right, union)
    each = 4 * rate * (1 - rate) / (1 + rate) ** 3 / union
    error = float(each.sum()) / len(each) ** 2 + (float(each.mean()) / 2) ** 2
    mean = float((2 * rate / (1 + rate)).mean())
    value = float(ratio(2 * right, right + union).mean())
    return share(value, mean * (1 - mean) / error / effect)


def drawn_together(hits: NDArray[Any], n: Counts) -> Floats:
    """Return shares of hits, each with four more samples of the share that all have together; never 0 or 1."""
    common = (hits.sum() + 1) / (n.sum() + 2)
    return np.asarray((hits + 4 * common) / (n + 4), dtype=np.float64)


def _log_loss(chances: Floats, truth: Counts, guess: Counts, units: Rows | None) -> Score:
    """Return the log loss with a t interval.

    Errors are few and each costs much, so that samples without one say little. A hit and an error of the cost that the
    probabilities leave to be expected are added to the samples for the interval (Agresti and Coull 1998 do so for
    shares).
    """
    n = len(truth)
    nth, tiny = np.arange(n), np.finfo(np.float64).eps
    others = np.clip(chances, tiny, 1)
    costs = -np.log(others)
    surprise = costs[nth, truth]
    others[nth, guess] = 0
    others /= np.maximum(others.sum(1, keepdims=True), tiny)
    added = [costs[nth, guess], (others * costs).sum(1)]
    added_squares = [costs[nth, guess] ** 2, (others * costs**2).sum(1)]
    total = n + _ADDED * len(added)
    mean = (surprise.sum() + _ADDED * sum(one.mean() for one in added)) / total
    square = (np.square(surprise).sum() + _ADDED * sum(one.mean() for one in added_squares)) / total
    effect = design_effect(surprise - surprise.mean(), units)
    degrees = effective_units(units, n) - 1
    half = student(degrees) * np.sqrt(max(square - mean**2, 0) / total * effect)
    return Score.around(surprise.mean(), max(0.0, mean - half), mean + half)


def ratio(part: NDArray[np.generic], whole: NDArray[np.generic]) -> Floats:
    """Divide; 0 if the whole is 0."""
    below = np.asarray(whole, dtype=np.float64)
    out = np.zeros_like(below)
    np.divide(part, below, out=out, where=below > 0)
    return out


def _indices(values: ArrayLike, n_classes: int, what: str) -> Counts:
    array = np.asarray(values)
    if not array.size:
        return np.empty(0, dtype=np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise InputError(f"{what} must be (n,) int, got shape {array.shape} of {array.dtype}")
    if array.min() < 0 or array.max() >= n_classes:
        raise InputError(
            f"{what} must lie between 0 and {n_classes - 1}, got {array.min()} to {array.max()}"
        )
    return array.astype(np.int64)
