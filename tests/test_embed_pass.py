"""The encoder pass: what is kept of bad images, interruptions and full disks, and what is not computed twice."""

import dataclasses
import errno
import json
import os
import random
import re
import shutil
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from stubs import (
    BROKEN,
    SHAPES,
    StubEncoder,
    StubEncoders,
    contents,
    everything,
    install,
    png,
    small_dataset,
    toy_dataset,
)

from samtl import _io
from samtl._runtime import Note
from samtl.datasets import Dataset, resolve
from samtl.embed import api, pipeline
from samtl.embed import plan as planning
from samtl.embed.api import embed
from samtl.embed.pipeline import Meter, Overlap, Progress
from samtl.embed.plan import Plan
from samtl.errors import InputError, MismatchError, ResourceError
from samtl.images.codecs import BadImage, decode, statistics
from samtl.images.transforms import mask_square, resize_longest_side
from samtl.store.fingerprint import read_identity
from samtl.store.log import read_record, record_places
from samtl.store.reader import open_store
from samtl.store.state import Quarantined, load_state
from samtl.store.storage import DiskStorage, open_storage
from samtl.store.writer import Writer

ROWS = 112  # seven blocks


def run(dataset=None, out="a.zarr", **options):
    return embed(dataset or toy_dataset(ROWS), "stub", out=out, device="cpu", **options)


def rows_of(path):
    return everything(open_store(path))


def blocks(path="a.zarr"):
    """The blocks that are committed."""
    return sorted({block for block, _ in record_places(open_storage(path))})


def record(block, sequence, path="a.zarr"):
    storage = open_storage(path)
    return read_record(storage, read_identity(storage), block, sequence)


