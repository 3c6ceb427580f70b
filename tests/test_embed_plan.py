"""What a pass will do, told before it does anything."""

import dataclasses
import json
import os
import shutil
from collections import namedtuple
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from stubs import contents, small_dataset, toy_dataset
from toys import blobs

from samtl.embed.api import embed, plan
from samtl.embed.plan import EmbedConfig, prepare
from samtl.errors import InputError, MismatchError, ResourceError
from samtl.store.format import TIERS
from samtl.store.storage import IDENTITY

pytestmark = pytest.mark.usefixtures("encoders")


def plan_of(**options):
    return plan(options.pop("dataset", toy_dataset(37)), "stub", **{"device": "cpu", **options})


def embed_toys(rows=37, **options):
    return embed(toy_dataset(rows), "stub", device="cpu", out="a.zarr", **options)


@pytest.mark.parametrize(("rows", "tiers"), [(1, TIERS), (16, TIERS[:1]), (37, TIERS[:2])])
def test_the_bytes_planned_are_the_bytes_written(rows, tiers):
    result = embed_toys(rows, tiers=tiers)

    def on_disk(*arrays):
        return sum(p.stat().st_size for name in arrays for p in Path("a.zarr", name).glob("c.*"))

    others = on_disk("image_stats", "original_size")
    sizes = {**{tier: on_disk(tier) for tier in tiers}, "others": others}
    assert result.plan.bytes_by_tier == sizes
    assert result.plan.bytes_to_write == result.bytes_written == sum(sizes.values())
    masked = dataclasses.replace(
        toy_dataset(37), labels=(-1,) * 37, read_mask=lambda i: np.eye(9, dtype=np.uint8)
    )
    more = plan_of(dataset=masked).bytes_to_write - plan_of(tiers=TIERS).bytes_to_write
    assert more == 37 * (64 * 64 + 4) + 3 * (32 + 260)


def test_what_is_left_to_do_is_planned(small):
    def left(**options):
        found = plan_of(dataset=small_dataset(), out=small, **options)
        return found.rows, found.pending_rows, found.bytes_to_write, found.resumes

    assert left() == (37, 0, 0, True)
    (small / "log" / "2.0.json").unlink()
    shards = sum(path.stat().st_size for path in small.glob("*/c.2.*"))
    assert left() == (37, 5, shards, True)
    # A crash right after the fingerprint, before anything else.
    for path in (*small.glob("*/*.json"), *small.glob("samples/*"), small / "zarr.json"):
        path.unlink()
    assert (small / IDENTITY).exists()
    assert left()[:2] == (37, 37)
    embed_toys(tiers=["pooled"])
    further = plan_of(tiers=("pooled", "grid"), out="a.zarr")
    assert (further.pending_rows, further.bytes_to_write) == (37, further.bytes_by_tier["grid"])


def test_a_disk_that_is_too_small_stops_the_pass_before_it_starts(monkeypatch, encoders):
    usage = namedtuple("usage", "total used free")
    needed = plan_of(out="a.zarr").bytes_to_write
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, needed))
    with pytest.raises(ResourceError, match="free: free some"):
        embed_toys()
    assert list(Path().iterdir()) == []
    assert encoders.images == 0
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 2 * needed))
    assert embed_toys().missing == 0


def test_no_store_begins_in_the_folder_that_is_listed():
    """Fault: the store was among the folders of classes, and the same command failed the next time."""
    Path("data/land").mkdir(parents=True)
    listed = dataclasses.replace(toy_dataset(37), root=Path("data"))
    for out in ("data", "data/land", "data/a.zarr", "land/../data"):
        with pytest.raises(InputError, match="--out"):
            plan_of(dataset=listed, out=out)
    assert plan_of(dataset=listed, out=".").rows == 37
    embed(toy_dataset(37), "stub", device="cpu", out="data/a.zarr")
    assert plan_of(dataset=listed, out="data/a.zarr").resumes


def test_a_plan_writes_nothing():
    dataset = toy_dataset(37)
    fresh = plan_of(dataset=dataset)
    assert (fresh.pending_rows, fresh.resumes, fresh.weights) == (37, False, "untrained (random:0)")
    assert list(Path().iterdir()) == []
    assert fresh.understood == dataset.understood()
    told = json.loads(json.dumps(fresh.to_json()))
    assert (told["tiers"], told["added"], "changes" in told) == (["pooled", "grid"], 0, False)
    assert told["understood"]["classes"] == {"class0": 13, "class1": 12, "class2": 12}
    assert told["copies"] == {"compared": 37, "copies": 0, "relabelled": 0}


def test_a_place_that_is_taken_is_refused(tmp_path):
    Path("file.zarr").write_text("my thesis")
    Path("folder.zarr").mkdir()
    Path("folder.zarr/zarr.json").write_text("somebody else's")
    before = contents(tmp_path)
    for place in ("file.zarr", "folder.zarr", "file.zarr/b.zarr"):
        with pytest.raises(InputError, match="--out"):
            plan_of(out=place)
    assert contents(tmp_path) == before


