"""Images on their way to an encoder: read, decoded and resized in threads, ahead of it."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samtl._runtime import prefetch
from samtl.datasets import Dataset
from samtl.errors import InputError, ResourceError
from samtl.images.bands import Reading
from samtl.images.codecs import BadImage, Prepared, prepare
from samtl.images.masks import check_mask, mask_sha256
from samtl.images.safe_decoder import SafeDecoder
from samtl.images.transforms import IMAGE_SIZE, PATCH, Pixels, mask_square

_LOOKED_AT = 16  # images whose size is looked at
Prepare = Callable[[bytes, int, Reading], Prepared]

# What reading an image may raise that is no property of the image.
_OUT_OF_RESOURCES = {
    errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT,
}  # fmt: skip


@dataclass(frozen=True)
class Decoded:
    """One image, ready for the encoder, with its mask if it has one; or what is wrong with them."""

    row: int  #: its position in the dataset
    image_sha256: str = ""  #: of the file's bytes, "" if they could not be read
    pixels: Pixels | None = None  #: (h, w, bands), resized for the encoder
    original_size: tuple[int, int] = (0, 0)  #: (height, width)
    image_stats: NDArray[np.float32] | None = (
        None  #: (4 bands,), `statistics` of the original pixels
    )
    mask: NDArray[np.uint8] | None = None  #: (image_size, image_size), see `mask_square`
    mask_sha256: str = ""  #: of the mask as the dataset gives it, "" if it could not be read
    code: str = ""  #: of what is wrong, "" if nothing is
    reason: str = ""
    unread: bool = False  #: whether the bytes could not be read, which may be the drive's fault
    outputs: Mapping[str, NDArray[Any]] = field(default_factory=dict)  #: the encoder's, by tier


def decoded_ahead(
    dataset: Dataset,
    rows: Iterable[int],
    image_size: int,
    batch_size: int,
    device: str,
    processes: int = 1,
    untrusted: bool = False,
    known: Mapping[int, Decoded] | None = None,
) -> Generator[Decoded, None, None]:
    """Yield images in order, at least a batch of them ready while the encoder works on the one before.

    `rows` are positions in the dataset, taken as they are needed. `device` is what the encoder runs on, and `processes`
    the number of processes that share this machine's cores. With `untrusted`, images are decoded in worker processes
    with limits of memory and time. Those that are `known` are not read again.
    """
    # On a CPU the encoder needs the cores, and one thread keeps ahead of it.
    workers = 1 if device == "cpu" else max(1, min(32, (os.cpu_count() or 1) // processes))
    safe = SafeDecoder()  # starts a worker when it is used
    decode = safe.prepare if untrusted else prepare

    def decoded(row: int) -> Decoded:
        return (known or {}).get(row) or decode_row(dataset, row, image_size, decode)

    try:
        yield from prefetch(decoded, rows, workers, depth=batch_size + 2 * workers)
    finally:
        safe.close()


def decode_row(dataset: Dataset, row: int, image_size: int, prepare: Prepare = prepare) -> Decoded:
    """Read, decode, measure and resize one image and its mask; ResourceError if the drive gives out. Thread-safe."""
    sample_id, found, code = dataset.sample_ids[row], Decoded(row), "unreadable"
    try:
        data = dataset.read(sample_id)
        found = replace(found, image_sha256=hashlib.sha256(data).hexdigest())
        image = prepare(data, image_size, dataset.reading)
        if dataset.read_mask is not None:
            code = "mask_unreadable"
            mask = dataset.read_mask(sample_id)
            found = replace(found, mask_sha256=mask_sha256(mask))
            check_mask(mask, image.size, len(dataset.classes))
            found = replace(found, mask=mask_square(mask, image_size))
    except BadImage as bad:
        of_mask = code == "mask_unreadable" and not bad.code.startswith("mask_")
        return replace(found, code=code if of_mask else bad.code, reason=str(bad))
    except (OSError, InputError) as error:
        require_drive(sample_id, error)
        return replace(found, code=code, reason=str(error), unread=True)
    return replace(
        found, pixels=image.pixels, original_size=image.size, image_stats=image.statistics
    )


def own_size(dataset: Dataset) -> int:
    """Return the multiple of 16 that holds the first images of a dataset, at most SAM's 1024."""
    looked_at = range(min(_LOOKED_AT, len(dataset)))
    longest = max(max(decode_row(dataset, row, PATCH).original_size) for row in looked_at)
    return min(IMAGE_SIZE, max(PATCH, -(-longest // PATCH) * PATCH))


def require_drive(sample_id: str, error: Exception) -> None:
    """Raise ResourceError if an image could not be read because the drive or the machine gave out."""
    if isinstance(error, OSError) and error.errno in _OUT_OF_RESOURCES:
        raise ResourceError(f"reading {sample_id} failed: {error.strerror}") from error
