"""The sample table: which image each row of a store is, as GeoParquet beside the rows.

Rows never change; what they mean is this table, which is replaced as a whole: `samples/000001.parquet` follows
`samples/000000.parquet`, and the one with the highest number counts. Rows that it does not list do not count.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from samtl._io import canonical
from samtl.errors import DamageError, InputError
from samtl.store.fingerprint import Identity
from samtl.store.format import FORMAT
from samtl.store.storage import Storage

FOLDER = "samples"
_NAME = re.compile(r"(\d{6,})\.parquet")
_KEY = b"samtl"
_GEO = {
    "version": "1.1.0",
    "primary_column": "geometry",
    "columns": {"geometry": {"encoding": "WKB", "geometry_types": [], "crs": None}},
}
_SCHEMA = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("sample", pa.string(), nullable=False),
        pa.field("image_sha256", pa.binary(32)),
        pa.field("label", pa.int32(), nullable=False),
        pa.field("label_name", pa.string()),
        pa.field("group", pa.string()),
        pa.field("part", pa.string()),
        pa.field("geometry", pa.binary()),
    ]
)


class About(msgspec.Struct, frozen=True):
    """What a table says of itself, in the Parquet file's key-value metadata under `samtl`.

    Attributes
    ----------
    dataset, note, task : str
        `note` is what readers of figures must know; `task` is `classification` or `segmentation`.
    classes : tuple of str
    rows_end : int
        Length of the arrays: one more than the largest row ever listed.
    number : int
        How many tables came before.
    follows : str
        sha256 of the file before, "" for the first.
    store_id, fingerprint : str
        Of the store; "" until the table is written.
    format : int
    digest : str
        sha256 of the rest of this and of the columns.
    """

    dataset: str
    note: str
    task: str
    classes: tuple[str, ...]
    rows_end: int
    number: int = 0
    follows: str = ""
    store_id: str = ""
    fingerprint: str = ""
    format: int = FORMAT
    digest: str = ""


class SampleTable:
    """The samples that count, ordered by row. Immutable; made by `SampleTable.make` or `read_table`.

    Attributes
    ----------
    about : About
    columns : pyarrow.Table
    sha256 : str
        Of the file that it was read from; "" if it is not written yet.
    """

    def __init__(self, about: About, columns: pa.Table, sha256: str = "") -> None:
        self.about, self.columns, self.sha256 = about, columns, sha256

    @classmethod
    def make(
        cls,
        *,
        dataset: str,
        classes: Sequence[str],
        rows: ArrayLike,
        samples: Sequence[str],
        labels: Sequence[int],
        task: str = "classification",
        note: str = "",
        groups: Sequence[str] = (),
        parts: Sequence[str] = (),
        images: Sequence[str] = (),
        rows_end: int | None = None,
    ) -> SampleTable:
        """Make a table.

        Parameters
        ----------
        dataset, note, task, classes, rows_end
            As in `About`; `rows_end` is by default one more than the last row.
        rows : (n,) int
            In any order.
        samples : (n,) str
            Unique ids.
        labels : (n,) int
            Class index, -1 if there is none.
        groups, parts, images : (n,) str or empty
            What each image was cut from; `train`, `validation` or `test` of the dataset's own split; sha256 of each
            image file, "" if unknown.
        """
        place = np.asarray(rows, np.int64)
        n = len(place)
        if not n == len(samples) == len(labels) == len(set(samples)):
            raise ValueError(f"{n} rows, {len(samples)} samples and {len(labels)} labels")
        none = pa.nulls(n, pa.string())
        index = np.asarray(labels, np.int32)
        columns = pa.table(
            [
                place,
                pa.array(samples, pa.string()),
                _hashes(images) if images else pa.nulls(n, pa.binary(32)),
                index,
                pa.array(
                    [classes[label] if label >= 0 else None for label in index.tolist()],
                    pa.string(),
                ),
                _or_null(groups) if groups else none,
                _or_null(parts) if parts else none,
                pa.nulls(n, pa.binary()),
            ],
            schema=_SCHEMA,
        )
        order = np.argsort(place, kind="stable")
        if not (order[1:] > order[:-1]).all():
            columns = columns.take(pa.array(order))
        end = int(place.max(initial=-1)) + 1 if rows_end is None else rows_end
        return cls(About(dataset, note, task, tuple(classes), end), columns)

    def __len__(self) -> int:
        """Count the samples."""
        return int(self.columns.num_rows)

    @property
    def path(self) -> str:
        """The file, relative to the store."""
        return table_name(self.about.number)

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """Row of each sample, (n,), ascending."""
        return _numbers(self.columns["row"])

    @cached_property
    def labels(self) -> NDArray[np.int32]:
        """Class index of each sample, (n,), -1 if there is none."""
        return _numbers(self.columns["label"])

    @cached_property
    def samples(self) -> tuple[str, ...]:
        """Id of each sample."""
        return tuple(self.columns["sample"].to_pylist())

    @cached_property
    def groups(self) -> tuple[str, ...]:
        """What each sample was cut from; empty if that is not known."""
        return self._texts("group")

    @cached_property
    def parts(self) -> tuple[str, ...]:
        """Part of the dataset's own split for each sample; empty if it has none."""
        return self._texts("part")

    @cached_property
    def images(self) -> tuple[str, ...]:
        """sha256 of each image file, "" if it is not known."""
        return tuple(raw.hex() if raw else "" for raw in self.columns["image_sha256"].to_pylist())

    @property
    def images_known(self) -> bool:
        """Whether the table has the sha256 of every image."""
        return not self.columns["image_sha256"].null_count

    def _texts(self, name: str) -> tuple[str, ...]:
        column = self.columns[name]
        if column.null_count == len(column):
            return ()
        return tuple(text or "" for text in column.to_pylist())

    @cached_property
    def position(self) -> NDArray[np.int64]:
        """Position in this table of each row of the arrays, (rows_end,), -1 if it is not listed."""
        found = np.full(self.about.rows_end, -1, np.int64)
        found[self.rows] = np.arange(len(self))
        return found

    def block_rows(self, block: int, size: int) -> range:
        """Rows of a block of `size` rows up to the last one listed; empty if none is."""
        first = block * size
        start, stop = np.searchsorted(self.rows, [first, first + size])
        return range(first, int(self.rows[stop - 1]) + 1) if start < stop else range(first, first)

    def digests(self) -> NDArray[np.uint8]:
        """sha256 of each image as 32 bytes, (n, 32), zeros if it is not known."""
        column = self.columns["image_sha256"].combine_chunks()
        data = column.buffers()[1] or b""
        found = np.frombuffer(data, np.uint8)[32 * column.offset :][: 32 * len(column)]
        if column.null_count:
            known = pc.is_valid(column).to_numpy(zero_copy_only=False)
            found = np.where(known[:, None], found.reshape(-1, 32), np.uint8(0))
        return found.reshape(-1, 32)

    def same_content(self, other: SampleTable) -> bool:
        """Whether two tables say the same, apart from image hashes, the note and their place in the sequence."""
        mine, theirs = (
            (t.about.dataset, t.about.task, t.about.classes, t.about.rows_end)
            for t in (self, other)
        )
        columns = [name for name in _SCHEMA.names if name != "image_sha256"]
        return mine == theirs and bool(
            self.columns.select(columns).equals(other.columns.select(columns))
        )

    def with_images(self, images: Sequence[str]) -> SampleTable:
        """Return the same table with the sha256 of each image, "" if it is not known."""
        at = _SCHEMA.get_field_index("image_sha256")
        return SampleTable(
            self.about, self.columns.set_column(at, _SCHEMA.field(at), _hashes(images))
        )

    def placed(self, identity: Identity, after: SampleTable | None) -> SampleTable:
        """Return the same table as the next one of a store."""
        about = msgspec.structs.replace(
            self.about,
            store_id=identity.store_id,
            fingerprint=identity.sha256,
            number=0 if after is None else after.about.number + 1,
            follows="" if after is None else after.sha256,
            digest="",
        )
        about = msgspec.structs.replace(about, digest=_digest(about, self.columns))
        return SampleTable(about, self.columns)

    def to_bytes(self) -> bytes:
        """Return the Parquet file of a table that was `placed`."""
        metadata = {_KEY: canonical(self.about), b"geo": canonical(_GEO)}
        sink = pa.BufferOutputStream()
        pq.write_table(
            self.columns.replace_schema_metadata(metadata),
            sink,
            compression={
                name: "none" if name == "image_sha256" else "zstd" for name in _SCHEMA.names
            },
            use_dictionary=["label_name", "group", "part"],
        )
        return bytes(sink.getvalue())


