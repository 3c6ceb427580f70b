"""What a baseline is: a model that learns from the pixels of a dataset's images, not from a store.

A baseline is a file `samtl/baselines/NAME.py` with a class `Baseline` that implements the abstract methods below.
Warm starts in a sweep are as for heads: see `samtl.heads.base`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from samtl.baselines.pixels import Rows
from samtl.datasets import Dataset
from samtl.errors import InputError
from samtl.heads import logreg, ridge
from samtl.heads.base import Features, Model, OnEvent, PooledHead, numbered

#: The head that each task's floor is fitted with.
LINEAR: dict[str, type[logreg.Head] | type[ridge.Head]] = {
    "classification": logreg.Head, "multilabel": logreg.Head, "regression": ridge.Head
}  # fmt: skip

Predictions = dict[str, NDArray[Any]]

REDUCTION = 32  # sides of squares are multiples of this, which the networks need


class PixelBaseline(Model):
    """A classifier or segmenter of images, by their pixels; `classes_` are indices into the dataset's classes."""

    #: Supported tasks.
    tasks: ClassVar[tuple[str, ...]] = ()
    facts: ClassVar[tuple[str, ...]] = ("task_",)
    #: Whether `use_cache` saves work.
    caches: ClassVar[bool] = False

    #: The pretrained weights: `official FILE`, `file FILE`, `untrained (random:SEED)`, or "" if there are none.
    weights: str = ""
    untrained: bool = False  #: whether weights that should be pretrained are random numbers

    def adopt(self, task: str, classes: Sequence[Any], shape: Sequence[int] = ()) -> None:
        if task not in self.tasks:
            raise InputError(
                f"the baseline {self.name} is for {' or '.join(self.tasks)}, not {task}"
            )
        self.task_, self.classes_ = task, numbered(classes, task)

    def fit(
        self,
        dataset: Dataset,
        train_rows: ArrayLike,
        validation_rows: ArrayLike = (),
        on_event: OnEvent | None = None,
    ) -> Self:
        """Train; every choice is made on the validation part.

        Only the images of these rows are read, and their labels or masks. Raises InputError if the task is not
        supported, an image or a mask cannot be read, a class has no training image, or a parameter is out of range.

        Parameters
        ----------
        dataset : Dataset
        train_rows, validation_rows : (n,) int
            Distinct indices into `dataset.sample_ids`, none in both parts. The validation part may be empty.
        on_event : callable, optional
            Called with each `Epoch` or `Candidate`.
        """
        try:
            self._check()
        except ValueError as error:
            raise InputError(str(error)) from error
        train, held = (np.asarray(rows, dtype=np.int64) for rows in (train_rows, validation_rows))
        self.adopt(dataset.task, range(len(dataset.classes)))
        if self.task_ == "classification":
            learnt = np.array(dataset.labels, dtype=np.int64)[train]
            for lacking in np.setdiff1d(self.classes_, learnt):
                raise InputError(
                    f"every class needs a training image, and {dataset.classes[lacking]!r} has none: train on more "
                    "images"
                )
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        self._fit(dataset, train, held, seed, on_event or (lambda event: None))
        return self

    def predict_all(
        self, dataset: Dataset, rows: ArrayLike, *, image_size: int = 1024
    ) -> Iterator[Predictions]:
        """Predict in the order of `rows`, lazily, so that memory is bounded; labels and masks are not read.

        Raises InputError if the dataset is for another task or has other classes and, while iterating, if an image
        cannot be read.

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
        iterator of dict
            By name, the baseline's own predictions, then those of its companions. Classification: blocks of (b, K)
            float64 probabilities, rows summing to 1. Multilabel: the same without the sum; regression: (b, 1)
            numbers. Segmentation: for each image a class map, (h, w) uint8 with (h, w)
            from `samtl.images.transforms.resized_shape`.
        """
        check_is_fitted(self, "classes_")
        if (dataset.task, len(dataset.classes)) != (self.task_, len(self.classes_)):
            raise InputError(
                f"this baseline was fitted for {self.task_} into {len(self.classes_)} classes, and {dataset.name} is "
                f"for {dataset.task} into {len(dataset.classes)}"
            )
        return self._predict(dataset, np.asarray(rows, dtype=np.int64), image_size)

    def use_cache(self, cache: dict[Any, Any]) -> None:
        """Keep results that do not depend on the split in `cache`, to share them between fits on one dataset."""

    def cached_seconds(self) -> float:
        """Return the seconds that computing what was found in the cache once took, since the last call."""
        return 0.0

    @property
    def name(self) -> str:
        """The baseline's name in the registry."""
        return type(self).__module__.rpartition(".")[2]

    @abstractmethod
    def _fit(self, dataset: Dataset, train: Rows, held: Rows, seed: int, on_event: OnEvent) -> None:
        """Train on the images `train`; choose on the images `held`, which may be empty."""

    @abstractmethod
    def _predict(self, dataset: Dataset, rows: Rows, image_size: int) -> Iterator[Predictions]:
        """Make the predictions of `predict_all`."""


def fit_linear(
    dataset: Dataset, train: Rows, held: Rows, features: Features, seed: int, on_event: OnEvent
) -> PooledHead:
    """Fit the task's linear head to (n, F) features of the images `train` and `held`, in that order."""
    labels, n = dataset.truth, len(train)
    validation = (features[n:], labels[held]) if len(held) else None
    head = LINEAR[dataset.task](random_state=seed)
    return head.fit(features[:n], labels[train], validation, on_event, dataset.task)


def blank_linear(task: str, classes: NDArray[Any], n_features: int) -> PooledHead:
    """Make a task's linear head that can be asked for its `layout()`, or restored."""
    head = LINEAR[task]()
    head.adopt(task, classes.tolist(), (n_features,))
    return head
