"""The commit log: which rows count, and what their bytes must be.

`log/BLOCK.json` is the first record of a block, `log/BLOCK.1.json` the second and so on. Each record
commits the shards of some arrays for the rows of its block; a tier that is added later is one more record.
Nothing else is evidence: a shard without a record is left over from a crash.
"""

from __future__ import annotations

import hashlib
import os
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from samtl._runtime import prefetch, without_collecting
from samtl.errors import DamageError
from samtl.store.documents import unseal
from samtl.store.folders import names
from samtl.store.layout import BLOCK_ROWS
from samtl.store.remote import RemotePath

OK = "ok"
QUARANTINED = (
    "quarantined:"  # followed by a code such as `truncated`; the row's arrays hold fill values
)
# The code of a row that did not count any more when an array was written.
SUPERSEDED = "superseded"

LOG = "log"
_REQUESTS = 32  # at a time
_NAME = re.compile(r"(\d+)(?:\.(\d+))?\.json")


class CommittedFile(NamedTuple):
    """One shard as its record describes it; a large store has half a million, so these are tuples.

    Attributes
    ----------
    path : str
        Relative to the store.
    size : int
        Bytes.
    sha256 : str
        Of the file.
    crc32c : array of uint32
        Of each row's bytes, in order; 4 bytes each, since a large store has millions.
    """

    path: str
    size: int
    sha256: str
    crc32c: array[int]


@dataclass(frozen=True)
class Record:
    """One commit of one block.

    Attributes
    ----------
    block, sequence : int
        Its place in the log.
    fingerprint : str
        Digest of the fingerprint that the rows were made with.
    status : tuple of str
        For each row `ok`, or `quarantined:CODE`.
    reasons : mapping
        Row number in the store (as text, since JSON keys are text) to what was wrong with a quarantined row.
    image_sha256 : tuple of str
        Of each image file's bytes, "" where it could not be read.
    files : mapping
        Array name to the shard that is committed.
    withdrawn : tuple of str
        Arrays whose earlier commits of this block no longer count, such as after damage; their shards may be redone.
    mask_sha256 : tuple of str
        Of each mask as the dataset gave it, "" where none was had; empty where the record commits no masks, or is of
        a time when this was not kept.
    writer : mapping
        Who wrote it, with what versions, when; for people, not identity.
    checksum : str
        Digest of the record itself.
    """

    block: int
    sequence: int
    fingerprint: str
    status: tuple[str, ...]
    reasons: Mapping[str, str]
    image_sha256: tuple[str, ...]
    files: Mapping[str, CommittedFile]
    writer: Mapping[str, object]
    withdrawn: tuple[str, ...] = ()
    mask_sha256: tuple[str, ...] = ()
    checksum: str = field(default="", compare=False)

    @property
    def first_row(self) -> int:
        """The store's row that is the block's first."""
        return self.block * BLOCK_ROWS

    def to_dict(self) -> dict[str, object]:
        """Give the record as JSON values, without the checksum."""
        return {
            "block": self.block,
            "sequence": self.sequence,
            "first_row": self.first_row,
            "fingerprint": self.fingerprint,
            "status": list(self.status),
            "reasons": dict(self.reasons),
            "image_sha256": list(self.image_sha256),
            "files": {
                name: {"path": f.path, "size": f.size, "sha256": f.sha256, "crc32c": list(f.crc32c)}
                for name, f in self.files.items()
            },
            "withdrawn": list(self.withdrawn),
            "writer": dict(self.writer),
            **({"mask_sha256": list(self.mask_sha256)} if self.mask_sha256 else {}),
        }


def record_name(block: int, sequence: int) -> str:
    """Path of a record relative to the store."""
    return f"{LOG}/{block}.json" if sequence == 0 else f"{LOG}/{block}.{sequence}.json"


