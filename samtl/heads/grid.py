"""The base of heads on grids of features: standardising, training, predicting.

A head is a file `samtl/heads/NAME.py` with a class `Head` that builds the networks, one for each task.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import interpolate

from samtl._runtime import parts
from samtl.errors import InputError
from samtl.heads.base import LINKS, Floats, OnEvent, check_ranges, numbered
from samtl.heads.training.layers import Stem
from samtl.heads.training.network import Network
from samtl.heads.training.trainer import Source, Trainer

STATISTICS_ROWS = 1024  # rows of the training part that channel means are taken over
UPSAMPLING = 4  # resolution of a predicted mask, in multiples of the embedding's


@dataclass(eq=False, repr=False, kw_only=True)
class GridHead(Network):
    """A network on grids of features, (channels, side, side) for each sample; `classes_` are 0 to K - 1.

    Channels are standardised by their mean and deviation over the training part. Parameters that are None have the
    task's `defaults`; see `samtl.heads.training.network.Network`.
    """

    #: The store's array that each task reads.
    tiers: ClassVar[dict[str, str]] = {
        "classification": "grid", "multilabel": "grid", "segmentation": "dense"
    }  # fmt: skip
    defaults: ClassVar[dict[str, dict[str, Any]]] = {
        "classification": {"epochs": 20, "batch_size": 128, "lr": 2e-3},
        "multilabel": {"epochs": 20, "batch_size": 128, "lr": 2e-3},
        "segmentation": {"epochs": 60, "batch_size": 4, "lr": 2e-3},
    }

    width: int
    dropout: float = 0.2

    @abstractmethod
    def _classifier(self, channels: int, side: int, n_classes: int) -> nn.Module:
        """Build a network from (batch, channels, side, side) to scores (batch, n_classes)."""

    @abstractmethod
    def _segmenter(self, channels: int, side: int, n_classes: int) -> nn.Module:
        """Build a network from (batch, channels, side, side) to scores (batch, n_classes, 4 side, 4 side)."""

    def _check(self) -> None:
        super()._check()
        check_ranges(self, width=4, dropout="share")

    def adopt(self, task: str, classes: Sequence[Any], shape: Sequence[int]) -> None:
        if task not in self.tiers:
            raise InputError(
                f"a head is for {' or '.join(self.tiers)}, and there is no task {task!r}"
            )
        if len(shape) != 3 or shape[1] != shape[2] or shape[1] % 2 or min(shape) < 1:
            raise InputError(
                f"a grid of features is (channels, side, side), the side even, got {tuple(shape)}"
            )
        self.task_, self.classes_ = task, numbered(classes, task)
        self.shape_, self.columns_, self.curves_ = tuple(int(n) for n in shape), (), {}

    def fit(
        self,
        training: Source,
        validation: Source,
        statistics: Tensor,
        *,
        task: str,
        n_classes: int,
        shape: Sequence[int],
        codes: NDArray[Any] | None = None,
        on_event: OnEvent | None = None,
    ) -> Self:
        """Train, with early stopping on the validation part.

        Raises ValueError if a parameter is out of its range, InputError if shapes do not fit or the loss is never
        finite.

        Parameters
        ----------
        training, validation : Source
            Batches of inputs, (batch, channels, side, side) float16 or float32, and targets, int64: class indices
            (batch,), 0 or 1 for each class (batch, K), or masks (batch, 4 side, 4 side) in which 255 is ignored.
        statistics : (2, channels) Tensor of float64
            Mean of the `moments` of training samples.
        task : {"classification", "multilabel", "segmentation"}
        n_classes : int
        shape : (channels, side, side)
        codes : (n,) int, optional
            The classes of the training samples, which class weights need.
        on_event : callable, optional
            Called with each `Epoch`.
        """
        self.adopt(task, range(n_classes), shape)
        trainer = self.begin(len(training), statistics, on_event, codes)
        return self.finish(trainer.run(training, validation))

    def begin(
        self,
        n: int,
        statistics: Tensor,
        on_event: OnEvent | None = None,
        codes: NDArray[Any] | None = None,
    ) -> Trainer:
        """Build the network and its trainer for n training samples, after `adopt`.

        The other parameters are those of `fit`; call `finish` once the trainer is finished.
        """
        self._check()
        trainer = self._begin(n, int(self.random_state or 0), on_event, codes)
        mean, square = statistics
        deviation = (square - mean**2).clamp(min=0).sqrt()
        constant = deviation <= mean.abs() * 5e-4  # their factor is 0
        factor = torch.where(constant, 0.0, 1 / deviation.clamp(min=1e-12))
        for module in self._network.modules():
            if isinstance(module, Stem):
                module.mean.copy_(mean)
                module.factor.copy_(factor)
        return trainer

    def logits(self, rows: NDArray[Any]) -> NDArray[np.float32]:
        """Compute scores, in float32 whatever training computed in, so that machines agree.

        From (n, channels, side, side) to (n, K) or (n, K, 4 side, 4 side). Scores of a row do not depend on the others.
        Raises InputError if the shape is not that of the training part.
        """
        return torch.cat(parts.each(self._scores, torch.split(torch.from_numpy(rows), 1))).numpy()

    @torch.inference_mode()
    def _scores(self, row: Tensor) -> Tensor:
        scores: Tensor = self._network(row.float())
        return scores

    def predict_proba(self, rows: NDArray[Any]) -> Floats:
        """Compute the probability of each class, (n, ...) to (n, K, ...) float64.

        They sum to 1 along axis 1, unless several classes may apply.
        """
        return np.asarray(LINKS[self.task_](self.logits(rows).astype(np.float64)))

    outputs = predict_proba

    def class_maps(
        self,
        rows: NDArray[Any],
        shapes: Sequence[tuple[int, int]],
        image_size: int,
        sizes: Sequence[tuple[int, int]] | None = None,
    ) -> list[NDArray[np.uint8]]:
        """Predict masks of class indices, (height, width), at the encoder's resolution, or at the images' own.

        Scores are upsampled bilinearly to the encoder's square, cropped to the image, and resized bilinearly to the
        image's own size if that is given, before the class with the largest is taken.

        Parameters
        ----------
        rows : (n, channels, side, side)
        shapes : sequence of (height, width)
            Of each image after its longest side was resized to `image_size`.
        image_size : int
            Side of the encoder's square in pixels.
        sizes : sequence of (height, width), optional
            Of each image before that, and of the masks.
        """

        def class_map(row: Tensor, i: int) -> NDArray[np.uint8]:
            height, width = shapes[i]
            square = interpolate(self._scores(row), (image_size, image_size), mode="bilinear")[0]
            return largest(square[:, :height, :width], sizes[i] if sizes else None)

        return parts.each(class_map, torch.split(torch.from_numpy(rows), 1), range(len(rows)))

    def network(self) -> nn.Module:
        channels, side, _ = self.shape_
        build = self._segmenter if self.task_ == "segmentation" else self._classifier
        return _Cast(build(channels, side, len(self.classes_)), self.shape_)


def moments(rows: Tensor) -> Tensor:
    """Compute mean and mean square of each channel, (n, channels, side, side) to (n, 2, channels) float64."""
    values = rows.double()
    return torch.stack([values.mean((2, 3)), (values**2).mean((2, 3))], dim=1)


def largest(scores: Tensor, size: tuple[int, int] | None) -> NDArray[np.uint8]:
    """Return the class with the largest score, (K, h, w) to (h, w) or to another size."""
    if size is None:
        return scores.argmax(0).to(torch.uint8).numpy()
    # Class by class, because the scores of all classes at the size of a large image would not fit in memory.
    best = torch.full(size, -torch.inf)
    classes = torch.zeros(size, dtype=torch.uint8)
    for index, one in enumerate(scores):
        resized = interpolate(one[None, None], size, mode="bilinear", antialias=True)[0, 0]
        classes[resized > best] = index
        best = torch.maximum(best, resized)
    return classes.numpy()


class _Cast(nn.Module):
    """Converts stored float16 to the dtype of products and to channels-last, and refuses samples of another shape."""

    def __init__(self, network: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        if tuple(x.shape[1:]) != self.shape:
            raise InputError(
                f"this head takes features of shape {self.shape}, one for each sample, got {tuple(x.shape[1:])}"
            )
        mixed = torch.is_autocast_enabled("cpu")
        dtype = torch.get_autocast_dtype("cpu") if mixed else torch.float32
        return self.network(x.to(dtype, memory_format=torch.channels_last))  # type: ignore[no-any-return]
