"""Stores of generated features, for measurements without an encoder pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from samtl.images.transforms import PATCH, grid_cells
from samtl.store.fingerprint import make_identity
from samtl.store.format import BLOCK_ROWS, array_specs
from samtl.store.log import OK
from samtl.store.samples import SampleTable
from samtl.store.storage import open_storage
from samtl.store.writer import Writer, open_writer

CHANNELS = 256
#: Returns the values of an array for some rows.
Make = Callable[[Sequence[int]], Iterable[Any]]


def begin_store(
    path: Path,
    labels: Sequence[int],
    classes: int,
    task: str,
    arrays: Sequence[str],
    columns: Sequence[str] = (),
    side: int = 64,
) -> Writer:
    """Create a store without rows; see `write_store` for the parameters."""
    specs = array_specs(
        channels=CHANNELS,
        grid=(side, side),
        cells=grid_cells(side),
        square=side * PATCH,
        features=columns,
        statistics=(),
    )
    fields = {
        "encoder": {"name": "none", "weights_sha256": "0" * 64},
        "image_size": side * PATCH,
        "compute_dtype": "float32",
    }
    about = {"weights": "none", "untrained": True}
    table = SampleTable.make(
        dataset="bench",
        note="made-up features",
        task=task,
        classes=[f"class {i}" for i in range(classes)],
        rows=range(len(labels)),
        samples=[f"{i:06d}" for i in range(len(labels))],
        labels=labels,
    )
    identity = make_identity(fields, specs, about, BLOCK_ROWS)
    return open_writer(open_storage(path), identity, table, arrays)


def write_block(writer: Writer, block: int, arrays: Mapping[str, Sequence[Any]]) -> None:
    """Commit a block of rows with status `ok`."""
    rows = writer.block_rows(block)
    images = [f"{row:064x}" for row in rows]  # all different
    writer.write_block(block, arrays, [OK] * len(rows), {}, images)


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
        Class indices, or -1 for samples without a label.
    classes : int
    task : str
    arrays : mapping of str to callable
        The arrays to write, each with a function that returns the values of some rows.
    columns : sequence of str
        Names of the columns of `pooled`.
    side : int
        Tokens along a side of the encoder's output.
    """
    writer = begin_store(path, labels, classes, task, list(arrays), columns, side)
    for block in range(writer.blocks):
        here = writer.block_rows(block)
        write_block(writer, block, {name: list(make(here)) for name, make in arrays.items()})
    writer.finish()
    return path
