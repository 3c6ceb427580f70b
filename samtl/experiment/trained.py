"""A trained head as scikit-learn has classifiers: it predicts arrays of features, or the rows of a store."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin

from samtl.errors import InputError
from samtl.experiment.features import AT_ONCE
from samtl.experiment.predict import read_trained, require_encoder
from samtl.experiment.run import Run, read_run
from samtl.images.transforms import IGNORE
from samtl.metrics.multilabel import LIKELY
from samtl.store.reader import Store
from samtl.store.reader.views import row_numbers

Part = tuple[NDArray[Any], Any, NDArray[Any]]  # features, their columns, height and width of images


class TrainedHead(BaseEstimator):  # type: ignore[misc]  # sklearn has no types
    """The head of a run; made by `samtl.load_head`.

    Attributes
    ----------
    class_names : tuple of str
        Of measurements, their name.
    tier : str
        The store's array that it was trained on.
    """

    def __init__(self, run: str | Path) -> None:
        self.run = run
        self._trained = read_trained(run)
        if self._trained.kind == "baseline":
            raise InputError(
                f"{run} is the run of a baseline, which reads images: use samtl.predict(run, images)"
            )
        self.class_names, self.tier = self._trained.classes, self._trained.features
        self.classes_: NDArray[Any] = (
            self._trained.model.classes_
        )  # by which scikit-learn knows that it is fitted

    def fit(self, X: Any, y: Any = None) -> Self:
        """Raise InputError: it is trained, and would predict samples that it learnt from."""
        raise InputError(
            f"the head of {self.run} is trained already: samtl.fit_head trains another one; to use it as it is, wrap "
            "it in sklearn.frozen.FrozenEstimator"
        )

    def predict(self, X: ArrayLike | Store, rows: ArrayLike | None = None) -> NDArray[Any]:
        """Predict what `Store.features` returns as y.

        Parameters
        ----------
        X : (n, ...) array_like or Store
            Features as in the store's array `tier`, of the columns that the head learnt from; or a store that was made
            with the same encoder.
        rows : array_like of int, optional
            Of a store; by default all, which must be embedded.

        Returns
        -------
        (n,) ndarray
            The most probable class, an index of `class_names`. `multilabel`: (n, K), 1 for each class with a
            probability from 0.5. `regression`: numbers. `segmentation`: (n, S, S) uint8, on the encoder's square as a
            store's `mask`; beyond an image of a store they are 255.

        Raises
        ------
        InputError
            If features have another shape, or rows are not embedded.
        MismatchError
            If the store was made with another encoder.
        """
        task = self._trained.task
        if task == "segmentation":
            return self._joined(self._masks(*part) for part in self._parts(X, rows))
        found = self._joined(self._answers(*part) for part in self._parts(X, rows))
        if task == "regression":
            return found[:, 0]
        if task == "multilabel":
            return (found >= LIKELY).astype(np.int64)
        return np.asarray(self.classes_[found.argmax(axis=1)])

    def _answers(self, features: NDArray[Any], columns: Any, sizes: NDArray[Any]) -> Any:
        side = int(self._trained.identity["image_size"])
        return self._trained.answers(features, columns, sizes, side, own=False)

    def _masks(
        self, features: NDArray[Any], columns: Any, sizes: NDArray[Any]
    ) -> NDArray[np.uint8]:
        side = int(self._trained.identity["image_size"])
        squares = np.full((len(features), side, side), IGNORE, np.uint8)
        for square, mask in zip(squares, self._answers(features, columns, sizes), strict=True):
            square[: mask.shape[0], : mask.shape[1]] = mask
        return squares

    def _joined(self, parts: Iterator[NDArray[Any]]) -> NDArray[Any]:
        found = list(parts)
        if not found:
            raise InputError("there is nothing to predict: X has no rows")
        return np.concatenate(found)

    def _parts(self, X: ArrayLike | Store, rows: ArrayLike | None) -> Iterator[Part]:
        """Yield some rows at a time."""
        step, side = AT_ONCE[self._trained.task], int(self._trained.identity["image_size"])
        if not isinstance(X, Store):
            features = self._checked(X, rows)
            whole = np.full((len(features), 2), side)
            for i in range(0, len(features), step):
                yield features[i : i + step], self._trained.model.columns_, whole[i : i + step]
            return
        require_encoder(self._trained, X)
        chosen = row_numbers(X, np.arange(len(X)) if rows is None else rows)
        own = ("original_size",) if self._trained.task == "segmentation" else ()
        valid = X.valid(self.tier, *own)
        bad = [int(row) for row in chosen if 0 <= row < len(X) and not valid[row]]
        if bad:
            raise InputError(
                f"{len(bad)} rows of {X.path} hold no embedding, {X.sample_ids[bad[0]]!r} for one: name the rows to be "
                f"predicted, such as rows=numpy.flatnonzero(store.valid({self.tier!r}))"
            )
        columns = X.columns(self.tier) if self.tier == "pooled" else ()
        for i in range(0, len(chosen), step):
            some = chosen[i : i + step]
            sizes = X.read(*own, some) if own else np.zeros((len(some), 2))
            yield X.read(self.tier, some), columns, sizes

    def _checked(self, X: ArrayLike, rows: ArrayLike | None) -> NDArray[Any]:
        """Return features that have the shape of those that were learnt from."""
        if rows is not None:
            raise InputError("rows are chosen of a store; of an array, take X[rows]")
        features, shape = np.asarray(X), self._trained.model.shape_
        if features.shape[1:] != shape:
            columns = self._trained.columns
            told = f", the columns {', '.join(columns)}" if columns else ""
            raise InputError(
                f"the head of {self.run} takes features (n, {', '.join(map(str, shape))}) of {self.tier}{told}, got "
                f"{features.shape}"
            )
        return features


class TrainedClassifier(ClassifierMixin, TrainedHead):  # type: ignore[misc]
    """A head that predicts classes.

    Attributes
    ----------
    classes_ : (K,) ndarray
        The labels 0 to K - 1, whose names are `class_names`: the columns of probabilities.
    """

    def predict_proba(self, X: ArrayLike | Store, rows: ArrayLike | None = None) -> NDArray[Any]:
        """Compute the probability of each class, (n, K); parameters and errors are those of `predict`.

        Of a segmentation (n, K, 4 side, 4 side), for features (n, channels, side, side).
        """
        if self._trained.task == "segmentation":
            chances = self._trained.model.predict_proba
            return self._joined(chances(features) for features, _, _ in self._parts(X, rows))
        return self._joined(self._answers(*part) for part in self._parts(X, rows))


class TrainedRegressor(RegressorMixin, TrainedHead):  # type: ignore[misc]
    """A head that predicts numbers."""


def load_head(run: str | Path | Run) -> TrainedClassifier | TrainedRegressor:
    """Load the head of a run, to predict arrays of features or the rows of a store.

    Parameters
    ----------
    run : path or Run
        A run folder, or what `fit_head` returned.

    Returns
    -------
    TrainedClassifier or TrainedRegressor
        With `predict` and `score`, and `predict_proba` and `classes_` of classes, as scikit-learn's have them.

    Raises
    ------
    InputError
        The folder is no run of a head, or is damaged.
    """
    numbers = read_run(run).task == "regression"
    return (TrainedRegressor if numbers else TrainedClassifier)(os.fspath(run))
