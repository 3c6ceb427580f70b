"""Classification scores and their bootstrap intervals.

Scores of a confusion matrix take any number of leading axes, so that a thousand resamples are one call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from samtl.errors import InputError

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]
Draws = NDArray[np.int32]

CALIBRATION_BINS = 15
RESAMPLES = 1000
TAILS = ((1 - 0.95) / 2, (1 + 0.95) / 2)  # of a 95 % interval
_BUDGET = 4_000_000  # numbers held at once while resampling: some 100 MB


@dataclass(frozen=True)
class Score:
    """A figure and its interval; `low <= value <= high`."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class PerClass:
    """Scores of each class, (K,) float64 in [0, 1], 0 if undefined, and its number of true samples, (K,) int64."""

    precision: Floats
    recall: Floats
    f1: Floats
    support: Counts


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


def per_class(matrix: Counts) -> PerClass:
    """Precision, recall and F1 of each class of one (K, K) confusion matrix."""
    right, true, guessed = np.diagonal(matrix), matrix.sum(1), matrix.sum(0)
    return PerClass(
        precision=ratio(right, guessed),
        recall=ratio(right, true),
        f1=ratio(2 * right, true + guessed),
        support=true,
    )


def bootstrap(
    truth: ArrayLike, probabilities: ArrayLike, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Score]:
    """Score class probabilities, with 95 % percentile bootstrap intervals over the samples.

    An interval says how much a figure depends on which samples happened to be held out, not how it would change with
    another training part. Raises InputError if there are no samples, or these are not labels and probabilities.

    Parameters
    ----------
    truth : (n,) int
        Class indices.
    probabilities : (n, K) float
        Rows sum to 1; the first largest is the prediction.

    Returns
    -------
    dict of Score
        `accuracy`, `balanced_accuracy`, `macro_f1`; `ece`, the expected calibration error of the predicted class over
        15 bins of equal width, (0, 1/15] to (14/15, 1] (Guo et al. 2017, equation 3); and `log_loss` in nats,
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
    guess, top = chances.argmax(1), chances.max(1)
    cell = true * k + guess
    last = CALIBRATION_BINS - 1
    bin_of = np.clip(np.ceil(top * CALIBRATION_BINS).astype(np.int64) - 1, 0, last)
    gap = top - (guess == true)
    surprise = -np.log(np.clip(chances[np.arange(n), true], np.finfo(np.float64).eps, 1))

    def figures(draws: Draws) -> dict[str, Floats]:
        b = len(draws)
        nth = np.arange(b)[:, None]
        matrix = np.bincount((nth * k * k + cell[draws]).ravel(), minlength=b * k * k)
        matrix = matrix.reshape(b, k, k)
        # Within a bin, samples * |confidence - accuracy| is |sum of (confidence - hit)|.
        bins = (nth * CALIBRATION_BINS + bin_of[draws]).ravel()
        gaps = np.bincount(bins, gap[draws].ravel(), minlength=b * CALIBRATION_BINS)
        return {
            "accuracy": accuracy(matrix),
            "balanced_accuracy": balanced_accuracy(matrix),
            "macro_f1": macro_f1(matrix),
            "ece": abs(gaps).reshape(b, -1).sum(1) / n,
            "log_loss": surprise[draws].mean(1),
        }

    return resample(figures, n, k**2, resamples, seed)


def resample(
    figures: Callable[[Draws], Mapping[str, Floats]], n: int, size: int, resamples: int, seed: int
) -> dict[str, Score]:
    """Compute percentile intervals of figures of n things, drawn n at a time with replacement.

    `figures` maps draws (B, n) int32 of indices in [0, n) to each figure, (B,) float64, and holds `size` numbers for
    each draw, beside n.
    """
    random = np.random.default_rng(seed)
    at_once = max(1, _BUDGET // max(n, size))
    shapes = [(min(at_once, resamples - i), n) for i in range(0, resamples, at_once)]
    parts = [figures(random.integers(0, n, shape, dtype=np.int32)) for shape in shapes]
    whole = figures(np.arange(n, dtype=np.int32)[None])
    return {
        name: Score(*interval(float(value), np.concatenate([part[name] for part in parts])))
        for name, (value,) in whole.items()
    }


def interval(value: float, resampled: Floats) -> tuple[float, float, float]:
    """Return a value and its 95 % percentile interval.

    It is widened to hold the value: resampling biases some figures, such as the calibration error.
    """
    low, high = np.quantile(resampled, TAILS).tolist()
    return value, min(low, value), max(high, value)


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
