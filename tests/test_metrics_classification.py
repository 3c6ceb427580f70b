"""Scores agree with scikit-learn and with what they mean; intervals are exact where exact ones are known."""

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from samtl.errors import InputError
from samtl.metrics import classification as metrics
from samtl.metrics.calibration import bin_of, calibration_error
from samtl.metrics.classification import score


def predictions(seed, n=300, k=5, skill=2.0):
    """Labels and probabilities that are right more often than not."""
    random = np.random.default_rng(seed)
    truth = random.integers(0, k, n)
    logits = random.normal(size=(n, k))
    logits[np.arange(n), truth] += skill
    chances = np.exp(logits)
    return truth, chances / chances.sum(1, keepdims=True)


def plainly(truth, chances):
    """The figures by scikit-learn."""
    guess, k = chances.argmax(1), chances.shape[1]
    return {
        "accuracy": sklearn.metrics.accuracy_score(truth, guess),
        "balanced_accuracy": sklearn.metrics.balanced_accuracy_score(truth, guess),
        "macro_f1": sklearn.metrics.f1_score(truth, guess, average="macro"),
        "log_loss": sklearn.metrics.log_loss(truth, chances, labels=range(k)),
    }


def values(scores):
    return {name: one.value for name, one in scores.items()}


@pytest.mark.parametrize("seed", range(2))
def test_figures_agree_with_scikit_learn(seed):
    truth, chances = predictions(seed, n=60)
    found = values(score(truth, chances))
    del found["ece"]
    assert found == pytest.approx(plainly(truth, chances))
    guess, classes = chances.argmax(1), range(5)
    matrix = metrics.confusion(truth, guess, 5)
    assert (matrix == sklearn.metrics.confusion_matrix(truth, guess, labels=classes)).all()
    ours = vars(metrics.per_class(matrix)).values()  # precision, recall, F1, support
    theirs = sklearn.metrics.precision_recall_fscore_support(truth, guess, labels=classes)
    np.testing.assert_allclose([*ours], theirs)


def test_absent_classes_count_as_in_scikit_learn():
    truth, guess = np.array([0, 0, 1, 1, 1]), np.array([0, 3, 1, 1, 0])  # 2 nowhere, 3 only guessed
    matrix = metrics.confusion(truth, guess, 4)
    expected = sklearn.metrics.f1_score(truth, guess, average="macro", zero_division=0)
    assert metrics.macro_f1(matrix) == pytest.approx(expected)
    assert metrics.balanced_accuracy(matrix) == pytest.approx((1 / 2 + 2 / 3) / 2)
    each = metrics.per_class(matrix)
    assert each.precision.tolist() == [0.5, 1.0, 0.0, 0.0]
    assert each.f1[2] == each.recall[3] == 0


def test_bins_of_the_calibration_error_are_closed_above():
    assert bin_of(np.array([1e-9, 0.2, 0.21, 1.0])).tolist() == [0, 2, 3, 14]


def plain_error(confidence, hit):
    error = 0.0
    for m in range(15):
        inside = (confidence > m / 15) & (confidence <= (m + 1) / 15)
        if inside.any():
            error += inside.mean() * abs(hit[inside].mean() - confidence[inside].mean())
    return error


@pytest.mark.parametrize(("off", "n"), [(0.0, 120), (0.0, 5400), (0.03, 500), (0.2, 120)])
def test_the_calibration_error_is_not_what_noise_makes_of_it(off, n):
    """A calibrated model has an error near 0, which the plain figure of few samples hides."""
    random = np.random.default_rng(0)
    found, plain = [], []
    for _ in range(100):
        confidence = random.uniform(0.5, 1, n)
        hit = random.random(n) < confidence - off
        found.append(calibration_error(confidence, hit).value)
        plain.append(plain_error(confidence, hit))
    assert abs(np.mean(found) - off) < 0.75 * abs(np.mean(plain) - off)


