"""What a pass will do, told before it does anything."""

import dataclasses
import json
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
from stubs import contents, small_dataset, toy_dataset
from toys import blobs

from samtl.datasets import subset
from samtl.embed.api import embed
from samtl.embed.plan import EmbedConfig, plan, prepare
from samtl.errors import (
    InputError,
    MismatchError,
    ResourceError,
    UnknownName,
)
from samtl.store.fingerprint import FILE
from samtl.store.format import TIERS

pytestmark = pytest.mark.usefixtures("encoders")


def plan_of(**options):
    return plan(options.pop("dataset", toy_dataset(37)), "stub", device="cpu", **options)


# Bytes


@pytest.mark.parametrize("tiers", [("pooled",), ("pooled", "grid"), TIERS])
@pytest.mark.parametrize("rows", [1, 16, 37])
def test_the_bytes_planned_are_the_bytes_written(rows, tiers):
    dataset = toy_dataset(rows)
    result = embed(dataset, "stub", device="cpu", tiers=tiers, out="a.zarr")
    arrays = (*tiers, "image_stats", "original_size")
    shards = sum(
        path.stat().st_size for name in arrays for path in Path("a.zarr", name).glob("c.*")
    )
    assert result.plan.bytes_to_write == result.bytes_written == shards
    assert sum(result.plan.bytes_by_tier.values()) == shards
    assert tuple(result.plan.bytes_by_tier) == (*tiers, "others")


def test_bytes_of_a_tier_are_those_of_its_array(small):
    for tier in TIERS:
        on_disk = sum(path.stat().st_size for path in small.glob(f"{tier}/c.*"))
        assert plan_of(dataset=small_dataset(), out=small).bytes_by_tier[tier] == on_disk


def test_nothing_is_left_to_do_for_a_whole_store(small):
    again = plan_of(dataset=small_dataset(), out=small)
    assert (again.rows, again.pending_rows, again.bytes_to_write, again.resumes) == (37, 0, 0, True)


def test_an_uncommitted_block_is_left_to_do(small):
    (small / "log" / "2.0.json").unlink()
    shards = sum(path.stat().st_size for path in small.glob("*/c.2.*"))
    again = plan_of(dataset=small_dataset(), out=small)
    assert (again.pending_rows, again.bytes_to_write) == (5, shards)


def test_a_further_tier_is_planned_for_every_row():
    embed(toy_dataset(37), "stub", device="cpu", tiers=["pooled"], out="a.zarr")
    further = plan_of(tiers=("pooled", "grid"), out="a.zarr")
    assert further.pending_rows == 37
    assert further.bytes_to_write == further.bytes_by_tier["grid"]


def test_a_disk_that_is_too_small_stops_the_pass_before_it_starts(monkeypatch, encoders):
    usage = namedtuple("usage", "total used free")
    needed = plan_of(out="a.zarr").bytes_to_write
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, needed))
    with pytest.raises(ResourceError, match="free: free some") as caught:
        embed(toy_dataset(37), "stub", device="cpu", out="a.zarr")
    assert caught.value.exit_code == 5
    assert list(Path().iterdir()) == []
    assert encoders.images == 0
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 2 * needed))
    assert embed(toy_dataset(37), "stub", device="cpu", out="a.zarr").missing == 0


# Nothing is touched


def test_a_plan_writes_nothing(small):
    before = contents(small)
    plan_of(dataset=small_dataset(), out=small, tiers=("pooled",))
    assert contents(small) == before
    fresh = plan_of()
    assert fresh.pending_rows == 37
    assert fresh.resumes is False
    assert not Path("cache").exists()
    assert json.loads(json.dumps(fresh.to_json()))["tiers"] == list(TIERS)


def test_a_plan_reads_no_image_and_loads_no_weights(monkeypatch, encoders):
    monkeypatch.setattr(encoders, "Encoder", None)
    dataset = toy_dataset(5, bad=dict.fromkeys(range(5), AssertionError("an image was read")))
    assert plan_of(dataset=dataset).rows == 5


