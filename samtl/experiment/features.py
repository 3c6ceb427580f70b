"""The usable rows of a store, and what a head reads of them: which array, which columns, whole or in batches."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray

from samtl import registry
from samtl._io import digest
from samtl.datasets import groups_by
from samtl.errors import InputError, UnknownName
from samtl.experiment.feed import Feed, Targets, held_in_memory
from samtl.experiment.trial import Parts, Samples
from samtl.heads.base import PooledHead
from samtl.heads.grid import GridHead
from samtl.images.transforms import resized_shape
from samtl.store.format import TIERS
from samtl.store.reader import Store

Head = PooledHead | GridHead


class Data:
    """The usable rows of a store."""

    def __init__(
        self,
        store: Store,
        array: str,
        features: str | None,
        group_by: str | None,
        allow_partial: bool,
    ) -> None:
        self.store, self.array = store, array
        self.columns, self._chosen = _columns(store, array, features)
        self._held: NDArray[np.float32] | None = None
        self._place = np.full(len(store.sample_ids), -1)  # of a row in what is held
        needed = (array, "mask") if store.task == "segmentation" else (array,)
        valid = store.valid(*needed)
        quarantined = np.zeros_like(valid)
        quarantined[[entry.row for entry in store.quarantined]] = True
        missing = ~valid & ~quarantined
        if missing.any() and not allow_partial:
            raise InputError(
                f"{store.path} is not complete: {missing.sum()} of {len(valid)} rows have no {array!r} yet; run "
                "samtl embed again to finish it, or go on without them with --allow-partial"
            )
        labels = np.asarray(store.labels, dtype=np.int64)
        unlabelled = valid & (labels < 0) if store.task == "classification" else valid & False
        self.left_out = {
            "quarantined": int((~valid & quarantined).sum()),
            "missing": int(missing.sum()),
            "unlabelled": int(unlabelled.sum()),
        }
        usable = valid & ~unlabelled
        if len(store.classes) < 2 or not usable.any():
            raise InputError(
                f"a head needs embedded rows of at least 2 classes, and {store.path} has {usable.sum()} rows that can "
                f"be used, and {len(store.classes)} classes"
            )
        self.samples = Samples(
            str(store.path),
            store.task,
            store.sample_ids,
            store.classes,
            labels,
            usable,
            groups_by(store.sample_ids, group_by) if group_by is not None else store.groups,
            store.parts,
        )

    @functools.cached_property
    def digest(self) -> str:
        """Name the usable samples, with their labels, the hashes of their images and the checksums of their masks."""
        rows = np.flatnonzero(self.samples.usable).tolist()
        ids, labels, store = self.samples.ids, self.samples.labels, self.store
        named = [[ids[i], int(labels[i]), store.image_sha256(i)] for i in rows]
        if store.task == "segmentation":
            # As they are learnt from; the hashes of those that the dataset gave are not kept of all rows.
            named = [[*of, store.checksum("mask", i)] for of, i in zip(named, rows, strict=True)]
        return digest({"classes": list(self.samples.classes), "samples": sorted(named)})

    @functools.cached_property
    def digests(self) -> dict[str, str]:
        """Name the usable samples of each array of the store that a head may read, as `digest` does."""
        found = {self.array: self.digest}
        for array in TIERS:
            if array in self.store.arrays and array not in found:
                # One that has no row yet that could be used names nothing.
                with contextlib.suppress(InputError):
                    other = Data(self.store, array, None, None, True)
                    same = np.array_equal(other.samples.usable, self.samples.usable)
                    found[array] = self.digest if same else other.digest
        return found

    def hold(self) -> None:
        """Read all features now and keep them, where they are few enough."""
        rows = np.flatnonzero(self.samples.usable)  # others may not be there yet
        if self._held is None and held_in_memory(self.store, self.array, len(rows)):
            values: NDArray[np.float32] = self.store.read(self.array, rows)
            self._place[rows] = np.arange(len(rows))
            self._held = values if self._chosen is None else values[:, self._chosen]

    def features(self, rows: NDArray[np.int64], array: str | None = None) -> NDArray[np.float32]:
        """Read (n, F) features and make sure that they are numbers."""
        name = array or self.array
        values: NDArray[np.float32] = (
            self._held[self._place[rows]]
            if self._held is not None and not array
            else self.store.read(name, rows)
        )
        if not np.isfinite(values).all():
            row, column = np.argwhere(~np.isfinite(values))[0]
            columns = self.store.columns(name) if array or self._held is None else self.columns
            raise InputError(
                f"{name} of sample {self.samples.ids[rows[row]]!r} is not finite in column "
                f"{columns[column]!r}: embed it again, into another store"
            )
        if self._held is not None or self._chosen is None or array:
            return values
        # Else the columns lie one after the other, and products differ in the last digit from those of rows.
        return np.ascontiguousarray(values[:, self._chosen])

    def feeds(self, parts: Parts, labels: NDArray[np.int64] | None) -> tuple[Feed, Feed]:
        """Give the training and validation part as batches."""
        targets = Targets(self.store, labels)
        held = held_in_memory(self.store, self.array, len(parts.split.train))
        training = Feed(self.store, self.array, parts.inner.train, targets, held)
        return training, Feed(self.store, self.array, parts.inner.test, targets, held)


def array_for(store: Store, name: str, head: Head) -> str:
    """Give the array that a head reads for the store's task, or say what is missing."""
    array = head.tiers.get(store.task)
    if array is None:
        others = [
            other
            for other in registry.names("heads")
            if store.task in registry.load("heads", other).Head.tiers
        ]
        raise InputError(
            f"the head {name} is for {' and '.join(head.tiers)}, and {store.path} is for {store.task}: heads for that "
            f"are {', '.join(others)}"
        )
    if array not in store.arrays:
        tier, have = array, store.tiers
        raise InputError(
            f"the head {name} needs the tier {tier} for {store.task}, and {store.path} has "
            f"{', '.join(have) or 'none'}: add it with samtl embed --tiers {tier} --out {store.path}, and the "
            "--dataset, --encoder and other options that the store was made with"
        )
    return array


