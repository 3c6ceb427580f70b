"""Laws of every split: whole, of all classes or whole groups, and the same whatever the order of rows."""

import hashlib
import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toys import samples_of

from samtl import splits
from samtl.errors import InputError
from samtl.splits import PARTS, parse, select

SEEDS = st.integers(0, 99)
SHARES = st.floats(0.01, 0.99).map(lambda share: round(share, 3))


def mixed(sizes):
    """Samples of classes of the given sizes, in no order."""
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(len(sizes)), sizes))
    return samples_of([f"{label}/{i}.jpg" for i, label in enumerate(labels)], labels)


def scenes(sizes, classes=1):
    """Samples of groups of the given sizes; each group has all classes."""
    groups = [f"scene{i}" for i, size in enumerate(sizes) for _ in range(classes * size)]
    ids = [f"{i}.png" for i in range(len(groups))]
    return samples_of(ids, np.arange(len(ids)) % classes if classes > 1 else None, groups=groups)


@st.composite
def described(draw):
    """Samples for either task, in groups or not, some of them unusable, some with the same image."""
    n = 10 * draw(st.integers(6, 12))
    labels = np.arange(n) % 3 if draw(st.booleans()) else None
    groups = [f"scene{i // 5}" for i in range(n)] if draw(st.booleans()) else ()
    parts = [PARTS[i // 3 % 3] for i in range(n)]
    alike = draw(st.sampled_from([1, 2, 7]))  # of 7, some have another label
    images = tuple(f"sha256 of {max(i % 11 and i, i // alike)}" for i in range(n))
    made = samples_of([f"{i:03d}.jpg" for i in range(n)], labels, groups=groups, parts=parts)
    usable = np.arange(n) % 23 != draw(st.integers(0, 23))
    return replace(made, usable=usable, images=images if alike > 1 else ())


def reordered(samples, order):
    columns = {
        name: tuple(getattr(samples, name)[i] for i in order) if getattr(samples, name) else ()
        for name in ("ids", "groups", "parts", "images")
    }
    return replace(samples, **columns, labels=samples.labels[order], usable=samples.usable[order])


def counts(samples, rows):
    return np.bincount(samples.truth[rows], minlength=samples.truth.max() + 1).tolist()


def parts_of(split):
    return [split.test, split.validation, split.train]


DRAWN = ["0.2", "0.45", "fold:2/3", "label:0.5@0.3", "label:0.2@fold:1/3", "shots:4@0.3"]


@given(described(), st.sampled_from([*DRAWN, "shipped", "shots:3@shipped"]), SEEDS, st.data())
def test_laws(samples, spec, seed, data):
    spec = parse(spec)
    split = select(samples, spec, seed)
    parts = parts_of(split)
    rows = np.concatenate(parts)
    assert len(np.unique(rows)) == len(rows)
    assert samples.usable[rows].all()
    assert sorted([*split.train, *split.validation]) == split.seen.tolist()
    assert split.fits(samples)
    assert not replace(split, train=split.validation, validation=split.train).fits(samples)
    if spec.base is None:
        assert len(rows) == samples.usable.sum()
    for part in parts:
        assert part.dtype == np.int64
        assert (np.diff(part) > 0).all()
        assert min(counts(samples, part)) > 0
        with pytest.raises(ValueError, match="read-only"):
            part[0] = 0
    if samples.groups and spec.draws:
        members = [{samples.groups[i] for i in part} for part in parts]
        assert len(set.union(*members)) == sum(map(len, members))
    if spec.draws:
        images = [{samples.image[i] for i in part} for part in parts]
        assert len(set.union(*images)) == sum(map(len, images))
        assert split.copies_held_out(samples) == 0
    assert splits.leaks(split.name) == (spec.draws and not samples.groups)

    moved = reordered(samples, data.draw(st.permutations(range(len(samples.ids)))))
    other = select(moved, spec, seed)
    assert other == split
    assert other.fits(moved)
    for one, same in zip(parts, parts_of(other), strict=True):
        assert {samples.ids[i] for i in one} == {moved.ids[i] for i in same}


@pytest.mark.parametrize(
    ("labelled", "grouped", "spec", "name", "digest", "of_validation"),
    [
        (True, False, "0.55", "holdout", "d2838c8811", "fe0584c17c"),
        (True, False, "fold:2/5", "fold", "aaee516d0d", "2b21975ecf"),
        (True, False, "label:0.5@0.2", "label", "d9d5b299f2", "794be6049c"),
        (True, False, "label:0.35@fold:1/3", "fold-label", "461177180e", "0f44e616e9"),
        (True, False, "shots:4@0.2", "shots", "15c069770f", "7f45516eca"),
        (True, True, "0.2", "grouped", "1a641657d5", "c2aba78fba"),
        (True, True, "fold:2/5", "grouped-fold", "de7c0b7da6", "238e5184f5"),
        (True, True, "label:0.5@0.2", "grouped-label", "42e87de60a", "33cfb0f78f"),
        (False, False, "0.55", "holdout", "354b1637c1", "c908a1741c"),
        (False, False, "shots:3@shipped", "shipped-shots", "9704e6fbc9", "4b01db2d99"),
        (False, True, "shipped", "shipped", "c277efba7e", "67f904f4e0"),
    ],
)
def test_who_is_held_out_never_changes(labelled, grouped, spec, name, digest, of_validation):
    samples = samples_of(
        [f"{'abc'[i % 3]}/{i:03d}.jpg" for i in range(60)],
        np.arange(60) % 3 if labelled else None,
        groups=[f"scene{i // 6}" for i in range(60)] if grouped else (),
        parts=[PARTS[i // 3 % 3] for i in range(60)],
    )
    samples = replace(samples, usable=np.arange(60) % 17 != 5)
    split = select(samples, parse(spec), 7)
    found = (split.name, split.digest[:10], split.validation_digest[:10])
    assert found == (name, digest, of_validation)


def test_the_digest_is_that_of_the_documented_text():
    ids, train, test = ["b", "a", "é", "c"], np.array([0, 3]), np.array([1, 2])
    text = '{"test":["a","\\u00e9"],"train":["b","c"]}'
    assert splits.digest_of(ids, train, test) == hashlib.sha256(text.encode()).hexdigest()


@given(st.lists(st.integers(2, 40), min_size=1, max_size=8), SHARES, SEEDS)
def test_a_share_is_rounded_and_in_every_class(sizes, share, seed):
    samples = mixed(sizes)
    n, k = sum(sizes), len(sizes)
    try:
        split = splits.holdout(samples, share, seed)
    except InputError:
        # Strictly inside is always possible if each class has 2 samples left to train and validate on.
        assert not k < int(share * n + 0.5) < n - k or min(sizes) * (1 - share) < 3
        return
    assert abs(len(split.test) - share * n) <= 0.5 + 1e-9
    for held, size in zip(counts(samples, split.test), sizes, strict=True):
        assert 1 <= held <= size - 1


def test_classes_are_held_out_alike():
    for sizes, share, held in (
        ([10, 11, 12], 0.2, [2, 2, 3]),  # 2, 2.2 and 2.4: largest remainder
        ([10, 10, 10, 10], 0.15, [2, 2, 1, 1]),  # 1.5 each, though 0.15 in binary is a little less
        ([3, 100, 97], 0.05, [1, 5, 4]),
    ):
        samples = mixed(sizes)
        assert counts(samples, splits.holdout(samples, share).test) == held


def test_the_validation_part_is_not_the_runners_up():
    samples = mixed([200, 200])
    fifth = splits.holdout(samples, 0.2)
    next_in_line = set(splits.holdout(samples, 0.36).test.tolist()) - set(fifth.test.tolist())
    validation = set(fifth.validation.tolist())
    assert len(next_in_line) == len(validation) == 64
    assert len(next_in_line & validation) < 32


@given(st.lists(st.integers(1, 12), min_size=3, max_size=9), SHARES, SEEDS)
def test_as_many_groups_are_held_out_as_come_closest(sizes, share, seed):
    samples = scenes(sizes)
    ranked = sorted(
        set(samples.groups),
        key=lambda group: hashlib.sha256(f"samtl grouped {seed}\n{group}".encode()).digest(),
    )
    wanted = share * len(samples.ids)
    possible = [sum(g in ranked[:n] for g in samples.groups) for n in range(1, len(ranked))]
    nearest = min(abs(n - wanted) for n in possible) + 1e-9
    try:
        split = splits.holdout(samples, share, seed)
    except InputError:  # the one group that is left is not divided to train and validate
        assert abs(possible[-1] - wanted) <= nearest
        return
    held = {samples.groups[i] for i in split.test}
    assert held == set(ranked[: len(held)])
    assert abs(len(split.test) - wanted) <= nearest


def test_a_class_that_whole_groups_leave_out_is_named():
    samples = scenes([4] * 5, classes=2)
    held = np.isin(np.arange(40), splits.holdout(samples, 0.2).test)
    for where, part in ((held, "held-out"), (~held, "training")):
        lacking = replace(samples, classes=("River", "Lake"), labels=samples.labels * ~where)
        with pytest.raises(InputError, match=rf"'Lake' has no {part} samples .* of 5 groups"):
            splits.holdout(lacking, 0.2)


@given(st.lists(st.integers(5, 20), min_size=1, max_size=5), st.integers(2, 5), SEEDS)
def test_every_sample_is_in_one_fold(sizes, folds, seed):
    samples = mixed(sizes)
    made = [splits.fold(samples, i, folds, seed) for i in range(1, folds + 1)]
    assert sorted(np.concatenate([split.test for split in made])) == list(range(sum(sizes)))
    held = np.array([counts(samples, split.test) for split in made])
    assert np.ptp(held, axis=0).max() <= 1
    assert np.ptp(held.sum(1)) <= 1
    assert {(split.name, split.share, split.seed) for split in made} == {("fold", 1 / folds, seed)}


def inside(small, large):
    """Whether each part of a split lies in that of the other, and the same samples are held out."""
    (held, *few), (as_held, *many) = (
        [set(part.tolist()) for part in parts_of(found)] for found in (small, large)
    )
    return held == as_held and all(a <= b for a, b in zip(few, many, strict=True))


@given(
    described(),
    st.sampled_from(["0.3", "fold:1/3", "shipped"]),
    SEEDS,
    st.lists(SHARES, max_size=3),
)
def test_fewer_labels_are_some_of_more(samples, base, seed, shares):
    whole = select(samples, parse(base), seed)
    specs = [f"label:{share}@{base}" for share in [*sorted(shares), 1.0]]
    made = [select(samples, parse(spec), seed) for spec in specs]
    assert all(inside(small, large) for small, large in itertools.pairwise(made))
    assert made[-1].validation_digest == whole.validation_digest
    if not (samples.groups and parse(base).draws):
        for share, found in zip(sorted(shares), made, strict=False):
            for kept, of in zip(parts_of(found)[1:], parts_of(whole)[1:], strict=True):
                few, many = (len(samples.distinct(rows)) for rows in (kept, of))
                assert abs(few - max(share * many, len(counts(samples, of)))) <= 0.5 + 1e-9


@given(st.booleans(), SEEDS)
def test_few_shots_are_inside_more_and_inside_fractions(labelled, seed):
    samples = mixed([40, 60, 50])
    samples = samples if labelled else samples_of(samples.ids)
    numbers = (2, 3, 5, 8, 10, 25)
    made = [select(samples, parse(f"shots:{n}@0.25"), seed) for n in numbers]
    assert all(inside(small, large) for small, large in itertools.pairwise(made))
    assert inside(made[0], select(samples, parse("label:0.5@0.25"), seed))
    for n, split in zip(numbers, made, strict=True):
        assert set(counts(samples, split.seen)) == {n}
        assert set(counts(samples, split.validation)) == {max(1, int(n / 5 + 0.5))}


def test_identical_images_are_drawn_as_one():
    """Whatever their labels say; the others are drawn as they were."""
    ids, labels = [f"{i}.png" for i in range(24)], [i % 2 for i in range(24)]
    images = [f"{i}" for i in range(24)]
    alone = samples_of(ids, labels)
    copied = samples_of([*ids, *(f"~{i}" for i in ids)], [*labels, *labels[1:], 0])
    copied = replace(copied, images=(*images, *images))
    for spec in ("0.25", "fold:2/3", "label:0.5@0.25"):
        one, both = (select(samples, parse(spec), 3) for samples in (alone, copied))
        for part, twice in zip(parts_of(one), parts_of(both), strict=True):
            assert sorted([*part, *(part + 24)]) == twice.tolist()
    few = select(copied, parse("shots:5@0.25"), 3)
    assert len(copied.distinct(few.seen)) == len(few.seen) == 10
    known = replace(copied, images=(*images, *[""] * 24))  # not embedded yet
    assert select(known, parse("0.25"), 3) == select(replace(copied, images=()), parse("0.25"), 3)
    listed = replace(copied, parts=("train",) * 22 + ("validation",) * 2 + ("test",) * 24)
    shipped = select(listed, parse("shipped"), 0)
    assert (len(shipped.test), shipped.copies_held_out(copied)) == (24, 24)
    with pytest.raises(InputError, match="of 24 different images holds out 0"):
        select(copied, parse("0.01"), 0)


def test_groups_with_an_image_in_common_stay_together():
    samples = scenes([4] * 6)
    images = [f"{i}" for i in range(24)]
    joined = replace(samples, images=(*images[:23], "0"))
    for seed in range(6):
        split = select(joined, parse("0.3"), seed)
        for part in parts_of(split):
            assert np.isin([0, 20], part).sum() in (0, 2)
    assert select(replace(samples, images=tuple(images)), parse("0.3"), 1) == select(
        samples, parse("0.3"), 1
    )
    every = tuple(f"{i % 4}" for i in range(24))  # six copies of one scene
    with pytest.raises(InputError, match="at least 2 groups without identical images"):
        select(replace(samples, images=every), parse("0.3"), 0)


@pytest.mark.parametrize("size", [4, 150])
def test_a_blank_tile_that_scenes_have_in_common_does_not_join_them(size):
    """Fault: no split was possible; copies of the tile are counted."""
    samples = scenes([size] * 6)
    black = [f"{i % size and i}" for i in range(6 * size)]  # the first of each scene
    white = [image if i % size != 1 or size == 4 else "1" for i, image in enumerate(black)]
    for spec in ("0.3", "fold:1/3", "label:0.5@0.3"):
        split = select(replace(samples, images=tuple(white)), parse(spec), 0)
        assert split == select(samples, parse(spec), 0)
    assert split.copies_held_out(replace(samples, images=tuple(white))) > 0
    white[5 * size + 2] = white[2]  # a picture that two scenes have in common
    split = select(replace(samples, images=tuple(white)), parse("0.3"), 0)
    for part in parts_of(split):
        assert np.isin([2, 5 * size + 2], part).sum() in (0, 2)


def test_a_sample_is_there_once():
    with pytest.raises(InputError, match="'a' more than once"):
        samples_of("baca", [0, 0, 1, 1])


LAKES = {"labels": [0] * 6 + [1] * 10, "classes": ["Lake", "River"]}


@pytest.mark.parametrize(
    ("about", "spec", "said"),
    [
        ({}, "0.01", r"holds out 0, .* empty: choose a share from 0\.0625 to 0\.875"),
        (LAKES, "0.05", r"2 classes: choose a share from 0\.125 to 0\.75"),
        ({"labels": [-1] * 16}, "0.5", "at least 2 samples that can be used, got 0"),
        ({"labels": [0, 0] + [2] * 14, "classes": "abc"}, "0.5", "'b', got 0"),
        ({"labels": [0, 0] + [1] * 14}, "0.5", "training part.* class '0', got 1"),
        ({"groups": ["all"] * 16}, "0.5", "at least 2 groups, got 1"),
        ({}, "fold:1/30", "30 folds .* 30 samples that can be used, got 16"),
        (LAKES, "fold:1/7", "7 samples of class 'Lake', got 6"),
        ({**LAKES, "groups": ["a"] * 6 + ["b"] * 10}, "fold:1/2", "'Lake' has no .* groups"),
        (LAKES, "shots:10@0.2", "needs 8 samples of class 'Lake' .*, got 4"),
        ({}, "shots:100@0.2", "needs 80 samples in .*, got 10"),
        ({}, "shipped", "does not come with a split"),
        ({}, "kfold:5", "5 splits: .* fold:1/5"),
        ({"parts": ["train", "validation"] * 8}, "shipped", "8 in train, 8 in validation, 0 in test"),
        ({"parts": ["train"] + ["test"] * 15}, "shipped", "training part, some of which"),
        ({"parts": ["train", "val"] * 8}, "shipped", "got 'val'"),
        ({**LAKES, "parts": [*PARTS] * 2 + ["train", "validation"] * 5}, "shipped", "'River' has no test"),
    ],
)  # fmt: skip
def test_samples_that_cannot_be_split_so_are_refused(about, spec, said):
    samples = samples_of([f"{i}.png" for i in range(16)], **about)
    with pytest.raises(InputError, match=said):
        select(samples, parse(spec), 0)


def test_a_shipped_split_without_a_validation_part_has_one_drawn_from_training():
    parts = ["train", "test"] * 8
    samples = samples_of([f"{i}.png" for i in range(16)], **LAKES, parts=parts)
    split = select(samples, parse("shipped"), 3)
    assert [parts[row] for row in split.test] == ["test"] * 8
    assert [parts[row] for row in split.seen] == ["train"] * 8
    assert len(split.validation) == 2
    assert {int(samples.labels[row]) for row in split.validation} == {0, 1}
    assert select(samples, parse("shipped"), 4).validation_digest == split.validation_digest
