"""A head on one split of a store.

The held-out rows are read after the head is trained and everything about it is chosen, and are scored once.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from samtl.errors import InputError
from samtl.experiment.features import Data, Head, shape_of, side_of
from samtl.experiment.run import RunFolder
from samtl.experiment.trial import (
    Clock,
    Floors,
    MaskScores,
    Parts,
    Rows,
    Scores,
    Trial,
    require_pixels,
    score_classes,
)
from samtl.heads.base import PooledHead
from samtl.heads.grid import GridHead
from samtl.heads.logreg import Head as FloorHead
from samtl.store.reader import Store

FLOOR_FEATURES = "image_stats"
_AT_ONCE = 4  # dense embeddings, and masks of the encoder's square, in memory at a time


class HeadTrial(Trial):
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
        Whether other heads share its passes over the store.
    """

    #: Held-out samples that are predicted at a time.
    at_once: ClassVar[int] = 512

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
        self.data, self.name, store = data, name, data.store
        super().__init__(
            data.samples,
            parts,
            head,
            seed,
            kind="head",
            name=name,
            features=data.array,
            columns=data.chosen_groups,
            samples_digest=data.digest,
            resolution=side_of(store) if store.task == "segmentation" else 0,
            order="" if data.array == "pooled" else "shared" if streamed else "own",
            warm_start=warm_start,
            dataset=store.dataset,
            note=store.note,
            store=store.name,
            store_path=str(given.get("store", store.path)),
            fingerprint=store.fingerprint,
            snapshot=store.snapshot,
            encoder=store.encoder,
            identity=store.identity,
            weights=store.weights,
            untrained=store.untrained,
            given=dict(given),
        )

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of `pooled` that the head learns from; empty for grids."""
        return self.data.columns

    @property
    def left_out(self) -> Mapping[str, int]:
        """How many samples take no part, by reason."""
        return self.data.left_out

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Report what a head calls a wrong value, within a `with` block, as the user's error."""
        try:
            yield
        except ValueError as error:
            raise InputError(f"the head {self.name} cannot be trained: {error}") from error

    def train(self, clock: Clock) -> None:
        """Read the training part and learn from it."""
        clock.start("read")
        with self.refusing():
            self.check()
            self._train(clock)

    @abstractmethod
    def check(self) -> None:
        """Raise InputError if nothing can be learnt from the training part."""

    @abstractmethod
    def answer(self, positions: Rows, features: NDArray[Any], folder: RunFolder | None) -> None:
        """Predict some of the held-out samples, by their place among these, from their features."""

    @abstractmethod
    def scores(self) -> dict[str, Scores]:
        """Score the answers, once all held-out samples were predicted."""

    def score(self, folder: RunFolder, clock: Clock) -> dict[str, Scores]:
        """Read, predict and score the held-out samples."""
        rows = self.parts.split.test
        for start in range(0, len(rows), self.at_once):
            positions = np.arange(start, min(start + self.at_once, len(rows)))
            self.answer(positions, self.data.read(rows[positions]), folder)
        return self.scores()

    def _train(self, clock: Clock) -> None:
        train, held = self.parts.inner.train, self.parts.inner.test
        labels = None if self.samples.task == "segmentation" else self.samples.labels
        if isinstance(self.model, PooledHead):
            assert labels is not None
            X, validation = self.data.read(train), self.data.read(held)
            clock.start("fit")
            self.model.fit(X, labels[train], (validation, labels[held]), clock.on_event)
            return
        training, validating = self.data.feeds(self.parts.inner, labels)
        clock.start("fit")
        self.model.fit(
            training,
            validating,
            task=self.samples.task,
            n_classes=len(self.samples.classes),
            shape=self.data.store.shape(self.data.array)[1:],
            on_event=clock.on_event,
        )


class _Classification(HeadTrial):
    """One label for each sample."""

    def check(self) -> None:
        """Do nothing: splits have every class in each part."""

    def answer(self, positions: Rows, features: NDArray[Any], folder: RunFolder | None) -> None:
        if self.chances is None:
            shape = len(self.parts.split.test), len(self.samples.classes)
            self.chances = np.full(shape, np.nan)
        self.chances[positions] = self.model.predict_proba(features)

    def scores(self) -> dict[str, Scores]:
        assert self.chances is not None
        test = self.parts.split.test
        return {self.name: score_classes(self.samples, test, self.chances, self.seed)}

    def floor(self) -> tuple[Floors, str]:
        """Fit logistic regression to image statistics."""
        store, inner, labels = self.data.store, self.parts.inner, self.samples.labels
        parts = (inner.train, inner.test, self.parts.split.test)
        if FLOOR_FEATURES not in store.arrays:
            return {}, f"the store has no {FLOOR_FEATURES}"
        valid = store.valid(FLOOR_FEATURES)
        absent = sum(int((~valid[rows]).sum()) for rows in parts)
        if absent:
            return {}, f"the store has no {FLOOR_FEATURES} for {absent} of the rows"
        train, held, test = (self.data.read(rows, FLOOR_FEATURES) for rows in parts)
        floor = FloorHead(random_state=self.seed)
        floor.fit(train, labels[parts[0]], validation=(held, labels[parts[1]]))
        found = score_classes(self.samples, parts[2], floor.predict_proba(test), self.seed)
        return {"floor": found.metrics}, ""


class _Segmentation(HeadTrial):
    """A class for each pixel."""

    at_once = _AT_ONCE

    def check(self) -> None:
        """Raise InputError if a class has no pixel to be learnt from; note the most frequent class."""
        pixels = np.zeros(len(self.samples.classes), dtype=np.int64)
        for row in self.parts.inner.train:
            pixels += np.bincount(self._mask(row).ravel(), minlength=256)[: len(pixels)]
        self._majority = int(np.argmax(pixels))
        self._found = self._counter()
        require_pixels(self.samples.classes, pixels)

    def answer(self, positions: Rows, features: NDArray[Any], folder: RunFolder | None) -> None:
        rows = self.parts.split.test[positions]
        shapes = [shape_of(self.data.store, row) for row in rows]
        maps = self.model.class_maps(features, shapes, side_of(self.data.store))
        for position, row, guess in zip(positions.tolist(), rows, maps, strict=True):
            self._found.add(position, self._mask(row), guess, folder)

    def scores(self) -> dict[str, Scores]:
        return {self.name: self._found.scores(self.seed)}

    def floor(self) -> tuple[Floors, str]:
        """Predict the most frequent class everywhere: for roads, that nothing is a road."""
        found = self._counter()
        for position, row in enumerate(self.parts.split.test):
            truth = self._mask(row)
            found.add(position, truth, np.full_like(truth, self._majority))
        return {"floor": found.scores(self.seed).metrics}, ""

    def _counter(self) -> MaskScores:
        ids = [self.samples.ids[row] for row in self.parts.split.test]
        return MaskScores(ids, len(self.samples.classes))

    def _mask(self, row: int) -> NDArray[np.uint8]:
        """Read the mask of a row without its padding."""
        height, width = shape_of(self.data.store, row)
        mask: NDArray[np.uint8] = self.data.store.row("mask", int(row))[:height, :width]
        return mask


def head_trial(data: Data, *args: Any, **options: Any) -> HeadTrial:
    """Make the trial for a store's task; takes the parameters of `HeadTrial`."""
    kind = _Segmentation if data.store.task == "segmentation" else _Classification
    return kind(data, *args, **options)


def stored_masks(
    store: Store, head: GridHead, rows: Rows
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