def place_in_log(name: str) -> tuple[int, int] | None:
    """Give the block and sequence that a file's name in the log stands for; None where it is no record's."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    place = int(match[1]), int(match[2] or 0)
    return place if record_name(*place) == f"{LOG}/{name}" else None


def read_record(path: str | Path) -> Record:
    """Read one record.

    Raises
    ------
    DamageError
        Where the file is not a record, or not the one that its name says.
    """
    content = unseal(path)
    try:
        record = _parse(content)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DamageError(
            f"{path} is not a commit record: field {error} is missing or wrong"
        ) from error
    name = os.path.basename(str(path))  # noqa: PTH119
    if record_name(record.block, record.sequence) != f"{LOG}/{name}":
        raise DamageError(f"{path} holds the record of block {record.block}.{record.sequence}")
    return record


def _parse(content: Mapping[str, Any]) -> Record:
    files = {
        str(name): CommittedFile(
            str(f["path"]), int(f["size"]), str(f["sha256"]), array("I", f["crc32c"])
        )
        for name, f in content["files"].items()
    }
    status = tuple(OK if s == OK else str(s) for s in content["status"])  # one text, not millions
    images = tuple(map(str, content["image_sha256"]))
    masks = tuple(map(str, content.get("mask_sha256", ())))
    lengths = {
        len(status),
        len(images),
        len(masks) or len(status),
        *(len(f.crc32c) for f in files.values()),
    }
    if len(lengths) != 1 or not 1 <= len(status) <= BLOCK_ROWS:
        raise ValueError("status")
    return Record(
        block=int(content["block"]),
        sequence=int(content["sequence"]),
        fingerprint=str(content["fingerprint"]),
        status=status,
        reasons={str(k): str(v) for k, v in content["reasons"].items()},
        image_sha256=images,
        files=files,
        writer=dict(content["writer"]),
        withdrawn=tuple(str(name) for name in content["withdrawn"]),
        mask_sha256=masks,
        checksum=str(content["checksum"]),
    )


def read_log(store: Path) -> list[Record]:
    """Read every record of a store, ordered by block and sequence.

    Raises
    ------
    DamageError
        Where a record is damaged, or one before the last of a block is missing.
    """
    found: list[tuple[int, int, str]] = []
    folder = store / LOG
    for name in names(folder):
        place = place_in_log(name)
        if place is None:
            raise DamageError(
                f"{folder}/{name} does not belong into a store's log; move it elsewhere"
            )
        found.append((*place, name))
    with without_collecting():
        records = list(_each(folder, [name for _, _, name in sorted(found)]))
    expected: dict[int, int] = {}
    for record in records:
        if record.sequence != expected.get(record.block, 0):
            raise DamageError(
                f"{store / record_name(record.block, expected.get(record.block, 0))} is missing, "
                "but later records of its block are there: the store is damaged"
            )
        expected[record.block] = record.sequence + 1
    return records


def _each(folder: Path, listed: list[str]) -> Iterator[Record]:
    if isinstance(folder, RemotePath):  # where each takes a request
        yield from prefetch(
            lambda name: read_record(folder / name), listed, _REQUESTS, 2 * _REQUESTS
        )
        return
    parent = str(folder)  # texts are a third quicker than paths
    yield from (read_record(f"{parent}/{name}") for name in listed)


def committed(records: list[Record]) -> dict[str, dict[int, Record]]:
    """Fold the log, in its order: for each array, the record that commits each block."""
    state: dict[str, dict[int, Record]] = {}
    for record in records:
        for name in record.withdrawn:
            state.get(name, {}).pop(record.block, None)
        for name in record.files:
            state.setdefault(name, {})[record.block] = record
    return state


def image_of(records: Iterable[Record], position: int) -> str:
    """Give the sha256 of the image that a row was made from, "" where none is known.

    Parameters
    ----------
    records : iterable of Record
        Those that commit the arrays of its block.
    position : int
        Its place in the block.

    Returns
    -------
    str
        Of the earliest in which the row is `ok`. One in which it is not may name an image that was refused.
    """
    found = ""
    for record in sorted(records, key=lambda record: record.sequence):
        image = record.image_sha256[position]
        if record.status[position] == OK:
            return image
        found = found or image
    return found


def required(records: Iterable[Record], task: str) -> tuple[str, ...]:
    """Name the arrays that every row must be in: those that were ever committed, and the masks of a segmentation.

    An array that was withdrawn altogether, or whose last record is gone, is missing, and not one that nobody wanted.
    """
    found = dict.fromkeys(name for record in records for name in record.files)
    if found and task == "segmentation":
        found["mask"] = None
    return tuple(found)


def snapshot(records: list[Record], listed: str = "") -> str:
    """Name what is committed: the sha256 over the records' checksums, sorted, then that of a changed list of rows."""
    text = "".join(sorted(record.checksum for record in records)) + listed
    return hashlib.sha256(text.encode()).hexdigest()
