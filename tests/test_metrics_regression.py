"""Scores of predicted numbers: scikit-learn's figures, and intervals that follow from contributions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from samtl.errors import InputError
from samtl.metrics import regression
from samtl.metrics.declared import metric_of


def drawn(seed, n=50, noise=0.5):
    random = np.random.default_rng(seed)
    truth = random.normal(10, 2, n)
    return truth, truth + random.normal(0, noise, n)


@given(st.integers(0, 1000), st.floats(0.01, 5))
def test_scores_are_those_of_scikit_learn(seed, noise):
    truth, predicted = drawn(seed, noise=noise)
    found = {name: value for name, (value, _) in regression.figures(truth, predicted).items()}
    assert found == pytest.approx(
        {
            "r2": r2_score(truth, predicted),
            "mae": mean_absolute_error(truth, predicted),
            "rmse": root_mean_squared_error(truth, predicted),
        }
    )


def test_contributions_are_what_changes_if_a_sample_weighs_more():
    truth, predicted = drawn(1, n=30)
    value, times = regression.figures(truth, predicted), 2000
    for j in (0, 7):
        rows = np.append(np.repeat(np.arange(30), times), j)
        more = regression.figures(truth[rows], predicted[rows])
        for name, (figure, parts) in value.items():
            assert parts.sum() == pytest.approx(0, abs=1e-12)
            assert (more[name][0] - figure) * times == pytest.approx(parts[j], abs=1e-3), name


def test_edges():
    perfect = regression.score([1, 2, 3], [[1], [2], [3]])
    assert perfect["r2"].value == perfect["r2"].high == 1
    assert perfect["mae"].value == 0
    equal = regression.score([2, 2, 2], [2, 2, 3])
    assert equal["r2"].value == 0
    mean = regression.score([1, 2, 3], [2, 2, 2])
    assert mean["r2"].value == pytest.approx(0)


def test_one_sample_and_equal_errors_do_not_make_a_sure_figure():
    for n in (1, 4):
        found = regression.score(np.arange(n), np.arange(n) + 2.0)
        assert found["mae"].value == found["rmse"].value == 2
        for name in ("mae", "rmse"):
            assert found[name].low < 1.5
            assert 3 < found[name].high < np.inf


@pytest.mark.parametrize("n", [10, 30, 300])
@pytest.mark.parametrize("noise", [0.2, 2.0])
def test_intervals_cover_the_truth(n, noise):
    """The truth is known of normal numbers and errors."""
    whole = {"r2": 1 - (noise / 2) ** 2, "mae": noise * np.sqrt(2 / np.pi), "rmse": noise}
    hits = dict.fromkeys(whole, 0)
    for seed in range(1, 301):
        for name, score in regression.score(*drawn(seed, n=n, noise=noise)).items():
            assert score.low <= score.value <= score.high
            hits[name] += score.low <= whole[name] <= score.high
    assert min(hits.values()) >= 0.9 * 300


@pytest.mark.parametrize("pair", [([], []), ([1, 2], [1]), ([1, np.nan], [1, 2]), ([1], [np.inf])])
def test_wrong_arrays_are_refused(pair):
    with pytest.raises(InputError):
        regression.score(*pair)


def test_errors_are_written_in_three_digits_whatever_their_unit():
    mae = metric_of("regression", "mae")
    said = [mae.written(value) for value in (13.8972, 1.25e-6, 0.0, 123456.7, float("nan"))]
    assert said == ["13.9", "0.00000125", "0", "123457", "nan"]
