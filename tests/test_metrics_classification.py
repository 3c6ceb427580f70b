"""Scores agree with scikit-learn and with what they mean; intervals are what resampling one by one gives."""

import subprocess
import sys

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from samtl.errors import InputError
from samtl.metrics import classification as metrics
from samtl.metrics.classification import bootstrap


def predictions(seed, n=300, k=5, skill=2.0):
    """Labels and probabilities that are right more often than not."""
    random = np.random.default_rng(seed)
    truth = random.integers(0, k, n)
    logits = random.normal(size=(n, k))
    logits[np.arange(n), truth] += skill
    chances = np.exp(logits)
    return truth, chances / chances.sum(1, keepdims=True)


def plainly(truth, chances):
    """The figures by scikit-learn, the calibration error by a loop over its bins."""
    guess, top, k = chances.argmax(1), chances.max(1), chances.shape[1]
    hit, error = guess == truth, 0.0
    for m in range(15):
        inside = (top > m / 15) & (top <= (m + 1) / 15)
        if inside.any():
            error += inside.mean() * abs(hit[inside].mean() - top[inside].mean())
    return {
        "accuracy": hit.mean(),
        "balanced_accuracy": sklearn.metrics.balanced_accuracy_score(truth, guess),
        "macro_f1": sklearn.metrics.f1_score(truth, guess, average="macro"),
        "ece": error,
        "log_loss": sklearn.metrics.log_loss(truth, chances, labels=range(k)),
    }


def values(scores):
    return {name: score.value for name, score in scores.items()}


@pytest.mark.parametrize("seed", range(2))
def test_figures_agree_with_scikit_learn(seed):
    truth, chances = predictions(seed, n=60)
    assert values(bootstrap(truth, chances, 1)) == pytest.approx(plainly(truth, chances))
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
    """Exactly 3/15 is not in the bin of 0.21, so errors add."""
    found = bootstrap([0, 4], [[0.2] * 5, [0.21, 0.19, 0.2, 0.2, 0.2]], resamples=1)["ece"]
    assert found.value == pytest.approx((0.8 + 0.21) / 2)


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_bootstrap_is_resampling_in_slices_or_not(monkeypatch):
    truth, chances = predictions(0, n=100)
    scores = bootstrap(truth, chances, resamples=60, seed=7)
    draws = np.random.default_rng(7).integers(0, 100, (60, 100), dtype=np.int32)
    plain = [plainly(truth[rows], chances[rows]) for rows in draws]
    for name, score in scores.items():
        low, high = np.quantile([found[name] for found in plain], [0.025, 0.975])
        expected = min(low, score.value), max(high, score.value)
        assert (score.low, score.high) == pytest.approx(expected)
    monkeypatch.setattr(metrics, "_BUDGET", 300)
    assert bootstrap(truth, chances, resamples=60, seed=7) == scores


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(2, 6), st.floats(-3, 8))
def test_laws(seed, n, k, skill):
    truth, chances = predictions(seed, n, k, skill)
    scores = bootstrap(truth, chances, resamples=20, seed=seed)
    for name, score in scores.items():
        assert 0 <= score.low <= score.value <= score.high
        assert name == "log_loss" or score.high <= 1
    renamed = np.random.default_rng(seed).permutation(k)  # class c is now called renamed[c]
    other = bootstrap(renamed[truth], chances[:, np.argsort(renamed)], resamples=1)
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
        bootstrap(truth, chances)


def test_splits_and_metrics_are_light():
    code = "import sys, samtl.splits, samtl.metrics.bootstrap\n"
    code += "print([m for m in ('torch', 'sklearn', 'scipy', 'zarr') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
