"""Features of a store, in memory or as a stream of batches, in the same order either way.

A pass goes over the store in windows of blocks, whose order is fixed for a store. It collects training rows until there
are as many as a window holds, and takes random batches of these. So a head sees the same batches whether its features
are held in memory, streamed, or read in a pass that other heads share. The store's own order mixes the samples, so
this is as good as an order of single rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samtl._runtime import prefetch
from samtl._runtime.parts import one_thread
from samtl.errors import InputError
from samtl.heads.grid import UPSAMPLING, moments
from samtl.heads.training.trainer import in_order
from samtl.splits.split import Rows
from samtl.store.format import BLOCK_ROWS
from samtl.store.reader import Store

ORDER = 0  # seed of the order of blocks, which must not depend on when a head began
HELD_BYTES = 2**30  # features of training and validation part up to this size are kept
WINDOW_BYTES = 64 * 2**20  # of features; two windows are in memory at a time
# Rows that are predicted at a time
AT_ONCE = {"classification": 512, "multilabel": 512, "regression": 512, "segmentation": 4}
_CHECKED = 16  # rows that are checked for NaN at a time


@dataclass(frozen=True)
class Targets:
    """What is to be learnt for some rows: labels given here, or masks in the store."""

    store: Store
    array: str
    labels: NDArray[Any] | None = None

    def read(self, rows: Rows) -> Tensor:
        """Return labels as `samtl.splits.labels.label_array` has them, or (n, 4 side, 4 side) uint8 masks.

        Masks are learnt at four times the resolution of the features: the pixel in the middle of each cell.
        """
        if self.labels is not None:
            return torch.from_numpy(self.labels[rows])
        if not len(rows):
            return torch.empty(0, dtype=torch.uint8)
        square, cells = self.store.shape("mask")[1], UPSAMPLING * self.store.shape(self.array)[2]
        middles = (2 * np.arange(cells) + 1) * square // (2 * cells)
        masks = [self.store.row("mask", int(row))[np.ix_(middles, middles)] for row in rows]
        return torch.from_numpy(np.stack(masks))


class Pool:
    """Collects rows until there are enough, and yields them in batches: random ones, or in order without a generator.

    Parameters
    ----------
    batch : int
        Rows of a batch.
    capacity : int
        Rows from which random batches are taken.
    order : torch.Generator, optional
    """

    def __init__(self, batch: int, capacity: int, order: torch.Generator | None) -> None:
        self.batch, self.order = batch, order
        self.capacity = batch if order is None else max(batch, capacity)
        self._parts: list[tuple[Tensor, ...]] = []

    def add(self, *rows: Tensor) -> None:
        """Add rows, as one or more tensors of one length."""
        self._parts.append(rows)

    def batches(self, last: bool = False) -> Iterator[tuple[Tensor, ...]]:
        """Yield full batches if there are enough rows, or all that is left, whose last batch may be smaller."""
        n = sum(len(rows[0]) for rows in self._parts)
        if n < self.capacity and not (last and n):
            return
        joined = [torch.cat(columns) for columns in zip(*self._parts, strict=True)]
        whole = n if last else n - n % self.batch
        chosen, left = torch.split(in_order(n, self.order), [whole, n - whole])
        self._parts = [tuple(column[left] for column in joined)]
        for some in torch.split(chosen, self.batch):
            yield tuple(column[some] for column in joined)


@dataclass
class Feed:
    """A source of batches for the training loop: see `samtl.heads.training.trainer.Source`.

    Nothing but `rows` is read of the store; if `held`, once, and kept in memory.
    """

    store: Store
    array: str
    rows: Rows
    targets: Targets
    held: bool = False

    def __post_init__(self) -> None:
        self._all = self._load(self.rows) if self.held else None

    def __len__(self) -> int:
        return len(self.rows)

    def batches(
        self, size: int, generator: torch.Generator | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every row once: inputs (batch, ...) as stored, and int64 targets.

        Shuffled by the generator or, if that is None, in the order of a pass. All batches but the last have `size`
        rows.
        """
        place = np.full(len(self.store), -1)
        place[self.rows] = np.arange(len(self.rows))
        windows = wanted_in(windows_of(self.store, self.array), place >= 0)
        pool = Pool(size, min(window_rows(self.store, self.array), len(self)), generator)
        if self._all is not None:
            # Positions are collected, not the features themselves.
            found: Iterable[tuple[Tensor, ...]] = ((torch.from_numpy(place[w]),) for w in windows)
        else:
            found = prefetch(self._load, windows)

        def batches() -> Iterator[tuple[Tensor, ...]]:
            for window in found:
                pool.add(*window)
                del window  # else its rows would be in memory twice while the pool is emptied
                yield from pool.batches()
            yield from pool.batches(last=True)

        # Batches are put together ahead of the training, too.
        made, count = batches(), -(-len(self) // size)
        yield from prefetch(lambda _: self._taken(next(made)), range(count))

    def _taken(self, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        if self._all is not None:
            (chosen,) = batch
            batch = tuple(column[chosen] for column in self._all)
        inputs, targets = batch
        return inputs, targets.long()

    def _load(self, rows: Rows) -> tuple[Tensor, Tensor]:
        return read_features(self.store, self.array, rows), self.targets.read(rows)


def windows_of(store: Store, array: str) -> list[Rows]:
    """Divide the rows of a store into windows, in the order of a pass."""
    size = window_rows(store, array)
    order = np.random.default_rng(ORDER).permutation(-(-len(store) // BLOCK_ROWS))
    rows = (order[:, None] * BLOCK_ROWS + np.arange(BLOCK_ROWS)).ravel()
    rows = rows[rows < len(store)]
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def wanted_in(windows: Sequence[Rows], wanted: NDArray[np.bool_]) -> list[Rows]:
    """Return the wanted rows of each window, ascending; windows without any are left out."""
    kept = [np.sort(rows[wanted[rows]]) for rows in windows]
    return [rows for rows in kept if len(rows)]


def moments_of(store: Store, array: str, rows: Rows) -> Iterator[Tensor]:
    """Yield the `moments` of each row, (2, channels) float64, which do not depend on the other rows."""
    at_once = max(BLOCK_ROWS, window_rows(store, array) // 4)
    for start in range(0, len(rows), at_once):
        inputs = read_features(store, array, rows[start : start + at_once])
        with one_thread():
            yield from [moments(row[None])[0] for row in inputs]


def read_features(store: Store, array: str, rows: Rows) -> Tensor:
    """Read rows of features, (n, ...); InputError names the first sample whose features are not finite."""
    inputs = torch.from_numpy(store.read(array, rows))
    require_finite(store, array, rows, inputs)
    return inputs


def require_finite(store: Store, array: str, rows: Rows, inputs: Tensor) -> None:
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