def committed(path="a.zarr"):
    """How many rows are."""
    state = load_state(open_storage(path))
    return 0 if state is None or state.table is None else int(state.marked("committed").sum())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Give the rows of an uninterrupted pass over the toy dataset."""
    with pytest.MonkeyPatch.context() as patch:
        install(StubEncoders(), patch.setattr)
        return rows_of(run(out=tmp_path_factory.mktemp("whole") / "a.zarr").store)


# What a pass leaves


def test_each_row_is_what_the_encoder_gives_for_its_image(encoders):
    dataset = toy_dataset(21)
    result = run(dataset, batch_size=4)
    store = open_store(result.store)
    model = encoders.Encoder("stub", dtype="float32")
    for row, sample_id in enumerate(store.sample_ids):
        pixels = decode(dataset.read(sample_id))
        wanted = model.encode([resize_longest_side(pixels, 64)], ("pooled", "grid", "dense"))
        for name, arrays in wanted.items():
            np.testing.assert_array_equal(store.row(name, row), arrays[0])
        np.testing.assert_array_equal(store.row("image_stats", row), statistics(pixels))
        assert store.row("original_size", row).tolist() == list(pixels.shape[:2])


@pytest.mark.parametrize("batch_size", [1, 5, 16, 40])
def test_the_batch_size_does_not_show(encoders, whole, batch_size):
    assert rows_of(run(batch_size=batch_size).store) == whole
    assert encoders.largest_batch == batch_size
    assert encoders.images == ROWS


def test_the_result_says_what_was_done(encoders):
    result = run(small_dataset(), batch_size=1)
    store = open_store("a.zarr")
    assert (result.rows, result.encoded, result.missing) == (37, 37, 0)
    assert (result.fingerprint, result.snapshot) == (store.fingerprint, store.snapshot)
    assert (result.weights, result.untrained) == ("untrained (random:0)", True)
    assert result.interrupted is False
    assert result.seconds > 0
    assert result.images_per_second == result.encoded / result.seconds
    assert result.peak_memory > 10 * 2**20
    printed = json.loads(json.dumps(result.to_json()))
    assert printed["store"] == "a.zarr"
    assert printed["batch_size"] == 1
    assert len(printed["quarantined"]) == 2


def test_what_the_encoder_says_is_told_once(encoders):
    encoders.note = "the encoder has something to say"
    events = []
    run(small_dataset(), batch_size=4, on_event=events.append)
    assert [event for event in events if isinstance(event, Note)] == [Note(encoders.note)]


def test_progress_is_told_from_plan_to_end(encoders):
    events = []
    result = run(small_dataset(), batch_size=4, on_event=events.append)
    assert events[0] == result.plan
    assert [type(event) for event in events].count(Plan) == 1
    progress = [event for event in events if isinstance(event, Progress)]
    assert [p.encoded for p in progress] == [*range(4, 37, 4), 37, 37]
    assert {p.pending_rows for p in progress} == {37}
    assert progress[0].seconds_left is None
    assert progress[-1].seconds_left == 0
    assert not any(isinstance(event, Note) for event in events)
    written = [p.bytes_written for p in progress]
    assert written == sorted(written)
    assert written[-1] == result.bytes_written
    assert progress[-1].quarantined == 2
    assert {e for e in events if isinstance(e, Quarantined)} == set(result.quarantined)


def test_a_whole_store_is_not_computed_again_and_read_once(encoders, small, monkeypatch):
    before, reads, read = contents(small, hidden=False), [], DiskStorage.read
    monkeypatch.setattr(
        DiskStorage, "read", lambda self, name, *most: reads.append(name) or read(self, name, *most)
    )
    result = run(small_dataset(), out=small)
    assert (result.encoded, result.bytes_written, encoders.images) == (0, 0, 0)
    assert len(result.quarantined) == 2
    assert contents(small, hidden=False) == before
    once = [
        "fingerprint.json",
        "samples/000001.parquet",
        *(f"log/{block}.0.json" for block in range(3)),
    ]
    assert sorted(name for name in reads if name not in ("zarr.json", "log/pack.npz")) == sorted(
        once
    )


def test_untrusted_images_are_decoded_elsewhere(encoders):
    ours = run(small_dataset(), out="ours.zarr")
    theirs = run(small_dataset(), untrusted=True)
    assert rows_of(theirs.store) == rows_of(ours.store)
    assert [q.code for q in theirs.quarantined] == [q.code for q in ours.quarantined]


def test_at_real_size_the_arrays_are_as_designed(monkeypatch):
    install(StubEncoders(image_size=1024), monkeypatch.setattr)
    store = open_store(run(toy_dataset(17)).store)
    assert store.shape("dense") == (17, 256, 64, 64)
    assert store.shape("grid") == (17, 256, 16, 16)
    assert Path("a.zarr/dense/c.0.0.0.0").stat().st_size == 32 + 16 * (2**21 + 4) + 260
    theirs = store.zarr()["dense"]
    assert theirs.shards == (16, 256, 64, 64)
    assert theirs[16].tobytes() == store.row("dense", 16).tobytes()


# Bad images


@pytest.mark.parametrize("kind", BROKEN)
def test_a_bad_image_is_set_aside_and_the_pass_goes_on(encoders, kind):
    result = run(toy_dataset(21, bad={4: kind}))
    (bad,) = result.quarantined
    assert bad.sample_id == "class1/0004.png"
    assert bad.code == ("unreadable" if kind == "gone" else kind)
    assert bad.reason
    store = open_store("a.zarr")
    assert store.valid().sum() == 20
    assert not store.valid()[bad.row]
    for name in ("dense", "grid", "pooled", "image_stats"):
        assert np.isnan(store.row(name, bad.row)).all()
    assert store.labels[bad.row] == 1
    assert store.sample_ids[bad.row] == bad.sample_id
    assert store.missing == 0


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("array", ["pooled", "dense"])
def test_an_output_that_is_not_finite_is_set_aside(encoders, array, value):
    def spoil_the_seventh(outputs):
        if encoders.images == 7:
            outputs[array][0].flat[3] = value

    encoders.spoil = spoil_the_seventh
    (bad,) = run(toy_dataset(21), batch_size=1).quarantined
    assert bad.code == "nonfinite"
    assert np.isnan(open_store("a.zarr").read("grid", [bad.row])).all()


def test_a_dataset_of_bad_images_alone_ends(encoders):
    result = run(toy_dataset(18, bad=dict.fromkeys(range(18), "empty")), batch_size=4)
    assert len(result.quarantined) == 18
    assert (result.missing, encoders.images) == (0, 0)


@pytest.mark.parametrize("code", [errno.EMFILE, errno.EIO])
def test_an_image_that_the_machine_cannot_read_now_is_not_the_images_fault(encoders, code):
    dataset = toy_dataset(40, bad={7: OSError(code, os.strerror(code))})
    with pytest.raises(ResourceError, match=r"reading class1/0007\.png failed") as caught:
        run(dataset)
    assert caught.value.exit_code == 5
    assert open_store("a.zarr").quarantined == ()
    assert run(toy_dataset(40)).missing == 0


# Masks


def masked_dataset(n=37, bad=None, unreadable=()):
    """Give small images with masks of three classes; `bad` maps a number to what stands in a mask's place."""
    images = toy_dataset(n, bad=dict.fromkeys(unreadable, "unreadable"))
    ids = tuple(i.rpartition("/")[2] for i in images.sample_ids)
    paths = dict(zip(ids, images.sample_ids, strict=True))
    masks = {}
    for number, sample_id in enumerate(ids):
        random_ = np.random.default_rng(number)
        masks[sample_id] = random_.integers(0, 3, SHAPES[number % 3], np.uint8)
        masks[sample_id][0, 0] = 255
    masks |= {ids[number]: content for number, content in (bad or {}).items()}

    def read_mask(sample_id):
        content = masks[sample_id]
        if isinstance(content, Exception):
            raise content
        return content

    return Dataset(
        "masked", ("background", "road", "roof"), ids, (-1,) * n, lambda i: images.read(paths[i]),
        read_mask=read_mask, groups=tuple(f"scene{i % 4}" for i in range(n)),
        parts=tuple(("train", "validation", "test")[i % 3] for i in range(n)),
    )  # fmt: skip


