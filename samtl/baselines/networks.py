"""What the baselines that are trained from scratch share: training on pixels, predicting."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from samtl.baselines.base import REDUCTION, PixelBaseline, Predictions
from samtl.baselines.pixels import Pixels, Rows, squares
from samtl.datasets import Dataset
from samtl.heads.base import OnEvent, check_ranges
from samtl.heads.grid import largest
from samtl.heads.network import Network
from samtl.images.transforms import PIXEL_MEAN, PIXEL_STD, resized_shape


class NetworkBaseline(PixelBaseline, Network):
    """A convolutional network, trained from scratch.

    Parameters
    ----------
    image_size : int
        Longest side that images are resized to, a multiple of 32.
    epochs, batch_size, lr, weight_decay, patience, random_state
        See `samtl.heads.network.Network`.
    """

    facts = ("task_", *Network.facts)

    image_size: int

    @abstractmethod
    def _layers(self, n_classes: int) -> nn.Module:
        """Build a network from normalised images (batch, 3, size, size) to scores (batch, K[, size, size])."""

    def _check(self) -> None:
        super()._check()
        check_ranges(self, image_size=REDUCTION)

    def _fit(self, dataset: Dataset, train: Rows, held: Rows, seed: int, on_event: OnEvent) -> None:
        training = Pixels(dataset, train, self.image_size, augment=True)
        validation = Pixels(dataset, held if len(held) else train, self.image_size)
        trainer = self._begin(len(training), seed, on_event)
        self.finish(trainer.run(training, validation))

    def _predict(self, dataset: Dataset, rows: Rows, image_size: int) -> Iterator[Predictions]:
        for inputs, shapes in squares(dataset, rows, self.image_size):
            with torch.inference_mode():  # in float32, whatever training computed in
                logits = self._network(inputs)
            if self.task_ == "classification":
                yield {self.name: logits.double().softmax(1).numpy()}
                continue
            for scores, (height, width) in zip(logits, shapes, strict=True):
                yield {self.name: class_map(scores, height, width, image_size)}

    def network(self) -> nn.Module:
        return Normalised(self._layers(len(self.classes_)))


class Normalised(nn.Module):
    """A network on uint8 pixels, (batch, 3, height, width), which it normalises to ImageNet's mean and deviation."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for name, values in (("mean", PIXEL_MEAN), ("std", PIXEL_STD)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalise in float32, and compute."""
        return self.network((pixels.float() - self.mean) / self.std)  # type: ignore[no-any-return]


def convolution(channels: int, width: int, stride: int = 1) -> nn.Sequential:
    """Build a 3 x 3 convolution, batch norm and ReLU; a stride of 2 halves the size."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    )


def class_map(scores: Tensor, height: int, width: int, image_size: int) -> NDArray[np.uint8]:
    """Classes at the resolution that masks are scored at, (h, w) uint8 with (h, w) from `resized_shape`.

    Scores of a padded square, (K, side, side) float32, are interpolated before the highest is taken; `height` and
    `width` are the image's original size, `image_size` is the longest side of the map.
    """
    h, w = resized_shape(height, width, image_size)
    return largest(scores, (image_size, image_size))[:h, :w]
