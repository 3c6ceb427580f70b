"""What every dataset has in common: order, subsets, and finding one by its name; and generated ones."""

import hashlib
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_images_codecs import RGB
from zips import encoded

from samtl.datasets import Dataset, LeftOut, groups_by, only, resolve, shuffled, subset
from samtl.errors import InputError, UnknownName
from samtl.images.codecs import decode


def no_reading(sample_id):
    raise AssertionError("listing must read nothing")


def made(labels):
    ids = tuple(f"{label}/{i}.png" for i, label in enumerate(labels))
    parts = tuple("train" if i % 3 else "test" for i in range(len(ids)))
    return Dataset(
        "made", ("a", "b", "c"), ids, tuple(labels), no_reading, "a note", groups=ids, parts=parts
    )


MASKED = replace(made([-1, -1]), read_mask=no_reading)
ample = st.lists(st.integers(-1, 2), max_size=20).flatmap(
    lambda more: st.permutations([0, 1, 2] * 5 + more).map(made)
)
some = st.lists(st.integers(-1, 2), max_size=40).map(made)


def rows(dataset):
    return list(zip(dataset.sample_ids, dataset.labels, dataset.groups, dataset.parts, strict=True))


@given(some, st.data())
def test_the_order_is_that_of_the_sha256_of_ids(dataset, data):
    """Fixed for ever: stores are in this order."""
    expected = sorted(rows(dataset), key=lambda row: hashlib.sha256(row[0].encode()).digest())
    other = only(dataset, data.draw(st.permutations(dataset.sample_ids)))
    assert rows(shuffled(other)) == expected


@given(some, st.data())
def test_only_the_images_with_these_ids_in_this_order(dataset, data):
    ids = data.draw(st.permutations(dataset.sample_ids))
    ids = ids[: data.draw(st.integers(0, len(ids)))]
    result, known = only(dataset, ids), {row[0]: row for row in rows(dataset)}
    assert rows(result) == [known[i] for i in ids]
    assert (result.name, result.classes, result.note) == ("made", ("a", "b", "c"), "a note")
    with pytest.raises(InputError, match=r"1 of \d+ ids, the first is 'x'"):
        only(dataset, [*ids, "x"])


@given(ample, st.integers(1, 5), st.integers(1, 5))
def test_subsets_per_class_nest(dataset, one, other):
    small, large = sorted((one, other))
    few, more = subset(dataset, per_class=small), subset(dataset, per_class=large)
    assert [few.labels.count(c) for c in range(3)] == [small] * 3
    assert [row for row in rows(more) if row in rows(few)] == rows(few)
    assert -1 not in more.labels


def test_subsets_by_both_counts_one_or_neither():
    result = subset(made([0, 0, 1, 1, 2, 2]), limit=2, per_class=1)
    assert result.sample_ids == ("0/0.png", "1/2.png")
    dataset = made([0, 1, 2, -1])
    assert rows(subset(dataset)) == rows(dataset)
    assert len(subset(MASKED, limit=1)) == 1


def test_what_was_understood_is_counted_and_looked_at():
    """One image in three is looked at; what is wrong with one is said, and ends nothing."""
    masks = {"0.png": [0, 0, 1, 255], "3.png": [0, 0, 0, 0], "6.png": [1, 1, 1, 1]}
    files = {"0.png": encoded(RGB), "3.png": encoded(RGB[..., 0]), "6.png": b"nothing"}
    dataset = Dataset(
        name="made",
        classes=("ground", "road"),
        sample_ids=tuple(f"{i}.png" for i in range(7)),
        labels=(-1,) * 7,
        read=files.__getitem__,
        read_mask=lambda sample_id: np.array([masks[sample_id]], np.uint8),
        groups=tuple("aabbccc"),
        left_out=(LeftOut(".txt files", 2, ("a.txt",)),),
    )
    found = dataset.understood(3)
    assert (found.images, found.groups, found.looked_at) == (7, 3, 3)
    assert (found.classes, found.unlabelled, found.parts) == ({}, 0, {})
    assert found.left_out == dataset.left_out
    assert found.bands == {"RGB": 1, "grey": 1}
    assert (found.unusable, found.empty) == (1, 1)
    assert found.trouble.startswith("6.png: ")
    assert found.pixels == {"ground": 6 / 7, "road": 1 / 7}
    assert found.ignored == 1 / 8


def test_classes_and_parts_are_counted():
    found = replace(made([0, 0, 2, -1]), read=lambda sample_id: b"").understood()
    assert found.classes == {"a": 2, "b": 0, "c": 1}
    assert (found.unlabelled, found.parts) == (1, {"test": 2, "train": 2})
    assert (found.looked_at, found.unusable, found.pixels) == (4, 4, {})


@pytest.mark.parametrize(
    ("dataset", "options", "said"),
    [
        (made([0, 1, 2]), {"limit": 0}, "--limit must be at least 1, got 0"),
        (made([0, 1, 2]), {"per_class": -1}, "--per-class must be at least 1, got -1"),
        (made([0, 0, 1, 2, 2]), {"per_class": 2}, "b has 1; use --per-class 1 or less"),
        (MASKED, {"per_class": 1}, "use --limit"),
        (replace(MASKED, read_mask=None, classes=()), {"per_class": 1}, "use --limit"),
    ],
)
def test_subsets_that_cannot_be_had(dataset, options, said):
    with pytest.raises(InputError, match=said):
        subset(dataset, **options)