def test_masks_lie_on_the_encoders_square(encoders):
    dataset = masked_dataset()
    store = open_store(run(dataset).store)
    assert (store.task, store.classes) == ("segmentation", ("background", "road", "roof"))
    assert store.shape("mask") == (37, 64, 64)
    assert store.labels.tolist() == [-1] * 37
    rows = store.read("mask")
    for row, sample_id in enumerate(store.sample_ids):
        np.testing.assert_array_equal(rows[row], mask_square(dataset.read_mask(sample_id), 64))
        number = dataset.sample_ids.index(sample_id)
        assert store.groups[row] == dataset.groups[number]
        assert store.parts[row] == dataset.parts[number]
    np.testing.assert_array_equal(store.zarr()["mask"][:], rows)


def test_generated_roads_become_a_store(encoders):
    dataset = resolve("synthetic-roads:8")
    store = open_store(run("synthetic-roads:8", group_by=r"/(\d+)\.bmp").store)
    assert store.quarantined == ()
    assert store.task == "segmentation"
    assert store.groups == tuple(i.split("/")[1].removesuffix(".bmp") for i in store.sample_ids)
    for row, sample_id in enumerate(store.sample_ids):
        mask = store.row("mask", row)
        np.testing.assert_array_equal(mask, mask_square(dataset.read_mask(sample_id), 64))
        assert {0, 1} <= set(np.unique(mask)) <= {0, 1, 255}


def test_a_pass_with_masks_that_was_stopped_goes_on(encoders):
    whole = rows_of(run(masked_dataset(), out="whole.zarr").store)
    asked = iter([False] * 2)
    first = run(masked_dataset(), batch_size=8, should_stop=lambda: next(asked, True))
    assert first.interrupted
    assert run(masked_dataset()).encoded == 37 - first.encoded
    assert rows_of("a.zarr") == whole


def test_groups_may_change_and_masks_may_not_go(encoders):
    before = run(masked_dataset()).snapshot
    result = run(masked_dataset(), group_by=r"(\d)\.")
    assert (result.encoded, result.snapshot == before) == (0, False)
    assert set(open_store("a.zarr").groups) == set("0123456789")
    with pytest.raises(MismatchError, match="task: the store has segmentation"):
        run(dataclasses.replace(masked_dataset(), read_mask=None))


def test_an_added_tier_leaves_masks_alone(encoders):
    whole = rows_of(run(masked_dataset(), out="whole.zarr").store)
    run(masked_dataset(), tiers=["pooled"])
    run(masked_dataset())
    assert rows_of("a.zarr") == whole
    assert record(1, 1).arrays.keys() == {"grid", "dense"}


