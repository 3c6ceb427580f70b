"""What a store makes of a dataset that changed."""

import hashlib
import pickle
from dataclasses import replace

import numpy as np
import pytest
import stubs
from hypothesis import given
from hypothesis import strategies as st

import samtl
from samtl.embed.api import Reading, embed
from samtl.embed.changes import reconcile
from samtl.embed.plan import Plan
from samtl.embed.plan import plan as plan_of
from samtl.embed.verify import verify
from samtl.errors import (
    InputError,
    LockedError,
    MismatchError,
    ResourceError,
)
from samtl.images.codecs import BadImage
from samtl.store.compact import compact
from samtl.store.repair import repair
from samtl.store.rows import Rows, newest
from samtl.store.verify import check
from samtl.store.writer import StoreWriter, locked


def rows_of(images, classes=("cat", "dog"), dataset="toy"):
    """The rows of a dataset that has these images: id to label."""
    return Rows(dataset, classes, tuple(images), tuple(images.values()))


IDS = st.sampled_from([f"{i}.png" for i in range(40)])
DATASETS = st.dictionaries(IDS, st.integers(-1, 1), min_size=1)


@given(
    first=DATASETS,
    later=st.lists(st.tuples(DATASETS, st.sets(IDS), st.sets(IDS)), max_size=5),
)
def test_rows_follow_the_dataset_and_none_moves(first, later):
    stored = replace(rows_of(first), checksum="0")
    images = dict.fromkeys(first, 0)  # id to the version of its file
    made_from = [(name, 0) for name in stored.sample_ids]  # of each row
    for number, (wanted, touched, old) in enumerate(later, 1):
        before = {name: images.get(name, 0) for name in wanted}
        # Some images get other bytes, some of them bytes that they had before.
        images = {
            name: 0 if name in old else number if name in touched else version
            for name, version in before.items()
        }
        current = set(stored.current)
        at = {stored.sample_ids[row]: row for row in current}
        changed = {
            row for name, row in at.items() if name in images and made_from[row][1] != images[name]
        }
        back = {
            made_from[row][0]: row
            for row in stored.superseded
            if images.get(made_from[row][0]) == made_from[row][1]
            and (made_from[row][0] not in at or at[made_from[row][0]] in changed)
        }
        found = reconcile(stored, rows_of(wanted), changed, back)
        rows = found.rows
        # The dataset is there, each image once, in its present version and with its present label.
        assert {rows.sample_ids[row]: rows.labels[row] for row in rows.current} == wanted
        assert len(rows.current) == len(wanted)
        made_from += [("", -1)] * (len(rows) - len(made_from))
        for row in set(range(len(stored), len(rows))) & set(rows.current):
            made_from[row] = rows.sample_ids[row], images[rows.sample_ids[row]]
        assert all(made_from[row] == (n, images[n]) for row in rows.current
                   for n in [rows.sample_ids[row]])  # fmt: skip
        # No row became another's, and every row that was, is.
        assert rows.sample_ids[: len(stored)] == stored.sample_ids
        assert {*rows.current, *rows.superseded} >= {*stored.current, *stored.superseded}
        assert not set(rows.current) & set(rows.superseded)
        # Blocks that were there have the rows that they had.
        assert [rows.block_rows(b) for b in range(stored.blocks)] == [
            stored.block_rows(b) for b in range(stored.blocks)
        ]
        told = found.added + found.changed + found.removed + found.returned + found.relabelled
        assert (rows is stored) == (told == 0)
        stored = rows if rows is stored else replace(rows, checksum=str(number))


def test_labels_follow_the_names_of_their_classes():
    stored = rows_of({"a": 0, "b": 1, "c": 1})
    wanted = rows_of({"a": 1, "b": 2}, ("ape", "cat", "dog"))
    found = reconcile(stored, wanted, set(), {})
    assert found.rows.labels == (1, 2, 2)  # that of the row that is gone, too
    assert (found.removed, found.relabelled) == (1, 3)  # their classes have other numbers
    assert reconcile(stored, rows_of({"a": 1, "b": 1, "c": 1}), set(), {}).relabelled == 1
    renamed = rows_of({"a": 0, "b": 1, "c": 1}, ("cat", "hound"))
    assert reconcile(stored, renamed, set(), {}).relabelled == 2  # their numbers are the same


