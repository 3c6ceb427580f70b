"""Models whose weights are a torch network's: how they are trained, started from another, saved and restored."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from samtl._runtime.probe import MIXED
from samtl.heads.base import (
    CLASS_WEIGHTS,
    Epoch,
    Layout,
    Model,
    OnEvent,
    balanced,
    check_choice,
    check_ranges,
)
from samtl.heads.training.layers import LOSSES
from samtl.heads.training.trainer import Recipe, Trainer, isolated, warm_epochs


@dataclass(eq=False, repr=False, kw_only=True)
class Network(Model):
    """A model that `Trainer` trains; the weights kept are those of the epoch with the least validation loss.

    Parameters
    ----------
    epochs : int
        Most passes over the training part.
    batch_size : int
        Samples in one step; fewer if an epoch would have less than about 8 steps.
    lr : float
        Learning rate at the end of the warm-up.
    weight_decay : float
    patience : int
        Epochs without a better validation loss after which training ends.
    precision : {"auto", "float32", "bfloat16"}
        Dtype of products in training; `auto` is the faster one here.
    class_weights : {"balanced"}, optional
        `balanced` weights samples inversely to the size of their class, in every loss. For classification.
    random_state : int
        For initial weights, order of samples, dropout and, if pixels are learnt from, flips.

    Attributes
    ----------
    n_iter_, best_epoch_, stopped_, curves_, recipe_
        Of the training: see `samtl.heads.training.trainer.Trainer`.
    rate_, waiting_ : float
        Samples learnt from per second, and the share of the time spent waiting for data.
    """

    facts: ClassVar[tuple[str, ...]] = ("n_iter_", "best_epoch_", "stopped_")
    #: For each task, the values of parameters that are None.
    defaults: ClassVar[dict[str, dict[str, Any]]] = {}
    _fewest: ClassVar[int] = 4  # samples in one step, at least

    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    weight_decay: float = 0.05
    patience: int = 8
    precision: str = "auto"
    class_weights: str | None = None
    random_state: Any = 0

    @abstractmethod
    def network(self) -> nn.Module:
        """Build the network with initial weights from torch's generator, after `adopt`."""

    def _check(self) -> None:
        counts = dict.fromkeys(("epochs", "batch_size", "patience"), 1)
        check_ranges(self, **counts, lr="positive", weight_decay="not negative")
        check_choice(self, "precision", ("auto", *MIXED))
        check_choice(self, "class_weights", CLASS_WEIGHTS)

    def _chosen(self, name: str, task: str) -> Any:
        value = getattr(self, name)
        return self.defaults[task][name] if value is None else value

    def _begin(
        self, n: int, seed: int, on_event: OnEvent | None, codes: NDArray[Any] | None = None
    ) -> Trainer:
        """Build the network and its trainer for n training samples; `finish` takes the result.

        `codes` are the classes of the samples, for `class_weights`.
        """
        recipe = Recipe(
            epochs=self._chosen("epochs", self.task_),
            batch_size=min(self._chosen("batch_size", self.task_), max(self._fewest, n // 8)),
            learning_rate=self._chosen("lr", self.task_),
            weight_decay=self.weight_decay,
            patience=self.patience,
            precision=self.precision,
        )
        start = self.__dict__.pop("_start", None)
        with isolated(seed):
            self._network = self.network()
            if start is not None:
                self._load(start)
                epochs = warm_epochs(recipe.epochs, n)
                recipe = replace(recipe, epochs=epochs, patience=epochs)
            loss = LOSSES[self.task_]
            if self.class_weights:
                if self.task_ != "classification" or codes is None:
                    raise ValueError(
                        "class_weights is for classification, of samples whose classes are given"
                    )
                weights = torch.from_numpy(balanced(codes, len(self.classes_))).float()
                loss = functools.partial(cross_entropy, weight=weights)
            tell = on_event or (lambda event: None)
            name = f"{type(self).__module__.rpartition('.')[2]} {self.task_}"
            return Trainer(self._network, loss, n, recipe, seed, tell, name)

    def finish(self, trainer: Trainer) -> Self:
        """Take the result of a finished training."""
        self.n_iter_, self.best_epoch_ = len(trainer.curves), trainer.best_epoch
        self.stopped_, self.recipe_ = trainer.stopped, trainer.recipe
        seconds = max(trainer.seconds + trainer.waited, 1e-9)
        self.rate_, self.waiting_ = trainer.samples / seconds, trainer.waited / seconds
        columns = [name for name in Epoch.__dataclass_fields__ if name != "epochs"]
        self.curves_ = {
            name: [getattr(epoch, name) for epoch in trainer.curves] for name in columns
        }
        return self

    def gains(self, n: int, task: str) -> bool:
        """Whether a warm start at least halves the training on n samples.

        If it does not, it saves little and may harm: with 18 epochs of 20, two of three seeds were no better for twice
        the images (EuroSAT at 256 pixels, `vit` from 10 to 20 %).
        """
        epochs = self._chosen("epochs", task)
        return bool(2 * warm_epochs(epochs, n) <= epochs)

    def start_from(self, other: Self) -> None:
        """Start the next training from a fitted model's weights, and shorten it: see `warm_epochs`.

        There is no early stopping then, because the loss may rise until the rate falls: without patience one of three
        seeds gained three points of accuracy (`vit`).
        """
        self._start = other.tensors()

    def tensors(self) -> dict[str, NDArray[Any]]:
        return {name: value.contiguous().numpy() for name, value in _state(self._network).items()}

    def layout(self) -> Layout:
        with isolated(0), torch.device("meta"):
            return {
                name: (str(value.dtype).removeprefix("torch."), tuple(value.shape))
                for name, value in _state(self.network()).items()
            }

    def restore(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        with isolated(0):
            self._network = self.network()
        self._load(tensors)
        self._network.eval()

    def _load(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        loaded = {name: torch.tensor(array) for name, array in tensors.items()}
        self._network.load_state_dict({**self._network.state_dict(), **loaded})


def _state(network: nn.Module) -> dict[str, Tensor]:
    """Return the tensors that predictions depend on: not the number of batches that batch norms have seen."""
    state = network.state_dict()
    return {name: state[name] for name in state if not name.endswith("num_batches_tracked")}
