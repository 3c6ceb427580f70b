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
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from samtl._io import canonical
from samtl.errors import DamageError, InputError
from samtl.splits.labels import label_array
from samtl.store.fingerprint import Identity
from samtl.store.format import FORMAT
from samtl.store.storage import Storage

FOLDER = "samples"
_NAME = re.compile(r"(\d{6,})\.parquet")
_UNSIGNED = "0" * 64  # in place of the digest, while it is computed
_GEO: dict[str, object] = {"geometry": {"encoding": "WKB", "geometry_types": [], "crs": None}}
_FIELDS = [
    pa.field("row", pa.int64(), nullable=False),
    pa.field("sample", pa.string(), nullable=False),
    pa.field("image_sha256", pa.binary(32)),
    pa.field("label", pa.int32(), nullable=False),
    pa.field("label_name", pa.string()),
    pa.field("group", pa.string()),
    pa.field("part", pa.string()),
    pa.field("geometry", pa.binary()),
]
#: Columns of tasks in which an image has more, or something else, than a class.
_OF_TASK = {
    "multilabel": pa.field("labels", pa.list_(pa.int32())),
    "regression": pa.field("target", pa.float64()),
}


def _schema(task: str) -> pa.Schema:
    return pa.schema([*_FIELDS, *([_OF_TASK[task]] if task in _OF_TASK else [])])


class About(msgspec.Struct, frozen=True):
    """What a table says of itself, in the Parquet file's key-value metadata under `samtl`."""

    dataset: str
    note: str  # what readers of figures must know
    task: str  # `classification`, `multilabel`, `regression` or `segmentation`
    classes: tuple[str, ...]
    rows_end: int  # length of the arrays: one more than the largest row ever listed
    number: int = -1  # how many tables came before; -1 until a store has it
    follows: str = ""  # digest of the last of them
    store_id: str = ""
    fingerprint: str = ""
    format: int = FORMAT
    digest: str = ""  # sha256 of the file with zeros in place of these digits


def _texts(name: str) -> cached_property[tuple[str, ...]]:
    """Make a property of a column of texts: "" for null, and empty if there is nothing else."""

    def read(table: SampleTable) -> tuple[str, ...]:
        column = table.columns[name]
        known = column.null_count < len(column)
        return tuple(text or "" for text in column.to_pylist()) if known else ()

    return cached_property(read)


