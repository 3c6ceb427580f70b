"""What a baseline is: it learns from the pixels of some of a dataset's images and predicts on others.

A baseline is a file `samtl/baselines/NAME.py` with a class `Baseline`. It fills in what is marked abstract here.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from samtl.baselines.pixels import Rows
from samtl.datasets import Dataset
from samtl.errors import InputError
from samtl.heads.base import OnEvent

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
        What was seen on the way, one entry for each epoch or candidate. Not kept when a baseline is saved.
    weights : str
        After fitting, what the pretrained weights are: `official FILE`, `file FILE`, `untrained (random:SEED)`, or ""
        where there are none.
    untrained : bool
        Whether weights that should be pretrained are random numbers.
    """

    #: What it can be fitted to.
    tasks: ClassVar[tuple[str, ...]] = ()
    #: Fitted attributes, beside tensors, that are saved with a baseline: plain JSON values.
    facts: ClassVar[tuple[str, ...]] = ("task_",)

    #: Whether `use_cache` is of use.
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
        """Learn, choosing everything that is to be chosen on the validation part.

        Nothing of the dataset is read but the images of these rows, and their labels or masks.

        Parameters
        ----------
        dataset : Dataset
        train_rows, validation_rows : (n,) int
            Indices into `dataset.sample_ids`, none of them twice. The validation part may be empty.
        on_event : callable, optional
            Called with each `Epoch` or `Candidate`.

        Raises
        ------
        InputError
            Where the dataset's task is another, rows are not that, an image or a mask cannot be read, a class has no
            training image, or a parameter is out of its range.
        """
        self._check()
        train = as_rows(train_rows, dataset, "train_rows")
        held = as_rows(validation_rows, dataset, "validation_rows")
        twice = np.intersect1d(train, held)
        if len(twice):
            raise InputError(
                f"rows are for training or for validation, and {len(twice)} are for both (first: {twice[0]})"
            )
        if not len(train):
            raise InputError("a baseline needs at least one image to train on, got none")
        self.adopt(dataset.task, range(len(dataset.classes)))
        if self.task_ == "classification":
            _check_labels(dataset, train, held)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        self._fit(dataset, train, held, seed, on_event or (lambda event: None))
        return self

    def predict(
        self, dataset: Dataset, rows: ArrayLike, *, image_size: int = 1024
    ) -> Iterator[NDArray[Any]]:
        """Predict image after image, in the order of `rows`, so that memory is bounded.

        Labels and masks of these rows are not read.

        Parameters
        ----------
        dataset : Dataset
            With as many classes as the one that was learnt from.
        rows : (n,) int
            Indices into `dataset.sample_ids`.
        image_size : int
            Longest side of a class map.

        Returns
        -------
        iterator of ndarray
            Classification: blocks of (b, K) float64 probabilities, rows summing to 1. Segmentation: for each image
            a class map, (h, w) uint8 with (h, w) from `samtl.images.transforms.resized_shape`.

        Raises
        ------
        InputError
            Where the dataset is for another task or has other classes; while iterating, where an image cannot be read.
        """
        return (
            next(iter(found.values()))
            for found in self.predict_all(dataset, rows, image_size=image_size)
        )

    def predict_all(
        self, dataset: Dataset, rows: ArrayLike, *, image_size: int = 1024
    ) -> Iterator[Predictions]:
        """Predict as `predict` does, with the baseline's companions.

        Returns
        -------
        iterator of dict of str to ndarray
            What `predict` gives, first, and the same of each companion, under their names.
        """
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

    def use_cache(self, kept: dict[Any, Any]) -> None:
        """Take a place for what does not hang on who is held out; all that are given the same one read one dataset."""

    def cached_seconds(self) -> float:
        """Give the seconds that it once took to make what was found in that place since this was last asked."""
        return 0.0

    def adopt(self, task: str, classes: Sequence[int], shape: Sequence[int] = ()) -> None:
        """Take on what a baseline is for, before it is fitted or restored; `shape` is (), since images are of any size.

        Raises
        ------
        InputError
            Where it is not for that task, or the classes are not numbered from 0.
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
        """Raise InputError where a parameter is out of its range."""

    @abstractmethod
    def _fit(self, dataset: Dataset, train: Rows, held: Rows, seed: int, on_event: OnEvent) -> None:
        """Learn from the images `train`, choose on the images `held` (which may be empty)."""

    @abstractmethod
    def _predict(self, dataset: Dataset, rows: Rows, image_size: int) -> Iterator[Predictions]:
        """Give the predictions of `predict_all`."""

    @abstractmethod
    def tensors(self) -> dict[str, NDArray[Any]]:
        """Give the arrays that predictions are made from, by role."""

    @abstractmethod
    def layout(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Give dtype and shape of each of `tensors()`, from parameters, `facts` and `classes_` alone."""

    @abstractmethod
    def restore(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        """Take arrays that match `layout()`; the baseline then predicts as the one that gave them.

        Facts are set and `adopt` is called before.
        """


def as_rows(rows: ArrayLike, dataset: Dataset, name: str) -> Rows:
    """Give row numbers as (n,) int64.

    Raises
    ------
    InputError
        Where they are not distinct whole numbers below the number of images.
    """
    found = np.asarray(rows)
    if not found.size:
        return np.empty(0, dtype=np.int64)
    if found.ndim != 1 or found.dtype.kind not in "iu":
        raise InputError(
            f"{name} must be a row of whole numbers, got shape {found.shape} of {found.dtype}"
        )
    if found.min() < 0 or found.max() >= len(dataset):
        raise InputError(
            f"{name} must lie from 0 to {len(dataset) - 1}, got {found.min()} to {found.max()}"
        )
    if len(np.unique(found)) < len(found):
        raise InputError(f"{name} must name each image once, and {len(found)} rows repeat some")
    return found.astype(np.int64)


def check_ranges(baseline: PixelBaseline, **ranges: str) -> None:
    """Check parameters that say how to train.

    Parameters
    ----------
    baseline : PixelBaseline
    **ranges : str
        Name of a parameter to its range: `count` (from 1), `positive`, `not negative`, or `share` ([0, 1)).

    Raises
    ------
    InputError
        Naming the first parameter that is out of its range.
    """
    rules: dict[str, tuple[str, Any]] = {
        "count": ("a whole number from 1", lambda v: v >= 1 and isinstance(v, (int, np.integer))),
        "positive": ("a number above 0", lambda v: v > 0),
        "not negative": ("a number not below 0", lambda v: v >= 0),
        "share": ("a number in [0, 1)", lambda v: 0 <= v < 1),
    }
    for name, kind in ranges.items():
        value = getattr(baseline, name)
        told, holds = rules[kind]
        number = isinstance(value, (int, float, np.number)) and np.isfinite(value)
        if not number or not holds(value):
            raise InputError(f"{name} must be {told}, got {value!r}")


def check_size(image_size: int) -> None:
    """Raise InputError where a square's side cannot be halved five times."""
    if image_size < REDUCTION or image_size % REDUCTION:
        raise InputError(f"image_size must be a multiple of {REDUCTION}, got {image_size!r}")


def _check_labels(dataset: Dataset, train: Rows, held: Rows) -> None:
    labels = np.array(dataset.labels, dtype=np.int64)
    for row in np.append(train, held):
        if labels[row] < 0:
            raise InputError(f"image {dataset.sample_ids[row]!r} has no label: leave it out")
    lacking = np.setdiff1d(np.arange(len(dataset.classes)), labels[train])
    if len(lacking):
        raise InputError(
            f"every class needs a training image, and {dataset.classes[lacking[0]]!r} has none: train on more images"
        )
