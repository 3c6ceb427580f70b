"""Attention by bands is `segment_anything`'s, in one window or in many, on every way that it may take."""

import copy

import pytest
import torch

from samtl.encoders import attention as _attention
from samtl.encoders.attention import Attention
from samtl.encoders.modeling import modeling

WAYS = ["_added", "_folded", "fused"]


def made(side, heads=3, width=48):
    """One of theirs, none of its parameters zero."""
    torch.manual_seed(side)
    module = modeling().image_encoder.Attention(
        width, num_heads=heads, use_rel_pos=True, input_size=(side, side)
    )
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.3)
    return module.eval().requires_grad_(False)


def attend(module, window, x):
    """Take a copy, since layers are taken apart."""
    return Attention(copy.deepcopy(module), window, x.shape[1]).plus(x, torch.zeros_like(x))


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    monkeypatch.setattr(_attention, "_way", lambda *of: getattr(_attention, request.param))


@pytest.mark.parametrize("band", [10, 64, 1000])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("side", [1, 8, 14])
@torch.inference_mode()
def test_global_attention(way, side, batch, band, monkeypatch):
    monkeypatch.setattr(_attention, "BAND", band)
    monkeypatch.setattr(_attention, "CPU_BAND", band)
    module = made(side)
    x = torch.randn(batch, side, side, 48)
    torch.testing.assert_close(attend(module, side, x), module(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(4, 4), (8, 8), (9, 9), (3, 3), (9, 6), (2, 7)])
@torch.inference_mode()
def test_windows(way, size):
    """As `Block.forward` does it: zeros to whole windows, which tokens at the edge then see."""
    module, tools = made(4), modeling().image_encoder
    x = torch.randn(2, *size, 48)
    windows, padded = tools.window_partition(x, 4)
    expected = tools.window_unpartition(module(windows), 4, padded, size)
    torch.testing.assert_close(attend(module, 4, x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_half_precision_errs_as_much_as_theirs(way, dtype):
    module = made(14)
    x = torch.randn(2, 14, 14, 48)
    exact = module(x)
    module.to(dtype)
    theirs, ours = module(x.to(dtype)), attend(module, 14, x.to(dtype))
    error, own = ((out.float() - exact).norm() for out in (ours, theirs))
    assert ours.dtype == dtype
    assert error < 1.2 * own


@torch.inference_mode()
def test_a_scale_that_is_no_power_of_two(way):
    module = made(
        6, heads=3, width=60
    )  # 20 channels a head, as ViT-H's 80 are no power of four either
    x = torch.randn(1, 6, 6, 60)
    torch.testing.assert_close(attend(module, 6, x), module(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("of", "expected"),
    [
        (("cpu", 4096, 192), "_added"),
        (("cpu", 196, 92), "_folded"),
        (("cuda", 4096, 192), "fused"),
        (("cuda", 4096, 208), "fused"),  # ViT-H
        (("cuda", 16384, 320), "_folded"),  # 2048 pixels: too wide for a fused kernel
        (("mps", 196, 92), "_folded"),
    ],
)
def test_the_way_that_is_fast_there(of, expected):
    assert _attention._way(*of) is getattr(_attention, expected)


@torch.inference_mode()
def test_something_is_added():
    module, x, other = made(6), torch.randn(1, 6, 6, 48), torch.randn(1, 6, 6, 48)
    ours = Attention(copy.deepcopy(module), 6, 6).plus(x, other)
    torch.testing.assert_close(ours, module(x) + other, rtol=1e-4, atol=1e-5)
