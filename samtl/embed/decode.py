"""Images on their way to an encoder: read, decoded and resized in threads, ahead of it."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samtl._runtime import prefetch
from samtl.datasets import Dataset
from samtl.errors import InputError, ResourceError
from samtl.images.codecs import BadImage, Prepared, mask_sha256, prepare
from samtl.images.safe_decoder import SafeDecoder
from samtl.images.transforms import IGNORE, mask_square

# What reading an image may raise that is no property of the image.
_OUT_OF_RESOURCES = {
    errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT,
}  # fmt: skip


@dataclass(frozen=True)
class Decoded:
    """One image, ready for the encoder, with its mask if it has one; or what is wrong with them.

    Attributes
    ----------
    row : int
        Its position in the dataset.
    image_sha256 : str
        Of the file's bytes, "" if they could not be read.
    pixels : (h, w, 3) uint8, or None
        Resized for the encoder.
    original_size : (height, width)
    image_stats : (12,) float32, or None
        See `samtl.images.codecs.statistics`; of the original pixels.
    mask : (image_size, image_size) uint8, or None
        See `samtl.images.transforms.mask_square`.
    mask_sha256 : str
        Of the mask as the dataset gives it, "" if it could not be read.
    code, reason : str
        What is wrong, "" if nothing is.
    unread : bool
        Whether the bytes could not be read, which may be the drive's fault.
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


def decoded_ahead(
    dataset: Dataset,
    rows: Iterable[int],
    image_size: int,
    batch_size: int,
    device: str,
    processes: int = 1,
    untrusted: bool = False,
) -> Generator[Decoded, None, None]:
    """Yield images in order, at least a batch of them ready while the encoder works on the one before.

    Parameters
    ----------
    dataset : Dataset
    rows : iterable of int
        Positions in the dataset; taken as they are needed.
    image_size : int
        Longest side that images are resized to, in pixels.
    batch_size : int
    device : str
        What the encoder runs on, such as `cpu`.
    processes : int
        Number of processes that share this machine's cores.
    untrusted : bool
        Whether to decode in worker processes with limits of memory and time.
    """
    # On a CPU the encoder needs the cores, and one thread keeps ahead of it.
    workers = 1 if device == "cpu" else max(1, min(32, (os.cpu_count() or 1) // processes))
    safe = SafeDecoder()  # starts a worker when it is used
    decode = safe.prepare if untrusted else prepare
    try:
        yield from prefetch(
            lambda row: decode_row(dataset, row, image_size, decode),
            rows,
            workers,
            depth=batch_size + 2 * workers,
        )
    finally:
        safe.close()


def decode_row(
    dataset: Dataset, row: int, image_size: int, prepare: Callable[[bytes, int], Prepared] = prepare
) -> Decoded:
    """Read, decode, measure and resize one image and its mask. Thread-safe.

    Raises
    ------
    ResourceError
        If the drive gives out, which is no property of the image.
    """
    sample_id = dataset.sample_ids[row]
    digest, mask, named, code = "", None, "", "unreadable"
    try:
        data = dataset.read(sample_id)
        digest = hashlib.sha256(data).hexdigest()
        prepared = prepare(data, image_size)
        if dataset.read_mask is not None:
            code = "mask_unreadable"
            mask = _read_mask(dataset, sample_id)
            named = mask_sha256(mask)
            _check_mask(mask, prepared.size, dataset.classes)
    except BadImage as bad:
        return Decoded(row, digest, mask_sha256=named, code=bad.code, reason=str(bad))
    except (OSError, InputError) as error:
        require_drive(sample_id, error)
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


def require_drive(sample_id: str, error: Exception) -> None:
    """Raise ResourceError if an image could not be read because the drive or the machine gave out."""
    if isinstance(error, OSError) and error.errno in _OUT_OF_RESOURCES:
        raise ResourceError(f"reading {sample_id} failed: {error.strerror}") from error


def _read_mask(dataset: Dataset, sample_id: str) -> NDArray[np.uint8]:
    """Read a mask; the code of what is wrong with it says that it is the mask."""
    assert dataset.read_mask is not None
    try:
        return dataset.read_mask(sample_id)
    except BadImage as bad:
        if bad.code.startswith("mask_"):
            raise
        raise BadImage("mask_unreadable", f"the image's mask cannot be used: {bad}") from bad


def _check_mask(mask: NDArray[Any], size: tuple[int, int], classes: Sequence[str]) -> None:
    """Raise BadImage unless a mask can be the target of an image of this height and width."""
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
