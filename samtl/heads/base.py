"""What heads and baselines have in common, and the base of heads on pooled features.

A head is a file `samtl/heads/NAME.py` with a class `Head`, derived from `PooledHead` or `samtl.heads.grid.GridHead`. It
implements the abstract methods of its base. Two more methods are optional and allow warm starts in a sweep:
`start_from(other)` makes the next fit start from a head fitted to part of the same samples, and `gains(n, task)`
says whether that is worth it for n training samples. A head without `start_from` is always trained from scratch.
"""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, softmax
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from threadpoolctl import threadpool_limits

from samtl._runtime import Note
from samtl.errors import InputError
from samtl.metrics.calibration import fit_temperature
from samtl.metrics.multilabel import LIKELY
from samtl.splits import VALIDATION_SHARE

Rows = NDArray[np.int64]
Features = NDArray[np.float32]
Floats = NDArray[np.float64]
Layout = dict[str, tuple[str, tuple[int, ...]]]

CLASS_WEIGHTS = (None, "balanced")

_SLICE = 4096  # rows at a time, so that no float64 copy of all features exists


@dataclass(frozen=True)
class Epoch:
    """One pass over the training part.

    Losses are means of cross-entropy in nats (for masks plus the Dice loss; for several classes over these, too), or of
    squared errors in variances of the training part's numbers. Accuracies lie in [0, 1], and are NaN for numbers.
    Training figures are averages over the pass, with dropout; validation figures follow the pass.
    """

    epoch: int
    epochs: int
    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float

    def __str__(self) -> str:
        return f"epoch {self.epoch} of {self.epochs}: {_told(self)}"


@dataclass(frozen=True)
class Candidate:
    """One pair of hyper-parameters tried on the validation part."""

    scaling: str
    C: float
    validation_loss: float
    validation_accuracy: float
    iterations: int

    def __str__(self) -> str:
        return f"C = {self.C:.2g}, scaling {self.scaling}: {_told(self)}"


def _told(event: Epoch | Candidate) -> str:
    accuracy = event.validation_accuracy
    if accuracy != accuracy:
        return f"validation loss {event.validation_loss:.3g}"
    return f"validation accuracy {accuracy:.1%}"


#: From what a model computes, (n, K), to what it says.
LINKS: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("classification", "segmentation"), functools.partial(softmax, axis=1)),
    "multilabel": expit,
    "regression": lambda scores: scores,
}

OnEvent = Callable[[Epoch | Candidate | Note], None]