def shape_of(store: Store, row: int) -> tuple[int, int]:
    """Height and width of a row's image at the encoder's resolution."""
    height, width = store.row("original_size", int(row))
    return resized_shape(int(height), int(width), side_of(store))


def side_of(store: Store) -> int:
    """Side of the encoder's square in pixels."""
    return int(store.identity["image_size"])


def named_columns(columns: Sequence[str], store: Store, array: str) -> list[str] | str:
    """Name the groups of columns in use; "all" where it is all of them."""
    if not columns or len(columns) == len(store.columns(array)):
        return "all"
    return list(dict.fromkeys(column.rpartition("_")[0] for column in columns))


def _columns(
    store: Store, array: str, features: str | None
) -> tuple[tuple[str, ...], NDArray[np.int64] | None]:
    """Give the names of the columns that are learnt from, and which they are where it is not all."""
    if array != "pooled":
        if features is not None:
            raise InputError(
                f"--features chooses columns of pooled, and this head reads {array}: leave it out"
            )
        return (), None
    names = store.columns(array)
    if features is None:
        return names, None
    groups = [name.rpartition("_")[0] for name in names]
    known = list(dict.fromkeys(groups))
    patterns = [pattern.strip() for pattern in features.split(",")]
    for pattern in patterns:
        if not any(fnmatchcase(group, pattern) for group in known):
            raise UnknownName("group of columns", pattern, known)
    kept = [
        i
        for i, group in enumerate(groups)
        if any(fnmatchcase(group, pattern) for pattern in patterns)
    ]
    return tuple(names[i] for i in kept), np.array(kept, dtype=np.int64)
