"""What the baselines that are trained from scratch share: training on pixels, predicting."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from samtl._runtime import parts
from samtl.baselines.base import REDUCTION, PixelBaseline, Predictions
from samtl.baselines.pixels import Pixels, Rows, squares
from samtl.datasets import Dataset
from samtl.heads.base import OnEvent, check_ranges
from samtl.heads.grid import largest
from samtl.heads.training.network import Network
from samtl.images.transforms import PIXEL_MEAN, PIXEL_STD, resized_shape


@dataclass(eq=False, repr=False, kw_only=True)
class NetworkBaseline(PixelBaseline, Network):
    """A convolutional network, trained from scratch.

    Parameters
    ----------
    image_size : int
        Longest side that images are resized to, a multiple of 32.
    epochs, batch_size, lr, weight_decay, patience, precision, class_weights, random_state
        See `samtl.heads.training.network.Network`.
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
        trainer = self._begin(
            len(training), seed, on_event, np.array(dataset.labels, dtype=np.int64)[train]
        )
        self.finish(trainer.run(training, validation))

    def _predict(self, dataset: Dataset, rows: Rows, image_size: int) -> Iterator[Predictions]:
        for inputs, shapes in squares(dataset, rows, self.image_size):
            # In float32, whatever training computed in
            logits = torch.cat(parts.each(self._scores, parts.split(inputs)))
            if self.task_ == "classification":
                yield {self.name: logits.double().softmax(1).numpy()}
                continue
            for scores, (height, width) in zip(logits, shapes, strict=True):
                yield {self.name: class_map(scores, height, width, image_size)}

    @torch.inference_mode()
    def _scores(self, inputs: Tensor) -> Tensor:
        scores: Tensor = self._network(inputs)
        return scores

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


class BatchNorm(nn.BatchNorm2d):
    """Batch norm over a whole batch whose parts are computed in several threads; see `samtl._runtime.parts`."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (batch, channels, height, width)."""
        if not self.training or parts.position() is None:
            return super().forward(x)
        out: Tensor
        out, mean, variance, n = _Normalise.apply(x, self.weight, self.bias, self.eps)  # type: ignore[no-untyped-call]
        if parts.position() == 0:
            moved: Any = self
            moved.running_mean.lerp_(mean, self.momentum)
            moved.running_var.lerp_(variance * (n / (n - 1)), self.momentum)
        return out


class _Normalise(torch.autograd.Function):
    """Batch norm with the moments of all parts, which are added in their order."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Any, ...]:
        blank = torch.zeros_like(weight), torch.ones_like(weight)
        mean, variance = torch.ops.aten.batch_norm_update_stats(x, *blank, 0.0)
        each = parts.exchange((x.numel() // len(mean), mean, variance))
        ctx.n = n = sum(count for count, _, _ in each)
        mean = sum(count / n * mean for count, mean, _ in each)
        variance = sum(count / n * (v + (m - mean) ** 2) for count, m, v in each)
        ctx.eps = eps
        ctx.save_for_backward(x, weight, mean, variance)
        out = nn.functional.batch_norm(x, mean, variance, weight, bias, eps=eps)
        ctx.mark_non_differentiable(mean, variance)
        return out, mean, variance, n

    @staticmethod
    def backward(ctx: Any, slope: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x, weight, mean, variance = ctx.saved_tensors
        # With constant moments first; these are the slopes of weight and bias from this part.
        fixed = (mean, variance, None, None, False, ctx.eps, [True, True, True])
        dx, *own = torch.ops.aten.native_batch_norm_backward(slope, x, weight, *fixed)
        dweight, dbias = (sum(values) / ctx.n for values in zip(*parts.exchange(own), strict=True))
        factor = 1 / (variance + ctx.eps).sqrt()
        tilt = weight * factor**2 * dweight
        level = weight * factor * dbias - tilt * mean
        shape = (-1, 1, 1)
        dx = dx - (x * tilt.view(shape) + level.view(shape)).to(dx.dtype)
        return dx, *own, None


def convolution(channels: int, width: int, stride: int = 1) -> nn.Sequential:
    """Build a 3 x 3 convolution, batch norm and ReLU; a stride of 2 halves the size."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, stride, padding=1, bias=False),
        BatchNorm(width),
        nn.ReLU(inplace=True),
    )


def class_map(scores: Tensor, height: int, width: int, image_size: int) -> NDArray[np.uint8]:
    """Classes at the resolution that masks are scored at, (h, w) uint8 with (h, w) from `resized_shape`.

    Scores of a padded square, (K, side, side) float32, are interpolated before the highest is taken; `height` and
    `width` are the image's original size, `image_size` is the longest side of the map.
    """
    h, w = resized_shape(height, width, image_size)
    return largest(scores, (image_size, image_size))[:h, :w]
