"""Generated land-cover-like images, `synthetic[:N[:SEED]]`: N for each of 8 classes, no download."""

from __future__ import annotations

import functools
import re
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from samtl.datasets.base import Dataset
from samtl.datasets.landscapes import SCENES, draw_scene
from samtl.errors import InputError

NOTE = "generated images: figures show that the machinery works, and nothing about real data"

_MAX_COUNT, _MAX_SEED = 1_000_000, 2**32 - 1
_ID = re.compile(r"(?P<name>[A-Za-z]+)/(?P=name)_(?P<number>[1-9][0-9]{0,6})\.png")


def open_dataset(argument: str | None, root: Path | None, download: bool = True) -> Dataset:
    """List generated images, 256 x 256 RGB PNG files that are made when they are read.

    `argument` is `N` or `N:SEED`: how many images of each class, 40 by default, and a seed, 0 by default; there is no
    `root`. An image depends only on the seed, its class and its number: the first ten of each class are the same
    whether ten or a thousand are listed. The dataset is named after the seed if it is not 0. Raises InputError.
    """
    count, name, seed = generated("synthetic", argument, root, 40)
    classes = tuple(sorted(SCENES))
    return Dataset(
        name=name,
        classes=classes,
        sample_ids=tuple(f"{c}/{c}_{i}.png" for c in classes for i in range(1, count + 1)),
        labels=tuple(i for i in range(len(classes)) for _ in range(count)),
        read=functools.partial(_image, seed),
        note=NOTE,
    )


def _image(seed: int, sample_id: str) -> bytes:
    match = _ID.fullmatch(sample_id)
    if match is None or match["name"] not in SCENES:
        raise InputError(f"no generated image is called {sample_id!r}")
    return png(draw_scene(seed, match["name"], int(match["number"])))


def generated(
    name: str, argument: str | None, root: Path | None, default: int
) -> tuple[int, str, int]:
    """Parse the argument `N` or `N:SEED` of a generated dataset; return the count, the dataset's name and the seed."""
    if root is not None:
        raise InputError(f"{name} images are made, not read; leave --root {root} out")
    match = re.fullmatch(r"([0-9]{1,7})(?::([0-9]{1,10}))?", argument or f"{default}", re.ASCII)
    count, seed = (int(match[1]), int(match[2] or 0)) if match and argument != "" else (0, 0)
    if not 1 <= count <= _MAX_COUNT or seed > _MAX_SEED:
        raise InputError(
            f"{name} takes N or N:SEED, a number of images from 1 to {_MAX_COUNT:,} and a seed up to {_MAX_SEED}, as "
            f"in {name}:100; got {argument!r}"
        )
    return count, f"{name}-seed{seed}" if seed else name, seed


def png(pixels: NDArray[np.uint8]) -> bytes:
    """Encode an RGB image, (H, W, 3) uint8, as uncompressed PNG.

    A compressor's output differs between its versions, and the hash of these bytes identifies the image in a store.
    """
    height, width, _ = pixels.shape
    rows = np.zeros((height, 1 + 3 * width), dtype=np.uint8)  # each begins with its filter, 0
    rows[:, 1:] = pixels.reshape(height, -1)
    raw = rows.tobytes()
    parts = [b"\x78\x01"]
    for at in range(0, len(raw), 0xFFFF):
        block = raw[at : at + 0xFFFF]
        last = at + 0xFFFF >= len(raw)
        parts += [struct.pack("<BHH", last, len(block), 0xFFFF - len(block)), block]
    parts.append(struct.pack(">I", zlib.adler32(raw)))
    file = b"\x89PNG\r\n\x1a\n"
    header = struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)
    for kind, data in ((b"IHDR", header), (b"IDAT", b"".join(parts)), (b"IEND", b"")):
        checksum = zlib.crc32(kind + data)
        file += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)
    return file
