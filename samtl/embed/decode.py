"""Images of a dataset on their way to an encoder: read ahead of it in threads, decoded and resized in processes."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Container, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samtl._runtime import prefetch
from samtl.datasets import Dataset
from samtl.errors import InputError, ResourceError
from samtl.images.codecs import BadImage, mask_sha256, prepare
from samtl.images.transforms import IGNORE, mask_square
from samtl.store.log import SUPERSEDED

# What reading an image may meet that is no property of the image.
OUT_OF_RESOURCES = {
    errno.EIO,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.ESTALE,
    errno.ENOTCONN,
    errno.ETIMEDOUT,
}


def decoded_ahead(
    dataset: Dataset,
    rows: Iterator[int],
    image_size: int,
    batch_size: int,
    device: str,
    processes: int = 1,
    left_out: Container[int] = (),
) -> Generator[Decoded, None, None]:
    """Give images in order, at least a batch of them ready while the encoder works on the one before.

    Parameters
    ----------
    dataset : Dataset
    rows : iterator of int
    image_size : int
        Longest side that images are resized to.
    batch_size : int
    device : str
        What the encoder runs on, such as `cpu`.
    processes : int
        That share this machine's cores.
    left_out : container of int
        Rows that are not read: they do not count any more.
    """
    # On a CPU the encoder has the cores; one thread keeps ahead of it easily.
    workers = 1 if device == "cpu" else max(1, min(32, (os.cpu_count() or 1) // processes))
    return prefetch(
        lambda row: (
            Decoded(row, "", code=SUPERSEDED, reason="the row no longer counts")
            if row in left_out
            else decode_row(dataset, row, image_size)
        ),
        rows,
        workers,
        depth=batch_size + 2 * workers,
    )


@dataclass(frozen=True)
class Decoded:
    """One image, ready for the encoder, and its target where that is a mask; or what was wrong with them.

    Attributes
    ----------
    row : int
        Its place in the dataset.
    image_sha256 : str
        Of the file's bytes, "" where none were had.
    pixels : (h, w, 3) uint8, or None
        Resized for the encoder.
    original_size : (height, width)
    image_stats : (12,) float32, or None
        See `samtl.images.codecs.statistics`; of the original pixels.
    mask : (image_size, image_size) uint8, or None
        See `samtl.images.transforms.mask_square`.
    mask_sha256 : str
        Of the mask as the dataset gives it, "" where none was had.
    code, reason : str
        What was wrong, "" where nothing was.
    unread : bool
        Whether no bytes were had, which may be the drive's fault.
    """

    row: int
    image_sha256: str
    pixels: NDArray[np.uint8] | None = None
    original_size: tuple[int, int] = (0, 0)
    image_stats: NDArray[np.float32] | None = None
    mask: NDArray[np.uint8] | None = None
    mask_sha256: str = ""
    code: str = ""
    reason: str = ""
    unread: bool = False


def decode_row(dataset: Dataset, row: int, image_size: int) -> Decoded:
    """Read, decode, measure and resize one image and its mask; runs in several threads at once.

    Raises
    ------
    ResourceError
        Where the drive gives out, which is no property of the image.
    """
    digest, mask, named, code = "", None, "", "unreadable"
    try:
        data = dataset.read(dataset.sample_ids[row])
        digest = hashlib.sha256(data).hexdigest()
        prepared = prepare(data, image_size)
        if dataset.read_mask is not None:
            code = "mask_unreadable"
            mask = _mask(dataset, dataset.sample_ids[row])
            named = mask_sha256(mask)
            _require_fitting(mask, prepared.size, dataset.classes)
    except BadImage as bad:
        return Decoded(row, digest, mask_sha256=named, code=bad.code, reason=str(bad))
    except (OSError, InputError) as error:
        if isinstance(error, OSError) and error.errno in OUT_OF_RESOURCES:
            raise ResourceError(
                f"reading {dataset.sample_ids[row]} failed: {error.strerror}"
            ) from error
        return Decoded(row, digest, code=code, reason=str(error), unread=True)
    return Decoded(
        row,
        digest,
        prepared.pixels,
        prepared.size,
        prepared.statistics,
        None if mask is None else mask_square(mask, image_size),
        named,
    )


def _mask(dataset: Dataset, sample_id: str) -> NDArray[np.uint8]:
    """Read a mask; where it is no use, the code says that it is the mask."""
    assert dataset.read_mask is not None
    try:
        return dataset.read_mask(sample_id)
    except BadImage as bad:
        if bad.code.startswith("mask_"):
            raise
        raise BadImage("mask_unreadable", f"the image's mask cannot be used: {bad}") from bad


def _require_fitting(mask: NDArray[Any], size: tuple[int, int], classes: Sequence[str]) -> None:
    """Refuse a mask that cannot be the target of an image of this height and width."""
    if mask.ndim != 2 or mask.dtype != np.uint8:
        raise BadImage(
            "mask_unreadable",
            f"a mask must be (height, width) uint8, this one is {mask.shape} {mask.dtype}",
        )
    if mask.shape != size:
        raise BadImage(
            "mask_size",
            f"a mask of the image's size, {size[1]} x {size[0]}, was expected, this one is "
            f"{mask.shape[1]} x {mask.shape[0]}; bring both to one size",
        )
    if (mask == IGNORE).all():
        raise BadImage(
            "mask_values",
            "a mask must have a pixel of a known class, all of this one are to be ignored; leave the image out",
        )
    beyond = mask[(mask >= len(classes)) & (mask != IGNORE)]
    if beyond.size:
        raise BadImage(
            "mask_values",
            f"a mask must hold class indices below {len(classes)}, or {IGNORE} to be ignored, this one holds "
            f"{beyond.max()}",
        )
