"""Writing a store: one writer at a time, a block at a time, each committed by a record.

The order is what makes a crash harmless: a block's shards are published and durable, then read back and
checksummed, and only then is the record published that makes them count.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from samtl._runtime import prefetch
from samtl.errors import (
    DamageError,
    InputError,
    LockedError,
    MismatchError,
)
from samtl.images.transforms import PATCH
from samtl.store import documents, durable, lease, rows
from samtl.store.agreement import other_labels, require_newest, require_own
from samtl.store.fingerprint import (
    FILE,
    Fingerprint,
    differences,
    read_fingerprint,
)
from samtl.store.folders import names
from samtl.store.layout import (
    BLOCK_ROWS,
    ROOT,
    ArraySpec,
    EncodedShard,
    array_specs,
    crc32c,
    encode_shard,
    root_metadata,
    shard_index,
)
from samtl.store.log import (
    LOG,
    OK,
    CommittedFile,
    Record,
    committed,
    image_of,
    read_log,
    record_name,
)
from samtl.store.remote import RemotePath
from samtl.store.rows import Rows


@dataclass
class StoreWriter:
    """A store that is locked for writing; made by `open_writer`.

    Attributes
    ----------
    path : Path
    specs : mapping
        The arrays to be written, by name.
    rows : Rows
    fingerprint : Fingerprint
    stale : dict
        For arrays, blocks that are committed and to be written anew; each is withdrawn only when its rows are there.
    """

    path: Path
    specs: Mapping[str, ArraySpec]
    rows: Rows
    fingerprint: Fingerprint
    stale: dict[str, frozenset[int]] = field(default_factory=dict)
    _committed: dict[str, dict[int, Record]] = field(default_factory=dict)
    _sequence: dict[int, int] = field(default_factory=dict)
    _orphans: set[str] = field(default_factory=set)

    @property
    def blocks(self) -> int:
        """How many blocks the store has, some of them perhaps partly filled."""
        return self.rows.blocks

    def block_rows(self, block: int) -> range:
        """The rows of a block."""
        return self.rows.block_rows(block)

    def missing(self, block: int) -> tuple[str, ...]:
        """Names of the arrays that are not yet committed for a block; none where no row of it counts any more."""
        found = lacking(self.rows, block, tuple(self.specs), self._committed)
        anew = (name for name in self.specs if block in self.stale.get(name, ()))
        return tuple(dict.fromkeys((*found, *anew)))

    def earlier_image(self, row: int) -> str:
        """The sha256 of the image that the earlier arrays of a row were made from; "" where there are none."""
        block, position = divmod(row, BLOCK_ROWS)
        # Threads that write add to it.
        records = [by_block.get(block) for by_block in list(self._committed.values())]
        return image_of((record for record in records if record is not None), position)

    def write_block(
        self,
        block: int,
        arrays: Mapping[str, Sequence[object]],
        status: Sequence[str],
        reasons: Mapping[int, str],
        image_sha256: Sequence[str],
        about: Mapping[str, object],
        mask_sha256: Sequence[str] = (),
    ) -> Record:
        """Write and commit the arrays of a block.

        Parameters
        ----------
        block : int
        arrays : mapping
            For each array its rows, one for each row of the block; rows that are not `ok` hold fill values.
        status : sequence of str
            `ok` or `quarantined:CODE` for each row.
        reasons : mapping
            Row of the store to what was wrong.
        image_sha256 : sequence of str
        about : mapping
            Versions, device and the like, for the record.
        mask_sha256 : sequence of str
            Where masks are written.

        Raises
        ------
        DamageError
            Where what was read back is not what was written.
        LockedError
            Where another writer committed the block first.
        OSError
            Where the disk gives out; the block does not count and is redone next time.
        """
        for name in arrays:
            if block in self.stale.get(name, ()):
                have = self._committed.get(name, {}).get(block)
                if have is not None:
                    self._withdraw(block, have, name)
                self.stale[name] -= {block}
        sequence = self._sequence.get(block, 0)
        record_path = self.path / record_name(block, sequence)

        def write(name: str) -> tuple[str, CommittedFile]:
            shard = encode_shard(self.specs[name], arrays[name])
            relative = self.specs[name].shard_path(block)
            self._publish_shard(relative, shard, record_path)
            return name, self._read_back(relative, shard)

        with _alone_at(record_path):
            if isinstance(self.path, RemotePath):  # where most of the time is waiting
                files = dict(prefetch(write, arrays, len(arrays) or 1, len(arrays) or 1))
            else:
                files = dict(map(write, arrays))
        record = Record(
            block=block,
            sequence=sequence,
            fingerprint=self.fingerprint.sha256,
            status=tuple(status),
            reasons={str(row): reason for row, reason in reasons.items()},
            image_sha256=tuple(image_sha256),
            files=files,
            mask_sha256=tuple(mask_sha256),
            writer={**about, **whoami(), "committed": now()},
        )
        with _alone_at(record_path):
            durable.publish(record_path, [documents.seal(record.to_dict())])
        self._sequence[block] = sequence + 1
        for name in files:
            self._committed.setdefault(name, {})[block] = record
        return record

    def _publish_shard(self, relative: str, shard: EncodedShard, record_path: Path) -> None:
        path = self.path / relative
        try:
            durable.publish(path, shard.pieces)
        except FileExistsError:
            # Before the record is looked for: what is put in its place is then put in the place of this one.
            version = path.version()[0] if isinstance(path, RemotePath) else None
            # Some network file systems ignore locks: what came since this writer began is another's.
            if record_path.exists() or relative not in self._orphans:
                raise
            # A crash left it between the shards and the record: it does not count.
            self._orphans.discard(relative)
            if isinstance(path, RemotePath):
                path.swap(b"".join(shard.pieces), version)
                return
            durable.require_no_folder(path)
            path.unlink()
            durable.publish(path, shard.pieces)

    def known_good(self) -> int | None:
        """Give a row that counts and was embedded earlier; None where there is none."""
        for by_block in list(self._committed.values()):
            for record in list(by_block.values()):
                for row, status in enumerate(record.status, record.first_row):
                    if status == OK and row in self.rows.counts:
                        return row
        return None

    def relabel(self) -> None:
        """Write the labels anew in blocks that hold others than the list of rows; everything else stays as it is.

        A block is without labels for a moment, so a reader that opens the store then finds its rows not embedded yet.
        """
        if "label" not in self.specs:
            return
        by_block = self._committed.get("label", {})
        others = other_labels(self.rows, self.specs["label"], by_block)
        for block in range(self.blocks):
            labels = [self.rows.labels[row] for row in self.block_rows(block)]
            have = by_block.get(block)
            if have is not None:
                if block not in others:
                    continue
                self._withdraw(block, have, "label")
            else:
                beside = (by.get(block) for by in self._committed.values())
                have = next((record for record in beside if record is not None), None)
                if have is None:
                    continue  # nothing of it is there: the pass writes it
            reasons = {int(row): reason for row, reason in have.reasons.items()}
            self.write_block(block, {"label": labels}, have.status, reasons, have.image_sha256, {})

    def _withdraw(self, block: int, record: Record, array: str) -> None:
        last = replace(record, sequence=self._sequence[block] - 1)
        withdraw(self.path, last, [array])
        self._sequence[block] += 1
        del self._committed[array][block]
        self._orphans.add(self.specs[array].shard_path(block))

    def _read_back(self, relative: str, shard: EncodedShard) -> CommittedFile:
        """Describe the file as it is on disk, after comparing every row's checksum with what was meant."""
        whole = hashlib.sha256()
        with (self.path / relative).open("rb") as file:
            for position, expected in enumerate(shard.row_crc32c):
                row = file.read(len(shard.pieces[2 * position]))
                trailer = file.read(4)
                if crc32c(row) != expected or trailer != expected.to_bytes(4, "little"):
                    raise DamageError(
                        f"{self.path / relative}: what the disk gives back is not what was written; check the disk"
                    )
                whole.update(row)
                whole.update(trailer)
            rest = file.read()
            shard_index(memoryview(rest), relative, beyond=shard.size)
            whole.update(rest)
            size = file.tell()
        return CommittedFile(relative, size, whole.hexdigest(), array("I", shard.row_crc32c))


