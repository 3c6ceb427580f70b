"""Reading a store: memory-mapped shards, every row's checksum verified, only committed rows handed out."""

from __future__ import annotations

import errno
import functools
import mmap
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from samtl._runtime import prefetch
from samtl.errors import (
    DamageError,
    InputError,
    LockedError,
    ResourceError,
    SamtlError,
)
from samtl.images.transforms import PATCH
from samtl.store.agreement import (
    other_labels,
    other_samples,
    require_newest,
    strangers,
)
from samtl.store.durable import recover_folder
from samtl.store.fetched import FetchedShard, RowCache, row_cache
from samtl.store.fingerprint import FILE, read_fingerprint, row_key
from samtl.store.layout import (
    BLOCK_ROWS,
    MISSING,
    TIER_ARRAYS,
    ArraySpec,
    array_specs,
    crc32c,
    shard_index,
)
from samtl.store.log import (
    OK,
    CommittedFile,
    Record,
    committed,
    image_of,
    read_log,
    read_record,
    record_name,
    required,
    snapshot,
)
from samtl.store.remote import RemotePath, as_path, client
from samtl.store.rows import Rows, newest, read_rows
from samtl.store.verify import wrong_metadata

if TYPE_CHECKING:
    import zarr

# Mapped shards kept open, for each array: each holds a file descriptor, of which a process may have as few as 256. What
# was read of them counts as the process's memory, so only these many bytes of them are kept at hand.
OPEN_SHARDS = 64
OPEN_BYTES = 256 * 2**20
Index = list[list[int]]  # offset and length of each row of a shard
_FETCHERS = 4  # blocks that are read at a time from a bucket


@dataclass(frozen=True)
class Quarantined:
    """A row that holds nothing because its image could not be used."""

    row: int
    sample_id: str
    code: str
    reason: str


