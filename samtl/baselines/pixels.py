"""Images of a dataset as squares of pixels: what the baselines learn from and predict on.

Every image is decoded, brought to one longest side and padded at the bottom and right, as it is for the encoder but
smaller. What is padded has the mean colour that networks subtract, and is ignored in masks.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samtl._runtime import prefetch
from samtl.datasets import Dataset
from samtl.errors import InputError
from samtl.images.codecs import BadImage, decode
from samtl.images.transforms import (
    IGNORE,
    PIXEL_MEAN,
    mask_square,
    resize_longest_side,
)

Rows = NDArray[np.int64]
Pixel = NDArray[np.uint8]

HELD_BYTES = 2**30  # pixels and masks up to this size are decoded once and kept


def read_image(dataset: Dataset, row: int) -> Pixel:
    """Decode one image, (H, W, 3) uint8.

    Raises
    ------
    InputError
        Where it is gone or cannot be used; the message names it.
    """
    sample_id = dataset.sample_ids[row]
    try:
        return decode(dataset.read(sample_id))
    except BadImage as error:
        raise InputError(
            f"image {sample_id!r} of {dataset.name} cannot be used ({error}); replace it, or take over the split of a "
            "run that left it out with --same-split-as"
        ) from error
    except (OSError, InputError) as error:
        raise _gone("image", dataset, sample_id, error) from error


def read_mask(dataset: Dataset, row: int, shape: tuple[int, int]) -> Pixel:
    """Read one image's target, `shape` uint8: class indices, 255 to be ignored.

    Raises
    ------
    InputError
        Where it is gone, of another shape than its image, or holds a class that the dataset does not have.
    """
    sample_id = dataset.sample_ids[row]
    if dataset.read_mask is None:
        raise InputError(f"{dataset.name} has labels, not masks: choose a dataset with masks")
    try:
        mask = dataset.read_mask(sample_id)
    except BadImage as error:
        raise InputError(
            f"the mask of {sample_id!r} of {dataset.name} cannot be used ({error}); replace it, or take over the split "
            "of a run that left it out with --same-split-as"
        ) from error
    except (OSError, InputError) as error:
        raise _gone("the mask of", dataset, sample_id, error) from error
    if mask.shape != shape:
        raise InputError(
            f"the mask of {sample_id!r} of {dataset.name} must have its image's shape {shape}, got {mask.shape}; "
            "replace it, or take over the split of a run that left it out with --same-split-as"
        )
    if (mask == IGNORE).all():
        raise InputError(
            f"the mask of {sample_id!r} of {dataset.name} has no pixel of a known class; leave the image out, or take "
            "over the split of a run that left it out with --same-split-as"
        )
    strange = mask[(mask >= len(dataset.classes)) & (mask != IGNORE)]
    if strange.size:
        raise InputError(
            f"the mask of {sample_id!r} of {dataset.name} must hold classes below {len(dataset.classes)}, or "
            f"{IGNORE} to be ignored, and holds {strange[0]}"
        )
    return mask


def square(pixels: Pixel, size: int) -> Pixel:
    """Bring an image's longest side to `size` and pad, (H, W, 3) to (size, size, 3) uint8."""
    resized = resize_longest_side(pixels, size)
    out = np.empty((size, size, 3), dtype=np.uint8)
    out[:] = np.round(PIXEL_MEAN)
    out[: resized.shape[0], : resized.shape[1]] = resized
    return out


