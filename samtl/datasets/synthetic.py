"""Generated land-cover-like images, `synthetic[:N[:SEED]]`: N for each of 8 classes, no download."""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from samtl.datasets import landscapes as _scenes
from samtl.datasets.base import Dataset
from samtl.errors import InputError

DEFAULT_COUNT = 40
MAX_COUNT = 1_000_000
MAX_SEED = 2**32 - 1
NOTE = "generated images: figures show that the machinery works, and nothing about real data"

_ID = re.compile(r"(?P<name>[A-Za-z]+)/(?P=name)_(?P<number>[1-9][0-9]{0,6})\.png")


@dataclass(frozen=True)
class _Generator:
    seed: int

    def __call__(self, sample_id: str) -> bytes:
        match = _ID.fullmatch(sample_id)
        if match is None or match["name"] not in _scenes.SCENES:
            raise InputError(
                f"a generated image is called like Forest/Forest_1.png, not {sample_id!r}"
            )
        return png(_scenes.draw(self.seed, match["name"], int(match["number"])))


def open_dataset(argument: str | None, root: Path | None, download: bool = True) -> Dataset:
    """List generated images.

    An image depends on nothing but the seed, its class and its number: the first ten of each class
    are the same whether ten or a thousand are listed.

    Parameters
    ----------
    argument : str, optional
        `N` or `N:SEED`: how many images of each class, 40 by default, and another seed than 0.
    root : None
        There are no files to point to.
    download : bool
        Has no meaning here.

    Returns
    -------
    Dataset
        256 x 256 RGB PNG files, made when they are read. Named `synthetic`, and after the seed
        where it is not 0, since the ids say nothing about it.

    Raises
    ------
    InputError
        Where the argument is not of that form, or there is a `root`.
    """
    if root is not None:
        raise InputError(f"synthetic images are made, not read; leave --root {root} out")
    count, seed = count_and_seed(argument, "synthetic", DEFAULT_COUNT, " of each class")
    classes = tuple(sorted(_scenes.SCENES))
    return Dataset(
        name=f"synthetic-seed{seed}" if seed else "synthetic",
        classes=classes,
        sample_ids=tuple(f"{name}/{name}_{i}.png" for name in classes for i in range(1, count + 1)),
        labels=tuple(i for i in range(len(classes)) for _ in range(count)),
        read=_Generator(seed),
        note=NOTE,
    )


def png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Encode an RGB image as PNG, uncompressed.

    A compressor's output differs between its versions, and the hash of these bytes identifies the
    image in a store.

    Parameters
    ----------
    pixels : ndarray, (H, W, 3) uint8

    Returns
    -------
    bytes
    """
    height, width, _ = pixels.shape
    rows = np.zeros((height, 1 + 3 * width), dtype=np.uint8)  # each begins with its filter, 0
    rows[:, 1:] = pixels.reshape(height, -1)
    raw = rows.tobytes()
    blocks = [b"\x78\x01"]
    for at in range(0, len(raw), 0xFFFF):
        block = raw[at : at + 0xFFFF]
        last = at + 0xFFFF >= len(raw)
        blocks += [struct.pack("<BHH", last, len(block), 0xFFFF - len(block)), block]
    blocks.append(struct.pack(">I", zlib.adler32(raw)))
    header = struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)
    chunks = _chunk(b"IHDR", header) + _chunk(b"IDAT", b"".join(blocks)) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def count_and_seed(
    argument: str | None, name: str, default: int, each: str = ""
) -> tuple[int, int]:
    """Read the argument `N` or `N:SEED` of a generated dataset; `each` says of what there are N.

    Raises
    ------
    InputError
        Where it is not of that form, or a number is out of its range.
    """
    if argument is None:
        return default, 0
    match = re.fullmatch(r"([0-9]{1,7})(?::([0-9]{1,10}))?", argument, re.ASCII)
    count, seed = (int(match[1]), int(match[2] or 0)) if match else (0, 0)
    if not 1 <= count <= MAX_COUNT or seed > MAX_SEED:
        raise InputError(
            f"{name} takes N or N:SEED, N images{each} from 1 to {MAX_COUNT:,} and a seed up to {MAX_SEED}, as in "
            f"{name}:100; got {argument!r}"
        )
    return count, seed
