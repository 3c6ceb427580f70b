"""Who is held out hangs on ids, labels and seed; every class is in every part."""

import hashlib

import msgspec
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


def scenes(sizes):
    """Ids and groups of scenes with the given numbers of images, scenes mixed."""
    ids, scene = samples(sizes)
    return ids, [f"scene{s}" for s in scene]


def members(groups, rows):
    return {groups[i] for i in rows}


def in_another_order(random, *columns):
    order = list(range(len(columns[0])))
    random.shuffle(order)
    return [[column[i] for i in order] for column in columns]


GROUP_SIZES = st.lists(st.integers(1, 12), min_size=3, max_size=9)
SHARES = st.floats(0.001, 0.999)


def test_stored_runs_keep_their_digests():
    ids, labels = [f"c/{i}.png" for i in range(40)], np.arange(40) % 4
    split = splits.holdout(ids, labels, 0.2, 3)
    assert split.test.tolist() == [8, 11, 18, 22, 29, 32, 37, 39]
    assert split.digest.startswith("a5ae5dcf7d784bf5")
    assert splits.inner(split, ids, labels).digest.startswith("da0f22d80775a425")


@given(GROUP_SIZES, SHARES, st.integers(0, 99), st.randoms(use_true_random=False))
def test_groups_are_never_torn(sizes, share, seed, random):
    ids, groups = scenes(sizes)
    usable = np.array([random.random() < 0.9 for _ in ids])
    here = members(groups, np.flatnonzero(usable))
    if len(here) < 2:
        return
    split = splits.holdout(ids, None, share, seed, groups=groups, usable=usable)
    assert split == splits.holdout(ids, None, share, seed, groups=groups, usable=usable)
    assert sorted([*split.train, *split.test]) == np.flatnonzero(usable).tolist()
    out, left = members(groups, split.test), members(groups, split.train)
    assert out
    assert left
    assert not out & left
    ids2, groups2, usable2 = in_another_order(random, ids, groups, usable)
    other = splits.holdout(ids2, None, share, seed, groups=groups2, usable=usable2)
    assert other == split
    if len(left) < 2:
        return
    part = splits.inner(split, ids, None, groups=groups)
    assert sorted([*part.train, *part.test]) == split.train.tolist()
    assert not members(groups, part.test) & members(groups, part.train)
    assert len(part.test)
    assert len(part.train)
    assert splits.inner(other, ids2, None, groups=groups2) == part


@given(GROUP_SIZES, SHARES, st.integers(0, 99))
def test_as_many_groups_are_held_out_as_come_closest(sizes, share, seed):
    ids, groups = scenes(sizes)
    split = splits.holdout(ids, None, share, seed, groups=groups)

    def rank(group):
        return hashlib.sha256(f"samtl grouped {seed}\n{group}".encode()).digest()

    ranked = sorted(set(groups), key=rank)
    assert members(groups, split.test) == set(ranked[: len(members(groups, split.test))])
    wanted = share * len(ids)
    possible = [sum(g in ranked[:n] for g in groups) for n in range(1, len(ranked))]
    assert abs(len(split.test) - wanted) <= min(abs(n - wanted) for n in possible) + 1e-9


def test_between_two_that_are_as_close_the_fewer_groups_are_held_out():
    ids, groups = scenes([10, 10, 10, 10])
    split = splits.holdout(ids, None, 0.375, groups=groups)  # 15: 10 or 20
    assert len(split.test) == 10


def test_a_grouped_split_says_so():
    ids, groups = scenes([5] * 6)
    split = splits.holdout(ids, None, 0.3, 4, groups=groups)
    assert (split.name, split.share, split.seed) == ("grouped", 0.3, 4)
    assert len(split.test) == 10
    part = splits.inner(split, ids, None, 0.25, groups=groups)
    assert (part.name, part.share, part.seed) == ("validation", 0.25, 4)
    assert len(part.test) == 5
    with pytest.raises(ValueError, match="read-only"):
        split.test[0] = 0


def test_labels_do_not_change_which_groups_are_held_out():
    ids, groups = scenes([8] * 5)
    labels = np.array([int(i.split("/")[1].split(".")[0]) % 2 for i in ids])
    split = splits.holdout(ids, labels, 0.2, groups=groups, classes=["a", "b"])
    assert split == splits.holdout(ids, None, 0.2, groups=groups)
    labels[split.test[0]] = -1
    less = splits.holdout(ids, labels, 0.2, groups=groups)
    assert less.test.tolist() == split.test[1:].tolist()