@pytest.mark.parametrize(
    ("content", "code", "told"),
    [
        (BadImage("mask_values", "this one has 9 too"), "mask_values", "this one has 9 too"),
        (BadImage("mask_unreadable", "cut short"), "mask_unreadable", "cut short"),
        (InputError("taken out of the archive"), "mask_unreadable", "taken out of the archive"),
        (FileNotFoundError(2, "No such file"), "mask_unreadable", "No such file"),
        (np.zeros((20, 21), np.uint8), "mask_size", "size, 30 x 12, was expected, this one is 21 x 20"),
        (np.zeros((30, 12), np.uint8), "mask_size", "30 x 12, was expected, this one is 12 x 30"),
        (np.full((12, 30), 3, np.uint8), "mask_values", "indices below 3, or 255 to be ignored, this one holds 3"),
        (np.zeros((12, 30), np.int64), "mask_unreadable", r"\(12, 30\) int64"),
        (np.zeros((12, 30, 1), np.uint8), "mask_unreadable", r"\(12, 30, 1\) uint8"),
    ],
)  # fmt: skip
def test_a_bad_mask_sets_its_row_aside(encoders, content, code, told):
    (bad,) = run(masked_dataset(bad={7: content})).quarantined
    assert (bad.sample_id, bad.code) == ("0007.png", code)
    assert re.search(told, bad.reason)
    store = open_store("a.zarr")
    assert (store.row("mask", bad.row) == 255).all()
    assert np.isnan(store.row("dense", bad.row)).all()
    assert store.valid().sum() == 36
    assert run(masked_dataset(bad={7: content})).encoded == 0


def test_a_bad_image_is_told_before_its_mask(encoders):
    dataset = masked_dataset(bad={7: BadImage("mask_values", "9")}, unreadable=(7,))
    assert [bad.code for bad in run(dataset).quarantined] == ["unreadable"]


def test_a_mask_does_not_count_to_the_image_it_belongs_to(encoders):
    """The image's hash is of its own bytes: an added tier takes the row, whatever became of the mask."""
    run(masked_dataset(), tiers=["pooled"])
    other = np.zeros(SHAPES[1], np.uint8)
    assert run(masked_dataset(bad={7: other})).quarantined == ()


@pytest.mark.parametrize("what", ["mask", "block"])
def test_masks_that_went_away_stop_the_pass(encoders, what):
    good = masked_dataset()

    def read_mask(sample_id):
        if encoders.images >= (20 if what == "mask" else 0):
            raise FileNotFoundError(2, "No such file or directory")
        return good.read_mask(sample_id)

    with pytest.raises(ResourceError, match="cannot be read any more"):
        run(dataclasses.replace(good, read_mask=read_mask), batch_size=2)
    assert open_store("a.zarr").quarantined == ()
    assert run(masked_dataset()).missing == 0


def test_bad_masks_in_a_whole_block_do_not_stop_the_pass(encoders):
    bad = dict.fromkeys(range(37), BadImage("mask_unreadable", "cut short"))
    assert len(run(masked_dataset(bad=bad)).quarantined) == 37


def test_a_mask_that_the_machine_cannot_read_now_is_not_the_masks_fault(encoders):
    with pytest.raises(ResourceError, match=r"reading 0007\.png failed"):
        run(masked_dataset(bad={7: OSError(errno.EIO, os.strerror(errno.EIO))}))


def test_bad_masks_beside_unreadable_files_do_not_look_like_a_drive_that_went_away(encoders):
    """What is tried again to find out may itself be a row whose mask is bad."""
    bad = dict.fromkeys(range(36), BadImage("mask_values", "9"))
    assert len(run(masked_dataset(bad=bad, unreadable=(36,))).quarantined) == 37


def test_another_writer_may_have_begun_the_store_with_other_blocks(encoders, whole, monkeypatch):
    """It was planned before there was one."""
    load, choose = api.load_encoder, planning.rows_of_a_block

    def overtaken(*arguments):
        monkeypatch.setattr(api, "load_encoder", load)
        monkeypatch.setattr(planning, "rows_of_a_block", choose)
        run(should_stop=lambda: True)
        return load(*arguments)

    monkeypatch.setattr(api, "load_encoder", overtaken)
    monkeypatch.setattr(planning, "rows_of_a_block", lambda *arguments: 64)
    result = run()
    assert (result.missing, result.interrupted) == (0, False)
    assert rows_of("a.zarr") == whole