def withdraw(store: Path, last: Record, arrays: Sequence[str]) -> None:
    """Publish that arrays of a block do not count any more.

    Parameters
    ----------
    store : Path
        Locked by the caller.
    last : Record
        The latest of the block.
    arrays : sequence of str
    """
    record = replace(
        last,
        sequence=last.sequence + 1,
        files={},
        mask_sha256=(),
        writer={**whoami(), "committed": now()},
        withdrawn=tuple(arrays),
    )
    path = store / record_name(record.block, record.sequence)
    with _alone_at(path):
        durable.publish(path, [documents.seal(record.to_dict())])


def lacking(
    listed: Rows, block: int, arrays: Sequence[str], state: Mapping[str, Mapping[int, Record]]
) -> tuple[str, ...]:
    """Name the arrays that are not committed for a block; none where no row of it counts any more."""
    if not any(row in listed.counts for row in listed.block_rows(block)):
        return ()
    return tuple(name for name in arrays if block not in state.get(name, {}))


@contextmanager
def open_writer(
    path: Path,
    fingerprint: Fingerprint,
    about: Mapping[str, object],
    wanted_rows: Rows,
    columns: Mapping[str, Sequence[str]],
    arrays: Sequence[str],
) -> Iterator[StoreWriter]:
    """Lock a store for writing, making it if it is not there.

    Parameters
    ----------
    path : Path
        The store's folder.
    fingerprint : Fingerprint
    about : mapping
        What people want to know about the encoder beside its identity: `weights`, `untrained`.
    wanted_rows : Rows
        Those of the store, or the next generation of them.
    columns : mapping
        Names of the columns of `pooled` and `image_stats`.
    arrays : sequence of str
        Names of the arrays to be written. Arrays that the store has besides are left alone.

    Raises
    ------
    LockedError
        Where another process writes to it, or its rows are not those any more that `wanted_rows` follow on.
    MismatchError
        Where the store was made with another fingerprint or from another dataset; nothing is changed.
    InputError
        Where the folder holds something else.
    DamageError
        Where records are not of these rows, or the list of rows is gone; nothing is changed.
    """
    refuse_foreign(path)
    # Once before the lock, since even its file would be a change, and once more when nobody else can write.
    check_identity(path, fingerprint)
    _check_rows(path, wanted_rows)
    durable.make_folder(path)
    with locked(path):
        check_identity(path, fingerprint)
        _check_rows(path, wanted_rows)
        known = array_specs(fingerprint.image_size // PATCH, columns)
        specs = {name: known[name] for name in arrays}
        records = read_log(path)
        require_own(path, records, fingerprint.sha256, wanted_rows, known)
        with _alone_at(path / FILE):
            _write_skeleton(path, fingerprint, about, wanted_rows, columns, known, specs)
        for folder in (LOG, "rows", ".", *known):
            _sweep(path / folder)
        writer = StoreWriter(path, specs, wanted_rows, fingerprint)
        writer._committed = committed(records)
        writer._sequence = {record.block: record.sequence + 1 for record in records}
        writer._orphans = _orphans(path, specs, writer._committed)
        for block in range(writer.blocks):  # no pass will come to these
            if wanted_rows.generation and not any(
                r in wanted_rows.counts for r in writer.block_rows(block)
            ):
                for spec in specs.values():
                    shard = path / spec.shard_path(block)
                    if spec.shard_path(block) in writer._orphans and not shard.is_dir():
                        shard.unlink(missing_ok=True)
        writer.relabel()
        yield writer


def refuse_foreign(path: Path) -> None:
    """Raise InputError where a path is taken by something that is not a store, DamageError by one without identity."""
    durable.recover_folder(path.resolve())
    existing = next(p for p in (path, *path.parents) if p.exists())
    if not existing.is_dir():
        raise InputError(f"{existing} is a file; a store is a folder: name another with --out")
    if path.is_dir() and not (path / FILE).exists():
        others = sorted(p.name for p in path.iterdir() if not p.name.startswith("."))
        if LOG in others:
            raise DamageError(
                f"{path / FILE} is missing, so nobody knows what the rows of this store are: take it from a copy of "
                "the store, or name a new one with --out"
            )
        if others:
            raise InputError(
                f"{path} is a folder that holds something else ({others[0]}); name a new one with --out"
            )


def check_identity(path: Path, fingerprint: Fingerprint) -> None:
    """Raise MismatchError where a store at `path` is not of this fingerprint."""
    if not (path / FILE).exists():
        return
    found = differences(read_fingerprint(path)["fingerprint"], fingerprint.to_dict())
    if found:
        raise MismatchError(
            f"{path} was made in another way; name another store with --out, or ask for the same:",
            found,
        )


def _check_rows(path: Path, wanted: Rows) -> None:
    """Refuse rows that are neither those of the store at `path` nor follow on them."""
    if not rows.has_rows(path):
        return
    stored = rows.read_rows(path)
    require_newest(path, stored)
    if wanted.previous == stored.checksum or _same(stored, wanted):
        return
    rows.require_kin(stored, wanted, path)
    raise LockedError(
        f"another writer changed what the rows of {path} are meanwhile; start again to go on from there"
    )


def _same(stored: Rows, wanted: Rows) -> bool:
    """Tell whether two lists are one; what is noted about the dataset is no part of it."""
    return replace(stored, note="") == replace(wanted, note="")


def _write_skeleton(
    path: Path,
    fingerprint: Fingerprint,
    about: Mapping[str, object],
    wanted_rows: Rows,
    columns: Mapping[str, Sequence[str]],
    known: Mapping[str, ArraySpec],
    specs: Mapping[str, ArraySpec],
) -> None:
    """Write what stands before any row: the fingerprint first, the root's metadata last.

    Each step is skipped where it was already done, so a crash in between is taken up where it happened.
    """
    identity = {
        "fingerprint": fingerprint.to_dict(),
        "sha256": fingerprint.sha256,
        "about": dict(about),
        "columns": {name: list(names) for name, names in columns.items()},
    }
    _publish_if_absent(path / FILE, documents.seal(identity))
    _publish_if_absent(path / wanted_rows.path, documents.seal(wanted_rows.to_dict()))
    for earlier in rows.generations(path)[:-1]:
        (path / rows.FOLDER / f"{earlier}.json").unlink()
    durable.make_folder(path / LOG)
    for name, spec in known.items():
        metadata_file = path / name / ROOT
        metadata = documents.canonical(spec.metadata(len(wanted_rows)))
        durable.require_no_folder(metadata_file)
        if not metadata_file.exists():
            if name in specs:
                _publish_if_absent(metadata_file, metadata)
        elif wanted_rows.generation and metadata_file.read_bytes() != metadata:
            durable.replace(metadata_file, metadata)  # the store has grown
    there = ((name, _read_json(path / name / ROOT)) for name in sorted(known))
    arrays = {name: metadata for name, metadata in there if metadata is not None}
    stored = read_fingerprint(path)  # what the first writer said of the weights stays
    root = documents.canonical(root_metadata(stored, wanted_rows.attributes(), arrays))
    metadata_file = path / ROOT
    durable.require_no_folder(metadata_file)
    if not metadata_file.exists() or metadata_file.read_bytes() != root:
        durable.replace(metadata_file, root)


def _read_json(path: Path) -> object:
    """Read a file of metadata; None where there is none."""
    durable.require_no_folder(path)
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise DamageError(f"{path} is damaged; remove it, and it is written anew") from error


def _publish_if_absent(path: Path, content: bytes) -> None:
    if not path.exists():
        durable.make_folder(path.parent)
        with _alone_at(path):
            durable.publish(path, [content])


def _orphans(
    path: Path, specs: Mapping[str, ArraySpec], state: Mapping[str, Mapping[int, Record]]
) -> set[str]:
    """Name the shards that are there and that nothing commits."""
    found = set()
    for name, spec in specs.items():
        counted = {spec.shard_path(block) for block in state.get(name, {})}
        found |= {f"{name}/{file}" for file in names(path / name, hidden=True)} - counted
    return found


def _sweep(folder: Path) -> None:
    """Remove what killed writers left; only the lock's holder may."""
    for mark in (durable.TEMPORARY, lease.PROBE):
        for leftover in folder.glob(f"{mark}*"):
            leftover.unlink(missing_ok=True)


def require_unlocked(path: Path) -> None:
    """Raise LockedError where another process writes to a store just now; nothing is changed."""
    if isinstance(path, RemotePath):
        lease.require_free(path)
        return
    if not (path / ".lock").exists():
        return
    lock = FileLock(path / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise _held(path) from None
    lock.release()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a store's lock (flock: the kernel frees it when the process dies, however it dies; in a bucket, a lease).

    Raises
    ------
    LockedError
        Where another process holds it; says which.
    """
    if isinstance(path, RemotePath):
        hold = lease.Lease(path, {**whoami(), "since": now()})
        try:
            yield
        finally:
            hold.end()
        return
    lock = FileLock(path / ".lock", timeout=0)
    holder = path / ".writer.json"
    try:
        lock.acquire()
    except Timeout:
        raise _held(path) from None
    try:
        durable.replace(holder, json.dumps({**whoami(), "since": now()}).encode())
        yield
    finally:
        lock.release()


def _held(path: Path) -> LockedError:
    return LockedError(
        f"{path} is being written by {_describe(path / '.writer.json')}; wait for it to end, or stop it"
    )


@contextmanager
def _alone_at(path: Path) -> Iterator[None]:
    """Say that another writer is there, where files come or go that only one writer touches."""
    try:
        yield
    except (FileExistsError, FileNotFoundError) as error:
        raise _overtaken(path) from error


def _overtaken(record_path: Path) -> LockedError:
    return LockedError(
        f"another writer was at {record_path} meanwhile; start again to go on from there"
    )


def _describe(holder: Path) -> str:
    try:
        who = json.loads(holder.read_bytes())
        return f"process {who['pid']} on {who['host']} since {who['since']}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "another process"


def whoami() -> dict[str, object]:
    """Say who writes a record."""
    return {"pid": os.getpid(), "host": platform.node()}


def now() -> str:
    """Give the time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