def test_a_class_that_whole_groups_leave_out_is_named():
    ids, groups = scenes([8] * 5)
    free = splits.holdout(ids, None, 0.2, groups=groups)
    (out,) = members(groups, free.test)
    names = ["River", "Forest"]
    both = np.arange(40) // 5 % 2  # each of the five groups has both
    held = np.array([g == out for g in groups])
    with pytest.raises(
        InputError, match=r"class 'Forest' has no held-out samples .* in 4 of 5 groups.*--seed"
    ):
        splits.holdout(ids, np.where(held, 0, both), 0.2, groups=groups, classes=names)
    with pytest.raises(InputError, match=r"class '1' has no training samples .* in 1 of 5 groups"):
        splits.holdout(ids, np.where(held, both, 0), 0.2, groups=groups)
    split = splits.holdout(ids, both, 0.2, groups=groups, classes=names)
    (next_out,) = members(groups, splits.inner(split, ids, both, groups=groups).test)
    labels = np.where([g == next_out for g in groups], 1, both)
    with pytest.raises(InputError, match=r"'River' has no validation samples .* in 3 of 4 groups"):
        splits.inner(split, ids, labels, groups=groups, classes=names)


@pytest.mark.parametrize("labelled", [True, False])
def test_too_few_groups_are_counted(labelled):
    ids, labels = samples([6, 6])
    truth = labels if labelled else None
    with pytest.raises(InputError, match=r"at least 2 groups .*, got 1, 'all'"):
        splits.holdout(ids, truth, 0.5, groups=["all"] * 12)
    groups = [str(int(i.split("/")[1].split(".")[0]) % 2) for i in ids]
    split = splits.holdout(ids, None, 0.5, groups=groups)
    left = groups[split.train[0]]
    with pytest.raises(InputError, match=f"at least 3 groups are needed in all .* has 1, '{left}'"):
        splits.inner(split, ids, None, groups=groups)


def test_every_row_needs_its_group():
    ids, groups = scenes([4, 4])
    with pytest.raises(InputError, match="the group of each of 8 samples, got 0"):
        splits.holdout(ids, None, 0.5, groups=())
    split = splits.holdout(ids, None, 0.5, groups=groups)
    with pytest.raises(InputError, match="the group of each of 8 samples, got 7"):
        splits.inner(split, ids, None, groups=groups[1:])


@given(st.integers(2, 60), SHARES, st.integers(0, 99))
def test_without_labels_all_samples_are_one_class(n, share, seed):
    ids = [f"{i}.png" for i in range(n)]
    try:
        split = splits.holdout(ids, None, share, seed, classes=["background", "road"])
    except InputError:
        assert not 1 < share * n < n - 1
        return
    assert split == splits.holdout(ids, np.zeros(n, dtype=int), share, seed)
    assert sorted([*split.train, *split.test]) == list(range(n))
    if len(split.train) > 1:
        part = splits.inner(split, ids, None, classes=["background", "road"])
        assert sorted([*part.train, *part.test]) == split.train.tolist()
        assert 1 <= len(part.test) < len(split.train)


def test_rows_that_cannot_be_used_are_in_no_part():
    ids, labels = samples([20, 20])
    usable = np.ones(40, dtype=bool)
    usable[[3, 17]] = False
    for truth in (labels, None):
        split = splits.holdout(ids, truth, 0.2, usable=usable)
        assert not {3, 17} & {*split.train, *split.test}
        assert len(split.train) + len(split.test) == 38
    hidden = np.where(usable, labels, -1)
    assert splits.holdout(ids, labels, 0.2, usable=usable) == splits.holdout(ids, hidden, 0.2)


def test_too_few_samples_are_counted():
    with pytest.raises(InputError, match=r"at least 2 samples .*, got 1 of 3"):
        splits.holdout(["a", "b", "c"], None, 0.5, usable=[False, True, False])
    with pytest.raises(InputError, match=r"at least 2 samples .*, got 0 of 2"):
        splits.holdout(["a", "b"], [-1, -1], 0.5)
    split = splits.holdout(["a", "b"], None, 0.5)
    with pytest.raises(InputError, match=r"training part needs at least 2 samples .*, got 1"):
        splits.inner(split, ["a", "b"], None)
    with pytest.raises(InputError, match=r"holds out 0, .* empty: choose a share from 0.1 to 0.9"):
        splits.holdout([str(i) for i in range(10)], None, 0.01)


