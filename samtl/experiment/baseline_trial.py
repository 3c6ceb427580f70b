"""A baseline on one split of a dataset's images.

The same samples give the same split as a store made of them; what is held out is read for the score alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from samtl._io import digest
from samtl.baselines.base import PixelBaseline
from samtl.baselines.floor import Baseline as FloorBaseline
from samtl.baselines.pixels import read_image, read_mask
from samtl.datasets import Dataset
from samtl.experiment.run import RunFolder
from samtl.experiment.trial import (
    Clock,
    Floors,
    MaskScores,
    Parts,
    Scored,
    Trial,
    most_frequent,
    score_classes,
)
from samtl.images.transforms import IMAGE_SIZE as IMAGE_SIZE
from samtl.images.transforms import mask_square, resized_shape
from samtl.splits import Samples

FLOOR = "floor"


class BaselineTrial(Trial):
    """One baseline on one split of a dataset.

    Parameters
    ----------
    data : Dataset
    samples : Samples
        From `samples_of`.
    name : str
    model : PixelBaseline
        Not trained yet.
    parts : Parts
    seed : int
    given : mapping
        What the user asked for, to be written down.
    warm_start : str
        The run whose weights training begins with, or "".
    image_size : int
        Masks are scored at this resolution, the encoder's of the heads that they are compared with.
    pixels : str
        A digest of the images and masks if they were read before, or "".
    """

    def __init__(
        self,
        data: Dataset,
        samples: Samples,
        name: str,
        model: PixelBaseline,
        parts: Parts,
        seed: int,
        given: Mapping[str, Any],
        warm_start: str = "",
        image_size: int = IMAGE_SIZE,
        pixels: str = "",
    ) -> None:
        self.data, self.name = data, name
        self.image_size = image_size if data.task == "segmentation" else 0
        self.left_out = {"unlabelled": int((~samples.usable).sum())}
        named = sorted(zip(data.sample_ids, data.labels, strict=True))
        super().__init__(
            samples,
            parts,
            model,
            seed,
            kind="baseline",
            name=name,
            features="pixels",
            samples_digest=digest([list(data.classes), named, pixels]),
            resolution=self.image_size,
            warm_start=warm_start,
            dataset=data.name,
            note=data.note,
            given=dict(given),
        )

    def train(self, clock: Clock) -> None:
        """Learn from the images of the training part."""
        data, inner, model = self.data, self.parts.inner, self.model
        if self.image_size:
            most_frequent(data.classes, map(self._own_mask, inner.train.tolist()))
        clock.start("fit")
        model.fit(data, inner.train, inner.test, clock.on_event)
        clock.owe(model.cached_seconds())
        weights = {"weights": model.weights, "untrained": model.untrained}
        self.config = msgspec.structs.replace(self.config, **weights)

    def score(self, folder: RunFolder, clock: Clock) -> dict[str, Scored]:
        """Predict and score the held-out images: by name, the baseline first, then its companions."""
        found = self._score(self.model, folder)
        clock.owe(self.model.cached_seconds())
        return found

    def floor(self) -> tuple[Floors, str]:
        """Fit the floor to the same parts."""
        if self.name == FLOOR:
            return {}, "this is the floor"
        floor = FloorBaseline(random_state=self.seed)
        floor.fit(self.data, self.parts.inner.train, self.parts.inner.test)
        return {name: found.metrics for name, found in self._score(floor, None).items()}, ""

    def _score(self, model: PixelBaseline, folder: RunFolder | None) -> dict[str, Scored]:
        """Score a fitted baseline and its companions; masks of the baseline itself go into the folder."""
        samples, rows, seed = self.samples, self.parts.split.test, self.seed
        predictions = model.predict_all(self.data, rows, image_size=self.image_size or IMAGE_SIZE)
        if not self.image_size:
            blocks = list(predictions)
            chances = {n: np.concatenate([block[n] for block in blocks]) for n in blocks[0]}
            if folder is not None:
                self.chances = next(iter(chances.values()))
            return {n: score_classes(samples, rows, some, seed) for n, some in chances.items()}
        found: dict[str, MaskScores] = {}
        for position, (row, maps) in enumerate(zip(rows.tolist(), predictions, strict=True)):
            mask = self._own_mask(row)
            height, width = resized_shape(mask.shape[0], mask.shape[1], self.image_size)
            truth = mask_square(mask, self.image_size)[:height, :width]
            for i, (name, guess) in enumerate(maps.items()):
                counted = found.setdefault(name, MaskScores(samples, rows))
                counted.add(position, truth, guess, None if i else folder)
        return {name: counted.scored(seed) for name, counted in found.items()}

    def _own_mask(self, row: int) -> NDArray[np.uint8]:
        """Read a mask at the size of its image."""
        return read_mask(self.data, row, read_image(self.data, row).shape[:2])


def samples_of(data: Dataset) -> Samples:
    """Return what splits of a dataset are made of."""
    labels = np.array(data.labels, dtype=np.int64)
    usable = np.ones(len(data), dtype=bool) if data.task == "segmentation" else labels >= 0
    return Samples(
        data.name, data.task, data.sample_ids, data.classes, labels, usable, data.groups, data.parts
    )
