"""The commit log: which rows count, and what their bytes must be.

Each record `log/BLOCK.SEQUENCE.json` commits the shards of some arrays for the rows of a block; arrays that are added
later come by further records. A shard without a record is what an interrupted writer left.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from samtl._io import canonical, seal, unseal
from samtl._runtime import prefetch
from samtl.errors import DamageError
from samtl.store.fingerprint import Identity
from samtl.store.storage import Storage

LOG = "log"
PACKS = "log/packs"
OK = "ok"
QUARANTINED = "quarantined:"  # and a code such as `truncated`; the row holds fill values
UNLISTED = "unlisted"  # the table did not list the row when the block was written
_REQUESTS = 32  # at a time, in a bucket
_RECORD = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.json")


class Shard(msgspec.Struct, frozen=True):
    """One committed file: its size in bytes, its sha256, and the crc32c of each row's bytes."""

    size: int
    sha256: str
    crc32c: list[int]


class Record(msgspec.Struct, frozen=True):
    """One commit of one block.

    Attributes
    ----------
    block, sequence : int
        Its place in the log.
    fingerprint : str
        sha256 of the store's.
    status : list of str
        For each row `ok`, `quarantined:CODE` or `unlisted`.
    reasons : dict
        Row number, as text, to what was wrong with a quarantined row.
    image_sha256 : list of str
        Of each image file, "" if its bytes could not be read.
    arrays : dict of str to Shard
        What it commits.
    writer : dict
        Versions, device, host, process, time: for people.
    mask_sha256 : list of str
        Of each mask as the dataset gave it, if `mask` is committed; else empty.
    """

    block: int
    sequence: int
    fingerprint: str
    status: list[str]
    reasons: dict[str, str]
    image_sha256: list[str]
    arrays: dict[str, Shard]
    writer: dict[str, Any]
    mask_sha256: list[str] = []
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


def record_place(name: str) -> tuple[int, int] | None:
    """Return the block and sequence of a record by its file's name; None if it is no record's."""
    match = _RECORD.fullmatch(name)
    return (int(match[1]), int(match[2])) if match else None


def block_key(record: Record, array: str) -> bytes:
    """Return the 32 bytes at the start of a shard: what its rows were made from, and with which outcome."""
    content: dict[str, object] = {
        "fingerprint": record.fingerprint,
        "block": record.block,
        "status": record.status,
        "image_sha256": record.image_sha256,
    }
    if array == "mask":
        content["mask_sha256"] = record.mask_sha256
    return hashlib.sha256(canonical(content)).digest()


def record_places(storage: Storage) -> list[tuple[int, int]]:
    """List the blocks and sequences of all records, ascending.

    Raises
    ------
    DamageError
        If something else is in the log's folder.
    """
    folder = storage.path(LOG)
    try:  # without sizes, since a large store has ten thousands
        names = storage.list(LOG) if folder is None else os.listdir(folder)  # noqa: PTH208
    except FileNotFoundError:
        return []
    except NotADirectoryError as error:
        raise DamageError(f"{folder} is not a folder: the store is damaged") from error
    found = []
    for name in names:
        place = record_place(name)
        if place is not None:
            found.append(place)
        elif not name.startswith(".") and f"{LOG}/{name}" != PACKS:
            raise DamageError(f"{storage.url}/{LOG}/{name} is no record: move it elsewhere")
    return sorted(found)


def read_record(storage: Storage, identity: Identity, block: int, sequence: int) -> Record:
    """Read one record.

    Raises
    ------
    FileNotFoundError
        If there is none.
    DamageError
        If it is damaged, or not the one that its name says.
    """
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
        or not record.arrays.keys() <= identity.arrays.keys()
        or any(
            shard.size != identity.arrays[name].shard_bytes(rows, identity.block_rows)
            for name, shard in record.arrays.items()
        )
    ):
        raise DamageError(f"{where} belongs to another store, or to another place in this one")
    return record


def read_log(
    storage: Storage, identity: Identity, places: Iterable[tuple[int, int]] | None = None
) -> Iterator[Record]:
    """Read records, by default all, in the order of block and sequence."""
    listed = record_places(storage) if places is None else places
    if storage.path("") is not None:
        yield from (read_record(storage, identity, *place) for place in listed)
    else:
        read = lambda place: read_record(storage, identity, *place)  # noqa: E731
        yield from prefetch(read, listed, _REQUESTS, 2 * _REQUESTS)