def test_devices_that_another_writer_left_nothing_to_do(encoders, monkeypatch):
    def overtaken(job, *arguments):
        run()
        return Meter(lambda event: None, job.plan.pending_rows)

    monkeypatch.setattr(api, "encode_on_devices", overtaken)
    result = embed(toy_dataset(ROWS), "stub", out="a.zarr", device="cpu,cpu")
    assert (result.encoded, result.missing, result.interrupted) == (0, 0, False)


# Further tiers


def test_a_tier_that_is_added_later_is_the_one_of_a_single_pass(encoders, whole):
    run(tiers=["pooled"])
    first = contents(Path("a.zarr"), hidden=False)
    assert open_store("a.zarr").tiers == ("pooled",)
    result = run()
    assert result.encoded == ROWS
    after = contents(Path("a.zarr"), hidden=False)
    new = after.keys() - first.keys()
    assert {name for name in new if name.startswith("log/")} == {
        f"log/{b}.1.json" for b in range(7)
    }
    shards = ("log/", "pooled/c", "image_stats/c", "original_size/c")
    kept = {name for name in first if name.startswith(shards)}
    assert {name for name in first if after[name] != first[name]}.isdisjoint(kept)
    assert rows_of("a.zarr") == whole
    assert record(1, 1).arrays.keys() == {"grid", "dense"}


def test_tiers_that_are_not_asked_for_again_stay(encoders, whole):
    run(tiers=["grid"])
    run(tiers=["pooled"])
    store = open_store("a.zarr")
    assert store.tiers == ("pooled", "grid")
    assert rows_of("a.zarr") == {k: v for k, v in whole.items() if k != "dense"}


def test_an_image_that_changed_between_two_passes_is_set_aside(encoders):
    """As one that changes after it was compared."""
    run(toy_dataset(21), tiers=["pooled"])
    before = rows_of("a.zarr")
    result = run(toy_dataset(21, bad={4: png(999), 5: "truncated"}), check_images=False)
    store = open_store("a.zarr")
    assert {(q.sample_id, q.code) for q in result.quarantined} == {
        ("class1/0004.png", "changed"),
        ("class2/0005.png", "changed"),
    }
    changed = [q.row for q in result.quarantined]
    assert np.isnan(store.read("grid", changed)).all()
    assert np.isnan(store.read("dense", changed)).all()
    assert {name: rows_of("a.zarr")[name] for name in before} == before
    assert store.valid("pooled").all()
    assert np.flatnonzero(~store.valid()).tolist() == changed
    assert not np.isnan(np.delete(store.read("grid"), changed, axis=0)).any()


def test_an_image_that_became_unreadable_is_told_as_that(encoders):
    run(toy_dataset(21), tiers=["pooled"])
    result = run(toy_dataset(21, bad={4: "unreadable"}))
    assert [(q.sample_id, q.code) for q in result.quarantined] == [
        ("class1/0004.png", "unreadable")
    ]


def test_a_drive_that_went_away_stops_the_pass_and_spoils_no_row(encoders, whole):
    good = toy_dataset(ROWS)

    def read(sample_id):
        if encoders.images >= 32:
            raise FileNotFoundError(2, "No such file or directory")
        return good.read(sample_id)

    with pytest.raises(ResourceError, match="cannot be read any more") as caught:
        run(dataclasses.replace(good, read=read))
    assert caught.value.exit_code == 5
    store = open_store("a.zarr")
    assert store.quarantined == ()
    assert 16 <= len(store) - store.missing <= 32
    assert run().missing == 0
    assert rows_of("a.zarr") == whole


def test_a_drive_that_was_never_there_stops_the_pass(encoders):
    def read(sample_id):
        raise FileNotFoundError(2, "No such file or directory")

    with pytest.raises(ResourceError, match="No such file or directory"):
        run(dataclasses.replace(toy_dataset(ROWS), read=read))
    assert open_store("a.zarr").missing == ROWS