def test_what_the_dataset_says_no_more_is_told():
    stored = replace(rows_of({"a": 0, "b": 1, "c": -1}), parts=("train", "", "test"))
    found = reconcile(stored, rows_of({"a": 0, "b": 1, "c": -1}), set(), {})
    assert (found.rows.parts, found.regrouped) == ((), 2)


# ------------------------------------------------------------------------------------------------- with a real store


def dataset(n=20, labels=None, **contents):
    """Images 0 to n - 1, those in `contents` with other bytes, and None where there is none."""
    seeds = {f"i{i}": i for i in range(n)} | contents
    seeds = {name: seed for name, seed in seeds.items() if seed is not None}
    files = {name: stubs.png(seed) for name, seed in seeds.items()}
    given = labels or {}
    return samtl.datasets.Dataset(
        "toy",
        ("even", "odd"),
        tuple(files),
        tuple(given.get(name, int(name[1:]) % 2) for name in files),
        files.__getitem__,
    )


@pytest.fixture
def made(encoders):
    def make(of, **options):
        events = []
        result = embed(
            of,
            "stub",
            out="a.zarr",
            device="cpu",
            dtype="float32",
            on_event=events.append,
            **options,
        )
        make.plan = next(event for event in events if isinstance(event, Plan))
        make.read = sum(isinstance(event, Reading) for event in events)
        return result

    return make


def fresh(of):
    """The embeddings of a store that was made from nothing, by the id of the sample."""
    embed(of, "stub", out="fresh.zarr", device="cpu", dtype="float32")
    return content("fresh.zarr")


def content(path="a.zarr"):
    store = samtl.open(path)
    return {
        name: (int(label), pooled.tobytes(), dense.tobytes())
        for name, label, pooled, dense in zip(
            store.sample_ids,
            store.labels,
            store.read("pooled"),
            store.read("dense"),
            strict=True,
        )
    }


def counts(plan):
    return {
        name: getattr(plan, name)
        for name in ("added", "changed", "removed", "returned", "relabelled", "regrouped")
        if getattr(plan, name)
    }


@pytest.mark.parametrize(
    ("now", "told", "encoded"),
    [
        (dataset(23), {"added": 3}, 3),
        (dataset(i7=None, i8=None), {"removed": 2}, 0),
        (dataset(i7=77), {"changed": 1}, 1),
        (dataset(labels={"i0": 1, "i1": -1}), {"relabelled": 2}, 0),
        (dataset(40, labels={"i5": 0}, i7=77, i8=None),
         {"added": 20, "changed": 1, "removed": 1, "relabelled": 1}, 21),
    ],
)  # fmt: skip
def test_a_store_follows_its_dataset(made, now, told, encoded):
    made(dataset())
    result = made(now)
    assert counts(made.plan) == told
    assert (result.encoded, result.rows, result.missing) == (encoded, len(now), 0)
    assert made.plan.pending_rows == encoded
    assert content() == fresh(now)
    found = check(result.store, "deep")
    assert (found.findings, found.leftovers, found.ok) == ([], [], len(now))
    assert found.superseded == told.get("changed", 0) + told.get("removed", 0)
    # And then it is what it is.
    again = made(now)
    assert (counts(made.plan), again.encoded, again.snapshot) == ({}, 0, result.snapshot)
    store = samtl.open(result.store)
    assert (store.snapshot, store.summary().superseded) == (result.snapshot, found.superseded)


def test_a_reader_of_a_store_that_another_took_the_place_of(made):
    """Its files may have the names that they had."""
    made(dataset())
    made(dataset(i7=None))
    store = samtl.open("a.zarr")
    samtl.compact("a.zarr")
    made(dataset(i7=None, i8=None))
    assert newest(store.path) == "rows/1.json"
    with pytest.raises(LockedError, match="open it again"):
        list(map(store.read, store.arrays))


