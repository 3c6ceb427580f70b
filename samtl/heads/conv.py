"""SAM-CONV: a convolutional classifier on grid, or transposed convolutions from the dense embedding to a mask."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from samtl.heads.grid import GridHead
from samtl.heads.training.layers import ChannelNorm, Dropout, Stem, upsampler


@dataclass(eq=False, repr=False, kw_only=True)
class Head(GridHead):
    """Convolutions on the embedding's grid.

    Classification: channels are mixed to `width`, then two 3 x 3 convolutions, the first with stride 2, then mean and
    maximum over the places. Segmentation: a 3 x 3 convolution at the embedding's resolution, then two transposed
    convolutions to four times that.

    Parameters
    ----------
    width : int
        Channels of the first layer; a multiple of 4.
    dropout : float
        In [0, 1); on the pooled features of a classifier, on whole channels of a segmenter.
    epochs, batch_size, lr, weight_decay, patience, precision, class_weights, random_state
        See `GridHead`.
    """

    width: int = 96

    def _classifier(self, channels: int, side: int, n_classes: int) -> nn.Module:
        return _Classifier(channels, self.width, self.dropout, n_classes)

    def _segmenter(self, channels: int, side: int, n_classes: int) -> nn.Module:
        return nn.Sequential(
            Stem(channels, self.width),
            ChannelNorm(self.width),
            nn.GELU(),
            Dropout(self.dropout, channels=True),
            nn.Conv2d(self.width, self.width, 3, padding=1),
            ChannelNorm(self.width),
            nn.GELU(),
            upsampler(self.width, n_classes),
        )


class _Classifier(nn.Module):
    def __init__(self, channels: int, width: int, dropout: float, n_classes: int) -> None:
        super().__init__()
        wide = width * 4 // 3
        self.features = nn.Sequential(
            Stem(channels, width),
            ChannelNorm(width),
            nn.ReLU(),
            nn.Conv2d(width, wide, 3, stride=2, padding=1),
            ChannelNorm(wide),
            nn.ReLU(),
            nn.Conv2d(wide, wide, 3, padding=1),
            ChannelNorm(wide),
            nn.ReLU(),
        )
        self.scores = nn.Sequential(Dropout(dropout), nn.Linear(2 * wide, n_classes))

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        pooled = torch.cat([x.mean((2, 3)), x.amax((2, 3))], dim=1)
        return self.scores(pooled)  # type: ignore[no-any-return]
