"""Scores of predicted numbers, and their 95 % intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from samtl.errors import InputError
from samtl.metrics.intervals import Figure, Score, positive, units_of, variance_between

SCORES = ("r2", "mae", "rmse")


def score(
    truth: ArrayLike, predicted: ArrayLike, groups: Sequence[str] | None = None
) -> dict[str, Score]:
    """Score predicted numbers.

    Intervals are t intervals of the logarithm of the error, whose variance is the sum of the squares of what each
    sample, or group, contributes to it (the infinitesimal jackknife; Efron and Tibshirani 1993, chapter 21). That of R2
    is the one of the unexplained share.

    Parameters
    ----------
    truth, predicted : (n,) or (n, 1) float
        Finite.
    groups : (n,) str, optional
        What each sample was cut from: intervals then say what other groups would change.

    Returns
    -------
    dict of Score
        `r2`, the explained share of the variance of the samples' numbers: 1 for a perfect model, 0 for their mean, less
        for a worse one, and 0 if they are all equal; `mae`, the mean absolute error, and `rmse`, the root of the mean
        squared error, in the unit of the numbers.

    Raises
    ------
    InputError
        If there are no samples, or these are no such arrays.
    """
    found = figures(truth, predicted)
    units = units_of(groups, len(next(iter(found.values()))[1]))
    scores = {}
    for name, (value, parts) in found.items():
        variance, n = variance_between(parts, units, skewed=True)
        if name == "r2":
            rest = positive(1 - value, variance, n)
            scores[name] = Score(value, min(1 - rest.high, value), max(1 - rest.low, value))
        else:
            scores[name] = positive(value, variance, n)
    return scores


def figures(truth: ArrayLike, predicted: ArrayLike) -> dict[str, Figure]:
    """Compute each score, and what each sample contributes to its error, (n,) float64 with the sum 0."""
    true, guess = (np.asarray(values, dtype=np.float64).ravel() for values in (truth, predicted))
    n = len(true)
    if not n or len(guess) != n or not np.isfinite([true, guess]).all():
        raise InputError(
            f"expected a finite number and a prediction of each sample, got {n} and {len(guess)}"
        )
    error = abs(guess - true)
    squares, spread = error**2, (true - true.mean()) ** 2
    mae, mse, variance = float(error.mean()), float(squares.mean()), float(spread.mean())
    rmse = float(np.sqrt(mse))
    rest = mse / variance if variance else 1.0
    return {
        "r2": (1 - rest, (rest * spread - squares) / (n * variance) if variance else np.zeros(n)),
        "mae": (mae, (error - mae) / n),
        "rmse": (rmse, (squares - mse) / (2 * n * rmse) if rmse else np.zeros(n)),
    }
