"""What every dataset has in common: order, subsets, and finding one by its name."""

import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samtl.datasets import Dataset, groups_by, only, resolve, shuffled, subset
from samtl.errors import InputError, UnknownName


def no_reading(sample_id):
    raise AssertionError("listing must read nothing")


def made(labels, classes=3):
    ids = tuple(f"{label}/{i}.png" for i, label in enumerate(labels))
    names = tuple("abcdefgh"[:classes])
    return Dataset("made", names, ids, tuple(labels), no_reading, note="a note")


ample = st.lists(st.integers(-1, 2), max_size=20).flatmap(
    lambda more: st.permutations([0, 1, 2] * 5 + more).map(made)
)
some = st.lists(st.integers(-1, 2), max_size=40).map(made)


def rows(dataset):
    return list(zip(dataset.sample_ids, dataset.labels, strict=True))


@given(some, st.randoms(use_true_random=False))
def test_the_order_depends_on_the_ids_only(dataset, random):
    order = list(range(len(dataset)))
    random.shuffle(order)
    ids, labels = (
        tuple(column[i] for i in order) for column in (dataset.sample_ids, dataset.labels)
    )
    other = replace(dataset, sample_ids=ids, labels=labels)
    assert rows(shuffled(other)) == rows(shuffled(dataset))


def test_the_order_is_that_of_sha256():
    # Fixed for ever: stores are in this order.
    ids = ("a/1.jpg", "a/2.jpg", "b/1.jpg", "b/2.jpg", "c/1.jpg")
    dataset = Dataset("x", ("a", "b", "c"), ids, (0, 0, 1, 1, 2), no_reading)
    assert [ids.index(i) for i in shuffled(dataset).sample_ids] == [3, 1, 0, 4, 2]


class TestSubset:
    @given(ample, st.integers(1, 5), st.integers(1, 5))
    def test_counts_per_class_nest(self, dataset, one, other):
        small, large = sorted((one, other))
        few, more = subset(dataset, per_class=small), subset(dataset, per_class=large)
        assert [few.labels.count(c) for c in range(3)] == [small] * 3
        assert [row for row in rows(more) if row in rows(few)] == rows(few)
        assert -1 not in more.labels

    def test_both_or_neither(self):
        result = subset(made([0, 0, 1, 1, 2, 2]), limit=2, per_class=1)
        assert result.sample_ids == ("0/0.png", "1/2.png")
        dataset = made([0, 1, 2, -1])
        assert rows(subset(dataset)) == rows(dataset)

    @pytest.mark.parametrize(
        ("labels", "options", "said"),
        [
            ([0, 1, 2], {"limit": 0}, "--limit must be at least 1, got 0"),
            ([0, 1, 2], {"per_class": -1}, "--per-class must be at least 1, got -1"),
            ([0, 0, 1, 2, 2], {"per_class": 2}, "b has 1; use --per-class 1 or less"),
        ],
    )
    def test_counts_that_cannot_be_had(self, labels, options, said):
        with pytest.raises(InputError, match=said):
            subset(made(labels), **options)

    def test_images_with_masks_have_no_class_to_be_counted_by(self):
        masked = replace(made([-1, -1]), read_mask=no_reading)
        assert len(subset(masked, limit=1)) == 1
        with pytest.raises(InputError, match="use --limit"):
            subset(masked, per_class=1)


@given(some, st.data())
def test_only_the_images_with_these_ids_in_this_order(dataset, data):
    ids = data.draw(st.permutations(dataset.sample_ids))
    ids = ids[: data.draw(st.integers(0, len(ids)))]
    result = only(dataset, ids)
    assert result.sample_ids == tuple(ids)
    assert set(rows(result)) <= set(rows(dataset))
    assert (result.name, result.classes, result.note) == ("made", ("a", "b", "c"), "a note")
    with pytest.raises(InputError, match=r"1 of \d+ ids, the first is 'x'"):
        only(dataset, [*ids, "x"])


