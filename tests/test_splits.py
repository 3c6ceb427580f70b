"""Who is held out hangs on ids, labels and seed; every class is in every part."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from samtl import splits
from samtl.errors import InputError


def samples(sizes):
    """Ids and labels of classes with the given numbers of samples, classes mixed."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    labels = labels[np.argsort((np.arange(len(labels)) * 7919) % 104729, kind="stable")]
    return [f"{label}/{i}.jpg" for i, label in enumerate(labels)], labels


def per_class(labels, rows, k):
    return np.bincount(np.asarray(labels)[rows], minlength=k).tolist()


def test_counts_follow_the_largest_remainder():
    ids, labels = samples([10, 11, 12])  # a fifth: 2, 2.2, 2.4, in all 6.6
    split = splits.holdout(ids, labels, 0.2)
    assert per_class(labels, split.test, 3) == [2, 2, 3]
    assert per_class(labels, split.train, 3) == [8, 9, 9]


def test_a_small_class_is_in_both_parts_and_the_total_stays_right():
    ids, labels = samples([2, 100, 98])
    split = splits.holdout(ids, labels, 0.05)
    assert per_class(labels, split.test, 3)[0] == 1
    assert len(split.test) == 10


def test_parts_are_ascending_rows_that_cannot_be_changed():
    ids, labels = samples([30, 30])
    split = splits.holdout(ids, labels, 0.3)
    for part in (split.train, split.test):
        assert part.dtype == np.int64
        assert (np.diff(part) > 0).all()
        with pytest.raises(ValueError, match="read-only"):
            part[0] = 0


@given(
    sizes=st.lists(st.integers(2, 40), min_size=1, max_size=8),
    share=st.floats(0.001, 0.999),
    seed=st.integers(-3, 2**40),
)
def test_every_split_is_whole_and_stratified(sizes, share, seed):
    ids, labels = samples(sizes)
    try:
        split = splits.holdout(ids, labels, share, seed)
    except InputError:
        total = int(share * sum(sizes) + 0.5)
        assert not len(sizes) < total < sum(sizes) - len(sizes)  # strictly inside always works
        return
    assert sorted([*split.train, *split.test]) == list(range(len(ids)))
    assert abs(len(split.test) - share * len(ids)) <= 0.5 + 1e-9
    counts = per_class(labels, split.test, len(sizes))
    assert all(1 <= n <= size - 1 for n, size in zip(counts, sizes, strict=True))


@given(st.randoms(use_true_random=False), st.integers(0, 5))
def test_the_order_of_rows_does_not_matter(random, seed):
    ids, labels = samples([20, 30, 25])
    split = splits.holdout(ids, labels, 0.25, seed)
    part = splits.inner(split, ids, labels)
    order = list(range(len(ids)))
    random.shuffle(order)
    ids2, labels2 = [ids[i] for i in order], labels[order]
    other = splits.holdout(ids2, labels2, 0.25, seed)
    assert {ids2[i] for i in other.test} == {ids[i] for i in split.test}
    assert other == split
    assert splits.inner(other, ids2, labels2) == part


def test_seeds_draw_differently():
    ids, labels = samples([50, 50])
    digests = {splits.holdout(ids, labels, 0.2, seed).digest for seed in range(20)}
    assert len(digests) == 20


def test_the_draw_is_even():
    """Over many seeds every sample is held out about as often as its share says."""
    ids, labels = samples([20, 20])
    times = np.zeros(40)
    for seed in range(400):
        times[splits.holdout(ids, labels, 0.25, seed).test] += 1
    assert times.sum() == 400 * 10
    assert 65 < times.min() <= times.max() < 135  # 100 expected, deviation 8.7


def test_a_larger_share_holds_out_the_same_and_more():
    ids, labels = samples([100, 100])
    small, large = (set(splits.holdout(ids, labels, s).test.tolist()) for s in (0.2, 0.5))
    assert small < large


def test_digest_is_the_documented_text():
    ids, train, test = ["b", "a", "é", "c"], np.array([0, 3]), np.array([1, 2])
    text = '{"test":["a","\\u00e9"],"train":["b","c"]}'
    assert splits.digest_of(ids, train, test) == hashlib.sha256(text.encode()).hexdigest()


