"""Which sample each row of a store is: `rows/0.json`, written once when the store is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samtl.errors import DamageError, MismatchError
from samtl.store.documents import unseal
from samtl.store.fingerprint import differences

PATH = "rows/0.json"


@dataclass(frozen=True)
class Rows:
    """The samples of a store in the order of its rows.

    Attributes
    ----------
    dataset : str
        The dataset's name.
    classes : tuple of str
    sample_ids : tuple of str
        One for each row, unique.
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
    """

    dataset: str
    classes: tuple[str, ...]
    sample_ids: tuple[str, ...]
    labels: tuple[int, ...]
    note: str = ""
    task: str = "classification"
    groups: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.sample_ids)

    def to_dict(self) -> dict[str, object]:
        """Give the fields as JSON values."""
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


def read_rows(store: Path) -> Rows:
    """Read a store's list of rows.

    Raises
    ------
    DamageError
        Where it is missing, damaged, or not such a list.
    """
    path = store / PATH
    try:
        content: Mapping[str, Any] = unseal(path)
        rows = Rows(
            str(content["dataset"]),
            tuple(str(c) for c in content["classes"]),
            tuple(str(s) for s in content["sample_ids"]),
            tuple(int(n) for n in content["labels"]),
            str(content["note"]),
            # Stores made before there were masks say nothing about these.
            str(content.get("task", "classification")),
            tuple(str(g) for g in content.get("groups", ())),
            tuple(str(p) for p in content.get("parts", ())),
        )
    except FileNotFoundError as error:
        raise DamageError(
            f"{path} is missing: the store is damaged or was not copied whole"
        ) from error
    except (KeyError, TypeError, ValueError) as error:
        raise DamageError(
            f"{path} is not a list of rows: field {error} is missing or wrong"
        ) from error
    if len(rows.sample_ids) != len(rows.labels):
        raise DamageError(f"{path} has {len(rows.sample_ids)} ids but {len(rows.labels)} labels")
    for field in (rows.groups, rows.parts):
        if field and len(field) != len(rows):
            raise DamageError(f"{path} has {len(rows)} ids but {len(field)} groups or parts")
    return rows


def require_same(stored: Rows, wanted: Rows, store: Path) -> None:
    """Refuse to write rows of one dataset into a store of another.

    Raises
    ------
    MismatchError
        Naming each field that differs; of long lists, how many entries.
    """
    have, want = stored.to_dict(), wanted.to_dict()
    del have["note"], want["note"]
    found = []
    for field, old, new in differences(have, want):
        if field in ("sample_ids", "labels", "groups", "parts"):
            old, new = _summary(have[field], want[field]), _summary(want[field], have[field])
        found.append((field, old, new))
    if found:
        raise MismatchError(
            f"{store} was made from another dataset, or another part of it; name another store with --out, "
            "or ask for the same dataset, --limit and --per-class:",
            found,
        )


def _summary(entries: object, others: object) -> str:
    assert isinstance(entries, list)
    assert isinstance(others, list)
    at = next((i for i, (a, b) in enumerate(zip(entries, others, strict=False)) if a != b), None)
    first = f", row {at} is {entries[at]!r}" if at is not None else ""
    return f"{len(entries)} rows{first}"