def test_what_plain_readers_see(made):
    made(dataset())
    made(dataset(22, labels={"i0": 1}, i3=None))
    store = samtl.open("a.zarr")
    group = store.zarr()
    assert group["dense"].shape[0] == 34  # 20, room to the next block, 2
    attributes = group.attrs["samtl"]
    gone = attributes["superseded"]
    ids = group["sample_id"][:]
    assert [ids[row] for row in gone] == ["i3"]
    current = [row for row, name in enumerate(ids) if name and row not in gone]
    assert [ids[row] for row in current] == list(store.sample_ids)
    assert group["label"][:][current].tolist() == store.labels.tolist()
    assert np.array_equal(group["pooled"][:][current], store.read("pooled"))


def test_plain_readers_are_refused_labels_that_wait(made, monkeypatch):
    """A pass was killed after it had named the classes anew, and before it wrote the labels."""
    made(dataset())
    now = replace(
        dataset(), classes=("dawn", "even", "odd"), labels=tuple(i % 2 + 1 for i in range(20))
    )
    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, "relabel", lambda writer: pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception):
            made(now)
    store = samtl.open("a.zarr")
    assert store.classes == ("dawn", "even", "odd")
    with pytest.raises(
        InputError, match=r"labels of 2 blocks anew, and the old ones .* run samtl embed again"
    ):
        store.zarr()
    made(now)
    store = samtl.open("a.zarr")
    assert store.zarr()["label"][:20].tolist() == store.labels.tolist()


def test_plain_readers_are_refused_rows_in_other_places(made):
    made(dataset())
    made(dataset(i3=33))
    store = samtl.open("a.zarr")
    made(dataset(22, i3=33))
    assert store.zarr()["pooled"].shape[0] > 22  # one that grew is the same, and more
    compact("a.zarr")
    with pytest.raises(
        LockedError, match=r"what the rows of .* are has changed since it was opened"
    ):
        store.zarr()
    assert samtl.open("a.zarr").zarr()["pooled"].shape[0] == 22


def test_a_store_travels_to_another_process_as_long_as_its_rows_are_these(made):
    made(dataset())
    store = samtl.open("a.zarr")
    sent = pickle.dumps(store)
    there = pickle.loads(sent)
    assert (there.sample_ids, there.snapshot) == (store.sample_ids, store.snapshot)
    assert np.array_equal(there.read("pooled"), store.read("pooled"))
    made(dataset(i3=33))
    with pytest.raises(LockedError, match="changed since it was opened: open it again"):
        pickle.loads(sent)


def test_an_image_that_comes_back_is_not_embedded_again(made):
    made(dataset())
    made(dataset(i3=None, i4=44))
    result = made(dataset())
    assert (counts(made.plan), result.encoded) == ({"changed": 1, "returned": 2}, 0)
    assert content() == fresh(dataset())
    assert samtl.open("a.zarr").summary().superseded == 1  # the other i4


def test_a_bad_image_that_was_mended_is_embedded(made):
    good = dataset()
    bad = replace(good, read=lambda name: b"no image" if name == "i5" else good.read(name))
    assert [entry.sample_id for entry in made(bad).quarantined] == ["i5"]
    result = made(good)
    assert (counts(made.plan), result.quarantined) == ({"changed": 1}, ())
    assert content() == fresh(good)


def test_an_image_that_cannot_be_read_now_keeps_its_row(made):
    good = dataset()
    before = made(good).snapshot

    def failing(name):
        if name == "i5":
            raise OSError(5, "gone for now")
        return good.read(name)

    assert made(replace(good, read=failing)).snapshot == before


@pytest.mark.parametrize("fewer", [{"limit": 15}, {"per_class": 8}])
def test_a_smaller_part_takes_no_row_back(made, fewer):
    before = made(dataset()).snapshot
    with pytest.raises(MismatchError, match="--limit or --per-class leaves images out") as caught:
        made(dataset(), **fewer)
    assert "rows: the store has 20 of them, asked for is 1" in str(caught.value)
    assert samtl.open("a.zarr").snapshot == before
    assert made(dataset(), limit=20).snapshot == before


