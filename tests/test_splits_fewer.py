"""Fewer labels are some of more labels, part by part, and what is held out stays."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from samtl import splits
from samtl.errors import InputError

SIZES = st.lists(st.integers(6, 40), min_size=1, max_size=5)
SEEDS = st.integers(0, 99)


def drawn(sizes, seed=0, share=0.25, labelled=True):
    """Ids, labels, and a split with its validation part."""
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(len(sizes)), sizes))
    ids = [f"{label}/{i}.jpg" for i, label in enumerate(labels)]
    truth = labels if labelled else None
    outer = splits.holdout(ids, truth, share, seed)
    return ids, truth, outer, splits.inner(outer, ids, truth)


def inside(small, large):
    """Whether each part of a split lies in that of the other."""
    return all(
        set(a.tolist()) <= set(b.tolist())
        for a, b in (
            (small[0].train, large[0].train),
            (small[1].train, large[1].train),
            (small[1].test, large[1].test),
        )
    )


@given(SIZES, SEEDS, st.lists(st.floats(0.01, 1), min_size=2, max_size=4), st.booleans())
def test_a_smaller_part_is_inside_a_larger_one(sizes, seed, shares, labelled):
    ids, labels, outer, inner = drawn(sizes, seed, labelled=labelled)
    made = [
        splits.fewer(outer, inner, ids, labels, share, seed) for share in [*sorted(shares), 1.0]
    ]
    for small, large in itertools.pairwise(made):
        assert inside(small, large)
    for share, (split, part) in zip(sorted(shares), made, strict=False):
        assert split.test.tolist() == outer.test.tolist()
        assert sorted([*part.train, *part.test]) == split.train.tolist()
        k = len(sizes) if labelled else 1
        for kept, whole in ((part.train, inner.train), (part.test, inner.test)):
            assert len(kept) == max(int(share * len(whole) + 0.5), k) or (
                abs(share * len(whole) % 1 - 0.5) < 1e-9
            )
    split, part = made[-1]
    assert (split.train.tolist(), part.test.tolist()) == (outer.train.tolist(), inner.test.tolist())


@given(st.integers(1, 9), SEEDS)
def test_every_class_keeps_the_same_part(tenths, seed):
    ids, labels, outer, inner = drawn([80, 120, 200], seed)
    _, part = splits.fewer(outer, inner, ids, labels, tenths / 10, seed)
    for kept, whole in ((part.train, inner.train), (part.test, inner.test)):
        counts, all_of = (np.bincount(labels[rows], minlength=3) for rows in (kept, whole))
        np.testing.assert_allclose(counts, all_of * tenths / 10, atol=1)


def test_little_is_left_of_no_class():
    ids, labels, outer, inner = drawn([10, 500])
    split, part = splits.fewer(outer, inner, ids, labels, 0.001, 0)
    assert np.bincount(labels[part.train]).tolist() == [1, 1]
    assert np.bincount(labels[part.test]).tolist() == [1, 1]
    assert (split.name, split.share, part.name, part.share) == ("label", 0.25, "validation", 0.2)


@given(SEEDS, st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(seed, random):
    ids, labels, outer, inner = drawn([20, 30], seed)
    order = list(range(len(ids)))
    random.shuffle(order)
    ids2, labels2 = [ids[i] for i in order], labels[order]
    outer2 = splits.holdout(ids2, labels2, 0.25, seed)
    inner2 = splits.inner(outer2, ids2, labels2)
    for cut, n in ((splits.fewer, 0.3), (splits.shots, 5)):
        assert cut(outer, inner, ids, labels, n, seed) == cut(
            outer2, inner2, ids2, labels2, n, seed
        )


@given(st.lists(st.integers(1, 12), min_size=3, max_size=9), SEEDS, st.booleans())
def test_groups_are_kept_whole(sizes, seed, labelled):
    groups = [f"scene{i}" for i, n in enumerate(sizes) for _ in range(2 * n)]
    ids = [f"{i}.png" for i in range(len(groups))]
    labels = np.arange(len(ids)) % 2 if labelled else None  # both are in each group
    outer = splits.holdout(ids, labels, 0.3, seed, groups=groups)
    if len({groups[i] for i in outer.train}) < 2:
        return
    inner = splits.inner(outer, ids, labels, groups=groups)
    shares = (0.01, 0.3, 0.6, 1.0)
    made = [splits.fewer(outer, inner, ids, labels, s, seed, groups=groups) for s in shares]
    for small, large in itertools.pairwise(made):
        assert inside(small, large)
    for split, part in made:
        assert split.name == "grouped-label"
        kept = {groups[i] for i in split.train}
        assert split.train.tolist() == [i for i in outer.train.tolist() if groups[i] in kept]
        assert len(part.train) > 0
        assert len(part.test) > 0
    assert made[-1][0].train.tolist() == outer.train.tolist()


def test_groups_are_kept_until_every_class_is_there():
    groups = [f"scene{i}" for i in range(12) for _ in range(5)]
    ids = [f"{i}.png" for i in range(60)]
    for seed in range(20):
        outer = splits.holdout(ids, None, 0.25, seed, groups=groups)
        inner = splits.inner(outer, ids, None, 0.3, groups=groups)
        labels = np.zeros(60, dtype=int)
        for part in (inner.train, inner.test):
            last = sorted({groups[i] for i in part})[-1]
            labels[[i for i in part if groups[i] == last]] = 1
        _, part = splits.fewer(outer, inner, ids, labels, 0.01, seed, groups=groups)
        assert set(labels[part.train]) == set(labels[part.test]) == {0, 1}


@given(SEEDS, st.booleans())
def test_few_shots_are_inside_more_and_inside_fractions(seed, labelled):
    ids, labels, outer, inner = drawn([40, 60, 50], seed, labelled=labelled)
    made = [splits.shots(outer, inner, ids, labels, count, seed) for count in (2, 3, 5, 8, 10, 25)]
    for small, large in itertools.pairwise(made):
        assert inside(small, large)
    truth = np.zeros(150, dtype=int) if labels is None else labels
    for count, (split, part) in zip((2, 3, 5, 8, 10, 25), made, strict=True):
        assert set(np.bincount(truth[split.train]).tolist()) == {count}
        validating = max(1, int(count / 5 + 0.5))
        assert set(np.bincount(truth[part.test]).tolist()) == {validating}
        assert (split.test.tolist(), split.name) == (outer.test.tolist(), "shots")
    assert inside(made[0], splits.fewer(outer, inner, ids, labels, 0.5, seed))


def test_what_was_given_keeps_its_name_and_is_drawn_by_the_seed():
    ids = [f"{i}.png" for i in range(60)]
    outer, inner = splits.shipped(ids, [splits.PARTS[i % 3] for i in range(60)])
    made = [splits.fewer(outer, inner, ids, None, 0.5, seed)[0] for seed in range(5)]
    assert {split.name for split in made} == {"shipped-label"}
    assert len({split.digest for split in made}) == 5
    assert splits.shots(outer, inner, ids, None, 5, 0)[0].name == "shipped-shots"


@pytest.mark.parametrize("share", [0.0, -1.0, 1.01, float("nan")])
def test_a_part_must_be_one(share):
    ids, labels, outer, inner = drawn([10, 10])
    with pytest.raises(InputError, match="above 0 and up to 1, got"):
        splits.fewer(outer, inner, ids, labels, share, 0)


def test_shots_that_are_not_there_are_counted():
    ids, labels, outer, inner = drawn([10, 40])
    names = ["Lake", "River"]
    with pytest.raises(InputError, match=r"K from 2 .* one to validate.*, got 1"):
        splits.shots(outer, inner, ids, labels, 1, 0, names)
    with pytest.raises(InputError, match="needs 8 samples of class 'Lake' to train on, and 6 of"):
        splits.shots(outer, inner, ids, labels, 10, 0, names)
    with pytest.raises(InputError, match="needs 80 samples to train on, and 30 of"):
        splits.shots(outer, inner, ids, None, 100, 0, names)
    lacking = np.setdiff1d(np.arange(50), inner.test[labels[inner.test] == 0])
    with pytest.raises(InputError, match="needs 1 samples of class 'Lake' to validate, and 0 of"):
        splits.shots(
            outer,
            splits.Split(
                inner.train, np.intersect1d(inner.test, lacking), "validation", 0.2, 0, ""
            ),
            ids,
            labels,
            5,
            0,
            names,
        )