class SampleTable:
    """The samples that count, ordered by row. Immutable; made by `SampleTable.make` or `read_table`."""

    samples = _texts("sample")  # ids
    groups, parts = _texts("group"), _texts("part")  # empty if they are not known

    def __init__(self, about: About, columns: pa.Table) -> None:
        self.about, self.columns = about, columns

    @classmethod
    def make(
        cls,
        *,
        dataset: str,
        classes: Sequence[str],
        rows: ArrayLike,
        samples: Sequence[str],
        labels: Sequence[Any],
        task: str = "classification",
        note: str = "",
        groups: Sequence[str] = (),
        parts: Sequence[str] = (),
        images: Sequence[str] = (),
        rows_end: int | None = None,
    ) -> SampleTable:
        """Make a table, the rows in any order.

        Labels are those of a `Dataset`; parts are `train`, `validation` or `test`; `images` are the
        sha256 of the image files, "" if unknown. `rows_end` is by default one more than the last row.
        """
        place, n = np.asarray(rows, np.int64), len(samples)
        index = np.full(n, -1, np.int32) if task in _OF_TASK else np.asarray(labels, np.int32)
        if not n == len(place) == len(labels) == len(set(samples)):
            raise ValueError(f"{len(place)} rows, {n} samples and {len(labels)} labels")
        names = [classes[label] if label >= 0 else None for label in index.tolist()]
        if task == "multilabel":
            names = [
                some if some is None else ";".join(classes[i] for i in some) for some in labels
            ]
        columns = [
            _array(pa.int64(), n, place),
            _text_array(samples),
            _hash_array(images or [""] * n),
            _array(pa.int32(), n, index),
            _text_array(names),
            *(
                _text_array([text or None for text in texts or [""] * n])
                for texts in (groups, parts)
            ),
            pa.nulls(n, pa.binary()),
        ]
        if task in _OF_TASK:
            columns.append(pa.array(labels, _OF_TASK[task].type, from_pandas=True))
        end = int(place.max(initial=-1)) + 1 if rows_end is None else rows_end
        table = pa.Table.from_arrays(columns, schema=_schema(task)).sort_by("row")
        return cls(About(dataset, note, task, tuple(classes), end), table)

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
        return _values(self.columns["row"], "<i8")

    @cached_property
    def indices(self) -> NDArray[np.int32]:
        """Class index of each sample, (n,), -1 if it has none or several."""
        return _values(self.columns["label"], "<i4")

    @cached_property
    def label_names(self) -> tuple[str, ...]:
        """Name of each sample's class, or of several, with `;` between them; "" if there is none."""
        return tuple(name or "" for name in self.columns["label_name"].to_pylist())

    @cached_property
    def labels(self) -> NDArray[Any]:
        """Class index of each sample, (n,) int32, -1 if there is none; else as `samtl.splits.labels.label_array`."""
        task = self.about.task
        if task not in _OF_TASK:
            return self.indices
        values = self.columns[_OF_TASK[task].name].to_pylist()
        return label_array(task, values, len(self.about.classes))

    @cached_property
    def images(self) -> tuple[str, ...]:
        """sha256 of each image file, "" if it is not known."""
        return tuple(raw.hex() if raw else "" for raw in self.columns["image_sha256"].to_pylist())

    @cached_property
    def position(self) -> NDArray[np.int64]:
        """Position in this table of each row of the arrays, (rows_end,), -1 if it is not listed."""
        found = np.full(self.about.rows_end, -1, np.int64)
        found[self.rows] = np.arange(len(self))
        return found

    @property
    def label_columns(self) -> list[str]:
        """Names of the columns that say what a sample is."""
        of_task = _OF_TASK.get(self.about.task)
        return ["label", "label_name", *([of_task.name] if of_task else [])]

    def block_rows(self, block: int, size: int) -> range:
        """Rows of a block of `size` rows up to the last one listed; empty if none is."""
        first = block * size
        start, stop = np.searchsorted(self.rows, [first, first + size])
        return range(first, int(self.rows[stop - 1]) + 1) if start < stop else range(first, first)

    def digests(self) -> NDArray[np.uint8]:
        """sha256 of each image as 32 bytes, (n, 32), zeros if it is not known."""
        column = self.columns["image_sha256"]
        if not column.null_count:
            return _values(column, "V32").view(np.uint8).reshape(-1, 32)
        raw = b"".join(one or bytes(32) for one in column.to_pylist())
        return np.frombuffer(raw, np.uint8).reshape(-1, 32)

    def same_content(self, other: SampleTable) -> bool:
        """Whether two tables say the same, apart from image hashes, the note and their place in the sequence."""
        fields = ("dataset", "task", "classes", "rows_end")
        mine, theirs = (
            (*(getattr(t.about, name) for name in fields), t.columns.drop_columns("image_sha256"))
            for t in (self, other)
        )
        return mine == theirs

    def with_images(self, images: Sequence[str]) -> SampleTable:
        """Return the same table with the sha256 of each image, "" if it is not known."""
        at = self.columns.schema.get_field_index("image_sha256")
        field = self.columns.schema.field(at)
        columns = self.columns.set_column(at, field, _hash_array(images))
        return SampleTable(self.about, columns)

    def placed(self, identity: Identity, after: About) -> tuple[SampleTable, bytes]:
        """Return the same table as the next one of a store, and its file."""
        about = msgspec.structs.replace(
            self.about,
            store_id=identity.store_id,
            fingerprint=identity.sha256,
            number=after.number + 1,
            follows=after.digest,
            digest=_UNSIGNED,
        )
        geo = {"version": "1.1.0", "primary_column": "geometry", "columns": _GEO}
        sink = pa.BufferOutputStream()
        with pq.ParquetWriter(
            sink,
            self.columns.schema,
            compression={
                n: "none" if n == "image_sha256" else "zstd" for n in self.columns.column_names
            },
            use_dictionary=["label_name", "group", "part"],
            store_schema=False,  # it would repeat the metadata
        ) as writer:
            writer.write_table(self.columns)
            writer.add_key_value_metadata({"samtl": canonical(about), "geo": canonical(geo)})
        raw = bytes(sink.getvalue())
        digest = hashlib.sha256(raw).hexdigest()
        about = msgspec.structs.replace(about, digest=digest)
        return SampleTable(about, self.columns), signed(raw, _UNSIGNED, digest)


