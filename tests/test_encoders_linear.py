"""Packed layers compute what plain ones do, and where there are none, plain ones are used."""

import platform

import pytest
import torch
from torch.nn.functional import gelu

from samtl.encoders import linear as _linear
from samtl.encoders.linear import Linear, packs

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(params=["packed", "plain"])
def way(request, monkeypatch):
    if request.param == "plain":
        monkeypatch.setattr(_linear, "packs", lambda dtype: False)
    return request.param


def made(dtype, shape=(2, 5, 7, 24)):
    torch.manual_seed(0)
    module = torch.nn.Linear(24, 40).to(dtype).requires_grad_(False)
    return module, torch.randn(shape).to(dtype), torch.randn(*shape[:-1], 40).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@torch.inference_mode()
def test_each_way_is_the_plain_layer(way, dtype):
    module, x, other = made(dtype)
    exact = torch.nn.functional.linear(x.float(), module.weight.float(), module.bias.float())
    layer = Linear(module, 70)
    assert (layer._packed is not None) is (way == "packed" and packs(dtype))
    close = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.01, "atol": 0.02}
    for ours, expected in (
        (layer(x), exact),
        (layer.gelu(x), gelu(exact)),
        (layer.plus(x, other), exact + other.float()),
    ):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.float(), expected, **close)


@torch.inference_mode()
def test_another_number_of_rows_than_was_said(way):
    module, x, _ = made(torch.float32, (3, 24))
    expected = module(x)
    torch.testing.assert_close(Linear(module, 4096)(x), expected, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_weights_are_held_once(way):
    module, _, _ = made(torch.float32)
    layer = Linear(module, 70)
    assert (module.weight.numel() == 0) is (layer._packed is not None)


def test_this_torch_has_the_operators_in_float32():
    """On x86-64 it always did; if this fails, packing has silently become dead code."""
    if platform.machine() != "x86_64" or not torch.backends.mkldnn.is_available():
        pytest.skip("oneDNN is for x86-64 here")
    assert packs(torch.float32)


@torch.inference_mode()
def test_what_is_added_stays_as_it_was(way):
    module, x, other = made(torch.float32)
    before = other.clone()
    Linear(module, 70).plus(x, other)
    assert torch.equal(other, before)


def test_a_torch_without_the_operators(monkeypatch):
    def missing(*arguments):
        raise AttributeError("no such operator")

    monkeypatch.setattr(_linear, "_packed", missing)
    packs.cache_clear()
    try:
        assert not packs(torch.float32)
        module, x, _ = made(torch.float32)
        assert torch.equal(Linear(module, 70)(x), module(x))  # nothing was taken from it
    finally:
        packs.cache_clear()


def test_operators_that_compute_something_else_are_not_used(monkeypatch):
    packed = _linear._packed
    monkeypatch.setattr(_linear, "_packed", lambda *arguments: packed(*arguments) + 1)
    packs.cache_clear()
    try:
        assert not packs(torch.float32)
    finally:
        packs.cache_clear()
