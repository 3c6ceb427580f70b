"""Scores agree with scikit-learn and with what they mean; intervals are what resampling one by one gives."""

import subprocess
import sys
import time

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st

from samtl.errors import InputError
from samtl.metrics import classification as metrics

NAMES = {"accuracy", "balanced_accuracy", "macro_f1", "ece", "log_loss"}


def predictions(seed, n=300, k=5, skill=2.0):
    """Labels and probabilities that are right more often than not."""
    random = np.random.default_rng(seed)
    truth = random.integers(0, k, n)
    logits = random.normal(size=(n, k))
    logits[np.arange(n), truth] += skill
    chances = np.exp(logits)
    return truth, chances / chances.sum(1, keepdims=True)


@pytest.mark.parametrize("seed", range(5))
def test_scores_agree_with_scikit_learn(seed):
    truth, chances = predictions(seed, n=60)
    guess = chances.argmax(1)
    matrix = metrics.confusion(truth, guess, 5)
    assert (matrix == sklearn.metrics.confusion_matrix(truth, guess, labels=range(5))).all()
    assert metrics.accuracy(matrix) == pytest.approx(sklearn.metrics.accuracy_score(truth, guess))
    expected = sklearn.metrics.balanced_accuracy_score(truth, guess)
    assert metrics.balanced_accuracy(matrix) == pytest.approx(expected)
    expected = sklearn.metrics.f1_score(truth, guess, average="macro")
    assert metrics.macro_f1(matrix) == pytest.approx(expected)
    expected = sklearn.metrics.log_loss(truth, chances, labels=range(5))
    assert metrics.log_loss(truth, chances) == pytest.approx(expected)
    each = metrics.per_class(matrix)
    expected = sklearn.metrics.precision_recall_fscore_support(truth, guess, labels=range(5))
    for ours, theirs in zip(
        (each.precision, each.recall, each.f1, each.support), expected, strict=True
    ):
        np.testing.assert_allclose(ours, theirs)


def test_absent_classes_count_as_in_scikit_learn():
    truth, guess = np.array([0, 0, 1, 1, 1]), np.array([0, 3, 1, 1, 0])  # 2 nowhere, 3 only guessed
    matrix = metrics.confusion(truth, guess, 4)
    expected = sklearn.metrics.f1_score(truth, guess, average="macro", zero_division=0)
    assert metrics.macro_f1(matrix) == pytest.approx(expected)
    assert metrics.balanced_accuracy(matrix) == pytest.approx((1 / 2 + 2 / 3) / 2)
    each = metrics.per_class(matrix)
    assert each.precision.tolist() == [0.5, 1.0, 0.0, 0.0]
    assert each.f1[2] == each.recall[3] == 0


def test_rows_of_the_confusion_are_the_truth():
    assert metrics.confusion([0, 0, 1], [1, 1, 1], 2).tolist() == [[0, 2], [0, 1]]


def test_scores_take_many_matrices_at_once():
    matrices = np.random.default_rng(0).integers(0, 9, (2, 3, 4, 4))
    for score in (metrics.accuracy, metrics.balanced_accuracy, metrics.macro_f1):
        whole = score(matrices)
        assert whole.shape == (2, 3)
        assert whole[1, 2] == pytest.approx(score(matrices[1, 2]))


def test_calibration_error_by_hand():
    # Two samples at 0.9, one right: off by 0.4. Two at 0.6, both right: off by 0.4, the other way.
    chances = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.4, 0.6]])
    assert metrics.calibration_error([0, 1, 0, 1], chances) == pytest.approx(0.4)
    # In one bin they even out.
    chances = np.array([[0.75, 0.25]] * 4)
    assert metrics.calibration_error([0, 0, 0, 1], chances) == pytest.approx(0.0)


