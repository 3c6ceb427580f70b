"""Random convolutional features: filters come from the images, and travel in the store and in runs."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save
from stubs import png, toy_dataset
from test_bands import scene, tif, tile

import samtl
from samtl.datasets import Dataset
from samtl.encoders import rcf
from samtl.errors import DamageError, InputError, MismatchError
from samtl.images.bands import Bands
from samtl.store.format import ENCODER

TIERS = ("pooled", "grid", "dense")


def pictures(n=12, side=32, bands=3):
    return [
        np.random.default_rng(i).integers(0, 256, (side, side, bands), np.uint8) for i in range(n)
    ]


def textures(n=24, side=24):
    """Stripes, level and upright: nothing but filters tells them apart."""
    random = np.random.default_rng(0)
    noisy = [(np.indices((side, side))[i % 2] // 2 % 2 * 120 + 60)[..., None] for i in range(n)]
    return [(a + random.integers(0, 30, (side, side, 3))).astype(np.uint8) for a in noisy]


def made(images, seed=0, side=32, bands=3):
    content = rcf.fit(images, f"patches:{seed}", "toy")
    names = Bands(tuple(f"band{i}" for i in range(bands)))
    return rcf.Encoder("rcf", content, "cpu", image_size=side, bands=names), load(content)


def embed(dataset, **options):
    return samtl.embed(dataset, "rcf", device="cpu", **{"out": "a.zarr"} | options)


@pytest.mark.parametrize("bands", [1, 3, 7])
def test_tokens_are_roots_of_mean_responses_of_each_sign(bands):
    images = pictures(bands=bands)
    encoder, filters = made(images, bands=bands)
    (dense,) = encoder.encode(images[:1], ("dense",))["dense"]
    weight, bias = filters["weight"], filters["bias"]
    around = np.pad(images[0].astype(np.float32), ((2, 2), (2, 2), (0, 0)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(around, (6, 6), axis=(0, 1))[::2, ::2]
    responses = np.einsum("hwbyx,kbyx->khw", windows, weight) + bias[:, None, None]
    for sign, channels in ((1, dense[:256]), (-1, dense[256:])):
        rectified = np.maximum(sign * responses, 0).reshape(256, 8, 2, 8, 2).mean(axis=(2, 4))
        np.testing.assert_allclose(channels, np.sqrt(rectified), atol=2e-2)


def test_responses_are_white():
    """Responses of a filter to the patches that it is from have about its variance; no direction stands out."""
    images = [np.cumsum(np.cumsum(p.astype(float) - 128, 0), 1) / 40 + 128 for p in pictures(40)]
    content = load(
        rcf.fit([np.clip(i, 0, 255).astype(np.uint8) for i in images], "patches:0", "toy")
    )
    weight = content["weight"].reshape(256, -1)
    assert np.isfinite(weight).all()
    assert np.linalg.matrix_rank(weight) > 100  # of 108 pixels in a filter


def test_a_seed_gives_the_same_filters_and_another_gives_others():
    images = pictures()
    one, same, other = (rcf.fit(images, f"patches:{seed}", "toy") for seed in (0, 0, 1))
    assert one == same != other
    encoders = [rcf.Encoder("rcf", content, "cpu", bands=Bands()) for content in (one, same, other)]
    first, second, third = (encoder.fingerprint() for encoder in encoders)
    assert first == second != third


@pytest.mark.parametrize(
    "images",
    [[], [np.zeros((5, 40, 3), np.uint8)], [np.full((40, 40, 3), 7, np.uint8)]],
    ids=["none", "too small", "of one colour"],
)
def test_images_that_give_no_filter(images):
    with pytest.raises(InputError):
        rcf.fit(images, "patches:0", "toy")


def test_images_that_cannot_be_used_are_named_with_the_reason(tmp_path):
    """Bands that are not declared are no images of fewer than 6 x 6 pixels."""
    for i in range(4):
        path = tmp_path / "folder" / "ab"[i % 2] / f"{i}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tif(tile(i)))
    with pytest.raises(InputError, match=r"\d\.tif: .*, was expected"):
        samtl.embed(f"folder:{tmp_path / 'folder'}", "rcf", out=tmp_path / "out")
    assert not [*tmp_path.glob("out/*")]


def test_few_images_give_all_filters():
    assert load(rcf.fit(pictures(1, side=12), "patches:0", "toy"))["weight"].shape == (256, 3, 6, 6)


@pytest.mark.parametrize("size", [(16, 32), (32, 7), (3, 32)])
def test_padding_is_left_out_and_makes_no_edge(size):
    encoder, _ = made(pictures())
    even = np.full((*size, 3), 90, np.uint8)
    found = encoder.encode([even], TIERS)
    rows, columns = (-(-side // 4) for side in size)
    tokens = found["dense"][0][:, :rows, :columns].reshape(512, -1)
    assert np.ptp(tokens, axis=1).max() < 1e-2
    np.testing.assert_allclose(found["pooled"][0, :512], tokens.mean(axis=1), atol=1e-2)
    assert not found["grid"][0][:, rows:].any()


@pytest.mark.parametrize(
    ("side", "tokens"), [(64, 16), (256, 64), (272, 34), (512, 64), (1024, 64), (2048, 128)]
)
def test_most_images_have_64_tokens_a_side_or_fewer(side, tokens):
    assert rcf.spec("rcf", side).grid == (tokens, tokens)


def test_large_images_are_made_smaller():
    from samtl.embed.decode import own_size

    image = png(0, (30, 1500))
    assert own_size(Dataset("toy", ("a", "b"), ("x",), (0,), lambda name: image)) == 1024


def test_textures_are_told_apart(tmp_path):
    images = textures()
    encoder, _ = made(images, side=32)
    pooled = encoder.encode(images, ("pooled",))["pooled"]
    apart = np.linalg.norm(pooled[0::2].mean(0) - pooled[1::2].mean(0))
    assert apart > 3 * np.linalg.norm(pooled[0::4].mean(0) - pooled[2::4].mean(0))


def test_filters_travel_in_the_store_and_in_runs(tmp_path):
    dataset = toy_dataset(40)
    result = embed(dataset)
    assert not result.untrained
    assert result.plan.image_size == 32  # the images have 20 pixels
    assert samtl.verify("a.zarr", "deep").exit_code == 0
    assert embed(dataset, tiers=TIERS).encoded == 40  # with the same filters
    run = samtl.fit_head("a.zarr", "logreg", 0.5, out="runs")
    (Path("images")).mkdir()
    for name in dataset.sample_ids[:3]:
        (Path("images") / Path(name).name).with_suffix(".png").write_bytes(dataset.read(name))
    stored = samtl.predict(run, from_store="a.zarr", out="stored.csv")
    shutil.rmtree("a.zarr")
    told = samtl.predict(run, images="images", out="anew.csv")
    assert told.rows == 3
    before = {line.split(",")[0]: line for line in stored.table.read_text().splitlines()}
    for line in told.table.read_text().splitlines()[1:]:
        name, predicted, *_ = line.split(",")
        assert (
            before[next(i for i in dataset.sample_ids if Path(i).stem == Path(name).stem)].split(
                ","
            )[1]
            == predicted
        )


def test_another_store_lends_its_filters():
    embed(toy_dataset(40))
    again = embed(toy_dataset(30, name="other"), checkpoint="a.zarr", out="b.zarr")
    stores = [samtl.open(name) for name in ("a.zarr", "b.zarr")]
    assert stores[0].identity == stores[1].identity
    assert "images of toy" in again.weights
    own = embed(toy_dataset(30, name="other"), out="c.zarr")
    assert samtl.open(own.store).identity != stores[0].identity
    with pytest.raises(MismatchError):
        embed(toy_dataset(30, name="other"), checkpoint="a.zarr", out="c.zarr")
    with pytest.raises(MismatchError):
        embed(toy_dataset(40), checkpoint="patches:1")
    assert embed(toy_dataset(40), checkpoint="patches:0").encoded == 0


@pytest.mark.parametrize("checkpoint", ["nothing", "patches:", "random:0", "official", "notes.txt"])
def test_what_holds_no_filters(checkpoint):
    Path("notes.txt").write_text("notes")
    with pytest.raises(InputError):
        embed(toy_dataset(20), checkpoint=checkpoint)
    assert not Path("a.zarr").exists()


def test_filters_of_other_bands_and_damaged_ones_are_refused():
    embed(scene(bands=("red", "nir"), make=tile))
    with pytest.raises(InputError):
        embed(toy_dataset(20), checkpoint="a.zarr", out="b.zarr")
    filters = load(Path("a.zarr", ENCODER).read_bytes())
    Path("nan.safetensors").write_bytes(
        save(
            {**filters, "bias": filters["bias"] * np.nan},
            {rcf.TOLD: '{"checkpoint": "", "dataset": ""}'},
        )
    )
    with pytest.raises(InputError):
        embed(scene(bands=("red", "nir")), checkpoint="nan.safetensors", out="b.zarr")


def test_all_bands_in_their_units_are_taken():
    result = embed(scene(9, bands=("blue", "green", "red", "nir", "swir1")), tiers=TIERS)
    assert result.plan.bands == ("blue", "green", "red", "nir", "swir1")
    assert np.isfinite(samtl.open("a.zarr").read("pooled")).all()


def test_a_store_without_its_filters_is_damaged():
    embed(toy_dataset(40))
    kept = Path("a.zarr", ENCODER)
    content = kept.read_bytes()
    kept.write_bytes(content[:-1] + b"!")
    assert [one.what for one in samtl.verify("a.zarr").findings] == ["encoder"]
    kept.unlink()
    assert samtl.verify("a.zarr", "quick").exit_code == 2
    with pytest.raises(DamageError):
        embed(toy_dataset(50))
    assert samtl.verify("a.zarr", repair_it=True).refused


def test_a_pass_that_ended_before_its_store_goes_on_with_its_filters(monkeypatch):
    from samtl.embed import api

    def stop(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(api, "start_writer", stop)
        with pytest.raises(KeyboardInterrupt):
            embed(toy_dataset(40))
    assert [path.name for path in Path("a.zarr").iterdir()] == [ENCODER]
    with pytest.raises(MismatchError):
        embed(toy_dataset(40), checkpoint="patches:1")
    assert embed(toy_dataset(40)).rows == 40


def test_a_compacted_store_keeps_its_filters():
    embed(toy_dataset(40))
    embed(toy_dataset(30))
    assert samtl.compact("a.zarr").dropped == 10
    assert samtl.verify("a.zarr").exit_code == 0
    assert embed(toy_dataset(40)).encoded == 10


def test_a_bucket_holds_filters_too(bucket):
    place = f"{bucket}/a.zarr"
    embed(toy_dataset(20), out=place)
    assert embed(toy_dataset(30), out=place).encoded == 10
    assert embed(toy_dataset(20, name="other"), checkpoint=place).rows == 20


def test_the_plan_says_where_filters_are_from_and_writes_nothing(run):
    code, out, _ = run(
        "embed", "--dataset", "synthetic:4", "--encoder", "rcf", "--dry-run", "--image-size", 64
    )
    assert code == 0
    assert "patches:0" in out
    assert not Path("cache").exists()


def test_the_fingerprint_does_not_depend_on_threads():
    images = pictures()
    encoder, _ = made(images)
    together = encoder.encode(images, ("pooled",))["pooled"]
    torch.set_num_threads(1)
    alone = [encoder.encode([image], ("pooled",))["pooled"][0] for image in images]
    np.testing.assert_array_equal(together, alone)
