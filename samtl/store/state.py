"""What a store is at a moment: its fingerprint, its newest sample table and its log, read once and shared.

The log is folded into arrays over the rows. A large store keeps such arrays in a pack, so that it opens quickly.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from samtl._io import canonical
from samtl.errors import DamageError
from samtl.store.fingerprint import FILE, Identity, read_identity
from samtl.store.format import ROOT
from samtl.store.log import (
    LOG,
    OK,
    PACKS,
    QUARANTINED,
    Record,
    read_log,
    record_name,
    record_places,
)  # fmt: skip
from samtl.store.samples import FOLDER, SampleTable, read_table
from samtl.store.storage import Storage

_PACK = re.compile(r"(\d{6,})\.npz")


@dataclass
class ArrayState:
    """What is committed of one array.

    Attributes
    ----------
    committed, ok : (rows,) bool
        Whether a record lists the row, and whether it holds an embedding.
    crc32c : (rows,) uint32
    sequence : (blocks,) int32
        Of the record that commits the block, -1 if there is none.
    size : (blocks,) int64
        Of the shard, in bytes.
    sha256 : (blocks, 32) uint8
        Of the shard.
    """

    committed: NDArray[np.bool_]
    ok: NDArray[np.bool_]
    crc32c: NDArray[np.uint32]
    sequence: NDArray[np.int32]
    size: NDArray[np.int64]
    sha256: NDArray[np.uint8]

    @classmethod
    def empty(cls, rows: int, blocks: int) -> ArrayState:
        """Return the state of an array that nothing commits."""
        return cls(
            np.zeros(rows, bool),
            np.zeros(rows, bool),
            np.zeros(rows, np.uint32),
            np.full(blocks, -1, np.int32),
            np.zeros(blocks, np.int64),
            np.zeros((blocks, 32), np.uint8),
        )


@dataclass(frozen=True)
class Facts:
    """What the log says of one row.

    Attributes
    ----------
    committed : bool
        Whether any record lists it.
    ok : bool
        Whether it is `ok` in every array that lists it.
    image, mask : str
        sha256 of what it was made from; "" if it is not known.
    codes : dict
        Codes for which it was quarantined, or `unlisted`, with the reasons.
    """

    committed: bool
    ok: bool
    image: str
    mask: str
    codes: dict[str, str]


class LogState:
    """All records, folded into arrays over the rows.

    Attributes
    ----------
    block_rows, rows, blocks : int
    arrays : dict of str to ArrayState
        Those that at least one record commits.
    codes : dict
        Row to the codes for which it is not ok, with the reasons.
    next : (blocks,) int32
        Sequence of the next record of each block.
    """

    def __init__(self, block_rows: int, rows: int) -> None:
        self.block_rows, self.rows = block_rows, rows
        self.blocks = -(-rows // block_rows)
        self.arrays: dict[str, ArrayState] = {}
        self.codes: dict[int, dict[str, str]] = {}
        self.next = np.zeros(self.blocks, np.int32)
        self._image = np.zeros((rows, 32), np.uint8)
        self._image_ok = np.zeros(rows, bool)
        self._mask = np.zeros((rows, 32), np.uint8)
        self._checksums: list[str] = []
        self.places: list[tuple[int, int]] = []

    def add(self, record: Record, where: str) -> None:
        """Fold one more record; those of a block must come in order.

        Raises
        ------
        DamageError
            If one is missing before it, or it contradicts an earlier one.
        """
        block, first = record.block, record.block * self.block_rows
        rows = slice(first, first + len(record.status))
        if block >= self.blocks or rows.stop > self.rows:
            raise DamageError(f"{where}/{record.name} has rows that the sample table does not know")
        if record.sequence != self.next[block]:
            lost = record_name(block, int(self.next[block]))
            raise DamageError(f"{where}/{lost} is missing, but a later record of its block exists")
        ok = np.array([status == OK for status in record.status])
        try:
            images = _digests(record.image_sha256)
            masks = _digests(record.mask_sha256)
            shards = {name: _digests([s.sha256])[0] for name, s in record.arrays.items()}
            sums = {name: np.array(s.crc32c, np.uint32) for name, s in record.arrays.items()}
        except (ValueError, OverflowError) as error:
            raise DamageError(f"{where}/{record.name} is damaged: {error}") from error
        before, known = self._image[rows], self._image_ok[rows]
        if (before != images)[ok & known].any():
            raise DamageError(
                f"{where}/{record.name} was made from other images than the record before it"
            )
        taken = images.any(axis=1) & ~known
        before[taken] = images[taken]
        known |= ok
        if len(masks):
            self._mask[rows] = masks
        for name, shard in record.arrays.items():
            if name not in self.arrays:
                self.arrays[name] = ArrayState.empty(self.rows, self.blocks)
            state = self.arrays[name]
            state.committed[rows], state.ok[rows], state.crc32c[rows] = True, ok, sums[name]
            state.sequence[block], state.size[block] = record.sequence, shard.size
            state.sha256[block] = shards[name]
        for row in (first + np.flatnonzero(~ok)).tolist():
            code = record.status[row - first].removeprefix(QUARANTINED)
            self.codes.setdefault(row, {})[code] = record.reasons.get(str(row), "")
        self.next[block] += 1
        self._checksums.append(record.checksum)
        self.places.append((block, record.sequence))

    def image(self, row: int) -> str:
        """sha256 of the image that a row was made from; "" if it is not known."""
        return _hex(self._image[row])

    def mask(self, row: int) -> str:
        """sha256 of the mask that a row was made from; "" if it is not known."""
        return _hex(self._mask[row])

    def other_images(
        self, rows: NDArray[np.int64], digests: NDArray[np.uint8]
    ) -> NDArray[np.int64]:
        """Return those of some rows that were made from another image than `digests` names, (n, 32) with zeros."""
        words = self._image.view(np.uint64)[rows] != np.ascontiguousarray(digests).view(np.uint64)
        wrong = np.flatnonzero(words.any(axis=1))
        found: NDArray[np.int64] = rows[
            wrong[digests[wrong].any(axis=1) & self._image_ok[rows[wrong]]]
        ]
        return found

    def facts(self, row: int) -> Facts:
        """Collect what the log says of a row."""
        states = [state for state in self.arrays.values() if state.committed[row]]
        return Facts(
            bool(states),
            bool(states) and all(bool(state.ok[row]) for state in states),
            self.image(row),
            self.mask(row),
            self.codes.get(row, {}),
        )

    @property
    def records(self) -> int:
        """How many records there are."""
        return len(self.places)

    def checksums(self) -> list[str]:
        """Checksums of all records, sorted."""
        return sorted(self._checksums)

    def grow(self, rows: int) -> None:
        """Make room for the rows of a later table."""
        new = LogState(self.block_rows, rows)
        for name in ("_image", "_image_ok", "_mask", "next"):
            old = getattr(self, name)
            getattr(new, name)[: len(old)] = old
            setattr(self, name, getattr(new, name))
        for array, state in self.arrays.items():
            larger = ArrayState.empty(rows, new.blocks)
            for name, old in vars(state).items():
                getattr(larger, name)[: len(old)] = old
            self.arrays[array] = larger
        self.rows, self.blocks = rows, new.blocks

    def pack(self, identity: Identity) -> bytes:
        """Dump the state, so that a large store opens without reading its records one by one."""
        about = {
            "identity": identity.digest, "codes": self.codes,
            "arrays": list(self.arrays), "rows": self.rows,
        }  # fmt: skip
        found: dict[str, Any] = {
            "about": np.frombuffer(canonical(about), np.uint8),
            "image": self._image,
            "image_ok": self._image_ok,
            "next": self.next,
            "places": np.array(self.places, np.int64),
            "checksums": np.frombuffer(bytes.fromhex("".join(self._checksums)), np.uint8),
        }
        if "mask" in self.arrays:
            found["mask"] = self._mask
        for name, state in self.arrays.items():
            found.update({f"{name}.{field}": value for field, value in vars(state).items()})
        file = io.BytesIO()
        np.savez(file, **found)
        return file.getvalue() + hashlib.sha256(file.getbuffer()).digest()

    @classmethod
    def unpack(cls, raw: bytes, identity: Identity) -> LogState:
        """Read what `pack` gave; DamageError if it is damaged or another store's."""
        if hashlib.sha256(memoryview(raw)[:-32]).digest() != raw[-32:]:
            raise DamageError("the pack fails its checksum")
        try:
            return cls._unpacked(raw[:-32], identity)
        except Exception as error:  # whatever numpy and zipfile run into
            raise DamageError(f"the pack is damaged, or another store's: {error}") from error

    @classmethod
    def _unpacked(cls, raw: bytes, identity: Identity) -> LogState:
        with np.load(io.BytesIO(raw)) as file:
            about = msgspec.json.decode(file["about"].tobytes(), type=_PackAbout)
            if about.identity != identity.digest:
                raise ValueError("a pack of another store")
            found = cls(identity.block_rows, about.rows)
            found.codes = about.codes
            for field in ("image", "image_ok", "next", *(("mask",) * ("mask" in about.arrays))):
                field = field if field == "next" else f"_{field}"
                setattr(found, field, _like(file[field.removeprefix("_")], getattr(found, field)))
            for name in about.arrays:
                empty = ArrayState.empty(found.rows, found.blocks)
                fields = {k: _like(file[f"{name}.{k}"], v) for k, v in vars(empty).items()}
                found.arrays[name] = ArrayState(**fields)
            found.places = [(block, sequence) for block, sequence in file["places"].tolist()]
            text = file["checksums"].tobytes().hex()
        found._checksums = [text[at : at + 64] for at in range(0, len(text), 64)]
        if len(found._checksums) != len(found.places):
            raise ValueError("a pack that lacks checksums")
        return found

    def packed(self) -> set[tuple[int, int]]:
        """Places of the records that it holds."""
        return set(self.places)