@dataclass(frozen=True)
class ArraySummary:
    """One array: its whole shape, how many of its rows are committed, and their bytes on disk."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    rows: int
    bytes: int


@dataclass(frozen=True)
class Summary:
    """What `samtl info` shows.

    Attributes
    ----------
    rows, ok, missing : int
        All rows; those that hold an embedding in every array; those not yet committed in every array.
    superseded : int
        Rows beside these that no longer count: their images were taken out of the dataset, or changed.
    per_class : dict
        Class name to number of rows.
    arrays : tuple of ArraySummary
    quarantined : tuple of Quarantined
    about : dict
        Names and digests: store, dataset, encoder, weights, fingerprint and so on.
    """

    rows: int
    ok: int
    missing: int
    superseded: int
    per_class: dict[str, int]
    arrays: tuple[ArraySummary, ...]
    quarantined: tuple[Quarantined, ...]
    about: dict[str, object]

    @property
    def bytes(self) -> int:
        """Bytes on disk of all committed shards."""
        return sum(array.bytes for array in self.arrays)

    def to_json(self) -> dict[str, object]:
        """Give the summary as JSON values."""
        content = asdict(self)
        return {**content.pop("about"), **content, "bytes": self.bytes}


@dataclass
class _Read:
    """A mapped shard, the positions of its rows that were read, and their bytes: about what is in memory of it."""

    shard: memoryview
    positions: set[int]
    size: int = 0


class Store:
    """What is committed in a store at the moment it is opened.

    Made by `samtl.open`. Rows that are committed later are not seen; open it again for those. Rows that no longer
    count, since their images were taken out of the dataset or changed, are left out, and the others are numbered
    without them; in the plain Zarr arrays they are still there.

    Attributes
    ----------
    path : Path
    fingerprint : str
        sha256 of the identity of its rows.
    identity : dict
        The fields behind it: encoder, weights, preprocessing, dtypes.
    snapshot : str
        sha256 over the commit records that were read, and over the list of rows where it changed.
    weights : str
        What the encoder's weights are, such as "untrained (random:0)".
    untrained : bool
        True where they are random numbers.
    arrays : tuple of str
        Names of the arrays with at least one committed block.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        content = read_fingerprint(path)
        self.fingerprint: str = content["sha256"]
        self.identity: dict[str, Any] = content["fingerprint"]
        self.weights: str = str(content["about"].get("weights", "unknown"))
        self.untrained = bool(content["about"].get("untrained", True))
        for _ in range(3):
            self._rows: Rows = read_rows(path)
            records = read_log(path)
            if newest(path) == self._rows.path:
                break  # else the records may be of a list that came meanwhile
        require_newest(path, self._rows)
        self._places: NDArray[np.int64] | None = None  # of the rows that count, where not all do
        if self._rows.generation:
            self._places = np.array(self._rows.current, dtype=np.int64)
        for record in records:
            self._check_record(record)
        self._latest = {record.block: (record.sequence, record.checksum) for record in records}
        self.snapshot = snapshot(records, self._rows.checksum if self._rows.generation else "")
        self._records = committed(records)
        self._required = required(records, self._rows.task)
        self._specs = array_specs(int(self.identity["image_size"]) // PATCH, content["columns"])
        unknown = self._records.keys() - self._specs.keys()
        if unknown:
            raise DamageError(
                f"{path}: the log names arrays that format 1 does not have: {sorted(unknown)}"
            )
        self.arrays = tuple(name for name in self._specs if self._records.get(name))
        labels = self._records.get("label", {})
        for block in other_labels(self._rows, self._specs["label"], labels):
            del labels[block]  # those of the list are still to be written
        self._named: set[int] = set()  # blocks that were committed as the samples of the list
        self._using = threading.Lock()
        self._read_of: dict[tuple[str, int], _Read] = {}  # the one that was read last at the end
        self._bytes_read = 0
        self._row_cache: RowCache | None = row_cache() if isinstance(path, RemotePath) else None
        self._shards = {name: self._cached(self._specs[name]) for name in self.arrays}

    def __repr__(self) -> str:
        done = int(self.valid().sum())
        return (
            f"<samtl store {self.path}: {done} of {len(self)} rows, {', '.join(self.arrays)}; "
            f"{self.encoder}, weights {self.weights}>"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to another process, which opens it there."""
        return _opened_again, (self.path, self._rows.checksum)

    def __len__(self) -> int:
        """Count the rows, embedded or not."""
        return len(self._rows.current)

    @property
    def name(self) -> str:
        """The folder's name without `.zarr`."""
        return self.path.resolve().name.removesuffix(".zarr")

    @property
    def encoder(self) -> str:
        """The encoder's name."""
        return str(self.identity["encoder"]["name"])

    @property
    def dataset(self) -> str:
        """The dataset's name."""
        return self._rows.dataset

    @property
    def note(self) -> str:
        """What readers of figures must know about the dataset, or ""."""
        return self._rows.note

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes; a label, or a pixel of a mask, is an index into them."""
        return self._rows.classes

    @property
    def task(self) -> str:
        """What the targets are for: `classification` (labels) or `segmentation` (masks)."""
        return self._rows.task

    @property
    def groups(self) -> tuple[str, ...]:
        """What each row's image was cut from, such as its scene; empty where that is not known."""
        return self._counted(self._rows.groups)

    @property
    def parts(self) -> tuple[str, ...]:
        """Each row's part of the split that the dataset ships with: `train`, `validation`, `test`; or empty."""
        return self._counted(self._rows.parts)

    @property
    def sample_ids(self) -> tuple[str, ...]:
        """The id of every row: its image's path below the dataset's root."""
        return self._counted(self._rows.sample_ids)

    @property
    def labels(self) -> NDArray[np.int32]:
        """The class index of every row, (rows,) int32, -1 where there is none."""
        return np.array(self._counted(self._rows.labels), dtype=np.int32)

    @property
    def tiers(self) -> tuple[str, ...]:
        """The tiers with at least one committed block."""
        return tuple(tier for tier, array in TIER_ARRAYS.items() if array in self.arrays)

    @property
    def wanted_tiers(self) -> tuple[str, ...]:
        """The tiers that its rows are to be in: those that it has, and those that were withdrawn."""
        return tuple(tier for tier, name in TIER_ARRAYS.items() if name in self._required)

    def columns(self, array: str) -> tuple[str, ...]:
        """Names of the columns of `pooled` or `image_stats`."""
        return tuple(str(c) for c in self._spec(array).attributes["columns"])  # type: ignore[attr-defined]

    def shape(self, array: str) -> tuple[int, ...]:
        """The shape of an array with a row for each that counts."""
        return (len(self), *self._spec(array).row_shape)

    def bytes_of(self, array: str) -> int:
        """How many bytes all rows of an array of numbers come to, committed or not."""
        return len(self) * self._spec(array).row_bytes

    def dtype(self, array: str) -> str:
        """The name of an array's dtype; "string" for `sample_id`."""
        return self._spec(array).dtype

    def valid(self, *arrays: str) -> NDArray[np.bool_]:
        """Mark the rows that are committed and hold an embedding.

        Parameters
        ----------
        *arrays : str
            Arrays in which they must; by default all that the store has, or had before they were withdrawn.

        Returns
        -------
        ndarray of bool, (rows,)
        """
        return self._every(arrays, lambda record: np.array([s == OK for s in record.status]))

    @property
    def missing(self) -> int:
        """How many rows are not committed in every array that the store has, or had before it was withdrawn."""
        return len(self) - int(self._every((), _all_of).sum())

    @property
    def quarantined(self) -> tuple[Quarantined, ...]:
        """The rows whose images could not be used, in the order of rows."""
        found: dict[int, tuple[str, str]] = {}
        for by_block in self._records.values():
            for record in by_block.values():
                for place, status in enumerate(record.status, record.first_row):
                    if status != OK and place in self._rows.counts:
                        code = status.partition(":")[2]
                        found[place] = code, record.reasons.get(str(place), "")
        places = sorted(found)
        rows = places if self._places is None else np.searchsorted(self._places, places).tolist()
        return tuple(
            Quarantined(row, self._rows.sample_ids[place], *found[place])
            for row, place in zip(rows, places, strict=True)
        )

    def image_sha256(self, row: int) -> str:
        """The sha256 of the image file's bytes that a row was made from; "" where it is not committed."""
        block, position = divmod(self._place(row), BLOCK_ROWS)
        records = (by_block.get(block) for by_block in self._records.values())
        return image_of((record for record in records if record is not None), position)

    def mask_sha256(self, row: int) -> str:
        """The sha256 of a row's mask as the dataset gave it; "" where none was had, or it was not kept."""
        block, position = divmod(self._place(row), BLOCK_ROWS)
        record = self._records.get("mask", {}).get(block)
        return record.mask_sha256[position] if record is not None and record.mask_sha256 else ""

    def checksum(self, array: str, row: int) -> int:
        """The committed CRC-32C of a row's bytes, which `compact` keeps; nothing is read.

        Raises
        ------
        InputError
            Where the row is not committed, or there is no such array.
        """
        spec = self._spec(array)
        block, position = divmod(self._place(row), BLOCK_ROWS)
        return self._record(spec, row, block).files[array].crc32c[position]

    def read(self, array: str, rows: ArrayLike | None = None) -> NDArray[Any]:
        """Copy rows into memory, verified.

        Parameters
        ----------
        array : str
            A name in `arrays`.
        rows : array_like of int, optional
            Row numbers in any order, repeats allowed; all rows by default.

        Returns
        -------
        ndarray, (number of rows, ...)
            In the array's dtype; object for `sample_id`. Quarantined rows hold fill values: NaN for floats.

        Raises
        ------
        DamageError
            Where a row's bytes do not match its record.
        InputError
            Where a row is not committed, or there is no such array or row.
        LockedError
            Where another process wrote the row anew since the store was opened.
        """
        spec = self._spec(array)
        wanted = np.arange(len(self)) if rows is None else np.asarray(rows)
        # An empty list has no integers to be seen; a mask of booleans would quietly mean rows 0 and 1.
        if wanted.ndim != 1 or (wanted.size and wanted.dtype.kind not in "iu"):
            raise InputError(
                f"rows must be a list of row numbers, got shape {wanted.shape} of {wanted.dtype}; "
                "of a mask, take numpy.flatnonzero"
            )
        dtype = object if spec.dtype == "string" else np.dtype(spec.dtype)
        out = np.empty((len(wanted), *spec.row_shape), dtype=dtype)
        # In the order of the file, so that a shard is mapped once however the rows are shuffled.
        order = np.argsort(wanted, kind="stable")
        if isinstance(self.path, RemotePath) and len(wanted) and len(self):
            for positions, values in self._fetched(array, wanted, order):
                for position, value in zip(positions, values, strict=True):
                    out[position] = value
            return out
        for position in order:
            out[position] = self.row(array, int(wanted[position]))
        return out

    def _fetched(
        self, array: str, wanted: NDArray[Any], order: NDArray[np.intp]
    ) -> Iterator[tuple[NDArray[np.intp], list[Any]]]:
        """Read rows of a store in a bucket: those of a block with few requests, several blocks at a time."""
        places = np.arange(len(self)) if self._places is None else self._places
        inside = wanted[order].clip(0, len(self) - 1)  # `row` refuses the others
        blocks = places[inside] // BLOCK_ROWS
        groups = np.split(order, np.flatnonzero(np.diff(blocks)) + 1)

        def fetch(positions: NDArray[np.intp]) -> tuple[NDArray[np.intp], list[Any]]:
            rows = [int(wanted[position]) for position in positions]
            if rows and 0 <= rows[0] < len(self):
                block = self._place(rows[0]) // BLOCK_ROWS
                if block in self._records.get(array, {}):
                    shard, index = self._shards[array](block)
                    if isinstance(shard, FetchedShard):
                        here = {self._place(row) % BLOCK_ROWS for row in rows if row < len(self)}
                        extents = (_extent(index, place) for place in sorted(here))
                        shard.pieces(one for one in extents if one != (0, 0))
            return positions, [self.row(array, row) for row in rows]

        yield from prefetch(fetch, groups, _FETCHERS, _FETCHERS + 1)

    def row(self, array: str, row: int) -> Any:
        """Give one row without copying it, verified.

        Returns
        -------
        ndarray or str
            Read-only and backed by the mapped file.

        Raises
        ------
        DamageError, InputError, LockedError
            As `read` does.
        """
        if not 0 <= row < len(self):
            raise InputError(f"{self.path} has rows 0 to {len(self) - 1}, asked for {row}")
        spec = self._spec(array)
        block, position = divmod(self._place(row), BLOCK_ROWS)
        record = self._record(spec, row, block)
        try:
            if block not in self._named:
                self._require_named(block)
            return self._verified(spec, record, row, position)
        except DamageError as error:
            if self._written_since(block):
                raise LockedError(
                    f"{self.path} was written to since it was opened, and row {row} of {array} with it: open it again"
                ) from error
            raise

    def _record(self, spec: ArraySpec, row: int, block: int) -> Record:
        record = self._records.get(spec.name, {}).get(block)
        if record is None:
            raise InputError(
                f"row {row} of {spec.name} is not in {self.path} yet; run samtl embed again to go on with it"
            )
        return record

    def _require_named(self, block: int) -> None:
        """Refuse rows that were committed as other samples than the list names, once for each block."""
        spec, record = self._specs["sample_id"], self._records.get("sample_id", {}).get(block)
        others = [] if record is None else other_samples(self._rows, spec, {block: record})
        if others:
            raise DamageError(
                f"{self.path / self._rows.path}: {strangers(self._rows, others)}; take the right one from a copy of "
                "the store"
            )
        self._named.add(block)

    def _written_since(self, block: int) -> bool:
        """Tell whether a block was committed again, or the store is another, since it was opened."""
        sequence, checksum = self._latest[block]
        if (self.path / record_name(block, sequence + 1)).exists():
            return True
        try:
            # Of a store that took the place of this one, both may have the names that they had.
            there = read_record(self.path / record_name(block, sequence)).checksum
            return there != checksum or read_rows(self.path).checksum != self._rows.checksum
        except (SamtlError, OSError):
            return newest(self.path) != self._rows.path

    def _verified(self, spec: ArraySpec, record: Record, row: int, position: int) -> Any:
        array, file = spec.name, record.files[spec.name]
        shard, index = self._shards[array](record.block)
        start, stop = _extent(index, position)
        # Of smaller ones, all that are mapped come to less.
        if isinstance(shard, memoryview) and len(shard) * OPEN_SHARDS > OPEN_BYTES:
            self._in_use((spec.name, record.block), shard, position, stop - start)
        data = shard[start:stop] if start < stop else b""
        if isinstance(shard, FetchedShard) and data and crc32c(data) != file.crc32c[position]:
            (data,) = shard.pieces([(start, stop)], anew=True)
        if start == stop or crc32c(data) != file.crc32c[position]:
            raise DamageError(
                f"{self.path / file.path}: row {row} fails its checksum; the store is damaged there"
            )
        try:
            return spec.decode_row(data)
        except ValueError as error:  # its checksum is right, so it was written like this
            raise DamageError(
                f"{self.path / file.path}: row {row} is no row of {array}; the store is damaged there"
            ) from error

    def _in_use(self, place: tuple[str, int], shard: memoryview, position: int, size: int) -> None:
        """Let go of the pages of shards that were not read for a while; they stay mapped."""
        with self._using:
            read = self._read_of.pop(place, None)
            if read is None or read.shard is not shard:
                self._bytes_read -= 0 if read is None else read.size
                read = _Read(shard, set())
            self._read_of[place] = read
            if position not in read.positions:
                read.positions.add(position)
                read.size += size
                self._bytes_read += size
            while len(self._read_of) > 1 and (
                self._bytes_read > OPEN_BYTES or len(self._read_of) > OPEN_SHARDS
            ):
                old = self._read_of.pop(next(iter(self._read_of)))
                self._bytes_read -= old.size
                mapped = old.shard.obj
                if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
                    mapped.madvise(mmap.MADV_DONTNEED)

    def _let_go(self) -> None:
        """Unmap every shard that nobody uses: each has a descriptor."""
        with self._using:
            self._read_of.clear()
            self._bytes_read = 0
        for shards in self._shards.values():
            shards.cache_clear()

    def key(self, row: int) -> str:
        """Name a row's embedding for good: a hash of the fingerprint and of the image file's bytes."""
        return row_key(self.fingerprint, self.image_sha256(row))

    def summary(self) -> Summary:
        """Count what the store holds."""
        arrays = []
        for name in self.arrays:
            records = self._records[name].values()
            arrays.append(
                ArraySummary(
                    name,
                    self.shape(name),
                    self.dtype(name),
                    int(self._every((name,), _all_of).sum()),
                    sum(record.files[name].size for record in records),
                )
            )
        labels = self.labels
        return Summary(
            rows=len(self),
            ok=int(self.valid().sum()),
            missing=self.missing,
            superseded=len(self._rows.superseded),
            per_class={name: int((labels == i).sum()) for i, name in enumerate(self.classes)},
            arrays=tuple(arrays),
            quarantined=self.quarantined,
            about={
                "store": str(self.path),
                "dataset": self.dataset,
                "note": self.note,
                "classes": list(self.classes),
                "task": self.task,
                "encoder": self.encoder,
                "weights": self.weights,
                "untrained": self.untrained,
                "identity": self.identity,
                "fingerprint": self.fingerprint,
                "snapshot": self.snapshot,
                "tiers": list(self.tiers),
            },
        )

    def zarr(self) -> zarr.Group:
        """Open the store as a plain read-only Zarr group; no checksum of the log is verified on that way.

        Raises
        ------
        DamageError
            Where the group's metadata, or an array's, is not exactly what this store's must be: Zarr itself would
            follow any shape and any codec that a file tells it of.
        LockedError
            Where the rows have other places since the store was opened, as `samtl compact` gives them.
        InputError
            Where labels wait to be written anew: what is there are the numbers of other classes.
        """
        identity, listed = read_fingerprint(self.path), read_rows(self.path)
        if listed.sample_ids[: len(self._rows)] != self._rows.sample_ids:
            raise _other_rows(self.path)
        labelled = self._records.get("label", {}).keys()
        waiting = {block for of in self._records.values() for block in of} - labelled
        if waiting:
            raise InputError(
                f"{self.path}: a pass was stopped before it wrote the labels of {len(waiting)} blocks anew, and the "
                "old ones are there still; run samtl embed again to go on with it"
            )
        for wrong in wrong_metadata(self.path, identity, listed, self._specs, set(self.arrays)):
            raise DamageError(
                f"{self.path / wrong.path}: {wrong.told}; samtl verify --repair writes it anew"
            )
        import zarr

        if isinstance(self.path, RemotePath):
            from zarr.storage import ObjectStore

            scheme, bucket = self.path.parts[:2]
            below = client(scheme, bucket, os.getpid(), prefix=self.path.key)
            return zarr.open_group(ObjectStore(below, read_only=True), mode="r")
        return zarr.open_group(self.path, mode="r")

    def _spec(self, array: str) -> ArraySpec:
        if array not in self._records:
            raise InputError(
                f"{self.path} has no array {array!r}; it has {', '.join(self.arrays) or 'none yet'}"
            )
        return self._specs[array]

    def _every(self, arrays: Sequence[str], marks: Any) -> NDArray[np.bool_]:
        """Mark the rows for which `marks(record)` holds in each of some arrays."""
        result = np.full(len(self._rows), bool(self.arrays), dtype=bool)
        for array in arrays or self._required:
            here = np.zeros(len(self._rows), dtype=bool)
            for record in self._records.get(array, {}).values():
                here[record.first_row : record.first_row + len(record.status)] = marks(record)
            result &= here
        return result if self._places is None else result[self._places]

    def _place(self, row: int) -> int:
        """Give the place in the arrays of a row that counts."""
        return row if self._places is None else int(self._places[row])

    def _counted(self, entries: tuple[Any, ...]) -> tuple[Any, ...]:
        """Take the entries of the rows that count, of a list with one for each row or with none."""
        if self._places is None or not entries:
            return entries
        return tuple(entries[place] for place in self._rows.current)

    def _check_record(self, record: Record) -> None:
        rows = self._rows.block_rows(record.block)
        if record.fingerprint != self.fingerprint or len(record.status) != len(rows):
            raise DamageError(
                f"{self.path}: the record of block {record.block} belongs to another store"
            )

    def _cached(
        self, spec: ArraySpec
    ) -> functools._lru_cache_wrapper[tuple[memoryview | FetchedShard, Index]]:
        most = OPEN_SHARDS
        if isinstance(self.path, RemotePath):  # what is fetched is this process's own memory
            most = max(2, min(most, OPEN_BYTES // max(spec.shard_bytes(), 1)))
        return functools.lru_cache(most)(functools.partial(self._map_shard, spec.name))

    def _map_shard(self, array: str, block: int) -> tuple[memoryview | FetchedShard, Index]:
        committed_file = self._records[array][block].files[array]
        expected_path = self._specs[array].shard_path(block)
        path = self.path / expected_path
        if isinstance(path, RemotePath) and self._row_cache is not None:
            if committed_file.path != expected_path:
                raise DamageError(f"{path} is not what was committed: the store is damaged there")
            return _fetched_shard(path, committed_file, self._row_cache)
        try:
            with path.open("rb") as file:
                mapped = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE) and self._read_of:
                self._let_go()
                return self._map_shard(array, block)
            if error.errno in (errno.ENOENT, errno.EISDIR, errno.ENOTDIR):
                raise DamageError(f"{path} is no file: the store is damaged there") from error
            raise ResourceError(f"{path} cannot be read: {error.strerror}") from error
        except ValueError as error:  # an empty file cannot be mapped
            raise DamageError(
                f"{path} cannot be read ({error}): the store is damaged there"
            ) from error
        if len(mapped) != committed_file.size or committed_file.path != expected_path:
            raise DamageError(
                f"{path} has {len(mapped)} bytes, but {committed_file.size} were committed: the store is damaged there"
            )
        return mapped, shard_index(mapped, str(path)).tolist()


def _fetched_shard(
    path: RemotePath, file: CommittedFile, cache: RowCache
) -> tuple[FetchedShard, Index]:
    shard = FetchedShard(path, file, cache)
    try:
        return shard, shard_index(shard.end(), str(path), beyond=file.size).tolist()
    except DamageError:
        return shard, shard_index(shard.end(anew=True), str(path), beyond=file.size).tolist()


def _extent(index: Index, position: int) -> tuple[int, int]:
    """Give where the bytes of a row begin and stop, its checksum left out; the same where there is no such row."""
    offset, length = index[position]
    return (0, 0) if offset == MISSING else (offset, max(offset, offset + length - 4))


def _all_of(record: Record) -> NDArray[np.bool_]:
    return np.ones(len(record.status), dtype=bool)


def _other_rows(path: Path) -> LockedError:
    return LockedError(
        f"what the rows of {path} are has changed since it was opened: open it again"
    )


def _opened_again(path: Path, rows: str) -> Store:
    store = open_store(path)
    if store._rows.checksum != rows:
        raise _other_rows(path)
    return store


def open_store(path: str | Path) -> Store:
    """Open a store for reading.

    Parameters
    ----------
    path : str or Path
        The `NAME.zarr` folder.

    Raises
    ------
    InputError
        Where there is no store, or one of another format.
    DamageError
        Where its log or its lists are damaged.
    """
    folder = as_path(path)
    recover_folder(folder.resolve())
    if not (folder / FILE).is_file():
        what = "is not a samtl store" if folder.exists() else "does not exist"
        raise InputError(f"{path} {what}; expected a folder NAME.zarr made by `samtl embed`")
    return Store(folder)
