"""What a store makes of a dataset that changed."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import stubs
from hypothesis import given
from hypothesis import strategies as st

import samtl
from samtl.datasets import Dataset
from samtl.embed import api
from samtl.embed.api import Reading, embed
from samtl.embed.changes import Found, next_table, table_of
from samtl.embed.plan import Plan
from samtl.embed.plan import plan as plan_of
from samtl.embed.verify import verify
from samtl.errors import MismatchError, ResourceError
from samtl.images.codecs import BadImage
from samtl.store.log import Facts
from samtl.store.verify import check

BLOCK = 4


def listed(labels, classes=("cat", "dog"), **more):
    """A dataset that has these images: id to label."""
    return Dataset("toy", classes, tuple(labels), tuple(labels.values()), lambda name: b"", **more)


IDS = st.sampled_from([f"{i}.png" for i in range(20)])
DATASETS = st.dictionaries(IDS, st.integers(-1, 1), min_size=1)


def named(name, version):
    return hashlib.sha256(f"{name} {version}".encode()).hexdigest()


@given(first=DATASETS, later=st.lists(st.tuples(DATASETS, st.sets(IDS), st.sets(IDS)), max_size=5))
def test_rows_follow_the_dataset_and_none_moves(first, later):
    table = table_of(listed(first))
    made_from = {row: (name, 0) for row, name in zip(table.rows, table.samples, strict=True)}
    version = dict.fromkeys(first, 0)  # of the file of each image
    for number, (wanted, touched, restored) in enumerate(later, 1):
        version = {
            name: 0 if name in restored else number if name in touched else version.get(name, 0)
            for name in wanted
        }

        def facts(row, made_from=dict(made_from)):  # noqa: B006
            if row not in made_from:
                return Facts(False, False, "", "", {})
            return Facts(True, True, named(*made_from[row]), "", {})

        at = dict(zip(table.samples, table.rows.tolist(), strict=True))
        changed = {n for n, row in at.items() if n in version and made_from[row][1] != version[n]}
        found = {name: Found(named(name, version[name]), None) for name in wanted}
        unlisted = [row for row in made_from if row not in set(at.values())]
        after, now = next_table(table, listed(wanted), facts, found, changed, unlisted, BLOCK)
        # The dataset is there, each image once, in its present version and with its present label.
        assert dict(zip(after.samples, after.labels.tolist(), strict=True)) == wanted
        assert len(set(after.rows.tolist())) == len(wanted)
        for row, name in zip(after.rows.tolist(), after.samples, strict=True):
            if row < table.about.rows_end:
                assert made_from[row] == (name, version[name])
            made_from[row] = name, version[name]
        # New rows begin with a block, and no row that could be used again was left aside.
        new = after.rows[after.rows >= table.about.rows_end]
        assert not len(new) or new[0] % BLOCK == 0
        assert len(new) == now.added + now.changed - sum(
            name in at and at[name] != row and row < table.about.rows_end
            for row, name in zip(after.rows.tolist(), after.samples, strict=True)
        )
        told = now.added + now.changed + now.removed + now.returned + now.relabelled
        assert (after is table) == (told == 0)
        table = after


def changes(stored, dataset):
    facts = Facts(True, True, "", "", {})
    return next_table(stored, dataset, lambda row: facts, {}, set(), (), BLOCK)


def test_labels_follow_the_names_of_their_classes():
    stored = table_of(listed({"a": 0, "b": 1, "c": 1}))
    table, found = changes(stored, listed({"a": 1, "b": 2}, ("ape", "cat", "dog")))
    assert table.labels.tolist() == [1, 2]
    assert (found.removed, found.relabelled) == (1, 2)  # their classes have other numbers
    assert changes(stored, listed({"a": 1, "b": 1, "c": 1}))[1].relabelled == 1
    renamed = listed({"a": 0, "b": 1, "c": 1}, ("cat", "hound"))
    assert changes(stored, renamed)[1].relabelled == 2  # their numbers are the same


def test_what_the_dataset_says_no_more_is_counted():
    labels = {"a": 0, "b": 1, "c": -1}
    parts = listed(labels, parts=("train", "train", "test"))
    table, found = changes(table_of(parts), listed(labels))
    assert (table.parts, found.regrouped) == ((), 3)


# ------------------------------------------------------------------------------------------------- with a real store


def dataset(n=20, labels=None, **contents):
    """Images 0 to n - 1, those in `contents` with other bytes, and None where there is none."""
    seeds = {f"i{i}": i for i in range(n)} | contents
    files = {name: stubs.png(seed) for name, seed in seeds.items() if seed is not None}
    given = labels or {}
    return Dataset(
        "toy",
        ("even", "odd"),
        tuple(files),
        tuple(given.get(name, int(name[1:]) % 2) for name in files),
        files.__getitem__,
    )


def reading(of, **instead):
    """The same dataset, some of whose images are read by another function, or raise."""

    def read(name):
        content = instead.get(name)
        if isinstance(content, Exception):
            raise content
        return of.read(name) if content is None else content

    return replace(of, read=read)


@pytest.fixture
def made(encoders):
    def make(of, **options):
        events = []
        result = embed(
            of, "stub", out="a.zarr", device="cpu", dtype="float32", on_event=events.append, **options
        )  # fmt: skip
        make.plan = next((event for event in events if isinstance(event, Plan)), None)
        make.read = sum(isinstance(event, Reading) for event in events)
        return result

    return make


def content(path="a.zarr", array="dense"):
    store = samtl.open(path)
    rows = (row.tobytes() for row in store.read(array))
    return dict(zip(store.sample_ids, zip(store.labels.tolist(), rows, strict=True), strict=True))


def fresh(of, array="dense"):
    """The rows of a store that was made from nothing, by the id of the sample."""
    embed(of, "stub", out="fresh.zarr", device="cpu", dtype="float32")
    return content("fresh.zarr", array)


def counts(plan):
    return {name: count for name, count in vars(plan.changes).items() if count}


@pytest.mark.parametrize(
    ("now", "told", "encoded"),
    [
        (dataset(23), {"added": 3}, 3),
        (dataset(i7=None, i8=None), {"removed": 2}, 0),
        (dataset(i7=77), {"changed": 1}, 1),
        (dataset(labels={"i0": 1, "i1": -1}), {"relabelled": 2}, 0),
        (dataset(i7=None, i99=7), {"removed": 1, "returned": 1}, 0),  # a file that was renamed
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
    unlisted = told.get("changed", 0) + told.get("removed", 0) - told.get("returned", 0)
    assert found.superseded == unlisted
    # And then it is what it is.
    again = made(now)
    assert (counts(made.plan), again.encoded, again.snapshot) == ({}, 0, result.snapshot)
    # Plain readers see which rows count.
    store = samtl.open(result.store)
    group = store.zarr()
    assert int(group["valid"][:].sum()) == len(now)
    assert np.array_equal(group["pooled"][:][group["valid"][:]], store.read("pooled"))


def test_images_that_come_back_or_swap_names_are_not_embedded_again(made):
    made(dataset())
    made(dataset(i3=None, i4=44))
    result = made(dataset())
    assert (counts(made.plan), result.encoded) == ({"changed": 1, "returned": 2}, 0)
    assert content() == fresh(dataset())
    swapped = dataset(i5=6, i6=5)
    result = made(swapped)
    assert (counts(made.plan), result.encoded) == ({"changed": 2, "returned": 2}, 0)
    assert content() == fresh(swapped)


def test_a_bad_image_that_was_mended_is_embedded(made):
    assert [q.sample_id for q in made(reading(dataset(), i5=b"no image")).quarantined] == ["i5"]
    result = made(dataset())
    assert (counts(made.plan), result.quarantined) == ({"changed": 1}, ())
    assert content() == fresh(dataset())


def test_an_image_that_cannot_be_read_now_keeps_its_row(made):
    before = made(dataset()).snapshot
    assert made(reading(dataset(), i5=OSError(5, "gone for now"))).snapshot == before


@pytest.mark.parametrize("fewer", [{"limit": 15}, {"per_class": 8}])
def test_a_smaller_part_takes_no_row_back(made, fewer):
    before = made(dataset()).snapshot
    with pytest.raises(MismatchError, match="rows: the store has 20 of them, asked for is 1"):
        made(dataset(), **fewer)
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
    assert made.plan.changes.removed == made.plan.changes.added > 0
    # One that is gone is gone, whatever part it was.
    name = samtl.open("a.zarr").sample_ids[0]
    result = made(dataset(60, **{name: None}), limit=20)
    assert (result.rows, made.plan.changes.removed) == (20, 1)


def test_a_class_that_is_gone_leaves_a_smaller_part(made):
    """As many of each class are asked for as before; which of them, depends on the images that came."""

    def of(numbers, classes):
        labels = tuple(i % 3 for i in numbers)
        ids = tuple(f"i{i}" for i in numbers)
        return replace(dataset(100), sample_ids=ids, labels=labels, classes=classes)

    made(of(range(60), ("a", "b", "c")), per_class=6)
    made(of([i for i in range(66) if i % 3 < 2], ("a", "b")), per_class=6)
    assert made.plan.rows == 12
    assert made.plan.changes.removed == 6 + made.plan.changes.added
    assert made.plan.changes.added > 0


def test_most_of_a_dataset_does_not_vanish_by_mistake(made):
    before = made(dataset()).snapshot
    with pytest.raises(MismatchError, match="9 of the store's are among them"):
        made(dataset(9))
    assert samtl.open("a.zarr").snapshot == before
    made(dataset(10))


def test_images_need_not_be_read(made):
    made(dataset())
    assert made.read == 0
    made(dataset())
    assert made.read == 20
    result = made(dataset(i7=77), check_images=False)
    assert (made.read, counts(made.plan), result.encoded) == (0, {}, 0)


def test_comparing_images_can_be_stopped(made, encoders):
    store = made(dataset(200)).store
    before, encoded, reads = stubs.contents(store), encoders.images, []
    now = dataset(202, i1=None, i3=333)  # of which little is known if not all were looked at
    watched = replace(now, read=lambda name: reads.append(name) or now.read(name))
    result = made(watched, should_stop=lambda: True)
    assert (result.interrupted, result.encoded, result.missing, result.rows) == (True, 0, 0, 200)
    assert len(reads) < 100
    assert encoders.images == encoded
    assert stubs.contents(store) == before


def test_a_plan_tells_and_changes_nothing(made):
    store = made(dataset()).store
    before = stubs.contents(store)
    plan = plan_of(dataset(22, i7=77), "stub", out=store, device="cpu", dtype="float32")
    assert counts(plan) == {"added": 2, "changed": 1}
    assert (plan.rows, plan.pending_rows) == (22, 3)
    assert stubs.contents(store) == before


@pytest.mark.parametrize("stop_after", [0, 1])
def test_a_change_that_was_interrupted_goes_on(made, stop_after):
    made(dataset())
    asked = iter(range(100))
    made(
        dataset(60, labels={"i0": 1}, i7=77), batch_size=8, check_images=False,
        should_stop=lambda: next(asked) >= stop_after,
    )  # fmt: skip
    assert samtl.open("a.zarr").missing > 0
    now = dataset(59, i25=725)  # it may change again before it is done
    made(now)
    assert content() == fresh(now)
    assert check(samtl.open("a.zarr").path, "deep").findings == []


def test_a_tier_is_added_to_rows_that_count(made):
    made(dataset(), tiers=["pooled"])
    now = dataset(i3=None, i4=44)
    made(now, tiers=["pooled"])
    read = []
    made(replace(now, read=lambda name: read.append(name) or now.read(name)), check_images=False)
    assert sorted(read) == sorted(now.sample_ids)  # no image of a row that is not listed
    assert content() == fresh(now)
    # A row that was not listed when the tier was added lacks it.
    result = made(dataset())
    assert (counts(made.plan), result.encoded) == ({"added": 1, "changed": 1}, 2)
    assert content() == fresh(dataset())


def test_a_row_at_the_end_of_a_block_that_a_later_tier_lacks(made):
    made(dataset(16), tiers=["pooled"])
    without = dataset(16, **{samtl.open("a.zarr").sample_ids[-1]: None})
    made(without, tiers=["pooled"])
    made(without)
    made(dataset(16))
    assert counts(made.plan) == {"added": 1}
    assert content() == fresh(dataset(16))


def test_a_row_that_comes_back_while_a_tier_is_added(made, monkeypatch):
    made(dataset(16), tiers=["pooled"])
    without = dataset(16, **{samtl.open("a.zarr").sample_ids[-1]: None})
    made(without, tiers=["pooled"])
    overtaken_by(monkeypatch, lambda: made(dataset(16), tiers=["pooled"]))
    made(without)
    result = made(dataset(16))
    assert (counts(made.plan), result.quarantined) == ({"changed": 1}, ())
    assert content() == fresh(dataset(16))
    assert check(result.store, "deep").findings == []


def overtaken_by(monkeypatch, other):
    """Let another pass run between the planning of the next one and its first block."""
    inner = api.load_encoder

    def load(*arguments):
        monkeypatch.setattr(api, "load_encoder", inner)
        other()
        return inner(*arguments)

    monkeypatch.setattr(api, "load_encoder", load)


def test_two_writers_with_different_changes(made, monkeypatch):
    """The second planned before the first was through."""
    made(dataset())
    overtaken_by(monkeypatch, lambda: made(dataset(22)))
    with pytest.raises(MismatchError, match="another sample table"):
        made(dataset(23))
    made(dataset(23))
    assert content() == fresh(dataset(23))


def test_keys_and_hashes_are_those_of_the_rows_that_count(made):
    made(dataset())
    now = dataset(22, i0=None)
    made(now)
    store = samtl.open("a.zarr")
    expected = [hashlib.sha256(now.read(name)).hexdigest() for name in store.sample_ids]
    assert [store.image_sha256(row) for row in range(len(store))] == expected
    assert list(store.state.table.images) == expected  # once nothing is missing


def test_groups_are_not_dropped_by_mistake(made):
    grouped = replace(dataset(), groups=tuple(f"s{i % 4}" for i in range(20)))
    made(grouped)
    with pytest.raises(MismatchError, match="--group-by"):
        made(dataset())
    made(replace(grouped, groups=tuple(f"s{i % 5}" for i in range(20))))
    assert counts(made.plan)["regrouped"] > 10
    assert set(samtl.open("a.zarr").groups) == {"s0", "s1", "s2", "s3", "s4"}


# ------------------------------------------------------------------------------------------------------------ masks


def masked(n=20, bad=(), **seeds):
    """The same images, with masks: of those in `seeds` another one."""
    images = dataset(n)

    def read_mask(name):
        if name in bad:
            return np.zeros((3, 3), np.uint8)
        seed = seeds.get(name, int(name[1:]))
        return np.random.default_rng(seed).integers(0, 2, (20, 20), np.uint8)

    return replace(images, labels=(-1,) * n, read_mask=read_mask)


def test_an_image_with_another_mask_gets_a_new_row(made):
    made(masked())
    now = masked(i3=33, i4=44)
    result = made(now)
    assert (counts(made.plan), result.encoded) == ({"changed": 2}, 2)
    assert content(array="mask") == fresh(now, "mask")
    assert made(now).encoded == 0
    assert made(masked(i3=3), check_images=False).encoded == 0
    result = made(masked())  # the first ones again
    assert (counts(made.plan), result.encoded) == ({"changed": 2, "returned": 2}, 0)
    assert content(array="mask") == fresh(masked(), "mask")


@pytest.mark.parametrize("code", ["mask_unreadable", "mask_values", "mask_size", "truncated"])
@pytest.mark.parametrize("first", [True, False])
def test_a_mask_that_becomes_bad_and_good_again(made, code, first):
    """Or is bad at first."""

    def read_mask(name):
        if name == "i5" and code != "mask_size":
            raise BadImage(code, "it is cut short")
        return masked(bad=("i5",) if code == "mask_size" else ()).read_mask(name)

    broken = replace(masked(), read_mask=read_mask)
    made(masked() if first else broken)
    (lost,) = made(broken).quarantined
    assert (lost.sample_id, lost.code.startswith("mask_")) == ("i5", True)
    assert (made(broken).encoded, counts(made.plan)) == (0, {})
    assert made(masked()).quarantined == ()
    assert content(array="mask") == fresh(masked(), "mask")


def test_a_mask_that_more_classes_make_usable(made):
    def read_mask(sample_id):
        return masked().read_mask(sample_id) + np.uint8(sample_id == "i5")

    beyond = replace(masked(), read_mask=read_mask)
    assert [(q.sample_id, q.code) for q in made(beyond).quarantined] == [("i5", "mask_values")]
    assert made(beyond).encoded == 0
    grown = replace(beyond, classes=(*beyond.classes, "more"))
    assert made(grown).quarantined == ()
    assert made(grown).encoded == 0
    store = samtl.open("a.zarr")
    assert (store.read("mask", [store.sample_ids.index("i5")]) == 2).any()
    assert check(store.path, "deep").findings == []


def test_a_bad_image_with_a_good_mask_is_tried_once(made):
    bad = reading(masked(), i5=stubs.BROKEN["truncated"])
    made(bad)
    assert (made(bad).encoded, counts(made.plan)) == (0, {})
    assert made(masked()).quarantined == ()


def test_masks_do_not_change_their_meaning(made):
    """They hold the numbers of classes."""
    made(masked())
    turned = replace(masked(), classes=("odd", "even"))
    for check_images in (True, False):
        with pytest.raises(MismatchError, match="classes"):
            made(turned, check_images=check_images)
    made(replace(masked(), classes=("even", "odd", "more")))
    assert samtl.open("a.zarr").classes == ("even", "odd", "more")


def test_masks_are_held_against_the_dataset(made):
    made(masked())

    def read_mask(name):
        if name == "i6":
            raise OSError("not there")
        return masked(i5=55).read_mask(name)

    found = verify("a.zarr", "deep", dataset=replace(masked(), read_mask=read_mask))
    assert found.exit_code == 3
    assert {one.sample_id: one.what for one in found.images} == {"i5": "changed", "i6": "gone"}
    assert verify("a.zarr", "deep", dataset=masked()).exit_code == 0


# ---------------------------------------------------------------------------- what was put aside, and what is not there


@pytest.mark.parametrize("meanwhile", ["changed", "unreadable"])
def test_a_row_that_only_a_later_tier_lacks_is_made_anew(made, meanwhile):
    made(dataset(), tiers=["pooled"])
    good = dataset(i4=44) if meanwhile == "changed" else dataset()
    now = reading(good, i4=OSError("not now") if meanwhile == "unreadable" else None)
    result = made(now, check_images=False)
    assert [(q.sample_id, q.code) for q in result.quarantined] == [("i4", meanwhile)]
    result = made(good)
    assert (counts(made.plan), result.encoded, result.quarantined) == ({"changed": 1}, 1, ())
    assert content() == fresh(good)
    assert made(good).encoded == 0


def test_a_row_is_named_by_the_image_that_it_was_made_from(made):
    """And not by one that a later pass refused, whichever array is looked at first."""

    def key_of(name):
        store = samtl.open("a.zarr")
        row = store.sample_ids.index(name)
        return store.image_sha256(row), store.key(row)

    made(dataset(), tiers=["pooled"])
    before = key_of("i4")
    now = dataset(i4=44, i5=None)
    made(dataset(i4=44), tiers=["grid"], check_images=False)
    made(now, tiers=["pooled", "grid"], check_images=False)
    assert key_of("i4") == before
    samtl.compact("a.zarr")  # grid comes first then
    assert key_of("i4") == before
    found = verify("a.zarr", "deep", dataset=now)
    assert [(one.sample_id, one.what) for one in found.images] == [("i4", "changed")]
    # No tier of another image comes beside it.
    result = made(now, tiers=["dense"], check_images=False)
    assert [(q.sample_id, q.code) for q in result.quarantined] == [("i4", "changed")]
    assert check(result.store).findings == []
    made(now)
    assert content() == fresh(now)


@pytest.mark.parametrize("later", [4, 44])
def test_a_row_that_was_unreadable_at_first(made, later):
    made(reading(dataset(), i4=OSError("not now")), tiers=["pooled"])
    made(dataset(), tiers=["grid"], check_images=False)
    result = made(dataset(i4=later), tiers=["dense"], check_images=False)
    store = samtl.open("a.zarr")
    row = store.sample_ids.index("i4")
    assert store.image_sha256(row) == hashlib.sha256(stubs.png(4)).hexdigest()
    assert store.valid("dense")[row] == (later == 4)
    assert check(result.store).findings == []


def test_a_block_that_was_lost_is_not_filled_with_other_images(made):
    """The table knows which images its rows are, even if their records are gone."""
    store = made(dataset()).store
    (store / "log" / "0.0.json").write_bytes(b"damaged")
    assert verify(store, repair_it=True).repaired is not None
    result = made(dataset(i4=44))
    assert (counts(made.plan), result.quarantined) == ({"changed": 1}, ())
    assert content() == fresh(dataset(i4=44))


def test_a_drive_that_goes_away_stops_a_pass_over_few_rows(made):
    """A block with rows that are not listed has less than 16 to read."""
    made(dataset(64), tiers=["pooled"])
    now = dataset(64, **dict.fromkeys(f"i{i}" for i in range(0, 64, 9)))
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
    bad = reading(dataset(22), i20=b"", i21=b"")
    assert len(made(bad).quarantined) == 2
    gone = dict.fromkeys(("i22", "i23"), OSError("never there"))
    assert len(made(reading(dataset(24), i20=b"", i21=b"", **gone)).quarantined) == 4


def test_the_command_line_says_what_it_will_do(run, encoders, folder):
    command = ("embed", "--dataset", f"folder:{folder}", "--encoder", "tiny")
    assert run(*command)[0] == 0
    (folder / "town" / "0.png").unlink()
    (folder / "town" / "1.png").write_bytes(stubs.png(4711))
    (folder / "field" / "2.png").rename(folder / "town" / "2b.png")
    (folder / "field" / "new.png").write_bytes(stubs.png(4712))
    code, output, _ = run(*command, "--dry-run")
    assert code == 0
    for told in ("1 new", "1 changed", "2 gone", "1 back"):
        assert told in output
    assert run(*command)[0] == 0
    assert run("verify")[0] == 0