def test_the_calibration_error_of_many_samples_is_the_plain_figure():
    random = np.random.default_rng(0)
    confidence = random.uniform(0.5, 1, 100_000)
    hit = random.random(100_000) < confidence - 0.2
    found = calibration_error(confidence, hit)
    assert found.value == pytest.approx(plain_error(confidence, hit), abs=1e-3)
    assert found.high - found.low < 0.02


@pytest.mark.parametrize(("hits", "n"), [(60, 100), (98, 100), (30, 30), (0, 4), (4, 4)])
def test_the_interval_of_the_accuracy_is_exact(hits, n):
    truth = np.zeros(n, int)
    guess = np.where(np.arange(n) < hits, 0, 1)
    found = score(truth, np.eye(2)[guess])["accuracy"]
    expected = scipy.stats.binomtest(hits, n).proportion_ci(method="exact")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_samples_of_one_group_count_as_alike():
    truth, chances = predictions(0, n=200)
    alone = score(truth, chances)
    ids = [str(i) for i in range(200)]
    assert score(truth, chances, ids) == alone  # each a group of its own
    assert score(truth, chances, ["a"] * 200) == alone  # nothing tells how groups differ
    order = np.argsort(chances.argmax(1) == truth, kind="stable")  # groups are right or wrong
    grouped = score(truth[order], chances[order], [str(i // 20) for i in range(200)])
    for name, one in grouped.items():
        assert one.value == pytest.approx(alone[name].value)
        assert one.high - one.low > 1.5 * (alone[name].high - alone[name].low)


def test_a_large_group_counts_as_one_whatever_is_beside_it():
    """Of ten independent answers one is there a hundred times, as a copied image is."""
    random, groups, held = np.random.default_rng(0), [0] * 100 + [*range(1, 10)], 0
    for _ in range(200):
        right = (random.random(10) < 0.7)[groups]
        one = score(np.zeros(109, int), np.eye(2)[1 - right], [str(group) for group in groups])
        held += one["accuracy"].low <= 0.7 <= one["accuracy"].high
    assert held >= 180


def test_an_error_of_a_model_without_doubts_would_cost_much():
    found = score([0, 1, 1, 0], np.eye(2)[[0, 1, 1, 0]])["log_loss"]
    assert (found.value, found.low) == (0, 0)
    assert found.high > 1  # an error costs 36 nats


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(2, 6), st.floats(-3, 8))
def test_laws(seed, n, k, skill):
    truth, chances = predictions(seed, n, k, skill)
    scores = score(truth, chances)
    for name, one in scores.items():
        assert 0 <= one.low <= one.value <= one.high < np.inf
        assert name == "log_loss" or one.high <= 1
    renamed = np.random.default_rng(seed).permutation(k)  # class c is now called renamed[c]
    other = score(renamed[truth], chances[:, np.argsort(renamed)])
    assert values(other) == pytest.approx(values(scores))


@pytest.mark.parametrize(
    ("truth", "chances", "said"),
    [
        ([0, 1], [[0.5, 0.5]], r"\(1, 2\) for 2"),
        ([0, 2], [[0.5, 0.5], [0.5, 0.5]], "between 0 and 1, got 0 to 2"),
        ([0, -1], [[0.5, 0.5], [0.5, 0.5]], "got -1 to 0"),
        ([0.0], [[0.5, 0.5]], "float64"),
        ([0, 1], [[0.5, 0.5], [0.5, np.nan]], "row 1"),
        ([0], [[1.5, -0.5]], "row 0"),
        ([0], [[0.5, 0.4]], "row 0"),
        ([], np.zeros((0, 2)), r"\(0, 2\)"),
        ([0], [0.5], r"\(1,\)"),
    ],
)
def test_what_is_not_a_prediction_is_refused(truth, chances, said):
    with pytest.raises(InputError, match=said):
        score(truth, chances)
