"""Whether records are of this store, and commit the samples that the list of rows names, and their labels.

The ids and labels of rows are in arrays, too, whose checksums the records hold. So a list that came from elsewhere,
such as an older copy of the store, is told from the right one without a shard being read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from samtl.store.layout import ArraySpec, crc32c
from samtl.store.log import Record
from samtl.store.rows import Rows


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


def label_sums(listed: Rows, spec: ArraySpec) -> NDArray[np.uint32]:
    """Give the checksum that each row's label must have, (N,)."""
    first = -1  # the label of rows without one
    sums = [crc32c(spec.encode_row(label)) for label in range(first, len(listed.classes))]
    codes = np.array(listed.labels, dtype=np.int64) - first
    return np.array(sums, dtype=np.uint32)[codes]


def other_labels(
    listed: Rows, spec: ArraySpec, by_block: Mapping[int, Record]
) -> dict[int, tuple[int, ...]]:
    """Map blocks to their rows whose committed label is not that of the list.

    A pass that was killed between a new list and the labels that it asks for leaves such blocks.
    """
    sums, found = label_sums(listed, spec), {}
    for block, record in by_block.items():
        have = np.array(record.files[spec.name].crc32c, dtype=np.uint32)
        expected = sums[record.first_row : record.first_row + len(have)]
        if len(expected) < len(have):  # it is not of these rows: that is for others to say
            continue
        differs = np.flatnonzero(have != expected)
        if len(differs):
            found[block] = tuple((differs + record.first_row).tolist())
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