def table_name(number: int) -> str:
    """Path of a table relative to the store."""
    return f"{FOLDER}/{number:06d}.parquet"


def table_numbers(storage: Storage) -> list[int]:
    """List the numbers of the tables that are there, ascending; the last one counts."""
    found = (_NAME.fullmatch(name) for name in storage.list(FOLDER))
    return sorted(int(match[1]) for match in found if match)


def read_table(storage: Storage, identity: Identity, number: int | None = None) -> SampleTable:
    """Read a table of a store, by default the newest.

    Raises
    ------
    FileNotFoundError
        If there is none.
    DamageError
        If it is torn, altered, inconsistent or another store's.
    """
    if number is None:
        numbers = table_numbers(storage)
        if not numbers:
            raise FileNotFoundError(FOLDER)
        number = numbers[-1]
    name = table_name(number)
    raw, where = storage.read(name), f"{storage.url}/{name}"
    try:
        columns = pq.ParquetFile(pa.BufferReader(raw)).read()
        about = msgspec.json.decode(columns.schema.metadata[_KEY], type=About)
        columns = columns.replace_schema_metadata().cast(_SCHEMA)
        intact = _digest(msgspec.structs.replace(about, digest=""), columns) == about.digest
    except (pa.ArrowException, ValueError, KeyError, TypeError, OSError, OverflowError) as error:
        raise DamageError(f"{where} is damaged or is no sample table: {error}") from error
    if not intact or about.number != number:
        raise DamageError(f"{where} fails its own digest: it was altered or is damaged")
    if about.format != FORMAT:
        raise InputError(f"{where} has format {about.format}, this samtl reads format {FORMAT}")
    if about.store_id != identity.store_id or about.fingerprint != identity.sha256:
        raise DamageError(
            f"{where} belongs to another store: take the right one from a copy of this store"
        )
    found = SampleTable(about, columns, hashlib.sha256(raw).hexdigest())
    rows, labels = found.rows, found.labels
    if (
        not (np.diff(rows) > 0).all()
        or (len(rows) and (rows[0] < 0 or rows[-1] >= about.rows_end))
        or (len(rows) and not -1 <= labels.min() <= labels.max() < len(about.classes))
    ):
        raise DamageError(f"{where} lists a row twice, or a row or a label that is not there")
    return found