def signed(raw: bytes, old: str, new: str) -> bytes:
    """Exchange the digest in a table's file, which is in the footer."""
    before, found, after = raw.rpartition(f'"digest":"{old}"'.encode())
    return before + f'"digest":"{new}"'.encode() + after if found else raw


def table_name(number: int) -> str:
    """Path of a table relative to the store."""
    return f"{FOLDER}/{number:06d}.parquet"


def table_numbers(storage: Storage) -> list[int]:
    """List the numbers of the tables that are there, ascending; the last one counts."""
    found = (_NAME.fullmatch(name) for name in storage.list(FOLDER))
    return sorted(int(match[1]) for match in found if match)


def read_table(storage: Storage, identity: Identity, number: int) -> SampleTable:
    """Read a table of a store; DamageError if it is torn, altered, inconsistent or another store's."""
    name = table_name(number)
    where = f"{storage.url}/{name}"
    try:
        raw = storage.read(name)
        file = pq.ParquetFile(pa.BufferReader(raw))
        about = msgspec.json.decode(file.metadata.metadata[b"samtl"], type=About)
        blank = signed(raw, about.digest, _UNSIGNED)
        if hashlib.sha256(blank).hexdigest() != about.digest or about.number != number:
            raise DamageError(f"{where} fails its own digest: it was altered or is damaged")
        columns = file.read().replace_schema_metadata().cast(_schema(about.task))
    except FileNotFoundError as error:
        raise DamageError(f"{where} is missing: take it from a copy of the store") from error
    except (pa.ArrowException, ValueError, KeyError, TypeError, OSError, OverflowError) as error:
        raise DamageError(f"{where} is damaged or is no sample table: {error}") from error
    if about.format != FORMAT:
        raise InputError(f"{where} has format {about.format}, this samtl reads format {FORMAT}")
    if about.store_id != identity.store_id or about.fingerprint != identity.sha256:
        raise DamageError(
            f"{where} belongs to another store: take the right one from a copy of this store"
        )
    found = SampleTable(about, columns)
    rows, labels = found.rows, found.indices
    try:
        sound = not len(found.labels) or -1 <= labels.min() <= labels.max() < len(about.classes)
    except (IndexError, TypeError, ValueError):  # of classes that are not there
        sound = False
    if (
        not sound
        or not (np.diff(rows) > 0).all()
        or (len(rows) and (rows[0] < 0 or rows[-1] >= about.rows_end))
    ):
        raise DamageError(f"{where} lists a row twice, or a row or a label that is not there")
    return found


def _values(column: pa.ChunkedArray, dtype: str) -> NDArray[Any]:
    """Return a column of one size without a copy, and without pandas, which pyarrow's own methods import."""
    array = column.combine_chunks()
    values = np.frombuffer(array.buffers()[1] or b"", dtype, array.offset + len(array))
    return values[array.offset :]


def _array(
    kind: pa.DataType, n: int, values: Any, *ends: Any, known: Sequence[bool] | None = None
) -> pa.Array:
    """Make a column from the memory that it takes; `pa.array` would import pandas, which takes half a second."""
    valid = None if known is None else np.packbits(np.array(known, bool), bitorder="little")
    buffers = [None if one is None else pa.py_buffer(one) for one in (valid, *ends, values)]
    return pa.Array.from_buffers(kind, n, buffers)


def _text_array(texts: Sequence[str | None]) -> pa.Array:
    raw, known = [(text or "").encode() for text in texts], [text is not None for text in texts]
    ends = np.cumsum([0, *map(len, raw)])
    return _array(pa.large_string(), len(raw), b"".join(raw), ends, known=known).cast(pa.string())


def _hash_array(texts: Sequence[str]) -> pa.Array:
    """Make a column of sha256, null for ""."""
    raw = bytes.fromhex("".join(text or "0" * 64 for text in texts))
    return _array(pa.binary(32), len(texts), raw, known=[*map(bool, texts)])


#: Of a store that was begun, and whose writer was killed before it had one.
NO_TABLE = SampleTable.make(dataset="", classes=(), rows=(), samples=(), labels=())