def test_calibration_error_against_a_plain_loop():
    truth, chances = predictions(3, n=500)
    top, hit = chances.max(1), chances.argmax(1) == truth
    expected = 0.0
    for m in range(15):
        inside = (top > m / 15) & (top <= (m + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(hit[inside].mean() - top[inside].mean())
    assert metrics.calibration_error(truth, chances) == pytest.approx(expected)


def test_bins_are_closed_above():
    """A confidence of exactly 3/15 falls beside 0.19, not beside 0.21: with one bin each, errors add."""
    chances = np.full((2, 5), 0.2)
    chances[1] = [0.21, 0.19, 0.2, 0.2, 0.2]
    assert metrics.calibration_error([0, 4], chances) == pytest.approx((0.8 + 0.21) / 2)


def test_certain_and_wrong_is_finite():
    assert metrics.log_loss([1], [[1.0, 0.0]]) == pytest.approx(-np.log(np.finfo(float).eps))


def test_bootstrap_is_resampling():
    truth, chances = predictions(0, n=200)
    scores = metrics.bootstrap(truth, chances, resamples=400, seed=7)
    assert set(scores) == NAMES
    draws = np.random.default_rng(7).integers(0, 200, (400, 200), dtype=np.int32)
    plain = {name: [] for name in NAMES}
    for rows in draws:
        matrix = metrics.confusion(truth[rows], chances[rows].argmax(1), 5)
        plain["accuracy"].append(metrics.accuracy(matrix))
        plain["balanced_accuracy"].append(metrics.balanced_accuracy(matrix))
        plain["macro_f1"].append(metrics.macro_f1(matrix))
        plain["ece"].append(metrics.calibration_error(truth[rows], chances[rows]))
        plain["log_loss"].append(metrics.log_loss(truth[rows], chances[rows]))
    for name, score in scores.items():
        low, high = np.quantile(plain[name], [0.025, 0.975])
        assert score.low == pytest.approx(min(low, score.value))
        assert score.high == pytest.approx(max(high, score.value))


def test_bootstrap_in_slices_is_the_same(monkeypatch):
    truth, chances = predictions(1)
    whole = metrics.bootstrap(truth, chances, resamples=50)
    monkeypatch.setattr(metrics, "_BUDGET", 900)
    assert metrics.bootstrap(truth, chances, resamples=50) == whole


def test_intervals_cover_the_true_accuracy():
    """Of 200 samples of a classifier that is right 80 % of the time, about 95 % of intervals hold 0.8."""
    held = 0
    for seed in range(100):
        truth = np.zeros(200, dtype=int)
        right = np.random.default_rng(1000 + seed).random(200) < 0.8
        chances = np.where(right[:, None], [[0.8, 0.2]], [[0.2, 0.8]])
        score = metrics.bootstrap(truth, chances, resamples=300, seed=seed)["accuracy"]
        held += score.low <= 0.8 <= score.high
    assert held >= 88


def test_intervals_narrow_with_more_samples():
    widths = []
    for n in (100, 1000, 10_000):
        score = metrics.bootstrap(*predictions(5, n=n), resamples=200)["accuracy"]
        widths.append(score.high - score.low)
    assert widths[0] > 2 * widths[1] > 4 * widths[2]


@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(2, 6), st.floats(-3, 8))
def test_laws(seed, n, k, skill):
    truth, chances = predictions(seed, n, k, skill)
    scores = metrics.bootstrap(truth, chances, resamples=20, seed=seed)
    for name, score in scores.items():
        assert 0 <= score.low <= score.value <= score.high
        assert name == "log_loss" or score.high <= 1
    order = np.random.default_rng(seed).permutation(n)
    again = metrics.bootstrap(truth[order], chances[order], resamples=1)
    renamed = np.random.default_rng(seed).permutation(k)  # class c is now called renamed[c]
    other = metrics.bootstrap(renamed[truth], chances[:, np.argsort(renamed)], resamples=1)
    for name, score in scores.items():
        assert again[name].value == pytest.approx(score.value)
        assert other[name].value == pytest.approx(score.value)


def test_perfect_predictions():
    scores = metrics.bootstrap([0, 1, 2], np.eye(3))
    for name in ("accuracy", "balanced_accuracy", "macro_f1"):
        assert scores[name] == metrics.Score(1.0, 1.0, 1.0)
    assert scores["ece"] == scores["log_loss"] == metrics.Score(0.0, 0.0, 0.0)


def test_eurosat_takes_well_under_a_second():
    truth, chances = predictions(0, n=5400, k=10)
    began = time.process_time()
    metrics.bootstrap(truth, chances)
    assert time.process_time() - began < 1.5


@pytest.mark.parametrize(
    ("truth", "chances", "said"),
    [
        ([0, 1], [[0.5, 0.5]], "as many rows as labels"),
        ([0, 2], [[0.5, 0.5], [0.5, 0.5]], "labels must lie between 0 and 1, got 0 to 2"),
        ([0, -1], [[0.5, 0.5], [0.5, 0.5]], "got -1 to 0"),
        ([0.0], [[0.5, 0.5]], "class indices"),
        ([0, 1], [[0.5, 0.5], [0.5, np.nan]], "sum to 1, but row 1"),
        ([0], [[1.5, -0.5]], "row 0"),
        ([0], [[0.5, 0.4]], "row 0"),
        ([], np.zeros((0, 2)), "not empty"),
        ([0], [0.5], r"\(samples, classes\)"),
    ],
)
def test_what_is_not_a_prediction_is_refused(truth, chances, said):
    with pytest.raises(InputError, match=said):
        metrics.bootstrap(truth, chances)


def test_unequal_lengths_are_refused():
    with pytest.raises(InputError, match="got 1 for 2"):
        metrics.confusion([0, 1], [0], 2)


def test_splits_and_metrics_are_light():
    code = (
        "import sys, samtl.splits, samtl.metrics\n"
        "print([m for m in ('torch', 'sklearn', 'scipy', 'zarr') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
