"""The paired bootstrap: which of two models is better, and whether other samples could have reversed it.

Both models were scored on the same held-out samples, so the difference between them is resampled, sample by sample.
Several seeds hold out overlapping samples: a sample is drawn by its id, and one that is drawn m times counts m times in
every seed that holds it out (a cluster bootstrap; Efron and Tibshirani 1993, chapters 8 and 13). Intervals say what
other samples of the same kind would change, and are not corrected for the number of comparisons: of twenty comparisons
of equal models one is expected to show a difference.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from samtl.errors import InputError, UnknownName
from samtl.metrics import segmentation
from samtl.metrics.classification import (
    RESAMPLES,
    Counts,
    Floats,
    accuracy,
    balanced_accuracy,
    interval,
    macro_f1,
    ratio,
)

METRICS: dict[str, Callable[[Counts], Floats]] = {
    "accuracy": accuracy,
    "balanced_accuracy": balanced_accuracy,
    "macro_f1": macro_f1,
}
# With fewer samples, even a model better on each fails a sign test at 5 %: 2 / 2**5 > 0.05.
FEWEST = 6
_POOLED = "pooled_"
_BUDGET = 4_000_000  # numbers held at once, beside the weights

Weights = NDArray[np.uint8]


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


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a classifier said of the held-out samples of one seed."""

    ids: tuple[str, ...]
    truth: Counts  #: (n,) class indices
    guess: Counts
    confidence: Floats | None = None  #: (n,) probability of the predicted class; None if unknown


@dataclass(frozen=True, eq=False)
class ImageScores:
    """How well a segmenter did on each held-out image of one seed."""

    ids: tuple[str, ...]
    scores: dict[str, Floats]  #: (n,) each, by name: see `samtl.metrics.segmentation.scores`
    masks: tuple[Path, ...] = ()  #: class indices as PNG files, at the encoder's resolution
    #: (n, K, 3): pixels of each class in the truth, the prediction and both; None if unknown.
    counts: Counts | None = None


Outcome = Predictions | ImageScores


def paired_differences(
    models: Mapping[str, Sequence[Outcome]], metric: str, resamples: int = RESAMPLES, seed: int = 0
) -> dict[tuple[str, str], Difference]:
    """Compare each model with each that comes after it on the same held-out samples.

    Raises InputError if samples differ or repeat, or there are none; UnknownName if there is no such metric.

    Parameters
    ----------
    models : mapping
        For each model its outcomes, one for each seed, in the same order of seeds. The n-th outcomes of all models
        hold the same samples, in any order.
    metric : str
        One of `METRICS` for labels; for images the name of a score, whose mean over the images is compared, or
        `pooled_` and that name for the score of all their pixels together.
    seed : int
        Equal samples and seeds give equal draws, so that all pairs are compared on the same resamples.
    """
    by_seed = _same_samples(models)
    names = sorted({name for outcomes in by_seed for name in outcomes[0].ids})
    rank = {name: i for i, name in enumerate(names)}
    drawn = _draws(len(names), resamples, seed)

    sums = {model: np.zeros(1 + resamples) for model in models}
    seeds = np.zeros(1 + resamples)
    for outcomes in by_seed:
        rows = np.sort([rank[name] for name in outcomes[0].ids])
        # A draw may miss all samples of a seed: its score is then 0, and it does not count in that draw's mean.
        seeds += np.append(True, drawn[rows].any(0))
        for model, outcome in zip(models, outcomes, strict=True):
            order = np.argsort([rank[name] for name in outcome.ids])
            sums[model] += _scores(outcome, order, metric, drawn, rows)
    means = {model: total / seeds for model, total in sums.items()}
    found = {}
    for a, b in itertools.combinations(models, 2):
        gaps = means[a] - means[b]
        value, low, high = interval(float(gaps[0]), gaps[1:])
        shown = (low > 0 or high < 0) and len(names) >= FEWEST
        found[a, b] = Difference(value, low, high, shown, len(names), len(by_seed))
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


def _scores(
    outcome: Outcome,
    order: NDArray[np.int64],
    metric: str,
    drawn: Weights,
    rows: NDArray[np.int64],
) -> Floats:
    """Compute the score of all samples once, and of every draw: (1 + resamples,).

    `order` (n,) sorts the outcome's samples as `rows` (n,), which are ascending rows of `drawn`, (N, resamples).
    """
    score: Callable[[Weights], Floats]
    size = 1
    pooled = metric.removeprefix(_POOLED)
    if isinstance(outcome, ImageScores) and outcome.counts is not None and pooled != metric:
        counts = outcome.counts[order].reshape(len(order), -1).astype(np.float64)  # exact to 2**53
        size, k = counts.shape[1], outcome.counts.shape[1]

        def score(times: Weights) -> Floats:
            totals = (times.T @ counts).astype(np.int64).reshape(-1, k, 3)
            scored = np.zeros(len(totals))
            some = times.any(0)  # a draw without images scores 0
            scored[some] = segmentation.scores_of_counts(totals[some])[pooled]
            return scored
    elif not isinstance(outcome, Predictions):
        if metric not in outcome.scores:
            raise UnknownName("score of images", metric, outcome.scores)
        values = outcome.scores[metric][order]

        def score(times: Weights) -> Floats:
            return ratio(values @ times, times.sum(0))
    else:
        if metric not in METRICS:
            raise UnknownName("metric of labels", metric, METRICS)
        k = 1 + int(max(outcome.truth.max(), outcome.guess.max()))
        size = k * k
        # Sorted by cell of the confusion matrix, so that each cell is one run of samples.
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
    slices = (drawn[rows, i : i + at_once] for i in range(0, drawn.shape[1], at_once))
    return np.concatenate([score(times) for times in itertools.chain([once], slices)])


@functools.lru_cache(maxsize=2)
def _draws(n: int, resamples: int, seed: int) -> Weights:
    """Draw n of n things with replacement: how often each was drawn, (n, resamples).

    A byte is enough: the probability that one of more than 255 things is drawn more often is below 1 / 255!
    """
    random = np.random.default_rng(seed)
    times = np.empty((resamples, n), dtype=np.uint8)
    for row in times:
        row[:] = np.bincount(random.integers(0, n, n), minlength=n)
    return np.ascontiguousarray(times.T)
