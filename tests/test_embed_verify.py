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
from samtl.errors import (
    InputError,
    MismatchError,
    ResourceError,
)
from samtl.store.reader import open_store

ROWS = 20


@pytest.fixture(autouse=True)
def encoders(monkeypatch):
    return install(StubEncoders(), monkeypatch.setattr)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        install(StubEncoders(), patch.setattr)
        out = tmp_path_factory.mktemp("verify") / "a.zarr"
        return embed(toy_dataset(ROWS), "stub", out=out, device="cpu", checkpoint="random:4").store


@pytest.fixture
def store(original, tmp_path):
    return Path(shutil.copytree(original, tmp_path / "a.zarr"))


def replaced(dataset, changes):
    """A dataset whose images are others, or raise."""

    def read(sample_id):
        content = changes.get(sample_id, dataset.read)
        if isinstance(content, Exception):
            raise content
        return content(sample_id) if callable(content) else content

    return dataclasses.replace(dataset, read=read)


def test_whole(store):
    found = verify(store, "deep", dataset=toy_dataset(ROWS), recompute=3, device="cpu")
    assert found.exit_code == 0
    assert found.findings == []
    assert (found.images_compared, found.images, found.images_added) == (ROWS, (), 0)
    assert len(found.recomputed) == found.recompute == 3
    assert all(row.within and row.distance < 1e-3 for row in found.recomputed)
    assert json.loads(json.dumps(found.to_json()))["exit_code"] == 0


def test_images_that_changed_or_are_gone(store):
    dataset = toy_dataset(ROWS)
    a, b, c = dataset.sample_ids[3], dataset.sample_ids[5], dataset.sample_ids[7]
    changed = replaced(dataset, {a: b"other bytes", b: OSError("the drive is gone")})
    keep = [i for i, name in enumerate(changed.sample_ids) if name != c]
    changed = dataclasses.replace(
        changed,
        sample_ids=(*(changed.sample_ids[i] for i in keep), "class0/new.png"),
        labels=(*(changed.labels[i] for i in keep), 0),
    )
    found = verify(store, "deep", dataset=changed)
    assert {one.sample_id: one.what for one in found.images} == {a: "changed", b: "gone", c: "gone"}
    assert {open_store(store).sample_ids[one.row] for one in found.images} == {a, b, c}
    assert found.images_added == 1
    assert found.exit_code == 3


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
    found = verify(store, "deep", dataset=swapped)
    assert len(found.images) == sum(label < 2 for label in dataset.labels)
    numbers = dataclasses.replace(swapped, labels=tuple((1, 0, 2)[i] for i in dataset.labels))
    assert verify(store, "deep", dataset=numbers).exit_code == 0
    embed(swapped, "stub", out=store, device="cpu", checkpoint="random:4")
    assert verify(store, "deep", dataset=swapped).exit_code == 0
    embed(moved, "stub", out=store, device="cpu", checkpoint="random:4")
    found = verify(store, "deep", dataset=replaced(dataset, {first: b"other bytes"}))
    assert {one.sample_id: one.what for one in found.images} == {
        first: "changed",
        last: "relabelled",
    }


def test_classes_of_images_that_could_not_be_used_are_compared(tmp_path):
    bad = toy_dataset(4, bad={1: "unreadable"})
    store = pooled(bad, tmp_path / "b.zarr")
    found = verify(store, "deep", dataset=dataclasses.replace(bad, labels=(0, 2, 2, 0)))
    assert [(one.sample_id, one.what) for one in found.images] == [
        (bad.sample_ids[1], "relabelled")
    ]
    assert (found.images_compared, found.exit_code) == (3, 3)


def test_parts_are_compared(tmp_path):
    dataset = dataclasses.replace(toy_dataset(4), parts=("train", "train", "test", "test"))
    store = pooled(dataset, tmp_path / "p.zarr")
    for parts, told in (
        (("train", "test", "test", "test"), "its part is test, the row has train"),
        ((), "its part is none, the row has train"),
    ):
        other = dataclasses.replace(dataset, parts=parts)
        found = verify(store, "deep", dataset=other)
        one = next(one for one in found.images if one.sample_id == dataset.sample_ids[1])
        assert (one.what, one.told, found.exit_code) == ("regrouped", told, 3)
        assert len(found.images) == (1 if parts else 4)
    pooled(other, store)
    assert verify(store, "deep", dataset=other).exit_code == 0
    assert verify(store, "deep", dataset=dataset).exit_code == 3


