"""A small convolutional network, trained from scratch."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from samtl.baselines.networks import NetworkBaseline, convolution
from samtl.heads.base import check_ranges
from samtl.heads.training.layers import Dropout


@dataclass(eq=False, repr=False, kw_only=True)
class Baseline(NetworkBaseline):
    """Four stages of 3 x 3 convolutions, 32, 64, 128 and 256 wide, each at half the resolution of the last.

    Seven convolutions with batch norm and ReLU, the first with stride 2, maximum pooling between stages, global average
    pooling, dropout, a linear layer: 0.6 M weights, and 43 M multiplications for an image of 64 x 64 pixels. A first
    layer at full resolution would take a CPU longer than all others together.

    Parameters
    ----------
    dropout : float
        In [0, 1), before the linear layer.
    image_size, epochs, batch_size, lr, weight_decay, patience, precision, class_weights, random_state
        See `NetworkBaseline`.
    """

    image_size: int = 64
    dropout: float = 0.3
    epochs: int = 25
    batch_size: int = 128
    lr: float = 2e-3

    tasks = ("classification",)

    def _check(self) -> None:
        super()._check()
        check_ranges(self, dropout="share")

    def _layers(self, n_classes: int) -> nn.Module:
        return nn.Sequential(
            convolution(3, 32, stride=2),
            convolution(32, 32),
            nn.MaxPool2d(2),
            convolution(32, 64),
            convolution(64, 64),
            nn.MaxPool2d(2),
            convolution(64, 128),
            convolution(128, 128),
            nn.MaxPool2d(2),
            convolution(128, 256),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            Dropout(self.dropout),
            nn.Linear(256, n_classes),
        )
