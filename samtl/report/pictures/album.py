"""Reads the images and masks that a report shows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import islice

import numpy as np

from samtl.datasets import Dataset
from samtl.errors import InputError
from samtl.images.codecs import decode_mask
from samtl.images.transforms import IGNORE, mask_square, resize_longest_side, resized_shape
from samtl.metrics import segmentation
from samtl.metrics.paired import ImageScores
from samtl.report.page import caption
from samtl.report.pictures.sheet import UNCOUNTED, Pixels

SIDE = 512  # pixels of the longest side of an image, unless it lies under a mask of another size


class Album:
    """Reads images and masks, and notes what cannot be read.

    Parameters
    ----------
    dataset : Dataset or None
        None if it cannot be opened: then only predicted masks are shown.
    advice : str
        How to name the dataset then.
    """

    def __init__(self, dataset: Dataset | None, advice: str = "") -> None:
        self.dataset, self._advice = dataset, advice
        self._known = frozenset(() if dataset is None else dataset.sample_ids)
        self._failed: dict[str, str] = {}
        self.uncounted = False

    def photograph(self, sample_id: str, size: int = SIDE) -> Pixels | None:
        """Decode an image and resize its longest side."""
        return self._tried(
            sample_id,
            lambda dataset: resize_longest_side(dataset.picture(sample_id), size),
        )

    def truth(self, sample_id: str, shape: tuple[int, ...]) -> Pixels | None:
        """Read a true mask and resize it to `shape`, (height, width)."""

        def read(dataset: Dataset) -> Pixels:
            if dataset.read_mask is None:
                raise InputError(f"{dataset.name} has no masks")
            mask = dataset.read_mask(sample_id)
            if resized_shape(mask.shape[0], mask.shape[1], max(shape)) != shape:
                raise InputError(f"its mask of shape {mask.shape} does not fit one of {shape}")
            return mask_square(mask, max(shape))[: shape[0], : shape[1]]

        mask = self._tried(sample_id, read)
        self.uncounted |= mask is not None and bool((mask == IGNORE).any())
        return mask

    def masks(
        self, images: ImageScores, sample_id: str, n_classes: int
    ) -> tuple[Pixels | None, Pixels | None]:
        """Read a predicted mask and the true one, unless that has changed since it was scored."""
        place = images.ids.index(sample_id)
        try:
            guess = decode_mask(images.masks[place].read_bytes())
            truth = self.truth(sample_id, guess.shape)
            if truth is None:
                return guess, None
            counts = segmentation.confusion(truth, guess, n_classes)
            scored = segmentation.scores(counts)["accuracy"]
        except (OSError, InputError) as error:
            self._failed[sample_id] = str(error)
            return None, None
        if np.isclose(scored, images.scores["accuracy"][place], rtol=1e-5, atol=1e-6):
            return guess, truth
        self._failed[sample_id] = "its true mask is not the one it was scored with"
        return guess, None

    def legend(self, colours: Mapping[str, str]) -> dict[str, str]:
        """Add pixels that do not count to a legend, if masks have any."""
        return {**colours, "not counted": UNCOUNTED} if self.uncounted else {**colours}

    def some(
        self, sample_ids: Iterable[str], most: int, size: int = SIDE
    ) -> list[tuple[str, Pixels]]:
        """Return the first images that can be read, at most so many."""
        read = ((sample_id, self.photograph(sample_id, size)) for sample_id in sample_ids)
        return list(islice(((name, pixels) for name, pixels in read if pixels is not None), most))

    @property
    def notes(self) -> list[str]:
        """Sentences on what could not be shown."""
        if self.dataset is None:
            return [caption("no_dataset"), *([self._advice] if self._advice else [])]
        if not self._failed:
            return []
        sample_id, reason = next(iter(self._failed.items()))
        count = len(self._failed)
        return [caption("unreadable", count=count, sample_id=sample_id, reason=reason)]

    def _tried(self, sample_id: str, read: Callable[[Dataset], Pixels]) -> Pixels | None:
        if self.dataset is None:
            return None
        try:
            if sample_id not in self._known:
                raise InputError(f"{self.dataset.name} holds no such image")
            return read(self.dataset)
        except (OSError, InputError) as error:
            self._failed[sample_id] = str(error)
            return None
