"""Which of two models is better, and whether that is more than the luck of the samples: paired bootstrap.

Both models answered the same held-out samples, so what is resampled is the difference between them, sample by
sample. Several seeds hold out overlapping samples: a sample is drawn by its id, and drawn m times it counts m times
in every seed that holds it out (a cluster bootstrap; Efron and Tibshirani 1993, "An Introduction to the Bootstrap",
chapters 8 and 13). Intervals thus say what other samples of the same kind would have changed; what other seeds would
have changed is only in them so far as seeds hold out other samples.

Each interval stands for itself. Of twenty comparisons of equal models one is expected to show a difference: nothing
here corrects for how many are made, and whoever prints many of them should say so.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from samtl.errors import InputError, UnknownName
from samtl.metrics import classification as metrics
from samtl.metrics.classification import (
    LEVEL,
    RESAMPLES,
    Counts,
    Floats,
)

METRICS: dict[str, Callable[[Counts], Floats]] = {
    "accuracy": metrics.accuracy,
    "balanced_accuracy": metrics.balanced_accuracy,
    "macro_f1": metrics.macro_f1,
}
FEWEST = 6  # below, not even a model that is better on every sample passes a sign test at 5 %: 2 / 2**5 > 0.05
_BUDGET = 4_000_000  # numbers held at once, beside the weights

Weights = NDArray[np.uint8]


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation over `n` seeds (n - 1 in the denominator; None of a single seed)."""

    mean: float
    deviation: float | None
    n: int


@dataclass(frozen=True)
class Difference:
    """How much better the first of two models is.

    Attributes
    ----------
    value : float
        Mean over seeds of the first model's score less the second's.
    low, high : float
        Its interval; `low <= value <= high`.
    shown : bool
        Whether the interval lies on one side of 0, of at least 6 samples: fewer can show nothing.
    n_samples : int
        Different held-out samples, over all seeds.
    n_seeds : int
    """

    value: float
    low: float
    high: float
    shown: bool
    n_samples: int
    n_seeds: int


@runtime_checkable
class Labels(Protocol):
    """What a classifier said of the held-out samples of one seed: ids, and (n,) class indices."""

    @property
    def ids(self) -> Sequence[str]: ...
    @property
    def truth(self) -> NDArray[np.int64]: ...
    @property
    def guess(self) -> NDArray[np.int64]: ...


class ImageScores(Protocol):
    """What a segmenter came to on the held-out images of one seed: ids, and (n,) scores by name."""

    @property
    def ids(self) -> Sequence[str]: ...
    @property
    def scores(self) -> Mapping[str, Floats]: ...


Outcome = Labels | ImageScores


def over_seeds(values: Iterable[float]) -> Spread:
    """Summarise one score of several seeds.

    Raises
    ------
    InputError
        Where there are none.
    """
    found = np.array(list(values), dtype=np.float64)
    if not len(found):
        raise InputError("a mean over seeds needs at least one seed, got none")
    deviation = float(found.std(ddof=1)) if len(found) > 1 else None
    return Spread(float(found.mean()), deviation, len(found))