def masked():
    return dataclasses.replace(
        toy_dataset(ROWS, classes=2),
        labels=(-1,) * ROWS,
        read_mask=lambda sample_id: np.eye(*SHAPES[int(sample_id[-8:-4]) % 3], dtype=np.uint8),
    )


def pooled(dataset, out):
    return embed(dataset, "stub", out=out, device="cpu", tiers=["pooled"]).store


@pytest.mark.parametrize("of", ["read", "read_mask"])
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOENT])
def test_a_drive_that_fails_is_no_image_that_is_gone(tmp_path, number, of):
    whole = masked()
    store = pooled(whole, tmp_path / "m.zarr")

    def fail(sample_id):
        raise OSError(number, os.strerror(number), sample_id)

    dataset = dataclasses.replace(whole, **{of: fail})
    if number == errno.ENOENT:
        found = verify(store, "deep", dataset=dataset)
        assert {one.what for one in found.images} == {"gone"}
        assert (len(found.images), found.exit_code) == (ROWS, 3)
    else:
        with pytest.raises(ResourceError, match=r"reading class.*Input/output error"):
            verify(store, "deep", dataset=dataset)


def test_rows_that_the_encoder_does_not_give(store, encoders):
    def spoil(outputs):
        outputs["pooled"][0] += 0.5

    encoders.spoil = spoil
    found = verify(store, dataset=toy_dataset(ROWS), recompute=ROWS, device="cpu")
    assert found.findings == []
    assert [(one.within, one.tier) for one in found.recomputed] == [(False, "pooled")] * ROWS
    assert found.exit_code == 2


def test_rows_whose_images_are_not_listed_cannot_be_recomputed(store):
    dataset = toy_dataset(ROWS)
    renamed = dataclasses.replace(
        dataset,
        sample_ids=tuple(f"x{name}" for name in dataset.sample_ids),
        read=lambda sample_id: dataset.read(sample_id[1:]),
    )
    with pytest.raises(MismatchError, match=r"(?s)none of the 20 .* 'xclass0/0000.png'"):
        verify(store, dataset=renamed, recompute=5, device="cpu")
    none = dataclasses.replace(dataset, sample_ids=(), labels=())
    with pytest.raises(InputError, match="has no images"):
        verify(store, dataset=none, recompute=5, device="cpu")
    few = dataclasses.replace(dataset, sample_ids=dataset.sample_ids[:2], labels=(0, 1))
    found = verify(store, dataset=few, recompute=5, device="cpu")
    assert {row.sample_id for row in found.recomputed} == set(few.sample_ids)
    told = found.to_json()
    assert (len(told["recomputed"]), told["recompute"], found.exit_code) == (2, 5, 0)


def test_a_store_without_embeddings_has_none_to_recompute(tmp_path):
    bad = toy_dataset(3, bad=dict.fromkeys(range(3), "empty"))
    found = verify(pooled(bad, tmp_path / "b.zarr"), dataset=bad, recompute=2, device="cpu")
    assert (found.recomputed, found.recompute, found.exit_code) == ((), 2, 1)


def test_an_image_is_recomputed_without_its_mask(tmp_path):
    store = pooled(masked(), tmp_path / "m.zarr")
    bad = dataclasses.replace(masked(), read_mask=lambda sample_id: np.zeros((3, 3), np.uint8))
    for dataset in (bad, dataclasses.replace(bad, read_mask=None)):
        found = verify(store, dataset=dataset, recompute=ROWS, device="cpu")
        assert (len(found.recomputed), found.exit_code) == (ROWS, 0)


