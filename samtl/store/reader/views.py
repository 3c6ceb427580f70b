"""A store as other libraries take it: X and y, records, pairs for a loader of batches, a table in a notebook."""

from __future__ import annotations

import fnmatch
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from samtl._html import table
from samtl._runtime import machine_memory, size
from samtl.errors import InputError, UnknownName
from samtl.splits import Samples
from samtl.splits.labels import class_counts, known
from samtl.store.state import ArraySummary, Summary

if TYPE_CHECKING:
    from samtl.store.reader import Store

Rows = NDArray[np.int64]


def samples_of(store: Store, array: str) -> Samples:
    """Describe the rows; usable are those that hold an embedding in an array, and a label or a mask."""
    labels, masks = _labels(store), store.task == "segmentation"
    usable = store.valid(array, "mask") if masks else store.valid(array) & known(labels)
    about = (str(store.path), store.task, store.sample_ids, store.classes)
    images = tuple(map(store.image_sha256, range(len(labels))))
    return Samples(*about, labels, usable, store.groups, store.parts, images)


def choose_columns(
    columns: Sequence[str], patterns: str | Sequence[str]
) -> tuple[Rows, tuple[str, ...]]:
    """Choose columns by patterns of their names without the number, in one text separated by commas.

    Returns their positions and the names that were found; UnknownName if a pattern fits none.
    """
    groups = [name.rpartition("_")[0] for name in columns]
    listed = patterns.split(",") if isinstance(patterns, str) else patterns
    known, wanted = dict.fromkeys(groups), [pattern.strip() for pattern in listed]
    for pattern in wanted:
        if not fnmatch.filter(known, pattern):
            raise UnknownName("group of columns", pattern, known)
    found = [name for name in known if any(fnmatch.fnmatchcase(name, one) for one in wanted)]
    return np.flatnonzero([group in found for group in groups]), tuple(found)


def features(
    store: Store, array: str, rows: Rows, columns: str | Sequence[str] | None
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Read the values of rows in an array, of all or some columns, and their targets."""
    needed = len(rows) * (store.bytes_of(array) // max(len(store), 1))
    if needed > machine_memory():
        raise InputError(
            f"{len(rows)} rows of {array} take {size(needed)}, and this machine has {size(machine_memory())}: "
            "choose fewer rows, or use to_xarray, which reads as it computes"
        )
    if columns is not None and not store.columns(array):
        raise InputError(
            f"{array} has no named columns: leave columns out, or choose them of pooled"
        )
    at = None if columns is None else choose_columns(store.columns(array), columns)[0]
    X = store.read(array, rows)
    return X if at is None else np.ascontiguousarray(X[:, at]), targets(store, rows)


def targets(store: Store, rows: ArrayLike) -> NDArray[Any]:
    """Return the labels of rows as `samtl.splits.labels.label_array` has them, or the masks, (n, S, S) uint8."""
    if store.task == "segmentation":
        return store.read("mask", rows)
    return _labels(store)[np.asarray(rows, np.int64)]


def _labels(store: Store) -> NDArray[Any]:
    labels = store.labels
    return labels.astype(np.int64) if labels.dtype == np.int32 else labels


def row_numbers(store: Store, rows: ArrayLike) -> Rows:
    """Return row numbers that are given as such, or as a mask of all rows; InputError if they are neither."""
    found = np.asarray(rows)
    if found.dtype == bool and found.shape == (len(store),):
        return np.flatnonzero(found)
    # An empty list has no integers; other masks of booleans would mean rows 0 and 1.
    if found.ndim != 1 or (found.size and found.dtype.kind not in "iu"):
        raise InputError(
            f"rows must be a list of row numbers, or a mask of {len(store)} rows, got shape {found.shape} of "
            f"{found.dtype}"
        )
    return found.astype(np.int64)


def row_number(store: Store, key: SupportsIndex | str) -> int:
    """Return the row of a sample id, or of a number, which counts from the end if it is negative."""
    if isinstance(key, str):
        row = store.row_of.get(key)
        if row is None:
            raise UnknownName("sample", key, store.sample_ids)
        return row
    try:
        number = operator.index(key)
    except TypeError as error:
        raise InputError(
            f"one sample is chosen by its row or its id, got {key!r}; several are read with features or read"
        ) from error
    return number + len(store) if -len(store) <= number < 0 else number


def record(store: Store, row: int) -> dict[str, Any]:
    """Return everything about a row, with a copy of its values in each array."""
    arrays = {array: store.read(array, [row])[0] for array in store.arrays}
    told: dict[str, Any] = {"sample_id": store.sample_ids[row]}
    if store.task in ("multilabel", "regression"):
        told["label"] = store.labels[row].tolist()
    elif store.task == "classification":
        label = int(store.labels[row])
        told |= {"label": label, "label_name": store.classes[label] if label >= 0 else ""}
    for name, values in (("group", store.groups), ("part", store.parts)):
        told |= {name: values[row]} if values else {}
    return {**told, "valid": bool(store.valid()[row]), **arrays}


@dataclass(frozen=True)
class Pairs:
    """Pairs of a row's values in an array and its target: a data set for `torch.utils.data.DataLoader`."""

    store: Store
    array: str
    rows: Rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: SupportsIndex) -> tuple[NDArray[Any], Any]:
        return self.__getitems__([i])[0]

    def __getitems__(self, indices: Sequence[SupportsIndex]) -> list[tuple[NDArray[Any], Any]]:
        """Read several pairs at once, as torch asks for a batch."""
        try:
            rows = self.rows[[operator.index(i) for i in indices]]
        except IndexError as error:
            raise IndexError(f"there are {len(self)} pairs, numbered from 0") from error
        found = self.store.read(self.array, rows), targets(self.store, rows)
        return list(zip(*found, strict=True))


def html(store: Store) -> str:
    """Describe a store as a table for a notebook."""
    rows = [
        ("rows", f"{int(store.valid().sum())} of {len(store)} embedded"),
        (
            "task",
            f"{store.task}: {', '.join(store.classes[:12])}" + ", ..." * (len(store.classes) > 12),
        ),
        (
            "encoder",
            f"{store.encoder}{f', {store.image_size} pixels' * bool(store.image_size)}, weights {store.weights}",
        ),
        *((name, f"{store.shape(name)} {store.dtype(name)}") for name in store.arrays),
    ]
    return table(f"samtl store {store.path}", rows)


def summary(store: Store) -> Summary:
    """Count what a store holds."""
    state = store.state
    done = {name: int(state.marked("committed", [name]).sum()) for name in store.arrays}
    sizes = {name: int(state.log.arrays[name].size.sum()) for name in store.arrays}
    names = (
        "dataset note classes task encoder weights untrained identity fingerprint snapshot tiers"
    )
    return Summary(
        rows=len(store),
        ok=int(store.valid().sum()),
        missing=store.missing,
        superseded=state.superseded,
        per_class=class_counts(store.labels, store.classes),
        arrays=tuple(
            ArraySummary(name, store.shape(name), store.dtype(name), done[name], sizes[name])
            for name in store.arrays
        ),
        quarantined=store.quarantined,
        bytes=sum(sizes.values()),
        about={
            "store": str(store.path),
            **{name: getattr(store, name) for name in names.split()},
        },
    )
