"""The encoder pass: what is kept of bad images, interruptions and full disks, and what is not computed twice."""

import dataclasses
import errno
import json
import os
import random
import re
import shutil
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import stubs
from stubs import (
    SHAPES,
    StubEncoders,
    contents,
    masked_dataset,
    png,
    small_dataset,
    toy_dataset,
)

from samtl.embed import api, pipeline
from samtl.embed import plan as planning
from samtl.errors import InputError, MismatchError, ResourceError
from samtl.images.codecs import BadImage, decode, statistics
from samtl.images.transforms import mask_square, resize_longest_side
from samtl.store.format import TIERS
from samtl.store.log import record_places
from samtl.store.reader import open_store
from samtl.store.state import Quarantined, load_state
from samtl.store.storage import DiskStorage, open_storage
from samtl.store.writer import Writer

ROWS = 80  # five blocks
CPU, GPU = (0, 1), (2, 4)


def run(dataset=None, out="a.zarr", **options):
    options = {"device": "cpu", "tiers": TIERS, **options}
    return api.embed(dataset or toy_dataset(ROWS), "stub", out=out, **options)


def rows_of(path="a.zarr"):
    return stubs.everything(open_store(path))


def committed(path="a.zarr"):
    state = load_state(open_storage(path))
    return 0 if state is None else int(state.marked("committed").sum())


