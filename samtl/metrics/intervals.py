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
_PRIOR = 1.0  # units of the largest variance that there can be, beside those that were seen


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


def count_units(units: Rows | None, n: int) -> int:
    """Count what is drawn independently: groups, or samples."""
    return n if units is None else int(units.max()) + 1


def by_unit(values: NDArray[Any], units: Rows | None) -> NDArray[Any]:
    """Add up what samples of a unit have, (n, ...) to (units, ...)."""
    if units is None:
        return values
    sums = np.zeros((count_units(units, len(units)), *values.shape[1:]), values.dtype)
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


def share_of_units(value: float, variance: float, n: int, least: float | None = None) -> Score:
    """Return the interval of a figure in [0, 1] whose variance was estimated between n units.

    One unit of the largest possible variance is added to those that were seen, because a few units that happen to be
    alike say little about others. The figure is at least as certain as the share of hits in `least` trials: by default
    n, which holds for a mean over the units; fewer if units differ in weight, see `effective`.
    """
    trials = n if least is None else least
    largest = value * (1 - value)
    if not largest:
        return share(value, trials)
    spread = ((n - 1) * variance + _PRIOR * largest / trials) / (n - 1 + _PRIOR)
    return share(value, max(trials, largest / spread * (NORMAL / student(n - 1)) ** 2))


def effective(weights: Floats) -> Floats:
    """Return how many units of equal weight are as certain as n of these, (n, ...) to (...); 0 without any weight.

    See Kish (1965).
    """
    squares = np.square(weights).sum(0)
    found: Floats = np.zeros_like(squares)
    np.divide(np.square(weights.sum(0)), squares, out=found, where=squares > 0)
    return found


def unbounded(value: float, variance: float, n: int) -> Score:
    """Return the t interval of a figure whose variance was estimated between n units."""
    half = student(n - 1) * float(np.sqrt(variance))
    return Score.around(value, value - half, value + half)


def positive(value: float, variance: float, n: int) -> Score:
    """Return the t interval, of its logarithm, of a figure above 0 whose variance was estimated between n units."""
    if value <= 0:
        return Score(value, value, value)
    factor = float(np.exp(student(n - 1) * np.sqrt(variance) / value))
    return Score.around(value, value / factor, value * factor)


def variance_between(parts: Floats, units: Rows | None, skewed: bool = False) -> tuple[float, int]:
    """Return the variance of a figure from what each sample contributes to its error, and the number of units.

    If the contributions are `skewed`, the largest one counts twice, since few units show little of the tail.
    """
    squares = np.square(by_unit(parts, units))
    n, total = len(squares), float(squares.sum())
    total += float(squares.max()) if skewed else 0.0
    return total * n / max(n - 1, 1), n


def inflation(contributions: Floats, units: Rows | None) -> float:
    """Return by what factor groups multiply the variance of a figure, at least 1; 1 without groups.

    This is Kish's design effect, with Student's quantile in the place of the normal one. As in `share_of_units`, one
    group is added whose samples are all alike.

    Parameters
    ----------
    contributions : (n,) float64
        What each sample contributes to the error of the figure; sums to 0.
    units : (n,) int64 or None
        The group of each sample, as from `units_of`.
    """
    if units is None:
        return 1.0
    n, groups = len(units), count_units(units, len(units))
    alone, degrees = float(np.square(contributions).sum()), groups - 1
    together = float(np.square(np.bincount(units, contributions)).sum()) * groups / degrees
    effect = max(1.0, together / alone) if alone else 1.0
    effect = (degrees * effect + _PRIOR * n / groups) / (degrees + _PRIOR)
    return effect * (student(degrees) / NORMAL) ** 2


def jackknife(without: Floats) -> Floats:
    """Return the variance of figures from their values without each of n units, (n, ...) to (...)."""
    n = len(without)
    squares = np.square(without - without.mean(0)).sum(0)
    variance: Floats = squares * (n - 1) / n
    return variance
