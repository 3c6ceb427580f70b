"""The base of heads on pooled features, and the events that every head reports.

A head is a file `samtl/heads/NAME.py` with a class `Head`, derived from `PooledHead` or `samtl.heads.grid.GridHead`. It
implements the abstract methods of its base. Two more methods are optional and allow warm starts in a sweep:
`start_from(other)` makes the next fit start from a head fitted to part of the same samples, and `gains(n, task)`
says whether that is worth it for n training samples. A head without `start_from` is always trained from scratch.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from samtl.errors import InputError
from samtl.splits import VALIDATION_SHARE

Rows = NDArray[np.int64]
Features = NDArray[np.float32]
Floats = NDArray[np.float64]
Layout = dict[str, tuple[str, tuple[int, ...]]]

_SLICE = 4096  # rows at a time, so that no float64 copy of all features exists


@dataclass(frozen=True)
class Epoch:
    """One pass over the training part.

    Losses are means of cross-entropy in nats (for masks plus the Dice loss), accuracies lie in [0, 1]. Training figures
    are averages over the pass, with dropout; validation figures follow the pass.
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
    """A scikit-learn classifier of (n, F) feature rows."""

    random_state: Any
    classes_: NDArray[Any]  #: (K,) labels, ascending; columns of `predict_proba` are in this order
    n_features_in_: int
    curves_: dict[str, list[Any]]  #: figures of each epoch or candidate; not saved with a head
    columns_: tuple[str, ...] = ()  #: names of the features, if the head was saved with them
    #: The store's array that each task reads.
    tiers: ClassVar[dict[str, str]] = {"classification": "pooled"}
    #: Fitted attributes, beside arrays, that are saved with a head: plain JSON values.
    facts: ClassVar[tuple[str, ...]] = ()
    task_: ClassVar[str] = "classification"

    @property
    def shape_(self) -> tuple[int, ...]:
        """Shape of a sample, (F,), once fitted."""
        return (self.n_features_in_,)

    def adopt(self, task: str, classes: Sequence[Any], shape: Sequence[int]) -> None:
        """Set what a saved head is for, before `restore`; raises InputError if no head on pooled features can be."""
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
        """Train, making every choice on the validation part.

        Parameters
        ----------
        X : (n, F) array_like
            Features, finite; used as float32.
        y : (n,) array_like
            Labels: integers or strings.
        validation : (Xv, yv), optional
            By default a fifth of each class of X, drawn with `random_state`.
        on_event : callable, optional
            Called with each `Epoch` or `Candidate`.

        Raises
        ------
        ValueError
            For wrong X or y, or a single class (scikit-learn's convention).
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
        """Compute the probability of each class, (n, F) to (n, K).

        In float64, so that a row's values do not depend on the rows beside it.
        """
        check_is_fitted(self)
        rows = validate_data(self, X, reset=False, dtype=np.float32)
        logits = [self._logits(rows[i : i + _SLICE]) for i in range(0, len(rows), _SLICE)]
        return np.asarray(softmax(np.concatenate(logits), axis=1))

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the most probable label of each row, (n, F) to (n,)."""
        chances = self.predict_proba(X)
        return np.asarray(self.classes_[chances.argmax(axis=1)])

    @abstractmethod
    def _check(self) -> None:
        """Raise ValueError if a parameter is out of its range."""

    @abstractmethod
    def _fit(
        self, X: Features, codes: Rows, train: Rows, held: Rows, seed: int, on_event: OnEvent
    ) -> None:
        """Learn from X[train], choose on X[held] (which may be empty); `codes` index `classes_`."""

    @abstractmethod
    def _logits(self, X: Features) -> Floats:
        """Compute unnormalised log-probabilities, (n, F) to (n, K)."""

    @abstractmethod
    def tensors(self) -> dict[str, NDArray[Any]]:
        """Return the arrays that predictions are made from, by role."""

    @abstractmethod
    def layout(self) -> Layout:
        """Return dtype and shape of each of `tensors()`, from parameters, `classes_` and `n_features_in_` alone."""

    @abstractmethod
    def restore(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        """Take arrays that match `layout()`; the head then predicts as the one that returned them."""


def check_training(head: Any) -> None:
    """Raise ValueError if a parameter of a head that learns by gradient steps is out of its range."""
    for name in ("epochs", "batch_size", "patience"):
        value = getattr(head, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value!r}")
    if head.lr is not None and not head.lr > 0:
        raise ValueError(f"lr must be above 0, got {head.lr!r}")
    if not head.weight_decay >= 0:
        raise ValueError(f"weight_decay must not be below 0, got {head.weight_decay!r}")
    if not 0 <= head.dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), got {head.dropout!r}")


def moments(X: Features) -> tuple[Floats, Floats]:
    """Compute mean and standard deviation of each column, (n, F) to (F,) and (F,), in float64.

    The deviation of a column that varies by less than float32 resolves at its mean is exactly 0.
    """
    mean = X.mean(axis=0, dtype=np.float64)
    square = np.zeros_like(mean)
    for i in range(0, len(X), _SLICE):
        square += ((X[i : i + _SLICE] - mean) ** 2).sum(axis=0)
    deviation = np.sqrt(square / len(X))
    deviation[deviation <= np.finfo(np.float32).eps * abs(mean)] = 0
    return mean, deviation


def reciprocal(deviation: Floats) -> Floats:
    """Compute 1 / deviation, and 0 for a constant column, which is thereby ignored whatever it holds later."""
    out = np.zeros_like(deviation)
    np.divide(1.0, deviation, out=out, where=deviation > 0)
    return out


def scaled(X: Features, mean: Floats, factor: Floats) -> Features:
    """Compute (X - mean) * factor in float64, stored as float32."""
    out = np.empty(X.shape, dtype=np.float32)
    with np.errstate(over="ignore"):  # training reports infinity
        for i in range(0, len(X), _SLICE):
            out[i : i + _SLICE] = (X[i : i + _SLICE] - mean) * factor
    return out


def _cut(codes: Rows, seed: int) -> tuple[Rows, Rows]:
    """Draw a fifth of each class, at least one sample of a class of two or more."""
    random = np.random.default_rng(seed)
    held = []
    for code in np.unique(codes):
        members = random.permutation(np.flatnonzero(codes == code))
        n = min(max(round(VALIDATION_SHARE * len(members)), 1), len(members) - 1)
        held.append(members[:n])
    taken = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(codes)), taken), taken
