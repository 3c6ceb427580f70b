"""95 % intervals that hold for few samples and near 0 and 1.

An interval says how much a figure depends on which samples, or which groups of samples, happened to be held out; it
does not say what another training part would change. How often the intervals cover the truth is simulated by
`samtl bench coverage`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]
Figure = tuple[float, Floats]  # a score, and what each of n samples contributes to its error, (n,)

TAIL = (1 - 0.95) / 2
NORMAL = 1.959964  # the same quantile of the normal distribution
FEW, FEW_GROUPS = 30, 10
_PRIOR = 1.0  # groups, or errors, of the largest deviation that there can be, beside those that were seen
# The same for images: of n without a failure, 3 / n may fail (the rule of three; Hanley and Lippman-Hand 1983).
_UNSEEN = 3.0


@dataclass(frozen=True)
class Score:
    """A figure and its interval; `low <= value <= high`."""

    value: float
    low: float
    high: float

    @classmethod
    def around(cls, value: float, low: float, high: float) -> Score:
        """Widen an interval to hold the value."""
        return cls(float(value), float(min(low, value)), float(max(high, value)))


def few(n: int, groups: int = 0) -> str:
    """Return what belongs beside a figure of few samples or groups: "n = 4", "n = 18 of 2 groups", or "".

    Few are less than 30 samples or 10 groups; `groups` is 0 if there are none.
    """
    if n >= FEW and not 0 < groups < FEW_GROUPS:
        return ""
    return f"n = {n}" + (f" of {groups} groups" if groups else "")


def units_of(groups: Sequence[str] | None, n: int) -> Rows | None:
    """Number the groups of n samples, (n,); None if the samples count one by one.

    They do without groups and if all are of one group, since nothing then tells how groups differ.
    """
    if groups is None or not len(groups):
        return None
    units: Rows = np.unique(np.asarray(groups, dtype=object), return_inverse=True)[1].ravel()
    return units if 1 < units.max() + 1 < n else None


def effective(weights: NDArray[Any]) -> Floats:
    """Return how many units of equal weight are as certain as n of these, (n, ...) to (...); 0 without any weight.

    See Kish (1965). The number may be a fraction.
    """
    squares = np.square(weights).sum(0, dtype=np.float64)
    found: Floats = np.zeros_like(squares)
    np.divide(np.square(weights.sum(0, dtype=np.float64)), squares, out=found, where=squares > 0)
    return found


def effective_units(units: Rows | None, n: int) -> float:
    """Return how many units of equal size are as certain as the groups of n samples, or as the samples."""
    return n if units is None else float(effective(np.bincount(units)))


def by_unit(values: NDArray[Any], units: Rows | None) -> NDArray[Any]:
    """Add up what samples of a unit have, (n, ...) to (units, ...)."""
    if units is None:
        return values
    sums = np.zeros((units.max() + 1, *values.shape[1:]), values.dtype)
    np.add.at(sums, units, values)
    return sums


def student(degrees: float) -> float:
    """Return the 97.5 % quantile of Student's distribution."""
    from scipy import special  # loaded when the first interval is computed

    return float(special.stdtrit(max(degrees, 1), 1 - TAIL))


def binomial(hits: ArrayLike, n: ArrayLike) -> tuple[Floats, Floats]:
    """Return the exact interval of the share of hits (Clopper and Pearson 1934), (...) each.

    Numbers may be fractions: those of an effective sample size (Korn and Graubard 1998).
    """
    from scipy import special

    right = np.asarray(hits, dtype=np.float64)
    wrong = np.maximum(np.asarray(n, dtype=np.float64) - right, 0)
    low = special.betaincinv(np.maximum(right, 1e-12), wrong + 1, TAIL)
    high = special.betaincinv(right + 1, np.maximum(wrong, 1e-12), 1 - TAIL)
    return np.where(right > 1e-9, low, 0.0), np.where(wrong > 1e-9, high, 1.0)


