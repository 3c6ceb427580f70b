"""Paired differences are antisymmetric, depend on ids alone, and agree with a plain loop over draws."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, f1_score

from samtl.errors import InputError, UnknownName
from samtl.metrics.bootstrap import (
    FEWEST,
    METRICS,
    Difference,
    Spread,
    _draws,
    describe,
    over_seeds,
    paired_differences,
)

K = 4


def paired_difference(a, b, *arguments, **options):
    return paired_differences({"a": a, "b": b}, *arguments, **options)["a", "b"]


def labels(ids, truth, guess):
    return SimpleNamespace(
        ids=tuple(ids), truth=np.asarray(truth, np.int64), guess=np.asarray(guess, np.int64)
    )


def images(ids, **scores):
    return SimpleNamespace(
        ids=tuple(ids), scores={name: np.asarray(values, float) for name, values in scores.items()}
    )


def trials(seed=0, n=60, seeds=3, held_out=25, right=0.7):
    """What a made-up classifier says of the held-out samples of several seeds, which overlap."""
    truth = np.arange(n) % K
    outcomes = []
    for s in range(seeds):
        rows = np.random.default_rng(s).permutation(n)[:held_out]
        random = np.random.default_rng([seed, s])
        guess = np.where(
            random.random(held_out) < right, truth[rows], random.integers(0, K, held_out)
        )
        outcomes.append(labels([f"{i:03d}" for i in rows], truth[rows], guess))
    return outcomes


def shuffled(outcome, seed):
    order = np.random.default_rng(seed).permutation(len(outcome.ids))
    ids = [outcome.ids[i] for i in order]
    if hasattr(outcome, "truth"):
        return labels(ids, outcome.truth[order], outcome.guess[order])
    return images(ids, **{name: values[order] for name, values in outcome.scores.items()})


def score_images(seed, seeds=2, n=12):
    random = np.random.default_rng(seed)
    return [images(map(str, range(s, s + n)), iou=random.random(n)) for s in range(seeds)]


# Over seeds


def test_a_spread_is_mean_and_sample_deviation():
    assert over_seeds([0.2, 0.4, 0.9]) == Spread(
        pytest.approx(0.5), pytest.approx(np.sqrt(0.13)), 3
    )
    assert over_seeds(iter([0.25])) == Spread(0.25, None, 1)
    with pytest.raises(InputError, match="at least one seed, got none"):
        over_seeds([])


# Laws


@settings(max_examples=20)
@given(st.integers(0, 1000), st.integers(0, 1000))
def test_the_order_of_models_samples_and_seeds_does_not_matter(seed, order):
    a, b = trials(seed), trials(seed + 1)
    expected = paired_difference(a, b, "macro_f1", resamples=50)
    back = paired_difference(b, a, "macro_f1", resamples=50)
    assert (-back.value, -back.high, -back.low) == pytest.approx(
        (expected.value, expected.low, expected.high), abs=1e-12
    )
    assert expected.low <= expected.value <= expected.high
    assert expected.shown == back.shown
    mixed = paired_difference(
        [shuffled(x, order) for x in a], [shuffled(x, order + 1) for x in b], "macro_f1", 50
    )
    assert mixed == expected
    turned = paired_difference(a[::-1], b[::-1], "macro_f1", 50)
    assert (turned.value, turned.low, turned.high) == pytest.approx(
        (expected.value, expected.low, expected.high), abs=1e-12
    )
    pictures, others = score_images(seed), score_images(seed + 1)
    expected = paired_difference(pictures, others, "iou", 50)
    assert paired_difference([shuffled(x, order) for x in pictures], others, "iou", 50) == expected


# Figures


def by_hand(outcomes, metric, times):
    """Score as if every sample stood as often in its seed's list as it was drawn."""
    scores = []
    for outcome in outcomes:
        often = [times[name] for name in outcome.ids]
        if not sum(often):
            continue
        if hasattr(outcome, "truth"):
            truth, guess = np.repeat(outcome.truth, often), np.repeat(outcome.guess, often)
            if metric == "accuracy":
                scores.append((truth == guess).mean())
            elif metric == "balanced_accuracy":
                scores.append(balanced_accuracy_score(truth, guess))
            else:
                scores.append(f1_score(truth, guess, average="macro"))
        else:
            scores.append(np.repeat(outcome.scores[metric], often).mean())
    return np.mean(scores)


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.parametrize(
    ("metric", "make"),
    [
        *((metric, trials) for metric in METRICS),
        ("iou", score_images),
        ("accuracy", lambda seed: trials(seed, held_out=2)),  # draws miss some seeds altogether
    ],
)
def test_a_loop_over_draws_finds_the_same(metric, make):
    a, b = make(1), make(2)
    found = paired_difference(a, b, metric, resamples=50, seed=7)
    names = sorted({name for outcome in a for name in outcome.ids})
    drawn = _draws(len(names), 50, 7)
    gaps = []
    for column in [np.ones(len(names), int), *drawn.T]:
        times = dict(zip(names, column.tolist(), strict=True))
        gaps.append(by_hand(a, metric, times) - by_hand(b, metric, times))
    assert found.value == pytest.approx(gaps[0])
    low, high = np.quantile(gaps[1:], [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx((low, high))


def test_a_handful_of_samples_shows_nothing():
    for n in (1, FEWEST - 1, FEWEST):
        ids = [str(i) for i in range(n)]
        a, b = images(ids, iou=np.ones(n)), images(ids, iou=np.zeros(n))
        found = paired_difference([a], [b], "iou")
        assert (found.value, found.low, found.shown) == (1, 1, n == FEWEST)


# Bad input


AB = labels("ab", [0, 1], [0, 1])


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([], [], r"got \[0, 0\]"),
        (trials(), trials(seeds=2), r"the same seeds, .* got \[3, 2\]"),
        ([AB], [labels("ac", [0, 1], [0, 1])], "2 differ, such as 'b'"),
        ([AB], [labels("ab", [1, 1], [0, 1])], "1 differ, such as 'a'"),
        ([AB], [images("ab", iou=[0, 1])], "2 differ"),
        ([labels("aa", [0, 1], [0, 1])], [AB], "got 2 with 1 ids"),
        ([labels("", [], [])], [labels("", [], [])], "got 0"),
    ],
)
def test_what_cannot_be_compared_is_said(a, b, message):
    with pytest.raises(InputError, match=message):
        paired_difference(a, b, "accuracy")


