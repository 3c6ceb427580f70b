"""The fast forward pass and each of its parts compute what `segment_anything`'s plain modules compute."""

import copy
import dataclasses
import os
import platform

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import gelu

from samtl.encoders import sam
from samtl.encoders.fast import attention, linear
from samtl.encoders.fast.attention import Attention, merge, split
from samtl.encoders.fast.engines import forward_pass
from samtl.encoders.fast.linear import Linear, packs
from samtl.encoders.weights.checkpoints import load_weights

pytestmark = pytest.mark.usefixtures("one_thread")
MODULES = sam.modeling().image_encoder


def module_of(side, heads=3, width=48):
    """A plain attention module without a zero among its parameters."""
    torch.manual_seed(side)
    module = MODULES.Attention(width, num_heads=heads, use_rel_pos=True, input_size=(side, side))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.3)
    return module.eval().requires_grad_(False)


@pytest.fixture(params=["added", "_folded", "fused"])
def attend(request, monkeypatch):
    """Compute attention plus x in one of the ways, on a copy, because `Linear` takes layers apart."""
    monkeypatch.setattr(attention, "_way", lambda *of: getattr(attention, request.param))
    return lambda module, window, x: Attention(copy.deepcopy(module), window, x.shape[1]).plus(x, x)


@pytest.mark.parametrize("band", [10, 1000])
@pytest.mark.parametrize(("side", "batch"), [(1, 1), (8, 2), (14, 1)])
@torch.inference_mode()
def test_global_attention(attend, side, batch, band, monkeypatch):
    monkeypatch.setattr(attention, "BAND", band)
    monkeypatch.setattr(attention, "CPU_BAND", band)
    module, x = module_of(side), torch.randn(batch, side, side, 48)
    torch.testing.assert_close(attend(module, side, x), module(x) + x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_half_precision_is_as_exact_as_the_plain_module(attend, dtype):
    module, x = module_of(14), torch.randn(2, 14, 14, 48)
    exact, low = module(x) + x, x.to(dtype)
    module.to(dtype)
    plain, ours = module(low) + low, attend(module, 14, low)
    assert ours.dtype == dtype
    assert (ours.float() - exact).norm() < 1.2 * (plain.float() - exact).norm()


@torch.no_grad()
@settings(max_examples=60)
@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.integers(1, 5))
def test_windows_are_those_of_zero_padded_tokens(batch, height, width, window):
    torch.manual_seed(0)
    x, qkv = torch.randn(batch, height, width, 6), torch.nn.Linear(6, 18)
    windows, padded = MODULES.window_partition(x, window)
    expected = qkv(windows).reshape(len(windows), window**2, 3, 2, 3).permute(2, 0, 3, 1, 4)
    ours = split(qkv(x), qkv.bias, 2, window)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
    tokens = ours[0].transpose(1, 2).reshape(-1, window, window, 6)
    whole = MODULES.window_unpartition(tokens, window, padded, (height, width))
    assert torch.equal(merge(ours[0], batch, height, width, window), whole)


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [70, 4096])
@torch.inference_mode()
def test_linear_layers(packing, dtype, rows, monkeypatch):
    packed = packing and packs(dtype)
    monkeypatch.setattr(linear, "packs", lambda dtype: packed)
    torch.manual_seed(0)
    module = torch.nn.Linear(24, 40).to(dtype).requires_grad_(False)
    x, other = torch.randn(2, 5, 7, 24).to(dtype), torch.randn(2, 5, 7, 40).to(dtype)
    before = other.clone()
    exact = torch.nn.functional.linear(x.float(), module.weight.float(), module.bias.float())
    layer = Linear(module, rows)
    assert (module.weight.numel() == 0) is packed  # weights are held once
    close = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.01, "atol": 0.02}
    for ours, expected in (
        (layer(x), exact),
        (layer.gelu(x), gelu(exact)),
        (layer.plus(x, other), exact + other.float()),
    ):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.float(), expected, **close)
    assert torch.equal(other, before)


def test_this_torch_has_the_operators_in_float32():
    """If this fails, packing has silently become dead code."""
    if platform.machine() != "x86_64" or not torch.backends.mkldnn.is_available():
        pytest.skip("packing is for x86-64 with oneDNN")
    assert packs(torch.float32)


def test_operators_that_are_missing_or_wrong_are_not_used(monkeypatch):
    module, x, packed = torch.nn.Linear(24, 40), torch.randn(3, 24), linear._fused

    def missing(*arguments):
        raise AttributeError("no such operator")

    for broken in (missing, lambda *arguments: packed(*arguments) + 1):
        monkeypatch.setattr(linear, "_fused", broken)
        packs.cache_clear()
        assert torch.equal(Linear(module, 3)(x), module(x))
    packs.cache_clear()


def shallow(name, size):
    """An encoder with two blocks, with and without windows, and no parameter at zero."""
    variant = dataclasses.replace(sam.VARIANTS[name], depth=2, taps=(1,))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sam.VARIANTS, name, variant)
        plain = sam.build(name, size).eval().requires_grad_(False)
    load_weights(plain, "random:3", None, name)
    assert all(parameter.abs().max() > 0 for parameter in plain.parameters())
    return plain


def fast(model, x):
    with torch.inference_mode():
        return forward_pass("fast", copy.deepcopy(model), (1,))(x, lambda tokens: None)


@pytest.mark.parametrize(
    ("size", "batch"), [(64, 2), (256, 1), pytest.param(1024, 1, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("name", ["sam_vit_b", "sam_vit_l", "sam_vit_h", "tiny"])
@torch.inference_mode()
def test_every_size_of_sam_in_every_dtype(name, size, batch):
    """The same in float32; in 16 bits as near to it as `segment_anything` itself."""
    large = name in ("sam_vit_l", "sam_vit_h") or size > 256
    if size > 64 and name != "tiny" and large and not os.environ.get("SAMTL_TORTURE"):
        pytest.skip("make torture includes the larger ones at this size")
    plain = shallow(name, size)
    x = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(size))
    x[:, :, size - size // 3 :] = 0  # padding
    x[-1, :, :, size // 2 :] = 0
    exact = plain(x)

    def error(out):
        return float((out.double() - exact).norm() / exact.norm())

    assert error(fast(plain, x)) < 1e-5
    for dtype in [torch.bfloat16, torch.float16] if size < 1024 else [torch.bfloat16]:
        low = copy.deepcopy(plain).to(dtype)
        own = error(low(x.to(dtype)))
        assert own > 1e-4
        assert error(fast(low, x.to(dtype))) < 1.05 * own