def test_a_bad_image_that_is_still_bad_keeps_its_reason(encoders):
    dataset = toy_dataset(21, bad={4: "truncated", 5: "unreadable"})
    first = run(dataset, tiers=["pooled"])
    assert run(dataset).quarantined == first.quarantined


# Stores that others write to, or made in another way


def test_two_passes_at_once_share_the_work(encoders):
    alone, n = rows_of(run(toy_dataset(320), out="alone.zarr").store), encoders.images
    encoders.seconds = 0.005
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda number: run(toy_dataset(320), batch_size=4), range(2)))
    assert [result.missing for result in results] == [0, 0]
    assert sum(result.encoded for result in results) == 320
    assert all(result.encoded and not result.interrupted for result in results)
    assert encoders.images - n < 320 + 160  # where they met
    assert rows_of("a.zarr") == alone


def test_other_weights_are_refused_and_nothing_touched(encoders, small):
    before = contents(small)
    with pytest.raises(MismatchError, match=r"encoder\.weights_sha256: the store has"):
        run(small_dataset(), out=small, checkpoint="random:1")
    with pytest.raises(
        MismatchError, match=r"encoder\.name: the store has stub, asked for is other"
    ):
        embed(small_dataset(), "other", out=small, device="cpu")
    assert contents(small) == before
    assert encoders.images == 0


# Order and memory


def test_shards_are_published_before_their_record_and_the_fingerprint_first(encoders, monkeypatch):
    published, publish = [], _io.publish

    def note(path, pieces):
        publish(path, pieces)
        published.append(path.relative_to("a.zarr").as_posix())

    monkeypatch.setattr(_io, "publish", note)
    run(batch_size=40)
    published = [name for name in published if not name.startswith(".")]
    assert published[:2] == ["fingerprint.json", "samples/000000.parquet"]
    assert len(published) == len(set(published))
    for block in range(7):
        at = published.index(f"log/{block}.0.json")
        assert (
            sum(name.split("/c.")[-1].split(".")[0] == str(block) for name in published[:at]) == 5
        )


def test_decoding_stops_with_the_pass(encoders):
    read = []
    dataset = toy_dataset(ROWS)
    counted = Dataset(
        "toy", dataset.classes, dataset.sample_ids, dataset.labels,
        lambda sample_id: read.append(sample_id) or dataset.read(sample_id),
    )  # fmt: skip

    def fail(pixels):
        raise RuntimeError("the encoder is broken")

    encoders.before_batch = fail
    with pytest.raises(RuntimeError, match="the encoder is broken") as caught:
        run(counted, batch_size=4)
    assert len(read) <= 4 + 4 + 2
    alive = [t.name for t in threading.enumerate() if t.name.startswith(("decode", "write"))]
    assert alive == [], caught  # whoever keeps the error keeps no thread with it


@pytest.mark.parametrize("writes", [1, 4])
def test_a_slow_disk_holds_the_encoder_back(encoders, monkeypatch, writes):
    write_block, outputs, most = Writer.write_block, [], []

    def write_slowly(*arguments):
        time.sleep(0.03)
        return write_block(*arguments)

    monkeypatch.setattr(pipeline, "overlap", lambda device: Overlap(2 * (writes > 1), writes))
    monkeypatch.setattr(Writer, "write_block", write_slowly)
    encoders.spoil = lambda arrays: outputs.append(weakref.ref(arrays["dense"]))
    encoders.before_batch = lambda pixels: most.append(sum(o() is not None for o in outputs))
    run(toy_dataset(160), batch_size=16)
    assert len(most) == 10
    # On their way to disk, and, beside the device, encoded ahead.
    assert max(most) == 1 if writes == 1 else 1 < max(most) <= 4 + 3


def test_without_a_batch_size_the_encoder_is_asked(encoders, monkeypatch, whole):
    monkeypatch.setattr(planning, "images_per_call", lambda *arguments, untold: untold)
    monkeypatch.setattr(StubEncoder, "best_batch", lambda self, most: min(most, 7), raising=False)
    plans = []
    result = run(on_event=lambda event: plans.append(event) if isinstance(event, Plan) else None)
    assert [plan.batch_size for plan in plans] == [0]  # not known yet
    assert result.plan.batch_size == encoders.largest_batch == 7
    assert {writer["batch_size"] for writer in open_store("a.zarr").writers()} == {7}
    assert rows_of("a.zarr") == whole


