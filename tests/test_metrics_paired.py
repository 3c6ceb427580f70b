"""Paired differences are antisymmetric, depend on ids alone, and agree with plain code and known intervals."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, f1_score

from samtl.errors import InputError, UnknownName
from samtl.metrics import paired, segmentation
from samtl.metrics.classification import OF_MATRIX, confusion
from samtl.metrics.paired import FEWEST

K = 4


def paired_difference(a, b, *arguments, **options):
    return paired.paired_differences({"a": a, "b": b}, *arguments, **options)["a", "b"]


def labels(ids, truth, guess):
    return paired.Predictions(tuple(ids), np.array(truth, int), np.array(guess, int))


def images(ids, values):
    return paired.ImageScores(tuple(ids), {"iou": np.array(values, float)})


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
        found.append(paired.ImageScores(tuple(map(str, range(s, s + n))), {}, (), counts))
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
    expected = paired_difference(a, b, metric)
    figures = pytest.approx((expected.value, expected.low, expected.high), abs=1e-12)
    assert expected.low <= expected.value <= expected.high
    back = paired_difference(b, a, metric)
    assert (-back.value, -back.high, -back.low) == figures
    assert expected.shown == back.shown
    a_mixed, b_mixed = ([shuffled(x, order + i) for x in some] for i, some in enumerate((a, b)))
    mixed = paired_difference(a_mixed, b_mixed, metric)
    assert (mixed.value, mixed.low, mixed.high) == figures
    turned = paired_difference(a[::-1], b[::-1], metric)
    assert (turned.value, turned.low, turned.high) == figures


def by_hand(outcomes, metric):
    """The mean over seeds by scikit-learn or plain code."""
    scored = {
        "accuracy": lambda truth, guess: (truth == guess).mean(),
        "balanced_accuracy": balanced_accuracy_score,
        "macro_f1": lambda truth, guess: f1_score(truth, guess, average="macro"),
    }
    scores = []
    for outcome in outcomes:
        if metric == "pooled_iou":
            true, guess, both = outcome.counts.sum(0)[1:].T
            union = true + guess - both
            scores.append((both / np.maximum(union, 1)).sum() / max((union > 0).sum(), 1))
        elif metric == "iou":
            scores.append(outcome.scores["iou"].mean())
        else:
            scores.append(scored[metric](outcome.truth, outcome.guess))
    return np.mean(scores)


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.parametrize(
    ("metric", "make"),
    [
        *((metric, trials) for metric in OF_MATRIX),
        ("iou", score_images),
        ("pooled_iou", count_pixels),
        ("accuracy", lambda seed: trials(seed, held_out=2)),
    ],
)
def test_the_difference_is_that_of_the_means_over_seeds(metric, make):
    a, b = make(1), make(2)
    expected = by_hand(a, metric) - by_hand(b, metric)
    assert paired_difference(a, b, metric).value == pytest.approx(expected)


def drawn(outcomes, metric, times):
    """Score each sample as often as it was drawn."""
    scores = []
    for outcome in outcomes:
        rows = np.repeat(np.arange(len(outcome.ids)), [times[name] for name in outcome.ids])
        if metric in OF_MATRIX:
            matrix = confusion(outcome.truth[rows], outcome.guess[rows], K)
            scores.append(OF_MATRIX[metric](matrix))
        elif metric == "iou":
            scores.append(outcome.scores["iou"][rows].mean())
        else:
            scores.append(segmentation.scores_of_counts(outcome.counts[rows].sum(0))["iou"])
    return np.mean(scores)


@pytest.mark.parametrize(
    ("metric", "make"),
    [
        *((metric, lambda seed: trials(seed, 120, 2, 80)) for metric in OF_MATRIX),
        ("iou", lambda seed: score_images(seed, n=60)),
        ("pooled_iou", lambda seed: count_pixels(seed, n=60)),
    ],
)
def test_intervals_are_as_wide_as_a_bootstrap_finds(metric, make):
    a, b = make(1), make(2)
    names = sorted({name for outcome in a for name in outcome.ids})
    random, gaps = np.random.default_rng(0), []
    for _ in range(1000):
        often = np.bincount(random.integers(0, len(names), len(names)), minlength=len(names))
        times = dict(zip(names, often.tolist(), strict=True))
        gaps.append(drawn(a, metric, times) - drawn(b, metric, times))
    found = paired_difference(a, b, metric)
    assert found.high - found.low == pytest.approx(2 * 1.98 * np.std(gaps), rel=0.2)


def test_few_pairs_that_differ_do_not_make_two_models_equal():
    same = [labels(map(str, range(50)), [0, 1] * 25, [0, 1] * 25)]
    found = paired_difference(same, same, "accuracy")
    assert (found.value, found.shown) == (0, False)
    assert -0.08 < found.low < -0.04
    assert found.high == -found.low


def test_images_of_one_group_count_as_alike():
    ids, gains = tuple(map(str, range(18))), np.repeat([0.1, 0.3], 9)
    groups = tuple("ab"[i // 9] for i in range(18))
    alone = [paired.ImageScores(ids, {"iou": 0.5 + part * gains}) for part in (1, 0)]
    both = [paired.ImageScores(ids, one.scores, groups=groups) for one in alone]
    found = paired_difference([alone[0]], [alone[1]], "iou")
    assert (found.shown, found.n_groups) == (True, 0)
    grouped = paired_difference([both[0]], [both[1]], "iou")
    assert grouped.value == found.value
    assert (grouped.shown, grouped.n_groups, grouped.n_samples) == (False, 2, 18)


def test_a_handful_of_samples_shows_nothing():
    for n in (1, FEWEST - 1, FEWEST):
        a, b = (images(map(str, range(n)), [value] * n) for value in (1, 0))
        found = paired_difference([a], [b], "iou")
        assert (found.value, found.high, found.shown) == (1, 1, n == FEWEST)
        assert -1 <= found.low < 0.8  # images that are alike do not make a model certainly better


def test_samples_without_a_group_are_groups_of_their_own():
    """As if one of two runs were older than groups."""
    old, new = trials(seeds=2)
    grouped = paired.Predictions(new.ids, new.truth, new.guess, None, ("a",) * 5 + new.ids[5:])
    same = [old, grouped]
    assert paired_difference(same, same, "accuracy").n_groups == len({*old.ids, *new.ids}) - 4


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
