"""The base of heads on grids of features: standardising, training, predicting, saving.

A head is a file `samtl/heads/NAME.py` with a class `Head` that builds the networks, one for each task.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.base import BaseEstimator
from torch import Tensor, nn
from torch.nn.functional import interpolate

from samtl.errors import InputError
from samtl.heads.base import Floats, Layout, OnEvent, check_training
from samtl.heads.layers import Stem
from samtl.heads.losses import cross_entropy, cross_entropy_dice
from samtl.heads.trainer import Recipe, Source, Trainer, isolated, shortened, warmed

STATISTICS_ROWS = 1024  # rows of the training part that channel means are taken over
UPSAMPLING = 4  # resolution of a predicted mask, in multiples of the embedding's
_AT_ONCE = 32  # rows in one call when predicting, which bounds memory

_DEFAULTS: dict[str, dict[str, Any]] = {
    "classification": {"epochs": 20, "batch_size": 128, "lr": 2e-3},
    "segmentation": {"epochs": 60, "batch_size": 4, "lr": 2e-3},
}


@dataclass(eq=False, repr=False, kw_only=True)
class GridHead(BaseEstimator):  # type: ignore[misc]  # sklearn has no types
    """A network on grids of features, (channels, side, side) for each sample.

    Channels are standardised by their mean and deviation over the training part. The weights kept are those of the
    epoch with the least validation loss; see `samtl.heads.trainer`.

    Parameters
    ----------
    epochs : int, optional
        Most passes over the training part; by default 20 for classification, 60 for segmentation.
    batch_size : int, optional
        Samples in one step, by default 128 and 4; fewer if an epoch would have less than about 8 steps.
    lr : float, optional
        Learning rate at the end of the warm-up, by default 0.002.
    weight_decay : float
    patience : int
        Epochs without a better validation loss after which training ends.
    random_state : int
        For initial weights, order of samples and dropout.

    Attributes
    ----------
    task_ : {"classification", "segmentation"}
    classes_ : (K,) int64
        0 to K - 1; the head's outputs are in this order.
    shape_ : tuple of int
        (channels, side, side) of a sample.
    n_iter_, best_epoch_, stopped_, rate_, waiting_, curves_, recipe_
        See `samtl.heads.trainer.Trainer.tell`.
    """

    #: The store's array that each task reads.
    tiers: ClassVar[dict[str, str]] = {"classification": "grid", "segmentation": "dense"}
    #: Fitted attributes, beside tensors, that are saved with a head: plain JSON values.
    facts: ClassVar[tuple[str, ...]] = ("n_iter_", "best_epoch_", "stopped_")

    width: int
    dropout: float = 0.2
    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    weight_decay: float = 0.05
    patience: int = 8
    random_state: Any = 0

    @abstractmethod
    def _classifier(self, channels: int, side: int, n_classes: int) -> nn.Module:
        """Build a network from (batch, channels, side, side) to scores (batch, n_classes)."""

    @abstractmethod
    def _segmenter(self, channels: int, side: int, n_classes: int) -> nn.Module:
        """Build a network from (batch, channels, side, side) to scores (batch, n_classes, 4 side, 4 side)."""

    def fit(
        self,
        training: Source,
        validation: Source,
        *,
        task: str,
        n_classes: int,
        shape: Sequence[int],
        on_event: OnEvent | None = None,
    ) -> Self:
        """Train, with early stopping on the validation part.

        Parameters
        ----------
        training, validation : Source
            Batches of inputs, (batch, channels, side, side) float16 or float32, and targets, int64: class indices
            (batch,), or masks (batch, 4 side, 4 side) in which 255 is ignored.
        task : {"classification", "segmentation"}
        n_classes : int
        shape : (channels, side, side)
        on_event : callable, optional
            Called with each `Epoch`.

        Raises
        ------
        ValueError
            If a parameter is out of its range.
        InputError
            If shapes do not fit, or the loss is never finite.
        """
        self._check()
        self.adopt(task, list(range(n_classes)), shape)
        trainer = self.begin(len(training), self._statistics(training), on_event)
        return self.finish(trainer.run(training, validation))

    def begin(
        self, n: int, statistics: tuple[Tensor, Tensor], on_event: OnEvent | None = None
    ) -> Trainer:
        """Build the network and its trainer, after `adopt`; call `finish` once the trainer is finished.

        `n` is the number of training samples; `statistics` are mean and mean square of each channel, in float64.
        """
        self._check()
        loss = cross_entropy if self.task_ == "classification" else cross_entropy_dice
        recipe = Recipe(
            epochs=self._chosen("epochs"),
            batch_size=min(self._chosen("batch_size"), max(4, n // 8)),
            learning_rate=self._chosen("lr"),
            weight_decay=self.weight_decay,
            patience=self.patience,
        )
        seed = int(self.random_state or 0)
        start = self.__dict__.pop("_start", None)
        with isolated(seed):
            self._network = self.network()
            if start is not None:
                self._network.load_state_dict(start)
                recipe = warmed(recipe, n)
            self._standardise(*statistics)
            return Trainer(self._network, loss, n, recipe, seed, on_event or (lambda event: None))

    def finish(self, trainer: Trainer) -> Self:
        """Take the result of a finished training."""
        self._network.eval()
        trainer.tell(self)
        return self

    def gains(self, n: int, task: str) -> bool:
        """Whether a warm start shortens training on n samples enough."""
        return shortened(self.epochs or _DEFAULTS[task]["epochs"], n)

    def start_from(self, other: GridHead) -> None:
        """Start the next training from a fitted head's weights, and shorten it: see `samtl.heads.trainer.warmed`."""
        self._start = {name: torch.from_numpy(a.copy()) for name, a in other.tensors().items()}

    def logits(self, rows: NDArray[Any]) -> NDArray[np.float32]:
        """Compute scores, in float32 whatever training computed in, so that machines agree.

        From (n, channels, side, side) to (n, K) or (n, K, 4 side, 4 side). Raises InputError if the shape is not that
        of the training part.
        """
        parts = (
            np.array(rows[i : i + _AT_ONCE], np.float32) for i in range(0, len(rows), _AT_ONCE)
        )
        with torch.inference_mode():
            return np.concatenate([self._network(torch.from_numpy(part)).numpy() for part in parts])

    def predict_proba(self, rows: NDArray[Any]) -> Floats:
        """Compute the probability of each class, (n, ...) to (n, K, ...) float64, summing to 1 along axis 1."""
        return np.asarray(softmax(self.logits(rows).astype(np.float64), axis=1))

    def class_maps(
        self,
        rows: NDArray[Any],
        shapes: Sequence[tuple[int, int]],
        image_size: int,
        sizes: Sequence[tuple[int, int]] | None = None,
    ) -> list[NDArray[np.uint8]]:
        """Predict masks at the encoder's resolution, or at the images' own.

        Scores are upsampled bilinearly to the encoder's square, cropped to the image, and resized to the image's own
        size if that is given (bilinearly, antialiased if it is smaller), before the class with the largest is taken.

        Parameters
        ----------
        rows : (n, channels, side, side)
        shapes : sequence of (height, width)
            Of each image after its longest side was resized to `image_size`.
        image_size : int
            Side of the encoder's square in pixels.
        sizes : sequence of (height, width), optional
            Of each image before that, and of the masks.

        Returns
        -------
        list of (height, width) uint8
            Class indices.
        """
        maps = []
        for i, one in enumerate(torch.from_numpy(self.logits(rows))):
            height, width = shapes[i]
            square = interpolate(one[None], (image_size, image_size), mode="bilinear")[0]
            maps.append(largest(square[:, :height, :width], sizes[i] if sizes else None))
        return maps

    def adopt(self, task: str, classes: Sequence[Any], shape: Sequence[int]) -> None:
        """Set what a head is for, before it is trained or restored; raises InputError if no head can be."""
        if task not in self.tiers:
            raise InputError(
                f"a head is for {' or '.join(self.tiers)}, and there is no task {task!r}"
            )
        if len(shape) != 3 or shape[1] != shape[2] or shape[1] % 2 or min(shape) < 1:
            raise InputError(
                f"a grid of features is (channels, side, side), the side even, got {tuple(shape)}"
            )
        if list(classes) != list(range(max(2, len(classes)))):
            raise InputError(f"expected at least 2 classes, numbered from 0, got {list(classes)}")
        self.task_ = task
        self.classes_: NDArray[np.int64] = np.array(classes, dtype=np.int64)
        self.shape_ = tuple(int(n) for n in shape)
        self.columns_: tuple[str, ...] = ()
        self.curves_: dict[str, list[Any]] = {}

    def tensors(self) -> dict[str, NDArray[Any]]:
        """Return the network's weights by name, all float32."""
        return {name: value.numpy() for name, value in self._network.state_dict().items()}

    def layout(self) -> Layout:
        """Return dtype and shape of each of `tensors()`."""
        with isolated(0), torch.device("meta"):
            return {
                name: (str(value.dtype).removeprefix("torch."), tuple(value.shape))
                for name, value in self.network().state_dict().items()
            }

    def restore(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        """Take arrays that match `layout()`; the head then predicts as the one that returned them."""
        with isolated(0):
            self._network = self.network()
        self._network.load_state_dict({name: torch.from_numpy(a) for name, a in tensors.items()})
        self._network.eval()

    def network(self) -> nn.Module:
        """Build the network with initial weights from torch's generator, after `adopt`."""
        channels, side, _ = self.shape_
        build = self._classifier if self.task_ == "classification" else self._segmenter
        return _Cast(build(channels, side, len(self.classes_)), self.shape_)

    def _chosen(self, name: str) -> Any:
        value = getattr(self, name)
        return _DEFAULTS[self.task_][name] if value is None else value

    def _statistics(self, training: Source) -> tuple[Tensor, Tensor]:
        """Compute mean and mean square of the channels over the first rows, which are in random order in a store."""
        totals = torch.zeros(2, self.shape_[0], dtype=torch.float64)
        samples = 0
        for inputs, _ in training.batches(self._chosen("batch_size"), None):
            _require_shape(inputs.shape, self.shape_)
            totals += moments(inputs).sum(0)
            samples += len(inputs)
            if samples >= STATISTICS_ROWS:
                break
        mean, square = totals / samples
        return mean, square

    def _standardise(self, mean: Tensor, square: Tensor) -> None:
        deviation = (square - mean**2).clamp(min=0).sqrt()
        constant = deviation <= mean.abs() * 5e-4  # their factor is 0
        factor = torch.where(constant, 0.0, 1 / deviation.clamp(min=1e-12))
        for module in self._network.modules():
            if isinstance(module, Stem):
                module.mean.copy_(mean)
                module.factor.copy_(factor)

    def _check(self) -> None:
        check_training(self)
        if self.width < 4 or self.width % 4:
            raise ValueError(f"width must be a multiple of 4, got {self.width!r}")


def moments(rows: Tensor) -> Tensor:
    """Compute mean and mean square of each channel, (n, channels, side, side) to (n, 2, channels) float64."""
    values = rows.double()
    return torch.stack([values.mean((2, 3)), (values**2).mean((2, 3))], dim=1)


def _require_shape(got: Sequence[int], shape: tuple[int, ...]) -> None:
    if tuple(got[1:]) != shape:
        raise InputError(
            f"this head takes features of shape {shape}, one for each sample, got {tuple(got[1:])}"
        )


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
        _require_shape(x.shape, self.shape)
        mixed = torch.is_autocast_enabled("cpu")
        dtype = torch.get_autocast_dtype("cpu") if mixed else torch.float32
        return self.network(x.to(dtype, memory_format=torch.channels_last))  # type: ignore[no-any-return]
