"""The commit log: which rows count, and what their bytes must be.

Each record `log/BLOCK.SEQUENCE.json` commits the shards of some arrays for the rows of a block; arrays that are added
later come by further records. A shard without a record is what an interrupted writer left.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from samtl._io import canonical, seal, unseal
from samtl.errors import DamageError
from samtl.store.fingerprint import Identity
from samtl.store.storage import Storage

LOG = "log"
PACK = "log/pack.npz"
OK = "ok"
QUARANTINED = "quarantined:"  # and a code such as `truncated`; the row holds fill values
UNLISTED = "unlisted"  # the table did not list the row when the block was written
_RECORD = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.json")
Place = tuple[int, int]  # of a record: block and sequence
#: Called with what is damaged, its path, the error, and the array and block if they are known.
OnDamage = Callable[..., None]


class Shard(msgspec.Struct, frozen=True):
    """One committed file: its size in bytes, its sha256, and the crc32c of each row's bytes."""

    size: int
    sha256: str
    crc32c: list[int]


class Record(msgspec.Struct, frozen=True):
    """One commit of one block."""

    block: int
    sequence: int
    fingerprint: str  # sha256 of the store's
    status: list[str]  # for each row `ok`, `quarantined:CODE` or `unlisted`
    reasons: dict[str, str]  # row number to what was wrong with a quarantined row
    image_sha256: list[str]  # of each image file, "" if its bytes could not be read
    arrays: dict[str, Shard]  # what it commits
    writer: dict[str, Any]  # versions, device, host, process, time: for people
    mask_sha256: list[str] = []  # of each mask as the dataset gave it, if `mask` is committed
    checksum: str = ""

    @property
    def name(self) -> str:
        """Its file, relative to the store."""
        return record_name(self.block, self.sequence)

    def sealed(self) -> tuple[bytes, Record]:
        """Return the file, and the record with its checksum."""
        raw = seal(msgspec.to_builtins(self))
        return raw, msgspec.json.decode(raw, type=Record)


def record_name(block: int, sequence: int) -> str:
    """Path of a record relative to the store."""
    return f"{LOG}/{block}.{sequence}.json"


def block_key(record: Record, array: str) -> bytes:
    """Return the 32 bytes at the start of a shard: what its rows were made from, and with which outcome."""
    fields = ["fingerprint", "block", "status", "image_sha256"]
    fields += ["mask_sha256"] * (array == "mask")
    return hashlib.sha256(canonical({name: getattr(record, name) for name in fields})).digest()


def refuse(what: str, path: str, error: Exception, *where: object) -> None:
    """Raise what was found: what happens to damage unless somebody wants to know all of it."""
    raise error


def record_places(storage: Storage, tell: OnDamage = refuse) -> list[Place]:
    """List the places of all records, ascending; DamageError if something else is in the folder."""
    folder = storage.path(LOG)
    try:  # without sizes, since a large store has ten thousands
        names = storage.list(LOG) if folder is None else os.listdir(folder)  # noqa: PTH208
    except FileNotFoundError:
        return []
    except NotADirectoryError as error:
        raise DamageError(f"{folder} is not a folder: the store is damaged") from error
    found = []
    for name in names:
        match = _RECORD.fullmatch(name)
        if match:
            found.append((int(match[1]), int(match[2])))
        elif not name.startswith(".") and f"{LOG}/{name}" != PACK:
            path = f"{LOG}/{name}"
            tell(
                "record", path, DamageError(f"{storage.url}/{path} is no record: move it elsewhere")
            )
    return sorted(found)


def read_record(storage: Storage, identity: Identity, block: int, sequence: int) -> Record:
    """Read one record; DamageError if it is damaged, or not the one that its name says."""
    where = f"{storage.url}/{record_name(block, sequence)}"
    record = unseal(storage.read(record_name(block, sequence)), Record, where)
    rows = len(record.status)
    lengths = {rows, len(record.image_sha256), len(record.mask_sha256) or rows}
    lengths.update(len(shard.crc32c) for shard in record.arrays.values())
    if (
        (record.block, record.sequence) != (block, sequence)
        or record.fingerprint != identity.sha256
        or lengths != {rows}
        or not 1 <= rows <= identity.block_rows
        or not record.arrays
        or not record.arrays.keys() <= identity.arrays.keys()
        or any(
            shard.size != identity.arrays[name].shard_bytes(rows, identity.block_rows)
            for name, shard in record.arrays.items()
        )
    ):
        raise DamageError(f"{where} belongs to another store, or to another place in this one")
    return record


