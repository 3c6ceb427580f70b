"""Nearest neighbours of standardised features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import KNeighborsClassifier
from threadpoolctl import threadpool_limits

from samtl.heads.base import (
    Features,
    Floats,
    Layout,
    OnEvent,
    PooledHead,
    Rows,
    check_choice,
    check_ranges,
    scaled,
    standard,
)

TRIED = (1, 3, 5, 9, 15, 25)
_UNJUDGED = 5  # neighbours if there is no validation part


@dataclass(eq=False, repr=False)
class Head(PooledHead):
    """The nearest neighbours of a sample vote, by the Euclidean distance of standardised features.

    Each class has half a vote beforehand. The number of neighbours with the least log loss on the validation part wins;
    the validation part then votes, too. A saved head holds the features of all samples that vote.

    Parameters
    ----------
    neighbours : int, optional
        How many vote; by default chosen from 1, 3, 5, 9, 15 and 25.
    calibrate : bool
        Whether one temperature, chosen on the validation part, scales the logits (for classification). A head of the
        training part alone is fitted for that, too.
    random_state : int
        For the validation part that is drawn if none is passed.

    Attributes
    ----------
    neighbours_ : int
        The chosen number, at most that of samples.
    """

    tiers: ClassVar[dict[str, str]] = {"classification": "pooled"}
    facts = ("neighbours_", "n_samples_", "temperature_")

    neighbours: int | None = None
    calibrate: bool = False
    random_state: Any = 0

    def _check(self) -> None:
        check_ranges(self, neighbours=1)
        check_choice(self, "calibrate", (False, True))

    def _fit(
        self, X: Features, codes: Rows, train: Rows, held: Rows, seed: int, on_event: OnEvent
    ) -> None:
        self.neighbours_ = min(self.neighbours or _UNJUDGED, len(X))
        self.curves_ = {"neighbours": [], "validation_loss": [], "validation_accuracy": []}
        tried = [count for count in TRIED if count <= len(train)]
        if self.neighbours is None and len(held):
            self._remember(X[train], codes[train], tried[-1])
            with threadpool_limits(1):
                near = self._voting.kneighbors(scaled(X[held], *self._scaling))[1]
            nth, votes = np.arange(len(held)), np.full((len(held), len(self.classes_)), 0.5)
            for count, column in enumerate(codes[train][near].T, 1):
                votes[nth, column] += 1
                if count in tried:
                    losses = -np.log(votes[nth, codes[held]] / votes.sum(1))
                    right = votes.argmax(axis=1) == codes[held]
                    figures = count, float(losses.mean()), float(right.mean())
                    for curve, figure in zip(self.curves_.values(), figures, strict=True):
                        curve.append(figure)
            self.neighbours_ = tried[int(np.argmin(self.curves_["validation_loss"]))]
        self._remember(X, codes, self.neighbours_)

    def _remember(self, X: Features, codes: Rows, neighbours: int) -> None:
        self._features, self._codes, self.n_samples_ = X, codes, len(X)
        self._scaling = standard(X)
        self._voting = KNeighborsClassifier(neighbours, algorithm="brute")
        self._voting.fit(scaled(X, *self._scaling), codes)

    def _logits(self, X: Features) -> Floats:
        with threadpool_limits(1):
            shares = self._voting.predict_proba(scaled(X, *self._scaling))
        return np.asarray(np.log(shares * self._voting.n_neighbors + 0.5))

    def tensors(self) -> dict[str, NDArray[Any]]:
        return {"features": self._features, "codes": self._codes}

    def layout(self) -> Layout:
        n, f = self.n_samples_, self.n_features_in_
        return {"features": ("float32", (n, f)), "codes": ("int64", (n,))}

    def restore(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        codes = tensors["codes"]
        if not np.array_equal(np.unique(codes), np.arange(len(self.classes_))):
            raise ValueError("codes must name every class")
        if not 1 <= self.neighbours_ <= len(codes):
            raise ValueError(f"neighbours_ must be 1 to {len(codes)}")
        self._remember(tensors["features"], codes, self.neighbours_)
