"""Images of a dataset as squares of pixels, which the baselines train and predict on.

Images are decoded, resized to one longest side and padded at the bottom and right, as for the encoder but smaller.
Padding has the mean colour that networks subtract, and is ignored in masks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samtl._runtime import prefetch
from samtl.datasets import Dataset
from samtl.errors import InputError
from samtl.heads.training.trainer import in_order
from samtl.images.codecs import BadImage
from samtl.images.masks import check_mask
from samtl.images.transforms import PIXEL_MEAN, mask_square, resize_longest_side

Rows = NDArray[np.int64]
Pixel = NDArray[np.uint8]

HELD_BYTES = 2**30  # pixels and masks up to this size are decoded once and kept
_AT_ONCE = 2**20  # pixels in one call when predicting: bounds memory

_REMEDY = "replace it, or use the split of a run that left it out with --same-split-as"


def read_image(dataset: Dataset, row: int) -> Pixel:
    """Decode one image, (H, W, 3) uint8; InputError if it is missing or unusable."""
    with _reading(f"image {dataset.sample_ids[row]!r} of {dataset.name}"):
        return dataset.picture(dataset.sample_ids[row])


def read_mask(dataset: Dataset, row: int, shape: tuple[int, int]) -> Pixel:
    """Read the mask of one image, `shape` uint8: class indices, 255 is ignored.

    Raises InputError if it is missing, of another shape, without a pixel of a known class, or has unknown classes.
    """
    if dataset.read_mask is None:
        raise InputError(f"{dataset.name} has labels, not masks: choose a dataset with masks")
    with _reading(f"the mask of {dataset.sample_ids[row]!r} of {dataset.name}"):
        mask = dataset.read_mask(dataset.sample_ids[row])
        check_mask(mask, shape, len(dataset.classes))
    return mask


def square(pixels: Pixel, size: int) -> Pixel:
    """Resize an image's longest side to `size` and pad, (H, W, 3) to (size, size, 3) uint8."""
    resized = resize_longest_side(pixels, size)
    out = np.empty((size, size, 3), dtype=np.uint8)
    out[:] = np.round(PIXEL_MEAN)
    out[: resized.shape[0], : resized.shape[1]] = resized
    return out


class Pixels:
    """Batches for the training loop: see `samtl.heads.training.trainer.Source`.

    Inputs are (batch, 3, size, size) uint8, channels last in memory; the model normalises them. Targets are int64:
    labels (batch,), or masks (batch, size, size) with 255 to be ignored. Images are decoded once if all their pixels
    take at most 1 GiB; else for each batch, in a thread that is one batch ahead of the training. If `augment`,
    shuffled batches are flipped and turned by right angles at random: images from above have no upper side.
    """

    def __init__(self, dataset: Dataset, rows: Rows, size: int, augment: bool = False) -> None:
        self.dataset, self.rows, self.size, self.augment = dataset, rows, size, augment
        self._all: tuple[Tensor, Tensor] | None = None
        if len(rows) * size * size * (4 if dataset.task == "segmentation" else 3) <= HELD_BYTES:
            self._all = self._load(torch.arange(len(rows)))

    def __len__(self) -> int:
        return len(self.rows)

    def batches(
        self, size: int, generator: torch.Generator | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every image once."""
        chosen = torch.split(in_order(len(self), generator), size)
        if self._all is None:
            found = prefetch(self._load, chosen)
        else:
            inputs, targets = self._all
            found = ((inputs[some], targets[some]) for some in chosen)
        for batch in found:
            if self.augment and generator is not None:
                batch = turned(*batch, generator)
            yield batch[0].permute(0, 3, 1, 2), batch[1].long()

    def _load(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Read (n, size, size, 3) uint8 pixels and (n,) int64 labels or (n, size, size) uint8 masks."""
        rows = self.rows[positions.numpy()]
        segmentation = self.dataset.task == "segmentation"
        inputs = np.empty((len(rows), self.size, self.size, 3), dtype=np.uint8)
        targets = np.empty(inputs.shape[:3], dtype=np.uint8)
        for i, row in enumerate(rows):
            pixels = read_image(self.dataset, row)
            inputs[i] = square(pixels, self.size)
            if segmentation:
                mask = read_mask(self.dataset, row, pixels.shape[:2])
                targets[i] = mask_square(mask, self.size)
        if not segmentation:
            return torch.from_numpy(inputs), torch.tensor(self.dataset.labels)[rows]
        return torch.from_numpy(inputs), torch.from_numpy(targets)


def squares(
    dataset: Dataset, rows: Rows, size: int
) -> Iterator[tuple[Tensor, list[tuple[int, int]]]]:
    """Read images to predict on, in order, some at a time; no label or mask is read.

    Yields (n, 3, size, size) uint8 and the original (height, width) of each image.
    """
    at_once = max(1, _AT_ONCE // size**2)

    def load(part: Rows) -> tuple[Tensor, list[tuple[int, int]]]:
        images = [read_image(dataset, row) for row in part]
        inputs = torch.from_numpy(np.stack([square(pixels, size) for pixels in images]))
        return inputs.permute(0, 3, 1, 2), [pixels.shape[:2] for pixels in images]

    yield from prefetch(load, [rows[i : i + at_once] for i in range(0, len(rows), at_once)])


def turned(inputs: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Flip and turn each image, (batch, size, size, 3), in one of the eight ways, all equally likely.

    Masks, (batch, size, size), are turned alike; labels, (batch,), are returned unchanged.
    """
    ways = torch.randint(2, (3, len(inputs)), generator=generator, dtype=torch.bool)

    def turn(squares: Tensor) -> Tensor:
        across, down, diagonal = ways.view(3, -1, *[1] * (squares.ndim - 1))
        squares = torch.where(across, squares.flip(2), squares)
        squares = torch.where(down, squares.flip(1), squares)
        return torch.where(diagonal, squares.transpose(1, 2), squares).contiguous()

    return turn(inputs), turn(targets) if targets.ndim > 1 else targets


@contextlib.contextmanager
def _reading(what: str) -> Iterator[None]:
    try:
        yield
    except BadImage as error:
        raise InputError(f"{what} cannot be used ({error}); {_REMEDY}") from error
    except (OSError, InputError) as error:
        raise InputError(
            f"{what} cannot be read ({error}): baselines need the images, so restore the dataset"
        ) from error
