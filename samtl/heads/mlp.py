"""Multi-layer perceptron on standardised features: hidden layers with ReLU and dropout, early stopping."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from samtl.heads.base import (
    Features,
    Floats,
    Layout,
    OnEvent,
    PooledHead,
    Rows,
    check_training,
    moments,
    reciprocal,
    scaled,
)

# torch is imported where it is used, so that a saved head predicts without it.


@dataclass(eq=False, repr=False)
class Head(PooledHead):
    """Multi-layer perceptron.

    Inputs are standardised by mean and deviation of the training part. The weights kept are those of the epoch with the
    least validation loss; see `samtl.heads.trainer`. The defaults were found on EuroSAT, with 1,152 features of an
    untrained encoder and 50 to 21,600 training samples.

    Parameters
    ----------
    hidden : sequence of int
        Width of each hidden layer.
    dropout : float
        In [0, 1), after each hidden layer.
    epochs : int
        Most passes over the training part.
    batch_size : int
        Samples in one step; fewer if an epoch would have less than about 8 steps.
    lr : float
        Learning rate at the end of the warm-up.
    weight_decay : float
    patience : int
        Epochs without a better validation loss after which training ends.
    random_state : int
        For initial weights, order of samples, dropout, and the validation part that is drawn if none is passed.

    Attributes
    ----------
    layers_ : list of ((out, in) float32, (out,) float32)
        Weights and biases.
    mean_, factor_ : (F,) float64
        Features are scaled as (X - mean_) * factor_.
    n_iter_, best_epoch_, stopped_, rate_, waiting_, recipe_
        See `samtl.heads.trainer.Trainer.tell`.
    """

    facts = ("n_iter_", "best_epoch_", "stopped_")

    hidden: Sequence[int] = (512,)
    dropout: float = 0.3
    epochs: int = 40
    batch_size: int = 256
    lr: float = 1e-3
    weight_decay: float = 1e-2
    patience: int = 10
    random_state: Any = 0

    def gains(self, n: int, task: str) -> bool:
        """Whether a warm start shortens training on n samples enough."""
        from samtl.heads.trainer import shortened

        return shortened(self.epochs, n)

    def start_from(self, other: Self) -> None:
        """Start the next fit from a fitted head's weights, and shorten it: see `samtl.heads.trainer.warmed`."""
        self._start = other

    def _check(self) -> None:
        check_training(self)
        for i, width in enumerate(self.hidden):
            if width < 1:
                raise ValueError(f"hidden[{i}] must be at least 1, got {width!r}")

    def _fit(
        self, X: Features, codes: Rows, train: Rows, held: Rows, seed: int, on_event: OnEvent
    ) -> None:
        self._check()
        import torch
        from torch import nn

        from samtl.heads.layers import Dropout
        from samtl.heads.trainer import InMemory, Recipe, isolated, warmed
        from samtl.heads.trainer import train as run

        if not len(held):  # one sample of each class
            held = train
        self.mean_, deviation = moments(X[train])
        self.factor_ = reciprocal(deviation)

        def source(rows: Rows) -> InMemory:
            inputs = scaled(X[rows], self.mean_, self.factor_)
            return InMemory(torch.from_numpy(inputs), torch.from_numpy(codes[rows]))

        recipe = Recipe(
            epochs=self.epochs,
            batch_size=min(self.batch_size, max(16, len(train) // 8)),
            learning_rate=self.lr,
            weight_decay=self.weight_decay,
            patience=self.patience,
        )
        start: Any = self.__dict__.pop("_start", None)
        loss = nn.functional.cross_entropy
        with isolated(seed):
            linear = [nn.Linear(wide, narrow) for wide, narrow in self._widths()]
            parts: list[nn.Module] = []
            for layer in linear:
                parts += [layer, nn.ReLU(), Dropout(self.dropout)]
            if start is not None:
                recipe = warmed(recipe, len(train))
                for layer, (weight, bias) in zip(linear, start.layers_, strict=True):
                    layer.weight.data.copy_(torch.from_numpy(weight))
                    layer.bias.data.copy_(torch.from_numpy(bias))
            model = nn.Sequential(*parts[:-2])
            training = run(model, loss, source(train), source(held), recipe, seed, on_event)
        self.layers_ = [
            (layer.weight.detach().numpy().copy(), layer.bias.detach().numpy().copy())
            for layer in linear
        ]
        training.tell(self)

    def _widths(self) -> itertools.pairwise[tuple[int, int]]:
        return itertools.pairwise([self.n_features_in_, *self.hidden, len(self.classes_)])

    def _logits(self, X: Features) -> Floats:
        values: Floats = (X - self.mean_) * self.factor_
        for i, (weight, bias) in enumerate(self.layers_):
            if i:
                np.maximum(values, 0, out=values)
            values = values @ weight.astype(np.float64).T + bias
        return values

    def tensors(self) -> dict[str, NDArray[Any]]:
        out: dict[str, NDArray[Any]] = {"mean": self.mean_, "factor": self.factor_}
        for i, (weight, bias) in enumerate(self.layers_):
            out |= {f"weight.{i}": weight, f"bias.{i}": bias}
        return out

    def layout(self) -> Layout:
        f = self.n_features_in_
        out: Layout = {"mean": ("float64", (f,)), "factor": ("float64", (f,))}
        for i, (wide, narrow) in enumerate(self._widths()):
            out |= {f"weight.{i}": ("float32", (narrow, wide)), f"bias.{i}": ("float32", (narrow,))}
        return out

    def restore(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        self.mean_, self.factor_ = tensors["mean"], tensors["factor"]
        layers = range(len(self.hidden) + 1)
        self.layers_ = [(tensors[f"weight.{i}"], tensors[f"bias.{i}"]) for i in layers]