def test_a_part_grows_and_follows_the_dataset(made):
    made(dataset(40), limit=15)
    first = set(samtl.open("a.zarr").sample_ids)
    assert made(dataset(40), limit=20).encoded == 5
    assert first < set(samtl.open("a.zarr").sample_ids)
    # Of more images, the first 20 are others.
    made(dataset(60), limit=20)
    assert made.plan.rows == 20
    assert made.plan.removed == made.plan.added > 0
    # One that is gone is gone, whatever part it was.
    name = samtl.open("a.zarr").sample_ids[0]
    result = made(dataset(60, **{name: None}), limit=20)
    assert (result.rows, made.plan.removed) == (20, 1)


def test_a_class_that_is_gone_leaves_a_smaller_part(made):
    """As many of each class are asked for as before; which of them, hangs on the images that came."""

    def of(numbers, classes):
        labels = tuple(i % 3 for i in numbers)
        whole = dataset(100)
        ids = tuple(f"i{i}" for i in numbers)
        return replace(whole, sample_ids=ids, labels=labels, classes=classes)

    made(of(range(60), ("a", "b", "c")), per_class=6)
    kept = [i for i in range(66) if i % 3 < 2]
    made(of(kept, ("a", "b")), per_class=6)
    assert made.plan.rows == 12
    assert made.plan.removed == 6 + made.plan.added
    assert made.plan.added > 0


def test_images_need_not_be_read(made):
    made(dataset())
    assert made.read == 0
    made(dataset())
    assert made.read == 20
    result = made(dataset(i7=77), check_images=False)
    assert (made.read, counts(made.plan), result.encoded) == (0, {}, 0)


def test_a_plan_tells_and_changes_nothing(made, encoders):
    made(dataset())
    before = sorted(
        (p, p.read_bytes()) for p in samtl.open("a.zarr").path.rglob("*") if p.is_file()
    )
    options = {"out": "a.zarr", "device": "cpu", "dtype": "float32"}
    plan = plan_of(dataset(22, i7=77), "stub", **options)
    assert counts(plan) == {"added": 2, "changed": 1}
    assert (plan.rows, plan.pending_rows) == (22, 3)
    after = sorted((p, p.read_bytes()) for p in samtl.open("a.zarr").path.rglob("*") if p.is_file())
    assert after == before


@pytest.mark.parametrize("stop_after", [0, 1])
def test_a_change_that_was_interrupted_goes_on(made, stop_after):
    made(dataset())
    now = dataset(60, labels={"i0": 1}, i7=77)
    asked = iter(range(100))
    made(now, should_stop=lambda: next(asked) >= stop_after, batch_size=8)
    assert samtl.open("a.zarr").missing > 0
    made(now)
    assert content() == fresh(now)
    assert check(samtl.open("a.zarr").path, "deep").findings == []


def test_the_dataset_may_change_again_before_it_is_done(made):
    made(dataset())
    made(dataset(60), should_stop=lambda: True)
    now = dataset(30, i25=725)
    made(now)
    assert content() == fresh(now)


def test_a_tier_is_added_to_rows_that_count(made):
    made(dataset(), tiers=["pooled"])
    made(dataset(i3=None, i4=44), tiers=["pooled"])
    read = []
    now = dataset(i3=None, i4=44)
    made(replace(now, read=lambda name: read.append(name) or now.read(name)), check_images=False)
    # No image of a row that does not count, but once to see whether the first i4 is back.
    assert sorted(read) == sorted([*now.sample_ids, "i4"])
    assert content() == fresh(now)
    # A row that was left out when the tier was added cannot count again as it is.
    result = made(dataset())
    assert (counts(made.plan), result.encoded) == ({"added": 1, "changed": 1}, 2)
    assert content() == fresh(dataset())


def test_most_of_a_dataset_does_not_vanish_by_mistake(made):
    made(dataset())
    before = samtl.open("a.zarr").snapshot
    with pytest.raises(MismatchError, match="9 of the store's are among them"):
        made(dataset(9))
    assert samtl.open("a.zarr").snapshot == before
    made(dataset(10))