class _PackAbout(msgspec.Struct):
    identity: str
    codes: dict[int, dict[str, str]]
    arrays: list[str]
    rows: int


def _like(found: NDArray[Any], wanted: NDArray[Any]) -> NDArray[Any]:
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        raise ValueError("an array of another shape")
    return found


def _digests(texts: list[str]) -> NDArray[np.uint8]:
    raw = bytes.fromhex("".join(text or "00" * 32 for text in texts))
    if any(len(text) not in (0, 64) for text in texts):
        raise ValueError("a sha256 has 64 digits")
    return np.frombuffer(raw, np.uint8).reshape(-1, 32)


def _hex(digest: NDArray[np.uint8]) -> str:
    return bytes(digest).hex() if digest.any() else ""


def pack_numbers(storage: Storage) -> list[int]:
    """List the numbers of the packs that are there, ascending."""
    found = (_PACK.fullmatch(name) for name in storage.list(PACKS))
    return sorted(int(match[1]) for match in found if match)


def pack_name(number: int) -> str:
    """Path of a pack relative to the store."""
    return f"{PACKS}/{number:06d}.npz"


@dataclass
class StoreState:
    """What a store is at a moment: read once, and kept up to date by the writer that holds it.

    Attributes
    ----------
    storage : Storage
    identity : Identity
    table : SampleTable or None
        None if the store was begun, and a writer was killed before it had one.
    log : LogState
    unpacked : int
        Records that no pack has.
    """

    storage: Storage
    identity: Identity
    table: SampleTable | None
    log: LogState
    unpacked: int = 0

    @property
    def snapshot(self) -> str:
        """Name what is committed: the sha256 over the records' sorted checksums and the table's sha256."""
        text = "".join(self.log.checksums()) + (self.table.sha256 if self.table else "")
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def required(self) -> tuple[str, ...]:
        """Arrays that every row must be in: those with a record, and the masks of a segmentation."""
        found = [name for name in self.identity.arrays if name in self.log.arrays]
        if found and self.table and self.table.about.task == "segmentation" and "mask" not in found:
            found.append("mask")
        return tuple(found)

    @property
    def superseded(self) -> int:
        """Number of rows with a record that the table lists no longer."""
        found = np.zeros(self.log.rows, bool)
        for state in self.log.arrays.values():
            found |= state.committed
        if self.table is not None:
            found[self.table.rows] = False
        return int(found.sum())

    def marked(self, field: str, arrays: Iterable[str] = ()) -> NDArray[np.bool_]:
        """Mark the listed rows that are `committed` or `ok` in each of some arrays, by default the required ones."""
        rows = self.table.rows if self.table else np.zeros(0, np.int64)
        names = tuple(arrays) or self.required
        found = np.full(len(rows), bool(names))
        for name in names:
            state = self.log.arrays.get(name)
            found &= False if state is None else getattr(state, field)[rows]
        return found


