"""Paired differences are antisymmetric, depend on ids alone, and agree with a plain loop over draws."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, f1_score

from samtl.errors import InputError, UnknownName
from samtl.metrics import bootstrap, segmentation
from samtl.metrics.bootstrap import FEWEST, METRICS

K = 4


def paired_difference(a, b, *arguments, **options):
    return bootstrap.paired_differences({"a": a, "b": b}, *arguments, **options)["a", "b"]


def labels(ids, truth, guess):
    return bootstrap.Predictions(tuple(ids), np.array(truth, int), np.array(guess, int))


def images(ids, values):
    return bootstrap.ImageScores(tuple(ids), {"iou": np.array(values, float)})


def trials(seed=0, n=60, seeds=3, held_out=25, right=0.7):
    """What a made-up classifier says of the held-out samples of several seeds, which overlap."""
    outcomes = []
    for s in range(seeds):
        rows = np.random.default_rng(s).permutation(n)[:held_out]
        random = np.random.default_rng([seed, s])
        hit = random.random(held_out) < right
        guess = np.where(hit, rows % K, random.integers(0, K, held_out))
        outcomes.append(labels([f"{i:03d}" for i in rows], rows % K, guess))
    return outcomes


def score_images(seed, seeds=2, n=12):
    random = np.random.default_rng(seed)
    return [images(map(str, range(s, s + n)), random.random(n)) for s in range(seeds)]


def count_pixels(seed, seeds=2, n=12):
    """Images of three classes, of which some have no foreground at all."""
    random = np.random.default_rng(seed)
    found = []
    for s in range(seeds):
        matrices = random.integers(0, 50, (n, 3, 3))
        matrices[:3, 1:] = matrices[:3, :, 1:] = 0
        counts = segmentation.class_counts(matrices)
        found.append(bootstrap.ImageScores(tuple(map(str, range(s, s + n))), {}, (), counts))
    return found


def shuffled(outcome, seed):
    order = np.random.default_rng(seed).permutation(len(outcome.ids))
    ids = [outcome.ids[i] for i in order]
    if hasattr(outcome, "truth"):
        return labels(ids, outcome.truth[order], outcome.guess[order])
    return images(ids, outcome.scores["iou"][order])


@pytest.mark.parametrize(("make", "metric"), [(trials, "macro_f1"), (score_images, "iou")])
@settings(max_examples=20)
@given(st.integers(0, 1000), st.integers(0, 1000))
def test_the_order_of_models_samples_and_seeds_does_not_matter(make, metric, seed, order):
    a, b = make(seed), make(seed + 1)
    expected = paired_difference(a, b, metric, resamples=50)
    figures = pytest.approx((expected.value, expected.low, expected.high), abs=1e-12)
    assert expected.low <= expected.value <= expected.high
    back = paired_difference(b, a, metric, resamples=50)
    assert (-back.value, -back.high, -back.low) == figures
    assert expected.shown == back.shown
    a_mixed, b_mixed = ([shuffled(x, order + i) for x in some] for i, some in enumerate((a, b)))
    assert paired_difference(a_mixed, b_mixed, metric, 50) == expected
    turned = paired_difference(a[::-1], b[::-1], metric, 50)
    assert (turned.value, turned.low, turned.high) == figures


def by_hand(outcomes, metric, times):
    """Score as if every sample stood as often in its seed's list as it was drawn."""
    scored = {
        "accuracy": lambda truth, guess: (truth == guess).mean(),
        "balanced_accuracy": balanced_accuracy_score,
        "macro_f1": lambda truth, guess: f1_score(truth, guess, average="macro"),
    }
    scores = []
    for outcome in outcomes:
        often = [times[name] for name in outcome.ids]
        if sum(often) and metric == "pooled_iou":
            true, guess, both = np.repeat(outcome.counts, often, axis=0).sum(0)[1:].T
            union = true + guess - both
            scores.append((both / np.maximum(union, 1)).sum() / max((union > 0).sum(), 1))
            if not union.any():
                scores[-1] = 1.0
        elif sum(often) and metric == "iou":
            scores.append(np.repeat(outcome.scores["iou"], often).mean())
        elif sum(often):
            truth, guess = np.repeat(outcome.truth, often), np.repeat(outcome.guess, often)
            scores.append(scored[metric](truth, guess))
    return np.mean(scores)


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.parametrize(
    ("metric", "make"),
    [
        *((metric, trials) for metric in METRICS),
        ("iou", score_images),
        ("pooled_iou", count_pixels),
        ("accuracy", lambda seed: trials(seed, held_out=2)),  # draws miss some seeds altogether
    ],
)
def test_a_loop_over_draws_finds_the_same(metric, make):
    a, b = make(1), make(2)
    found = paired_difference(a, b, metric, resamples=50, seed=7)
    names = sorted({name for outcome in a for name in outcome.ids})
    gaps = []
    for column in [np.ones(len(names), int), *bootstrap._draws(len(names), 50, 7).T]:
        times = dict(zip(names, column.tolist(), strict=True))
        gaps.append(by_hand(a, metric, times) - by_hand(b, metric, times))
    low, high = np.quantile(gaps[1:], [0.025, 0.975])
    assert (found.value, found.low, found.high) == pytest.approx((gaps[0], low, high))


def test_a_handful_of_samples_shows_nothing():
    for n in (1, FEWEST - 1, FEWEST):
        a, b = (images(map(str, range(n)), [value] * n) for value in (1, 0))
        found = paired_difference([a], [b], "iou")
        assert (found.value, found.low, found.shown) == (1, 1, n == FEWEST)


AB = labels("ab", [0, 1], [0, 1])


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([], [], r"got \[0, 0\]"),
        (trials(), trials(seeds=2), r"the same seeds, .* got \[3, 2\]"),
        ([AB], [labels("ac", [0, 1], [0, 1])], "2 differ, such as 'b'"),
        ([AB], [labels("ab", [1, 1], [0, 1])], "1 differ, such as 'a'"),
        ([AB], [images("ab", [0, 1])], "2 differ"),
        ([labels("aa", [0, 1], [0, 1])], [AB], "got 2 with 1 ids"),
        ([labels("", [], [])], [labels("", [], [])], "got 0"),
    ],
)
def test_what_cannot_be_compared_is_said(a, b, message):
    with pytest.raises(InputError, match=message):
        paired_difference(a, b, "accuracy")


@pytest.mark.parametrize(
    ("make", "metric"), [(trials, "acuracy"), (score_images, "dice"), (score_images, "pooled_iou")]
)
def test_metrics_go_by_their_names(make, metric):
    with pytest.raises(UnknownName, match=metric):
        paired_difference(make(0), make(1), metric)