@pytest.mark.parametrize("what", ["file", "folder", "below a file"])
def test_a_place_that_is_taken_is_refused(tmp_path, what):
    path = tmp_path / "a.zarr"
    if what == "folder":
        path.mkdir()
        (path / "zarr.json").write_text("somebody else's")
    else:
        path.write_text("my thesis")
    before = contents(tmp_path)
    with pytest.raises(InputError, match="--out"):
        plan_of(out=path / "b.zarr" if what == "below a file" else path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"limit": 5}, "sample_ids: the store has 37 rows"),
        ({"dtype": "bfloat16"}, "compute_dtype: the store has float32, asked for is bfloat16"),
        ({"image_size": 128}, "image_size: the store has 64, asked for is 128"),
        ({"dataset": toy_dataset(37, name="other")}, "dataset: the store has toy"),
        ({"dataset": toy_dataset(37, classes=4)}, "10 of the store's are among them"),
    ],
)
def test_what_a_store_was_made_with_must_be_asked_for_again(small, options, field):
    before = contents(small)
    with pytest.raises(MismatchError, match=field):
        plan_of(**{"dataset": small_dataset(), "out": small, **options})
    assert contents(small) == before


def test_the_dtype_of_a_store_is_kept_where_none_is_asked_for():
    embed(toy_dataset(1), "stub", device="cpu", dtype="float16", out="a.zarr")
    assert plan_of(dataset=toy_dataset(1), out="a.zarr").compute_dtype == "float16"


def test_the_image_size_of_a_store_is_kept_where_none_is_asked_for():
    embed(toy_dataset(1), "stub", device="cpu", image_size=32, out="a.zarr")
    assert plan_of(dataset=toy_dataset(1), out="a.zarr").image_size == 32


def test_each_image_size_has_a_store_of_its_own():
    assert plan_of().store.name == "toy.stub.64.zarr"
    assert plan_of(image_size=256).store.name == "toy.stub.256.zarr"
    assert plan_of(image_size=256).image_size == 256


# Arguments


@pytest.mark.parametrize(
    ("size", "masks", "tiers", "refused"),
    [
        (80, False, TIERS, "grid 5 x 5"),
        (80, False, ("pooled", "dense"), ""),
        (272, False, TIERS, ""),  # 16 cells of 17 tokens
        (272, True, ("dense",), "dense 17 x 17"),
        (272, True, ("pooled",), ""),
        (288, True, ("dense",), ""),
    ],
)
def test_grids_that_no_head_reads_are_refused_before_the_pass(size, masks, tiers, refused):
    options = {"dataset": blobs() if masks else toy_dataset(3), "tiers": tiers, "image_size": size}
    if not refused:
        assert plan_of(**options).image_size == size
        return
    with pytest.raises(InputError, match=f"--image-size {size} gives {refused} cells.*of 32, or"):
        plan_of(**options)


@pytest.mark.parametrize("size", [0, 100, 4096])
def test_image_sizes_are_checked(size):
    with pytest.raises(InputError, match=f"--image-size must be a multiple of 16 .* got {size}"):
        plan_of(image_size=size)


@pytest.mark.parametrize("tiers", [(), ("pooled", "dens"), ("",), ("embeddings",), "pooled"])
def test_unknown_tiers_are_refused(tiers):
    with pytest.raises(InputError, match="--tiers takes one or more of pooled,grid,dense"):
        plan_of(tiers=tiers)


def test_tiers_are_a_set():
    assert plan_of(tiers=["dense", "pooled", "dense"]).tiers == ("pooled", "dense")


@pytest.mark.parametrize("size", [0, -1, 1.5, "many", "", "²", None, True])
def test_a_batch_size_that_is_no_number_is_refused(size):
    with pytest.raises(InputError, match="--batch-size must be auto or a whole number from 1"):
        plan_of(batch_size=size)


@pytest.mark.parametrize(("asked", "given"), [("auto", min(8, os.cpu_count())), (5, 5), ("12", 12)])
def test_a_batch_size_is_a_number_or_auto(asked, given):
    assert plan_of(batch_size=asked).batch_size == given


