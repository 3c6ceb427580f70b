"""Format 1 of a store: the arrays, their bytes on disk, and their Zarr metadata.

A store is a folder::

    NAME.zarr/
      fingerprint.json            what the embeddings are; written first, never again
      rows/0.json                 which sample each row is: ids, labels, classes, dataset; rows/1.json after a change
      zarr.json                   the Zarr v3 group, with the metadata of its arrays inlined
      ARRAY/zarr.json             one Zarr v3 array
      ARRAY/c.BLOCK[.0...]        one shard: rows 16 * BLOCK to 16 * BLOCK + 15
      log/BLOCK.json              the commit record of a block; log/BLOCK.1.json and so on for what came later
      .lock  .writer.json         the writer's lock, and who holds it

A shard holds one inner chunk per row: the row's bytes (little endian, C order) and their crc32c,
uncompressed, one after the other; then the index, 16 pairs (offset, length) of uint64, and the index's
crc32c. Rows beyond the end of the array have the pair (2**64 - 1, 2**64 - 1). This is Zarr v3's
`sharding_indexed` codec with `bytes` (`vlen-utf8` for strings) and `crc32c` inside.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from awscrt import checksums
from numpy.typing import NDArray

from samtl.errors import DamageError
from samtl.images.transforms import PATCH, grid_cells

FORMAT = 1
BLOCK_ROWS = 16
MISSING = 2**64 - 1
INDEX_BYTES = BLOCK_ROWS * 16 + 4
ROOT = "zarr.json"  # of the group; of an array, in its folder
METADATA_BYTES = 64 * 2**20  # a list of millions of rows that do not count is not larger

# Which array each tier is kept in. `dense` is the encoder's output itself.
TIER_ARRAYS = {"pooled": "pooled", "grid": "grid", "dense": "dense"}


@dataclass(frozen=True)
class ArraySpec:
    """One array of a store.

    Attributes
    ----------
    name : str
    row_shape : tuple of int
        Shape of one row, () for a scalar.
    dtype : str
        A numpy dtype's name, or "string".
    fill : float or int or str
        What stands in rows that hold nothing; NaN for floats.
    dimensions : tuple of str
        Names of the dimensions after `sample`. Dimensions of one name have one size in the whole store.
    attributes : dict
        Zarr attributes.
    """

    name: str
    row_shape: tuple[int, ...]
    dtype: str
    fill: float | int | str
    dimensions: tuple[str, ...]
    attributes: dict[str, object] = field(default_factory=dict)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row without its checksum; 0 for strings, whose rows differ in length."""
        if self.dtype == "string":
            return 0
        return int(np.prod(self.row_shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize

    def shard_path(self, block: int) -> str:
        """Path of a block's shard relative to the store."""
        return ".".join([f"{self.name}/c", str(block), *["0"] * len(self.row_shape)])

    def shard_bytes(self, rows: int = BLOCK_ROWS) -> int:
        """Size of a shard with so many rows; 0 for strings."""
        return rows * (self.row_bytes + 4) + INDEX_BYTES if self.row_bytes else 0

    def encode_row(self, row: object) -> bytes | memoryview:
        """Give a row's bytes, without the checksum."""
        if self.dtype == "string":
            text = str(row).encode("utf-8")
            # Zarr's vlen-utf8: how many strings, then each one's length and bytes.
            return b"\x01\0\0\0" + len(text).to_bytes(4, "little") + text
        array = np.asarray(row, dtype=np.dtype(self.dtype).newbyteorder("<"), order="C")
        if array.shape != self.row_shape:
            raise ValueError(f"a row of {self.name} has shape {self.row_shape}, got {array.shape}")
        return array.reshape(-1).view(np.uint8).data

    def decode_row(self, data: bytes | memoryview) -> object:
        """Give a row back from its bytes: a str, or a read-only array that shares their memory."""
        if self.dtype == "string":
            return bytes(data[8:]).decode("utf-8")
        return np.frombuffer(data, _little_endian(self.dtype)).reshape(self.row_shape)

    def empty_row(self) -> object:
        """Give the row that stands where there is nothing."""
        if self.dtype == "string":
            return self.fill
        return np.full(self.row_shape, self.fill, self.dtype)

    def metadata(self, rows: int) -> dict[str, object]:
        """Give the array's `zarr.json` as a JSON object."""
        is_string = self.dtype == "string"
        serializer: dict[str, object] = (
            {"name": "vlen-utf8"}
            if is_string
            else {"name": "bytes", "configuration": {"endian": "little"}}
            if np.dtype(self.dtype).itemsize > 1
            else {"name": "bytes"}
        )
        little_endian = {"name": "bytes", "configuration": {"endian": "little"}}
        return {
            "zarr_format": 3,
            "node_type": "array",
            "shape": [rows, *self.row_shape],
            "data_type": self.dtype,
            "chunk_grid": {
                "name": "regular",
                "configuration": {"chunk_shape": [BLOCK_ROWS, *self.row_shape]},
            },
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
            "fill_value": "NaN" if self.fill != self.fill else self.fill,
            "codecs": [
                {
                    "name": "sharding_indexed",
                    "configuration": {
                        "chunk_shape": [1, *self.row_shape],
                        "codecs": [serializer, {"name": "crc32c"}],
                        "index_codecs": [little_endian, {"name": "crc32c"}],
                        "index_location": "end",
                    },
                }
            ],
            "attributes": self.attributes,
            "dimension_names": ["sample", *self.dimensions],
            "storage_transformers": [],
        }


def array_specs(side: int, columns: Mapping[str, Sequence[str]]) -> dict[str, ArraySpec]:
    """Describe every array that a store may hold.

    Parameters
    ----------
    side : int
        Tokens along a side of the encoder's grid: image size / 16.
    columns : mapping
        Names of the columns of `pooled` and of `image_stats`.
    """
    nan = float("nan")
    cells = grid_cells(side)
    pooled, statistics = list(columns["pooled"]), list(columns["image_stats"])
    specs = [
        ArraySpec(
            "dense", (256, side, side), "float16", nan, ("channel", "y", "x"),
            {"description": "the encoder's output"},
        ),
        ArraySpec(
            "grid", (256, cells, cells), "float16", nan, ("channel", "y_grid", "x_grid"),
            {"description": "mean of the valid tokens in each cell; 0 in cells without any"},
        ),
        ArraySpec(
            "pooled", (len(pooled),), "float32", nan, ("feature",),
            {"description": "statistics over the valid tokens", "columns": pooled},
        ),
        ArraySpec(
            "image_stats", (len(statistics),), "float32", nan, ("statistic",),
            {"description": "statistics of the original pixels", "columns": statistics},
        ),
        ArraySpec(
            "original_size", (2,), "int32", 0, ("height_width",),
            {"description": "height and width of the original image in pixels"},
        ),
        ArraySpec(
            "mask", (side * PATCH, side * PATCH), "uint8", 255, ("mask_y", "mask_x"),
            {"description": "the target on the encoder's padded square; 255 is to be ignored"},
        ),
        ArraySpec("label", (), "int32", -1, (), {"description": "class index, -1 where none"}),
        ArraySpec(
            "sample_id", (), "string", "", (), {"description": "path below the dataset's root"}
        ),
    ]  # fmt: skip
    return {spec.name: spec for spec in specs}


def root_metadata(
    identity: Mapping[str, Any], listed: Mapping[str, object], arrays: Mapping[str, object]
) -> dict[str, object]:
    """Give the root's `zarr.json`, the metadata of its arrays inlined so that readers need list nothing.

    Parameters
    ----------
    identity : mapping
        Content of `fingerprint.json`.
    listed : mapping
        What the list of rows has for these readers: `Rows.attributes`.
    arrays : mapping
        Name to `zarr.json` of each array that is there.
    """
    attributes = {
        "format": FORMAT,
        "fingerprint": identity["sha256"],
        "encoder": identity["fingerprint"]["encoder"]["name"],
        **identity["about"],
        **listed,
    }
    return {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": {"samtl": attributes},
        "consolidated_metadata": {
            "kind": "inline",
            "must_understand": False,
            "metadata": arrays,
        },
    }


@dataclass(frozen=True)
class EncodedShard:
    """A shard's bytes as a list of pieces in file order, and the crc32c of each row."""

    pieces: list[bytes | memoryview]
    row_crc32c: list[int]

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return sum(len(piece) for piece in self.pieces)


def encode_shard(spec: ArraySpec, rows: Sequence[object]) -> EncodedShard:
    """Lay out the rows of a block, at most 16, without copying them."""
    pieces: list[bytes | memoryview] = []
    checksums: list[int] = []
    index = np.full((BLOCK_ROWS, 2), MISSING, dtype="<u8")
    offset = 0
    for position, row in enumerate(rows):
        data = spec.encode_row(row)
        crc = crc32c(data)
        pieces += [data, crc.to_bytes(4, "little")]
        checksums.append(crc)
        index[position] = offset, len(data) + 4
        offset += len(data) + 4
    packed = index.tobytes()
    pieces += [packed, crc32c(packed).to_bytes(4, "little")]
    return EncodedShard(pieces, checksums)


def shard_index(shard: memoryview, path: str, beyond: int | None = None) -> NDArray[np.uint64]:
    """Read the index at a shard's end.

    Parameters
    ----------
    shard : memoryview
        The file, or its end.
    path : str
        For messages.
    beyond : int, optional
        Size of the whole file where `shard` is only its end.

    Returns
    -------
    ndarray of uint64, (16, 2)
        Offset and length of each row, checksum included.

    Raises
    ------
    DamageError
        Where the index is cut short, fails its checksum, or points outside the file.
    """
    end = len(shard) - INDEX_BYTES
    packed = shard[end:-4]
    if end < 0 or crc32c(packed) != int.from_bytes(shard[-4:], "little"):
        raise DamageError(
            f"{path}: the shard's index fails its checksum: the store is damaged there"
        )
    index = np.frombuffer(packed, "<u8").reshape(BLOCK_ROWS, 2)
    present = index[index[:, 0] != MISSING]
    room = (beyond or len(shard)) - INDEX_BYTES
    # Each number by itself first, since the sum of two large ones wraps around.
    if (present > room).any() or (present.sum(axis=1) > room).any():
        raise DamageError(
            f"{path}: the shard's index points outside the file: the store is damaged there"
        )
    return index.astype(np.uint64)


@functools.cache
def _little_endian(dtype: str) -> np.dtype[Any]:
    return np.dtype(dtype).newbyteorder("<")


def crc32c(data: bytes | memoryview) -> int:
    """Compute the CRC-32C (Castagnoli) of bytes."""
    return int(checksums.crc32c(data))
