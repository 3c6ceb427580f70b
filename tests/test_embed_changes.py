"""What a store makes of a dataset that changed."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import stubs
from stubs import reading
from toys import Reads

import samtl
from samtl.datasets import Dataset
from samtl.embed import api
from samtl.embed.api import plan as plan_of
from samtl.embed.plan import Plan
from samtl.embed.verify import verify
from samtl.errors import MismatchError, ResourceError
from samtl.images.codecs import BadImage, decode
from samtl.images.transforms import mask_square, resize_longest_side
from samtl.store.verify import check


def dataset(n=20, labels=None, **contents):
    """Images 0 to n - 1, those in `contents` with other bytes, and None where there is none."""
    seeds = {f"i{i}": i for i in range(n)} | contents
    files = {name: stubs.png(seed) for name, seed in seeds.items() if seed is not None}
    given = labels or {}
    targets = tuple(given.get(name, int(name[1:]) % 2) for name in files)
    return Dataset("toy", ("even", "odd"), tuple(files), targets, Reads(files))


def masked(**instead):
    """The same images, with masks: those in `instead` with that of another seed, or with what stands in its place."""
    masks = {f"i{i}": i for i in range(20)} | instead
    for name, seed in masks.items():
        if isinstance(seed, int):
            masks[name] = np.random.default_rng(seed).integers(0, 2, (20, 20), np.uint8)
    return replace(dataset(), labels=(-1,) * 20, read_mask=Reads(masks))


@pytest.fixture
def made(encoders):
    def make(of, **options):
        events = []
        options = {"tiers": ["pooled", "grid"], "out": "a.zarr", "dtype": "float32", **options}
        result = api.embed(of, "stub", device="cpu", on_event=events.append, **options)
        plan = next((event for event in events if isinstance(event, Plan)), None)
        make.plan, make.read = plan, sum(isinstance(event, api.Reading) for event in events)
        changes = vars(plan.changes) if plan else {}
        make.counts = {name: count for name, count in changes.items() if count}
        return result

    return make


def expect(of, array="grid"):
    """Check that the store has just these images, with what the encoder makes of them."""
    model, store = stubs.StubEncoders().Encoder("stub", dtype="float32"), samtl.open("a.zarr")
    assert sorted(store.sample_ids) == sorted(of.sample_ids)
    assert (store.missing, store.quarantined, store.classes) == (0, (), of.classes)
    rows, at = store.read(array), [of.sample_ids.index(name) for name in store.sample_ids]
    assert store.labels.tolist() == [of.labels[place] for place in at]
    for column in ("groups", "parts"):
        values = getattr(of, column)
        assert getattr(store, column) == tuple(values[place] for place in at if values)
    for row, name in enumerate(store.sample_ids):
        if array == "mask":
            wanted = mask_square(of.read_mask(name), 64)
        else:
            pixels = resize_longest_side(decode(of.read(name)), 64)
            wanted = model.encode([pixels], (array,))[array][0]
        assert rows[row].tobytes() == wanted.tobytes()
    assert check("a.zarr", "deep").findings == []


def put_aside(result):
    return [(q.sample_id, q.code) for q in result.quarantined]


@pytest.mark.parametrize(
    ("now", "told", "encoded"),
    [
        (dataset(23), {"added": 3}, 3),
        (dataset(i7=None, i8=None), {"removed": 2}, 0),
        (dataset(labels={"i0": 1, "i1": -1}), {"relabelled": 2}, 0),
        (replace(dataset(), classes=("even", "strange")), {"relabelled": 10}, 0),
        (replace(dataset(), classes=("no", "even", "odd"), labels=(1, 2) * 10), {"relabelled": 20}, 0),
        (replace(dataset(), parts=("train", "test") * 10), {"regrouped": 20}, 0),
        (replace(dataset(), groups=("a", "b") * 10), {"regrouped": 20}, 0),
        (dataset(i7=None, i99=7), {"removed": 1, "returned": 1}, 0),  # a file that was renamed
        (dataset(40, labels={"i5": 0}, i7=77, i8=None),
         {"added": 20, "changed": 1, "removed": 1, "relabelled": 1}, 21),
    ],
)  # fmt: skip
def test_a_store_follows_its_dataset(made, now, told, encoded):
    path = made(dataset()).store
    before = stubs.contents(path)
    plan = plan_of(now, "stub", out=path, device="cpu", dtype="float32", tiers=["pooled", "grid"])
    assert stubs.contents(path) == before
    result = made(now)
    assert replace(made.plan, bytes_free=None) == replace(plan, bytes_free=None)
    assert (made.counts, made.plan.pending_rows) == (told, encoded)
    assert (result.encoded, result.rows, result.missing) == (encoded, len(now), 0)
    expect(now)
    new = [row for row in samtl.open(path).state.table.rows.tolist() if row >= 20]
    assert new == list(range(32, 32 + len(new)))  # they begin with a block
    found = check(path, "deep")
    assert (found.findings, found.leftovers, found.ok) == ([], [], len(now))
    unlisted = told.get("changed", 0) + told.get("removed", 0) - told.get("returned", 0)
    assert found.superseded == unlisted
    again = made(now)
    assert (made.counts, again.encoded, again.snapshot) == ({}, 0, result.snapshot)
    # Plain readers see which rows count.
    store, group = samtl.open(path), samtl.open(path).zarr()
    valid, names = group["valid"][:], group["sample"][:]
    assert int(valid.sum()) == len(now)
    assert sorted(names[valid]) == sorted(now.sample_ids)
    assert set(names[~valid]) <= {""}
    assert np.array_equal(group["pooled"][:][group["valid"][:]], store.read("pooled"))
    # The table has the hash of each image, once nothing is missing.
    expected = [hashlib.sha256(now.read(name)).hexdigest() for name in store.sample_ids]
    assert [store.image_sha256(row) for row in range(len(store))] == expected
    assert list(store.state.table.images) == expected


def test_images_that_come_back_or_swap_names_are_not_embedded_again(made):
    made(dataset())
    made(dataset(i3=None, i4=44))
    for now, told in (
        (dataset(), {"changed": 1, "returned": 2}),
        (dataset(i5=6, i6=5), {"changed": 2, "returned": 2}),
    ):
        assert (made(now).encoded, made.counts) == (0, told)
        expect(now)


def test_bad_images_are_tried_again_if_they_changed(made):
    assert put_aside(made(reading(dataset(), {"i5": b"no image"}))) == [("i5", "not_an_image")]
    result = made(dataset())
    assert (made.counts, result.quarantined) == ({"changed": 1}, ())
    expect(dataset())
    # One that cannot be read now keeps its row.
    assert made(reading(dataset(), {"i5": OSError(5, "gone for now")})).snapshot == result.snapshot


def test_a_part_grows_follows_the_dataset_and_takes_no_row_back(made):
    made(dataset(40), limit=15)
    first = set(samtl.open("a.zarr").sample_ids)
    assert made(dataset(40), limit=20).encoded == 5
    assert first < set(samtl.open("a.zarr").sample_ids)
    before = samtl.open("a.zarr").snapshot
    for fewer in ({"limit": 15}, {"per_class": 8}):
        with pytest.raises(MismatchError, match="rows: the store has 20 of them, asked for is 1"):
            made(dataset(40), **fewer)
    assert samtl.open("a.zarr").snapshot == before
    # Of more images, the first 20 are others.
    assert made(dataset(60), limit=20).rows == 20
    assert made.counts["removed"] == made.counts["added"] > 0
    # One that is gone is gone, whatever part it was.
    name = samtl.open("a.zarr").sample_ids[0]
    assert made(dataset(60, **{name: None}), limit=20).rows == 20
    assert made.counts["removed"] == 1


def test_a_class_that_is_gone_leaves_a_smaller_part(made):
    """As many of each class are asked for as before; which of them, depends on the images that came."""

    def of(numbers, classes):
        ids, labels = tuple(f"i{i}" for i in numbers), tuple(i % 3 for i in numbers)
        return replace(dataset(66), sample_ids=ids, labels=labels, classes=classes)

    made(of(range(60), ("a", "b", "c")), per_class=6)
    assert made(of([i for i in range(66) if i % 3 < 2], ("a", "b")), per_class=6).rows == 12
    assert made.counts["removed"] == 6 + made.counts["added"] > 6


def test_what_is_not_dropped_by_mistake(made):
    grouped = replace(dataset(), groups=tuple(f"s{i % 4}" for i in range(20)))
    before = made(grouped).snapshot
    with pytest.raises(MismatchError, match="--group-by"):
        made(dataset())
    with pytest.raises(MismatchError, match="9 of the store's are among them"):
        made(replace(dataset(9), groups=grouped.groups[:9]))
    assert samtl.open("a.zarr").snapshot == before
    made(replace(grouped, groups=tuple(f"s{i % 5}" for i in range(20))))
    assert made.counts["regrouped"] > 10
    assert set(samtl.open("a.zarr").groups) == {"s0", "s1", "s2", "s3", "s4"}
    made(replace(dataset(10), groups=grouped.groups[:10]))


def test_another_dataset_with_the_same_names_is_refused(made):
    """Fault: every row was replaced, without a word."""
    before = made(dataset()).snapshot
    with pytest.raises(MismatchError, match="11 with other bytes"):
        made(dataset(**{f"i{i}": 100 + i for i in range(11)}))
    with pytest.raises(MismatchError, match="20 with other bytes"):
        made(dataset(30, **{f"i{i}": 100 + i for i in range(20)}))
    assert samtl.open("a.zarr").snapshot == before
    # The same images under each other's names, and half of the images.
    assert made(dataset(**{f"i{i}": (i + 1) % 20 for i in range(20)})).encoded == 0
    assert made(dataset(**{f"i{i}": (i + 1) % 20 + 100 * (i % 2) for i in range(20)})).encoded == 10


def test_masks_that_are_all_others_are_the_same_dataset(made):
    made(masked())
    assert made(masked(**{f"i{i}": 100 + i for i in range(20)})).encoded == 20


def test_an_image_that_changes_while_most_are_missing_is_no_other_dataset(made):
    asked = iter([False] * (120 + 20))  # of images that are compared, and of batches
    assert 1 < made(dataset(120), should_stop=lambda: next(asked, True), batch_size=1).encoded < 60
    store = samtl.open("a.zarr")
    done = store.sample_ids[int(store.valid("grid").argmax())]
    assert made(dataset(120, **{done: 100})).rows == 120
    assert made.counts == {"changed": 1}


def test_comparing_images_can_be_left_out_or_stopped(made, encoders):
    store = made(dataset(60)).store
    assert made.read == 0
    made(dataset(60))
    assert made.read == 60
    result = made(dataset(60, i7=77), check_images=False)
    assert (made.read, made.counts, result.encoded) == (0, {}, 0)
    before, encoded = stubs.contents(store), encoders.images
    now = dataset(62, i1=None, i3=333)  # of which little is known if not all were looked at
    result = made(now, should_stop=lambda: True)
    assert (result.interrupted, result.encoded, result.missing, result.rows) == (True, 0, 0, 60)
    assert len(now.read.asked) < 50
    assert encoders.images == encoded
    assert stubs.contents(store) == before


@pytest.mark.parametrize("stop_after", [0, 1])
def test_a_change_that_was_interrupted_goes_on(made, stop_after):
    made(dataset())
    asked = iter(range(100))
    now = dataset(60, labels={"i0": 1}, i7=77)
    made(now, batch_size=8, check_images=False, should_stop=lambda: next(asked) >= stop_after)
    assert samtl.open("a.zarr").missing > 0
    now = dataset(59, i25=725)  # it may change again before it is done
    made(now)
    expect(now)


def test_a_tier_is_added_to_rows_that_count(made):
    made(dataset(), tiers=["pooled"])
    now = dataset(i3=None, i4=44)
    made(now, tiers=["pooled"])
    now.read.asked.clear()
    made(now, check_images=False)
    assert set(now.read.asked) == set(now.sample_ids)  # no image of a row that is not listed
    expect(now)
    # A row that was not listed when the tier was added lacks it.
    result = made(dataset())
    assert (made.counts, result.encoded) == ({"added": 1, "changed": 1}, 2)
    expect(dataset())


def overtaken_by(monkeypatch, other):
    """Let another pass run between the planning of the next one and its first block."""
    inner = api.load_encoder

    def load(*arguments):
        monkeypatch.setattr(api, "load_encoder", inner)
        other()
        return inner(*arguments)

    monkeypatch.setattr(api, "load_encoder", load)


@pytest.mark.parametrize("meanwhile", [False, True])
def test_a_row_at_the_end_of_a_block_that_a_later_tier_lacks(made, monkeypatch, meanwhile):
    made(dataset(16), tiers=["pooled"])
    without = dataset(16, **{samtl.open("a.zarr").sample_ids[-1]: None})
    made(without, tiers=["pooled"])
    if meanwhile:
        overtaken_by(monkeypatch, lambda: made(dataset(16), tiers=["pooled"]))
    made(without)
    result = made(dataset(16))
    assert made.counts == ({"changed": 1} if meanwhile else {"added": 1})
    assert result.quarantined == ()
    expect(dataset(16))


def test_two_writers_with_different_changes(made, monkeypatch):
    """The second planned before the first was through."""
    made(dataset())
    overtaken_by(monkeypatch, lambda: made(dataset(22)))
    with pytest.raises(MismatchError, match="another sample table"):
        made(dataset(23))
    made(dataset(23))
    expect(dataset(23))


def test_an_image_with_another_mask_gets_a_new_row(made):
    made(masked())
    for now, told, encoded in (
        (masked(i3=33, i4=44), {"changed": 2}, 2),
        (masked(i3=33, i4=44), {}, 0),
        (masked(), {"changed": 2, "returned": 2}, 0),  # the first ones again
    ):
        assert (made(now).encoded, made.counts) == (encoded, told)
        expect(now, "mask")
    assert made(masked(i3=3), check_images=False).encoded == 0


@pytest.mark.parametrize("code", ["mask_unreadable", "mask_values", "mask_size", "truncated"])
@pytest.mark.parametrize("first", [True, False])
def test_a_mask_that_becomes_bad_and_good_again(made, code, first):
    wrong = np.zeros((3, 3), np.uint8) if code == "mask_size" else BadImage(code, "it is cut short")
    broken = masked(i5=wrong)
    made(masked() if first else broken)
    (lost,) = made(broken).quarantined
    assert (lost.sample_id, lost.code.startswith("mask_")) == ("i5", True)
    assert (made(broken).encoded, made.counts) == (0, {})
    made(masked())
    expect(masked(), "mask")
    bad = reading(masked(), {"i5": stubs.BROKEN["truncated"]})  # an image, whose mask is good
    made(bad)
    assert (made(bad).encoded, made.counts) == (0, {})
    assert made(masked()).quarantined == ()


def test_a_mask_that_more_classes_make_usable(made):
    beyond = masked(i5=masked().read_mask("i5") + np.uint8(1))
    assert put_aside(made(beyond)) == [("i5", "mask_values")]
    assert made(beyond).encoded == 0
    turned = replace(masked(), classes=("odd", "even"))  # masks hold the numbers of classes
    for check_images in (True, False):
        with pytest.raises(MismatchError, match="classes"):
            made(turned, check_images=check_images)
    grown = replace(beyond, classes=(*beyond.classes, "more"))
    made(grown)
    expect(grown, "mask")
    assert made(grown).encoded == 0
    assert samtl.open("a.zarr").classes == ("even", "odd", "more")


@pytest.mark.parametrize("meanwhile", ["changed", "unreadable"])
def test_a_row_that_only_a_later_tier_lacks_is_made_anew(made, meanwhile):
    made(dataset(), tiers=["pooled"])
    good = dataset(i4=44) if meanwhile == "changed" else dataset()
    now = reading(good, {"i4": OSError("not now")} if meanwhile == "unreadable" else {})
    assert put_aside(made(now, check_images=False)) == [("i4", meanwhile)]
    assert (made(good).encoded, made.counts) == (1, {"changed": 1})
    expect(good)
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
    made(now, check_images=False)
    assert key_of("i4") == before
    samtl.compact("a.zarr")  # grid comes first then
    assert key_of("i4") == before
    found = verify("a.zarr", "deep", dataset=now)
    assert [(one.sample_id, one.what) for one in found.images] == [("i4", "changed")]
    # No tier of another image comes beside it.
    assert put_aside(made(now, tiers=["dense"], check_images=False)) == [("i4", "changed")]
    assert check("a.zarr").findings == []
    made(now, tiers=["pooled", "grid", "dense"])
    expect(now, "dense")


@pytest.mark.parametrize("later", [4, 44])
def test_a_row_that_was_unreadable_at_first(made, later):
    made(reading(dataset(), {"i4": OSError("not now")}), tiers=["pooled"])
    made(dataset(), tiers=["grid"], check_images=False)
    made(dataset(i4=later), tiers=["dense"], check_images=False)
    store = samtl.open("a.zarr")
    row = store.sample_ids.index("i4")
    assert store.image_sha256(row) == hashlib.sha256(stubs.png(4)).hexdigest()
    assert store.valid("dense")[row] == (later == 4)
    assert check("a.zarr").findings == []


def test_a_block_that_was_lost_is_not_filled_with_other_images(made):
    """The table knows which images its rows are, even if their records are gone."""
    store = made(dataset()).store
    (store / "log" / "0.0.json").write_bytes(b"damaged")
    assert verify(store, repair_it=True).repaired is not None
    made(dataset(i4=44))
    assert made.counts == {"changed": 1}
    expect(dataset(i4=44))


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
    expect(now)
    # Few new images that are all bad are no drive that went away.
    gone = dict.fromkeys(("i66", "i67"), OSError("never there"))
    assert len(made(reading(dataset(68), {"i64": b"", "i65": b"", **gone})).quarantined) == 4


def test_the_command_line_says_what_it_will_do(run, encoders, folder):
    command = ("embed", "--dataset", f"folder:{folder}", "--encoder", "tiny")
    assert run(*command)[0] == 0
    (folder / "town" / "0.png").unlink()
    (folder / "town" / "1.png").write_bytes(stubs.png(4711))
    (folder / "field" / "2.png").rename(folder / "town" / "2b.png")
    (folder / "field" / "new.png").write_bytes(stubs.png(4712))
    _, output, _ = run(*command, "--dry-run")
    assert all(told in output for told in ("1 new", "1 changed", "2 gone", "1 back"))
