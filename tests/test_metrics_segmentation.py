"""Mask scores agree with plain code and scikit-learn, and hold by the laws; intervals are those of whole images."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from samtl.errors import InputError
from samtl.metrics import intervals
from samtl.metrics import segmentation as pixel_metrics

NAMES = ["accuracy", "iou", "dice", "f1", "precision", "recall"]


def plainly(truth, guess, k):
    """The scores of one image, one class at a time."""
    pairs = [(t, g) for t, g in zip(truth.ravel(), guess.ravel(), strict=True) if t < k]
    each = {}
    for c in range(k):
        tp = sum(t == g == c for t, g in pairs)
        fp = sum(t != c == g for t, g in pairs)
        fn = sum(t == c != g for t, g in pairs)
        if tp + fp + fn:
            precision, recall = (tp / max(tp + other, 1) for other in (fp, fn))
            each[c] = (tp / (tp + fp + fn), 2 * tp / (2 * tp + fp + fn), precision, recall)
    front = [values for c, values in each.items() if c]
    means = np.mean(front, axis=0) if front else np.ones(4)
    found = dict(zip(("iou", "dice", "precision", "recall"), means, strict=True))
    found["f1"] = np.mean([values[1] for values in each.values()])
    return found | {"accuracy": np.mean([t == g for t, g in pairs])}


@st.composite
def pairs_of_masks(draw):
    """Small masks of up to 5 classes, among them empty and one-sided ones; at least one pixel counts."""
    k = draw(st.integers(2, 5))
    shape = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    known = st.integers(0, draw(st.integers(0, k - 1)))
    truth = draw(arrays(np.uint8, shape, elements=known | st.just(255)))
    truth[0, 0] = draw(known)
    guess = draw(arrays(np.uint8, shape, elements=st.integers(0, draw(st.integers(0, k - 1)))))
    return truth, guess, k


def test_rows_of_the_confusion_are_the_truth_and_255_does_not_count():
    truth = np.array([[0, 0, 1], [255, 255, 1]], dtype=np.uint8)
    guess = np.array([[1, 1, 1], [0, 7, 0]], dtype=np.uint8)  # 7 is no class, but nobody asks
    found = pixel_metrics.confusion(truth, guess, 2)
    assert (found.dtype, found.tolist()) == (np.int64, [[0, 2], [1, 1]])


@settings(max_examples=50)
@given(pairs_of_masks())
def test_scores_agree_with_plain_code(given_masks):
    truth, guess, k = given_masks
    found = pixel_metrics.scores(pixel_metrics.confusion(truth, guess, k))
    assert list(found) == NAMES
    assert found == pytest.approx(plainly(truth, guess, k))


@pytest.mark.parametrize("groups", [None, [i // 3 for i in range(30)]])
def test_each_image_or_group_is_left_out_once(groups):
    matrices = np.random.default_rng(0).integers(0, 50, (30, 3, 3))
    figures = pixel_metrics.score(matrices, groups and [*map(str, groups)])
    assert list(figures) == NAMES + [f"pooled_{name}" for name in NAMES]
    units = np.arange(30) if groups is None else np.array(groups)
    rest = [matrices[units != unit] for unit in np.unique(units)]
    for name in NAMES:
        means = [pixel_metrics.scores(some)[name].mean() for some in (matrices, *rest)]
        pooled = [pixel_metrics.scores(some.sum(0))[name] for some in (matrices, *rest)]
        counts = [pixel_metrics.class_counts(matrices[units == u].sum(0)) for u in np.unique(units)]
        weight = np.array(counts)[:, 1:] @ [1, 1, -1]  # the true and the predicted pixels
        if name == "accuracy":
            weight = np.array(counts)[:, :, 0].sum(1)
        certain = (weight.sum(0) ** 2 / (weight**2).sum(0)).min()
        for one, (value, *without), n in (
            (figures[name], means, len(rest)),
            (figures[f"pooled_{name}"], pooled, certain),
        ):
            assert one.value == pytest.approx(value)
            variance = np.var(without) * (len(rest) - 1)
            expected = intervals.share_of_units(value, variance, n)
            assert (one.low, one.high) == pytest.approx((expected.low, expected.high))
            assert one.low < one.value < one.high


@pytest.mark.parametrize("n", [1, 2, 4])
def test_few_perfect_images_do_not_make_a_perfect_model(n):
    found = pixel_metrics.score(np.stack([100 * np.eye(2, dtype=int)] * n))
    for one in found.values():
        assert (one.value, one.high) == (1, 1)
        assert one.low == pytest.approx(0.025 ** (1 / n))  # Clopper and Pearson


def test_images_without_foreground_tell_nothing_of_it():
    found = pixel_metrics.score(np.stack([np.diag([100, 0])] * 50))
    assert [getattr(found["pooled_iou"], part) for part in ("low", "value", "high")] == [0, 1, 1]
    assert found["pooled_accuracy"].low > 0.9


def test_a_class_is_as_uncertain_as_the_images_that_it_is_in():
    matrices = np.zeros((40, 4, 4), int)
    matrices[:, 0, 0] = matrices[:, 1, 1] = 100
    matrices[0, 2, 2] = 100
    every, common, rare, absent = pixel_metrics.class_ious(pixel_metrics.class_counts(matrices))
    assert every == common
    assert (common.value, common.low) == (1, pytest.approx(0.025 ** (1 / 40)))
    assert (rare.value, rare.low) == (1, pytest.approx(0.025))
    assert absent is None


EMPTY = np.zeros((2, 3), np.uint8)


@pytest.mark.parametrize(
    ("truth", "guess", "k", "said"),
    [
        (EMPTY, EMPTY.T, 2, r"\(2, 3\) and .* \(3, 2\)"),
        (EMPTY, EMPTY.astype(np.int64), 2, "int64"),
        (EMPTY + np.uint8(2), EMPTY, 2, "^labels must lie .* 1, got 2"),
        (EMPTY, EMPTY + np.uint8(255), 3, "^predictions .* 2, got 255"),
        (EMPTY, EMPTY, 1, "2 to 255 classes, .* got 1"),
        (EMPTY, EMPTY, 256, "2 to 255 classes, .* got 256"),
    ],
)
def test_what_is_not_a_pair_of_masks_is_refused(truth, guess, k, said):
    with pytest.raises(InputError, match=said):
        pixel_metrics.confusion(truth, guess, k)


def test_an_image_without_a_known_pixel_is_refused():
    with pytest.raises(InputError, match="image 1 has no pixel"):
        pixel_metrics.score(np.array([np.eye(2, dtype=int), np.zeros((2, 2), int)]))
