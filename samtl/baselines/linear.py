"""Logistic regression on a row of features of each image, for the baselines that describe images and do not train."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samtl.baselines.pixels import Rows
from samtl.datasets import Dataset
from samtl.heads import logreg
from samtl.heads.base import Features, OnEvent


def fit_logreg(
    dataset: Dataset, train: Rows, held: Rows, features: Features, seed: int, on_event: OnEvent
) -> logreg.Head:
    """Fit the head `logreg`.

    Parameters
    ----------
    dataset : Dataset
        For the labels.
    train, held : (n,) int64
        Rows to learn from and to choose the penalty on; where there are none of these, the head draws its own.
    features : (n, F) float32
        Of `train` and `held`, in that order.
    """
    labels = np.array(dataset.labels, dtype=np.int64)
    n = len(train)
    head = logreg.Head(random_state=seed)
    validation = (features[n:], labels[held]) if len(held) else None
    head.fit(features[:n], labels[train], validation, on_event)
    return head


def blank_logreg(classes: NDArray[np.int64], n_features: int) -> logreg.Head:
    """Make a head that knows its classes and features, to ask its `layout()` or to restore it."""
    head = logreg.Head()
    head.classes_, head.n_features_in_ = classes, n_features
    return head


def restore_logreg(
    classes: NDArray[np.int64], tensors: Mapping[str, NDArray[Any]], n_features: int
) -> logreg.Head:
    """Make a head that predicts as the one whose tensors these are."""
    head = blank_logreg(classes, n_features)
    head.restore(tensors)
    return head