def test_metrics_go_by_their_names():
    with pytest.raises(UnknownName, match="did you mean accuracy"):
        paired_difference(trials(), trials(1), "acuracy")
    with pytest.raises(UnknownName, match="no score of images is called 'dice'"):
        paired_difference(score_images(0), score_images(1), "dice")


# In words


@pytest.mark.parametrize(
    ("figures", "text"),
    [
        ((0.012, 0.004, 0.02, True), "vit beats mlp by 1.2 points [0.4, 2.0]"),
        ((-0.012, -0.02, -0.004, True), "mlp beats vit by 1.2 points [0.4, 2.0]"),
        ((0.0007, 0.00004, 0.001, True), "vit beats mlp by 0.070 points [0.004, 0.100]"),
        ((0.003, -0.002, 0.008, False), "no difference shown between vit and mlp (0.3 points [-0.2, 0.8])"),
        ((-0.003, -0.008, 0.0, False), "no difference shown between vit and mlp (-0.3 points [-0.8, 0.0])"),
        ((-0.0001, -0.0004, 0.0, False), "no difference shown between vit and mlp (0.0 points [0.0, 0.0])"),
    ],
)  # fmt: skip
def test_words(figures, text):
    assert describe("vit", "mlp", Difference(*figures, 99, 1)) == text
