"""Prithvi gives what its published implementation gives, from files as people have them and bands by their names."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_bands import scene
from torch import nn

import samtl
from samtl.datasets import resolve
from samtl.encoders import prithvi
from samtl.encoders.base import Bands
from samtl.encoders.prithvi import BANDS
from samtl.encoders.weights.checkpoints import tensors_digest
from samtl.errors import InputError
from samtl.images.bands import FRACTION, REFLECTANCE, UNITS

HLS = Bands(BANDS, REFLECTANCE)
SMALL = prithvi.Variant(64, 4, 2, "https://localhost/page")
# Width and depth of each size, side of a patch, and tokens of an image of 224 pixels.
PUBLISHED = {
    "prithvi_tiny": (192, 12, 16, 197),
    "prithvi_300m": (1024, 24, 16, 197),
    "prithvi_600m": (1280, 32, 14, 257),
}


@pytest.fixture
def small(monkeypatch):
    """Let `prithvi_tiny` be smaller still."""
    monkeypatch.setitem(prithvi.VARIANTS, "prithvi_tiny", SMALL)
    return prithvi.load("prithvi_tiny", "random:0")[0]


def encoder(bands=HLS, image_size=32, **options):
    options = {"checkpoint": "random:0", "device": "cpu", "dtype": "float32"} | options
    return prithvi.Encoder("prithvi_tiny", image_size=image_size, bands=bands, **options)


def pixels(seed=0, shape=(32, 32), bands=6):
    return np.random.default_rng(seed).uniform(0, 5000, (*shape, bands)).astype(np.float32)


def position(row, column, width):
    """Write out a token's position: sines and cosines of its column, its row, and the first date."""
    found = []
    for share, place in ((6, column), (6, row), (4, 0)):
        half = width * share // 32
        angles = [place / 10_000 ** (i / half) for i in range(half)]
        found += [*np.sin(angles), *np.cos(angles)]
    return found


def by_torch(model, x):
    """Run the encoder with torch's own transformer layers, on images of (1, bands, size, size)."""
    width, side = model.norm.weight.shape[0], x.shape[-1] // SMALL.patch
    state = model.state_dict()
    grid = torch.tensor([[position(r, c, width) for c in range(14)] for r in range(14)]).float()
    grid = nn.functional.interpolate(
        grid.permute(2, 0, 1)[None], (side, side), mode="bicubic", align_corners=True
    )
    tokens = model.patch_embed["proj"](x[:, :, None])[:, :, 0] + grid
    tokens = torch.cat([model.cls_token, tokens.flatten(2).transpose(1, 2)], dim=1)
    for i in range(len(model.blocks)):
        layer = nn.TransformerEncoderLayer(
            width, SMALL.heads, 4 * width, 0, "gelu", batch_first=True, norm_first=True
        )
        names = {"self_attn.in_proj_": "attn.qkv.", "self_attn.out_proj.": "attn.proj."}
        names |= {"linear1.": "mlp.fc1.", "linear2.": "mlp.fc2."}
        own = {key: key for key in layer.state_dict()}
        for theirs, ours in names.items():
            own = {key: name.replace(theirs, ours) for key, name in own.items()}
        layer.load_state_dict({key: state[f"blocks.{i}.{name}"] for key, name in own.items()})
        tokens = layer(tokens)
    return model.norm(tokens)[:, 1:].transpose(1, 2).unflatten(2, (side, side))


def require_close(found, expected, most):
    """Compare by relative L2 distance, and at the place where they differ most."""
    assert np.linalg.norm(found - expected) <= most * np.linalg.norm(expected)
    assert np.abs(found - expected).max() <= most * np.abs(expected).max()