def test_what_a_store_was_made_with_must_be_asked_for_again(small):
    before = contents(small)
    for options, field in (
        ({"limit": 5}, "sample_ids: the store has 37 rows"),
        ({"dtype": "bfloat16"}, "compute_dtype: the store has float32, asked for is bfloat16"),
        ({"image_size": 128}, "image_size: the store has 64, asked for is 128"),
        ({"dataset": toy_dataset(37, name="other")}, "dataset: the store has toy"),
        ({"dataset": toy_dataset(37, classes=4)}, "10 of the store's are among them"),
    ):
        with pytest.raises(MismatchError, match=field):
            plan_of(**{"dataset": small_dataset(), "out": small, **options})
    assert contents(small) == before


def test_grids_that_no_head_reads_are_refused_before_the_pass():
    for size, dataset, tiers, refused in (
        (80, toy_dataset(3), TIERS, "grid 5 x 5"),
        (80, toy_dataset(3), ("pooled", "dense"), ""),
        (272, toy_dataset(3), TIERS, ""),  # 16 cells of 17 tokens
        (272, blobs(), ("dense",), "dense 17 x 17"),
        (272, blobs(), ("pooled",), ""),
        (288, blobs(), ("dense",), ""),
    ):
        told = f"--image-size {size} gives {refused} cells.*of 32, or"
        with pytest.raises(InputError, match=told) if refused else nullcontext():
            assert plan_of(dataset=dataset, tiers=tiers, image_size=size).image_size == size


@pytest.mark.parametrize(
    ("option", "values", "told"),
    [
        ("image_size", (0, 100, 4096), "--image-size must be a multiple of 16"),
        ("tiers", ((), ("pooled", "dens"), ("",), "dens"), "--tiers takes one or more of pooled,grid,dense"),
        ("batch_size", (0, -1, 1.5, "many", "", "²", None, True), "--batch-size must be auto or a whole number from 1"),
        ("limit", (0, -3), "--limit must be at least 1"),
        ("per_class", (0, -3), "--per-class must be at least 1"),
        ("per_class", (13,), "class1 has 12.*use --per-class 12 or less"),
        ("device", ("gpu", "cpu:1", ""), "--device"),
        ("dataset", (toy_dataset(0),), "the dataset toy has no images"),
        ("dataset", ("eurosta",), "eurosat"),
        ("root", (".",), "takes no root"),
        ("group_by", ("scene",), r"finds nothing in 'class0/0000\.png'"),
    ],
)  # fmt: skip
def test_arguments_are_checked(option, values, told):
    for value in values:
        with pytest.raises(InputError, match=told):
            plan_of(**{option: value})


def test_tiers_that_are_not_asked_for_are_what_heads_read_or_what_the_store_has():
    assert (plan_of().tiers, plan_of(dataset=blobs()).tiers) == (("pooled", "grid"), TIERS)
    embed_toys(tiers=["dense"])
    found = plan_of(out="a.zarr")
    assert (found.tiers, found.pending_rows) == (("dense",), 0)
    assert (plan_of().by_default["tiers"], found.by_default["tiers"]) == (
        "for classification", "those of the store"
    )  # fmt: skip
    assert "tiers" not in plan_of(tiers=["pooled"]).by_default


def test_arguments_are_understood():
    embed_toys(1, dtype="float16", image_size=32)
    again = plan_of(dataset=toy_dataset(1), out="a.zarr")  # what the store was made with
    assert (again.compute_dtype, again.image_size) == ("float16", 32)
    assert plan_of(tiers=["dense", "pooled", "dense"]).tiers == ("pooled", "dense")
    sizes = {"auto": min(8, os.cpu_count()), 5: 5, "12": 12}
    assert {size: plan_of(batch_size=size).batch_size for size in sizes} == sizes
    parts = {"limit": 10}, {"per_class": 4}, {"limit": 99}
    assert [plan_of(**part).rows for part in parts] == [10, 12, 37]
    own = dataclasses.replace(toy_dataset(6), groups=tuple("abcdef"))
    table = prepare(EmbedConfig(own, "stub", device="cpu", group_by=r"^class\d")).table
    assert table.groups == tuple(i.partition("/")[0] for i in table.samples)


def test_stores_are_named_after_what_decides_their_content(monkeypatch):
    Path("weights").mkdir()
    Path("weights/My SAM_b.v2.pth").touch()
    for options, name in (
        ({}, "toy.stub.64.zarr"),
        ({"image_size": 256}, "toy.stub.256.zarr"),
        ({"per_class": 4, "limit": 10}, "toy.per-class-4.limit-10.stub.64.zarr"),
        ({"checkpoint": "random:0"}, "toy.stub.64.zarr"),  # the default of this one
        ({"checkpoint": "official"}, "toy.stub-official.64.zarr"),
        ({"checkpoint": "random:3"}, "toy.stub-random3.64.zarr"),
        ({"checkpoint": "weights/My SAM_b.v2.pth"}, "toy.stub-MySAM_bv2.64.zarr"),
    ):
        monkeypatch.delenv("SAMTL_CACHE", raising=False)
        assert plan_of(**options).store == Path("cache", name)
        assert plan_of(**options, out="here").store == Path("here", name)
        assert plan_of(**options, out="here/mine.zarr").store == Path("here/mine.zarr")
        monkeypatch.setenv("SAMTL_CACHE", "stores")
        assert plan_of(**options).store == Path("stores", name)
