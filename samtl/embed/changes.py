"""What became of a dataset since a store was made from it: images that came, went or changed, labels and masks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from samtl._runtime import prefetch
from samtl.datasets import Dataset
from samtl.errors import InputError, MismatchError
from samtl.images.codecs import BadImage, mask_sha256
from samtl.store.layout import BLOCK_ROWS
from samtl.store.log import (
    OK,
    QUARANTINED,
    SUPERSEDED,
    Record,
)
from samtl.store.rows import Rows, read_rows, require_kin

# Codes of rows that are tried again once their images can be read: nothing was wrong with these images themselves, or
# they were other ones for a while.
_MENDABLE = {"unreadable", "changed"}
_VALUES = "mask_values"
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
        Images that the dataset does not have any more, or that the part asked for does not: their rows are superseded.
    returned : int
        Images whose rows were superseded, and count again.
    relabelled : int
        Rows whose class is another, or has another number or name.
    regrouped : int
        Rows that stay, in another group or part, or in none any more.
    remasked : tuple of int
        Rows that stay, with another mask.
    """

    rows: Rows
    added: int = 0
    changed: int = 0
    removed: int = 0
    returned: int = 0
    relabelled: int = 0
    regrouped: int = 0
    remasked: tuple[int, ...] = ()


def find_changes(
    store: Path,
    wanted: Rows,
    source: Dataset,
    state: Mapping[str, Mapping[int, Record]],
    read_images: bool = True,
    on_progress: Callable[[int, int], None] = lambda done, all_of: None,
    should_stop: Callable[[], bool] = lambda: False,
    left_out: Container[str] = frozenset(),
) -> Changes:
    """Compare a dataset with the store that was made from it; nothing is written.

    Parameters
    ----------
    store : Path
    wanted : Rows
        What the dataset has now, in any order.
    source : Dataset
        Gives its images.
    state : mapping
        What is committed: see `samtl.store.log.committed`.
    read_images : bool
        Whether to read the image of each row that is done, and its mask, to see whether they are still the same. What
        cannot be read now is taken to be the same: that is for `verify` to tell.
    on_progress : callable, optional
        Called with the number of images that were read, and are to be read.
    should_stop : callable, optional
        Asked after each image; those that were not read then are taken to be the same.
    left_out : container of str
        Ids that the dataset has, and that are not asked for: `limit` or `per_class` leaves them out.

    Raises
    ------
    MismatchError
        Where it is another dataset, or has less than half of the store's rows; where fewer images are asked for than
        the store has, and not since they are gone.
    DamageError
        Where the store's lists are damaged.
    """
    stored = read_rows(store)
    require_kin(stored, wanted, store)
    _refuse_fewer(store, stored, wanted, left_out)
    facts = _facts(state)
    masks = source.read_mask is not None
    here = set(wanted.sample_ids)
    known = {stored.sample_ids[row] for row in stored.current}
    # Of a row that no longer counts, the image may be back.
    gone = [
        row for row in stored.superseded if stored.sample_ids[row] in here
        and row in facts and SUPERSEDED not in facts[row].codes
    ]  # fmt: skip
    asked = [row for row in stored.current if row in facts and stored.sample_ids[row] in here]
    rows = [*(asked if read_images else ()), *gone]
    names = list(dict.fromkeys(stored.sample_ids[row] for row in rows))
    found: dict[str, Found] = {}
    for name, seen in look(source, names):
        found[name] = seen
        on_progress(len(found), len(names))
        if should_stop():
            break
    now = {row: found[stored.sample_ids[row]] for row in rows if stored.sample_ids[row] in found}
    # With other classes a mask that stayed the same may be of use.
    judged_anew = {
        row for row, seen in now.items()
        if seen.mask is not None and wanted.classes != stored.classes and _VALUES in facts[row].codes
    }  # fmt: skip
    other_mask = judged_anew | {
        row for row, seen in now.items()
        if masks and seen.mask is not None and facts[row].mask not in (None, seen.mask)
    }  # fmt: skip
    changed = {
        row for row in asked
        if row in now and now[row].image is not None and (
            now[row].image != facts[row].image
            # What was put aside for something that may have been mended since.
            or (now[row].image != "" and facts[row].codes & _MENDABLE)
            # Of a mask that was no use, what it was may be gone with a damaged record: then it is looked at again.
            or (masks and (row in judged_anew or now[row].mask not in (None, facts[row].mask))
                and not facts[row].embedded
                and any(code.startswith("mask_") for code in facts[row].codes))
        )
    }  # fmt: skip
    free = here - known | {stored.sample_ids[row] for row in changed}
    back = {
        stored.sample_ids[row]: row
        for row in gone
        if row in now
        and now[row].image == facts[row].image
        and stored.sample_ids[row] in free
        and not facts[row].codes
    }
    stay = (set(asked) - changed | set(back.values())) & other_mask
    remasked = tuple(sorted(row for row in stay if facts[row].embedded))
    return replace(reconcile(stored, wanted, changed, back), remasked=remasked)