def stopping_after(batches):
    asked = iter([False] * batches)
    return lambda: next(asked, True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Rows of an uninterrupted pass over the toy dataset."""
    with pytest.MonkeyPatch.context() as patch:
        stubs.install(StubEncoders(), patch.setattr)
        return rows_of(run(out=tmp_path_factory.mktemp("whole") / "a.zarr").store)


@pytest.fixture(params=[CPU, GPU])
def device(request, monkeypatch):
    monkeypatch.setattr(pipeline, "overlap", lambda name: request.param)
    return request.param


@pytest.mark.parametrize("batch_size", [5, 16, 40])
def test_neither_batches_nor_overlap_show(encoders, whole, device, batch_size):
    encoders.before_batch = lambda pixels: time.sleep(random.uniform(0, 0.003))
    events = []
    assert rows_of(run(batch_size=batch_size, on_event=events.append).store) == whole
    assert (encoders.images, encoders.largest_batch) == (ROWS, batch_size)
    progress = [event.encoded for event in events if isinstance(event, pipeline.Progress)]
    assert progress == [*range(batch_size, ROWS, batch_size), ROWS, ROWS]


def test_events_and_the_result_say_what_was_done(encoders, small):
    """Of untrusted images, too, which are decoded elsewhere."""
    events = []
    result = run(small_dataset(), batch_size=4, untrusted=True, on_event=events.append)
    assert rows_of() == rows_of(small)
    store = open_store("a.zarr")
    assert (result.rows, result.encoded, result.missing, result.interrupted) == (37, 37, 0, False)
    assert (result.fingerprint, result.snapshot) == (store.fingerprint, store.snapshot)
    assert (result.weights, result.untrained) == ("untrained (random:0)", True)
    assert result.images_per_second == result.encoded / result.seconds > 0
    assert result.peak_memory > 10 * 2**20
    printed = json.loads(json.dumps(result.to_json()))
    assert (printed["store"], printed["batch_size"], printed["added"]) == ("a.zarr", 4, 0)
    assert {one["code"] for one in printed["quarantined"]} == {"truncated", "empty"}
    assert events[0] == result.plan
    assert [type(event) for event in events].count(planning.Plan) == 1
    assert {e for e in events if isinstance(e, Quarantined)} == set(result.quarantined)
    progress = [event for event in events if isinstance(event, pipeline.Progress)]
    assert {p.pending_rows for p in progress} == {37}
    assert (progress[0].seconds_left, progress[-1].seconds_left) == (None, 0)
    written = [p.bytes_written for p in progress]
    assert written == sorted(written)
    assert (written[-1], progress[-1].quarantined) == (result.bytes_written, 2)


def test_a_whole_store_is_read_once_and_not_computed_again(encoders, small, monkeypatch):
    before, reads, read = contents(small, hidden=False), [], DiskStorage.read
    monkeypatch.setattr(
        DiskStorage, "read", lambda self, name, *most: reads.append(name) or read(self, name, *most)
    )
    result = run(small_dataset(), out=small)
    assert (result.encoded, result.bytes_written, encoders.images) == (0, 0, 0)
    assert len(result.quarantined) == 2
    assert contents(small, hidden=False) == before
    records = [f"log/{block}.0.json" for block in range(3)]
    once = [name for name in reads if name not in ("zarr.json", "valid/c.0", "log/pack.npz")]
    assert sorted(once) == sorted(["fingerprint.json", "samples/000001.parquet", *records])
    with pytest.raises(MismatchError, match=r"encoder\.weights_sha256: the store has"):
        run(small_dataset(), out=small, checkpoint="random:1")
    with pytest.raises(MismatchError, match=r"encoder\.name: the store has stub, .* is other"):
        api.embed(small_dataset(), "other", out=small, device="cpu")
    assert contents(small, hidden=False) == before
    assert encoders.images == 0


def test_a_row_is_what_the_encoder_gives_or_set_aside(encoders):
    spoilt = {3: ("pooled", np.nan), 7: ("dense", np.inf), 11: ("grid", -np.inf)}

    def spoil(outputs):
        if encoders.images in spoilt:
            name, value = spoilt.pop(encoders.images)
            outputs[name][0].flat[3] = value

    bad, ids = dict(enumerate(stubs.BROKEN, start=4)), toy_dataset(21).sample_ids
    dataset, encoders.spoil = toy_dataset(21, bad=bad), spoil
    found = {q.row: q for q in run(dataset, batch_size=1).quarantined}
    codes = {ids[n]: "unreadable" if kind == "gone" else kind for n, kind in bad.items()}
    told = {q.sample_id: q.code for q in found.values() if q.code != "nonfinite"}
    assert (told, len(found)) == (codes, len(bad) + 3)
    store, model = open_store("a.zarr"), encoders.Encoder("stub", dtype="float32")
    assert (np.flatnonzero(~store.valid()).tolist(), store.missing) == (list(found), 0)
    for row, sample_id in enumerate(store.sample_ids):
        assert store.labels[row] == ids.index(sample_id) % 3
        if row in found:
            assert (found[row].sample_id, bool(found[row].reason)) == (sample_id, True)
            for name in ("dense", "grid", "pooled", "image_stats"):
                assert np.isnan(store.row(name, row)).all()
            continue
        pixels = decode(dataset.read(sample_id))
        wanted = model.encode([resize_longest_side(pixels, 64)], ("pooled", "grid", "dense"))
        for name, arrays in wanted.items():
            np.testing.assert_array_equal(store.row(name, row), arrays[0])
        np.testing.assert_array_equal(store.row("image_stats", row), statistics(pixels))
        assert store.row("original_size", row).tolist() == list(pixels.shape[:2])


def test_later_passes_set_other_and_bad_images_aside(encoders):
    """As those that change after they were compared."""
    run(toy_dataset(21, bad={6: "truncated"}), tiers=["pooled"])
    before = rows_of()
    later = toy_dataset(21, bad={4: png(999), 5: "truncated", 6: "truncated", 7: "unreadable"})
    result = run(later, check_images=False)
    codes = {4: "changed", 5: "changed", 6: "truncated", 7: "unreadable"}
    assert {int(q.sample_id[-8:-4]): q.code for q in result.quarantined} == codes
    store, rows = open_store("a.zarr"), [q.row for q in result.quarantined]
    assert np.isnan(store.read("grid", rows)).all()
    assert not np.isnan(np.delete(store.read("grid"), rows, axis=0)).any()
    assert np.flatnonzero(~store.valid()).tolist() == rows
    assert store.valid("pooled").sum() == 20
    assert {name: rows_of()[name] for name in before} == before
    assert run(later, check_images=False).quarantined == result.quarantined
    alone = run(toy_dataset(18, bad=dict.fromkeys(range(18), "empty")), out="alone.zarr")
    assert (len(alone.quarantined), alone.missing) == (18, 0)


def test_masks_lie_on_the_encoders_square(encoders):
    dataset = masked_dataset()
    store = open_store(run(dataset).store)
    assert (store.task, store.classes) == ("segmentation", dataset.classes)
    rows = store.read("mask")
    for row, sample_id in enumerate(store.sample_ids):
        np.testing.assert_array_equal(rows[row], mask_square(dataset.read_mask(sample_id), 64))
    np.testing.assert_array_equal(store.zarr()["mask"][:], rows)
    before = store.snapshot
    result = run(dataset, group_by=r"(\d)\.")  # groups may change, and masks may not go
    assert (result.encoded, result.snapshot == before) == (0, False)
    assert set(open_store("a.zarr").groups) == set("0123456789")
    with pytest.raises(MismatchError, match="task: the store has segmentation"):
        run(dataclasses.replace(dataset, read_mask=None))


def test_a_pass_with_masks_goes_on_and_gets_further_tiers(encoders):
    whole = rows_of(run(masked_dataset(), out="whole.zarr").store)
    options = {"tiers": ["pooled"], "batch_size": 8}
    first = run(masked_dataset(), **options, should_stop=stopping_after(2))
    assert first.interrupted
    assert run(masked_dataset(), **options).encoded == 37 - first.encoded
    other = masked_dataset(bad={7: np.zeros(SHAPES[1], np.uint8)})
    assert run(other, check_images=False).quarantined == ()  # an image's hash is of its own bytes
    assert rows_of() == whole
    record = json.loads(Path("a.zarr/log/1.1.json").read_text())
    assert record["arrays"].keys() == {"grid", "dense"}


def test_bad_masks_set_their_rows_aside(encoders):
    cases = {  # by the number of the image; its shape is that of its remainder by 3
        7: (BadImage("mask_values", "this one has 9 too"), "mask_values", "this one has 9 too"),
        1: (BadImage("truncated", "cut short"), "mask_unreadable", "cut short"),
        2: (InputError("taken out of the archive"), "mask_unreadable", "taken out of the archive"),
        3: (FileNotFoundError(2, "No such file"), "mask_unreadable", "No such file"),
        4: (np.zeros((20, 21), np.uint8), "mask_size", "size, 30 x 12, was expected, this one is 21 x 20"),
        10: (np.zeros((30, 12), np.uint8), "mask_size", "30 x 12, was expected, this one is 12 x 30"),
        13: (np.full((12, 30), 3, np.uint8), "mask_values", "below 3, or 255 to be ignored, this one holds 3"),
        16: (np.full((12, 30), 255, np.uint8), "mask_values", "a pixel of a known class"),
        19: (np.zeros((12, 30), np.int64), "mask_unreadable", r"\(12, 30\) int64"),
        22: (np.zeros((12, 30, 1), np.uint8), "mask_unreadable", r"\(12, 30, 1\) uint8"),
        25: (BadImage("mask_values", "9"), "unreadable", "gone"),  # the image is told before its mask
    }  # fmt: skip
    dataset = masked_dataset(bad={n: mask for n, (mask, *_) in cases.items()}, unreadable=(25,))
    found = {int(one.sample_id[-8:-4]): one for one in run(dataset).quarantined}
    codes = {n: code for n, (_, code, _) in cases.items()}
    assert {n: one.code for n, one in found.items()} == codes
    assert all(re.search(cases[n][2], one.reason) for n, one in found.items())
    store, rows = open_store("a.zarr"), [one.row for one in found.values()]
    assert (store.read("mask", rows) == 255).all()
    assert np.isnan(store.read("dense", rows)).all()
    assert store.valid().sum() == 37 - len(cases)
    assert run(dataset).encoded == 0
    # What is tried again to see whether the drive went away may be a row whose mask is bad.
    bad = dict.fromkeys(range(36), BadImage("mask_values", "9"))
    dataset = masked_dataset(bad=bad, unreadable=(36,))
    assert len(run(dataset, out="bad.zarr").quarantined) == 37


@pytest.mark.parametrize("of", ["read", "read_mask"])
def test_what_the_machine_cannot_read_now_is_not_the_files_fault(encoders, of):
    good, codes = masked_dataset(), [errno.EMFILE, errno.EIO]

    def read(sample_id):
        if sample_id == good.sample_ids[7]:
            raise OSError(codes[-1], os.strerror(codes[-1]))
        return getattr(good, of)(sample_id)

    while codes:
        with pytest.raises(ResourceError, match=r"reading class1/0007\.png failed") as caught:
            run(dataclasses.replace(good, **{of: read}))
        assert (caught.value.exit_code, bool(codes.pop())) == (5, True)
    assert open_store("a.zarr").quarantined == ()
    assert run(good).missing == 0


@pytest.mark.parametrize("of", ["read", "read_mask"])
@pytest.mark.parametrize("first", [32, 20, 0])
def test_a_drive_that_went_away_stops_the_pass_and_spoils_no_row(encoders, of, first):
    good = masked_dataset(64)

    def read(sample_id):
        if encoders.images >= first:
            raise FileNotFoundError(2, "No such file or directory")
        return getattr(good, of)(sample_id)

    with pytest.raises(ResourceError, match=r"cannot be read any more.*No such file") as caught:
        run(dataclasses.replace(good, **{of: read}), batch_size=2)
    assert caught.value.exit_code == 5
    store = open_store("a.zarr")
    assert store.quarantined == ()
    assert first - 16 <= len(store) - store.missing <= first
    assert run(good).missing == 0


def test_a_tier_that_is_added_later_is_the_one_of_a_single_pass(encoders, whole):
    run(tiers=["grid"])
    run(tiers=["pooled"])  # those that are not asked for again stay
    first = contents(Path("a.zarr"), hidden=False)
    assert open_store("a.zarr").tiers == ("pooled", "grid")
    assert rows_of() == {k: v for k, v in whole.items() if k != "dense"}
    assert run().encoded == ROWS
    after = contents(Path("a.zarr"), hidden=False)
    new = {name for name in after.keys() - first.keys() if name.startswith("log/")}
    assert new == {f"log/{block}.2.json" for block in range(ROWS // 16)}
    shards = ("log/", "pooled/c", "grid/c", "image_stats/c", "original_size/c")
    assert all(after[name] == first[name] for name in first if name.startswith(shards))
    assert rows_of() == whole


def test_two_passes_at_once_share_the_work(encoders):
    alone, n = rows_of(run(toy_dataset(320), out="alone.zarr").store), encoders.images
    encoders.seconds = 0.003
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda number: run(toy_dataset(320), batch_size=4), range(2)))
    assert [result.missing for result in results] == [0, 0]
    assert sum(result.encoded for result in results) == 320
    assert all(result.encoded and not result.interrupted for result in results)
    assert encoders.images - n < 320 + 160  # where they met
    assert rows_of() == alone


def test_another_writer_may_begin_the_store_or_end_it_meanwhile(encoders, whole, monkeypatch):
    load = api.load_encoder

    def overtaken(*arguments):
        with monkeypatch.context() as patch:
            patch.setattr(api, "load_encoder", load)
            patch.setattr(planning, "rows_of_a_block", lambda *arguments: 16)
            run(should_stop=lambda: True)
        return load(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(api, "load_encoder", overtaken)
        patch.setattr(planning, "rows_of_a_block", lambda *arguments: 64)
        result = run()
    assert (result.missing, result.interrupted) == (0, False)
    assert rows_of() == whole

    def ended(job, *arguments):
        run(out="b.zarr")
        return pipeline.Meter(lambda event: None, job.plan.pending_rows)

    monkeypatch.setattr(api, "encode_on_devices", ended)
    result = api.embed(toy_dataset(ROWS), "stub", out="b.zarr", device="cpu,cpu")
    assert (result.encoded, result.missing, result.interrupted) == (0, 0, False)


def test_decoding_stops_with_the_pass(encoders):
    def fail(pixels):
        raise RuntimeError("the encoder is broken")

    encoders.before_batch = fail
    dataset = toy_dataset(ROWS)

    def begun(event):
        dataset.read.asked.clear()  # what the plan has read

    with pytest.raises(RuntimeError, match="the encoder is broken") as caught:
        run(dataset, batch_size=4, on_event=begun)
    assert len(dataset.read.asked) <= 4 + 4 + 2
    alive = [t.name for t in threading.enumerate() if t.name.startswith(("prefetch", "write"))]
    assert alive == [], caught  # whoever keeps the error keeps no thread with it


def test_a_slow_disk_holds_the_encoder_back(encoders, monkeypatch, device):
    write_block, outputs, most = Writer.write_block, [], []

    def write_slowly(*arguments):
        time.sleep(0.03)
        return write_block(*arguments)

    monkeypatch.setattr(Writer, "write_block", write_slowly)
    encoders.spoil = lambda arrays: outputs.append(weakref.ref(arrays["dense"]))
    encoders.before_batch = lambda pixels: most.append(sum(o() is not None for o in outputs))
    run(toy_dataset(160), batch_size=16)
    assert len(most) == 10
    # On their way to disk, and, beside the device, encoded ahead.
    assert max(most) == 1 if device == CPU else 1 < max(most) <= 4 + 3


def test_without_a_batch_size_the_encoder_is_asked(encoders, monkeypatch, whole):
    monkeypatch.setattr(planning, "images_per_call", lambda *arguments, untold: untold)
    monkeypatch.setattr(stubs.StubEncoder, "best_batch", lambda self, most: min(most, 7))
    events = []
    result = run(on_event=events.append)
    assert events[0].batch_size == 0  # not known yet
    assert result.plan.batch_size == encoders.largest_batch == 7
    assert {writer["batch_size"] for writer in open_store("a.zarr").writers()} == {7}
    assert rows_of() == whole


def test_encoding_goes_on_while_results_are_taken_over_and_written(encoders, monkeypatch):
    """Three in the encoder at once, and four blocks held by a disk that does not answer."""
    assert [pipeline.overlap(name) for name in ("cpu", "cuda:1")] == [CPU, GPU]
    write_block, disk, written = Writer.write_block, threading.Event(), []

    def write(*arguments):
        written.append(encoders.images)
        assert disk.wait(20)
        return write_block(*arguments)

    def before(pixels):
        if encoders.images >= 4 * 16:
            disk.set()  # only if blocks are encoded that the disk has not taken yet does it ever answer

    monkeypatch.setattr(pipeline, "overlap", lambda name: GPU)
    monkeypatch.setattr(Writer, "write_block", write)
    encoders.before_batch = before
    # Batches enough that one begins after four have been counted, whichever thread is faster.
    assert run(toy_dataset(7 * 16), batch_size=16).missing == 0
    assert len(written) == 7


@pytest.mark.parametrize(("batch_size", "seed"), [(1, 0), (5, 2), (40, 4)])
def test_a_pass_that_is_asked_to_stop_loses_nothing(encoders, whole, batch_size, seed, device):
    moments, passes = random.Random(seed), 0
    while True:
        before, stop = encoders.images, stopping_after(moments.randrange(60 // batch_size + 1))
        # Stops are to come among the batches.
        result = run(batch_size=batch_size, check_images=False, should_stop=stop)
        passes += 1
        done = committed()
        assert result.encoded == encoders.images - before
        assert encoders.images == done  # nothing is computed that is not committed
        assert result.missing == ROWS - done
        assert result.interrupted is (done < ROWS)
        if not result.interrupted:
            break
    assert passes > 1
    assert rows_of() == whole
    assert encoders.largest_batch <= batch_size


@pytest.mark.parametrize("error", [KeyboardInterrupt, ResourceError])
@pytest.mark.parametrize("batch_size", [1, 8])
def test_a_pass_that_fails_loses_at_most_a_block(encoders, whole, batch_size, device, error):
    for failures, number in enumerate((1, 30, 70), start=1):

        def check(pixels, number=number):
            if encoders.images + len(pixels) > number:
                raise error

        encoders.before_batch = check
        with pytest.raises(error):
            run(batch_size=batch_size)
        # Blocks that were whole are written; two batches beside the failed one, and the rows of a block, are lost.
        lost = 16 if device == CPU else 16 + 2 * batch_size
        assert encoders.images - committed() <= failures * lost
    encoders.before_batch = lambda pixels: None
    assert run(batch_size=batch_size).missing == 0
    assert rows_of() == whole
    assert [t.name for t in threading.enumerate() if t.name.startswith(("prefetch", "write"))] == []
    assert list(Path("a.zarr").rglob(".tmp-*")) == []


@pytest.mark.parametrize("call", [1, 4, 12, 30, 45, 60])
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
    kept = {f"log/{block}.0.json" for block, _ in record_places(open_storage("a.zarr"))}
    before = contents(Path("a.zarr"), hidden=False) if kept else {}
    shutil.move("a.zarr", "moved.zarr")  # a store may be moved
    encoders.images = 0
    run(batch_size=16, out="moved.zarr")
    assert encoders.images == ROWS - 16 * len(kept)
    assert rows_of("moved.zarr") == whole
    after = contents(Path("moved.zarr"), hidden=False)
    assert all(after[name] == before[name] for name in kept)
