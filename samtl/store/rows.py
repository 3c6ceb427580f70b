"""Which sample each row of a store is: `rows/0.json`, written when the store is made.

Where the dataset changes later, `rows/1.json` takes its place, and so on: rows are added at the end, from the next
block on, and those that no longer count are said to be superseded. No row is ever another sample's.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from samtl.errors import DamageError, InputError, MismatchError
from samtl.store.documents import unseal
from samtl.store.fingerprint import differences
from samtl.store.folders import names
from samtl.store.layout import BLOCK_ROWS
from samtl.store.log import LOG

FOLDER = "rows"
PATH = f"{FOLDER}/0.json"


@dataclass(frozen=True)
class Rows:
    """The samples of a store in the order of its rows.

    Attributes
    ----------
    dataset : str
        The dataset's name.
    classes : tuple of str
    sample_ids : tuple of str
        One for each row, unique among those that count; "" where a span was filled up to a whole block.
    labels : tuple of int
        Class index of each row, -1 where there is none.
    note : str
        What readers of figures must know about the dataset, or "".
    task : str
        `classification` or `segmentation`.
    groups : tuple of str
        What each sample was cut from, or empty.
    parts : tuple of str
        `train`, `validation` or `test` where the dataset ships with a split, or empty.
    generation : int
        How often the dataset had changed.
    previous : str
        Checksum of the list before this one, "" of the first.
    superseded : tuple of int
        Rows that no longer count, ascending.
    spans : tuple of (first, stop)
        Where there are rows: each begins with a block, and the last ends with the store. Empty where it is one.
    checksum : str
        Of the file that it was read from.
    """

    dataset: str
    classes: tuple[str, ...]
    sample_ids: tuple[str, ...]
    labels: tuple[int, ...]
    note: str = ""
    task: str = "classification"
    groups: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    generation: int = 0
    previous: str = ""
    superseded: tuple[int, ...] = ()
    spans: tuple[tuple[int, int], ...] = ()
    checksum: str = field(default="", compare=False)

    def __len__(self) -> int:
        """Count the rows, those that do not count and those between spans too."""
        return len(self.sample_ids)

    @property
    def path(self) -> str:
        """The list's file, relative to the store."""
        return f"{FOLDER}/{self.generation}.json"

    @property
    def extents(self) -> tuple[tuple[int, int], ...]:
        """The spans, the one of an unchanged store too."""
        return self.spans or ((0, len(self)),)

    @cached_property
    def current(self) -> Sequence[int]:
        """The rows that count, ascending."""
        if not self.generation:
            return range(len(self))
        gone = set(self.superseded)
        return [row for span in self.extents for row in range(*span) if row not in gone]

    @cached_property
    def counts(self) -> Container[int]:
        """The rows that count, to ask whether one is among them."""
        return set(self.current) if self.generation else range(len(self))

    @property
    def blocks(self) -> int:
        """How many blocks there are."""
        return -(-len(self) // BLOCK_ROWS)

    def block_rows(self, block: int) -> range:
        """Give the rows of a block: 16, or fewer where a span ends; none where there is no such block."""
        first = block * BLOCK_ROWS
        at = bisect_right(self.extents, (first, len(self) + 1)) - 1
        return range(first, min(first + BLOCK_ROWS, self.extents[at][1]))

    def attributes(self) -> dict[str, object]:
        """Give what readers of plain Zarr are told."""
        changed = {"generation": self.generation, "superseded": list(self.superseded)}
        told: dict[str, object] = {"dataset": self.dataset, "classes": list(self.classes)}
        return {**told, **changed} if self.generation else told

    def to_dict(self) -> dict[str, object]:
        """Give the fields as JSON values; of an unchanged store, those that format 1 began with."""
        changed = {
            "generation": self.generation,
            "previous": self.previous,
            "superseded": list(self.superseded),
            "spans": [list(span) for span in self.extents],
        }
        return {**self._first(), **(changed if self.generation else {})}

    def _first(self) -> dict[str, object]:
        return {
            "dataset": self.dataset,
            "classes": list(self.classes),
            "sample_ids": list(self.sample_ids),
            "labels": list(self.labels),
            "note": self.note,
            "task": self.task,
            "groups": list(self.groups),
            "parts": list(self.parts),
        }


def generations(store: Path) -> list[int]:
    """List the generations whose lists are there, ascending; the last one counts."""
    names = (path.name.removesuffix(".json") for path in (store / FOLDER).glob("[!.]*.json"))
    return sorted(int(name) for name in names if name.isdecimal() and str(int(name)) == name)


def newest(store: Path) -> str:
    """Give the path, relative to the store, of the list that counts."""
    return f"{FOLDER}/{(generations(store) or [0])[-1]}.json"


def has_rows(store: Path) -> bool:
    """Tell whether a store has a list of rows yet.

    Raises
    ------
    DamageError
        Where it has none, and records of rows: a list made now could name other samples for what they commit.
    """
    if generations(store):
        return True
    if not names(store / LOG):
        return False
    read_rows(store)  # there was none a moment ago; a list comes before any record
    return True


def read_rows(store: Path) -> Rows:
    """Read a store's list of rows.

    Raises
    ------
    DamageError
        Where it is missing, damaged, or not such a list.
    InputError
        Where nothing was written yet but what the rows are to be.
    """
    for _ in range(3):
        path = store / newest(store)
        try:
            return _read(path, int(path.stem))
        except FileNotFoundError as error:
            # A writer that adds a list takes the one before it away.
            if not generations(store):
                break
            lost = error
    else:
        raise DamageError(f"{store / FOLDER} changes while it is read") from lost
    if not names(store / LOG):
        raise InputError(f"{store} was begun, and no row is in it yet: run samtl embed again")
    raise DamageError(
        f"{store / FOLDER} holds no list of rows, so nobody knows which images the rows are: the store is damaged or "
        "was not copied whole. Take the list from a copy of the store, or embed anew under another name"
    ) from None


def _read(path: Path, generation: int) -> Rows:
    try:
        content: Mapping[str, Any] = unseal(path)
        rows = Rows(
            str(content["dataset"]),
            tuple(map(str, content["classes"])),
            tuple(map(str, content["sample_ids"])),
            tuple(map(int, content["labels"])),
            str(content["note"]),
            # Stores made before there were masks say nothing about these.
            str(content.get("task", "classification")),
            tuple(map(str, content.get("groups", ()))),
            tuple(map(str, content.get("parts", ()))),
            int(content.get("generation", 0)),
            str(content.get("previous", "")),
            tuple(map(int, content.get("superseded", ()))),
            tuple((int(first), int(stop)) for first, stop in content.get("spans", ())),
            str(content["checksum"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DamageError(
            f"{path} is not a list of rows: field {error} is missing or wrong"
        ) from error
    if rows.generation != generation:
        raise DamageError(f"{path} holds the list of generation {rows.generation}")
    if len(rows.sample_ids) != len(rows.labels):
        raise DamageError(f"{path} has {len(rows.sample_ids)} ids but {len(rows.labels)} labels")
    if rows.labels and not -1 <= min(rows.labels) <= max(rows.labels) < len(rows.classes):
        raise DamageError(f"{path} has labels that are none of its {len(rows.classes)} classes")
    for entries in (rows.groups, rows.parts):
        if entries and len(entries) != len(rows):
            raise DamageError(f"{path} has {len(rows)} ids but {len(entries)} groups or parts")
    if rows.generation and not _well_formed(rows):
        raise DamageError(f"{path} is not a list of rows: its spans do not fit its rows")
    return rows


def _well_formed(rows: Rows) -> bool:
    end = 0
    for first, stop in rows.spans:
        if first != -(-end // BLOCK_ROWS) * BLOCK_ROWS or stop <= first:
            return False
        end = stop
    there = {row for span in rows.spans for row in range(*span)}
    ids = [rows.sample_ids[row] for row in rows.current] if end == len(rows) else ["", ""]
    return there.issuperset(rows.superseded) and len(set(ids)) == len(ids)


def require_kin(stored: Rows, wanted: Rows, store: Path) -> None:
    """Refuse to write rows of one dataset into a store of another.

    The same dataset after a change is no other: some images more, fewer, or of another class. Where most of what the
    store has is not asked for any more, somebody means another store.

    Raises
    ------
    MismatchError
        Naming each field that differs; of long lists, how many entries.
    """
    lists = ("sample_ids", "labels", "groups", "parts", "note", "classes")
    have, want = stored._first(), wanted._first()
    found = differences(
        {name: value for name, value in have.items() if name not in lists},
        {name: value for name, value in want.items() if name not in lists},
    )
    if stored.task == "segmentation" and wanted.classes[: len(stored.classes)] != stored.classes:
        # Masks hold the numbers of classes.
        found.append(("classes", str(list(stored.classes)), str(list(wanted.classes))))
    if stored.groups and not wanted.groups:
        found.append(("groups", "groups of rows (--group-by)", "none"))
    ids = [stored.sample_ids[row] for row in stored.current]
    kept = len(set(ids) & set(wanted.sample_ids))
    if 2 * kept < len(ids):
        old, new = _summary(ids, wanted.sample_ids), _summary(wanted.sample_ids, ids)
        found.append(("sample_ids", old, f"{new}; {kept} of the store's are among them"))
    if found:
        raise MismatchError(
            f"{store} was made from another dataset, or another part of it; name another store with --out, "
            "or ask for the same dataset, --limit and --per-class:",
            found,
        )


def _summary(entries: Sequence[str], others: Sequence[str]) -> str:
    at = next((i for i, (a, b) in enumerate(zip(entries, others, strict=False)) if a != b), None)
    first = f", row {at} is {entries[at]!r}" if at is not None else ""
    return f"{len(entries)} rows{first}"