def paired_difference(
    a: Sequence[Outcome],
    b: Sequence[Outcome],
    metric: str,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> Difference:
    """Compare two models on the same held-out samples; see `paired_differences`."""
    return paired_differences({"a": a, "b": b}, metric, resamples, seed, level)["a", "b"]


def paired_differences(
    models: Mapping[str, Sequence[Outcome]],
    metric: str,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> dict[tuple[str, str], Difference]:
    """Compare every two models on the same held-out samples.

    Parameters
    ----------
    models : mapping
        Name to what the model came to, `Labels` or `ImageScores`: one for each seed, in the same order of seeds. The
        n-th of all models hold the same samples, in any order.
    metric : str
        Of labels `accuracy`, `balanced_accuracy` or `macro_f1`; of images the name of a score, whose mean over the
        images is compared.
    resamples : int
    seed : int
        Equal samples and seeds give equal draws, so that one model is not luckier than another.
    level : float
        Of the percentile interval, in (0, 1).

    Returns
    -------
    dict of (str, str) to Difference
        For each model and each that comes after it.

    Raises
    ------
    InputError
        Where samples differ, or repeat, or there are none, or `resamples` or `level` is out of range.
    UnknownName
        Where there is no such metric.
    """
    if resamples < 1 or not 0 < level < 1:
        raise InputError(f"expected resamples >= 1 and 0 < level < 1, got {resamples} and {level}")
    by_seed = _same_seeds(models)
    names = sorted({name for outcomes in by_seed for name in outcomes[0].ids})
    rank = {name: i for i, name in enumerate(names)}
    drawn = _draws(len(names), resamples, seed)

    sums = {model: np.zeros(1 + resamples) for model in models}
    seeds = np.zeros(1 + resamples)
    for outcomes in by_seed:
        rows = np.sort([rank[name] for name in outcomes[0].ids])
        # A draw may miss all that one seed holds out; that seed then has no say in it.
        seen = np.append(True, drawn[rows].any(0))
        seeds += seen
        for model, outcome in zip(models, outcomes, strict=True):
            order = np.argsort([rank[name] for name in outcome.ids])
            sums[model] += np.where(seen, _scores(outcome, order, metric, drawn, rows), 0)
    means = {model: total / seeds for model, total in sums.items()}
    return {
        (a, b): _summary(means[a] - means[b], level, len(names), len(by_seed))
        for a, b in itertools.combinations(models, 2)
    }


def _summary(gaps: Floats, level: float, n_samples: int, n_seeds: int) -> Difference:
    value = float(gaps[0])
    low, high = np.quantile(gaps[1:], [(1 - level) / 2, (1 + level) / 2])
    low, high = min(float(low), value), max(float(high), value)
    shown = (low > 0 or high < 0) and n_samples >= FEWEST
    return Difference(value, low, high, shown, n_samples, n_seeds)


def describe(name_a: str, name_b: str, difference: Difference, unit: str = "points") -> str:
    """Say in plain words what a difference comes to, in hundredths of the score: the better model first.

    Such as "vit beats mlp by 1.2 points [0.4, 2.0]", or "no difference shown between vit and mlp (0.3 points
    [-0.2, 0.8])".
    """
    value, low, high = difference.value, difference.low, difference.high
    if difference.shown and value < 0:
        name_a, name_b, value, low, high = name_b, name_a, -value, -high, -low
    digits = 1
    if difference.shown:  # enough that the interval does not look as if it held 0
        digits = max(1, math.ceil(-math.log10(100 * low)))
    amount, left, right = (f"{round(100 * x, digits) + 0.0:.{digits}f}" for x in (value, low, high))
    figures = f"{amount} {unit} [{left}, {right}]"
    if difference.shown:
        return f"{name_a} beats {name_b} by {figures}"
    few = f", of {difference.n_samples} samples only" if difference.n_samples < FEWEST else ""
    return f"no difference shown between {name_a} and {name_b} ({figures}{few})"


def _same_seeds(models: Mapping[str, Sequence[Outcome]]) -> list[tuple[Outcome, ...]]:
    """Give the outcomes of all models for each seed, once they are sure to be of the same samples."""
    if len(models) < 2 or len({len(outcomes) for outcomes in models.values()}) != 1:
        had = ", ".join(f"{len(outcomes)} of {name}" for name, outcomes in models.items())
        raise InputError(
            f"a comparison needs the same seeds of at least two models, got {had or 'none'}"
        )
    by_seed = list(zip(*models.values(), strict=True))
    if not by_seed:
        raise InputError("a comparison needs at least one seed, got none")
    for first, *others in by_seed:
        wanted = _truth(first)
        for other in others:
            found = _truth(other)
            odd = found.keys() ^ wanted.keys()
            if odd:
                raise InputError(
                    "models can only be compared on the same held-out samples: "
                    f"{len(odd)} are of one of them only, such as {min(odd)!r}"
                )
            wrong = next((name for name, label in wanted.items() if found[name] != label), None)
            if wrong is not None:
                raise InputError(
                    f"models cannot be compared that hold {wrong!r} to be of different classes, or of which one gives "
                    "labels and the other masks: score both on the same dataset"
                )
    return by_seed


def _truth(outcome: Outcome) -> dict[str, int]:
    """Give the label of each sample by id, -1 where there is none."""
    labels = outcome.truth.tolist() if isinstance(outcome, Labels) else [-1] * len(outcome.ids)
    truth = dict(zip(outcome.ids, labels, strict=True))
    if not truth or len(truth) < len(outcome.ids):
        raise InputError(
            "a comparison needs held-out samples, each once for each seed, and "
            + ("an id occurs twice" if truth else "there are none")
        )
    return truth


def _scores(
    outcome: Outcome,
    order: NDArray[np.int64],
    metric: str,
    drawn: Weights,
    rows: NDArray[np.int64],
) -> Floats:
    """Give the score of all samples once, and of every draw: (1 + resamples,).

    Parameters
    ----------
    outcome : Outcome
    order : (n,) int64
        Brings its samples into the order of `rows`.
    metric : str
    drawn : (N, resamples)
    rows : (n,) int64
        Of `drawn`, ascending.
    """
    score: Callable[[Weights], Floats]
    size = 1
    if not isinstance(outcome, Labels):
        if metric not in outcome.scores:
            raise UnknownName("score of images", metric, outcome.scores)
        values = outcome.scores[metric][order]

        def score(times: Weights) -> Floats:
            return metrics.ratio(values @ times, times.sum(0))
    else:
        if metric not in METRICS:
            raise UnknownName("metric of labels", metric, METRICS)
        k = 1 + int(max(outcome.truth.max(), outcome.guess.max()))
        size = k * k
        # In the order of their cell of the confusion matrix, so that each cell is one run of samples.
        cells = (outcome.truth * k + outcome.guess)[order]
        by_cell = np.argsort(cells, kind="stable")
        rows = rows[by_cell]
        occupied, starts = np.unique(cells[by_cell], return_index=True)

        def score(times: Weights) -> Floats:
            matrices = np.zeros((times.shape[1], k * k), dtype=np.int64)
            matrices[:, occupied] = np.add.reduceat(times, starts, axis=0, dtype=np.int32).T
            return METRICS[metric](matrices.reshape(-1, k, k))

    at_once = max(1, _BUDGET // max(len(rows), size))
    once = np.ones((len(rows), 1), dtype=np.uint8)
    starts_at = range(0, drawn.shape[1], at_once)
    slices = (drawn[rows, start : start + at_once] for start in starts_at)
    return np.concatenate([score(times) for times in itertools.chain([once], slices)])


@functools.lru_cache(maxsize=2)
def _draws(n: int, resamples: int, seed: int) -> Weights:
    """Draw n of n things with replacement: how often each came, (n, resamples).

    A byte is enough: below 256 things none can come oftener, and above it would be a wonder (1 in 255!).
    """
    random = np.random.default_rng(seed)
    times = np.empty((resamples, n), dtype=np.uint8)
    for row in times:
        row[:] = np.bincount(random.integers(0, n, n), minlength=n)
    return np.ascontiguousarray(times.T)