# What goes on at the same time


@pytest.fixture
def overlapped(monkeypatch):
    """As on a GPU: two batches in the encoder beside the one taken over, four blocks on their way to disk."""
    monkeypatch.setattr(pipeline, "overlap", lambda device: Overlap(2, 4))


def test_a_gpu_is_kept_busy_and_a_cpu_keeps_little_in_flight():
    assert pipeline.overlap("cpu") == Overlap(0, 1)
    assert pipeline.overlap("cuda:1") == Overlap(2, 4)
    assert pipeline.overlap("mps") == Overlap(1, 4)  # where two threads are one too many


@pytest.mark.parametrize("batch_size", [1, 5, 16, 40])
def test_overlapping_does_not_show(encoders, overlapped, whole, batch_size):
    encoders.before_batch = lambda pixels: time.sleep(random.uniform(0, 0.003))
    events = []
    assert rows_of(run(batch_size=batch_size, on_event=events.append).store) == whole
    assert encoders.images == ROWS
    progress = [event.encoded for event in events if isinstance(event, Progress)]
    assert progress == [*range(batch_size, ROWS, batch_size), ROWS, ROWS]


def test_encoding_goes_on_while_results_are_taken_over_and_written(
    encoders, overlapped, monkeypatch
):
    """Three in the encoder at once, and four blocks held by a disk that does not answer."""
    write_block, disk, written = Writer.write_block, threading.Event(), []

    def write(*arguments):
        written.append(encoders.images)
        assert disk.wait(20)
        return write_block(*arguments)

    monkeypatch.setattr(Writer, "write_block", write)

    def before(pixels):
        if encoders.images >= 4 * 16:
            disk.set()  # only if blocks are encoded that the disk has not taken yet does it ever answer

    encoders.before_batch = before
    assert run(batch_size=16).missing == 0
    assert len(written) == ROWS // 16


@pytest.mark.parametrize("batch_size", [1, 8])
def test_an_overlapped_pass_that_fails_goes_on_where_it_was(
    encoders, overlapped, whole, batch_size
):
    for failures, number in enumerate((1, 40, 90), start=1):

        def check(pixels, number=number):
            if encoders.images + len(pixels) > number:
                raise ResourceError("the device gave out")

        encoders.before_batch = check
        with pytest.raises(ResourceError, match="the device gave out"):
            run(batch_size=batch_size)
        # Blocks that were whole are written; two batches beside the failed one, and the rows of a block, are lost.
        done = committed()
        assert encoders.images - done <= failures * (16 + 2 * batch_size)
    encoders.before_batch = lambda pixels: None
    assert run(batch_size=batch_size).missing == 0
    assert rows_of("a.zarr") == whole
    names = [t.name for t in threading.enumerate() if t.name.startswith(("ahead", "write"))]
    assert names == []


# Interruptions


