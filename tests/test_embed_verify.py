"""A store beside its images and its encoder."""

import dataclasses
import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from stubs import SHAPES, StubEncoders, install, toy_dataset

from samtl.embed import verify as verifying
from samtl.embed.api import embed
from samtl.embed.decode import decode_row
from samtl.embed.reload import reload_encoder
from samtl.embed.verify import verify
from samtl.errors import InputError, MismatchError, ResourceError
from samtl.store.reader import open_store

ROWS = 20


@pytest.fixture(autouse=True)
def encoders(monkeypatch):
    return install(StubEncoders(), monkeypatch.setattr)


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


def replaced(dataset, changes):
    """A dataset whose images are others, or raise."""

    def read(sample_id):
        content = changes.get(sample_id, dataset.read)
        if isinstance(content, Exception):
            raise content
        return content(sample_id) if callable(content) else content

    return dataclasses.replace(dataset, read=read)


def masked(**instead):
    def read_mask(sample_id):
        return np.eye(*SHAPES[int(sample_id[-8:-4]) % 3], dtype=np.uint8)

    dataset = toy_dataset(ROWS, classes=2)
    return dataclasses.replace(dataset, labels=(-1,) * ROWS, **{"read_mask": read_mask, **instead})


def differing(store, dataset):
    """What is found of each image, and the exit code."""
    found = verify(store, "deep", dataset=dataset)
    return {one.sample_id: one.what for one in found.images}, found.exit_code


def test_whole(store):
    seen = []
    found = verify(
        store, "deep", dataset=toy_dataset(ROWS), recompute=3, device="cpu",
        on_progress=lambda *event: seen.append(event),
    )  # fmt: skip
    assert (found.exit_code, found.findings) == (0, [])
    assert (found.images_compared, found.images, found.images_added) == (ROWS, (), 0)
    assert len(found.recomputed) == found.recompute == 3
    assert all(row.within and row.distance < 1e-3 for row in found.recomputed)
    told = json.loads(json.dumps(found.to_json()))
    assert (told["exit_code"], told["rows"], told["repaired"]) == (0, ROWS, None)
    steps = {"bytes of shards", "images", "rows through the encoder"}
    assert {what for what, _, _ in seen} == steps
    assert all(0 <= done <= all_of for _, done, all_of in seen)


# Images


def test_images_that_changed_or_are_gone(store):
    dataset = toy_dataset(ROWS)
    a, b, c = (dataset.sample_ids[i] for i in (3, 5, 7))
    changed = replaced(dataset, {a: b"other bytes", b: OSError("the drive is gone")})
    changed = dataclasses.replace(
        changed,
        sample_ids=(*(name for name in changed.sample_ids if name != c), "class0/new.png"),
        labels=(*(label for i, label in enumerate(changed.labels) if i != 7), 0),
    )
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
    other = replaced(dataset, {first: b"other bytes"})
    assert differing(store, other) == ({first: "changed", last: "relabelled"}, 3)


def test_classes_of_images_that_could_not_be_used_are_compared(tmp_path):
    bad = toy_dataset(4, bad={1: "unreadable"})
    other = dataclasses.replace(bad, labels=(0, 2, 2, 0))
    found = differing(made(bad, tmp_path / "b.zarr"), other)
    assert found == ({bad.sample_ids[1]: "relabelled"}, 3)


def test_parts_are_compared(tmp_path):
    dataset = dataclasses.replace(toy_dataset(4), parts=("train", "train", "test", "test"))
    store, second = made(dataset, tmp_path / "p.zarr"), dataset.sample_ids[1]
    other = dataclasses.replace(dataset, parts=("train", "test", "test", "test"))
    assert differing(store, other) == ({second: "regrouped"}, 3)
    none = dataclasses.replace(dataset, parts=())
    assert differing(store, none) == (dict.fromkeys(dataset.sample_ids, "regrouped"), 3)
    made(none, store)
    assert differing(store, none) == ({}, 0)


def test_masks_are_compared(tmp_path):
    whole, other = masked(), "class0/0006.png"
    store = made(whole, tmp_path / "m.zarr")

    def read_mask(sample_id):
        if sample_id == "class1/0005.png":
            raise OSError("not there")
        return 1 - whole.read_mask(sample_id) if sample_id == other else whole.read_mask(sample_id)

    found = differing(store, masked(read_mask=read_mask))
    assert found == ({"class1/0005.png": "gone", other: "changed"}, 3)
    assert differing(store, whole) == ({}, 0)


@pytest.mark.parametrize("of", ["read", "read_mask"])
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOENT])
def test_a_drive_that_fails_is_no_image_that_is_gone(tmp_path, number, of):
    store = made(masked(), tmp_path / "m.zarr")

    def fail(sample_id):
        raise OSError(number, os.strerror(number), sample_id)

    dataset = masked(**{of: fail})
    if number == errno.ENOENT:
        assert differing(store, dataset) == (dict.fromkeys(dataset.sample_ids, "gone"), 3)
    else:
        with pytest.raises(ResourceError, match=r"reading class.*Input/output error"):
            verify(store, "deep", dataset=dataset)