def test_two_writers_with_different_changes(made, encoders, monkeypatch):
    """The second planned before the first was through."""
    made(dataset())
    from samtl.embed import api as embedding

    inner = embedding._run

    def overtaken(*args):
        monkeypatch.setattr(embedding, "_run", inner)
        made(dataset(22))
        return inner(*args)

    monkeypatch.setattr(embedding, "_run", overtaken)
    with pytest.raises(LockedError, match="changed what the rows"):
        made(dataset(23))
    made(dataset(23))
    assert content() == fresh(dataset(23))


def test_keys_and_hashes_are_those_of_the_rows_that_count(made):
    made(dataset())
    now = dataset(22, i0=None)
    made(now)
    store = samtl.open("a.zarr")
    for row, name in enumerate(store.sample_ids):
        assert store.image_sha256(row) == hashlib.sha256(now.read(name)).hexdigest()


def test_the_command_line_says_what_it_will_do(run, encoders, folder):
    command = ("embed", "--dataset", f"folder:{folder}", "--encoder", "tiny")
    assert run(*command)[0] == 0
    (folder / "town" / "0.png").unlink()
    (folder / "town" / "1.png").write_bytes(stubs.png(4711))
    (folder / "field" / "2.png").rename(folder / "town" / "2b.png")
    (folder / "field" / "new.png").write_bytes(stubs.png(4712))
    code, output, _ = run(*command, "--dry-run")
    assert code == 0
    assert "2 images new, 1 changed, so their old rows no longer count, 2 gone" in output
    assert run(*command)[0] == 0
    output = run("info")[1]
    assert "24: 24 embedded, 0 quarantined, 0 missing, and 3 superseded" in output
    assert "samtl compact" in output
    assert run("verify")[0] == 0


# ------------------------------------------------------------------------------------------------------------ masks


def masked(n=20, bad=(), **seeds):
    """The same images, with masks: of those in `seeds` another one."""
    images = dataset(n)

    def read_mask(name):
        if name in bad:
            return np.zeros((3, 3), np.uint8)
        return np.random.default_rng(seeds.get(name, int(name[1:]))).integers(
            0, 2, (20, 20), np.uint8
        )

    return replace(images, labels=(-1,) * n, read_mask=read_mask)


def masks(path="a.zarr"):
    store = samtl.open(path)
    return dict(zip(store.sample_ids, (m.tobytes() for m in store.read("mask")), strict=True))


def test_masks_follow_without_the_encoder(made, encoders):
    made(masked())
    encoders.images = 0
    now = masked(i3=33, i4=44)
    result = made(now)
    assert (counts(made.plan), made.plan.remasked, encoders.images) == ({}, 2, 0)
    assert result.missing == 0
    assert check(result.store, "deep").findings == []
    ours = masks()
    fresh(now)
    assert ours == masks("fresh.zarr")
    assert made(now).encoded == made.plan.remasked == 0
    assert made(masked(i3=3), check_images=False).encoded == 0


def test_a_mask_that_became_bad_and_good_again(made, encoders):
    made(masked())
    encoders.images = 0
    assert [q.code for q in made(masked(bad=("i5",))).quarantined] == ["mask_size"]
    assert made(masked(bad=("i5",))).encoded == 0
    result = made(masked())
    assert (result.quarantined, encoders.images, made.plan.remasked) == ((), 0, 1)
    ours = masks()
    fresh(masked())
    assert ours == masks("fresh.zarr")


@pytest.mark.parametrize("code", ["mask_unreadable", "mask_values", "truncated"])
@pytest.mark.parametrize("first", [True, False])
def test_a_mask_that_is_no_mask_any_more(made, encoders, code, first):
    """Or is none at first."""

    def read_mask(name):
        if name == "i5":
            raise BadImage(code, "it is cut short")
        return masked().read_mask(name)

    broken = replace(masked(), read_mask=read_mask)
    made(masked() if first else broken)
    encoders.images = 0
    result = made(broken)
    (lost,) = result.quarantined
    assert (lost.sample_id, lost.code.startswith("mask_")) == ("i5", True)
    assert (encoders.images, made.plan.remasked) == (0, int(first))
    for _ in range(2):
        assert (made(broken).encoded, made.plan.remasked, counts(made.plan)) == (0, 0, {})
    assert made(masked()).quarantined == ()
    ours = masks()
    fresh(masked())
    assert ours == masks("fresh.zarr")


