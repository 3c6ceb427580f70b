"""How good predictions are: classification scores and their bootstrap intervals, numpy only.

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
LEVEL = 0.95
_BUDGET = 4_000_000  # numbers held at once while resampling: some 100 MB


@dataclass(frozen=True)
class Score:
    """One figure and the interval it comes with; `low <= value <= high`."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class PerClass:
    """Scores of each class, (K,) each, in the order of the classes; 0 where a ratio has no denominator.

    Attributes
    ----------
    precision, recall, f1 : (K,) float64
        In [0, 1].
    support : (K,) int64
        True samples of the class.
    """

    precision: Floats
    recall: Floats
    f1: Floats
    support: Counts


def confusion(truth: ArrayLike, predicted: ArrayLike, n_classes: int) -> Counts:
    """Count each pair of true and predicted class.

    Parameters
    ----------
    truth, predicted : (n,) int
        Class indices in [0, n_classes).

    Returns
    -------
    (K, K) int64
        Rows are the truth, columns the prediction.

    Raises
    ------
    InputError
        Where lengths differ or an index is out of range.
    """
    true, guess = (
        _indices(truth, n_classes, "labels"),
        _indices(predicted, n_classes, "predictions"),
    )
    if true.shape != guess.shape:
        raise InputError(
            f"as many predictions as labels are needed, got {len(guess)} for {len(true)}"
        )
    return np.bincount(true * n_classes + guess, minlength=n_classes**2).reshape(n_classes, -1)


def accuracy(matrix: Counts) -> Floats:
    """Part of the samples predicted correctly, (..., K, K) to (...)."""
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


def calibration_error(truth: ArrayLike, probabilities: ArrayLike) -> float:
    """Expected calibration error of the top class, in [0, 1].

    The mean distance between confidence and accuracy over 15 bins of equal width, (0, 1/15] to (14/15, 1], weighted
    by their samples (Guo et al. 2017, "On Calibration of Modern Neural Networks", equation 3).

    Parameters
    ----------
    truth : (n,) int
    probabilities : (n, K) float
        Rows sum to 1.
    """
    return float(_Samples(truth, probabilities).figures()["ece"][0])


def log_loss(truth: ArrayLike, probabilities: ArrayLike) -> float:
    """Mean of -log(probability of the true class), in nats; probabilities below 2.2e-16 count as that.

    Parameters
    ----------
    truth : (n,) int
    probabilities : (n, K) float
        Rows sum to 1.
    """
    return float(_Samples(truth, probabilities).figures()["log_loss"][0])


