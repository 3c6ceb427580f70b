"""What a head learns from: the usable rows of a store and their features, in memory or as a stream of batches.

Streaming reads every row once in a pass, a window ahead of the training, in the order of the file within a window;
two windows and the mapped shards are all that is ever held. The store's own order mixes the samples, so windows of
blocks are as good as windows of single rows.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samtl import registry
from samtl._io import digest
from samtl._runtime import prefetch
from samtl.datasets import groups_by
from samtl.errors import InputError, UnknownName
from samtl.heads.base import PooledHead
from samtl.heads.grid import UPSAMPLING, GridHead
from samtl.images.transforms import resized_shape
from samtl.splits import Samples, Split
from samtl.store.format import BLOCK_ROWS
from samtl.store.reader import Store

Head = PooledHead | GridHead
Rows = NDArray[np.int64]

HELD_BYTES = (
    2**30
)  # features of training and validation part up to this size are read once and kept
WINDOW_BYTES = 64 * 2**20  # of features; two windows are in memory at a time
_CHECKED = 16  # rows that are checked for NaN at a time


class Data:
    """The usable rows of a store.

    Parameters
    ----------
    store : Store
    array : str
        Where the features are.
    features : str or None
        Patterns of columns of `pooled`, separated by commas; None for all.
    group_by : str or None
        A regular expression that finds the group in an id.
    allow_partial : bool
        Whether rows may be missing.

    Attributes
    ----------
    samples : Samples
    columns : tuple of str
        Columns of `pooled` that are learnt from; empty for other arrays.
    chosen_groups : tuple of str
        Groups of these columns if they are not all.
    left_out : dict of str to int
        How many rows are not usable, by reason.

    Raises
    ------
    InputError
        Rows are missing, nothing is usable, or the patterns fit no column.
    """

    def __init__(
        self,
        store: Store,
        array: str,
        features: str | None,
        group_by: str | None,
        allow_partial: bool,
    ) -> None:
        self.store, self.array = store, array
        self.columns = store.columns(array) if array == "pooled" else ()
        self.chosen_groups: tuple[str, ...] = ()
        self._chosen: Rows | None = None
        if features is not None:
            self._choose(features)
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
                f"a head needs embedded rows of at least 2 classes, and {store.path} has {usable.sum()} usable rows "
                f"and {len(store.classes)} classes"
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
        """Digest of all samples of the store with their labels, images and masks; the same for every array."""
        store, ids = self.store, self.samples.ids
        named: list[list[Any]] = [
            [ids[i], int(label), store.image_sha256(i)]
            for i, label in enumerate(self.samples.labels)
        ]
        if store.task == "segmentation":
            # As they are learnt from: the hashes of the dataset's own masks are not known of all rows.
            for i in np.flatnonzero(store.valid("mask")).tolist():
                named[i].append(store.checksum("mask", i))
        return digest({"classes": list(self.samples.classes), "samples": sorted(named)})

    def hold(self) -> None:
        """Read all features now and keep them if they are small enough."""
        rows = np.flatnonzero(self.samples.usable)  # others may not be there yet
        if self._held is None and held_in_memory(self.store, self.array, len(rows)):
            values: NDArray[np.float32] = self.store.read(self.array, rows)
            self._place[rows] = np.arange(len(rows))
            self._held = values if self._chosen is None else values[:, self._chosen]

    def read(self, rows: Rows, array: str | None = None) -> NDArray[Any]:
        """Read the features of some rows, (n, ...): the chosen columns, or those of another array.

        Raises
        ------
        InputError
            Features of a sample are not finite.
        """
        if self._held is not None and array is None:
            held: NDArray[Any] = self._held[self._place[rows]]
            _require_finite(self.store, self.array, rows, torch.from_numpy(held))
            return held
        values: NDArray[Any] = read_features(self.store, array or self.array, rows).numpy()
        if self._chosen is None or array is not None:
            return values
        # Else the columns lie one after the other, and products differ in the last digit from those of rows.
        return np.ascontiguousarray(values[:, self._chosen])

    def feeds(self, inner: Split, labels: Rows | None) -> tuple[Feed, Feed]:
        """Return the training and the validation part as batches; without labels, of masks."""
        targets = Targets(self.store, self.array, labels)
        held = held_in_memory(self.store, self.array, len(inner.train) + len(inner.test))
        training, validating = (
            Feed(self.store, self.array, rows, targets, held) for rows in (inner.train, inner.test)
        )
        return training, validating

    def _choose(self, features: str) -> None:
        if self.array != "pooled":
            raise InputError(
                f"--features chooses columns of pooled, and this head reads {self.array}: leave it out"
            )
        groups = [name.rpartition("_")[0] for name in self.columns]
        known = list(dict.fromkeys(groups))
        patterns = [pattern.strip() for pattern in features.split(",")]
        for pattern in patterns:
            if not any(fnmatchcase(group, pattern) for group in known):
                raise UnknownName("group of columns", pattern, known)
        found = [name for name in known if any(fnmatchcase(name, p) for p in patterns)]
        self._chosen = np.array([i for i, group in enumerate(groups) if group in found])
        self.columns = tuple(self.columns[i] for i in self._chosen)
        self.chosen_groups = tuple(found) if len(found) < len(known) else ()


def array_for(store: Store, name: str, head: Head) -> str:
    """Return the array that a head reads for the store's task.

    Raises
    ------
    InputError
        The head is for another task, or the store lacks the array.
    """
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
        raise InputError(
            f"the head {name} needs the tier {array} for {store.task}, and {store.path} has "
            f"{', '.join(store.tiers) or 'none'}: add it with samtl embed --tiers {array} --out {store.path}, and the "
            "--dataset, --encoder and other options that the store was made with"
        )
    return array


def shape_of(store: Store, row: int) -> tuple[int, int]:
    """Return height and width of a row's image at the encoder's resolution."""
    height, width = store.row("original_size", int(row))
    return resized_shape(int(height), int(width), side_of(store))


def side_of(store: Store) -> int:
    """Return the side of the encoder's square in pixels."""
    return int(store.identity["image_size"])