class TestResolve:
    @pytest.mark.parametrize(
        "spec", ["", ":", ":folder", "_base", "__init__", "../eurosat", "eurosatt"]
    )
    def test_unknown_names(self, spec):
        with pytest.raises(UnknownName, match="eurosat"):
            resolve(spec)

    def test_a_bare_folder_is_told_how_it_is_read(self, tmp_path):
        with pytest.raises(InputError, match=f"folder:{tmp_path}"):
            resolve(str(tmp_path))

    def test_what_follows_the_first_colon_is_the_argument(self, monkeypatch, tmp_path):
        calls = []
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setattr(
            "samtl.datasets.synthetic.open_dataset", lambda *args: calls.append(args) or made([0])
        )
        resolve("synthetic")
        resolve("synthetic:")
        resolve("synthetic:a:b", "~/data", download=False)
        expected = [(None, None, True), ("", None, True), ("a:b", tmp_path / "data", False)]
        assert calls == expected


@pytest.mark.parametrize(
    "change",
    [
        *({"name": name} for name in ("a b", "", "../a")),
        *(
            {"sample_ids": ids}
            for ids in (("x",), ("x", "a\rb"), ("x", "\ud83d"), ("x", "a\u2028b"))
        ),
        *({"classes": classes} for classes in (("p", "p"), ("p", "q\n"))),
        *({"groups": groups} for groups in (("p",), ("p", "q\x7f"))),
        *({"labels": labels} for labels in ((0,), (0, 2), (0, -2))),
        *({"parts": parts} for parts in (("train",), ("train", "dev"))),
        {"read_mask": no_reading},
        {"read_mask": no_reading, "labels": (-1, -1), "classes": ("p",)},
        {"read_mask": no_reading, "labels": (-1, -1), "classes": tuple(map(str, range(256)))},
    ],
)
def test_what_cannot_become_a_store_is_refused_when_the_dataset_is_made(change):
    fields = {"name": "made", "classes": ("p", "q"), "sample_ids": ("x", "y"), "labels": (0, 1)}
    assert len(Dataset(**fields, read=no_reading)) == 2
    with pytest.raises(InputError, match="the dataset") as caught:
        Dataset(**{**fields, "read": no_reading, **change})
    assert str(caught.value).isprintable()


class TestGroups:
    def test_a_group_is_what_the_first_parenthesis_finds_or_all_that_is_found(self):
        ids = ("a/dubai_t1_003.jpg", "a/dubai_t12_001.jpg", "b/dubai_t1_9.jpg")
        assert groups_by(ids, r"dubai_(t\d+)") == ("t1", "t12", "t1")
        assert groups_by(ids, r"t\d+_0*") == ("t1_00", "t12_00", "t1_")
        assert groups_by((), "x") == ()

    @pytest.mark.parametrize("regex", ["t3", "x*", "(t2)|a", "a/(x?)"])
    def test_the_first_id_in_which_nothing_is_found_is_named(self, regex):
        with pytest.raises(InputError, match=r"it finds nothing in 'a/t1\.png'"):
            groups_by(("a/t1.png", "a/t4.png"), regex)

    def test_groups_and_parts_go_where_their_images_go(self):
        ids = tuple(f"{i}.png" for i in range(20))
        parts = tuple("train" if i % 3 else "test" for i in range(20))
        dataset = Dataset("x", ("a",), ids, (0,) * 20, no_reading, groups=ids, parts=parts)
        taken = subset(shuffled(dataset), limit=7)
        assert taken.groups == taken.sample_ids
        assert taken.parts == tuple(parts[ids.index(i)] for i in taken.sample_ids)


def test_listing_and_decoding_load_nothing_heavy():
    code = (
        "import sys, samtl.images, samtl.datasets\n"
        "import samtl.datasets.eurosat, samtl.datasets.folder, samtl.datasets.synthetic\n"
        "import samtl.datasets.masks, samtl.datasets.roads\n"
        "samtl.datasets.resolve('synthetic:1')\n"
        "samtl.datasets.resolve('synthetic-roads:1')\n"
        "print(*{'torch', 'sklearn', 'pooch', 'requests', 'zarr'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
