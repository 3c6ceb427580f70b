"""A head on one split of a store.

The held-out rows are read after the head is trained and everything about it is chosen, and are scored once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

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
    Scored,
    Trial,
    most_frequent,
    score_classes,
)
from samtl.heads.base import PooledHead
from samtl.heads.grid import GridHead
from samtl.heads.logreg import Head as FloorHead
from samtl.store.reader import Store

FLOOR_FEATURES = "image_stats"
_MASKS_AT_ONCE = 4  # dense embeddings, and masks of the encoder's square, in memory at a time


class HeadTrial(Trial):
    """One head on one split of a store.

    Parameters
    ----------
    data : Data
    name : str
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
        self.data, self.name, self.store = data, name, data.store
        self.columns, self.left_out = data.columns, data.left_out
        self.masks = self.store.task == "segmentation"
        #: Held-out samples that are predicted at a time.
        self.at_once = _MASKS_AT_ONCE if self.masks else 512
        self._majority = 0
        store = self.store
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
            resolution=side_of(store) if self.masks else 0,
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
        test = parts.split.test
        self._counted = MaskScores(self.samples, test) if self.masks else None

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Report what a head calls a wrong value, within a `with` block, as the user's error."""
        try:
            yield
        except ValueError as error:
            raise InputError(f"the head {self.name} cannot be trained: {error}") from error

    def check(self) -> None:
        """Raise InputError if a class has no pixel to be learnt from; labels are in each part of every split."""
        if self.masks:
            masks = map(self._mask, self.parts.inner.train)
            self._majority = most_frequent(self.samples.classes, masks)

    def train(self, clock: Clock) -> None:
        """Read the training part and learn from it."""
        clock.start("read")
        self.check()
        labels, inner = None if self.masks else self.samples.labels, self.parts.inner
        with self.refusing():
            if isinstance(self.model, PooledHead):
                assert labels is not None
                X, validation = self.data.read(inner.train), self.data.read(inner.test)
                clock.start("fit")
                held = validation, labels[inner.test]
                self.model.fit(X, labels[inner.train], held, clock.on_event)
                return
            feeds = self.data.feeds(inner, labels)
            clock.start("fit")
            self.model.fit(
                *feeds,
                task=self.samples.task,
                n_classes=len(self.samples.classes),
                shape=self.store.shape(self.data.array)[1:],
                on_event=clock.on_event,
            )

    def answer(self, positions: Rows, features: NDArray[Any], folder: RunFolder | None) -> None:
        """Predict some of the held-out samples, by their place among these, from their features."""
        test = self.parts.split.test
        if self._counted is not None:
            shapes = [shape_of(self.store, row) for row in test[positions]]
            maps = self.model.class_maps(features, shapes, side_of(self.store))
            for position, guess in zip(positions.tolist(), maps, strict=True):
                self._counted.add(position, self._mask(test[position]), guess, folder)
            return
        if self.chances is None:
            self.chances = np.full((len(test), len(self.samples.classes)), np.nan)
        self.chances[positions] = self.model.predict_proba(features)

    def scores(self) -> dict[str, Scored]:
        """Score the answers, once all held-out samples were predicted."""
        if self._counted is not None:
            return {self.name: self._counted.scored(self.seed)}
        assert self.chances is not None
        test = self.parts.split.test
        return {self.name: score_classes(self.samples, test, self.chances, self.seed)}

    def score(self, folder: RunFolder, clock: Clock) -> dict[str, Scored]:
        """Read, predict and score the held-out samples."""
        rows = self.parts.split.test
        for start in range(0, len(rows), self.at_once):
            positions = np.arange(start, min(start + self.at_once, len(rows)))
            self.answer(positions, self.data.read(rows[positions]), folder)
        return self.scores()

    def floor(self) -> tuple[Floors, str]:
        """Fit logistic regression to image statistics; or predict the most frequent class for every pixel."""
        store, inner, test = self.store, self.parts.inner, self.parts.split.test
        if self.masks:
            counted = MaskScores(self.samples, test)
            for position, truth in enumerate(map(self._mask, test)):
                counted.add(position, truth, np.full_like(truth, self._majority))
            return {"floor": counted.scored(self.seed).metrics}, ""
        if FLOOR_FEATURES not in store.arrays:
            return {}, f"the store has no {FLOOR_FEATURES}"
        parts, labels = (inner.train, inner.test, test), self.samples.labels
        absent = int((~store.valid(FLOOR_FEATURES)[np.concatenate(parts)]).sum())
        if absent:
            return {}, f"the store has no {FLOOR_FEATURES} for {absent} of the rows"
        train, held, asked = (self.data.read(rows, FLOOR_FEATURES) for rows in parts)
        floor = FloorHead(random_state=self.seed)
        floor.fit(train, labels[inner.train], validation=(held, labels[inner.test]))
        found = score_classes(self.samples, test, floor.predict_proba(asked), self.seed)
        return {"floor": found.metrics}, ""

    def _mask(self, row: int) -> NDArray[np.uint8]:
        """Read the mask of a row without its padding."""
        height, width = shape_of(self.store, row)
        mask: NDArray[np.uint8] = self.store.row("mask", int(row))[:height, :width]
        return mask


def stored_masks(store: Store, head: GridHead, rows: Rows) -> Iterator[NDArray[np.uint8]]:
    """Predict the masks of some rows, (height, width) each, at the encoder's resolution without padding."""
    side = side_of(store)
    for start in range(0, len(rows), _MASKS_AT_ONCE):
        some = rows[start : start + _MASKS_AT_ONCE]
        shapes = [shape_of(store, row) for row in some]
        yield from head.class_maps(store.read(head.tiers["segmentation"], some), shapes, side)
