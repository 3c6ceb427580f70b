"""Multi-layer perceptron on standardised features: hidden layers with ReLU and dropout, early stopping."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from samtl.heads.base import (
    Features,
    Floats,
    OnEvent,
    PooledHead,
    Rows,
    moments,
    reciprocal,
    scaled,
)


class Head(PooledHead):
    """Multi-layer perceptron.

    Inputs are standardised by mean and deviation of the training part. Trained by `samtl.heads.trainer`; the weights
    kept are those of the epoch with the least loss on the validation part. Predicting needs no torch.

    The defaults were found on EuroSAT, with 1,152 features of an untrained encoder and 50 to 21,600 training samples.

    Parameters
    ----------
    hidden : sequence of int
        Width of each hidden layer.
    dropout : float
        In [0, 1), after each hidden layer.
    epochs : int
        Most passes over the training part.
    batch_size : int
        Most samples in one step; a small training part still gives about 8 steps an epoch.
    lr : float
        Learning rate at the end of the warm-up.
    weight_decay : float
    patience : int
        Epochs without a better validation loss after which training ends.
    random_state : int
        For initial weights, order of samples, dropout, and the validation part that is drawn where none is given.

    Attributes
    ----------
    layers_ : list of ((out, in) float32, (out,) float32)
        Weights and biases.
    mean_, factor_ : (F,) float64
        Features are scaled as (X - mean_) * factor_.
    n_iter_ : int
        Epochs that were run.
    best_epoch_ : int
        The epoch whose weights these are, from 1.
    stopped_ : str
        Why training ended: `epochs`, `patience`, or `diverged at step N`.
    """

    facts = ("n_iter_", "best_epoch_", "stopped_")

    layers_: list[tuple[Features, Features]]

    def __init__(
        self,
        hidden: Sequence[int] = (512,),
        dropout: float = 0.3,
        epochs: int = 40,
        batch_size: int = 256,
        lr: float = 1e-3,
        weight_decay: float = 1e-2,
        patience: int = 10,
        random_state: Any = 0,
    ) -> None:
        self.hidden = hidden
        self.dropout = dropout
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.weight_decay = weight_decay
        self.patience = patience
        self.random_state = random_state

    def gains(self, n: int, task: str) -> bool:
        """Tell whether training on n samples is shorter from another head's weights."""
        from samtl.heads.trainer import shortened

        return shortened(self.epochs, n)

    def start_from(self, other: Self) -> None:
        """Let the next fit begin with the weights of a fitted head and be shorter: see `samtl.heads.trainer.warmed`."""
        self._start = other

    def _fit(
        self, X: Features, codes: Rows, train: Rows, held: Rows, seed: int, on_event: OnEvent
    ) -> None:
        self._check()
        import torch  # here, so that a saved head predicts without it
        from torch import nn

        from samtl.heads import trainer as _train
        from samtl.heads.layers import Dropout

        if not len(
            held
        ):  # a class or two with one sample each: nothing to stop on but the training part
            held = train
        self.mean_, deviation = moments(X[train])
        self.factor_ = reciprocal(deviation)

        def source(rows: Rows) -> _train.InMemory:
            inputs = scaled(X[rows], self.mean_, self.factor_)
            return _train.InMemory(torch.from_numpy(inputs), torch.from_numpy(codes[rows]))

        with _train.isolated(seed):
            parts: list[nn.Module] = []
            for wide, narrow in itertools.pairwise(self._widths()):
                parts += [
                    nn.Linear(wide, narrow, dtype=torch.float32),
                    nn.ReLU(),
                    Dropout(self.dropout),
                ]
            model = nn.Sequential(*parts[:-2])
            recipe = _train.Recipe(
                epochs=self.epochs,
                batch_size=min(self.batch_size, max(16, len(train) // 8)),
                learning_rate=self.lr,
                weight_decay=self.weight_decay,
                patience=self.patience,
            )
            start: Head | None = self.__dict__.pop("_start", None)
            if start is not None:
                recipe = _train.warmed(recipe, len(train))
                linear = [part for part in model if isinstance(part, nn.Linear)]
                for part, (weight, bias) in zip(linear, start.layers_, strict=True):
                    part.weight.data.copy_(torch.from_numpy(weight))
                    part.bias.data.copy_(torch.from_numpy(bias))
            outcome = _train.train(
                model,
                nn.functional.cross_entropy,
                source(train),
                source(held),
                recipe,
                seed,
                on_event,
            )
        self.layers_ = [
            (part.weight.detach().numpy().copy(), part.bias.detach().numpy().copy())
            for part in model
            if isinstance(part, nn.Linear)
        ]
        outcome.tell(self)

    def _check(self) -> None:
        whole = {"epochs": self.epochs, "batch_size": self.batch_size, "patience": self.patience}
        whole |= {f"hidden[{i}]": width for i, width in enumerate(self.hidden)}
        for name, value in whole.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value!r}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout!r}")
        if not self.lr > 0 or not self.weight_decay >= 0:
            raise ValueError(
                f"lr must be above 0 and weight_decay not below, got {self.lr!r} and {self.weight_decay!r}"
            )

    def _widths(self) -> list[int]:
        return [self.n_features_in_, *self.hidden, len(self.classes_)]

    def _logits(self, X: Features) -> Floats:
        values: Floats = (X - self.mean_) * self.factor_
        for i, (weight, bias) in enumerate(self.layers_):
            if i:
                np.maximum(values, 0, out=values)
            values = values @ weight.astype(np.float64).T + bias
        return values

    def tensors(self) -> dict[str, NDArray[Any]]:
        """Give `mean`, `factor`, and `weight.0`, `bias.0` and so on for each layer."""
        out: dict[str, NDArray[Any]] = {"mean": self.mean_, "factor": self.factor_}
        for i, (weight, bias) in enumerate(self.layers_):
            out |= {f"weight.{i}": weight, f"bias.{i}": bias}
        return out

    def layout(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Give dtype and shape of each of `tensors()`."""
        f = self.n_features_in_
        out: dict[str, tuple[str, tuple[int, ...]]] = {
            "mean": ("float64", (f,)),
            "factor": ("float64", (f,)),
        }
        for i, (wide, narrow) in enumerate(itertools.pairwise(self._widths())):
            out |= {f"weight.{i}": ("float32", (narrow, wide)), f"bias.{i}": ("float32", (narrow,))}
        return out

    def restore(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        """Take arrays that match `layout()`."""
        self.mean_, self.factor_ = tensors["mean"], tensors["factor"]
        self.layers_ = [
            (tensors[f"weight.{i}"], tensors[f"bias.{i}"]) for i in range(len(self.hidden) + 1)
        ]
