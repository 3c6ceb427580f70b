"""A store beside its images and its encoder."""

import dataclasses
import errno
import functools
import json
import os
import shutil
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from stubs import StubEncoders, install, masked_dataset, reading, toy_dataset

from samtl.embed import verify as verifying
from samtl.embed.api import embed
from samtl.embed.decode import decode_row
from samtl.embed.reload import reload_encoder
from samtl.embed.verify import verify
from samtl.errors import InputError, MismatchError, ResourceError
from samtl.store.reader import open_store

pytestmark = pytest.mark.usefixtures("encoders")
ROWS = 20


def made(dataset, out, **options):
    options = {"tiers": ["pooled", "grid"], "device": "cpu", "checkpoint": "random:4", **options}
    return embed(dataset, "stub", out=out, **options).store


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        install(StubEncoders(), patch.setattr)
        return made(toy_dataset(ROWS), tmp_path_factory.mktemp("verify") / "a.zarr")


@pytest.fixture
def store(original, tmp_path):
    return Path(shutil.copytree(original, tmp_path / "a.zarr"))


def recompute(store, dataset, rows=ROWS, **options):
    return verify(store, "quick", dataset=dataset, recompute=rows, device="cpu", **options)


masked = functools.partial(masked_dataset, ROWS, 2)


def differing(store, dataset):
    """What is found of each image, and the exit code."""
    found = verify(store, "deep", dataset=dataset)
    return {one.sample_id: one.what for one in found.images}, found.exit_code


def test_whole(store):
    seen = []
    options = {"device": "cpu", "on_progress": lambda *event: seen.append(event)}
    found = verify(store, "deep", dataset=toy_dataset(ROWS), recompute=3, **options)
    assert (found.exit_code, found.findings) == (0, [])
    assert (found.images_compared, found.images, found.images_added) == (ROWS, (), 0)
    assert len(found.recomputed) == found.recompute == 3
    assert all(row.within and row.distance < 1e-3 for row in found.recomputed)
    told = json.loads(json.dumps(found.to_json()))
    assert (told["exit_code"], told["rows"], told["repaired"]) == (0, ROWS, None)
    steps = {"bytes of shards", "images", "rows through the encoder"}
    assert {what for what, _, _ in seen} == steps
    assert all(0 <= done <= all_of for _, done, all_of in seen)


def test_images_that_changed_or_are_gone(store):
    dataset = toy_dataset(ROWS)
    a, b, c = (dataset.sample_ids[i] for i in (3, 5, 7))
    changed = reading(dataset, {a: b"other bytes", b: OSError("the drive is gone")})
    ids = tuple("class1/new.png" if name == c else name for name in dataset.sample_ids)
    changed = dataclasses.replace(changed, sample_ids=ids)
    found = verify(store, "deep", dataset=changed)
    assert {one.sample_id: one.what for one in found.images} == {a: "changed", b: "gone", c: "gone"}
    assert {open_store(store).sample_ids[one.row] for one in found.images} == {a, b, c}
    assert (found.images_added, found.exit_code) == (1, 3)


def test_classes_are_compared_by_name(store):
    dataset = toy_dataset(ROWS)
    first, last = dataset.sample_ids[0], dataset.sample_ids[-1]
    moved = dataclasses.replace(dataset, labels=(1, *dataset.labels[1:-1], -1))
    found = verify(store, "deep", dataset=moved)
    assert {one.sample_id: (one.what, one.told) for one in found.images} == {
        first: ("relabelled", "its class is class1, the row has class0"),
        last: ("relabelled", "its class is none, the row has class1"),
    }
    assert (found.images_compared, found.exit_code) == (ROWS, 3)
    swapped = dataclasses.replace(dataset, classes=("class1", "class0", "class2"))
    assert len(differing(store, swapped)[0]) == sum(label < 2 for label in dataset.labels)
    numbers = dataclasses.replace(swapped, labels=tuple((1, 0, 2)[i] for i in dataset.labels))
    assert differing(store, numbers) == ({}, 0)
    made(moved, store)
    other = reading(dataset, {first: b"other bytes"})
    assert differing(store, other) == ({first: "changed", last: "relabelled"}, 3)


def test_parts_and_classes_of_images_that_could_not_be_used_are_compared(tmp_path):
    bad = toy_dataset(4, bad={1: "unreadable"})
    dataset = dataclasses.replace(bad, parts=("train", "train", "test", "test"))
    store, second = made(dataset, tmp_path / "p.zarr"), dataset.sample_ids[1]
    other = dataclasses.replace(dataset, labels=(0, 2, 2, 0))
    assert differing(store, other) == ({second: "relabelled"}, 3)
    other = dataclasses.replace(dataset, parts=("train", "test", "test", "test"))
    assert differing(store, other) == ({second: "regrouped"}, 3)
    none = dataclasses.replace(dataset, parts=())
    assert differing(store, none) == (dict.fromkeys(dataset.sample_ids, "regrouped"), 3)
    made(none, store)
    assert differing(store, none)[0] == {}


def test_masks_are_compared(tmp_path):
    whole, other = masked(), "class0/0006.png"
    store = made(whole, tmp_path / "m.zarr")
    now = masked({"class1/0005.png": OSError("not there"), other: 1 - whole.read_mask(other)})
    assert differing(store, now) == ({"class1/0005.png": "gone", other: "changed"}, 3)
    assert differing(store, whole) == ({}, 0)
    found = recompute(store, masked(read_mask=lambda sample_id: np.zeros((3, 3), np.uint8)))
    assert (len(found.recomputed), found.exit_code) == (ROWS, 0)  # which needs no mask