def _refuse_fewer(store: Path, stored: Rows, wanted: Rows, left_out: Container[str]) -> None:
    """Refuse to take rows back of images that are still there, where only a smaller part of them is asked for.

    Where as many are asked for as before, it is the dataset that has grown, and the part is another by now.
    """
    asked = set(wanted.sample_ids)
    ids = [stored.sample_ids[row] for row in stored.current]
    there = [name for name in ids if name in asked or name in left_out]
    fewer = [name for name in there if name not in asked]
    if fewer and len(wanted) < len(there):
        raise MismatchError(
            f"--limit or --per-class leaves images out that {store} has rows of: ask for at least as many, leave the "
            "option out, or name another store with --out:",
            [("rows", f"{len(there)} of them", f"{len(wanted)}, without {fewer[0]!r} for one")],
        )


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
    names, old_names = (*wanted.classes, ""), (*stored.classes, "")  # -1 is none
    relabelled = sum(
        (new, names[new]) != (old, old_names[old])
        for new, old in zip(labels, stored.labels, strict=True)
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
    regrouped = sum(
        any((new[row] if new else "") != (old[row] if old else "") for new, old in (
            (result.groups, stored.groups), (result.parts, stored.parts)
        ))
        for row in of_row
    )  # fmt: skip
    return Changes(result, added, n_changed, removed, len(back), relabelled, regrouped)


@dataclass(frozen=True)
class Found:
    """What an image, and its mask, are: sha256; "" of an image that is no use, None where nothing is known."""

    image: str | None
    mask: str | None


@dataclass(slots=True)
class _Facts:
    """What a committed row was made from, and what became of it.

    Attributes
    ----------
    image : str
        The sha256 that its embeddings were made from; of a row without any, of what was read.
    mask : str or None
        Of its mask, "" of one that was no use; None where it was not read, or not kept.
    codes : frozenset of str
        Why it was left out of arrays.
    embedded : bool
        Whether it is in everything that its block has, but for its mask.
    """

    image: str = ""
    mask: str | None = None
    codes: frozenset[str] = frozenset()
    embedded: bool = True


def _facts(state: Mapping[str, Mapping[int, Record]]) -> dict[int, _Facts]:
    """Say of each committed row what is known of it."""
    arrays_of: dict[tuple[int, int], tuple[Record, list[str]]] = {}  # a record commits several
    for array, by_block in state.items():
        for record in by_block.values():
            arrays_of.setdefault((record.block, record.sequence), (record, []))[1].append(array)
    found: dict[int, _Facts] = {}
    for record, arrays in arrays_of.values():
        masks = record.mask_sha256 if "mask" in arrays else ()
        more_than_masks = set(arrays) != {"mask"}
        for position, status in enumerate(record.status):
            facts = found.setdefault(record.first_row + position, _Facts())
            image = record.image_sha256[position]
            if status == OK:
                facts.image = image
            else:
                facts.codes |= {status.removeprefix(QUARANTINED)}
                facts.image = facts.image or image
                facts.embedded = facts.embedded and not more_than_masks
            if masks:
                no_use = status.startswith(f"{QUARANTINED}mask_")
                facts.mask = masks[position] or ("" if no_use else None)
    return found


def look(source: Dataset, sample_ids: Iterable[str]) -> Iterator[tuple[str, Found]]:
    """Read images and their masks, several at a time; gives each id, in order, with what is there."""
    return prefetch(lambda name: (name, _look(source, name)), sample_ids, _READERS, 4 * _READERS)


def _look(source: Dataset, sample_id: str) -> Found:
    """Read an image and its mask."""
    mask = None
    try:
        if source.read_mask is not None:
            try:
                mask = mask_sha256(source.read_mask(sample_id))
            except BadImage:
                mask = ""
            except (OSError, InputError):
                pass
        return Found(hashlib.sha256(source.read(sample_id)).hexdigest(), mask)
    except BadImage:
        return Found("", mask)
    except (OSError, InputError):
        return Found(None, mask)
