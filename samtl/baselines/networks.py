"""What the baselines that are trained from scratch share: training on pixels, saving, predicting."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from samtl.baselines.base import PixelBaseline, Predictions, check_ranges
from samtl.baselines.pixels import Pixels, Rows, squares
from samtl.datasets import Dataset
from samtl.heads.base import OnEvent
from samtl.heads.grid import largest
from samtl.heads.losses import cross_entropy, cross_entropy_dice
from samtl.heads.trainer import Recipe, isolated, shortened, train, warmed
from samtl.images.transforms import PIXEL_MEAN, PIXEL_STD, resized_shape

_AT_ONCE = 2**20  # pixels in one call when predicting: bounds memory


class NetworkBaseline(PixelBaseline):
    """A convolutional network, trained from scratch by `samtl.heads.trainer`.

    The weights kept are those of the epoch with the least loss on the validation part.

    Parameters
    ----------
    image_size : int
        Longest side that images are resized to, a multiple of 32.
    epochs : int
        Most passes over the training part.
    batch_size : int
        Most samples in one step; a small training part still gives about 8 steps an epoch.
    lr : float
        Learning rate at the end of the warm-up.
    weight_decay : float
    patience : int
        Epochs without a better validation loss after which training stops.
    random_state : int
        For initial weights, order of samples, flips and dropout.

    Attributes
    ----------
    n_iter_, best_epoch_ : int
        Number of epochs, and the one whose weights are kept, from 1.
    stopped_ : str
        Why training stopped: `epochs`, `patience`, or `diverged at step N`.
    rate_, waiting_ : float
        Training samples per second, and the share of time spent waiting for data, in [0, 1].
    """

    facts = ("task_", "n_iter_", "best_epoch_", "stopped_")

    image_size: int
    epochs: int
    batch_size: int
    lr: float
    weight_decay: float
    patience: int

    @abstractmethod
    def _network(self, n_classes: int) -> nn.Module:
        """A network from normalised images (batch, 3, size, size) to scores (batch, K), or (batch, K, size, size)."""

    def _check(self) -> None:
        check_ranges(
            self,
            image_size="side",
            epochs="count",
            batch_size="count",
            lr="positive",
            weight_decay="not negative",
            patience="count",
        )

    def _fit(
        self, dataset: Dataset, train_rows: Rows, held: Rows, seed: int, on_event: OnEvent
    ) -> None:
        training = Pixels(dataset, train_rows, self.image_size, augment=True)
        validation = Pixels(dataset, held if len(held) else train_rows, self.image_size)
        with isolated(seed):
            self._model = self._build()
            recipe = Recipe(
                epochs=self.epochs,
                batch_size=min(self.batch_size, max(4, len(training) // 8)),
                learning_rate=self.lr,
                weight_decay=self.weight_decay,
                patience=self.patience,
            )
            start: NetworkBaseline | None = self.__dict__.pop("_start", None)
            if start is not None:
                self._load(start.tensors())
                recipe = warmed(recipe, len(training))
            loss = cross_entropy if self.task_ == "classification" else cross_entropy_dice
            outcome = train(self._model, loss, training, validation, recipe, seed, on_event)
        outcome.tell(self)

    def _predict(self, dataset: Dataset, rows: Rows, image_size: int) -> Iterator[Predictions]:
        name = type(self).__module__.rpartition(".")[2]
        at_once = max(1, _AT_ONCE // self.image_size**2)
        for inputs, shapes in squares(dataset, rows, self.image_size, at_once):
            with torch.inference_mode():  # in float32, whatever training computed in
                logits = self._model(inputs)
            if self.task_ == "classification":
                yield {name: logits.double().softmax(1).numpy()}
                continue
            for scores, (height, width) in zip(logits, shapes, strict=True):
                yield {name: class_map(scores, height, width, image_size)}

    def tensors(self) -> dict[str, NDArray[Any]]:
        return {name: value.contiguous().numpy() for name, value in _state(self._model).items()}

    def layout(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        with torch.device("meta"):
            return {
                name: (str(value.dtype).removeprefix("torch."), tuple(value.shape))
                for name, value in _state(self._build()).items()
            }

    def restore(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        with torch.random.fork_rng(devices=[]):
            self._model = self._build()
        self._load(tensors)
        self._model.eval()

    def gains(self, n: int, task: str) -> bool:
        """Whether a warm start shortens training on n images."""
        return shortened(self.epochs, n)

    def start_from(self, other: Self) -> None:
        """Start the next training from the weights of a fitted baseline, and shorten it: see `warmed`."""
        self._start = other

    def _load(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        loaded = {name: torch.from_numpy(np.array(array)) for name, array in tensors.items()}
        self._model.load_state_dict({**self._model.state_dict(), **loaded})

    def _build(self) -> nn.Module:
        return Normalised(self._network(len(self.classes_)))


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
    """3 x 3 convolution, batch norm, ReLU; a stride of 2 halves the size."""
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


def _state(model: nn.Module) -> dict[str, Tensor]:
    """The tensors that predictions depend on: not the number of batches seen by batch norms."""
    state = model.state_dict()
    return {name: state[name] for name in state if not name.endswith("num_batches_tracked")}
