"""A UNet (Ronneberger et al. 2015) with batch norm and padding, trained from scratch."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from samtl.baselines.networks import NetworkBaseline, convolution
from samtl.heads.base import check_ranges

LEVELS = 5


@dataclass(eq=False, repr=False, kw_only=True)
class Baseline(NetworkBaseline):
    """The UNet of Ronneberger et al. 2015 (arXiv 1505.04597), half as wide as there.

    Five levels, each twice as wide as the last and at half its resolution. Unlike there, convolutions are padded, so
    that the mask has the image's size, and followed by batch norm. The loss is the sum of cross-entropy and Dice.

    Parameters
    ----------
    width : int
        Channels of the first level. With the default 32 (up to 512, 7.8 M weights) an epoch of 1,000 images takes
        about 2 minutes on 2 CPU cores with bfloat16; with 16 a third of that.
    image_size, epochs, batch_size, lr, weight_decay, patience, precision, class_weights, random_state
        See `NetworkBaseline`.
    """

    image_size: int = 256
    width: int = 32
    epochs: int = 60
    batch_size: int = 8
    lr: float = 1e-3
    patience: int = 10

    tasks = ("segmentation",)

    def _check(self) -> None:
        super()._check()
        check_ranges(self, width=1)

    def _layers(self, n_classes: int) -> nn.Module:
        return UNet(self.width, n_classes)


class UNet(nn.Module):
    """An encoder and a decoder with skip connections between their levels.

    Maps (batch, 3, height, width) to (batch, n_classes, height, width); both sides are multiples of 16.
    """

    def __init__(self, width: int, n_classes: int) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(LEVELS)]
        self.down = nn.ModuleList(_twice(a, b) for a, b in itertools.pairwise([3, *widths]))
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(low, high, 2, stride=2) for high, low in itertools.pairwise(widths)
        )
        self.merge = nn.ModuleList(_twice(2 * high, high) for high in widths[:-1])
        self.score = nn.Conv2d(width, n_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Score every pixel."""
        passed: list[Tensor] = []
        for level, stage in enumerate(self.down):
            x = stage(nn.functional.max_pool2d(x, 2) if level else x)
            passed.append(x)
        for level in reversed(range(LEVELS - 1)):
            x = self.merge[level](torch.cat([passed[level], self.up[level](x)], dim=1))
        scores: Tensor = self.score(x)
        return scores


def _twice(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(convolution(channels, width), convolution(width, width))