@pytest.mark.parametrize("of", ["read", "read_mask"])
def test_a_drive_that_fails_is_no_image_that_is_gone(tmp_path, of):
    store, number = made(masked(), tmp_path / "m.zarr"), errno.ENOENT

    def fail(sample_id):
        raise OSError(number, os.strerror(number), sample_id)

    dataset = masked(**{of: fail})
    assert differing(store, dataset) == (dict.fromkeys(dataset.sample_ids, "gone"), 3)
    number = errno.EIO
    with pytest.raises(ResourceError, match=r"reading class.*Input/output error"):
        verify(store, "deep", dataset=dataset)


def test_rows_that_the_encoder_does_not_give(store, encoders):
    def spoil(outputs):
        outputs["pooled"][0] += 0.5

    encoders.spoil = spoil
    data = toy_dataset(ROWS)
    found = recompute(store, data)
    assert found.findings == []
    assert [(one.within, one.tier) for one in found.recomputed] == [(False, "pooled")] * ROWS
    assert found.exit_code == 2
    drawn = [recompute(store, data, 4, seed=seed).recomputed for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_only_rows_whose_images_are_listed_are_recomputed(store, tmp_path):
    dataset = toy_dataset(ROWS)
    ids = tuple(f"x{name}" for name in dataset.sample_ids)
    renamed = dataclasses.replace(dataset, sample_ids=ids, read=lambda name: dataset.read(name[1:]))
    with pytest.raises(MismatchError, match=r"(?s)none of the 20 .* 'xclass0/0000.png'"):
        recompute(store, renamed)
    with pytest.raises(InputError, match="has no images"):
        recompute(store, dataclasses.replace(dataset, sample_ids=(), labels=()))
    few = dataclasses.replace(dataset, sample_ids=dataset.sample_ids[:2], labels=(0, 1))
    found = recompute(store, few, 5)
    assert {row.sample_id for row in found.recomputed} == set(few.sample_ids)
    assert (found.to_json()["recompute"], found.exit_code) == (5, 0)
    bad = toy_dataset(3, bad=dict.fromkeys(range(3), "empty"))
    found = recompute(made(bad, tmp_path / "b.zarr"), bad, 2)
    assert (found.recomputed, found.recompute, found.exit_code) == ((), 2, 1)


def test_the_same_image_that_cannot_be_decoded_is_not_called_another(store, monkeypatch):
    def undecodable(*arguments):
        found = decode_row(*arguments)
        return dataclasses.replace(found, pixels=None, code="undecodable", reason="no decoder")

    monkeypatch.setattr(verifying, "decode_row", undecodable)
    with pytest.raises(InputError, match=r"is the one that .* here: no decoder"):
        recompute(store, toy_dataset(ROWS), 1)


def test_the_encoder_is_found_by_what_a_store_says_of_its_weights(original):
    identity = open_store(original).identity
    for weights, checkpoint, error in (
        ("untrained (random:4)", None, None),
        ("file mine.pth", "random:4", None),
        ("file mine.pth", None, InputError),
        ("official x.pth", None, MismatchError),
        ("untrained (random:4)", "random:5", MismatchError),
    ):
        with pytest.raises(error) if error else nullcontext():
            encoder = reload_encoder(identity, weights, original, checkpoint, "cpu")
            assert encoder.weights.description == "untrained (random:4)"


def test_another_encoder_or_dataset_is_refused(store):
    dataset = toy_dataset(ROWS)
    with pytest.raises(MismatchError, match="weights_sha256"):
        recompute(store, dataset, 1, checkpoint="random:5")
    with pytest.raises(MismatchError, match="dataset"):
        verify(store, "deep", dataset=toy_dataset(ROWS, name="other"))
    with pytest.raises(MismatchError, match="image_sha256"):
        recompute(store, reading(dataset, dict.fromkeys(dataset.sample_ids, b"x")), 1)


def test_what_is_repaired_and_what_is_not(store):
    (store / "zarr.json").write_text("{}")
    found = verify(store, repair_it=True)
    assert (found.repaired.rewritten, found.exit_code) == (["zarr.json"], 0)
    path = store / "grid" / "c.1.0.0.0"
    path.write_bytes(path.read_bytes()[:-1])
    found = recompute(store, toy_dataset(ROWS), 2)
    assert (found.exit_code, found.recomputed) == (2, ())  # images are left alone
    found = verify(store, "quick", repair_it=True)
    assert (list(found.repaired.withdrawn), found.exit_code) == ([1], 1)
    assert found.to_json()["repaired"]["rewritten"] == found.repaired.rewritten
    assert open_store(store).missing == ROWS - 16
    made(toy_dataset(ROWS), store)
    assert verify(store, "deep").exit_code == 0
    (store / "fingerprint.json").unlink()
    found = verify(store, repair_it=True)
    assert [one.what for one in found.findings] == ["identity"]
    assert (found.exit_code, found.repaired) == (2, None)
    assert "cannot be repaired" in found.refused


def test_arguments(original, tmp_path):
    for rows, told in ((1, "dataset"), (-1, "below 0")):
        with pytest.raises(InputError, match=told):
            verify(original, recompute=rows)
    for level in ("quick", "rows"):  # which read no image
        with pytest.raises(InputError, match="--deep and --recompute only"):
            verify(original, level, dataset=toy_dataset(ROWS))
    for place in ("nothing.zarr", "nowhere"):
        with pytest.raises(InputError, match=place):
            verify(tmp_path / place)
