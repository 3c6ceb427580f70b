"""What heads on pooled features share: scikit-learn's estimator contract, checks, the inner part, saving.

A head is a file `samtl/heads/NAME.py` with a class `Head`. It fills in what is marked abstract here and nothing
else; rows of features come in as (n, F) arrays, wherever they were stored.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from samtl.errors import InputError
from samtl.splits import VALIDATION_SHARE

Rows = NDArray[np.int64]
Features = NDArray[np.float32]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Epoch:
    """One pass over the training part.

    Losses are mean cross-entropy in nats (of masks, with the Dice loss added, averaged over batches), accuracies lie in
    [0, 1]. The training figures are averages over the pass, with dropout on; the validation figures follow the pass.
    """

    epoch: int
    epochs: int
    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float

    def __str__(self) -> str:
        return f"epoch {self.epoch} of {self.epochs}: validation accuracy {self.validation_accuracy:.1%}"


@dataclass(frozen=True)
class Candidate:
    """One pair of hyper-parameters tried on the validation part."""

    scaling: str
    C: float
    validation_loss: float
    validation_accuracy: float
    iterations: int

    def __str__(self) -> str:
        return f"C = {self.C:.2g}, scaling {self.scaling}: validation accuracy {self.validation_accuracy:.1%}"


OnEvent = Callable[[Epoch | Candidate], None]


class PooledHead(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # sklearn has no types
    """A classifier of (n, F) feature rows.

    Attributes
    ----------
    classes_ : (K,) array
        The labels, ascending; columns of `predict_proba` are in this order.
    n_features_in_ : int
    curves_ : dict of str to list
        What was seen on the way, one entry for each epoch or candidate. Not kept when a head is saved.
    columns_ : tuple of str
        Names of the features, where the head was saved with them.
    """

    random_state: Any
    classes_: NDArray[Any]
    n_features_in_: int
    curves_: dict[str, list[Any]]
    columns_: tuple[str, ...] = ()
    #: Which of a store's arrays each task reads.
    tiers: ClassVar[dict[str, str]] = {"classification": "pooled"}
    #: Fitted attributes, beside arrays, that are saved with a head: plain JSON values.
    facts: ClassVar[tuple[str, ...]] = ()
    task_: ClassVar[str] = "classification"

    @property
    def shape_(self) -> tuple[int, ...]:
        """Shape of a sample, (F,), once fitted."""
        return (self.n_features_in_,)

    def adopt(self, task: str, classes: Sequence[Any], shape: Sequence[int]) -> None:
        """Take on what a saved head is for, before it is restored.

        Raises
        ------
        InputError
            Where that is no task, labels or shape of a head on pooled features.
        """
        labels = np.array(classes)
        if labels.ndim != 1 or labels.dtype.kind not in "iU" or len(labels) < 2:
            raise InputError("classes must be a list of 2 or more integers or strings")
        if task not in self.tiers or len(shape) != 1 or shape[0] < 1:
            raise InputError(
                f"a head on pooled features is for classification of rows (F,), not for {task} of {tuple(shape)}"
            )
        self.classes_ = labels
        self.n_features_in_ = int(shape[0])
        self.columns_ = ()

    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        validation: tuple[ArrayLike, ArrayLike] | None = None,
        on_event: OnEvent | None = None,
    ) -> Self:
        """Train, choosing everything that is to be chosen on the validation part.

        Parameters
        ----------
        X : (n, F) array_like
            Features, finite; used as float32.
        y : (n,) array_like
            Labels: integers or strings.
        validation : (Xv, yv), optional
            The part to choose on. Without it a fifth of each class of X is used for that, drawn with
            `random_state`.
        on_event : callable, optional
            Called with each `Epoch` or `Candidate`.

        Raises
        ------
        ValueError
            Where X or y are not that, or there is but one class (scikit-learn's own convention).
        """
        rows, labels = validate_data(self, X, y, dtype=np.float32)
        check_classification_targets(labels)
        self.classes_, codes = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                f"a classifier needs samples of at least 2 classes, got one class: {self.classes_[0]!r}"
            )
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        if validation is None:
            train, held = _cut(codes, seed)
        else:
            Xv, yv = validate_data(self, *validation, reset=False, dtype=np.float32)
            strange = np.setdiff1d(yv, self.classes_)
            if len(strange):
                raise ValueError(f"y of the validation part has labels unknown to y: {strange}")
            train, held = np.arange(len(rows)), len(rows) + np.arange(len(Xv))
            rows = np.concatenate([rows, Xv])
            codes = np.append(codes, np.searchsorted(self.classes_, yv))
        self.columns_ = ()
        self._fit(rows, codes, train, held, seed, on_event or (lambda event: None))
        return self

    def predict_proba(self, X: ArrayLike) -> Floats:
        """Give the probability of each class, (n, F) to (n, K) float64; rows sum to 1.

        Computed in float64, so that a row's figures do not hang on the rows beside it.
        """
        check_is_fitted(self)
        rows = validate_data(self, X, reset=False, dtype=np.float32)
        slices = [self._logits(rows[i : i + 4096]) for i in range(0, len(rows), 4096)]
        logits = np.concatenate(slices)
        logits -= logits.max(axis=1, keepdims=True)
        np.exp(logits, out=logits)
        logits /= logits.sum(axis=1, keepdims=True)
        return logits

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Give the likeliest label of each row, (n, F) to (n,)."""
        chances = self.predict_proba(X)
        return np.asarray(self.classes_[chances.argmax(axis=1)])

    @abstractmethod
    def _check(self) -> None:
        """Raise ValueError where a parameter is out of its range."""

    @abstractmethod
    def _fit(
        self, X: Features, codes: Rows, train: Rows, held: Rows, seed: int, on_event: OnEvent
    ) -> None:
        """Learn from X[train], choose on X[held] (which may be empty); `codes` index `classes_`."""

    @abstractmethod
    def _logits(self, X: Features) -> Floats:
        """Unnormalised log-probabilities, (n, F) to (n, K)."""

    @abstractmethod
    def tensors(self) -> dict[str, NDArray[Any]]:
        """Give the arrays that predictions are made from, by role."""

    @abstractmethod
    def layout(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Give dtype and shape of each of `tensors()`, from parameters, `classes_` and `n_features_in_` alone."""

    @abstractmethod
    def restore(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        """Take arrays that match `layout()`; the head then predicts as the one that gave them."""


def moments(X: Features) -> tuple[Floats, Floats]:
    """Mean and standard deviation of each column, (n, F) to (F,) and (F,), in float64.

    A column that varies by less than float32 resolves at its mean counts as constant: its deviation is exactly 0.
    """
    mean = X.mean(axis=0, dtype=np.float64)
    square = np.zeros_like(mean)
    for i in range(0, len(X), 4096):
        square += ((X[i : i + 4096] - mean) ** 2).sum(axis=0)
    deviation = np.sqrt(square / len(X))
    deviation[deviation <= np.finfo(np.float32).eps * abs(mean)] = 0
    return mean, deviation


def reciprocal(deviation: Floats) -> Floats:
    """1 / deviation, and 0 for a constant column, which thereby says nothing, whatever it holds later."""
    out = np.zeros_like(deviation)
    np.divide(1.0, deviation, out=out, where=deviation > 0)
    return out


def scaled(X: Features, mean: Floats, factor: Floats) -> Features:
    """(X - mean) * factor in float64, stored as float32, in slices so that no float64 copy of X exists."""
    out = np.empty(X.shape, dtype=np.float32)
    # What is far beyond the training part becomes infinite, which training tells of.
    with np.errstate(over="ignore"):
        for i in range(0, len(X), 4096):
            out[i : i + 4096] = (X[i : i + 4096] - mean) * factor
    return out


def _cut(codes: Rows, seed: int) -> tuple[Rows, Rows]:
    """Draw a fifth of each class, at least one where it has two; a single sample stays in training."""
    random = np.random.default_rng(seed)
    held = []
    for code in np.unique(codes):
        members = random.permutation(np.flatnonzero(codes == code))
        held.append(
            members[: min(max(round(VALIDATION_SHARE * len(members)), 1), len(members) - 1)]
        )
    taken = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(codes)), taken), taken