@dataclass(frozen=True)
class Targets:
    """What is to be learnt for some rows: class indices given here, or masks in the store."""

    store: Store
    array: str
    labels: Rows | None = None

    def read(self, rows: Rows) -> Tensor:
        """Return (n,) int64 class indices, or (n, 4 side, 4 side) uint8 masks.

        Masks are learnt at four times the resolution of the features: the pixel in the middle of each cell.
        """
        if self.labels is not None:
            return torch.from_numpy(self.labels[rows])
        if not len(rows):
            return torch.empty(0, dtype=torch.uint8)
        step = self.store.shape("mask")[1] // (UPSAMPLING * self.store.shape(self.array)[2])
        cells = slice(step // 2, None, step)
        masks = [self.store.row("mask", int(row))[cells, cells] for row in rows]
        return torch.from_numpy(np.stack(masks))


class Feed:
    """A source of batches for the training loop: see `samtl.heads.trainer.Source`.

    Parameters
    ----------
    store : Store
    array : str
        Where the features are.
    rows : (n,) int64
        Nothing else of the store is read.
    targets : Targets
    held : bool
        Whether to keep everything in memory.
    """

    def __init__(
        self, store: Store, array: str, rows: Rows, targets: Targets, held: bool = False
    ) -> None:
        self.store, self.array, self.rows, self.targets = store, array, rows, targets
        self.window = window_rows(store, array)
        self._all = self._load(np.arange(len(rows))) if held else None

    def __len__(self) -> int:
        return len(self.rows)

    def batches(
        self, size: int, generator: torch.Generator | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every row once: inputs (batch, ...) as stored, and int64 targets.

        In order if there is no generator. All batches but the last have `size` rows.
        """
        if self._all is not None:
            inputs, targets = self._all
            order = (
                torch.arange(len(self))
                if generator is None
                else torch.randperm(len(self), generator=generator)
            )
            for chosen in torch.split(order, size):
                # In order, a slice shares the memory.
                at = slice(int(chosen[0]), int(chosen[-1]) + 1) if generator is None else chosen
                yield inputs[at], targets[at].long()
            return
        left: tuple[Tensor, Tensor] | None = None
        for inputs, targets in prefetch(self._load, self._windows(generator)):
            if left is not None:
                # Only what is needed to fill up a batch is joined: a copy of the window would double the memory.
                need = size - len(left[1])
                joined = torch.cat([left[0], inputs[:need]]), torch.cat([left[1], targets[:need]])
                if len(joined[1]) < size:
                    left = joined
                    continue
                yield joined[0], joined[1].long()
                inputs, targets = inputs[need:], targets[need:]
            whole = len(targets) - len(targets) % size
            for start in range(0, whole, size):
                yield inputs[start : start + size], targets[start : start + size].long()
            left = None
            if whole < len(targets):
                left = inputs[whole:].clone(), targets[whole:].clone()
        if left is not None:
            yield left[0], left[1].long()

    def _windows(self, generator: torch.Generator | None) -> list[Rows]:
        """Cut the rows (by their positions) into windows: random blocks, and random rows within."""
        positions = np.arange(len(self))
        if generator is not None:
            positions = np.argsort(self.rows, kind="stable")
            starts = np.flatnonzero(np.diff(self.rows[positions] // BLOCK_ROWS)) + 1
            blocks = np.split(positions, starts)
            order = torch.randperm(len(blocks), generator=generator).tolist()
            positions = np.concatenate([blocks[i] for i in order])
        # Nothing can be learnt while the first window is read, so that one is small.
        first = max(BLOCK_ROWS, self.window // 8)
        windows = np.split(positions, range(first, len(positions), self.window))
        if generator is None:
            return windows
        return [w[torch.randperm(len(w), generator=generator).numpy()] for w in windows]

    def _load(self, positions: Rows) -> tuple[Tensor, Tensor]:
        rows = self.rows[positions]
        return read_features(self.store, self.array, rows), self.targets.read(rows)


def read_features(store: Store, array: str, rows: Rows) -> Tensor:
    """Read rows of features, (n, ...).

    Raises
    ------
    InputError
        Features are not finite; the first such sample is named.
    """
    inputs = torch.from_numpy(store.read(array, rows))
    _require_finite(store, array, rows, inputs)
    return inputs


def _require_finite(store: Store, array: str, rows: Rows, inputs: Tensor) -> None:
    # Slice by slice, since sums of float16 are made of a float32 copy.
    for start in range(0, len(rows), _CHECKED):
        part = inputs[start : start + _CHECKED]
        if bool(torch.isfinite(part.sum(dtype=torch.float32))):
            continue
        finite = torch.isfinite(part).flatten(1).all(1)
        if not bool(finite.all()):  # else many large numbers, whose sum alone was not finite
            bad = store.sample_ids[int(rows[start + int((~finite).nonzero()[0])])]
            raise InputError(
                f"{array} of sample {bad!r} is not finite: embed it again, into another store"
            )


def window_rows(store: Store, array: str) -> int:
    """Return the rows of a window, at least one block of them."""
    return max(BLOCK_ROWS, WINDOW_BYTES // _row_bytes(store, array))


def held_in_memory(store: Store, array: str, n: int) -> bool:
    """Return whether so many rows of features are few enough to be kept."""
    return n * _row_bytes(store, array) <= HELD_BYTES


def _row_bytes(store: Store, array: str) -> int:
    return int(np.prod(store.shape(array)[1:])) * np.dtype(store.dtype(array)).itemsize
