"""Features of a store, in memory or as a stream of batches.

Streaming reads every row once in a pass, a window ahead of the training, in the order of the file within a window;
two windows and the mapped shards are all that is ever held. The store's own order mixes the samples, so windows of
blocks are as good as windows of single rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samtl._runtime import prefetch
from samtl.errors import InputError
from samtl.heads.grid import UPSAMPLING
from samtl.splits.split import Rows
from samtl.store.format import BLOCK_ROWS
from samtl.store.reader import Store

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
        step = self.store.shape("mask")[1] // (UPSAMPLING * self.store.shape(self.array)[2])
        cells = slice(step // 2, None, step)
        masks = [self.store.row("mask", int(row))[cells, cells] for row in rows]
        return torch.from_numpy(np.stack(masks))


@dataclass
class Feed:
    """A source of batches for the training loop: see `samtl.heads.trainer.Source`.

    Nothing but `rows` is read of the store; if `held`, once, and kept in memory.
    """

    store: Store
    array: str
    rows: Rows
    targets: Targets
    held: bool = False

    def __post_init__(self) -> None:
        self._all = self._load(np.arange(len(self.rows))) if self.held else None

    def __len__(self) -> int:
        return len(self.rows)

    def batches(
        self, size: int, generator: torch.Generator | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every row once: inputs (batch, ...) as stored, and int64 targets.

        In order if there is no generator. All batches but the last have `size` rows.
        """
        if self._all is None:
            for window in prefetch(self._load, self._windows(size, generator)):
                for inputs, targets in zip(
                    *(torch.split(part, size) for part in window), strict=True
                ):
                    yield inputs, targets.long()
            return
        order = torch.arange(len(self))
        if generator is not None:
            order = torch.randperm(len(self), generator=generator)
        for chosen in torch.split(order, size):
            yield self._all[0][chosen], self._all[1][chosen].long()

    def _windows(self, size: int, generator: torch.Generator | None) -> list[Rows]:
        """Cut the rows (by their positions) into windows of whole batches: random blocks, and random rows within."""
        positions = np.arange(len(self))
        if generator is not None:
            positions = np.argsort(self.rows, kind="stable")
            starts = np.flatnonzero(np.diff(self.rows[positions] // BLOCK_ROWS)) + 1
            blocks = np.split(positions, starts)
            order = torch.randperm(len(blocks), generator=generator).tolist()
            positions = np.concatenate([blocks[i] for i in order])
        # Nothing can be learnt while the first window is read, so that one is small.
        rows = window_rows(self.store, self.array)
        first, later = (max(n // size, 1) * size for n in (max(BLOCK_ROWS, rows // 8), rows))
        windows = np.split(positions, range(first, len(positions), later))
        if generator is None:
            return windows
        return [w[torch.randperm(len(w), generator=generator).numpy()] for w in windows]

    def _load(self, positions: Rows) -> tuple[Tensor, Tensor]:
        rows = self.rows[positions]
        return read_features(self.store, self.array, rows), self.targets.read(rows)


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
