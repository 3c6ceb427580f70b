"""Layers, networks and losses of the heads on grids."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from torch import nn

from samtl.heads import conv, vit
from samtl.heads.training.layers import Block, ChannelNorm, Dropout, Stem, cross_entropy_dice
from samtl.heads.training.trainer import isolated
from samtl.images.transforms import IGNORE

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
    low = stem(x.bfloat16())
    assert low.dtype == torch.bfloat16
    low.float().sum().backward()
    assert stem.weight.grad.dtype == torch.float32
    assert {name for name, _ in stem.named_parameters()} == {"weight", "bias"}


def test_channels_are_normed_at_each_place():
    x = (5 * torch.randn(2, 16, 3, 4) + 2).to(memory_format=torch.channels_last)
    normed = ChannelNorm(16)(x)
    assert normed.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(normed.mean(1), torch.zeros(2, 3, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(normed.var(1, correction=0), torch.ones(2, 3, 4), atol=1e-3, rtol=0)


def test_a_block_is_torch_s_transformer_layer():
    ours = Block(32, 4)
    options = {"activation": "gelu", "batch_first": True, "norm_first": True}
    theirs = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, **options)
    for norm in (ours.norm1, ours.norm2):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    names = {"norm1": "norm1", "norm2": "norm2", "proj": "self_attn.out_proj"}
    names |= {"mlp.0": "linear1", "mlp.2": "linear2"}
    state = {"self_attn.in_proj_weight": ours.qkv.weight, "self_attn.in_proj_bias": ours.qkv.bias}
    for one, other in names.items():
        for kind in ("weight", "bias"):
            state[f"{other}.{kind}"] = ours.get_parameter(f"{one}.{kind}")
    theirs.load_state_dict(state)
    x = torch.randn(3, 10, 32)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_zeroes_a_share_and_keeps_the_mean(p, dtype):
    x, drop, state = torch.ones(400, 500, dtype=dtype), Dropout(p), torch.get_rng_state()
    for idle in (Dropout(0.0), Dropout(0.001), Dropout(p).eval()):
        assert idle(x) is x
    assert torch.equal(torch.get_rng_state(), state)  # it draws only if it must
    out = drop(x)
    assert not torch.equal(drop(x), out)
    torch.set_rng_state(state)
    assert torch.equal(drop(x), out)
    dropped = (out == 0).float()
    assert out.dtype == dtype
    assert dropped.mean().item() == pytest.approx(round(256 * p) / 256, abs=0.005)
    assert out.float().mean().item() == pytest.approx(1, rel=0.03)
    assert len(out.unique()) == 2
    # Neither rows nor columns are dropped together.
    for axis, n in enumerate(out.shape):
        spread = dropped.mean(axis).std().item()
        assert spread == pytest.approx((p * (1 - p) / n) ** 0.5, rel=0.2)


def network(made, task, k=3, channels=10, side=8, **params):
    head = made(**{"width": 64, **params})
    head.adopt(task, list(range(k)), (channels, side, side))
    with isolated(0):
        return head.network().eval()


@pytest.mark.parametrize("side", [4, 16])
@pytest.mark.parametrize("task", ["classification", "segmentation"])
@pytest.mark.parametrize(
    ("made", "params"),
    [(conv.Head, {"width": 16}), (vit.Head, {}), (vit.Head, {"width": 128, "depth": 2})],
)
def test_a_score_for_each_class_or_pixel_from_every_weight(made, params, task, side):
    net = network(made, task, side=side, **params)
    out = net(torch.randn(2, 10, side, side))
    assert out.shape == (2, 3, *(() if task == "classification" else (4 * side, 4 * side)))
    (out**2).sum().backward()
    assert [name for name, p in net.named_parameters() if not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize(("made", "most"), [(conv.Head, 400_000), (vit.Head, 1_000_000)])
def test_defaults_are_small(made, most):
    """Light heads: a fraction of the encoder's 90 million weights."""
    for task, side in (("classification", 16), ("segmentation", 64)):
        net = network(made, task, 10, 256, side, width=made().width)
        assert sum(p.numel() for p in net.parameters()) < most


def test_conv_sees_the_tokens_beside_a_pixel_s_own_and_vit_the_whole_image():
    x = torch.randn(1, 10, 8, 8)
    moved = x.clone()
    moved[:, :, 4, 4] += 5
    nets = [network(head, "segmentation") for head in (conv.Head, vit.Head)]
    near, far = ((net(moved) - net(x)).detach().abs().amax(1)[0] for net in nets)
    beside = torch.zeros(32, 32, dtype=torch.bool)
    beside[12:24, 12:24] = True
    assert torch.equal(near > 0, beside)
    assert (far > 0).all()
    assert far[16:20, 16:20].mean() > 5 * far[:8].mean()  # its own place best


def test_vit_knows_positions():
    net, x = network(vit.Head, "classification"), torch.randn(2, 10, 8, 8)
    moved = torch.roll(x, 2, dims=3)  # by a whole token
    assert not torch.allclose(net(x), net(moved), atol=1e-4)
    with torch.no_grad():
        next(p for name, p in net.named_parameters() if "positions" in name).zero_()
    torch.testing.assert_close(net(x), net(moved), atol=1e-5, rtol=1e-5)


@settings(max_examples=30)
@given(st.integers(2, 5), st.integers(1, 3), st.sampled_from([0.0, 0.3, 1.0]), st.integers(0, 1000))
def test_the_loss_of_masks_is_what_it_is_by_hand(k, n, ignored, seed):
    random = np.random.default_rng(seed)
    logits = random.normal(0, 3, (n, k, 3, 4))
    targets = random.integers(0, k, (n, 3, 4))
    targets[random.random(targets.shape) < ignored] = IGNORE
    known = targets != IGNORE
    truth = np.eye(k)[targets[known]]  # (pixels, classes)
    chances = softmax(np.moveaxis(logits, 1, -1)[known], axis=1)
    entropy = -(truth * np.log(chances)).sum() / max(len(truth), 1)
    dice = (2 * (chances * truth).sum(0) + 1) / ((chances + truth).sum(0) + 1)
    loss = cross_entropy_dice(torch.from_numpy(logits), torch.from_numpy(targets)).item()
    assert loss == pytest.approx(entropy + 1 - dice[1:].mean(), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("ignored", [2, 8])
def test_ignored_pixels_have_no_gradient_and_extreme_scores_a_finite_one(ignored):
    targets = torch.zeros(2, 8, 8, dtype=torch.int64)
    targets[0, 2:5, 2:6] = 1
    targets[:, :, 8 - ignored :] = IGNORE
    logits = torch.randn(2, 3, 8, 8).requires_grad_()
    loss = cross_entropy_dice(logits, targets)
    loss.backward()
    assert (logits.grad[..., 8 - ignored :] == 0).all()
    assert (logits.grad[..., : 8 - ignored] != 0).all()
    assert (loss.item() == 0) is (ignored == 8)
    extreme = torch.tensor([1e30, -1e30, 0]).view(1, 3, 1, 1).repeat(2, 1, 8, 8).requires_grad_()
    loss = cross_entropy_dice(extreme, targets)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(extreme.grad).all()
