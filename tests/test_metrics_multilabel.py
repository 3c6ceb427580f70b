"""Scores of several classes for each sample: scikit-learn's figures, and intervals that follow from contributions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, f1_score

from samtl.errors import InputError
from samtl.metrics import multilabel


def drawn(seed, n=60, k=4, digits=2):
    """Truth and probabilities that know something of it; few digits give ties."""
    random = np.random.default_rng(seed)
    truth = (random.random((n, k)) < 0.3).astype(int)
    chances = np.clip(0.25 + 0.3 * truth + random.normal(0, 0.25, (n, k)), 0, 1)
    return truth, chances.round(digits)


@given(st.integers(0, 1000), st.integers(1, 3))
def test_scores_are_those_of_scikit_learn(seed, digits):
    truth, chances = drawn(seed, digits=digits)
    found = {name: value for name, (value, _) in multilabel.figures(truth, chances).items()}
    guess = chances >= 0.5
    expected = {
        "macro_ap": average_precision_score(truth, chances, average="macro"),
        "micro_ap": average_precision_score(truth, chances, average="micro"),
        "macro_f1": f1_score(truth, guess, average="macro", zero_division=0),
        "micro_f1": f1_score(truth, guess, average="micro"),
    }
    assert found == pytest.approx(expected, rel=1e-12)


def test_contributions_are_what_changes_if_a_sample_weighs_more():
    truth, chances = drawn(1, n=30)
    value = multilabel.figures(truth, chances)
    times = (
        2000  # a sample that is there so often has the weight 1 + 1 / times, in units of the others
    )

    for j in (0, 7):
        rows = np.append(np.repeat(np.arange(30), times), j)
        more = multilabel.figures(truth[rows], chances[rows])
        for name, (figure, parts) in value.items():
            assert parts.sum() == pytest.approx(0, abs=1e-12)
            assert (more[name][0] - figure) * times == pytest.approx(parts[j], abs=1e-3), name


def test_classes_that_do_not_occur_are_left_out():
    truth, chances = np.array([[1, 0], [0, 0], [1, 0]]), np.array([[0.9, 0.1]] * 3)
    found = multilabel.score(truth, chances)
    assert found["macro_ap"].value == pytest.approx(2 / 3)
    assert found["macro_f1"].value == pytest.approx(0.8)
    nothing = multilabel.score(np.zeros((3, 2), int), np.zeros((3, 2)))
    assert {score.value for score in nothing.values()} == {0.0}


def test_counts_and_scores_of_each_class():
    counts = multilabel.counts([[1, 0], [1, 1], [0, 1]], [[0.5, 0.9], [0.4, 0.6], [0.1, 0.2]])
    assert counts.tolist() == [[1, 0, 1, 1], [0, 1, 1, 1]]
    each = multilabel.per_class(counts)
    assert each.precision.tolist() == [1, 0.5]
    assert each.recall.tolist() == [0.5, 0.5]
    assert each.support.tolist() == [2, 2]


@pytest.mark.parametrize("positives", [0, 1, 3])
def test_few_positives_are_little_to_go_by_however_many_samples_there_are(positives):
    truth = np.zeros((1000, 2), int)
    truth[:positives, 0] = 1
    found = multilabel.score(truth, truth.astype(float))
    certain = 0.025 ** (1 / max(positives, 1))  # Clopper and Pearson, of as many hits
    for name, one in found.items():
        assert one.value == (positives > 0)
        assert one.low <= certain + 1e-9, name
        assert one.high == 1


@pytest.mark.parametrize("n", [10, 30, 300])
def test_intervals_cover_the_truth(n):
    """The truth is the score of very many samples."""
    whole = {k: v for k, (v, _) in multilabel.figures(*drawn(0, n=100_000, digits=6)).items()}
    hits = dict.fromkeys(whole, 0)
    for seed in range(1, 201):
        for name, score in multilabel.score(*drawn(seed, n=n, digits=6)).items():
            assert 0 <= score.low <= score.value <= score.high <= 1
            hits[name] += score.low <= whole[name] <= score.high
    # An average precision of few positives is biased upwards; the others are nearly unbiased.
    assert min(hits.values()) >= 0.85 * 200


def test_groups_widen_intervals():
    truth, chances = (np.repeat(part, 5, axis=0) for part in drawn(3))
    alone, together = (multilabel.score(truth, chances, g) for g in (None, np.arange(300) // 5))
    for name, score in alone.items():
        assert together[name].high - together[name].low > 1.8 * (score.high - score.low)


@pytest.mark.parametrize(
    ("truth", "chances"),
    [([], []), ([[1, 0]], [[0.5]]), ([[2, 0]], [[0.5, 0.5]]), ([[1, 0]], [[1.5, 0]]),
     ([[1, 0]], [[float("nan"), 0]]), ([1, 0], [0.5, 0.5])],
)  # fmt: skip
def test_wrong_arrays_are_refused(truth, chances):
    with pytest.raises(InputError):
        multilabel.score(truth, chances)
