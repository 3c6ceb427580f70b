"""Multi-layer perceptron on standardised features: hidden layers with ReLU and dropout, early stopping."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from samtl.heads.base import (
    Features,
    Floats,
    OnEvent,
    PooledHead,
    Rows,
    check_choice,
    check_ranges,
    standard,
)
from samtl.heads.training.layers import Dropout
from samtl.heads.training.network import Network
from samtl.heads.training.trainer import InMemory

_SCALE = "scale"


@dataclass(eq=False, repr=False, kw_only=True)
class Head(PooledHead, Network):
    """Multi-layer perceptron.

    Inputs, and numbers to be predicted, are standardised by mean and deviation of the training part. The defaults were
    found on EuroSAT, with 1,152 features of an untrained encoder and 50 to 21,600 training samples.

    Parameters
    ----------
    hidden : sequence of int
        Width of each hidden layer.
    dropout : float
        In [0, 1), after each hidden layer.
    epochs, batch_size, lr, weight_decay, patience, precision, class_weights
        See `Network`.
    calibrate : bool
        Whether one temperature, chosen on the validation part, scales the logits (for classification). A head of the
        training part alone is fitted for that, too.
    random_state : int
        For initial weights, order of samples, dropout, and the validation part that is drawn if none is passed.
    """

    hidden: Sequence[int] = (512,)
    dropout: float = 0.3
    epochs: int = 40
    batch_size: int = 256
    lr: float = 1e-3
    weight_decay: float = 1e-2
    patience: int = 10
    calibrate: bool = False

    _fewest = 16
    facts = (*Network.facts, "temperature_")
    tiers: ClassVar[dict[str, str]] = dict.fromkeys(
        ("classification", "multilabel", "regression"), "pooled"
    )

    def _check(self) -> None:
        super()._check()
        check_ranges(self, dropout="share")
        check_choice(self, "calibrate", (False, True))
        widths = [*self.hidden]
        if not all(type(width) is int and width >= 1 for width in widths):
            raise ValueError(f"hidden must hold widths from 1, got {self.hidden!r}")

    def _fit(
        self, X: Features, codes: Rows, train: Rows, held: Rows, seed: int, on_event: OnEvent
    ) -> None:
        trainer = self._begin(len(train), seed, on_event, codes[train])
        standardised: Any = self._network.get_submodule("0")
        for buffer, values in zip(standardised.buffers(), standard(X[train]), strict=True):
            buffer.copy_(torch.from_numpy(values))
        if self.task_ == "regression":
            level, spread = codes[train].mean(), codes[train].std() or 1.0
            self._network.get_buffer(_SCALE).copy_(torch.tensor([level, spread]))
            codes = ((codes - level) / spread).astype(np.float32)

        def source(rows: Rows) -> InMemory:
            return InMemory(torch.from_numpy(X[rows]), torch.from_numpy(codes[rows]))

        # With one sample of each class, there is no validation part.
        self.finish(trainer.run(source(train), source(held if len(held) else train)))

    def network(self) -> nn.Module:
        layers: list[nn.Module] = [_Standardised(self.n_features_in_)]
        widths = self.n_features_in_, *self.hidden, len(self.classes_)
        for wide, narrow in itertools.pairwise(widths):
            layers += [nn.Linear(wide, narrow), nn.ReLU(), Dropout(self.dropout)]
        network = nn.Sequential(*layers[:-2])
        if self.task_ == "regression":  # mean and deviation of the training part's numbers
            network.register_buffer(_SCALE, torch.tensor([0.0, 1.0], dtype=torch.float64))
        return network

    def _logits(self, X: Features) -> Floats:
        exact = copy.deepcopy(self._network).double()
        with torch.inference_mode():
            scores: Floats = exact(torch.tensor(X, dtype=torch.float64)).numpy()
        if self.task_ == "regression":
            level, spread = exact.get_buffer(_SCALE).numpy()
            scores = scores * spread + level
        return scores


class _Standardised(nn.Module):
    """(X - mean) * factor in float64, in the dtype of X."""

    mean: Tensor
    factor: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        for name in ("mean", "factor"):
            self.register_buffer(name, torch.zeros(features, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return ((x - self.mean) * self.factor).to(x.dtype)
