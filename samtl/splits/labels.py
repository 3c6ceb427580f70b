"""Labels of samples as arrays: class indices, sets of classes, or numbers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Of a class index if there is none, and of every class of a sample whose set of classes is not known.
NO_LABEL = -1


def label_array(task: str, labels: Sequence[Any], n_classes: int) -> NDArray[Any]:
    """Convert the labels of a dataset with K classes to an array.

    `multilabel`: tuples of class indices, None if not known, to (N, K) int8, 1 for classes that apply, 0 for others and
    -1 if not known; IndexError if a class is not there. `regression`: numbers, NaN or None if not known, to (N,)
    float64. Other tasks: class indices, -1 if not known, to (N,) int64.
    """
    if task == "multilabel":
        sets = [() if classes is None else classes for classes in labels]
        every = np.fromiter(itertools.chain.from_iterable(sets), np.int64)
        if len(every) and not 0 <= every.min() <= every.max() < n_classes:
            raise IndexError(f"of {n_classes} classes there is none with the number {every.max()}")
        found = np.zeros((len(labels), n_classes), np.int8)
        found[[classes is None for classes in labels]] = NO_LABEL
        found[np.arange(len(sets)).repeat(np.array([*map(len, sets)], np.int64)), every] = 1
        return found
    return np.array(labels, np.float64 if task == "regression" else np.int64)


def no_label(task: str) -> Any:
    """Return what a `Dataset` has in the place of a label that is not known."""
    return {"multilabel": None, "regression": math.nan}.get(task, NO_LABEL)


def known(labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Mark the samples that have a label in an array that `label_array` made."""
    floats = labels.dtype.kind == "f"
    found: NDArray[np.bool_] = np.isfinite(labels) if floats else labels >= 0
    return found if labels.ndim == 1 else np.asarray(found.all(axis=1))


def label_texts(labels: NDArray[Any], classes: Sequence[str]) -> list[str]:
    """Write labels as text: the class, or several with `;` between them, or the number; "" if there is none."""
    if labels.dtype.kind == "f":
        return ["" if label != label else f"{label!r}" for label in labels.tolist()]
    if labels.ndim == 1:
        return [(*classes, "")[label] for label in labels.tolist()]
    names = np.array([*classes], dtype=object)
    return [";".join(names[row > 0]) for row in labels]


def class_counts(labels: NDArray[Any], classes: Sequence[str]) -> dict[str, int]:
    """Count the samples of each class; nothing if labels are numbers."""
    if labels.dtype.kind == "f":
        return {}
    one_each = labels.ndim == 1
    counts = (
        np.bincount(labels[labels >= 0], minlength=len(classes))
        if one_each
        else (labels > 0).sum(axis=0)
    )
    return dict(zip(classes, counts.tolist(), strict=True))


def strata_of(labels: NDArray[Any], fewest: int = 3) -> NDArray[np.int64]:
    """Assign each sample of (N, K) sets of classes to its rarest class, for splits that keep rare classes in all parts.

    Classes that would have less than `fewest` samples, one for each part, share a stratum with samples without any.
    """
    counts = (labels > 0).sum(axis=0)
    strata: NDArray[np.int64] = np.where(labels > 0, counts, len(labels) + 1).argmin(axis=1)
    strata[~(labels > 0).any(axis=1)] = labels.shape[1]
    sizes = np.bincount(strata, minlength=labels.shape[1] + 1)
    strata[sizes[strata] < fewest] = labels.shape[1]
    return strata