def bootstrap(
    truth: ArrayLike,
    probabilities: ArrayLike,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> dict[str, Score]:
    """Score class probabilities, with percentile bootstrap intervals over the samples.

    The interval is that of the score over samples drawn with replacement: it says how much the figure hangs on which
    samples happened to be held out, not how much it would change with another training part. Where resampling is
    biased it is widened to hold the value (calibration error: noise in a bin only ever adds).

    Parameters
    ----------
    truth : (n,) int
        Class indices.
    probabilities : (n, K) float
        Rows sum to 1; the prediction is the first largest.
    resamples : int
    seed : int
    level : float
        In (0, 1).

    Returns
    -------
    dict of Score
        `accuracy`, `balanced_accuracy`, `macro_f1`, `ece` and `log_loss`.

    Raises
    ------
    InputError
        Where there are no samples, labels are out of range, or rows are not probabilities.
    """
    samples = _Samples(truth, probabilities)
    return resample(samples.figures, samples.n, samples.classes**2, resamples, seed, level)


def resample(
    figures: Callable[[Draws], Mapping[str, Floats]],
    n: int,
    size: int,
    resamples: int,
    seed: int,
    level: float,
) -> dict[str, Score]:
    """Draw n of n things with replacement, again and again: percentile intervals of figures.

    Parameters
    ----------
    figures : callable
        Gives each figure, (B,) float64, for draws (B, n) int32 of indices in [0, n).
    n : int
    size : int
        Numbers that `figures` holds for each draw, beside n.
    resamples, seed, level
        As for `bootstrap`.

    Returns
    -------
    dict of Score
        The value is that of each thing once; the interval is widened where it would not hold it.

    Raises
    ------
    InputError
        Where `resamples` or `level` is out of range.
    """
    if resamples < 1 or not 0 < level < 1:
        raise InputError(f"expected resamples >= 1 and 0 < level < 1, got {resamples} and {level}")
    random = np.random.default_rng(seed)
    at_once = max(1, _BUDGET // max(n, size))
    parts = []
    for start in range(0, resamples, at_once):
        shape = (min(at_once, resamples - start), n)
        parts.append(figures(random.integers(0, n, shape, dtype=np.int32)))
    tails = [(1 - level) / 2, (1 + level) / 2]
    scores = {}
    for name, (value,) in figures(np.arange(n, dtype=np.int32)[None]).items():
        low, high = np.quantile(np.concatenate([part[name] for part in parts]), tails)
        scores[name] = Score(float(value), float(min(low, value)), float(max(high, value)))
    return scores


def ratio(part: NDArray[np.generic], whole: NDArray[np.generic]) -> Floats:
    """Divide, with 0 where the whole is 0."""
    below = np.asarray(whole, dtype=np.float64)
    out = np.zeros_like(below)
    np.divide(part, below, out=out, where=below > 0)
    return out


class _Samples:
    """What each held-out sample adds to the figures, worked out once."""

    def __init__(self, truth: ArrayLike, probabilities: ArrayLike) -> None:
        chances = np.asarray(probabilities, dtype=np.float64)
        if chances.ndim != 2 or not chances.size:
            raise InputError(
                f"probabilities must be (samples, classes) and not empty, got shape {chances.shape}"
            )
        self.n, self.classes = chances.shape
        true = _indices(truth, self.classes, "labels")
        if len(true) != self.n:
            raise InputError(f"as many rows as labels are needed, got {self.n} for {len(true)}")
        bad = ~(np.isfinite(chances) & (chances >= 0)).all(1) | (abs(chances.sum(1) - 1) > 1e-3)
        if bad.any():
            raise InputError(
                f"each row must hold probabilities that sum to 1, but row {bad.argmax()} is "
                f"{chances[bad.argmax()][:8]}"
            )
        guess, top = chances.argmax(1), chances.max(1)
        self.cell = true * self.classes + guess
        self.bin = np.clip(
            np.ceil(top * CALIBRATION_BINS).astype(np.int64) - 1, 0, CALIBRATION_BINS - 1
        )
        self.gap = top - (guess == true)
        right = chances[np.arange(self.n), true]
        self.surprise = -np.log(np.clip(right, np.finfo(np.float64).eps, 1))

    def figures(self, draws: Draws | None = None) -> dict[str, Floats]:
        """Give every figure, (B,), for draws (B, n) of sample numbers; for all samples once without."""
        if draws is None:
            draws = np.arange(self.n, dtype=np.int32)[None]
        b, k = len(draws), self.classes
        nth = np.arange(b)[:, None]
        cells = np.bincount((nth * k * k + self.cell[draws]).ravel(), minlength=b * k * k)
        matrix = cells.reshape(b, k, k)
        # Within a bin, samples * |confidence - accuracy| is |sum of (confidence - hit)|.
        bins = (nth * CALIBRATION_BINS + self.bin[draws]).ravel()
        gaps = np.bincount(bins, self.gap[draws].ravel(), minlength=b * CALIBRATION_BINS)
        return {
            "accuracy": accuracy(matrix),
            "balanced_accuracy": balanced_accuracy(matrix),
            "macro_f1": macro_f1(matrix),
            "ece": abs(gaps).reshape(b, -1).sum(1) / self.n,
            "log_loss": self.surprise[draws].mean(1),
        }


def _indices(values: ArrayLike, n_classes: int, what: str) -> Counts:
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise InputError(
            f"{what} must be a row of class indices, got shape {array.shape} of {array.dtype}"
        )
    if array.size and not (array.min() >= 0 and array.max() < n_classes):
        raise InputError(
            f"{what} must lie between 0 and {n_classes - 1}, got {array.min()} to {array.max()}"
        )
    return array.astype(np.int64)