# Rows through the encoder


def test_rows_that_the_encoder_does_not_give(store, encoders):
    def spoil(outputs):
        outputs["pooled"][0] += 0.5

    encoders.spoil = spoil
    found = recompute(store, toy_dataset(ROWS))
    assert found.findings == []
    assert [(one.within, one.tier) for one in found.recomputed] == [(False, "pooled")] * ROWS
    assert found.exit_code == 2


def test_only_rows_whose_images_are_listed_are_recomputed(store, tmp_path):
    dataset = toy_dataset(ROWS)
    renamed = dataclasses.replace(
        dataset,
        sample_ids=tuple(f"x{name}" for name in dataset.sample_ids),
        read=lambda sample_id: dataset.read(sample_id[1:]),
    )
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


def test_an_image_is_recomputed_without_its_mask(tmp_path):
    store = made(masked(), tmp_path / "m.zarr")
    found = recompute(store, masked(read_mask=lambda sample_id: np.zeros((3, 3), np.uint8)))
    assert (len(found.recomputed), found.exit_code) == (ROWS, 0)


def test_the_same_image_that_cannot_be_decoded_is_not_called_another(store, monkeypatch):
    def undecodable(*arguments):
        found = decode_row(*arguments)
        return dataclasses.replace(found, pixels=None, code="undecodable", reason="no decoder")

    monkeypatch.setattr(verifying, "decode_row", undecodable)
    with pytest.raises(InputError, match=r"is the one that .* here: no decoder"):
        recompute(store, toy_dataset(ROWS), 1)


@pytest.mark.parametrize(
    ("weights", "checkpoint", "error"),
    [
        ("untrained (random:4)", None, None),
        ("file mine.pth", "random:4", None),
        ("file mine.pth", None, InputError),
        ("official x.pth", None, MismatchError),
        ("untrained (random:4)", "random:5", MismatchError),
    ],
)
def test_the_encoder_is_found_by_what_a_store_says_of_its_weights(
    original, weights, checkpoint, error
):
    identity = open_store(original).identity
    if error is None:
        encoder = reload_encoder(identity, weights, original, checkpoint, "cpu")
        assert encoder.weights.description == "untrained (random:4)"
    else:
        with pytest.raises(error):
            reload_encoder(identity, weights, original, checkpoint, "cpu")


def test_the_seed_draws_the_rows(store):
    def rows(seed):
        return [one.row for one in recompute(store, toy_dataset(ROWS), 4, seed=seed).recomputed]

    assert rows(0) == rows(0) != rows(1)


def test_another_encoder_or_dataset_is_refused(store):
    dataset = toy_dataset(ROWS)
    with pytest.raises(MismatchError, match="weights_sha256"):
        recompute(store, dataset, 1, checkpoint="random:5")
    with pytest.raises(MismatchError, match="dataset"):
        verify(store, "deep", dataset=toy_dataset(ROWS, name="other"))
    with pytest.raises(MismatchError, match="image_sha256"):
        recompute(store, replaced(dataset, dict.fromkeys(dataset.sample_ids, b"x")), 1)


# Damage


def test_repair_withdraws_and_says_so(store):
    path = store / "grid" / "c.1.0.0.0"
    path.write_bytes(path.read_bytes()[:-1])
    found = verify(store, "quick", dataset=toy_dataset(ROWS), recompute=2, device="cpu")
    assert (found.exit_code, found.recomputed) == (2, ())  # images are left alone
    found = verify(store, "quick", repair_it=True)
    assert 1 in found.repaired.withdrawn
    assert (found.exit_code, found.to_json()["repaired"]["rewritten"]) == (
        1,
        found.repaired.rewritten,
    )
    assert open_store(store).missing == ROWS - 16
    made(toy_dataset(ROWS), store)
    assert verify(store, "deep").exit_code == 0


def test_metadata_that_was_mended_is_no_loss(store):
    (store / "zarr.json").write_text("{}")
    found = verify(store, repair_it=True)
    assert (found.repaired.rewritten, found.exit_code) == (["zarr.json"], 0)


def test_a_store_without_its_fingerprint_is_looked_at_where_it_is_named(store):
    (store / "fingerprint.json").unlink()
    found = verify(store, repair_it=True)
    assert [one.what for one in found.findings] == ["identity"]
    assert (found.exit_code, found.repaired, "cannot be repaired" in found.refused) == (
        2,
        None,
        True,
    )


def test_arguments(original, tmp_path):
    with pytest.raises(InputError, match="dataset"):
        verify(original, recompute=1)
    with pytest.raises(InputError, match="below 0"):
        verify(original, recompute=-1)
    for level in ("quick", "rows"):  # which read no image
        with pytest.raises(InputError, match="--deep and --recompute only"):
            verify(original, level, dataset=toy_dataset(ROWS))
    for place in ("nothing.zarr", "nowhere"):
        with pytest.raises(InputError):
            verify(tmp_path / place)