def load_state(storage: Storage) -> StoreState | None:
    """Read what a store is; None if there is none.

    Raises
    ------
    DamageError
        If the fingerprint, the newest table or a record is damaged, missing, or another store's.
    InputError
        If the store has another format.
    """
    identity = read_identity(storage)
    if identity is None and (storage.list(LOG) or storage.list(FOLDER)):
        identity = read_identity(storage)  # another writer may be creating the store
        if identity is None:
            raise DamageError(
                f"{storage.url}/{FILE} is missing, so nobody knows what the rows are: take it from a copy of the store"
            )
    if identity is None:
        return None
    # Others may write meanwhile: the metadata is read before the table, since no table is older than the one that it
    # was derived from.
    told = metadata_table(storage)
    # The table is read after the log is listed, so that it knows the rows of all records.
    places = record_places(storage)
    try:
        table = read_table(storage, identity)
    except FileNotFoundError:
        if places:
            raise DamageError(
                f"{storage.url}/{FOLDER} has no table, so nobody knows which images the rows are: take it from a copy"
            ) from None
        return StoreState(storage, identity, None, LogState(identity.block_rows, 0))
    log = _from_pack(storage, identity, places)
    if log is None:
        log = LogState(identity.block_rows, table.about.rows_end)
    elif log.rows < table.about.rows_end:
        log.grow(table.about.rows_end)
    packed = log.packed()
    rest = [place for place in places if place not in packed] if packed else places
    for record in read_log(storage, identity, rest):
        log.add(record, storage.url)
    state = StoreState(storage, identity, table, log, len(rest))
    check_table(state, told)
    return state


