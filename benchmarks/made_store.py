"""Stores of made-up features to measure with, where nobody has paid for an encoder's pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from samtl.images.transforms import PATCH
from samtl.store.fingerprint import Fingerprint
from samtl.store.layout import BLOCK_ROWS
from samtl.store.rows import Rows
from samtl.store.writer import open_writer

#: Gives the values of an array for some rows.
Make = Callable[[Sequence[int]], Iterable[Any]]


def write_store(
    path: Path,
    labels: Sequence[int],
    classes: int,
    task: str,
    arrays: Mapping[str, Make],
    columns: Sequence[str] = (),
    side: int = 64,
) -> Path:
    """Write a store.

    Parameters
    ----------
    path : Path
    labels : (n,) int
        n a multiple of the rows of a block; -1 where there are none.
    classes : int
    task : str
    arrays : mapping of str to callable
        Which arrays, and what is in their rows.
    columns : sequence of str
        Names of the columns of `pooled`.
    side : int
        Tokens along a side of the encoder's output.
    """
    n = len(labels)
    fingerprint = Fingerprint("none", "0" * 64, {}, side * PATCH, "float32", {})
    with open_writer(
        path,
        fingerprint,
        {"weights": "none", "untrained": True},
        Rows(
            "bench",
            tuple(f"class {i}" for i in range(classes)),
            tuple(f"{i:06d}" for i in range(n)),
            tuple(labels),
            "made-up features",
            task,
        ),
        {"pooled": tuple(columns), "image_stats": ()},
        [*arrays, "label"],
    ) as writer:
        for block in range(n // BLOCK_ROWS):
            here = writer.block_rows(block)
            made = {name: list(make(here)) for name, make in arrays.items()}
            made["label"] = [labels[row] for row in here]
            writer.write_block(block, made, ["ok"] * len(here), {}, ["0" * 64] * len(here), {})
    return path