def test_masks_are_held_against_the_dataset(made):
    made(masked())

    def read_mask(name):
        if name == "i6":
            raise OSError("not there")
        return masked(i5=55).read_mask(name)

    found = verify("a.zarr", "deep", dataset=replace(masked(), read_mask=read_mask))
    assert found.exit_code == 3
    assert {one.sample_id: (one.what, one.told) for one in found.images} == {
        "i5": ("changed", "its mask is not the one that the row has"),
        "i6": ("gone", "its mask: not there"),
    }
    assert verify("a.zarr", "deep", dataset=masked()).exit_code == 0


def test_a_mask_that_was_bad_from_the_beginning(made, encoders):
    """Then nothing of its image was embedded."""
    made(masked(bad=("i5",)))
    encoders.images = 0
    result = made(masked())
    assert (result.quarantined, counts(made.plan), encoders.images) == ((), {"changed": 1}, 1)


@pytest.mark.parametrize("array", ["image_stats", "pooled", "mask"])
def test_what_was_redone_while_a_mask_was_bad(made, array):
    """It was put aside then, whatever it was."""
    store = made(masked()).store
    path = next((store / array).glob("c.0.*"))
    path.write_bytes(path.read_bytes()[::-1])
    with locked(store):
        repair(store, check(store))
    assert [q.code for q in made(masked(bad=("i5",))).quarantined] == ["mask_size"]
    assert made(masked()).quarantined == ()
    assert samtl.open(store).missing == 0
    ours = masks()
    fresh(masked())
    assert ours == masks("fresh.zarr")


def test_a_bad_mask_that_is_not_known_any_more(made):
    """Its record was damaged, and in the meantime the mask was mended, or not."""
    store = made(masked(bad=("i5", "i6"))).store
    made(masked(19, bad=("i5", "i6")))
    samtl.compact(store)  # which gives masks records of their own
    for path in (store / "log").glob("*.1.json"):
        path.write_bytes(path.read_bytes()[:-9])
    with locked(store):
        repair(store, check(store))
    assert [q.sample_id for q in made(masked(19, bad=("i6",))).quarantined] == ["i6"]
    assert made(masked(19, bad=("i6",))).encoded == 0
    assert (made.plan.remasked, counts(made.plan)) == (0, {})
    assert made(masked(19)).quarantined == ()
    ours = masks()
    fresh(masked(19))
    assert ours == masks("fresh.zarr")


def test_an_image_that_comes_back_with_another_mask(made, encoders):
    made(masked(20))
    made(masked(19))
    encoders.images = 0
    made(masked(20, i19=7))
    assert (counts(made.plan), made.plan.remasked, encoders.images) == ({"returned": 1}, 1, 0)
    ours = masks()
    fresh(masked(20, i19=7))
    assert ours == masks("fresh.zarr")


def test_compacting_keeps_what_is_known_of_masks(made):
    made(masked(20))
    made(masked(19))
    samtl.compact("a.zarr")
    made(masked(19, i3=33))
    assert (counts(made.plan), made.plan.remasked) == ({}, 1)


@pytest.mark.parametrize("first", [True, False])
def test_a_mask_that_more_classes_make_one(made, encoders, first):
    """Its class comes to be one later, and it stayed the same."""

    def read_mask(sample_id):
        return masked().read_mask(sample_id) + np.uint8(sample_id == "i5")

    beyond = replace(masked(), read_mask=read_mask)
    if not first:
        made(masked())
    assert [(q.sample_id, q.code) for q in made(beyond).quarantined] == [("i5", "mask_values")]
    assert made(beyond).encoded == 0
    grown = replace(beyond, classes=(*beyond.classes, "more"))
    encoders.images = 0
    assert made(grown).quarantined == ()
    assert encoders.images == int(first)  # embedded it was, where its mask was good
    assert made(grown).encoded == made.plan.remasked == 0
    store = samtl.open("a.zarr")
    assert (store.read("mask", [store.sample_ids.index("i5")]) == 2).any()
    assert check(store.path, "deep").findings == []


