"""Layers and losses of networks; activations are channels-last in memory."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    conv2d,
    cross_entropy,
    mse_loss,
)

from samtl.errors import InputError
from samtl.images.transforms import IGNORE

_draws = threading.local()


@contextmanager
def drawing_from(generator: torch.Generator) -> Iterator[None]:
    """Let `Dropout` draw from a generator in this thread, within a `with` block."""
    _draws.generator = generator
    try:
        yield
    finally:
        _draws.generator = None


class Stem(nn.Module):
    """Standardises channels and mixes them: (batch, channels, side, side) to (batch, width, side / patch, ...).

    Both steps are linear, so they are one product with other weights, which saves a pass over the largest tensor.
    """

    mean: Tensor
    factor: Tensor

    def __init__(self, channels: int, width: int, patch: int = 1) -> None:
        super().__init__()
        self.patch = patch
        product: Any = nn.Conv2d(channels, width, patch, stride=patch)
        self.weight, self.bias = product.weight, product.bias
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("factor", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight * self.factor[:, None, None]
        bias = self.bias - (weight * self.mean[:, None, None]).sum((1, 2, 3))
        return conv2d(x, weight.to(x.dtype), bias.to(x.dtype), stride=self.patch)


class ChannelNorm(nn.Module):
    """Layer norm over the channels of each place, as in SAM's decoder; (batch, channels, height, width)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = self.norm(x.permute(0, 2, 3, 1))  # no copy if x is channels-last
        return normed.permute(0, 3, 1, 2)


class Dropout(nn.Module):
    """Dropout by random bytes: on a CPU, torch's takes as long as the products around it.

    `p`, in [0, 1), is rounded to a multiple of 1 / 256. With `channels`, it drops whole channels of (batch, channels,
    ...). The bytes come from the generator of `drawing_from`; torch's layers all draw from a single one, in an order
    that threads decide, so a network that is trained must not contain them.
    """

    def __init__(self, p: float, channels: bool = False) -> None:
        super().__init__()
        self.dropped, self.channels = min(round(256 * p), 255), channels

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.dropped:
            return x
        shape = (*x.shape[:2], *[1] * (x.ndim - 2)) if self.channels else x.shape
        words = torch.empty(-(-math.prod(shape) // 8), dtype=torch.int64)
        words.random_(-(2**63), None, generator=getattr(_draws, "generator", None))
        kept = words.view(torch.uint8)[: math.prod(shape)].view(shape) >= self.dropped
        return x * kept * (256 / (256 - self.dropped))


def upsampler(width: int, n_classes: int) -> nn.Sequential:
    """Build two transposed convolutions as in SAM's mask decoder, then a score for each class.

    It maps (batch, width, side, side) to (batch, n_classes, 4 side, 4 side).
    """
    return nn.Sequential(
        nn.ConvTranspose2d(width, width // 2, 2, stride=2),
        ChannelNorm(width // 2),
        nn.GELU(),
        nn.ConvTranspose2d(width // 2, width // 4, 2, stride=2),
        ChannelNorm(width // 4),
        nn.GELU(),
        nn.Conv2d(width // 4, n_classes, 1),
    )


class Block(nn.Module):
    """A pre-norm transformer block (Dosovitskiy et al. 2021) on (batch, tokens, width).

    The attention is written out, because on 64 tokens the backward pass of fused attention on a CPU takes longer than
    all products of the block. It has no dropout, which would draw (batch, heads, tokens, tokens) random numbers.
    The hidden layer is `ratio` times as wide as the tokens.
    """

    def __init__(self, width: int, heads: int, ratio: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, ratio * width), nn.GELU(), nn.Linear(ratio * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        split = self.qkv(self.norm1(x)).view(batch, tokens, 3, self.heads, -1)
        q, k, v = split.permute(2, 0, 3, 1, 4).flatten(1, 2)  # (batch * heads, tokens, size)
        weights = (q * q.shape[-1] ** -0.5 @ k.transpose(1, 2)).softmax(dim=-1)
        seen = (weights @ v).view(batch, self.heads, tokens, -1)
        x = x + self.proj(seen.transpose(1, 2).reshape(batch, tokens, width))
        added: Tensor = self.mlp(self.norm2(x))
        return x + added


def cross_entropy_dice(logits: Tensor, targets: Tensor) -> Tensor:
    """Compute the mean cross-entropy plus the soft Dice loss (Milletari et al. 2016, "V-Net", section 3).

    The Dice loss is 1 - Dice of the foreground classes, with sums over all valid pixels of the batch. It gives weight
    to classes that cover little, such as roads.

    Parameters
    ----------
    logits : Tensor of float32, (batch, K, height, width)
        Class 0 is the background.
    targets : Tensor of int64, (batch, height, width)
        Class indices; 255 is ignored in both terms.

    Raises
    ------
    InputError
        If the shapes differ.
    """
    expected = len(logits), *logits.shape[2:]
    if tuple(targets.shape) != expected:
        raise InputError(f"expected masks of shape {expected}, got {tuple(targets.shape)}")
    valid = targets != IGNORE
    known = torch.where(valid, targets, 0)
    log_chances = logits.log_softmax(dim=1)
    surprise = -log_chances.gather(1, known[:, None])[:, 0] * valid
    entropy = surprise.sum() / valid.sum().clamp(min=1)
    dice = logits.new_zeros(())
    foreground = range(1, logits.shape[1])
    for index in foreground:
        chance = log_chances[:, index].exp() * valid
        truth = (known == index) & valid
        # One pixel in both terms, so that Dice is 1 for a class that is neither there nor predicted.
        both = (chance * truth).sum() + 0.5
        dice = dice + 2 * both / (chance.sum() + truth.sum() + 1)
    return entropy + 1 - dice / len(foreground)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "classification": cross_entropy,
    "multilabel": lambda logits, targets: binary_cross_entropy_with_logits(logits, targets.float()),
    "regression": lambda logits, targets: mse_loss(logits[:, 0], targets),
    "segmentation": cross_entropy_dice,
}
