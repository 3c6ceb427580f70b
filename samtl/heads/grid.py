"""What heads on the embedding's grid share: standardising, training, predicting, saving.

A head is a file `samtl/heads/NAME.py` with a class `Head`. It builds the networks, one for each task, and nothing else.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from torch import Tensor, nn
from torch.nn.functional import interpolate

from samtl.errors import InputError
from samtl.heads.base import Floats, OnEvent
from samtl.heads.layers import Stem
from samtl.heads.losses import cross_entropy, cross_entropy_dice
from samtl.heads.trainer import (
    Recipe,
    Source,
    Trainer,
    isolated,
    shortened,
    warmed,
)

STATISTICS_ROWS = (
    1024  # rows of the training part that channel means are taken over; more change nothing
)
UPSAMPLING = 4  # a mask is predicted at so many times the embedding's resolution
_AT_ONCE = 32  # rows in one call when predicting: bounds memory

# What the tasks differ in where the user leaves it open.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "classification": {"epochs": 20, "batch_size": 128, "lr": 2e-3},
    "segmentation": {"epochs": 60, "batch_size": 4, "lr": 2e-3},
}


class GridHead(BaseEstimator):  # type: ignore[misc]  # sklearn has no types
    """A network on grids of features, (channels, side, side) for each sample.

    Channels are standardised by their mean and deviation over the training part. Trained by
    `samtl.heads.trainer`; the weights kept are those of the epoch with the least loss on the validation part.

    Parameters
    ----------
    epochs : int, optional
        Most passes over the training part; by default 20 for classification, 60 for segmentation.
    batch_size : int, optional
        Samples in one step, by default 128 and 4; a small training part still gives about 8 steps an epoch.
    lr : float, optional
        Learning rate at the end of the warm-up, by default 0.002.
    weight_decay : float
    patience : int
        Epochs without a better validation loss after which training ends.
    random_state : int
        For initial weights, order of samples and dropout.

    Attributes
    ----------
    task_ : str
        `classification` or `segmentation`.
    classes_ : (K,) int64
        0 to K - 1; the head's outputs are in this order.
    shape_ : tuple of int
        (channels, side, side) of a sample.
    n_iter_, best_epoch_ : int
        Epochs that were run; the one whose weights these are, from 1.
    stopped_ : str
        Why training ended: `epochs`, `patience`, or `diverged at step N`.
    rate_, waiting_ : float
        Samples learnt from in a second, and the part of the time that was spent waiting for data, in [0, 1].
    """

    #: Which of a store's arrays each task reads.
    tiers: ClassVar[dict[str, str]] = {"classification": "grid", "segmentation": "dense"}
    #: Fitted attributes, beside tensors, that are saved with a head: plain JSON values.
    facts: ClassVar[tuple[str, ...]] = ("n_iter_", "best_epoch_", "stopped_")

    task_: str
    classes_: NDArray[np.int64]
    shape_: tuple[int, ...]
    columns_: tuple[str, ...] = ()
    curves_: dict[str, list[Any]]

    def __init__(
        self,
        epochs: int | None,
        batch_size: int | None,
        lr: float | None,
        weight_decay: float,
        patience: int,
        random_state: Any,
    ) -> None:
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.weight_decay = weight_decay
        self.patience = patience
        self.random_state = random_state

    @abstractmethod
    def _classifier(self, channels: int, side: int, n_classes: int) -> nn.Module:
        """Map (batch, channels, side, side) to scores (batch, n_classes)."""

    @abstractmethod
    def _segmenter(self, channels: int, side: int, n_classes: int) -> nn.Module:
        """Map (batch, channels, side, side) to scores (batch, n_classes, 4 side, 4 side)."""

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
        """Train, stopping on the validation part.

        Parameters
        ----------
        training, validation : Source
            Batches of inputs, (batch, channels, side, side) float16 or float32, and targets, int64: class indices
            (batch,), or masks (batch, 4 side, 4 side) with 255 where nothing is to be learnt.
        task : {"classification", "segmentation"}
        n_classes : int
        shape : (channels, side, side)
        on_event : callable, optional
            Called with each `Epoch`.

        Raises
        ------
        ValueError
            For a parameter out of its range.
        InputError
            Where shapes do not fit, or the loss is not a number from the start.
        """
        self._check()
        self.adopt(task, list(range(n_classes)), shape)
        moments = self._first(training)
        trainer = self.begin(len(training), moments, on_event)
        return self.finish(trainer.run(training, validation))

    def begin(
        self, n: int, moments: tuple[Tensor, Tensor], on_event: OnEvent | None = None
    ) -> Trainer:
        """Make the network and what trains it, once the head was told what for (`adopt`); `finish` ends it.

        Parameters
        ----------
        n : int
            Samples of the training part.
        moments : (channels,) and (channels,) Tensor of float64
            Mean and mean square of each channel.
        on_event : callable, optional

        Raises
        ------
        ValueError
            For a parameter out of its range.
        """
        self._check()
        loss = cross_entropy if self.task_ == "classification" else cross_entropy_dice
        chosen = {
            name: value if (value := getattr(self, name)) is not None else default
            for name, default in _DEFAULTS[self.task_].items()
        }
        recipe = Recipe(
            epochs=chosen["epochs"],
            batch_size=min(chosen["batch_size"], max(4, n // 8)),
            learning_rate=chosen["lr"],
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
            self._standardise(*moments)
            return Trainer(self._network, loss, n, recipe, seed, on_event or (lambda event: None))

    def finish(self, trainer: Trainer) -> Self:
        """Take note of how training went, once it is finished."""
        self._network.eval()
        trainer.outcome().tell(self)
        return self

    def gains(self, n: int, task: str) -> bool:
        """Tell whether training on n samples is shorter from another head's weights."""
        return shortened(self.epochs or _DEFAULTS[task]["epochs"], n)

    def start_from(self, other: GridHead) -> None:
        """Let the next training begin with the weights of a fitted head and be shorter: see `warmed`."""
        self._start = {
            name: torch.from_numpy(value.copy()) for name, value in other.tensors().items()
        }

    def logits(self, rows: NDArray[Any]) -> NDArray[np.float32]:
        """Score rows of features, in float32 whatever training computed in, so that machines agree.

        Parameters
        ----------
        rows : (n, channels, side, side) float16 or float32

        Returns
        -------
        (n, K) or (n, K, 4 side, 4 side) float32

        Raises
        ------
        InputError
            Where the shape is not that the head was trained on.
        """
        _require_shape(rows.shape, self.shape_)
        parts = []
        with torch.inference_mode():
            for start in range(0, len(rows), _AT_ONCE):
                part = torch.from_numpy(np.array(rows[start : start + _AT_ONCE], dtype=np.float32))
                parts.append(self._network(part).numpy())
        return np.concatenate(parts)

    def predict_proba(self, rows: NDArray[Any]) -> Floats:
        """Give the probability of each class, (n, ...) to (n, K, ...) float64, summing to 1 along axis 1."""
        chances = self.logits(rows).astype(np.float64)
        chances -= chances.max(axis=1, keepdims=True)
        np.exp(chances, out=chances)
        chances /= chances.sum(axis=1, keepdims=True)
        return chances

    def class_maps(
        self,
        rows: NDArray[Any],
        shapes: Sequence[tuple[int, int]],
        image_size: int,
        sizes: Sequence[tuple[int, int]] | None = None,
    ) -> list[NDArray[np.uint8]]:
        """Predict masks at the encoder's resolution, or at the images' own.

        Scores are sampled up bilinearly to the encoder's square before the largest is taken; and from there, without
        the padding, to the images' own size where that is given (bilinearly, antialiased where that is smaller).

        Parameters
        ----------
        rows : (n, channels, side, side)
        shapes : sequence of (height, width)
            Of each image after its longest side was resized to `image_size`.
        image_size : int
            Side of the encoder's square in pixels.
        sizes : sequence of (height, width), optional
            Of each image before that, and so of the masks.

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
        """Take on what a head is for, before it is trained or restored.

        Raises
        ------
        InputError
            Where there is no such task, or the shape is none of a grid.
        """
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
        self.classes_ = np.array(classes, dtype=np.int64)
        self.shape_ = tuple(int(n) for n in shape)
        self.columns_ = ()

    def tensors(self) -> dict[str, NDArray[Any]]:
        """Give the network's weights by name, all float32."""
        return {name: value.numpy() for name, value in self._network.state_dict().items()}

    def layout(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Give dtype and shape of each of `tensors()`."""
        with isolated(0), torch.device("meta"):
            return {
                name: (str(value.dtype).removeprefix("torch."), tuple(value.shape))
                for name, value in self.network().state_dict().items()
            }

    def restore(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        """Take arrays that match `layout()`; the head then predicts as the one that gave them."""
        with isolated(0):
            self._network = self.network()
        self._network.load_state_dict({name: torch.from_numpy(a) for name, a in tensors.items()})
        self._network.eval()

    def network(self) -> nn.Module:
        """Build the network anew, with initial weights from torch's generator; `adopt` was called before."""
        channels, side, _ = self.shape_
        build = self._classifier if self.task_ == "classification" else self._segmenter
        return _Cast(build(channels, side, len(self.classes_)), self.shape_)

    def _first(self, training: Source) -> tuple[Tensor, Tensor]:
        """Mean and mean square of the channels of the first rows, a random choice: the store shuffles."""
        totals = torch.zeros(2, self.shape_[0], dtype=torch.float64)
        samples = 0
        size = self.batch_size or _DEFAULTS[self.task_]["batch_size"]
        for inputs, _ in training.batches(size, None):
            _require_shape(inputs.shape, self.shape_)
            totals += moments(inputs).sum(0)
            samples += len(inputs)
            if samples >= STATISTICS_ROWS:
                break
        mean, square = totals / samples
        return mean, square

    def _standardise(self, mean: Tensor, square: Tensor) -> None:
        """Set mean and factor of every stem."""
        deviation = (square - mean**2).clamp(min=0).sqrt()
        # A channel that never changes says nothing, whatever it holds later.
        constant = deviation <= mean.abs() * 5e-4
        factor = torch.where(constant, 0.0, 1 / deviation.clamp(min=1e-12))
        for module in self._network.modules():
            if isinstance(module, Stem):
                module.mean.copy_(mean)
                module.factor.copy_(factor)

    def _check(self) -> None:
        for name in ("epochs", "batch_size", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value!r}")
        if self.lr is not None and not self.lr > 0:
            raise ValueError(f"lr must be above 0, got {self.lr!r}")
        if not self.weight_decay >= 0:
            raise ValueError(f"weight_decay must not be below 0, got {self.weight_decay!r}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout!r}")
        if self.width < 4 or self.width % 4:
            raise ValueError(f"width must be a multiple of 4, got {self.width!r}")


def moments(rows: Tensor) -> Tensor:
    """Mean and mean square of each channel of each row, (n, channels, side, side) to (n, 2, channels) float64."""
    values = rows.double()
    return torch.stack([values.mean((2, 3)), (values**2).mean((2, 3))], dim=1)


def _require_shape(got: Sequence[int], shape: tuple[int, ...]) -> None:
    if tuple(got[1:]) != shape:
        raise InputError(
            f"this head takes features of shape {shape}, one for each sample, got {tuple(got[1:])}"
        )


def largest(scores: Tensor, size: tuple[int, int] | None) -> NDArray[np.uint8]:
    """Give the class with the largest score, (K, h, w) to (h, w), or to another size."""
    if size is None:
        return scores.argmax(0).to(torch.uint8).numpy()
    # Class by class: the scores of all classes at the size of a large image would not fit in memory.
    best = torch.full(size, -torch.inf)
    classes = torch.zeros(size, dtype=torch.uint8)
    for index, one in enumerate(scores):
        resized = interpolate(one[None, None], size, mode="bilinear", antialias=True)[0, 0]
        classes[resized > best] = index
        best = torch.maximum(best, resized)
    return classes.numpy()


class _Cast(nn.Module):
    """Brings stored float16 to the dtype that products are computed in, and to channels-last on the way.

    Refuses samples of another shape.
    """

    def __init__(self, network: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        _require_shape(x.shape, self.shape)
        dtype = (
            torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
        )
        return self.network(x.to(dtype, memory_format=torch.channels_last))  # type: ignore[no-any-return]