@pytest.mark.parametrize("usable", [[True], [1, 1], [[True, True]]])
def test_usable_must_be_a_row_of_booleans(usable):
    with pytest.raises(InputError, match="usable must be 2 booleans"):
        splits.holdout(["a", "b"], None, 0.5, usable=usable)


def test_a_shipped_split_is_taken_as_it_is():
    parts = ["train", "test", "validation", "train", "train", "test", "train", "test"]
    ids = [f"{i}.bmp" for i in range(8)]
    split, part = splits.shipped(ids, parts, usable=[True] * 7 + [False], classes=["a", "b"])
    assert split.test.tolist() == [1, 5]
    assert split.train.tolist() == [0, 2, 3, 4, 6]
    assert part.test.tolist() == [2]
    assert part.train.tolist() == [0, 3, 4, 6]
    assert (split.name, split.share, split.seed) == ("shipped", 2 / 7, 0)
    assert (part.name, part.share, part.seed) == ("validation", 1 / 5, 0)
    assert split.digest == splits.digest_of(ids, split.train, split.test)
    assert part.digest == splits.digest_of(ids, part.train, part.test)
    with pytest.raises(ValueError, match="read-only"):
        part.train[0] = 1


@given(st.lists(st.sampled_from(splits.PARTS), max_size=20), st.randoms(use_true_random=False))
def test_a_shipped_split_covers_every_row_in_any_order(more, random):
    parts = [*splits.PARTS, *more]
    ids = [f"{i}.bmp" for i in range(len(parts))]
    split, part = splits.shipped(ids, parts)
    assert sorted([*part.train, *part.test, *split.test]) == list(range(len(ids)))
    for rows, name in zip((part.train, part.test, split.test), splits.PARTS, strict=True):
        assert {parts[i] for i in rows} == {name}
    ids2, parts2 = in_another_order(random, ids, parts)
    assert splits.shipped(ids2, parts2) == (split, part)


@pytest.mark.parametrize(
    ("parts", "labels", "said"),
    [
        (["train", "train", "test"], None, "got 2 in train, 0 in validation, 1 in test: .*--split"),
        (["train", "val", "test"], None, "one of train, validation, test, got 'val'"),
        (["train", "test"], None, "of each of 3 samples, got 2"),
        (["train", "validation", "test"], [0, -1, 0], "0 in validation"),
        (
            ["train", "validation", "test"],
            [0, 0, 1],
            "class 'Lake' has no test samples in the shipped",
        ),
        (["train", "validation", "test"], [0, 0, 0], "class 'River' has no train samples in the"),
        (["train", "validation", "test"], [0, 0, 2], "below the number of classes, 2, got 2"),
    ],
)
def test_a_shipped_split_must_be_whole(parts, labels, said):
    with pytest.raises(InputError, match=said):
        splits.shipped(["a", "b", "c"], parts, labels, classes=["Lake", "River"])


record = splits.record_of


