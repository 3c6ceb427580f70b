"""What a baseline is: a model that learns from the pixels of a dataset's images, not from a store.

A baseline is a file `samtl/baselines/NAME.py` with a class `Baseline` that implements the abstract methods below.
Two more methods are optional and allow warm starts in a sweep: `start_from(other)` makes the next fit start from a
baseline fitted to part of the same samples, and `gains(n, task)` says whether that is worth it for n training images.
A baseline without `start_from` is always trained from scratch.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from samtl.baselines.pixels import Rows
from samtl.datasets import Dataset
from samtl.errors import InputError
from samtl.heads import logreg
from samtl.heads.base import Features, OnEvent

Predictions = dict[str, NDArray[Any]]

REDUCTION = 32  # sides of squares are multiples of this, which the networks need


class PixelBaseline(BaseEstimator):  # type: ignore[misc]  # sklearn has no types
    """A classifier or segmenter of images, by their pixels.

    Attributes
    ----------
    task_ : str
        `classification` or `segmentation`.
    classes_ : (K,) int64
        0 to K - 1: indices into the dataset's classes.
    curves_ : dict of str to list
        Figures of the training, one entry for each epoch or candidate; not saved.
    weights : str
        After fitting, what the pretrained weights are: `official FILE`, `file FILE`, `untrained (random:SEED)`, or "".
    untrained : bool
        Whether weights that should be pretrained are random numbers.
    """

    #: Supported tasks.
    tasks: ClassVar[tuple[str, ...]] = ()
    #: Fitted attributes, beside tensors, that are saved with a baseline: plain JSON values.
    facts: ClassVar[tuple[str, ...]] = ("task_",)
    #: Whether `use_cache` saves work.
    caches: ClassVar[bool] = False

    random_state: Any
    task_: str
    classes_: NDArray[np.int64]
    curves_: dict[str, list[Any]]
    weights: str = ""
    untrained: bool = False
    shape_: tuple[int, ...] = ()
    columns_: tuple[str, ...] = ()

    def fit(
        self,
        dataset: Dataset,
        train_rows: ArrayLike,
        validation_rows: ArrayLike = (),
        on_event: OnEvent | None = None,
    ) -> Self:
        """Train; every choice is made on the validation part.

        Only the images of these rows are read, and their labels or masks.

        Parameters
        ----------
        dataset : Dataset
        train_rows, validation_rows : (n,) int
            Distinct indices into `dataset.sample_ids`. The validation part may be empty.
        on_event : callable, optional
            Called with each `Epoch` or `Candidate`.

        Raises
        ------
        InputError
            If the task is not supported, rows are invalid, an image or a mask cannot be read, a class has no training
            image, or a parameter is out of range.
        """
        self._check()
        train = as_rows(train_rows, dataset, "train_rows")
        held = as_rows(validation_rows, dataset, "validation_rows")
        both = np.intersect1d(train, held)
        if len(both):
            raise InputError(
                f"{len(both)} rows are both for training and for validation (first: {both[0]})"
            )
        if not len(train):
            raise InputError("a baseline needs at least one image to train on, got none")
        self.adopt(dataset.task, range(len(dataset.classes)))
        if self.task_ == "classification":
            labels = np.array(dataset.labels, dtype=np.int64)
            unlabelled = [row for row in np.append(train, held) if labels[row] < 0]
            if unlabelled:
                raise InputError(
                    f"image {dataset.sample_ids[unlabelled[0]]!r} has no label: leave it out"
                )
            lacking = np.setdiff1d(np.arange(len(dataset.classes)), labels[train])
            if len(lacking):
                raise InputError(
                    f"every class needs a training image, and {dataset.classes[lacking[0]]!r} has none: train on more "
                    "images"
                )
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        self._fit(dataset, train, held, seed, on_event or (lambda event: None))
        return self

    def predict(
        self, dataset: Dataset, rows: ArrayLike, *, image_size: int = 1024
    ) -> Iterator[NDArray[Any]]:
        """Predict in the order of `rows`, lazily, so that memory is bounded; labels and masks are not read.

        Parameters
        ----------
        dataset : Dataset
            With as many classes as the one that was trained on.
        rows : (n,) int
            Distinct indices into `dataset.sample_ids`.
        image_size : int
            Longest side of a class map.

        Returns
        -------
        iterator of ndarray
            Classification: blocks of (b, K) float64 probabilities, rows summing to 1. Segmentation: for each image a
            class map, (h, w) uint8 with (h, w) from `samtl.images.transforms.resized_shape`.

        Raises
        ------
        InputError
            If the dataset is for another task or has other classes; while iterating, if an image cannot be read.
        """
        found = self.predict_all(dataset, rows, image_size=image_size)
        return (next(iter(each.values())) for each in found)

    def predict_all(
        self, dataset: Dataset, rows: ArrayLike, *, image_size: int = 1024
    ) -> Iterator[Predictions]:
        """As `predict`, with the predictions of companions: dicts by name, the baseline's own first."""
        check_is_fitted(self, "classes_")
        chosen = as_rows(rows, dataset, "rows")
        if dataset.task != self.task_:
            raise InputError(
                f"this baseline was fitted for {self.task_}, and {dataset.name} is for {dataset.task}"
            )
        if len(dataset.classes) != len(self.classes_):
            raise InputError(
                f"this baseline knows {len(self.classes_)} classes, and {dataset.name} has {len(dataset.classes)}"
            )
        if image_size < 1:
            raise InputError(f"image_size must be at least 1, got {image_size}")
        return self._predict(dataset, chosen, image_size)

    def use_cache(self, cache: dict[Any, Any]) -> None:
        """Keep results that do not depend on the split in `cache`, to share them between fits on one dataset."""

    def cached_seconds(self) -> float:
        """Seconds that computing what was found in the cache once took, since the last call."""
        return 0.0

    def adopt(self, task: str, classes: Sequence[int], shape: Sequence[int] = ()) -> None:
        """Set the task and the classes, before fitting or restoring; images have no fixed `shape`.

        Raises
        ------
        InputError
            If the task is not supported, or classes are not numbered from 0.
        """
        if task not in self.tasks:
            name = type(self).__module__.rpartition(".")[2]
            raise InputError(f"the baseline {name} is for {' or '.join(self.tasks)}, not {task}")
        if list(classes) != list(range(max(2, len(classes)))):
            raise InputError(f"expected at least 2 classes, numbered from 0, got {list(classes)}")
        self.task_ = task
        self.classes_ = np.array(classes, dtype=np.int64)

    @abstractmethod
    def _check(self) -> None:
        """Raise InputError if a parameter is out of range."""

    @abstractmethod
    def _fit(self, dataset: Dataset, train: Rows, held: Rows, seed: int, on_event: OnEvent) -> None:
        """Train on the images `train`; choose on the images `held`, which may be empty."""

    @abstractmethod
    def _predict(self, dataset: Dataset, rows: Rows, image_size: int) -> Iterator[Predictions]:
        """The predictions of `predict_all`."""

    @abstractmethod
    def tensors(self) -> dict[str, NDArray[Any]]:
        """The arrays that predictions are made from, by role."""

    @abstractmethod
    def layout(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Dtype and shape of each of `tensors()`, from parameters, `facts` and `classes_` alone."""

    @abstractmethod
    def restore(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        """Load arrays that match `layout()`, after facts are set and `adopt` is called."""


def fit_logreg(
    dataset: Dataset, train: Rows, held: Rows, features: Features, seed: int, on_event: OnEvent
) -> logreg.Head:
    """Fit the head `logreg` to (n, F) features of the images `train` and `held`, in that order."""
    labels, n = np.array(dataset.labels, dtype=np.int64), len(train)
    validation = (features[n:], labels[held]) if len(held) else None
    head = logreg.Head(random_state=seed)
    return head.fit(features[:n], labels[train], validation, on_event)


def blank_logreg(classes: NDArray[np.int64], n_features: int) -> logreg.Head:
    """A head `logreg` that can be asked for its `layout()`, or restored."""
    head = logreg.Head()
    head.classes_, head.n_features_in_ = classes, n_features
    return head


def as_rows(rows: ArrayLike, dataset: Dataset, name: str) -> Rows:
    """Row numbers as (n,) int64; InputError unless they are distinct indices of the dataset's images."""
    found = np.asarray(rows)
    if not found.size:
        return np.empty(0, dtype=np.int64)
    if found.ndim != 1 or found.dtype.kind not in "iu" or len(np.unique(found)) < len(found):
        raise InputError(
            f"{name} must be distinct and (n,) int, got shape {found.shape} of {found.dtype}"
        )
    if found.min() < 0 or found.max() >= len(dataset):
        raise InputError(
            f"{name} must lie between 0 and {len(dataset) - 1}, got {found.min()} to {found.max()}"
        )
    return found.astype(np.int64)


_RANGES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "count": ("a whole number from 1", lambda v: v >= 1 and isinstance(v, (int, np.integer))),
    "side": (f"a multiple of {REDUCTION}", lambda v: v >= REDUCTION and v % REDUCTION == 0),
    "positive": ("a number above 0", lambda v: v > 0),
    "not negative": ("a number not below 0", lambda v: v >= 0),
    "share": ("a number in [0, 1)", lambda v: 0 <= v < 1),
}


def check_ranges(baseline: PixelBaseline, **ranges: str) -> None:
    """Raise InputError for the first parameter that is out of its range, one of `_RANGES`."""
    for name, kind in ranges.items():
        value = getattr(baseline, name)
        expected, holds = _RANGES[kind]
        number = isinstance(value, (int, float, np.number)) and np.isfinite(value)
        if not number or not holds(value):
            raise InputError(f"{name} must be {expected}, got {value!r}")
