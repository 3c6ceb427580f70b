"""Format 2: the arrays of a store, the bytes of their shards, and their Zarr metadata. FORMAT.md is the specification.

A shard holds the rows of one block: a key of 32 bytes, then each row (little endian, C order) followed by its crc32c,
then Zarr's index of offsets and lengths and its crc32c. To Zarr v3 it is a `sharding_indexed` chunk with one inner
chunk a row. All rows of an array have one size, so a row's place follows from its position.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from samtl._io import crc32c

FORMAT = 2
BLOCK_ROWS = 16
KEY_BYTES = 32
MISSING = 2**64 - 1  # offset and length, in an index, of a row that a shorter block does not have
ROOT = "zarr.json"  # of the group; of an array, in its folder
ENCODER = "encoder.safetensors"  # weights of an encoder that took them from the images
TIERS = ("pooled", "grid", "dense")
COORDINATES = (
    "sample", "label", "label_name", "group", "part", "valid", "class_name",
    "feature", "statistic", "y", "x", "y_grid", "x_grid",
)  # fmt: skip
_LITTLE = {
    name: np.dtype(name).newbyteorder("<") for name in ("float16", "float32", "int32", "uint8")
}


class ArraySpec(msgspec.Struct, frozen=True):
    """One array of a store, as `fingerprint.json` declares it."""

    name: str
    row_shape: tuple[int, ...]
    dtype: Literal["float16", "float32", "int32", "uint8"]
    fill: int | Literal["NaN"]  # what quarantined rows, and rows that were never written, hold
    dimensions: tuple[str, ...]  # after `sample`
    description: str = ""
    columns: tuple[str, ...] = ()  # names of the columns of `pooled` and `image_stats`

    def __post_init__(self) -> None:
        """Refuse what no store has."""
        if (
            len(self.dimensions) != len(self.row_shape)
            or min(self.row_shape, default=1) < 0
            or self.row_bytes > 2**40
        ):
            raise ValueError(f"the shape of {self.name}")

    @property
    def row_bytes(self) -> int:
        """Bytes of a row without its checksum."""
        return math.prod(self.row_shape) * np.dtype(self.dtype).itemsize

    def shard_path(self, block: int) -> str:
        """Path of a block's shard relative to the store."""
        return ".".join([f"{self.name}/c", str(block), *["0"] * len(self.row_shape)])

    def shard_bytes(self, rows: int, block_rows: int) -> int:
        """Size of the shard of a block with so many rows."""
        return KEY_BYTES + rows * (self.row_bytes + 4) + 16 * block_rows + 4

    def extent(self, position: int) -> tuple[int, int]:
        """Where in its shard a row's bytes start and stop; four bytes of checksum follow."""
        start = KEY_BYTES + position * (self.row_bytes + 4)
        return start, start + self.row_bytes

    def encode_row(self, row: ArrayLike) -> memoryview:
        """Return a row's bytes without copying it if it has the array's dtype."""
        array = np.asarray(row, dtype=_LITTLE[self.dtype], order="C")
        if array.shape != self.row_shape:
            raise ValueError(f"a row of {self.name} has shape {self.row_shape}, got {array.shape}")
        return array.reshape(-1).view(np.uint8).data

    def decode_row(self, data: bytes | memoryview) -> NDArray[Any]:
        """Return a read-only array that shares the memory of a row's bytes."""
        return np.frombuffer(data, _LITTLE[self.dtype]).reshape(self.row_shape)

    def empty_row(self) -> NDArray[Any]:
        """Return the row of fill values."""
        return np.full(self.row_shape, float(self.fill), self.dtype)

    def index(self, rows: int, block_rows: int) -> bytes:
        """Return the index of a shard with so many rows, and its checksum."""
        index = np.full((block_rows, 2), MISSING, "<u8")
        index[:rows, 0] = [self.extent(position)[0] for position in range(rows)]
        index[:rows, 1] = self.row_bytes + 4
        raw = index.tobytes()
        return raw + packed(crc32c(raw))

    def metadata(
        self, rows: int, block_rows: int, attributes: Mapping[str, object]
    ) -> dict[str, object]:
        """Return the array's `zarr.json` as a JSON object."""
        sharding = {
            "chunk_shape": [1, *self.row_shape],
            "codecs": [bytes_codec(self.dtype), {"name": "crc32c"}],
            "index_codecs": [bytes_codec("uint64"), {"name": "crc32c"}],
            "index_location": "end",
        }
        return zarr_array(
            (rows, *self.row_shape),
            block_rows,
            self.dtype,
            self.fill,
            [{"name": "sharding_indexed", "configuration": sharding}],
            ("sample", *self.dimensions),
            {"description": self.description, **attributes},
        )