class Model(BaseEstimator):  # type: ignore[misc]  # sklearn has no types
    """A head or a baseline: a scikit-learn estimator that `samtl.heads.io` can save."""

    #: Fitted attributes, beside `tensors()`, that are saved: plain JSON values.
    facts: ClassVar[tuple[str, ...]] = ()

    random_state: Any
    task_: str  #: `classification`, `multilabel`, `regression` or `segmentation`
    classes_: NDArray[Any]  #: (K,) labels, ascending: the order of the outputs
    shape_: tuple[int, ...] = ()  #: of a sample; () if samples differ
    columns_: tuple[str, ...] = ()  #: names of the features, if the model was saved with them
    curves_: dict[str, list[Any]]  #: figures of each epoch or candidate; not saved

    @abstractmethod
    def _check(self) -> None:
        """Raise ValueError if a parameter is out of its range."""

    @abstractmethod
    def adopt(self, task: str, classes: Sequence[Any], shape: Sequence[int]) -> None:
        """Set what the model is for, before it is trained or restored; raises InputError if it cannot be."""

    @abstractmethod
    def tensors(self) -> dict[str, NDArray[Any]]:
        """Return the arrays that predictions are made from, by role."""

    @abstractmethod
    def layout(self) -> Layout:
        """Return dtype and shape of each of `tensors()`, from parameters, facts and what `adopt` set alone."""

    @abstractmethod
    def restore(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        """Take arrays that match `layout()`; the model then predicts as the one that returned them."""


class PooledHead(ClassifierMixin, Model):  # type: ignore[misc]
    """A scikit-learn classifier of (n, F) feature rows, or what other tasks have in its place."""

    n_features_in_: int
    task_ = "classification"
    calibrate, temperature_ = False, 1.0
    #: The store's array that each task reads.
    tiers: ClassVar[dict[str, str]] = {"classification": "pooled"}

    def adopt(self, task: str, classes: Sequence[Any], shape: Sequence[int]) -> None:
        labels = np.array(classes)
        fewest = fewest_classes(task)
        if labels.ndim != 1 or labels.dtype.kind not in "iU" or len(labels) < fewest:
            raise InputError(f"classes must be a list of {fewest} or more integers or strings")
        if task not in self.tiers or len(shape) != 1 or shape[0] < 1:
            raise InputError(
                f"this head on pooled features is for {' or '.join(self.tiers)} of rows (F,), not for {task} of "
                f"{tuple(shape)}"
            )
        self.task_, self.classes_, self.columns_ = task, labels, ()
        self.shape_ = (int(shape[0]),)
        self.n_features_in_ = self.shape_[0]

    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        validation: tuple[ArrayLike, ArrayLike] | None = None,
        on_event: OnEvent | None = None,
        task: str = "classification",
    ) -> Self:
        """Train, making every choice on the validation part.

        Raises ValueError, as scikit-learn does, for wrong X or y, a single class, or a parameter out of its range.

        Parameters
        ----------
        X : (n, F) array_like
            Features, finite; used as float32.
        y : (n,) array_like
            Labels: integers or strings. For `multilabel`, (n, K) of 0 and 1; for `regression`, numbers.
        validation : (Xv, yv), optional
            By default a fifth of each class of X, drawn with `random_state`.
        on_event : callable, optional
            Called with each `Epoch` or `Candidate`.
        task : str
            One of `tiers`.
        """
        self._check()
        if task not in self.tiers:
            raise ValueError(f"the head is for {' or '.join(self.tiers)}, not for {task}")
        checked: dict[str, Any] = {"dtype": np.float32, "multi_output": task == "multilabel"}
        rows, labels = validate_data(self, X, y, **checked)
        self.task_ = task
        self.classes_, codes = _coded(task, labels)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        if validation is None:
            alike = np.zeros(len(rows), dtype=np.int64)
            train, held = _cut(codes if task == "classification" else alike, seed)
        else:
            Xv, yv = validate_data(self, *validation, reset=False, **checked)
            train, held = np.arange(len(rows)), len(rows) + np.arange(len(Xv))
            rows = np.concatenate([rows, Xv])
            codes = np.concatenate([codes, _coded(task, yv, self.classes_)[1]])
        self.shape_, self.columns_, self.temperature_ = rows.shape[1:], (), 1.0
        if self.calibrate:
            if task != "classification":
                raise ValueError(f"calibrate is for classification, not for {task}")
            alone = clone(self).set_params(calibrate=False).fit(rows[train], codes[train])
            self.temperature_ = fit_temperature(alone._logits(rows[held]), codes[held])
        self._fit(rows, codes, train, held, seed, on_event or (lambda event: None))
        return self

    def outputs(self, X: ArrayLike) -> Floats:
        """Compute the probability of each class, (n, F) to (n, K), or the predicted number, (n, 1).

        In float64, so that a row's values do not depend on the rows beside it.
        """
        check_is_fitted(self)
        rows = validate_data(self, X, reset=False, dtype=np.float32)
        logits = [self._logits(rows[i : i + _SLICE]) for i in range(0, len(rows), _SLICE)]
        return np.asarray(LINKS[self.task_](np.concatenate(logits) / self.temperature_))

    def predict_proba(self, X: ArrayLike) -> Floats:
        """Compute the probability of each class, (n, F) to (n, K); InputError if numbers are predicted."""
        if self.task_ == "regression":
            raise InputError("a head for regression has no probabilities: use predict")
        return self.outputs(X)

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the most probable label of each row, (n, F) to (n,).

        For `multilabel`, (n, K) int64, 1 for classes with a probability of at least 0.5; for `regression` the numbers.
        """
        found = self.outputs(X)
        if self.task_ == "multilabel":
            return (found >= LIKELY).astype(np.int64)
        if self.task_ == "regression":
            return found[:, 0]
        return np.asarray(self.classes_[found.argmax(axis=1)])

    @abstractmethod
    def _fit(
        self, X: Features, codes: Rows, train: Rows, held: Rows, seed: int, on_event: OnEvent
    ) -> None:
        """Learn from X[train], choose on X[held] (which may be empty).

        `codes` index `classes_`; for `multilabel` they are (n, K) of 0 and 1, for `regression` (n,) float64.
        """

    @abstractmethod
    def _logits(self, X: Features) -> Floats:
        """Compute unnormalised log-probabilities, (n, F) to (n, K)."""


class LinearHead(PooledHead):
    """A linear function of scaled features.

    Attributes
    ----------
    coef_ : (K, F) or, of a number, (F,) float64
        Weights of the scaled features, one row for each class, also of two classes.
    intercept_ : (K,) float64
    mean_, factor_ : (F,) float64
        Features are scaled as (X - mean_) * factor_; the factor of a constant column is 0.
    """

    coef_: Floats
    intercept_: Floats
    mean_: Floats
    factor_: Floats

    def _logits(self, X: Features) -> Floats:
        with threadpool_limits(1, "blas"):
            scaled = (X - self.mean_) * self.factor_
            return np.asarray(scaled @ np.atleast_2d(self.coef_).T + self.intercept_)

    def tensors(self) -> dict[str, NDArray[Any]]:
        return {role: getattr(self, f"{role}_") for role in ("mean", "factor", "coef", "intercept")}

    def layout(self) -> Layout:
        k, f = len(self.classes_), self.n_features_in_
        coef = (f,) if self.task_ == "regression" else (k, f)
        shapes = {"mean": (f,), "factor": (f,), "coef": coef, "intercept": (k,)}
        return {role: ("float64", shape) for role, shape in shapes.items()}

    def restore(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        for role, array in tensors.items():
            setattr(self, f"{role}_", array)


_RANGES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "positive": ("a finite number above 0", lambda value: value > 0),
    "not negative": ("a finite number not below 0", lambda value: value >= 0),
    "share": ("a number in [0, 1)", lambda value: 0 <= value < 1),
}


def check_ranges(model: Model, **ranges: int | str) -> None:
    """Raise ValueError for the first parameter that is out of its range: one of `_RANGES`, or multiples of a number."""
    for name, kind in ranges.items():
        value = getattr(model, name)
        if value is None and getattr(type(model), name) is None:
            continue
        truth = isinstance(value, (bool, np.bool_))  # which is a number, too
        if isinstance(kind, int):
            expected = f"a multiple of {kind}" if kind > 1 else "a whole number from 1"
            whole = isinstance(value, (int, np.integer)) and not truth
            holds = whole and value >= kind and value % kind == 0
        else:
            expected, inside = _RANGES[kind]
            number = isinstance(value, (int, float, np.number)) and np.isfinite(value)
            holds = bool(number and not truth and inside(value))
        if not holds:
            raise ValueError(f"{name} must be {expected}, got {value!r}")


def check_choice(model: Model, name: str, among: Sequence[Any]) -> None:
    """Raise ValueError if a parameter is none of some values."""
    if (value := getattr(model, name)) not in among:
        raise ValueError(f"{name} must be {' or '.join(map(str, among))}, got {value!r}")


def balanced(codes: NDArray[Any], n_classes: int) -> Floats:
    """Compute class weights, (K,), inversely proportional to how many samples a class has, of mean 1 over samples."""
    counts = np.bincount(codes, minlength=n_classes)
    return len(codes) / (n_classes * np.maximum(counts, 1))


def fewest_classes(task: str) -> int:
    """Return how many classes there must be at least: numbers are of one kind."""
    return 1 if task == "regression" else 2


def numbered(classes: Sequence[Any], task: str) -> NDArray[np.int64]:
    """Return classes as an array; raises InputError unless they are 0 to K - 1, and enough."""
    fewest = fewest_classes(task)
    if list(classes) != list(range(max(fewest, len(classes)))):
        raise InputError(
            f"expected at least {fewest} classes, numbered from 0, got {list(classes)}"
        )
    return np.array(classes, dtype=np.int64)


def _coded(
    task: str, y: NDArray[Any], classes: NDArray[Any] | None = None
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return classes and codes, as `PooledHead._fit` takes them; `classes` are those of the training part."""
    if task == "regression":
        return np.arange(1), y.astype(np.float64)
    if task == "multilabel":
        if y.ndim != 2 or y.shape[1] < 2 or not np.isin(y, (0, 1)).all():
            raise ValueError(f"y must be (n, K) of 0 and 1 for at least 2 classes, got {y.shape}")
        return np.arange(y.shape[1]), y.astype(np.int64)
    if classes is None:
        check_classification_targets(y)
        classes, codes = np.unique(y, return_inverse=True)
        if len(classes) < 2:
            raise ValueError(
                f"a classifier needs samples of at least 2 classes, got one class: {classes[0]!r}"
            )
        return classes, codes
    strange = np.setdiff1d(y, classes)
    if len(strange):
        raise ValueError(f"y of the validation part has labels unknown to y: {strange}")
    return classes, np.searchsorted(classes, y)


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


def standard(X: Features) -> tuple[Floats, Floats]:
    """Compute mean and reciprocal deviation of each column, which standardise it, (n, F) to (F,) and (F,)."""
    mean, deviation = moments(X)
    return mean, reciprocal(deviation)


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