@pytest.mark.parametrize("limit", [0, -3])
def test_a_limit_must_be_positive(limit):
    with pytest.raises(InputError, match="--limit must be at least 1"):
        plan_of(limit=limit)
    with pytest.raises(InputError, match="--per-class must be at least 1"):
        plan_of(per_class=limit)


def test_a_class_with_too_few_images_is_named():
    with pytest.raises(
        InputError, match="class1 has 12, class2 has 12; use --per-class 12 or less"
    ):
        plan_of(per_class=13)


def test_an_empty_dataset_is_refused():
    with pytest.raises(InputError, match="the dataset toy has no images"):
        plan_of(dataset=subset(toy_dataset(0)))


def test_a_dataset_that_does_not_exist_is_refused():
    with pytest.raises(UnknownName, match="eurosat"):
        plan_of(dataset="eurosta")


@pytest.mark.parametrize("device", ["cuda", "gpu", "cpu:1", ""])
def test_a_device_that_is_not_there_is_refused(device):
    import torch

    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(InputError, match="--device"):
        plan(toy_dataset(1), "stub", device=device)


# Names


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "toy.stub.64.zarr"),
        ({"limit": 10}, "toy.limit-10.stub.64.zarr"),
        ({"per_class": 4}, "toy.per-class-4.stub.64.zarr"),
        ({"per_class": 4, "limit": 10}, "toy.per-class-4.limit-10.stub.64.zarr"),
        ({"checkpoint": "random:0"}, "toy.stub.64.zarr"),  # the default of this one
        ({"checkpoint": "official"}, "toy.stub-official.64.zarr"),
        ({"checkpoint": "random:3"}, "toy.stub-random3.64.zarr"),
        ({"checkpoint": "weights/My SAM_b.v2.pth"}, "toy.stub-MySAM_bv2.64.zarr"),
    ],
)
def test_stores_are_named_after_what_decides_their_content(options, name):
    Path("weights").mkdir()
    Path("weights/My SAM_b.v2.pth").touch()
    assert plan_of(**options).store == Path("cache", name)


def test_a_store_lands_where_it_is_told_to(monkeypatch, tmp_path):
    assert plan_of(out=tmp_path).store == tmp_path / "toy.stub.64.zarr"
    assert plan_of(out=str(tmp_path / "mine.zarr")).store == tmp_path / "mine.zarr"
    monkeypatch.setenv("SAMTL_CACHE", str(tmp_path / "stores"))
    assert plan_of().store == tmp_path / "stores" / "toy.stub.64.zarr"


@pytest.mark.parametrize(
    ("options", "rows"),
    [({}, 37), ({"limit": 10}, 10), ({"per_class": 4}, 12), ({"limit": 99}, 37)],
)
def test_rows_are_counted(options, rows):
    assert plan_of(**options).rows == rows


def test_random_weights_are_called_untrained():
    assert plan_of().weights == "untrained (random:0)"


def test_a_store_that_was_only_begun_is_gone_on_with(small):
    """A crash right after the fingerprint, before anything else."""
    for path in (*small.glob("*/*.json"), *small.glob("samples/*"), small / "zarr.json"):
        path.unlink()
    assert (small / FILE).exists()
    again = plan_of(dataset=small_dataset(), out=small)
    assert (again.resumes, again.pending_rows) == (True, 37)


def test_groups_are_asked_for_by_a_regular_expression():
    own = dataclasses.replace(toy_dataset(6), groups=tuple("abcdef"))
    assert prepare(EmbedConfig(own, "stub", device="cpu")).table.groups != ()
    table = prepare(EmbedConfig(own, "stub", device="cpu", group_by=r"^class\d")).table
    assert table.groups == tuple(i.partition("/")[0] for i in table.samples)
    with pytest.raises(InputError, match=r"finds nothing in 'class0/0000\.png'"):
        plan_of(dataset=own, group_by="scene")


def test_the_mask_is_planned_where_there_is_one():
    masked = dataclasses.replace(toy_dataset(37), labels=(-1,) * 37, read_mask=lambda i: None)
    more = plan_of(dataset=masked).bytes_to_write - plan_of().bytes_to_write
    assert more == 37 * (64 * 64 + 4) + 3 * (32 + 260)
