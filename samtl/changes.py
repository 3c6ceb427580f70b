"""What became of a dataset since a store was made from it: images that came, went or changed, labels and masks."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from samtl.ahead import ahead
from samtl.datasets import Dataset
from samtl.errors import InputError
from samtl.images import BadImage, mask_sha256
from samtl.store.layout import BLOCK_ROWS, TIER_ARRAYS
from samtl.store.log import OK, QUARANTINED, SUPERSEDED, Record, committed, read_log
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
    remasked : tuple of int
        Rows that stay, with another mask.
    """

    rows: Rows
    added: int = 0
    changed: int = 0
    removed: int = 0
    returned: int = 0
    relabelled: int = 0
    remasked: tuple[int, ...] = ()


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
        Whether to read the image of each row that is done, and its mask, to see whether they are still the same. What
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
    made_from = _made_from(state)
    masks = source.read_mask is not None
    here = set(wanted.sample_ids)
    known = {stored.sample_ids[row] for row in stored.current}
    # Of a row that no longer counts, the image may be back.
    whole = set(stored.superseded) & made_from.keys() - _unfinished(state)
    gone = sorted(row for row in whole if stored.sample_ids[row] in here)
    asked = [row for row in stored.current if row in made_from and stored.sample_ids[row] in here]
    rows = [*(asked if read_images else ()), *gone]
    now: dict[int, _Found] = {}
    hashed = ahead(
        lambda row: (row, _look(source, stored.sample_ids[row])), rows, _READERS, 4 * _READERS
    )
    for row, found in hashed:
        now[row] = found
        on_progress(len(now), len(rows))
    other_mask = {
        row for row, found in now.items()
        if masks and found.mask is not None and made_from[row].mask not in (None, found.mask)
    }  # fmt: skip
    embedded = _embedded(state) if other_mask else set()
    changed = {
        row for row in asked
        if row in now and (
            now[row].image not in (None, made_from[row].image)
            # Of an image that was put aside because of its mask, nothing was embedded.
            or (row in other_mask and row not in embedded)
        )
    }  # fmt: skip
    free = here - known | {stored.sample_ids[row] for row in changed}
    back = {
        stored.sample_ids[row]: row
        for row in gone
        if now[row].image == made_from[row].image
        and stored.sample_ids[row] in free
        and (row not in other_mask or row in embedded)
    }
    stay = (set(asked) - changed | set(back.values())) & other_mask
    return replace(reconcile(stored, wanted, changed, back), remasked=tuple(sorted(stay)))


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


@dataclass(frozen=True)
class _Found:
    """What an image, and its mask, are: sha256; "" of what was there and no use, None where nothing is known."""

    image: str | None
    mask: str | None = None


def _made_from(state: Mapping[str, Mapping[int, Record]]) -> dict[int, _Found]:
    """Say of each committed row what it was made from."""
    images: dict[int, str] = {}
    for by_block in state.values():
        for record in by_block.values():
            for row, digest in enumerate(record.image_sha256, record.first_row):
                images[row] = digest or images.get(row, "")
    masks: dict[int, str] = {}
    for record in state.get(
        "mask", {}
    ).values():  # an earlier one of the block tells of earlier masks
        masks |= dict(enumerate(record.mask_sha256, record.first_row))
    return {row: _Found(image, masks.get(row)) for row, image in images.items()}


def _embedded(state: Mapping[str, Mapping[int, Record]]) -> set[int]:
    """Name the rows that hold an embedding in each tier that their blocks have."""
    bad: set[int] = set()
    there: set[int] = set()
    for array in TIER_ARRAYS.values():
        for record in state.get(array, {}).values():
            for row, status in enumerate(record.status, record.first_row):
                (there if status == OK else bad).add(row)
    return there - bad


def _unfinished(state: Mapping[str, Mapping[int, Record]]) -> set[int]:
    """Name the rows that a later pass left out of an array because they did not count."""
    return {
        row
        for by_block in state.values()
        for record in by_block.values()
        for row, status in enumerate(record.status, record.first_row)
        if status == QUARANTINED + SUPERSEDED
    }


def _look(source: Dataset, sample_id: str) -> _Found:
    """Read an image and its mask."""
    mask = None
    try:
        if source.read_mask is not None:
            with contextlib.suppress(OSError, InputError):
                mask = mask_sha256(source.read_mask(sample_id))
        return _Found(hashlib.sha256(source.read(sample_id)).hexdigest(), mask)
    except BadImage:
        return _Found("", mask)
    except (OSError, InputError):
        return _Found(None, mask)