def test_the_same_image_that_cannot_be_decoded_is_not_called_another(store, monkeypatch):
    def undecodable(*arguments):
        found = decode_row(*arguments)
        return dataclasses.replace(found, pixels=None, code="undecodable", reason="no decoder")

    monkeypatch.setattr(verifying, "decode_row", undecodable)
    with pytest.raises(InputError, match=r"is the one that .* here: no decoder"):
        verify(store, dataset=toy_dataset(ROWS), recompute=1, device="cpu")


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
    store, weights, checkpoint, error
):
    identity = open_store(store).identity
    if error is None:
        encoder = reload_encoder(identity, weights, store, checkpoint, "cpu")
        assert encoder.weights.description == "untrained (random:4)"
    else:
        with pytest.raises(error):
            reload_encoder(identity, weights, store, checkpoint, "cpu")


def test_the_seed_draws_the_rows(store):
    def rows(seed):
        found = verify(
            store, "quick", dataset=toy_dataset(ROWS), recompute=4, seed=seed, device="cpu"
        )
        return [one.row for one in found.recomputed]

    assert rows(0) == rows(0) != rows(1)


def test_another_encoder_or_dataset_is_refused(store):
    with pytest.raises(MismatchError, match="weights_sha256"):
        verify(store, dataset=toy_dataset(ROWS), recompute=1, checkpoint="random:5", device="cpu")
    with pytest.raises(MismatchError, match="dataset"):
        verify(store, "deep", dataset=toy_dataset(ROWS, name="other"))
    other = replaced(toy_dataset(ROWS), dict.fromkeys(toy_dataset(ROWS).sample_ids, b"x"))
    with pytest.raises(MismatchError, match="image_sha256"):
        verify(store, dataset=other, recompute=1, device="cpu")


def test_repair_withdraws_and_says_so(store):
    path = store / "grid" / "c.1.0.0.0"
    path.write_bytes(path.read_bytes()[:-1])
    assert verify(store, "quick").exit_code == 2
    found = verify(store, "quick", repair_it=True)
    assert found.repaired is not None
    assert 1 in found.repaired.withdrawn
    assert found.exit_code == 1
    assert open_store(store).missing == ROWS - 16
    embed(toy_dataset(ROWS), "stub", out=store, device="cpu", checkpoint="random:4")
    assert verify(store, "deep").exit_code == 0


def test_damage_that_is_not_repaired_leaves_images_alone(store):
    (store / "pooled" / "c.0.0").unlink()
    found = verify(store, "deep", dataset=toy_dataset(ROWS), recompute=2, device="cpu")
    assert found.exit_code == 2
    assert (found.images_compared, found.recomputed) == (0, ())


def test_metadata_that_was_mended_is_no_loss(store):
    (store / "zarr.json").write_text("{}")
    found = verify(store, repair_it=True)
    assert (found.repaired.rewritten, found.exit_code) == (["zarr.json"], 0)


def test_arguments(store, tmp_path):
    with pytest.raises(InputError, match="dataset"):
        verify(store, recompute=1)
    with pytest.raises(InputError, match="below 0"):
        verify(store, recompute=-1)
    for level in ("quick", "rows"):  # which read no image
        with pytest.raises(InputError, match="--deep and --recompute only"):
            verify(store, level, dataset=toy_dataset(ROWS))
    with pytest.raises(InputError):
        verify(tmp_path / "nothing.zarr")
    with pytest.raises(InputError):
        verify(tmp_path / "nowhere")


def test_a_store_without_its_fingerprint_is_looked_at_where_it_is_named(store):
    (store / "fingerprint.json").unlink()
    found = verify(store)
    assert [one.what for one in found.findings] == ["identity"]
    assert found.exit_code == 2


def test_progress_is_told(store):
    seen = []
    verify(
        store, "deep", dataset=toy_dataset(ROWS), recompute=2, device="cpu",
        on_progress=lambda *event: seen.append(event),
    )  # fmt: skip
    assert {what for what, _, _ in seen} == {
        "bytes of shards",
        "images",
        "rows through the encoder",
    }
    assert all(0 <= done <= all_of for _, done, all_of in seen)