def test_a_bad_image_with_a_good_mask_is_tried_once(made):
    good = masked()
    bad = replace(
        good, read=lambda name: stubs.BROKEN["truncated"] if name == "i5" else good.read(name)
    )
    made(bad)
    for _ in range(2):
        assert (made(bad).encoded, counts(made.plan), made.plan.remasked) == (0, {}, 0)
    assert made(good).quarantined == ()


def test_masks_do_not_change_their_meaning(made):
    """They hold the numbers of classes."""
    made(masked())
    turned = replace(masked(), classes=("odd", "even"))
    with pytest.raises(MismatchError, match="classes"):
        made(turned)
    with pytest.raises(MismatchError, match="classes"):
        made(turned, check_images=False)
    made(replace(masked(), classes=("even", "odd", "more")))
    assert samtl.open("a.zarr").classes == ("even", "odd", "more")


def test_a_reader_that_was_open_while_a_mask_was_written_anew(made):
    made(masked())
    store = samtl.open("a.zarr")
    rows = [store.sample_ids.index(name) for name in ("i3", "i4")]
    made(masked(i3=33))
    with pytest.raises(LockedError, match="open it again"):
        store.read("mask", rows)
    assert len(store.read("pooled")) == 20
    samtl.open("a.zarr").read("mask")


# ---------------------------------------------------------------------------- what was put aside, and what is not there


@pytest.mark.parametrize("meanwhile", ["changed", "unreadable"])
def test_a_row_that_only_a_later_tier_lacks_is_made_anew(made, meanwhile):
    made(dataset(), tiers=["pooled"])
    good = dataset(i4=44) if meanwhile == "changed" else dataset()

    def read(name):
        if meanwhile == "unreadable" and name == "i4":
            raise OSError("not now")
        return good.read(name)

    result = made(replace(good, read=read), check_images=False)
    assert [(q.sample_id, q.code) for q in result.quarantined] == [("i4", meanwhile)]
    result = made(good)
    assert (counts(made.plan), result.encoded, result.quarantined) == ({"changed": 1}, 1, ())
    assert content() == fresh(good)
    assert made(good).encoded == 0


def image_of(name):
    return hashlib.sha256(stubs.png(name)).hexdigest()


def key_of(name):
    store = samtl.open("a.zarr")
    row = store.sample_ids.index(name)
    return store.image_sha256(row), store.key(row)


def test_a_row_is_named_by_the_image_that_it_was_made_from(made):
    """And not by one that a later pass refused, whichever array is looked at first."""
    made(dataset(), tiers=["pooled"])
    before = key_of("i4")
    made(dataset(i4=44), tiers=["grid"], check_images=False)
    made(dataset(i4=44, i5=None), tiers=["pooled", "grid"], check_images=False)
    assert key_of("i4") == before
    samtl.compact("a.zarr")  # grid comes first then
    assert key_of("i4") == before == (image_of(4), before[1])
    found = verify("a.zarr", "deep", dataset=dataset(i4=44, i5=None))
    assert [(one.sample_id, one.what) for one in found.images] == [("i4", "changed")]
    # No tier of another image comes beside it.
    result = made(dataset(i4=44, i5=None), tiers=["dense"], check_images=False)
    assert [(q.sample_id, q.code) for q in result.quarantined] == [("i4", "changed")]
    assert not samtl.open("a.zarr").valid("dense")[samtl.open("a.zarr").sample_ids.index("i4")]
    assert check(result.store).findings == []
    made(dataset(i4=44, i5=None))
    assert content() == fresh(dataset(i4=44, i5=None))


@pytest.mark.parametrize("later", [4, 44])
def test_a_row_that_was_unreadable_at_first(made, later):
    def read(name):
        if name == "i4":
            raise OSError("not now")
        return dataset().read(name)

    made(replace(dataset(), read=read), tiers=["pooled"])
    made(dataset(), tiers=["grid"], check_images=False)
    result = made(dataset(i4=later), tiers=["dense"], check_images=False)
    assert key_of("i4")[0] == image_of(4)
    row = samtl.open("a.zarr").sample_ids.index("i4")
    assert samtl.open("a.zarr").valid("dense")[row] == (later == 4)
    assert check(result.store).findings == []