@pytest.mark.parametrize(
    ("engine", "size", "most"),
    [("fast", 224, 1e-5), ("fast", 320, 1e-5), ("reference", 224, 1e-5), ("int8", 224, 0.05)],
)
@torch.inference_mode()
def test_outputs_are_those_of_another_implementation(small, engine, size, most):
    x = torch.randn(1, 6, size, size, generator=torch.Generator().manual_seed(1))
    expected = by_torch(small, x).numpy()
    forward = prithvi.forward_pass(engine, small, size // 16, SMALL.taps)
    means = []
    require_close(forward(x, means.append).numpy(), expected, most)
    assert [m.shape for m in means] == [(1, size // 16, size // 16, 64)] * 3


def shared(name):
    """Find a file of the folder $SAMTL_DATA, without which the test is skipped."""
    if "SAMTL_DATA" not in os.environ:
        pytest.skip(f"SAMTL_DATA is unset: no folder with {name} to read")
    return Path(os.environ["SAMTL_DATA"]) / name


@pytest.mark.parametrize("size", [224, 512])
@pytest.mark.parametrize("engine", ["fast", "reference"])
@torch.inference_mode()
def test_outputs_are_those_of_the_published_implementation(engine, size):
    with np.load(shared("prithvi_reference.npz")) as file:
        state = {k[2:]: torch.from_numpy(file[k]) for k in file.files if k.startswith("w/")}
        x, expected = torch.from_numpy(file[f"x{size}"]).float()[:, :, 0], file[f"y{size}"]
    state.pop("pos_embed")
    model = prithvi.Network(prithvi.Variant(96, 3, 3, ""))
    model.load_state_dict(state)
    found = prithvi.forward_pass(engine, model.eval(), size // 16, ())(x, lambda tokens: None)
    require_close(found.flatten(2).transpose(1, 2).numpy(), expected[:, 1:], 1e-4)


def tensors(width, depth, patch):
    """List the tensors of a published encoder, but its positions."""
    listed = {
        "cls_token": (1, 1, width),
        "patch_embed.proj.weight": (width, 6, 1, patch, patch),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    layers = {"attn.qkv": (3, 1), "attn.proj": (1, 1), "mlp.fc1": (4, 1), "mlp.fc2": (1, 4)}
    for i in range(depth):
        for name in ("norm1", "norm2"):
            listed |= {f"blocks.{i}.{name}.{kind}": (width,) for kind in ("weight", "bias")}
        for name, (outputs, inputs) in layers.items():
            listed[f"blocks.{i}.{name}.weight"] = (outputs * width, inputs * width)
            listed[f"blocks.{i}.{name}.bias"] = (outputs * width,)
    return listed


@pytest.mark.parametrize("name", PUBLISHED)
def test_tensors_have_the_published_names_and_shapes(name):
    width, depth, patch, _ = PUBLISHED[name]
    with torch.device("meta"):
        model = prithvi.Network(prithvi.VARIANTS[name])
    found = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    assert found == tensors(width, depth, patch)


@pytest.mark.parametrize("name", PUBLISHED)
def test_that_list_is_the_published_one(name):
    width, depth, patch, tokens = PUBLISHED[name]
    kept = json.loads(shared("prithvi_keys.json").read_text())[name.removeprefix("prithvi_")]
    assert kept.pop("pos_embed") == [1, tokens, width]
    assert {key: tuple(shape) for key, shape in kept.items()} == tensors(width, depth, patch)


def autoencoder(state, prefix="", dates=4):
    """Put an encoder into what it was trained in, for several dates."""
    width = SMALL.width
    beside = {
        "encoder.pos_embed": torch.ones(1, 1 + 196 * dates, width),
        "encoder.temporal_embed_enc.scale": torch.ones(1),
        "encoder.location_embed_enc.scale": torch.ones(1),
        "decoder.mask_token": torch.ones(1, 1, width),
        "decoder.decoder_embed.weight": torch.ones(width, width),
        "decoder.decoder_pos_embed": torch.ones(1, 1 + 196 * dates, width),
        "decoder.decoder_blocks.0.norm1.weight": torch.ones(width),
    }
    inner = {f"encoder.{key}": tensor for key, tensor in state.items()} | beside
    return {prefix + key: tensor for key, tensor in inner.items()}


CONTAINERS = {
    "the encoder alone": lambda state: state | {"pos_embed": torch.ones(1, 197, SMALL.width)},
    "published": autoencoder,
    "data parallel": lambda state: {"model": autoencoder(state, "module.")},
    "Lightning": lambda state: {"epoch": 3, "state_dict": autoencoder(state, "model.")},
}


@pytest.mark.parametrize("kind", [*CONTAINERS, "safetensors"])
def test_files_of_the_architecture(small, tmp_path, kind):
    path, donor = tmp_path / "model.safetensors", small.state_dict()
    if kind == "safetensors":
        save_file(autoencoder(donor), path)
    else:
        torch.save(CONTAINERS[kind](donor), path := tmp_path / "w.pt")
    found = prithvi.load("prithvi_tiny", str(path))[1]
    assert (found.sha256, found.untrained) == (tensors_digest(small), False)


def test_files_of_other_architectures(small, tmp_path):
    first = {"decoder_embed.weight": torch.ones(3, 3), "mask_token": torch.ones(3)}
    for name, state in (
        ("first.pt", small.state_dict() | first),
        ("other.pt", {"a": torch.ones(2)}),
    ):
        torch.save(state, tmp_path / name)
        with pytest.raises(InputError, match=r"EO-1\.0" if name == "first.pt" else "prithvi_tiny"):
            prithvi.load("prithvi_tiny", str(tmp_path / name))


@pytest.mark.parametrize("name", prithvi.NAMES)
def test_only_checkpoints_whose_hash_is_known_are_downloaded(name, monkeypatch, tmp_path):
    variant = prithvi.VARIANTS[name]
    if variant.official:
        assert len(variant.official.sha256) == 64
        assert variant.official.url.startswith(variant.page)
        return
    monkeypatch.setenv("SAMTL_WEIGHTS", str(tmp_path))
    with pytest.raises(InputError, match=variant.page):
        prithvi.load(name)


@pytest.mark.parametrize("name", prithvi.NAMES)
def test_what_is_known_before_weights_are_loaded(name):
    spec, variant = prithvi.spec(name), prithvi.VARIANTS[name]
    side = 16 if name == "prithvi_600m" else 14
    assert (spec.image_size, spec.bands, spec.default_checkpoint) == (224, BANDS, "official")
    assert spec.shape("dense") == (variant.width, side, side)
    assert spec.shape("pooled") == (6 * variant.width,)
    assert max(variant.taps) < variant.depth
    larger = 4 * variant.patch
    assert prithvi.spec(name, larger).grid == (4, 4)
    for size in (larger + 8, 0, -larger, 4096):
        with pytest.raises(InputError, match="image-size"):
            prithvi.spec(name, size)


def test_bands_go_to_their_places_by_name(small):
    """Their order does not matter, and one that is not given counts as its mean."""
    image = pixels()
    expected = encoder().encode([image])
    order = [3, 0, 5, 1, 4, 2]
    shuffled = tuple("nir" if i == 3 else BANDS[i] for i in order)
    for units in UNITS:
        factor = UNITS[units] / UNITS[REFLECTANCE]
        found = encoder(Bands(shuffled, units)).encode([image[..., order] * np.float32(factor)])
        for tier, values in found.items():
            np.testing.assert_allclose(values.astype(float), expected[tier], rtol=0.01, atol=0.01)
    absent = image.copy()
    absent[..., [0, 3, 4, 5]] = np.array(prithvi.MEAN)[[0, 3, 4, 5]]
    some = encoder(Bands(("red", "green"), REFLECTANCE)).encode([image[..., [2, 1]]])
    np.testing.assert_allclose(some["pooled"], encoder().encode([absent])["pooled"], atol=2e-3)


@pytest.mark.parametrize("names", [("red", "rededge1"), ("nir", "nir_narrow"), ("red", "red")])
def test_bands_that_the_network_does_not_have(names):
    with pytest.raises(InputError, match="nir_narrow"):
        prithvi.spec("prithvi_tiny", bands=Bands(names, REFLECTANCE))


def test_constants_follow_the_units():
    own, fraction = (
        prithvi.spec("prithvi_tiny", bands=Bands((), units)).scaling
        for units in (REFLECTANCE, FRACTION)
    )
    assert own == {"mean": list(prithvi.MEAN), "std": list(prithvi.STD)}
    np.testing.assert_allclose(fraction["mean"], np.array(own["mean"]) / 10_000)


def test_padding_is_no_part_of_an_image(small):
    """Rows below an image are not in its mean, whatever they are padded with."""
    made, whole = (encoder().encode([pixels(shape=shape)]) for shape in ((16, 32), (32, 32)))
    tokens = made["dense"][0].astype(np.float32)[:, :1]
    np.testing.assert_allclose(made["pooled"][0, :64], tokens.mean(axis=(1, 2)), rtol=1e-3)
    assert made["pooled"].shape == whole["pooled"].shape == (1, 3 * 64 + 3 * 64)
    np.testing.assert_array_equal(made["grid"][0, :, 1], 0)


def test_from_bands_to_predictions(small, tmp_path):
    """Untrained features of six of thirteen bands, and no features of pictures."""
    bands = ("coastal", *BANDS[:3], "nir", "water_vapour", *BANDS[3:])
    dataset = scene(24, bands=bands)
    options = {"encoder": "prithvi_tiny", "device": "cpu", "dtype": "float32", "image_size": 32}
    with pytest.raises(InputError, match="no nir_narrow, swir1, swir2"):
        samtl.embed(resolve("synthetic:4"), checkpoint="random:0", **options)
    with pytest.raises(InputError, match=SMALL.page):
        samtl.embed(dataset, **options, out="stores")
    made = samtl.embed(dataset, checkpoint="random:0", **options, out="stores")
    store = samtl.open(made.store)
    assert store.untrained
    assert (store.identity["bands"], store.identity["units"]) == ([*BANDS], REFLECTANCE)
    run = samtl.fit_head(store, head="logreg", split=0.5, out="runs")
    folder = tmp_path / "new"
    for i in range(4):
        (folder / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        (folder / "ab"[i % 2] / f"{i}.tif").write_bytes(dataset.read(f"{i}.tif"))
    place = f"{folder}?bands={','.join(bands)}&units={REFLECTANCE}"
    assert samtl.predict(run.path, place, out="new.csv").rows == 4


def test_masks_of_patches_of_14_pixels(monkeypatch):
    """Masks are learnt at four cells a token, which 14 pixels do not divide into."""
    monkeypatch.setitem(prithvi.VARIANTS, "prithvi_600m", replace(SMALL, patch=14))
    made = samtl.embed(
        "synthetic-roads:16",
        "prithvi_600m",
        checkpoint="random:0",
        device="cpu",
        dtype="float32",
        image_size=56,
        bands="red,green,blue",
        out="stores",
    )
    assert samtl.open(made.store).shape("dense") == (16, 64, 4, 4)
    run = samtl.fit_head(made.store, head="conv", split=0.5, params={"epochs": 1}, out="runs")
    assert 4 <= run.n_test < 16
