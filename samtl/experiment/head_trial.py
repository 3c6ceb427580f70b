"""A head on one split of a store, step by step: train, answer, score, write.

The held-out rows are read after the head is trained and everything about it is chosen, and are scored once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from samtl.errors import InputError
from samtl.experiment.features import (
    Data,
    Head,
    named_columns,
    shape_of,
    side_of,
)
from samtl.experiment.run import FitResult, RunFolder
from samtl.experiment.trial import (
    Clock,
    Parts,
    Scores,
    Trial,
    configured,
    require_pixels,
    score_classes,
    score_maps,
    score_masks,
)
from samtl.heads.base import PooledHead
from samtl.heads.grid import GridHead
from samtl.metrics import classification as metrics
from samtl.metrics.classification import Score
from samtl.store.reader import Store

FLOOR_FEATURES = "image_stats"
FLOOR_HEAD = "logreg"
_AT_ONCE = 4  # dense embeddings, and masks of the encoder's square, in memory at a time


class HeadTrial(Trial, ABC):
    """One head on one split of a store.

    Parameters
    ----------
    data : Data
    name : str
        The head's.
    head : Head
        Not trained yet.
    parts : Parts
    seed : int
    given : mapping
        What the user asked for, to be written down.
    warm_start : str
        The run whose weights training begins with, or "".
    streamed : bool
        Whether it is trained by passes over the store that other heads share, in their order.
    """

    def __init__(
        self,
        data: Data,
        name: str,
        head: Head,
        parts: Parts,
        seed: int,
        given: Mapping[str, Any],
        warm_start: str = "",
        streamed: bool = False,
    ) -> None:
        super().__init__(data.samples, parts, seed, warm_start)
        self.data, self.name, self.head = data, name, head
        self.labels, self.classes = data.samples.labels, data.samples.classes
        store = data.store
        decides = {
            "head": name,
            "features": data.array,
            "columns": named_columns(data.columns, store, data.array),
            "fingerprint": store.fingerprint,
            "samples": data.digest,
        }
        if data.array != "pooled":
            decides["order"] = "shared" if streamed else "own"
        about = {
            "path": str(given.get("store", store.path)),
            "name": store.name,
            "snapshot": store.snapshot,
            "samples": data.digests,
            "dataset": store.dataset,
            "identity": store.identity,
            "encoder": store.encoder,
            "weights": store.weights,
            "untrained": store.untrained,
        }
        self.config = self.described("head", head, decides, given, store=about)

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Within a `with` block, what a head calls a wrong value is the user's error."""
        try:
            yield
        except ValueError as error:  # a parameter out of its range
            raise InputError(f"the head {self.name} cannot be trained: {error}") from error

    @abstractmethod
    def train(self, clock: Clock) -> None:
        """Read the training part and learn from it."""

    @abstractmethod
    def answer(
        self, positions: NDArray[np.int64], features: NDArray[Any], folder: RunFolder | None
    ) -> None:
        """Predict some of the held-out samples, by their place among these, from their features."""

    @abstractmethod
    def scores(self) -> Scores:
        """Score the answers, once all held-out samples were predicted."""

    @abstractmethod
    def floor(self) -> tuple[dict[str, Score] | None, str]:
        """Score the floor on the same parts; or say why there is none."""

    @abstractmethod
    def check(self) -> None:
        """Refuse a training part that nothing can be learnt from, as far as the split does not see to that."""

    #: Held-out samples that are predicted at a time.
    at_once: ClassVar[int] = 512

    def score(self, folder: RunFolder) -> Scores:
        """Read and predict the held-out samples, and score the answers."""
        rows = self.parts.split.test
        read = self.data.features if isinstance(self.head, PooledHead) else self._stored
        for start in range(0, len(rows), self.at_once):
            positions = np.arange(start, min(start + self.at_once, len(rows)))
            self.answer(positions, read(rows[positions]), folder)
        return self.scores()

    def _fit_grid(self, head: GridHead, labels: NDArray[np.int64] | None, clock: Clock) -> None:
        """Train a head on batches; without labels, on masks."""
        training, validation = self.data.feeds(self.parts, labels)
        clock.start("fit")
        head.fit(
            training,
            validation,
            task=self.samples.task,
            n_classes=len(self.classes),
            shape=self.data.store.shape(self.data.array)[1:],
            on_event=clock.on_event,
        )

    def _stored(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        return self.data.store.read(self.data.array, rows)

    def conclude(
        self,
        folder: RunFolder,
        clock: Clock,
        scores: Scores,
        floor: dict[str, Score] | None,
        floor_missing: str,
        shared: Path | None = None,
    ) -> FitResult:
        """Write the run; with `shared`, its split goes there and probabilities are left out."""
        data, store = self.data, self.data.store
        return self.written(
            folder,
            clock,
            self.head,
            scores,
            store.name,
            data.left_out,
            shared,
            data.columns,
            kind="head",
            name=self.name,
            floor=floor,
            floor_missing=floor_missing,
            also={},
            features=data.array,
            fingerprint=store.fingerprint,
            snapshot=store.snapshot,
            store=store.name,
            dataset=store.dataset,
            encoder=store.encoder,
            weights=store.weights,
            untrained=store.untrained,
            note=store.note,
        )


class _Classification(HeadTrial):
    """One label for each sample."""

    def train(self, clock: Clock) -> None:
        train, held = self.parts.inner.train, self.parts.inner.test
        if isinstance(self.head, PooledHead):
            X, validation = self.data.features(train), self.data.features(held)
            clock.start("fit")
            self.head.fit(X, self.labels[train], (validation, self.labels[held]), clock.on_event)
            return
        self._fit_grid(self.head, self.labels, clock)

    def check(self) -> None:
        """See to nothing: splits have every class in both parts."""

    def answer(
        self, positions: NDArray[np.int64], features: NDArray[Any], folder: RunFolder | None
    ) -> None:
        if self.chances is None:
            self.chances = np.full((len(self.parts.split.test), len(self.classes)), np.nan)
        self.chances[positions] = self.head.predict_proba(features)

    def scores(self) -> Scores:
        assert self.chances is not None
        truth = self.labels[self.parts.split.test]
        return score_classes(truth, self.chances, len(self.classes), self.seed)

    def floor(self) -> tuple[dict[str, Score] | None, str]:
        """Logistic regression on image statistics."""
        store, inner = self.data.store, self.parts.inner
        parts = (inner.train, inner.test, self.parts.split.test)
        if FLOOR_FEATURES not in store.arrays:
            return None, f"the store has no {FLOOR_FEATURES}"
        valid = store.valid(FLOOR_FEATURES)
        absent = sum(int((~valid[rows]).sum()) for rows in parts)
        if absent:
            return None, f"the store has no {FLOOR_FEATURES} for {absent} of the rows"
        floor = configured("heads", FLOOR_HEAD, {}, self.seed)
        train, held, test = (self.data.features(rows, FLOOR_FEATURES) for rows in parts)
        y = self.labels
        floor.fit(train, y[parts[0]], validation=(held, y[parts[1]]))
        return metrics.bootstrap(y[parts[2]], floor.predict_proba(test), seed=self.seed), ""


class _Segmentation(HeadTrial):
    """A class for each pixel."""

    at_once = _AT_ONCE

    def train(self, clock: Clock) -> None:
        assert isinstance(self.head, GridHead)  # others have no tier for this task
        self.check()
        self._fit_grid(self.head, None, clock)

    def check(self) -> None:
        """Refuse a training part that lacks a class; takes note of the most frequent one."""
        pixels = np.zeros(len(self.classes), dtype=np.int64)
        for row in self.parts.inner.train:
            pixels += np.bincount(self._mask(row).ravel(), minlength=256)[: len(self.classes)]
        self._majority = int(np.argmax(pixels))
        require_pixels(self.classes, pixels)

    def answer(
        self, positions: NDArray[np.int64], features: NDArray[Any], folder: RunFolder | None
    ) -> None:
        assert isinstance(self.head, GridHead)
        if not hasattr(self, "_matrices"):
            k = len(self.classes)
            self._matrices = np.zeros((len(self.parts.split.test), k, k), dtype=np.int64)
        ids, rows = self.data.samples.ids, self.parts.split.test[positions]
        shapes = [shape_of(self.data.store, row) for row in rows]
        maps = self.head.class_maps(features, shapes, side_of(self.data.store))
        for position, row, guess in zip(positions.tolist(), rows, maps, strict=True):
            self._matrices[position] = score_maps(
                folder, position, ids[row], self._mask(row), guess, self.classes
            )

    def scores(self) -> Scores:
        return score_masks(list(self._matrices), self.seed)

    def floor(self) -> tuple[dict[str, Score] | None, str]:
        """The most frequent class everywhere: for roads, that nothing is a road."""
        matrices = []
        for row in self.parts.split.test:
            truth = self._mask(row)
            guess = np.full_like(truth, self._majority)
            matrices.append(score_maps(None, 0, "", truth, guess, self.classes))
        return score_masks(matrices, self.seed).metrics, ""

    def _mask(self, row: int) -> NDArray[np.uint8]:
        """The mask of a row without its padding."""
        height, width = shape_of(self.data.store, row)
        mask: NDArray[np.uint8] = self.data.store.row("mask", int(row))[:height, :width]
        return mask


def head_trial(
    data: Data,
    name: str,
    head: Head,
    parts: Parts,
    seed: int,
    given: Mapping[str, Any],
    warm_start: str = "",
    streamed: bool = False,
) -> HeadTrial:
    """Make the trial for a store's task."""
    kind = _Segmentation if data.store.task == "segmentation" else _Classification
    return kind(data, name, head, parts, seed, given, warm_start, streamed)


def stored_masks(
    store: Store, head: GridHead, rows: NDArray[np.int64]
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Predict the masks of some rows, a few at a time.

    Yields
    ------
    row : int
    classes : (height, width) uint8
        Class indices at the encoder's resolution, without padding.
    """
    side = side_of(store)
    for start in range(0, len(rows), _AT_ONCE):
        some = rows[start : start + _AT_ONCE]
        shapes = [shape_of(store, row) for row in some]
        maps = head.class_maps(store.read(head.tiers["segmentation"], some), shapes, side)
        yield from zip(some.tolist(), maps, strict=True)