def read_log(storage: Storage, identity: Identity) -> Iterator[Record]:
    """Read all records in the order of block and sequence."""
    return storage.each(
        lambda place: read_record(storage, identity, *place), record_places(storage)
    )


class ArrayState:
    """What is committed of one array: by row, and by block."""

    def __init__(self, rows: int, blocks: int) -> None:
        self.committed, self.ok = np.zeros(rows, bool), np.zeros(rows, bool)
        self.crc32c = np.zeros(rows, np.uint32)
        self.sequence = np.full(blocks, -1, np.int32)  # of the record; -1 if there is none
        self.size, self.sha256 = np.zeros(blocks, np.int64), np.zeros((blocks, 32), np.uint8)


@dataclass(frozen=True)
class Facts:
    """What the log says of one row."""

    committed: bool  # by any record
    ok: bool  # in every array that its block is committed in
    image: str  # sha256 of what it was made from; "" if it is not known
    mask: str
    codes: dict[str, str]  # for which it was quarantined, or `unlisted`, with the reasons


class LogState:
    """All records, folded into arrays over the rows."""

    def __init__(self, block_rows: int, rows: int, arrays: Iterable[str] = ()) -> None:
        self.block_rows, self.rows = block_rows, rows
        self.blocks = -(-rows // block_rows)
        self.arrays = {name: ArrayState(rows, self.blocks) for name in arrays}
        self.codes: dict[int, dict[str, str]] = {}  # of rows that are not ok, with the reasons
        self.records: dict[Place, str] = {}  # their checksums
        # sha256 of what each row was made from, zeros if it is not known.
        self.images, self.masks = np.zeros((rows, 32), np.uint8), np.zeros((rows, 32), np.uint8)

    def next(self, block: int) -> int:
        """Sequence of the next record of a block."""
        return 1 + max((int(one.sequence[block]) for one in self.arrays.values()), default=-1)

    def good(self, rows: slice | NDArray[np.int64]) -> NDArray[np.bool_]:
        """Mark the rows that hold an embedding in any array."""
        found = np.zeros_like(self.images[rows, 0], bool)
        for state in self.arrays.values():
            found |= state.ok[rows]
        return found

    def add(self, record: Record, where: str) -> None:
        """Fold one more record; DamageError if one of its block is missing before it, or it contradicts one."""
        block, first = record.block, record.block * self.block_rows
        rows = slice(first, first + len(record.status))
        if block >= self.blocks or rows.stop > self.rows:
            raise DamageError(f"{where}/{record.name} has rows that the sample table does not know")
        if record.sequence != self.next(block):
            lost = record_name(block, self.next(block))
            raise DamageError(f"{where}/{lost} is missing, but a later record of its block exists")
        ok = np.array([status == OK for status in record.status])
        try:
            images = _digests(record.image_sha256)
            masks = _digests(record.mask_sha256)
            shards = {name: _digests([s.sha256])[0] for name, s in record.arrays.items()}
            sums = {name: np.array(s.crc32c, np.uint32) for name, s in record.arrays.items()}
        except (ValueError, OverflowError) as error:
            raise DamageError(f"{where}/{record.name} is damaged: {error}") from error
        before, known = self.images[rows], self.good(rows)
        if (before != images)[ok & known].any():
            raise DamageError(
                f"{where}/{record.name} was made from other images than the record before it"
            )
        taken = images.any(axis=1) & ~known
        before[taken] = images[taken]
        if len(masks):
            self.masks[rows] = masks
        for name, shard in record.arrays.items():
            state = self.arrays.get(name) or ArrayState(self.rows, self.blocks)
            self.arrays = {**self.arrays, name: state}  # another thread may go through the old one
            state.committed[rows], state.ok[rows], state.crc32c[rows] = True, ok, sums[name]
            state.sequence[block], state.size[block] = record.sequence, shard.size
            state.sha256[block] = shards[name]
        for row in (first + np.flatnonzero(~ok)).tolist():
            code = record.status[row - first].removeprefix(QUARANTINED)
            self.codes.setdefault(row, {})[code] = record.reasons.get(str(row), "")
        self.records[block, record.sequence] = record.checksum

    def image(self, row: int) -> str:
        """sha256 of the image that a row was made from; "" if it is not known."""
        return _hex(self.images[row])

    def mask(self, row: int) -> str:
        """sha256 of the mask that a row was made from; "" if it is not known."""
        return _hex(self.masks[row])

    def facts(self, row: int) -> Facts:
        """Collect what the log says of a row."""
        states = [s for s in self.arrays.values() if s.sequence[row // self.block_rows] >= 0]
        return Facts(
            any(bool(state.committed[row]) for state in states),
            bool(states) and all(bool(state.ok[row]) for state in states),
            self.image(row),
            self.mask(row),
            self.codes.get(row, {}),
        )

    def grown(self, rows: int) -> LogState:
        """Return the same state with room for the rows of a later table."""
        if rows <= self.rows:
            return self
        larger = LogState(self.block_rows, rows, self.arrays)
        larger.codes, larger.records = self.codes, self.records
        for name, values in larger._fields().items():
            given = self._fields()[name]
            values[: len(given)] = given
        return larger

    def _fields(self) -> dict[str, NDArray[Any]]:
        found = {"images": self.images, **({"masks": self.masks} if "mask" in self.arrays else {})}
        for name, state in self.arrays.items():
            found.update({f"{name}.{field}": values for field, values in vars(state).items()})
        return found

    def same(self, other: LogState) -> bool:
        """Whether two states say the same."""
        mine, theirs = self._fields(), other._fields()
        fields = mine.keys() == theirs.keys() and all(
            np.array_equal(mine[n], theirs[n]) for n in mine
        )
        return fields and (self.codes, self.records) == (other.codes, other.records)

    def pack(self, identity: Identity) -> bytes:
        """Dump the state, so that a large store opens without reading its records one by one."""
        records = [(*place, checksum) for place, checksum in self.records.items()]
        about = _PackAbout(identity.checksum, self.rows, [*self.arrays], self.codes, records)
        file, text = io.BytesIO(), np.frombuffer(canonical(about), np.uint8)
        np.savez(file, about=text, **self._fields())  # type: ignore[arg-type]
        return file.getvalue() + hashlib.sha256(file.getbuffer()).digest()

    @classmethod
    def unpack(cls, raw: bytes, identity: Identity) -> LogState:
        """Read what `pack` returned; DamageError if it is damaged or another store's."""
        if hashlib.sha256(memoryview(raw)[:-32]).digest() != raw[-32:]:
            raise DamageError("the pack fails its checksum")
        try:
            with np.load(io.BytesIO(raw)) as file:
                about = msgspec.json.decode(file["about"].tobytes(), type=_PackAbout)
                if about.identity != identity.checksum:
                    raise ValueError("another store's")
                found = cls(identity.block_rows, about.rows, about.arrays)
                found.codes = about.codes
                found.records = {(block, sequence): one for block, sequence, one in about.records}
                for name, values in found._fields().items():
                    values[:] = file[name]
        except Exception as error:  # whatever numpy and zipfile run into
            raise DamageError(f"the pack is damaged: {error}") from error
        return found


class _PackAbout(msgspec.Struct):
    identity: str
    rows: int
    arrays: list[str]
    codes: dict[int, dict[str, str]]
    records: list[tuple[int, int, str]]


def _digests(texts: list[str]) -> NDArray[np.uint8]:
    raw = bytes.fromhex("".join(text or "00" * 32 for text in texts))
    if any(len(text) not in (0, 64) for text in texts):
        raise ValueError("a sha256 has 64 digits")
    return np.frombuffer(raw, np.uint8).reshape(-1, 32)


def _hex(digest: NDArray[np.uint8]) -> str:
    return bytes(digest).hex() if digest.any() else ""
