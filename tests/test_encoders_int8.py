"""8-bit products are close to floats, extreme channels stay floats, and a pass sees whether that is enough."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from stubs import toy_dataset
from torch import nn

import samtl
from samtl._runtime import Note, probe
from samtl.embed import plan, trial
from samtl.encoders import sam
from samtl.encoders.compute import resolve_compute
from samtl.encoders.fast import int8
from samtl.encoders.fast.engines import forward_pass
from samtl.errors import InputError, MismatchError

pytestmark = pytest.mark.usefixtures("one_thread")
OPTIONS = {"device": "cpu", "image_size": 256, "out": "a.zarr", "engine": "int8"}


@pytest.fixture(autouse=True)
def vnni(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_vnni": True}, raising=False)


def layer(inputs=48, outputs=40, seed=0):
    torch.manual_seed(seed)
    return nn.Linear(inputs, outputs).requires_grad_(False)


def relative(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("product", [int8._plain, int8._onednn])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_is_that_of_floats(monkeypatch, product, dtype):
    monkeypatch.setattr(int8, "products", lambda: product)
    module, x, other = layer(), torch.randn(2, 7, 20, 48), torch.randn(2, 7, 20, 40)  # many bands
    exact, x = module(x), x.to(dtype)
    ours = int8.Int8Linear(module.to(dtype), 280)
    found = ours(x), ours.gelu(x), ours.plus(x, other.to(dtype))
    for one, expected in zip(found, (exact, nn.functional.gelu(exact), exact + other), strict=True):
        assert (one.dtype, one.shape) == (dtype, expected.shape)
        assert relative(one.float(), expected) < 0.015


def test_each_token_and_each_channel_has_its_own_scale():
    module, x = layer(), torch.randn(90, 48)
    x *= torch.logspace(-6, 6, 90)[:, None]
    module.weight *= torch.logspace(-3, 3, 40)[:, None]
    module.bias.zero_()
    exact, ours = module(x), int8.Int8Linear(module, 90)
    found = ours(x)
    assert (((found - exact).norm(dim=1) / exact.norm(dim=1)) < 0.05).all()
    assert (((found - exact) / exact.abs().amax(1, True)).norm(dim=0) < 1).all()
    assert torch.equal(ours(torch.zeros(3, 48)), torch.zeros(3, 40))


def test_channels_with_extreme_values_stay_floats(monkeypatch):
    module, x = layer(192, 64), torch.randn(130, 192)
    x[:, 5], x[3, 77] = 400 * torch.randn(130), -900
    exact = module(x)
    rest = exact - x[:, [5, 77]] @ module.weight[:, [5, 77]].T
    ours = int8.Int8Linear(module, 130)
    assert relative(ours(x) - exact + rest, rest) < 0.02
    monkeypatch.setattr(int8, "EXTREME", 1e9)
    assert relative(ours(x) - exact + rest, rest) > 0.1


def test_the_mean_of_tokens_loses_nothing_to_rounded_weights():
    """Rounding shifts a mean token as much as any other one, and nothing averages it out: it is put right."""
    module = layer(192, 192)
    x = torch.randn(4000, 192) + 2 * torch.randn(192)
    exact = module(x).mean(0)
    assert relative(int8.Int8Linear(module, 4000)(x).mean(0), exact) < 2e-4


def spoilt(seed=0, factor=0):
    """The tiny encoder's network, and with outliers planted in the channels that every block reads."""
    model, _ = sam.load("tiny", f"random:{seed}", 64)
    for block in model.blocks if factor else ():
        for norm in (block.norm1, block.norm2):
            norm.weight[[3, 90]] *= factor
            norm.bias[[3, 90]] += factor
    return model


def outputs(model, x):
    """Run a network in floats and in integers, which empties it; the least cosine of a token."""
    exact = model(x)
    found = forward_pass("int8", model, (2, 5))(x, lambda tokens: None)
    return float(nn.functional.cosine_similarity(exact, found, dim=1).min())


@torch.inference_mode()
def test_an_encoder_with_planted_outliers_needs_the_remedy(monkeypatch):
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert outputs(spoilt(), x) > 0.9995
    assert outputs(spoilt(factor=20), x) > 0.9995
    monkeypatch.setattr(int8, "EXTREME", 1e9)
    assert outputs(spoilt(factor=20), x) < 0.999


def embedded(**options):
    notes = []
    told = lambda event: notes.append(str(event)) if isinstance(event, Note) else None  # noqa: E731
    result = samtl.embed(toy_dataset(10), "tiny", on_event=told, **{**OPTIONS, **options})
    return result, notes


