"""Rows of a store as batches to train on: held in memory where they fit, else streamed in shuffled windows of blocks.

Streaming reads every row once in a pass, a window ahead of the training, in the order of the file within a window;
two windows and the mapped shards are all that is ever held. The store's own order mixes the samples, so that windows of
blocks are as good as windows of single rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samtl._runtime import prefetch
from samtl.errors import InputError
from samtl.heads.grid import UPSAMPLING
from samtl.images.transforms import PATCH
from samtl.store.layout import BLOCK_ROWS
from samtl.store.reader import Store

Rows = NDArray[np.int64]

HELD_BYTES = (
    2**30
)  # features of training and validation part up to this size are read once and kept
CHECKED = 16  # rows that are looked through at a time for what is no number
WINDOW_BYTES = 64 * 2**20  # of features; two windows are in memory at a time

# Masks are learnt at four times the embedding's resolution, which is one pixel in four of the encoder's square, taken
# from the middle of its cell.
STRIDE = PATCH // UPSAMPLING


@dataclass(frozen=True)
class Targets:
    """What is to be learnt for some rows: class indices given here, or masks in the store."""

    store: Store
    labels: NDArray[np.int64] | None = None

    def read(self, rows: Rows) -> Tensor:
        """Give (n,) int64 class indices, or (n, 4 side, 4 side) uint8 masks."""
        if self.labels is not None:
            return torch.from_numpy(self.labels[rows])
        if not len(rows):
            return torch.empty(0, dtype=torch.uint8)
        masks = [
            self.store.row("mask", int(row))[STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE]
            for row in rows
        ]
        return torch.from_numpy(np.stack(masks))


class Feed:
    """A source of batches for the training loop: see `samtl.heads.trainer.Source`.

    Parameters
    ----------
    store : Store
    array : str
        Where the features are.
    rows : (n,) int64
        Which rows; nothing else of the store is read.
    targets : Targets
    held : bool
        Whether to keep everything in memory after the first pass.
    """

    def __init__(
        self, store: Store, array: str, rows: Rows, targets: Targets, held: bool = False
    ) -> None:
        self.store, self.array, self.rows, self.targets = store, array, rows, targets
        self.window = window_rows(store, array)
        self._all: tuple[Tensor, Tensor] | None = None
        if held:
            self._all = self._load(np.arange(len(rows)))

    def __len__(self) -> int:
        return len(self.rows)

    def batches(
        self, size: int, generator: torch.Generator | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Give every row once: inputs (batch, ...) as stored, and int64 targets.

        In order where there is no generator. All batches but the last have `size` rows.
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
            left = (
                (inputs[whole:].clone(), targets[whole:].clone()) if whole < len(targets) else None
            )
        if left is not None:
            yield left[0], left[1].long()

    def _windows(self, generator: torch.Generator | None) -> list[NDArray[np.int64]]:
        """Cut the rows (by their positions) into windows: random blocks, and random rows among them."""
        positions = (
            np.argsort(self.rows, kind="stable") if generator is not None else np.arange(len(self))
        )
        if generator is not None:
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

    def _load(self, positions: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        rows = self.rows[positions]
        return checked(self.store, self.array, rows), self.targets.read(rows)


def checked(store: Store, array: str, rows: Rows) -> Tensor:
    """Read rows of features, (n, ...), and see that they are numbers.

    Raises
    ------
    InputError
        Naming the first sample whose features are not.
    """
    inputs = torch.from_numpy(store.read(array, rows))
    # Slice by slice, since sums of float16 are made of a float32 copy.
    for start in range(0, len(rows), CHECKED):
        part = inputs[start : start + CHECKED]
        if bool(torch.isfinite(part.sum(dtype=torch.float32))):
            continue
        finite = torch.isfinite(part).flatten(1).all(1)
        if not bool(finite.all()):  # else many large numbers, whose sum alone was not finite
            bad = store.sample_ids[int(rows[start + int((~finite).nonzero()[0])])]
            raise InputError(
                f"{array} of sample {bad!r} is not finite: embed it again, into another store"
            )
    return inputs


def window_rows(store: Store, array: str) -> int:
    """Rows of a window, at least one block of them."""
    size = int(np.prod(store.shape(array)[1:])) * np.dtype(store.dtype(array)).itemsize
    return max(BLOCK_ROWS, WINDOW_BYTES // size)


def held_in_memory(store: Store, array: str, n: int) -> bool:
    """Tell whether so many rows of features are few enough to be kept."""
    shape = store.shape(array)[1:]
    return n * int(np.prod(shape)) * np.dtype(store.dtype(array)).itemsize <= HELD_BYTES