def _from_pack(
    storage: Storage, identity: Identity, places: list[tuple[int, int]]
) -> LogState | None:
    """Take the newest pack, unless it is damaged or knows records that are gone."""
    for number in pack_numbers(storage)[-1:]:
        try:
            log = LogState.unpack(storage.read(pack_name(number)), identity)
        except (DamageError, FileNotFoundError):
            return None
        if log.packed() <= set(places):
            return log
    return None


def metadata_table(storage: Storage) -> int:
    """Return the number of the table that the metadata was derived from, 0 if that is not known."""
    try:
        return msgspec.json.decode(storage.read(ROOT), type=_Root).attributes.samtl_table
    except (FileNotFoundError, DamageError, msgspec.MsgspecError, UnicodeDecodeError):
        return 0  # derived: the next writer writes it again


def check_table(state: StoreState, told: int = 0) -> None:
    """Raise DamageError if the table contradicts the log, or is older than table `told` of the metadata."""
    table = state.table
    assert table is not None
    where = f"{state.storage.url}/{table.path}"
    rows = table.rows
    other = state.log.other_images(rows, table.digests())
    if len(other):
        raise DamageError(
            f"{where}: row {other[0]} was made from another image than the table names; take the right table "
            "from a copy of the store"
        )
    for name, array in state.log.arrays.items():
        lost = (array.sequence[rows // state.log.block_rows] >= 0) & ~array.committed[rows]
        if lost.any():
            raise DamageError(
                f"{where} lists row {rows[lost][0]}, which the record of its block in {name} does not have"
            )
    if told > table.about.number:
        raise DamageError(
            f"{where} is older than the table {told} that {ROOT} was written for: the store was not copied whole; take "
            "the newest table from a copy"
        )


class _Attributes(msgspec.Struct):
    samtl_table: int = 0


class _Root(msgspec.Struct):
    attributes: _Attributes