def test_a_pass_in_integers_says_how_close_they_are_and_goes_on_so():
    result, (_, note) = embedded(limit=6)
    store = samtl.open("a.zarr")
    assert (store.identity["compute_dtype"], result.plan.engine) == ("int8+float32", "int8")
    about = json.loads(Path("a.zarr/fingerprint.json").read_bytes())["about"]["closeness"]
    assert about == store.writers()[0]["closeness"]
    assert about["images"] == 6
    assert 0.999 < about["token_cosine"] < 1
    assert 0 < about["pooled_error"] < 0.01
    assert f"{about['token_cosine']:.5f}" in note
    exact = samtl.embed(
        toy_dataset(10), "tiny", **{**OPTIONS, "engine": "fast", "limit": 6, "out": "b.zarr"}
    )
    ours, theirs = (samtl.open(place).read("pooled", range(6)) for place in ("a.zarr", exact.store))
    distance = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
    assert 1e-5 < distance < 0.01
    # The same encoder makes the rest, whatever engine is asked for.
    for engine in ("fast", "int8"):
        again, notes = embedded(limit=6, engine=engine, tiers=["pooled"])
        assert (again.encoded, again.plan.compute_dtype, notes) == (0, "int8+float32", [])
    with pytest.raises(MismatchError, match=r"compute_dtype: the store has int8\+float32"):
        embedded(limit=6, engine="reference")
    verified = samtl.verify("a.zarr", dataset=toy_dataset(10), recompute=3)
    assert all(row.within for row in verified.recomputed)


@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_integers_that_are_too_far_are_not_used(monkeypatch, dtype):
    monkeypatch.setattr(int8, "LARGEST", 7)  # as with 4 bits
    result, (_, note) = embedded(dtype=dtype)
    assert (result.plan.compute_dtype, result.plan.engine) == ("float32", "fast")
    assert "too far" in note
    assert samtl.open("a.zarr").identity["compute_dtype"] == "float32"
    again, notes = embedded(dtype=dtype)  # the same command goes on
    assert (again.encoded, again.plan.engine, len(notes)) == (0, "fast", 1)


def test_one_token_or_feature_that_is_far_is_enough():
    good = {"images": 8, "token_cosine": 0.9995, "pooled_error": 0.004}
    assert trial.close_enough(good)
    assert not trial.close_enough({**good, "token_cosine": 0.9989})
    assert not trial.close_enough({**good, "pooled_error": 0.011})
    assert not trial.close_enough({**good, "pooled_error": np.nan})


@pytest.mark.parametrize("largest", [10, 1e6])
def test_float16_that_nobody_asked_for_is_compared_with_float32(monkeypatch, largest):
    """The second encoder has values that float16 has not."""
    monkeypatch.setattr(
        plan,
        "resolve_compute",
        lambda dtype, engine, device: "float16" if dtype == "auto" else dtype,
    )
    load = sam.load

    def scaled(*args):
        model, weights = load(*args)
        model.patch_embed.proj.bias[:3] = largest
        return model, weights

    monkeypatch.setattr(sam, "load", scaled)
    result, notes = embedded(engine="fast")
    fits = largest < 65504
    assert result.plan.compute_dtype == ("float16" if fits else "float32")
    assert not result.quarantined
    assert ("too far" in notes[1]) != fits


def test_only_tokens_of_the_image_count():
    """The image covers half of the square; the rest of the output is other."""
    exact = {"pooled": np.ones((3, 5), np.float32), "dense": np.ones((3, 256, 4, 4), np.float16)}
    ours = {**exact, "dense": exact["dense"].copy()}
    ours["dense"][:, ::2, 2:] = -1  # below the image
    found = trial.closeness(ours, exact, [np.zeros((32, 64, 3), np.uint8)] * 3, 16)
    assert found == {"images": 3, "token_cosine": pytest.approx(1), "pooled_error": 0}
    ours["dense"][1, :, 1, 3] = np.nan
    assert not trial.close_enough(trial.closeness(ours, exact, [np.zeros((32, 64, 3))] * 3, 16))


@pytest.mark.parametrize("found", [{}, {"avx512_f": True, "avx512_bf16": True}])
def test_a_processor_without_such_products_is_refused(monkeypatch, found):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    with pytest.raises(InputError, match="--engine int8 needs a processor"):
        embedded()
    with pytest.raises(InputError, match="add --device cpu"):
        resolve_compute("int8+float32", "fast", torch.device("cuda"))
    begun = "int8+float32"  # on another machine
    assert resolve_compute(begun, "fast", torch.device("cpu")) == begun
    assert not Path("a.zarr").exists()
    assert not probe.has_int8()