def share(value: float, n: float) -> Score:
    """Return the interval of a figure in [0, 1] that is as uncertain as the share of hits in n trials."""
    low, high = binomial(value * n, n)
    return Score.around(value, float(low), float(high))


def share_of_units(value: float, variance: float, n: float) -> Score:
    """Return the interval of a figure in [0, 1] whose variance was estimated between n units of equal weight.

    Three units of the largest possible variance are added to those that were seen, because a few units that happen to
    be alike say little about others. The figure is at least as certain as the share of hits in n trials. If units
    differ in weight, n is their `effective` number.
    """
    largest = value * (1 - value)
    if not largest or n <= 1:
        return share(value, n)
    spread = ((n - 1) * variance + _UNSEEN * largest / n) / (n - 1 + _UNSEEN)
    return share(value, max(n, largest / spread * (NORMAL / student(n - 1)) ** 2))


def unbounded(value: float, variance: float, n: float) -> Score:
    """Return the t interval of a figure whose variance was estimated between n units."""
    half = student(n - 1) * float(np.sqrt(variance))
    return Score.around(value, value - half, value + half)


def positive(value: float, variance: float, n: float) -> Score:
    """Return the t interval, of its logarithm, of a figure above 0 whose variance was estimated between n units.

    One unit that deviates by as much as the figure is added to those that were seen.
    """
    if value <= 0:
        return Score(value, value, value)
    spread = ((n - 1) * variance / value**2 + _PRIOR / n) / (n - 1 + _PRIOR)
    factor = float(np.exp(student(n - 1) * np.sqrt(spread)))
    return Score.around(value, value / factor, value * factor)


def variance_between(
    parts: Floats, units: Rows | None, skewed: bool = False
) -> tuple[float, float]:
    """Return the variance of a figure from what each sample contributes to its error, and the number of units.

    That is the infinitesimal jackknife (Efron and Tibshirani 1993, chapter 21). If the contributions are `skewed`, the
    largest one counts three times, since few units show little of the tail.
    """
    squares = np.square(by_unit(parts, units))
    n, total = effective_units(units, len(parts)), float(squares.sum())
    total += 2 * float(squares.max()) if skewed else 0.0
    return total * n / max(n - 1, 1), n


def design_effect(contributions: Floats, units: Rows | None) -> float:
    """Return by what factor groups multiply the variance of a figure, at least 1; 1 without groups.

    See Kish (1965). One group whose samples are all alike is added to those that were seen.

    Parameters
    ----------
    contributions : (n,) float64
        What each sample contributes to the error of the figure; sums to 0.
    units : (n,) int64 or None
        The group of each sample, as from `units_of`.
    """
    if units is None:
        return 1.0
    groups = effective_units(units, len(units))
    degrees = max(groups - 1, 1)
    alone = float(np.square(contributions).sum())
    together = float(np.square(by_unit(contributions, units)).sum()) * groups / degrees
    effect = max(1.0, together / alone) if alone else 1.0
    return (degrees * effect + _PRIOR * len(units) / groups) / (degrees + _PRIOR)


def inflation(contributions: Floats, units: Rows | None) -> float:
    """Return what to divide a number of samples by, so that a share of hits in the rest is as uncertain as a figure.

    It is the `design_effect`, with Student's quantile in the place of the normal one, but at most what it is if all
    samples of a group are alike.
    """
    if units is None:
        return 1.0
    groups = effective_units(units, len(units))
    effect = design_effect(contributions, units) * (student(groups - 1) / NORMAL) ** 2
    return min(effect, len(units) / groups)


def jackknife(without: Floats) -> Floats:
    """Return the variance of figures from their values without each of n units, (n, ...) to (...)."""
    n = len(without)
    squares = np.square(without - without.mean(0)).sum(0)
    variance: Floats = squares * (n - 1) / n
    return variance