@pytest.mark.parametrize("device", [Overlap(0, 1), Overlap(2, 4)])
@pytest.mark.parametrize(("batch_size", "seed"), [(1, 0), (1, 1), (5, 2), (40, 4), (40, 5)])
def test_a_pass_that_is_asked_to_stop_loses_nothing(
    encoders, monkeypatch, whole, batch_size, seed, device
):
    monkeypatch.setattr(pipeline, "overlap", lambda name: device)
    moments, passes = random.Random(seed), 0
    while True:
        before = encoders.images
        asked = iter([False] * moments.randrange(60 // batch_size + 1))
        result = run(
            batch_size=batch_size, check_images=False,  # stops are to come among the batches
            should_stop=lambda asked=asked: next(asked, True),
        )  # fmt: skip
        passes += 1
        done = committed()
        assert result.encoded == encoders.images - before
        assert encoders.images == done  # nothing is computed that is not committed
        assert result.missing == ROWS - done
        assert result.interrupted is (done < ROWS)
        if not result.interrupted:
            break
    assert passes > 1
    assert rows_of("a.zarr") == whole
    assert encoders.largest_batch <= batch_size


@pytest.mark.parametrize(("batch_size", "seed"), [(1, 0), (1, 1), (8, 2), (8, 3)])
def test_a_pass_that_fails_loses_at_most_a_block(encoders, whole, batch_size, seed):
    moments, failures = random.Random(seed), 0

    def fail_at(number):
        def check(pixels):
            if encoders.images + len(pixels) > number:
                raise KeyboardInterrupt

        return check

    while True:
        before = encoders.images
        kept = committed()
        encoders.before_batch = fail_at(before + moments.randrange(60))
        try:
            run(batch_size=batch_size)
        except KeyboardInterrupt:
            failures += 1
            now = committed()
            assert (encoders.images - before) - (now - kept) <= 16
        else:
            break
    assert failures > 0
    assert encoders.images <= ROWS + 16 * failures
    assert rows_of("a.zarr") == whole
    assert list(Path("a.zarr").rglob(".tmp-*")) == []


KILLED = """
import os, pathlib, random, signal, sys, time
import stubs
from samtl.embed.api import embed
from samtl.store.state import Quarantined, load_state
from samtl.store.storage import DiskStorage, open_storage

out, tally, rows = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), int(sys.argv[3])
dataset, moments = stubs.toy_dataset(rows), random.Random(7)

def committed():
    state = load_state(open_storage(out))
    return 0 if state is None or state.table is None else int(state.marked("committed").sum())

tally.touch()
for more in (5, 23, 17, 70):
    before = tally.stat().st_size, committed()
    child = os.fork()
    if child == 0:
        stubs.install(stubs.StubEncoders(seconds=0.01, tally=tally))
        embed(dataset, "stub", out=out, device="cpu", batch_size=1)
        os._exit(0)
    while tally.stat().st_size < before[0] + more:
        time.sleep(0.001)
    time.sleep(moments.uniform(0, 0.02))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    print(os.WTERMSIG(status), tally.stat().st_size - before[0], committed() - before[1])
"""


@pytest.mark.slow
def test_a_pass_that_is_killed_again_and_again_loses_at_most_a_block_and_a_batch(encoders, whole):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, "a.zarr", "tally", str(ROWS)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    kills = [[int(n) for n in line.split()] for line in done.stdout.splitlines()]
    assert [signal for signal, _, _ in kills] == [9, 9, 9, 9]
    # The block in flight, and the batch of one that may be done while the disk still has it.
    assert all(encoded - kept <= 16 + 1 for _, encoded, kept in kills)
    assert 0 < committed() == sum(kept for _, _, kept in kills) < ROWS
    left = ROWS - committed()
    assert run().missing == 0
    assert encoders.images == left
    assert rows_of("a.zarr") == whole


# Disks


@pytest.mark.parametrize("call", [1, 4, 12, 30, 45, 60, 75, 90])
def test_a_disk_that_gives_out_keeps_what_was_committed(encoders, whole, monkeypatch, call):
    calls, fsync = iter(range(1, 10**6)), os.fsync

    def fail_from_now_on(descriptor):
        if next(calls) >= call:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail_from_now_on)
        with pytest.raises(ResourceError, match="No space left on device"):
            run(batch_size=16)
    kept = blocks()
    before = contents(Path("a.zarr"), hidden=False) if kept else {}
    encoders.images = 0
    run(batch_size=16)
    assert encoders.images == ROWS - 16 * len(kept)
    assert rows_of("a.zarr") == whole
    after = contents(Path("a.zarr"), hidden=False)
    assert all(after[f"log/{block}.0.json"] == before[f"log/{block}.0.json"] for block in kept)


def test_a_store_may_be_moved_and_gone_on_with(encoders, whole, tmp_path):
    asked = iter([False] * 20)
    run(should_stop=lambda: next(asked, True))
    shutil.move("a.zarr", tmp_path / "moved.zarr")
    assert run(out=tmp_path / "moved.zarr").encoded < ROWS
    assert rows_of(tmp_path / "moved.zarr") == whole


def test_a_ready_dataset_takes_no_root(encoders):
    with pytest.raises(InputError, match="takes no root"):
        run(root=".")
