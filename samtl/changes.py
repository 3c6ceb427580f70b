"""What became of a dataset since a store was made from it: images that came, went or changed, and other labels."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from samtl.ahead import ahead
from samtl.datasets import Dataset
from samtl.errors import InputError
from samtl.images import BadImage
from samtl.store.layout import BLOCK_ROWS
from samtl.store.log import QUARANTINED, SUPERSEDED, Record, committed, read_log
from samtl.store.rows import Rows, read_rows, require_kin

_READERS = 4  # images that are read and summed at a time


@dataclass(frozen=True)
class Changes:
    """A store's rows as the dataset is now, and how they differ from what they were.

    Attributes
    ----------
    rows : Rows
        The store's own list where nothing differs, else the next generation of it.
    added : int
        Images that the store does not have.
    changed : int
        Images whose files have other bytes: the old row is superseded, and there is a new one.
    removed : int
        Images that the dataset does not have any more: their rows are superseded.
    returned : int
        Images whose rows were superseded, and count again.
    relabelled : int
        Rows that stay, with another label.
    """

    rows: Rows
    added: int = 0
    changed: int = 0
    removed: int = 0
    returned: int = 0
    relabelled: int = 0


def find_changes(
    store: Path,
    wanted: Rows,
    source: Dataset,
    read_images: bool = True,
    on_progress: Callable[[int, int], None] = lambda done, all_of: None,
) -> Changes:
    """Compare a dataset with the store that was made from it; nothing is written.

    Parameters
    ----------
    store : Path
    wanted : Rows
        What the dataset has now, in any order.
    source : Dataset
        Gives its images.
    read_images : bool
        Whether to read the image of each row that is done, to see whether it is still the same file. An image that
        cannot be read now is taken to be the same: that is for `verify` to tell.
    on_progress : callable, optional
        Called with the number of images that were read, and are to be read.

    Raises
    ------
    MismatchError
        Where it is another dataset, or has less than half of the store's rows.
    DamageError
        Where the store's lists are damaged.
    """
    stored = read_rows(store)
    require_kin(stored, wanted, store)
    state = committed(read_log(store))
    made_from = _hashes(state)
    here = set(wanted.sample_ids)
    known = {stored.sample_ids[row] for row in stored.current}
    # Of a row that no longer counts, the image may be back.
    whole = set(stored.superseded) & made_from.keys() - _unfinished(state)
    gone = sorted(row for row in whole if stored.sample_ids[row] in here)
    asked = [row for row in stored.current if row in made_from and stored.sample_ids[row] in here]
    now: dict[int, str | None] = {}
    rows = [*(asked if read_images else ()), *gone]
    hashed = ahead(
        lambda row: (row, _hash(source, stored.sample_ids[row])), rows, _READERS, 4 * _READERS
    )
    for row, digest in hashed:
        now[row] = digest
        on_progress(len(now), len(rows))
    changed = {row for row in asked if now.get(row) not in (None, made_from[row])}
    free = here - known | {stored.sample_ids[row] for row in changed}
    back = {
        stored.sample_ids[row]: row
        for row in gone
        if now[row] == made_from[row] and stored.sample_ids[row] in free
    }
    return reconcile(stored, wanted, changed, back)


def reconcile(
    stored: Rows, wanted: Rows, changed: set[int], returning: Mapping[str, int]
) -> Changes:
    """Work out the next generation of a list of rows.

    Rows keep their places. New ones begin with a block of their own, so that none that is committed has to be written
    again.

    Parameters
    ----------
    stored, wanted : Rows
        Of the store, and of the dataset now.
    changed : set of int
        Rows whose images have other bytes now.
    returning : mapping
        Sample id to a superseded row that was made from the image as it is now.
    """
    at = {stored.sample_ids[row]: row for row in stored.current}
    place = {name: i for i, name in enumerate(wanted.sample_ids)}
    of_row = {row: place[name] for name, row in at.items() if name in place and row not in changed}
    back = {row: place[name] for name, row in returning.items() if name in place}
    of_row |= back
    settled = set(of_row.values())
    new = [i for i in range(len(wanted)) if i not in settled]

    n_changed = sum(name in place and row in changed for name, row in at.items())
    removed = sum(name not in place for name in at)
    added = len(new) - (n_changed - sum(wanted.sample_ids[i] in at for i in back.values()))
    start = -(-len(stored) // BLOCK_ROWS) * BLOCK_ROWS if new else len(stored)
    padding = start - len(stored)

    codes = {name: code for code, name in enumerate(wanted.classes)}
    translated = [codes.get(name, -1) for name in stored.classes]

    def old_label(row: int) -> int:
        label = stored.labels[row]
        return translated[label] if label >= 0 else -1

    labels = [
        wanted.labels[of_row[row]] if row in of_row else old_label(row)
        for row in range(len(stored))
    ]  # fmt: skip
    relabelled = sum(
        row in of_row and row not in back and labels[row] != old_label(row)
        for row in range(len(stored))
    )

    def column(old: tuple[str, ...], now: tuple[str, ...]) -> tuple[str, ...]:
        """Take what the dataset says of its images now, and of the others what it said."""
        if not now:
            return ()
        kept = [
            now[of_row[row]] if row in of_row else (old[row] if old else "")
            for row in range(len(stored))
        ]
        return (*kept, *[""] * padding, *(now[i] for i in new))

    result = Rows(
        wanted.dataset,
        wanted.classes,
        (*stored.sample_ids, *[""] * padding, *(wanted.sample_ids[i] for i in new)),
        (*labels, *[-1] * padding, *(wanted.labels[i] for i in new)),
        wanted.note,
        wanted.task,
        column(stored.groups, wanted.groups),
        column(stored.parts, wanted.parts),
        stored.generation + 1,
        stored.checksum,
        tuple(
            row
            for span in stored.extents
            for row in range(*span)
            if row not in of_row
        ),
        (*stored.extents, (start, start + len(new))) if new else stored.extents,
    )  # fmt: skip
    same = (
        not new
        and result.superseded == stored.superseded
        and result.classes == stored.classes
        and result.labels == stored.labels
        and result.groups == stored.groups
        and result.parts == stored.parts
    )
    if same:
        return Changes(stored)
    return Changes(result, added, n_changed, removed, len(back), relabelled)


def _hashes(state: Mapping[str, Mapping[int, Record]]) -> dict[int, str]:
    """Give the sha256 of each image that a committed row was made from; "" of one that could not be read."""
    found: dict[int, str] = {}
    for by_block in state.values():
        for record in by_block.values():
            for row, digest in enumerate(record.image_sha256, record.first_row):
                found[row] = digest or found.get(row, "")
    return found


def _unfinished(state: Mapping[str, Mapping[int, Record]]) -> set[int]:
    """Name the rows that a later pass left out of an array because they did not count."""
    return {
        row
        for by_block in state.values()
        for record in by_block.values()
        for row, status in enumerate(record.status, record.first_row)
        if status == QUARANTINED + SUPERSEDED
    }


def _hash(source: Dataset, sample_id: str) -> str | None:
    """Give the sha256 of an image's bytes; "" where the image is none to be read, None where it cannot be read now."""
    try:
        return hashlib.sha256(source.read(sample_id)).hexdigest()
    except BadImage:
        return ""
    except (OSError, InputError):
        return None