def _or_null(texts: Sequence[str]) -> pa.Array:
    return pa.array([text or None for text in texts], pa.string())


def _hashes(texts: Sequence[str]) -> pa.Array:
    return pa.array([bytes.fromhex(text) or None for text in texts], pa.binary(32))


def _numbers(column: pa.ChunkedArray) -> NDArray[Any]:
    return column.combine_chunks().to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]


def _content(column: pa.Array) -> memoryview:
    """Return the bytes of a column of texts, one after the other."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    _, offsets, data = column.buffers()
    if data is None or not len(column):
        return memoryview(b"")
    ends = np.frombuffer(offsets, np.int32)[column.offset : column.offset + len(column) + 1]
    return memoryview(data)[int(ends[0]) : int(ends[-1])]


def _digest(about: About, columns: pa.Table) -> str:
    """Compute the sha256 over a table's metadata and each column: numbers, or lengths and then bytes of texts."""
    fields = msgspec.to_builtins(about)
    del fields["digest"]
    found = hashlib.sha256(canonical(fields))
    for name in _SCHEMA.names:
        column = columns[name].combine_chunks()
        if name == "image_sha256":
            found.update(np.ascontiguousarray(SampleTable(about, columns).digests()).data)
        elif pa.types.is_integer(column.type):
            found.update(np.ascontiguousarray(_numbers(columns[name])).data)
        else:
            lengths = pc.fill_null(pc.binary_length(column), 0).to_numpy(zero_copy_only=False)
            found.update(lengths.astype("<i4").data)
            found.update(_content(column))
    return found.hexdigest()
