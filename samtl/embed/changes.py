"""How a dataset differs from the store that was made from it, and the sample table that follows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from samtl._runtime import prefetch
from samtl.datasets import Dataset
from samtl.errors import InputError, MismatchError
from samtl.images.codecs import BadImage, mask_sha256
from samtl.store.log import UNLISTED, Facts
from samtl.store.samples import SampleTable

# Rows of these codes are embedded anew once their images can be read: nothing was wrong with the files.
_MENDABLE = frozenset({"unreadable", "changed", UNLISTED})
_READERS = 4  # images that are read and hashed at a time


@dataclass(frozen=True)
class Changes:
    """The next sample table of a store, and how it differs from the one before.

    Attributes
    ----------
    table : SampleTable
        The store's own, if nothing differs.
    stopped : bool
        Whether the comparison was stopped: then the rest says nothing.
    added : int
        Images that the store does not have.
    changed : int
        Images whose file or mask is another one: the old row is not listed any more, and there is a new one.
    removed : int
        Listed images that the dataset does not have any more, or that are not asked for.
    returned : int
        Images that were embedded before, under any name, and whose old row is listed again.
    relabelled : int
        Rows that stay, and whose class is another one, or has another number or name.
    regrouped : int
        Rows that stay, in another group or part, or in none any more.
    """

    table: SampleTable
    stopped: bool = False
    added: int = 0
    changed: int = 0
    removed: int = 0
    returned: int = 0
    relabelled: int = 0
    regrouped: int = 0

    @property
    def counts(self) -> dict[str, int]:
        """The numbers."""
        return {n: count for n, count in vars(self).items() if n not in ("table", "stopped")}


@dataclass(frozen=True)
class Found:
    """sha256 of an image and of its mask; "" if it is unusable, None if it could not be read or has none."""

    image: str | None
    mask: str | None


def first_table(dataset: Dataset) -> SampleTable:
    """Make the table of a new store: the images in the order of the dataset."""
    return _table(dataset, range(len(dataset)), [""] * len(dataset), len(dataset))


def find_changes(
    stored: SampleTable,
    dataset: Dataset,
    facts: Callable[[int], Facts],
    block_rows: int,
    where: str,
    *,
    left_out: Container[str] = frozenset(),
    read_images: bool = True,
    on_read: Callable[[int, int], None] = lambda done, total: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Changes:
    """Compare a dataset with a store; nothing is written.

    Parameters
    ----------
    stored : SampleTable
        The newest table of the store.
    dataset : Dataset
        What is to be embedded, in any order.
    facts : callable
        What the log says of a row.
    block_rows : int
        New rows start at a multiple of this.
    where : str
        The store, for messages.
    left_out : container of str
        Ids of the dataset that `limit` or `per_class` leaves out.
    read_images : bool
        Whether to read the images of rows that are embedded, to see whether they changed. Images that cannot be read
        are taken to be unchanged.
    on_read : callable, optional
        Called with the number of images that were read, and that are to be read.
    should_stop : callable, optional
        Asked after each image.

    Raises
    ------
    MismatchError
        For another dataset; if less than half of the store's images are left; if fewer images are asked for than the
        store has, although they are there.
    """
    _require_same_dataset(stored, dataset, where)
    _require_no_fewer(stored, dataset, where, left_out)
    ids, listed = set(dataset.sample_ids), set(stored.samples)
    unlisted = [row for row in np.flatnonzero(stored.position < 0).tolist() if facts(row).ok]
    made: dict[str, Facts] = {}
    if read_images:
        rows = zip(stored.samples, stored.rows.tolist(), stored.images, strict=True)
        for name, row, image in rows:
            fact = facts(row)
            if name in ids and (fact.committed or image):
                made[name] = replace(fact, image=fact.image or image)
    names = list(made)
    if unlisted or not listed <= ids:  # a new image may be one that was embedded before
        names += [name for name in dataset.sample_ids if name not in listed]
    found: dict[str, Found] = {}
    for name, seen in look(dataset, names):
        found[name] = seen
        on_read(len(found), len(names))
        if should_stop():
            return Changes(stored, stopped=True)
    new_classes = dataset.classes != stored.about.classes
    changed = {
        name
        for name, fact in made.items()
        if name in found and _differs(fact, found[name], new_classes)
    }
    return next_table(stored, dataset, facts, found, changed, unlisted, block_rows)


def next_table(
    stored: SampleTable,
    dataset: Dataset,
    facts: Callable[[int], Facts],
    found: Mapping[str, Found],
    changed: Container[str],
    unlisted: Iterable[int],
    block_rows: int,
) -> Changes:
    """Work out the table that follows `stored`.

    Images keep their rows. An image that is new or `changed` gets the row of an image with the same bytes that is
    `unlisted` or leaves the table now, or else a new row.
    """
    at = {name: place for place, name in enumerate(stored.samples)}
    ids = set(dataset.sample_ids)
    leaving = [name for name in stored.samples if name not in ids or name in changed]
    spare: dict[tuple[str, str], list[int]] = {}
    for row in (*unlisted, *(int(stored.rows[at[name]]) for name in leaving)):
        fact = facts(row)
        if fact.ok:
            spare.setdefault((fact.image, fact.mask), []).append(row)
    start = end = -(-stored.about.rows_end // block_rows) * block_rows
    rows, images, stay, added, returned = [], [], [], 0, 0
    for position, name in enumerate(dataset.sample_ids):
        seen, place = found.get(name), at.get(name, -1)
        if place >= 0 and name not in changed:
            rows.append(int(stored.rows[place]))
            images.append(stored.images[place])
            stay.append((place, position))
        elif seen and (same := spare.get((seen.image or "", seen.mask or ""))):
            rows.append(same.pop())
            images.append(seen.image or "")
            returned += 1
        else:
            rows.append(end)
            images.append("")
            end += 1
            added += place < 0
    table = _table(dataset, rows, images, end if end > start else stored.about.rows_end)
    if table.same_content(stored):
        return Changes(stored)
    n_changed = sum(name in ids for name in leaving)
    n_removed = len(leaving) - n_changed
    moved = _moved(stored, dataset, stay)
    return Changes(table, False, added, n_changed, n_removed, returned, *moved)


def _table(
    dataset: Dataset, rows: Sequence[int], images: Sequence[str], rows_end: int
) -> SampleTable:
    return SampleTable.make(
        dataset=dataset.name,
        classes=dataset.classes,
        rows=rows,
        samples=dataset.sample_ids,
        labels=dataset.labels,
        task=dataset.task,
        note=dataset.note,
        groups=dataset.groups,
        parts=dataset.parts,
        images=images,
        rows_end=rows_end,
    )


def _moved(
    stored: SampleTable, dataset: Dataset, stay: Sequence[tuple[int, int]]
) -> tuple[int, int]:
    """Count the rows that stay with another class, and in another group or part."""
    old_names, names = (*stored.about.classes, ""), (*dataset.classes, "")  # -1 means no class
    relabelled = regrouped = 0
    labels = stored.labels.tolist()
    for before, now in stay:
        old, new = labels[before], dataset.labels[now]
        relabelled += (old, old_names[old]) != (new, names[new])
        regrouped += any(
            (one[before] if one else "") != (other[now] if other else "")
            for one, other in ((stored.groups, dataset.groups), (stored.parts, dataset.parts))
        )
    return relabelled, regrouped


def _differs(fact: Facts, seen: Found, new_classes: bool) -> bool:
    """Whether a row has to be made anew from what its image and mask are now."""
    if seen.image is None:
        return False
    if seen.image != fact.image or (seen.image and fact.codes.keys() & _MENDABLE):
        return True
    bad_mask = any(code.startswith("mask_") for code in fact.codes)
    if seen.mask is None or not (fact.ok or bad_mask):  # the mask of a bad image was not read
        return False
    # With more classes, a mask that was unusable may be usable.
    return seen.mask != fact.mask or (new_classes and "mask_values" in fact.codes)


def _require_same_dataset(stored: SampleTable, dataset: Dataset, where: str) -> None:
    """Refuse another dataset. The same one after a change has some images more or less, or other labels."""
    about = stored.about
    found = [
        (name, have, want)
        for name, have, want in (
            ("dataset", about.dataset, dataset.name),
            ("task", about.task, dataset.task),
        )
        if have != want
    ]
    if about.task == "segmentation" and dataset.classes[: len(about.classes)] != about.classes:
        # Masks hold the numbers of classes.
        found.append(("classes", str(list(about.classes)), str(list(dataset.classes))))
    if stored.groups and not dataset.groups:
        found.append(("groups", "groups of rows (--group-by)", "none"))
    kept = len(set(stored.samples) & set(dataset.sample_ids))
    if 2 * kept < len(stored):
        asked = f"{len(dataset)} rows; {kept} of the store's are among them"
        found.append(("sample_ids", f"{len(stored)} rows", asked))
    if found:
        raise MismatchError(
            f"{where} was made from another dataset, or another part of it; name another store with --out, "
            "or ask for the same dataset, --limit and --per-class:",
            found,
        )


def _require_no_fewer(
    stored: SampleTable, dataset: Dataset, where: str, left_out: Container[str]
) -> None:
    """Refuse to drop images that are still there because a smaller part is asked for.

    If as many are asked for as before, the dataset has grown, and the part has become another one.
    """
    asked = set(dataset.sample_ids)
    there = [name for name in stored.samples if name in asked or name in left_out]
    fewer = [name for name in there if name not in asked]
    if fewer and len(dataset) < len(there):
        raise MismatchError(
            f"--limit or --per-class leaves images out that {where} has rows of: ask for at least as many, leave the "
            "option out, or name another store with --out:",
            [("rows", f"{len(there)} of them", f"{len(dataset)}, without {fewer[0]!r} for one")],
        )


def look(dataset: Dataset, sample_ids: Iterable[str]) -> Iterator[tuple[str, Found]]:
    """Read images and their masks, several at a time, and yield each id, in order, with what is there."""
    return prefetch(lambda name: (name, _look(dataset, name)), sample_ids, _READERS, 4 * _READERS)


def _look(dataset: Dataset, sample_id: str) -> Found:
    mask = None
    try:
        if dataset.read_mask is not None:
            try:
                mask = mask_sha256(dataset.read_mask(sample_id))
            except BadImage:
                mask = ""
            except (OSError, InputError):
                pass
        return Found(hashlib.sha256(dataset.read(sample_id)).hexdigest(), mask)
    except BadImage:
        return Found("", mask)
    except (OSError, InputError):
        return Found(None, mask)
