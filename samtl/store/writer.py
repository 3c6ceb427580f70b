"""Writing a store: a block at a time, by any number of writers that need not know of each other.

Shards and records are created exclusively. A block's shards are durable and read back before the record that makes
them count is created; a shard that is there already is checked and recorded as it is, and a writer that finds a
record goes on with the next block.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import platform
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from samtl.errors import DamageError, MismatchError
from samtl.store import log, samples
from samtl.store.coordinates import derived, valid_is_current
from samtl.store.fingerprint import Identity, read_identity, require_same
from samtl.store.format import COORDINATES, KEY_BYTES, ROOT, ArraySpec, check_shard, encode_shard
from samtl.store.log import Record, Shard
from samtl.store.samples import SampleTable
from samtl.store.state import StoreState, begun, check_table, load_state, read_root
from samtl.store.storage import IDENTITY, Storage

PACK_RECORDS = 1024  # that no pack has, from which on a pass writes one


def open_writer(
    storage: Storage,
    identity: Identity,
    table: SampleTable,
    arrays: Sequence[str],
    about: Mapping[str, object] | None = None,
    state: StoreState | None = None,
) -> Writer:
    """Create a store, or prepare one for more rows or arrays.

    The `identity` is from `make_identity`; the store's own `store_id` and `block_rows` take precedence. The `table` is
    the store's, or the next one. The records say of how rows were made what `about` says: versions, device. The
    `state` is that of the store, if the caller has loaded it. Raises MismatchError, and writes nothing, if the store
    has another fingerprint, or another writer gave it another table.
    """
    state = state or load_state(storage)
    if state is not None:
        require_same(state.identity, identity.fingerprint, storage.url)
    storage.probe()
    storage.sweep()
    if state is None:
        try:
            storage.create(IDENTITY, [identity.to_bytes()])
        except FileExistsError:
            theirs = read_identity(storage)
            assert theirs is not None
            require_same(theirs, identity.fingerprint, storage.url)
            identity = theirs
        state = begun(storage, identity)
    if not state.table.same_content(table):
        _publish(state, table)
    writer, root = Writer(state, arrays, about), read_root(storage)
    # Of an earlier log it may be until the pass ends: two writers that derive at once may mix what they write.
    if root.table < state.table.about.number or not root.arrays.issuperset(arrays):
        writer.derive()
    # What is committed from here on rests on metadata, and is in a folder, that another may have made a moment ago.
    storage.settle(log.LOG)
    return writer


def _publish(state: StoreState, table: SampleTable) -> None:
    """Give a store its next table, or take one of the same content that another writer gave it."""
    placed, raw = table.placed(state.identity, state.table.about)
    state.log = state.log.grown(table.about.rows_end)
    check_table(replace(state, table=placed))
    try:
        state.storage.create(placed.path, [raw])
    except FileExistsError:
        number = samples.table_numbers(state.storage)[-1]
        placed = samples.read_table(state.storage, state.identity, number)
        if not placed.same_content(table):
            theirs, mine = (f"{len(one)} of {one.about.dataset}" for one in (placed, table))
            raise MismatchError(
                f"another writer gave {state.storage.url} another sample table; name another store with --out, or run "
                "it again to go on from there:",
                [("samples", theirs, mine)],
            ) from None
    state.table = placed


class Writer:
    """Writes the blocks of a store; made by `open_writer`, or from a loaded state in further processes.

    Its `state` is kept up to date with every record that it creates or finds; `specs` are the arrays to be written.
    """

    def __init__(
        self, state: StoreState, arrays: Sequence[str], about: Mapping[str, object] | None = None
    ) -> None:
        self.state, self.about = state, dict(about or {})
        self.specs: dict[str, ArraySpec] = {name: state.identity.arrays[name] for name in arrays}
        self._lock = threading.Lock()

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return self.state.log.blocks

    def block_rows(self, block: int) -> range:
        """Rows of a block, up to the last one that is listed or that a record has; empty if none is listed."""
        size = self.state.identity.block_rows
        listed = self.state.table.block_rows(block, size)
        stop = listed.stop
        # A copy, since other threads add arrays.
        for state in list(self.state.log.arrays.values()) if listed else ():
            committed = np.flatnonzero(state.committed[listed.start : listed.start + size])
            # Another writer's table may list such a row.
            stop = max(stop, listed.start + int(committed.max(initial=-1)) + 1)
        return range(listed.start, stop)

    def positions(self, block: int) -> list[int]:
        """Position in the table of each row of a block, -1 if it is not listed."""
        rows = self.block_rows(block)
        return [int(at) for at in self.state.table.position[rows.start : rows.stop]]

    def _uncommitted(self, name: str) -> NDArray[np.bool_]:
        """Mark the blocks, listed or not, that no known record commits an array for."""
        states = self.state.log.arrays
        return states[name].sequence < 0 if name in states else np.full(self.blocks, True)

    def lacking(self, block: int) -> tuple[str, ...]:
        """Arrays that no record known to this writer commits for a block; none if no row of it is listed."""
        listed = self.state.table.block_rows(block, self.state.identity.block_rows)
        return tuple(name for name in self.specs if listed and self._uncommitted(name)[block])

    def missing(self, block: int) -> tuple[str, ...]:
        """Like `lacking`, after reading the records that other writers have created for the block since."""
        if self.lacking(block):
            self._catch_up(block)
        return self.lacking(block)

    def pending(self) -> list[int]:
        """List the blocks with lacking arrays, as far as this writer knows."""
        listed = np.unique(self.state.table.rows // self.state.identity.block_rows)
        lacking = np.any([self._uncommitted(name)[listed] for name in self.specs], axis=0)
        found: list[int] = listed[lacking].tolist()
        return found

    def known_good(self) -> int | None:
        """Return a listed row that holds an embedding; None if there is none."""
        rows = self.state.table.rows
        found = rows[self.state.log.good(rows)]
        return int(found[0]) if len(found) else None

    def write_block(
        self,
        block: int,
        arrays: Mapping[str, Sequence[ArrayLike | None]],
        status: Sequence[str],
        reasons: Mapping[int, str],
        images: Sequence[str],
        masks: Sequence[str] = (),
    ) -> int | None:
        """Write and commit arrays of a block; the bytes of their shards, None if another writer was first with all.

        Rows of `arrays` that hold fill values are None; the rest is as in `Record`, `masks` only if they are written.
        Raises DamageError if what is read back is not what was written, or a shard of other images is in the way.
        """
        storage = self.state.storage
        draft = Record(
            block=block,
            sequence=0,
            fingerprint=self.state.identity.sha256,
            status=list(status),
            reasons={str(row): reason for row, reason in reasons.items()},
            image_sha256=list(images),
            arrays={},
            writer={**self.about, "pid": os.getpid(), "host": platform.node()},
            mask_sha256=list(masks),
        )
        write = lambda name: self._write_shard(name, arrays[name], draft)  # noqa: E731
        shards = dict(zip(arrays, storage.each(write, arrays), strict=True))
        while shards:
            committed = datetime.now(UTC).isoformat(timespec="seconds")
            raw, record = msgspec.structs.replace(
                draft,
                sequence=self.state.log.next(block),
                arrays=shards,
                writer={**draft.writer, "committed": committed},
                mask_sha256=list(masks) if "mask" in shards else [],
            ).sealed()
            try:
                storage.create(record.name, [raw])
            except FileExistsError:
                self._catch_up(block)
                left = self.lacking(block)
                shards = {name: shard for name, shard in shards.items() if name in left}
                self._require_same_images(draft)
            else:
                self._add(record)
                return sum(shard.size for shard in shards.values())
        return None

    def _write_shard(self, name: str, rows: Sequence[ArrayLike | None], draft: Record) -> Shard:
        """Create a shard unless it is there, and describe what is read back."""
        spec, size, storage = self.specs[name], self.state.identity.block_rows, self.state.storage
        path, key, empty = (
            spec.shard_path(draft.block),
            log.block_key(draft, name),
            spec.empty_row(),
        )
        where = f"{storage.url}/{path}"
        pieces, sums = encode_shard(spec, [empty if r is None else r for r in rows], size, key)
        expected: list[int] | None = sums
        try:
            storage.create(path, pieces)
        except FileExistsError:
            expected = None  # whoever wrote it computed the same rows, perhaps rounded otherwise
        shard = open_shard(storage, path)
        if shard[:KEY_BYTES] != key:
            raise DamageError(
                f"{where} was written from other images, or for another outcome, and no record commits it: run samtl "
                "verify --repair while nobody writes, then run it again"
            )
        found, damaged, whole = check_shard(spec, shard, len(rows), size)
        if damaged or not whole:
            raise DamageError(f"{where} is damaged: it is not what a writer lays out")
        if expected is not None and found != expected:
            raise DamageError(f"{where}: the disk gives back something else than was written")
        return Shard(len(shard), hashlib.sha256(shard).hexdigest(), found)

    def _catch_up(self, block: int) -> None:
        """Read the records of a block that others have created."""
        storage = self.state.storage
        while (
            storage.size(log.record_name(block, sequence := self.state.log.next(block))) is not None
        ):
            self._add(log.read_record(storage, self.state.identity, block, sequence))

    def _add(self, record: Record) -> None:
        with self._lock:
            if record.sequence == self.state.log.next(record.block):
                self.state.log.add(record, self.state.storage.url)
                self.state.unpacked += 1

    def _require_same_images(self, draft: Record) -> None:
        for at, row in enumerate(self.block_rows(draft.block)):
            # A row beyond is one that the other writer's table lists, and this one's does not.
            if at >= len(draft.status) or (
                draft.status[at] == log.OK
                and self.state.log.image(row) not in ("", draft.image_sha256[at])
            ):
                raise DamageError(
                    f"row {row} of {self.state.storage.url} is being written from another image by another writer: run "
                    "it again when that one has ended"
                )

    def finish(self) -> StoreState:
        """Bring what is derived up to date at the end of a pass, and return the state with all records that are there.

        The table gets the sha256 of the images once nothing is missing, a large log gets a pack, and the coordinates
        for readers of plain Zarr are written.
        """
        state = self.state
        self._read_others()
        if state.marked("committed").all() and len(state.table):
            images = [state.log.image(row) for row in state.table.rows.tolist()]
            if images != list(state.table.images):
                _publish(state, state.table.with_images(images))
        if state.unpacked >= PACK_RECORDS:
            state.storage.replace(log.PACK, state.log.pack(state.identity))
            state.unpacked = 0
        self.derive()
        # A writer that committed more and ended meanwhile may have derived before this one did.
        return self.finish() if self._read_others() else state

    def _read_others(self) -> bool:
        """Read all records that others have created since; whether there were any."""
        state = self.state
        places = (one for one in log.record_places(state.storage) if one[0] < self.blocks)
        found = [one for one in places if one not in state.log.records]
        for place in found:
            self._add(log.read_record(state.storage, state.identity, *place))
        return bool(found)

    def derive(self) -> None:
        """Write the metadata and coordinates for readers of plain Zarr, unless they are up to date or newer."""
        state, storage = self.state, self.state.storage
        root = read_root(storage)
        there = [
            name
            for name in state.identity.arrays
            if name in self.specs or storage.size(f"{name}/{ROOT}") is not None
        ]
        if root.table > state.table.about.number:  # another writer's
            return
        same = root.snapshot == state.snapshot and root.arrays.issuperset(there)
        if same and valid_is_current(state):
            return
        files = derived(state, there)
        # What another writer named must not be lost while the root says that it follows from it.
        storage.settle(log.LOG, samples.FOLDER)
        for name, content in files.items():
            storage.replace(name, content)
        gone = root.arrays.intersection(COORDINATES)
        for name in {f"{one}/{file}" for one in gone for file in (ROOT, "c.0")} - files.keys():
            storage.delete(name)


def open_shard(storage: Storage, path: str) -> memoryview:
    """Map a shard into memory, or fetch it from a bucket; DamageError if it is missing or empty."""
    place = storage.path(path)
    try:
        if place is None:
            return memoryview(storage.read(path, 1 << 40))
        with place.open("rb") as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, ValueError) as error:
        raise DamageError(
            f"{storage.url}/{path} is no shard: the store is damaged there"
        ) from error
