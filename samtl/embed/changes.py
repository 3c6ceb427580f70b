"""How a dataset differs from the store that was made from it, and the sample table that follows."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Container, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from samtl._runtime import prefetch
from samtl.datasets import Dataset
from samtl.errors import InputError, MismatchError
from samtl.images.codecs import BadImage
from samtl.images.masks import mask_sha256
from samtl.store.fingerprint import differences
from samtl.store.log import UNLISTED, Facts
from samtl.store.samples import SampleTable
from samtl.store.state import StoreState

# Rows of these codes are embedded anew once their images can be read: nothing was wrong with the files.
_MENDABLE = frozenset({"unreadable", "changed", UNLISTED})
_READERS = 4  # images that are read and hashed at a time


@dataclass(frozen=True)
class Changes:
    """How many images of a dataset differ from a store."""

    added: int = 0  #: that the store does not have
    changed: int = 0  #: whose file or mask is another one: the old row is not listed any more, and there is a new one
    removed: int = 0  #: that are not in the dataset any more, or not asked for
    returned: int = 0  #: embedded before, under any name: their old row is listed again
    relabelled: int = 0  #: that stay, and whose class is another one, or has another number or name
    regrouped: int = 0  #: that stay, in another group or part, or in none any more


@dataclass(frozen=True)
class Found:
    """sha256 of an image and of its mask; "" if it is unusable, None if it could not be read or has none."""

    image: str | None
    mask: str | None
    error: Exception | None = None  #: of the image, or else of the mask


def table_of(dataset: Dataset, rows: Sequence[int] | None = None, **more: Any) -> SampleTable:
    """Make the sample table of a dataset; by default that of a new store, in the order of the dataset."""
    alike = ("classes", "labels", "task", "note", "groups", "parts")
    return SampleTable.make(
        dataset=dataset.name,
        samples=dataset.sample_ids,
        rows=range(len(dataset)) if rows is None else rows,
        **{name: getattr(dataset, name) for name in alike},
        **more,
    )


def find_changes(
    state: StoreState,
    dataset: Dataset,
    listed: Dataset,
    read_images: bool,
    on_read: Callable[[int, int], None],
    should_stop: Callable[[], bool],
) -> tuple[SampleTable, Changes, dict[str, str]] | None:
    """Compare a dataset with a store, and return the next table, or the store's own; None if asked to stop.

    The third is the sha256 of each image that was read. Nothing is written. `listed` is the dataset before `limit` and
    `per_class`. With `read_images`, those of embedded rows are read, to see whether they changed; one that cannot be
    read is taken to be unchanged. Raises MismatchError for another dataset, if less than half of the store's images are
    left under their names, and if fewer images are asked for than the store has, although they are there.
    """
    stored, facts = state.table, state.log.facts
    _require_same_dataset(stored, dataset, listed, state.storage.url)
    ids, there = set(dataset.sample_ids), set(stored.samples)
    unlisted = [row for row in np.flatnonzero(stored.position < 0).tolist() if facts(row).ok]
    made: dict[str, Facts] = {}
    rows = zip(stored.samples, stored.rows.tolist(), stored.images, strict=True)
    for name, row, image in rows if read_images else ():
        fact = facts(row)
        if name in ids and (fact.committed or image):
            made[name] = replace(fact, image=fact.image or image)
    names = list(made)
    if unlisted or not there <= ids:  # a new image may be one that was embedded before
        names += [name for name in dataset.sample_ids if name not in there]
    found: dict[str, Found] = {}
    for name, seen in look(dataset, names):
        found[name] = seen
        on_read(len(found), len(names))
        if should_stop():
            return None
    _require_same_images(made, found, state.storage.url)
    new_classes = dataset.classes != stored.about.classes
    changed = {name for name, fact in made.items() if _differs(fact, found[name], new_classes)}
    read = {name: seen.image for name, seen in found.items() if seen.image}
    return *_next_table(state, dataset, found, changed, unlisted), read


def _next_table(
    state: StoreState,
    dataset: Dataset,
    found: Mapping[str, Found],
    changed: Container[str],
    unlisted: Iterable[int],
) -> tuple[SampleTable, Changes]:
    """Work out the table that follows.

    Images keep their rows. An image that is new or `changed` gets the row of an image with the same bytes that is
    `unlisted` or leaves the table now, or else a new row; new rows start with a block.
    """
    stored, block_rows = state.table, state.log.block_rows
    at, ids = dict(zip(stored.samples, stored.rows.tolist(), strict=True)), set(dataset.sample_ids)
    stay = [name for name in dataset.sample_ids if name in at and name not in changed]
    leaving = [name for name in at if name not in ids or name in changed]
    spare: dict[tuple[str | None, str | None], list[int]] = defaultdict(list)
    for row in (*unlisted, *(at[name] for name in leaving)):
        fact = state.log.facts(row)
        if fact.ok:
            spare[fact.image, fact.mask].append(row)
    image = dict(zip(stored.rows.tolist(), stored.images, strict=True))
    place = {name: at[name] for name in stay}
    start = end = -(-stored.about.rows_end // block_rows) * block_rows
    for name in dataset.sample_ids:
        seen = found.get(name, Found(None, None))
        if name in place:
            continue
        if same := spare[seen.image or "", seen.mask or ""]:
            place[name] = same.pop()
            image[place[name]] = seen.image or ""
        else:
            place[name], end = end, end + 1
    rows = [place[name] for name in dataset.sample_ids]
    images = [image.get(row, "") for row in rows]
    rows_end = end if end > start else stored.about.rows_end
    table = table_of(dataset, rows, images=images, rows_end=rows_end)
    if table.same_content(stored):
        return stored, Changes()
    gone = sum(name not in ids for name in leaving)

    def differing(*columns: str) -> int:
        before, after = (t.columns.select(columns).to_pylist() for t in (stored, table))
        places = (tuple(t.position[place[name]] for t in (stored, table)) for name in stay)
        return sum(before[old] != after[new] for old, new in places)

    return table, Changes(
        added=sum(row >= start and name not in at for name, row in place.items()),
        changed=len(leaving) - gone,
        removed=gone,
        returned=sum(row < start for row in rows) - len(stay),
        relabelled=differing(*table.label_columns),
        regrouped=differing("group", "part"),
    )


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


def _require_same_dataset(
    stored: SampleTable, dataset: Dataset, listed: Dataset, where: str
) -> None:
    """Refuse another dataset, or a smaller part of the same; a changed one has some images more or less."""
    about, ids = stored.about, set(dataset.sample_ids)
    found = differences(
        {"dataset": about.dataset, "task": about.task}, {"dataset": dataset.name, "task": dataset.task}
    )  # fmt: skip
    if about.task == "segmentation" and dataset.classes[: len(about.classes)] != about.classes:
        # Masks hold the numbers of classes.
        found.append(("classes", str(list(about.classes)), str(list(dataset.classes))))
    if stored.groups and not dataset.groups:
        found.append(("groups", "groups of rows (--group-by)", "none"))
    kept = sum(name in ids for name in stored.samples)
    if 2 * kept < len(stored):
        asked = f"{len(dataset)} rows; {kept} of the store's are among them"
        found.append(("sample_ids", f"{len(stored)} rows", asked))
    if found:
        raise MismatchError(
            f"{where} was made from another dataset, or another part of it; name another store with --out, "
            "or ask for the same dataset, --limit and --per-class:",
            found,
        )
    there = ids | set(listed.sample_ids)
    fewer = [name for name in stored.samples if name in there and name not in ids]
    # If as many are asked for as before, the dataset has grown, and the part has become another one.
    if fewer and len(dataset) < kept + len(fewer):
        raise MismatchError(
            f"--limit or --per-class leaves images out that {where} has rows of: ask for at least as many, leave the "
            "option out, or name another store with --out:",
            [("rows", f"{kept + len(fewer)} of them", f"{len(dataset)}, without {fewer[0]!r} for one")],
        )  # fmt: skip


def image_hashes(dataset: Dataset) -> tuple[str, ...]:
    """Read all images, and return the sha256 of each, "" if it cannot be read."""
    found = look(replace(dataset, read_mask=None), dataset.sample_ids)
    return tuple(seen.image or "" for _, seen in found)


def _require_same_images(made: Mapping[str, Facts], found: Mapping[str, Found], where: str) -> None:
    """Refuse a dataset whose files have the names of the store's, and whose images are mostly others."""
    known = {fact.image for fact in made.values()}
    others = [
        name
        for name, fact in made.items()
        if fact.image and found[name].image and found[name].image not in known
    ]
    if 2 * len(others) > len(made):
        raise MismatchError(
            f"{where} was made from images of the same names that are mostly others; name another store with --out if "
            "this is another dataset, or if its images were made anew:",
            [("images", f"{len(made)} images", f"{len(others)} with other bytes, {others[0]!r} for one")],
        )  # fmt: skip


def look(dataset: Dataset, sample_ids: Iterable[str]) -> Generator[tuple[str, Found], None, None]:
    """Read images and their masks, several at a time, and yield each id, in order, with what is there."""

    def seen(name: str) -> tuple[str, Found]:
        image, error = _hashed(name, dataset.read, lambda data: hashlib.sha256(data).hexdigest())
        mask, other = None, None
        if dataset.read_mask is not None:
            mask, other = _hashed(name, dataset.read_mask, mask_sha256)
        return name, Found(image, mask, error or other)

    return prefetch(seen, sample_ids, _READERS, 4 * _READERS)


def _hashed(
    name: str, read: Callable[[str], Any], digest: Callable[[Any], str]
) -> tuple[str | None, Exception | None]:
    try:
        return digest(read(name)), None
    except (OSError, InputError) as error:
        return "" if isinstance(error, BadImage) else None, error
