"""Whether records are of this store, and commit the samples that the list of rows names, and their labels.

The ids and labels of rows are in arrays, too, whose checksums the records hold. So a list that came from elsewhere,
such as an older copy of the store, is told from the right one without a shard being read.
"""

from __future__ import annotations

import itertools
import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from samtl.errors import DamageError
from samtl.store.layout import (
    METADATA_BYTES,
    ROOT,
    ArraySpec,
    crc32c,
)
from samtl.store.log import (
    OK,
    Record,
    committed,
    record_name,
)
from samtl.store.rows import Rows, newest


def foreign(record: Record, fingerprint: str, listed: Rows, specs: Mapping[str, ArraySpec]) -> str:
    """Tell why a whole record is not one of this store's, or ""."""
    if record.fingerprint != fingerprint or record.block >= listed.blocks:
        return "it is the record of another store"
    if len(record.status) != len(listed.block_rows(record.block)):
        return f"it has {len(record.status)} rows, and the block has another number"
    for name, file in record.files.items():
        if name not in specs:
            return f"it commits an array {name!r} that a store of format 1 does not have"
        if file.path != specs[name].shard_path(record.block):
            return f"it commits {file.path!r}, which is not where the block's rows of {name} are"
    return ""


def label_sums(listed: Rows, spec: ArraySpec) -> array[int]:
    """Give the checksum that each row's label must have, N of them."""
    known = {label: crc32c(spec.encode_row(label)) for label in range(-1, len(listed.classes))}
    return array("I", map(known.__getitem__, listed.labels))


def other_labels(
    listed: Rows, spec: ArraySpec, by_block: Mapping[int, Record]
) -> dict[int, tuple[int, ...]]:
    """Map blocks to their rows whose committed label is not that of the list.

    A pass that was killed between a new list and the labels that it asks for leaves such blocks.
    """
    sums, found = label_sums(listed, spec), {}
    for block, record in by_block.items():
        have = record.files[spec.name].crc32c
        expected = sums[record.first_row : record.first_row + len(have)]
        # A record of more rows than the list has is not of these rows: that is for others to say.
        if have != expected and len(expected) == len(have):
            differs = (a != b for a, b in zip(have, expected, strict=True))
            found[block] = tuple(itertools.compress(itertools.count(record.first_row), differs))
    return found


def other_samples(listed: Rows, spec: ArraySpec, by_block: Mapping[int, Record]) -> list[int]:
    """List the rows that were committed as other samples than the list names: then it is not the list of this store."""
    found: list[int] = []
    for record in by_block.values():
        sums = record.files[spec.name].crc32c
        names = listed.sample_ids[record.first_row : record.first_row + len(sums)]
        for row, (name, expected) in enumerate(zip(names, sums, strict=False), record.first_row):
            if crc32c(spec.encode_row(name)) != expected:
                found.append(row)
    return sorted(found)


def strangers(listed: Rows, rows: Sequence[int]) -> str:
    """Say that rows were committed as other samples."""
    some = f"{len(rows)} rows were" if len(rows) > 1 else "one row was"
    return (
        f"{some} committed as other samples than it names, row {rows[0]} for one is not "
        f"{listed.sample_ids[rows[0]]!r}: it is not the list that belongs to these rows"
    )


def other_images(
    state: Mapping[str, Mapping[int, Record]],
) -> Iterator[tuple[str, Record, list[int]]]:
    """Find arrays whose rows were made from other images than those that were committed before them.

    No pass commits such rows; what mixes the records of two copies of a store may.

    Parameters
    ----------
    state : mapping
        What is committed: see `samtl.store.log.committed`.

    Yields
    ------
    array : str
    record : Record
        That commits it.
    rows : list of int
    """
    of_block: dict[int, dict[int, tuple[Record, list[str]]]] = {}
    for name, by_block in state.items():
        for block, record in by_block.items():
            of_block.setdefault(block, {}).setdefault(record.sequence, (record, []))[1].append(name)
    for records in of_block.values():
        if len({record.image_sha256 for record, _ in records.values()}) < 2:
            continue
        images: dict[int, str] = {}
        for _, (record, arrays) in sorted(records.items()):
            good = [
                (record.first_row + position, image)
                for position, (image, status) in enumerate(
                    zip(record.image_sha256, record.status, strict=True)
                )
                if status == OK
            ]
            rows = [row for row, image in good if images.setdefault(row, image) != image]
            if rows:
                yield from ((name, record, rows) for name in arrays)


def older_list(store: Path, listed: Rows) -> str:
    """Tell why the list of rows is an older one than the store had, or "".

    A pass writes the list before it writes of it in the group's metadata, so that is never ahead of the list. A
    generation alone may be a digit that is damaged; with other rows superseded it is not.
    """
    path = store / ROOT
    try:
        if path.stat().st_size > METADATA_BYTES:
            return ""
        told = json.loads(path.read_bytes())["attributes"]["samtl"]
        generation, superseded = told["generation"], told["superseded"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""
    if (
        type(generation) is not int
        or generation <= listed.generation
        or not isinstance(superseded, list)
    ):
        return ""
    if superseded == list(listed.superseded):
        return ""
    return (
        f"it is the list of generation {listed.generation}, and {ROOT} tells of generation {generation}: it is older "
        "than what is committed"
    )


def require_newest(store: Path, listed: Rows) -> None:
    """Raise DamageError where a list of rows is an older one than the store had: rows would count that do not."""
    told = older_list(store, listed)
    if told and newest(store) == listed.path:  # else a pass wrote both meanwhile
        raise DamageError(
            f"{store / listed.path}: {told}; take the right one from a copy of the store"
        )


def require_own(
    store: Path,
    records: list[Record],
    fingerprint: str,
    listed: Rows,
    specs: Mapping[str, ArraySpec],
) -> None:
    """Refuse to go on from records that are not of these rows: what they commit would pass for something else.

    Parameters
    ----------
    store : Path
    records : list of Record
        The whole log.
    fingerprint : str
        The sha256 of the store's fingerprint.
    listed : Rows
        The store's list, or the next generation of it.
    specs : mapping
        Every array that a store may have.

    Raises
    ------
    DamageError
    """
    for record in records:
        told = foreign(record, fingerprint, listed, specs)
        if told:
            raise DamageError(f"{store / record_name(record.block, record.sequence)}: {told}")
    others = other_samples(listed, specs["sample_id"], committed(records).get("sample_id", {}))
    if others:
        raise DamageError(
            f"{store / newest(store)}: {strangers(listed, others)}; take the right one from a copy of the store"
        )
