"""Layers are what they are called: a stem standardises and mixes, a block is a pre-norm transformer block."""

import pytest
import torch
from torch import nn

from samtl.heads.layers import (
    Block,
    ChannelNorm,
    Dropout,
    Stem,
    upsampler,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize("patch", [1, 2])
def test_a_stem_is_standardising_and_then_a_product(patch):
    stem = Stem(6, 5, patch)
    x = torch.randn(3, 6, 8, 8) * torch.arange(1, 7)[:, None, None] + 3
    stem.mean.copy_(x.mean((0, 2, 3)))
    stem.factor.copy_(1 / x.std((0, 2, 3)))
    standard = (x - stem.mean[:, None, None]) * stem.factor[:, None, None]
    expected = nn.functional.conv2d(standard, stem.weight, stem.bias, stride=patch)
    torch.testing.assert_close(stem(x), expected, atol=1e-5, rtol=1e-5)
    assert stem(x).shape == (3, 5, 8 // patch, 8 // patch)


def test_a_stem_takes_the_dtype_that_comes_and_learns_in_float32():
    stem = Stem(6, 5)
    out = stem(torch.randn(2, 6, 4, 4, dtype=torch.bfloat16))
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert stem.weight.grad.dtype == torch.float32
    assert {name for name, _ in stem.named_parameters()} == {"weight", "bias"}
    assert {name for name, _ in stem.named_buffers()} == {"mean", "factor"}


def test_a_factor_of_zero_silences_a_channel():
    stem = Stem(3, 4)
    stem.factor[1] = 0
    x = torch.randn(2, 3, 4, 4)
    moved = x.clone()
    moved[:, 1] = 1e6
    torch.testing.assert_close(stem(moved), stem(x))


def test_channels_are_normed_at_each_place():
    x = 5 * torch.randn(2, 16, 3, 4) + 2
    normed = ChannelNorm(16)(x)
    assert normed.shape == x.shape
    torch.testing.assert_close(normed.mean(1), torch.zeros(2, 3, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(normed.var(1, correction=0), torch.ones(2, 3, 4), atol=1e-3, rtol=0)


def test_memory_stays_channels_last():
    x = torch.randn(2, 16, 4, 4).to(memory_format=torch.channels_last)
    assert ChannelNorm(16)(x).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("width", "classes"), [(4, 2), (16, 5)])
def test_four_times_the_resolution(width, classes):
    assert upsampler(width, classes)(torch.randn(2, width, 4, 4)).shape == (2, classes, 16, 16)


def test_a_token_decides_on_its_own_pixels_alone():
    up = upsampler(8, 3)
    x = torch.randn(1, 8, 4, 4)
    moved = x.clone()
    moved[:, :, 1, 2] += 1
    changed = (up(moved) != up(x)).any(1)[0]
    expected = torch.zeros(16, 16, dtype=torch.bool)
    expected[4:8, 8:12] = True
    assert torch.equal(changed, expected)


def test_a_block_is_torch_s_transformer_layer():
    ours = Block(32, 4)
    theirs = nn.TransformerEncoderLayer(
        32, 4, 64, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    for norm in (ours.norm1, ours.norm2):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    renamed = {
        "norm1": "norm1",
        "norm2": "norm2",
        "proj": "self_attn.out_proj",
        "mlp.0": "linear1",
        "mlp.2": "linear2",
    }
    state = {"self_attn.in_proj_weight": ours.qkv.weight, "self_attn.in_proj_bias": ours.qkv.bias}
    for one, other in renamed.items():
        for kind in ("weight", "bias"):
            state[f"{other}.{kind}"] = ours.get_parameter(f"{one}.{kind}")
    theirs.load_state_dict(state)
    x = torch.randn(3, 10, 32)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_zeroes_a_share_and_keeps_the_mean(p, dtype):
    x = torch.ones(400, 500, dtype=dtype)
    out = Dropout(p)(x)
    zeros = (out == 0).float().mean().item()
    assert out.dtype == dtype
    assert zeros == pytest.approx(round(256 * p) / 256, abs=0.005)
    assert out.float().mean().item() == pytest.approx(1, rel=0.03)
    assert len(out.unique()) == 2
    # Neither rows nor columns go together.
    dropped = (out == 0).float()
    assert dropped.mean(0).std().item() == pytest.approx((p * (1 - p) / 400) ** 0.5, rel=0.2)
    assert dropped.mean(1).std().item() == pytest.approx((p * (1 - p) / 500) ** 0.5, rel=0.2)


@pytest.mark.parametrize("p", [0.0, 0.001])
def test_dropout_of_nothing_is_none_and_draws_nothing(p):
    x = torch.randn(5, 7)
    state = torch.get_rng_state()
    assert Dropout(p)(x) is x
    assert torch.equal(torch.get_rng_state(), state)


def test_there_is_no_dropout_when_judging():
    x = torch.randn(5, 7)
    assert Dropout(0.5).eval()(x) is x


def test_dropout_is_never_of_everything():
    assert (Dropout(0.9999)(torch.ones(100_000)) > 0).any()


@pytest.mark.parametrize("shape", [(1,), (7,), (3, 5), (2, 3, 4, 5)])
def test_the_slope_is_masked_where_the_value_is(shape):
    x = torch.randn(shape).add(5).requires_grad_()
    out = Dropout(0.5)(x)
    out.backward(torch.ones(shape))
    assert out.shape == shape
    torch.testing.assert_close(x.grad, torch.where(out == 0, 0.0, 2.0))
    torch.testing.assert_close(out, x * x.grad)


def test_dropout_draws_from_torch_s_generator():
    x, drop = torch.ones(1000), Dropout(0.5)
    state = torch.get_rng_state()
    one, other = drop(x), drop(x)
    assert not torch.equal(one, other)
    torch.set_rng_state(state)
    assert torch.equal(drop(x), one)
    assert torch.equal(drop(x), other)