def test_samples_without_a_label_are_in_no_part():
    ids, labels = samples([20, 20])
    labels[[3, 17]] = -1
    split = splits.holdout(ids, labels, 0.2)
    assert not {3, 17} & {*split.train, *split.test}
    assert len(split.train) + len(split.test) == 38


def test_shares_are_taken_as_typed():
    """0.15 of 10 is one and a half, though 0.15 in binary is a little less: no class loses by the last bit."""
    ids, labels = samples([10, 10, 10, 10])
    split = splits.holdout(ids, labels, 0.15)
    assert per_class(labels, split.test, 4) == [2, 2, 1, 1]


@pytest.mark.parametrize("share", [0, 1, 1.5, -0.2, float("nan"), float("inf")])
def test_share_must_be_a_share(share):
    ids, labels = samples([10, 10])
    with pytest.raises(
        InputError, match=r"^--split must lie between 0 and 1 \(the held-out share\), got"
    ):
        splits.holdout(ids, labels, share)


@pytest.mark.parametrize(("size", "said"), [(1, "1 labelled sample,"), (0, "0 labelled samples,")])
def test_a_class_too_small_is_named(size, said):
    ids, labels = samples([10, size, 10])
    with pytest.raises(InputError, match=f"class 'Forest' has {said}.*at least 2"):
        splits.holdout(ids, labels, 0.2, classes=["River", "Forest", "Crop"])


def test_a_share_that_cannot_hold_every_class_says_which_can():
    ids, labels = samples([10] * 10)
    with pytest.raises(
        InputError, match=r"holds out 5, .*the 10 classes: choose a share from 0.1 to 0.9"
    ):
        splits.holdout(ids, labels, 0.05)
    assert len(splits.holdout(ids, labels, 0.1).test) == 10


def test_ids_must_be_unique_and_as_many_as_labels():
    with pytest.raises(InputError, match="unique, but 'a' occurs"):
        splits.holdout(["b", "a", "c", "a"], [0, 0, 1, 1], 0.5)
    with pytest.raises(InputError, match="labels must be 4 integers"):
        splits.holdout(["a", "b", "c", "d"], [0, 0, 1], 0.5)
    with pytest.raises(InputError, match="labels must be 4 integers"):
        splits.holdout(["a", "b", "c", "d"], [0.0, 0.0, 1.0, 1.0], 0.5)


def test_labels_must_have_names():
    ids, labels = samples([4, 4, 4])
    with pytest.raises(InputError, match="below the number of classes, 2, got 2"):
        splits.holdout(ids, labels, 0.5, classes=["a", "b"])


def test_the_validation_part_lies_within_the_training_part():
    ids, labels = samples([50, 70, 30])
    split = splits.holdout(ids, labels, 0.2, seed=3)
    part = splits.inner(split, ids, labels)
    assert sorted([*part.train, *part.test]) == split.train.tolist()
    assert per_class(labels, part.test, 3) == [8, 11, 5]
    assert (part.name, part.seed) == ("validation", 3)


def test_the_validation_part_is_drawn_anew():
    """It must not be those who nearly were held out."""
    ids, labels = samples([200, 200])
    fifth = splits.holdout(ids, labels, 0.2)
    next_in_line = set(splits.holdout(ids, labels, 0.36).test.tolist()) - set(fifth.test.tolist())
    validation = set(splits.inner(fifth, ids, labels).test.tolist())
    assert len(next_in_line) == len(validation) == 64
    assert len(next_in_line & validation) < 32


def test_few_samples_still_give_every_class_a_validation_sample():
    ids, labels = samples([4] * 6)
    split = splits.holdout(ids, labels, 0.25)
    part = splits.inner(split, ids, labels)  # a fifth of 18 is 4, for 6 classes
    assert per_class(labels, part.test, 6) == [1] * 6


def test_a_training_part_too_small_to_cut_is_named():
    ids, labels = samples([2, 10])
    split = splits.holdout(ids, labels, 0.25)
    with pytest.raises(InputError, match="class 'Forest' has 1 training sample beside"):
        splits.inner(split, ids, labels, classes=["Forest", "River"])