def test_unknown_names_are_refused_and_a_bare_folder_is_told_how_it_is_read(tmp_path):
    for spec in ("", ":", ":folder", "_base", "__init__", "../eurosat", "eurosatt"):
        with pytest.raises(UnknownName, match="eurosat"):
            resolve(spec)
    with pytest.raises(InputError, match=f"folder:{tmp_path}"):
        resolve(str(tmp_path))


REFUSED = {
    "name": ["a b", "", "../a", 3],
    "note": [None],
    "sample_ids": [
        ("x",),
        ("x", "a\rb"),
        ("x", "\ud83d"),
        ("x", "a\u2028b"),
        ("x", "x"),
        ("x", ""),
        ("x", Path("y")),
    ],
    # Names that look alike, too.
    "classes": [("p", "p"), ("p", "q\n"), ("\xe9", "e\u0301"), ("p", "p "), ("p", ""), (1, 2)],
    "groups": [("p",), ("p", "q\x7f"), ("p", None)],
    "labels": [(0,), (0, 2), (0, -2), ("p", "q")],
    "read": [None],
    "parts": [("train",), ("train", "dev")],
    "read_mask": [no_reading],
}


def test_what_cannot_become_a_store_is_refused_when_the_dataset_is_made():
    fields = {"name": "made", "classes": ("p", "q"), "sample_ids": ("x", "y"), "labels": (0, 1)}
    assert len(Dataset(**fields, read=no_reading)) == 2
    changes = [{field: value} for field, values in REFUSED.items() for value in values]
    masked = {"read_mask": no_reading, "labels": (-1, -1)}
    changes += [masked | {"classes": tuple(map(str, range(n)))} for n in (1, 256)]
    for change in changes:
        with pytest.raises(InputError, match="the dataset") as caught:
            Dataset(**{**fields, "read": no_reading, **change})
        assert str(caught.value).isprintable()


def test_lists_and_arrays_become_tuples():
    dataset = Dataset("made", ["p", "q"], np.array(["x", "y"]), np.array([1, 0]), no_reading)
    assert (dataset.classes, dataset.sample_ids, dataset.labels) == (("p", "q"), ("x", "y"), (1, 0))
    assert {type(label) for label in dataset.labels} == {int}


def test_a_group_is_what_the_first_parenthesis_finds_or_all_that_is_found():
    ids = ("a/dubai_t1_003.jpg", "a/dubai_t12_001.jpg", "b/dubai_t1_9.jpg")
    assert groups_by(ids, r"dubai_(t\d+)") == ("t1", "t12", "t1")
    assert groups_by(ids, r"t\d+_0*") == ("t1_00", "t12_00", "t1_")
    assert groups_by((), "x") == ()
    for regex in ("t3", "x*", "(t2)|a", "a/(x?)"):
        with pytest.raises(InputError, match=r"it finds nothing in 'a/t1\.png'"):
            groups_by(("a/t1.png", "a/t4.png"), regex)


# Generated images

# Of all images, and of the masks of roads. Stores recognise rows by their images' bytes, so a change here makes every
# store of generated images a stranger.
DIGESTS = {"synthetic:1": "c6f869446e43151e", "synthetic-roads:12": "70e76df369316bd0"}
NAMES = ["synthetic", "synthetic-roads"]


@pytest.mark.parametrize("spec", DIGESTS)
def test_images_are_the_same_on_every_machine(spec):
    dataset, drawn = resolve(spec), hashlib.sha256()
    for sample_id in dataset.sample_ids:
        pixels = decode(dataset.read(sample_id))
        drawn.update(pixels)
        if dataset.read_mask:
            mask = dataset.read_mask(sample_id)
            assert (mask.dtype, mask.shape) == (np.uint8, pixels.shape[:2])
            drawn.update(mask.tobytes())
    assert drawn.hexdigest()[:16] == DIGESTS[spec]


@pytest.mark.parametrize("name", NAMES)
def test_seeds_and_counts(name):
    zero, seven, more = (resolve(f"{name}:{a}") for a in ("2:0", "2:7", "5"))
    assert (zero.name, seven.name, more.name) == (name, f"{name}-seed7", name)
    assert zero.sample_ids == seven.sample_ids
    assert set(zero.sample_ids) < set(more.sample_ids)
    first = zero.sample_ids[0]
    assert zero.read(first) == more.read(first) == pickle.loads(pickle.dumps(zero)).read(first)
    assert zero.read(first) != seven.read(first)


@pytest.mark.parametrize("name", NAMES)
def test_other_arguments_roots_and_ids_are_refused(name, tmp_path):
    for text in ("", "0", "-1", "x", "1.5", "1:", ":1", "1:2:3", "1000001", "1:4294967296", "٣"):
        with pytest.raises(InputError, match=f"{name} takes N or N:SEED"):
            resolve(f"{name}:{text}")
    with pytest.raises(InputError, match="leave --root"):
        resolve(name, tmp_path)
    dataset = resolve(name)
    others = ("", "Sea/1.bmp", "River/0.bmp", "scene_0/1.bmp", "../River/1.bmp", "River/1.bmp\n")
    for sample_id in others:
        for read in filter(None, (dataset.read, dataset.read_mask)):
            with pytest.raises(InputError, match="is called"):
                read(sample_id)