class Pixels:
    """A source of batches for the training loop: see `samtl.heads.trainer.Source`.

    Inputs are (batch, 3, size, size) uint8, channels last in memory; the model normalises them. Targets are int64:
    labels (batch,), or masks (batch, size, size) with 255 to be ignored.

    Where all pixels are at most 1 GiB they are decoded once, else anew for each batch, in a thread that keeps one
    batch ahead of the training.

    Parameters
    ----------
    dataset : Dataset
    rows : (n,) int
        Which images; nothing else of the dataset is read.
    size : int
        Longest side in pixels.
    augment : bool
        Whether shuffled batches are flipped and turned by right angles at random: seen from above, nothing has an
        upper side.

    Raises
    ------
    InputError
        Where an image is gone or cannot be used; the message names it. Where they are not kept, `batches` raises it.
    """

    def __init__(self, dataset: Dataset, rows: Rows, size: int, augment: bool = False) -> None:
        self.dataset, self.rows, self.size, self.augment = dataset, rows, size, augment
        masks = dataset.task == "segmentation"
        self._all: tuple[Tensor, Tensor] | None = None
        if len(rows) * size * size * (4 if masks else 3) <= HELD_BYTES:
            self._all = self._load(torch.arange(len(rows)))

    def __len__(self) -> int:
        return len(self.rows)

    def batches(
        self, size: int, generator: torch.Generator | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Give every image once as (inputs, targets): shuffled by `generator`, or in order where it is None."""
        order = torch.arange(len(self))
        if generator is not None:
            order = torch.randperm(len(self), generator=generator)
        chosen = torch.split(order, size)
        for inputs, targets in (
            map(self._take, chosen) if self._all else prefetch(self._load, chosen)
        ):
            if self.augment and generator is not None:
                inputs, targets = turned(inputs, targets, generator)
            yield inputs.permute(0, 3, 1, 2), targets.long()

    def _take(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        assert self._all is not None  # whoever calls this has looked
        return self._all[0][positions], self._all[1][positions]

    def _load(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Read (n, size, size, 3) uint8 pixels and (n,) int64 labels or (n, size, size) uint8 masks."""
        rows = self.rows[positions.numpy()]
        inputs = np.empty((len(rows), self.size, self.size, 3), dtype=np.uint8)
        if self.dataset.task == "classification":
            for i, row in enumerate(rows):
                inputs[i] = square(read_image(self.dataset, row), self.size)
            labels = np.array(self.dataset.labels, dtype=np.int64)[rows]
            return torch.from_numpy(inputs), torch.from_numpy(labels)
        masks = np.empty(inputs.shape[:3], dtype=np.uint8)
        for i, row in enumerate(rows):
            pixels = read_image(self.dataset, row)
            inputs[i] = square(pixels, self.size)
            masks[i] = mask_square(read_mask(self.dataset, row, pixels.shape[:2]), self.size)
        return torch.from_numpy(inputs), torch.from_numpy(masks)


def squares(
    dataset: Dataset, rows: Rows, size: int, at_once: int
) -> Iterator[tuple[Tensor, list[tuple[int, int]]]]:
    """Read images to predict on, in order, `at_once` at a time; no label or mask is touched.

    Yields
    ------
    inputs : Tensor of uint8, (n, 3, size, size)
    shapes : list of (height, width)
        The images' original sizes.
    """

    def load(part: Rows) -> tuple[Tensor, list[tuple[int, int]]]:
        images = [read_image(dataset, row) for row in part]
        inputs = torch.from_numpy(np.stack([square(pixels, size) for pixels in images]))
        return inputs.permute(0, 3, 1, 2), [pixels.shape[:2] for pixels in images]

    yield from prefetch(load, [rows[i : i + at_once] for i in range(0, len(rows), at_once)])


def turned(inputs: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Give each image one of the eight ways to lay a square down, and its mask the same.

    Parameters
    ----------
    inputs : Tensor, (batch, size, size, 3)
    targets : Tensor, (batch, size, size), or (batch,), which is left alone
    generator : torch.Generator
        Each image's way is drawn from it, all equally likely.
    """
    ways = torch.randint(2, (3, len(inputs)), generator=generator, dtype=torch.bool)

    def lay(squares: Tensor) -> Tensor:
        across, down, diagonal = ways.view(3, -1, *[1] * (squares.ndim - 1))
        squares = torch.where(across, squares.flip(2), squares)
        squares = torch.where(down, squares.flip(1), squares)
        return torch.where(diagonal, squares.transpose(1, 2), squares).contiguous()

    return lay(inputs), lay(targets) if targets.ndim > 1 else targets


def _gone(what: str, dataset: Dataset, sample_id: str, error: Exception) -> InputError:
    return InputError(
        f"{what} {sample_id!r} of {dataset.name} cannot be read ({error}): baselines learn from the images "
        "themselves, so put the dataset back where it was"
    )