def zarr_array(
    shape: tuple[int, ...],
    chunk: int,
    dtype: str,
    fill: object,
    codecs: list[dict[str, object]],
    dimensions: tuple[str, ...],
    attributes: Mapping[str, object],
) -> dict[str, object]:
    """Return the `zarr.json` of an array whose chunks are `chunk` rows long, as a JSON object."""
    grid = {"chunk_shape": [chunk, *shape[1:]]}
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [*shape],
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": grid},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": fill,
        "codecs": codecs,
        "attributes": dict(attributes),
        "dimension_names": [*dimensions],
        "storage_transformers": [],
    }


def bytes_codec(dtype: str) -> dict[str, object]:
    """Return the Zarr codec of little-endian numbers."""
    if np.dtype(dtype).itemsize == 1:
        return {"name": "bytes"}
    return {"name": "bytes", "configuration": {"endian": "little"}}


def array_specs(
    *,
    channels: int,
    grid: tuple[int, int],
    cells: int,
    square: int,
    features: Sequence[str],
    statistics: Sequence[str],
) -> dict[str, ArraySpec]:
    """Describe the arrays of a store for an encoder.

    Its output has `channels` and a `grid` (height, width) of tokens; the array `grid` has `cells` along a side; masks
    have `square` pixels. `features` and `statistics` name the columns of `pooled` and `image_stats`.
    """
    specs = [
        ArraySpec(
            "dense", (channels, *grid), "float16", "NaN", ("channel", "y", "x"),
            "output of the encoder",
        ),
        ArraySpec(
            "grid", (channels, cells, cells), "float16", "NaN", ("channel", "y_grid", "x_grid"),
            "mean of the valid tokens in each cell, 0 in cells without any",
        ),
        ArraySpec(
            "pooled", (len(features),), "float32", "NaN", ("feature",),
            "statistics over the valid tokens", tuple(features),
        ),
        ArraySpec(
            "image_stats", (len(statistics),), "float32", "NaN", ("statistic",),
            "statistics of the valid pixels of each band", tuple(statistics),
        ),
        ArraySpec(
            "original_size", (2,), "int32", 0, ("height_width",),
            "height and width of the original image in pixels",
        ),
        ArraySpec(
            "mask", (square, square), "uint8", 255, ("mask_y", "mask_x"),
            "class of each pixel of the encoder's square, 255 is ignored",
        ),
    ]  # fmt: skip
    return {spec.name: spec for spec in specs if all(spec.row_shape)}


def rows_of_a_block(rows: int, specs: Sequence[ArraySpec]) -> int:
    """Choose how many rows the blocks of a new store have, from its rows and the arrays to be written."""
    if rows < 1_000_000:
        return BLOCK_ROWS
    largest = max(spec.row_bytes for spec in specs)
    return max(BLOCK_ROWS, min(32 * 2**20 // largest, 1024))


def encode_shard(
    spec: ArraySpec, rows: Sequence[ArrayLike], block_rows: int, key: bytes = bytes(KEY_BYTES)
) -> tuple[list[bytes | memoryview], list[int]]:
    """Lay out the rows of a block without copying them: the pieces of the file, and the crc32c of each row."""
    pieces: list[bytes | memoryview] = [key]
    checksums = []
    for row in rows:
        data = spec.encode_row(row)
        checksums.append(crc32c(data))
        pieces += [data, packed(checksums[-1])]
    return [*pieces, spec.index(len(rows), block_rows)], checksums


def packed(crc: int) -> bytes:
    """Return a crc32c as it is stored."""
    return crc.to_bytes(4, "little")


def check_shard(
    spec: ArraySpec, shard: memoryview, rows: int, block_rows: int
) -> tuple[list[int], list[int], bool]:
    """Verify every byte of a shard but its key.

    Returns each row's crc32c, the positions of rows that fail theirs, and whether size and index are right.
    """
    found, damaged = [], []
    for position in range(rows):
        start, stop = spec.extent(position)
        found.append(crc32c(shard[start:stop]))
        if shard[stop : stop + 4] != packed(found[-1]):
            damaged.append(position)
    end = spec.index(rows, block_rows)
    start = spec.shard_bytes(rows, block_rows) - len(end)
    return found, damaged, shard[start:] == end