def test_a_drive_that_goes_away_stops_a_pass_over_few_rows(made):
    """A block with rows that do not count has less than 16 to read."""
    made(dataset(64), tiers=["pooled"])
    gone = dict.fromkeys(f"i{i}" for i in range(0, 64, 9))
    now = dataset(64, **gone)
    made(now, tiers=["pooled"])
    reads = []

    def read(name):
        reads.append(name)
        if len(reads) > 20:
            raise OSError("the drive is gone")
        return now.read(name)

    with pytest.raises(ResourceError, match="cannot be read any more"):
        made(replace(now, read=read), check_images=False)
    assert samtl.open("a.zarr").quarantined == ()
    made(now)
    assert content() == fresh(now)


def test_few_new_images_that_are_all_bad(made):
    made(dataset())
    more = dataset(22)
    bad = replace(more, read=lambda name: b"" if name in ("i20", "i21") else more.read(name))
    assert len(made(bad).quarantined) == 2

    def read(name):
        if name in ("i22", "i23"):
            raise OSError("never there")
        return bad.read(name)

    assert len(made(replace(dataset(24), read=read)).quarantined) == 4


def test_groups_are_not_dropped_by_mistake(made):
    grouped = replace(dataset(), groups=tuple(f"s{i % 4}" for i in range(20)))
    made(grouped)
    with pytest.raises(MismatchError, match="--group-by"):
        made(dataset())
    made(replace(grouped, groups=tuple(f"s{i % 5}" for i in range(20))))
    assert counts(made.plan)["regrouped"] > 10
    assert set(samtl.open("a.zarr").groups) == {"s0", "s1", "s2", "s3", "s4"}


def test_no_image_is_read_beside_another_writer(made):
    made(dataset())
    reads = []
    now = dataset()
    with locked(samtl.open("a.zarr").path), pytest.raises(LockedError, match="being written by"):
        made(replace(now, read=lambda name: reads.append(name) or now.read(name)))
    assert reads == []


def test_reading_images_can_be_stopped(made):
    made(dataset(200))
    reads = []
    now = dataset(200)
    reading = replace(now, read=lambda name: reads.append(name) or now.read(name))
    result = made(reading, should_stop=lambda: True)
    assert (result.encoded, result.missing) == (0, 0)
    assert len(reads) < 100


def test_metadata_of_before_is_no_damage(made, monkeypatch):
    """As after a pass that was killed when it had published the new list of rows."""
    from samtl.store import durable

    made(dataset())

    class Killed(BaseException):
        pass

    def killed(path, content):
        if path.name == "zarr.json":
            raise Killed
        inner(path, content)

    inner = durable.replace
    with monkeypatch.context() as patch:
        patch.setattr(durable, "replace", killed)
        with pytest.raises(Killed):
            made(dataset(22, i3=None))
    store = samtl.open("a.zarr")
    assert (len(store), store.missing) == (21, 2)
    assert check(store.path).findings == []
    assert store.zarr()["pooled"].shape[0] == 20
    made(dataset(22, i3=None))
    assert samtl.open("a.zarr").zarr()["pooled"].shape[0] == 34


def test_what_no_pass_will_come_to_is_taken_away(made, encoders, monkeypatch):
    """Shards of a block that was never committed, and whose rows do not count any more."""
    from samtl.store import durable

    made(dataset())

    class Killed(BaseException):
        pass

    inner = durable.publish

    def killed(path, pieces):
        if path.parent.name == "log":
            raise Killed
        inner(path, pieces)

    with monkeypatch.context() as patch:
        patch.setattr(durable, "publish", killed)
        with pytest.raises(Killed):
            made(dataset(22))
    assert check(samtl.open("a.zarr").path).leftovers
    made(dataset())
    found = check(samtl.open("a.zarr").path)
    assert (found.findings, found.leftovers) == ([], [])


def test_info_counts_rows_that_count(made):
    made(dataset())
    made(dataset(22, i3=None))
    for array in samtl.open("a.zarr").summary().arrays:
        assert (array.shape[0], array.rows) == (21, 21)