@given(st.lists(st.integers(4, 12), min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_a_recorded_split_is_found_again_in_any_order(sizes, random):
    ids, labels = samples(sizes)
    labels[0] = -1
    split = splits.holdout(ids, labels, 0.4, 5)
    part = splits.inner(split, ids, labels)
    kept = record(ids, split, part)
    assert splits.from_record(ids, kept) == (split, part)
    (ids2,) = in_another_order(random, ids)
    again, inner = splits.from_record(ids2, kept)
    assert (again, inner) == (split, part)
    assert {ids2[i] for i in inner.train} == {ids[i] for i in part.train}
    assert sorted([*inner.train, *inner.test]) == again.train.tolist()


def test_a_recorded_split_keeps_its_validation_share():
    ids = [f"{i}.bmp" for i in range(9)]
    split, part = splits.shipped(ids, ["train", "test", "validation"] * 3)
    found = splits.from_record(ids, record(ids, split, part))
    assert found == (split, part)


def test_a_recorded_split_of_other_samples_is_refused():
    ids, labels = samples([10, 10])
    split = splits.holdout(ids, labels, 0.2)
    kept = record(ids, split, splits.inner(split, ids, labels))
    fewer = [i for i in ids if i not in kept.held_out[:2]]
    with pytest.raises(
        InputError, match=f"2 of the 7 .* not here, the first is '{kept.held_out[0]}'"
    ):
        splits.from_record(fewer, kept)
    with pytest.raises(InputError, match="the 17 left to train and validate on are not those"):
        splits.from_record([*ids, "new.jpg"], kept)
    gone = ids[splits.inner(split, ids, labels).train[0]]
    with pytest.raises(InputError, match="the 15 left to train and validate on are not those"):
        splits.from_record([i for i in ids if i != gone], kept)
    twice = msgspec.structs.replace(kept, validation=kept.held_out)
    with pytest.raises(InputError, match=f"'{kept.held_out[0]}' is listed more than once"):
        splits.from_record(ids, twice)


@given(
    sizes=st.lists(st.integers(5, 20), min_size=1, max_size=5),
    folds=st.integers(2, 5),
    seed=st.integers(0, 99),
    random=st.randoms(use_true_random=False),
)
def test_every_sample_is_in_one_fold(sizes, folds, seed, random):
    ids, labels = samples(sizes)
    made = [splits.fold(ids, labels, i, folds, seed) for i in range(1, folds + 1)]
    assert sorted(np.concatenate([split.test for split in made])) == list(range(len(ids)))
    for split in made:
        assert sorted([*split.train, *split.test]) == list(range(len(ids)))
        assert (split.name, split.share, split.seed) == ("fold", 1 / folds, seed)
    counts = np.array([per_class(labels, split.test, len(sizes)) for split in made])
    assert np.ptp(counts, axis=0).max() <= 1
    assert np.ptp(counts.sum(1)) <= 1
    ids2, labels2 = in_another_order(random, ids, labels)
    assert [splits.fold(ids2, labels2, i, folds, seed) for i in range(1, folds + 1)] == made


def test_folds_are_drawn_anew_by_each_seed_and_can_be_cut():
    ids, labels = samples([20, 30])
    assert len({splits.fold(ids, labels, 1, 5, seed).digest for seed in range(9)}) == 9
    fold = splits.fold(ids, labels, 1, 5)
    part = splits.inner(fold, ids, labels)
    assert sorted([*part.train, *part.test]) == fold.train.tolist()
    assert per_class(labels, part.test, 2) == [3, 5]


@given(GROUP_SIZES, st.integers(0, 99), st.randoms(use_true_random=False))
def test_folds_of_groups_tear_none_and_are_as_large(sizes, seed, random):
    ids, groups = scenes(sizes)
    usable = np.arange(len(ids)) % 7 != 3
    if len(members(groups, np.flatnonzero(usable))) < 3:
        return
    made = [splits.fold(ids, None, i, 3, seed, groups=groups, usable=usable) for i in range(1, 4)]
    held = [members(groups, split.test) for split in made]
    assert all(held)
    assert sum(map(len, held)) == len(set().union(*held))
    assert sorted(np.concatenate([split.test for split in made])) == np.flatnonzero(usable).tolist()
    assert np.ptp([len(split.test) for split in made]) <= max(sizes)
    assert {split.name for split in made} == {"grouped-fold"}
    ids2, groups2, usable2 = in_another_order(random, ids, groups, usable)
    assert made[1] == splits.fold(ids2, None, 2, 3, seed, groups=groups2, usable=usable2)


@pytest.mark.parametrize(
    ("which", "folds", "more", "said"),
    [
        (0, 5, {}, "I from 1 to K, got I = 0, K = 5"),
        (3, 2, {}, "got I = 3, K = 2"),
        (1, 1, {}, "K from 2"),
        (1, 30, {}, "30 folds need at least 30 samples that can be used, got 16 of 16"),
        (1, 7, {}, "7 samples of each class, and class 'Lake' has 6"),
        (1, 5, {"groups": ["a", "b", "c", "d"] * 4}, "at least 5 groups, got 4"),
        (1, 2, {"groups": ["a"] * 8 + ["b"] * 8}, "class 'Lake' has no .* where groups stay whole"),
    ],
)
def test_folds_that_cannot_be_are_refused(which, folds, more, said):
    ids = [f"{i}.png" for i in range(16)]
    labels = np.array([0] * 6 + [1] * 10)
    with pytest.raises(InputError, match=said):
        splits.fold(ids, labels, which, folds, classes=["Lake", "River"], **more)


def test_a_recorded_split_needs_its_parts():
    ids, labels = samples([10, 10])
    split = splits.holdout(ids, labels, 0.2)
    kept = msgspec.structs.replace(
        record(ids, split, splits.inner(split, ids, labels)), validation=[]
    )
    with pytest.raises(InputError, match="for validation and held out, got 16, 0 and 4"):
        splits.from_record(ids, kept)
