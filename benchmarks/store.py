"""Speed of reading and committing rows, against other readers, and the time to open a large store.

All sides read the same rows in the same random order from files in the page cache into one array. A memory map of a
plain file verifies nothing and is the upper bound.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.made_store import begin_store, write_block, write_store
from benchmarks.paired import (
    Row,
    against,
    alone,
    alternating,
)
from samtl.errors import InputError
from samtl.store.fingerprint import make_identity
from samtl.store.format import BLOCK_ROWS, ArraySpec, array_specs, encode_shard
from samtl.store.log import OK, PACK, LogState, Record, Shard
from samtl.store.reader import open_store
from samtl.store.samples import NO_TABLE, SampleTable
from samtl.store.storage import IDENTITY, open_storage

ARRAY = "dense"
Told = Callable[[str], None]


def bench_store(
    rows: int = 512,
    log_rows: int = 1_000_000,
    rounds: int = 5,
    out: str | Path | None = None,
    on_row: Callable[[Row], None] | None = None,
    on_event: Told | None = None,
) -> list[Row]:
    """Measure a store of generated dense embeddings, and the log of a large store.

    Parameters
    ----------
    rows : int
        Number of rows of 2 MiB to read; a multiple of 16.
    log_rows : int
        Number of rows that the log of the large store lists; their values are not written. 0 skips it.
    rounds : int
        Rounds of each pair; figures are medians.
    out : path, optional
        Folder on the disk to measure, by default that for temporary files.
    on_row, on_event : callable, optional
        Called with each figure, and with a line about each step.

    Returns
    -------
    list of Row
        `rows/verified` in GiB/s, once against each of `memmap`, `tensorstore` (if installed) and `zarr-python`, and
        one row for each of these. `commit/row`, the time of a commit in ms, against a `plain-write` of the same bytes,
        and `commit/row/overhead`, the difference. `open/LOG_ROWS` in seconds and `.../memory` in GiB, in a separate
        process.
    """
    if rows % BLOCK_ROWS or rows < BLOCK_ROWS:
        raise InputError(f"--rows must be a multiple of {BLOCK_ROWS}, got {rows}")
    told = on_event or (lambda text: None)
    found: list[Row] = []

    def add(*some: Row) -> None:
        for row in some:
            found.append(row)
            if on_row is not None:
                on_row(row)

    with ExitStack() as stack:
        folder = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="samtl-bench-", dir=out))
        )
        told("writing embeddings")
        block = np.random.default_rng(0).standard_normal((BLOCK_ROWS, 256, 64, 64), np.float32)
        values = block.astype(np.float16)
        path = _store(folder / "dense.zarr", values, rows)
        plain = folder / "plain"
        with plain.open("wb") as file:
            for _ in range(rows // BLOCK_ROWS):
                file.write(values.tobytes())
        add(*_reading(path, plain, rows, rounds, told))
        plain.unlink()
        add(*_committing(folder, values, rounds, told))
        if log_rows:
            told("writing a large log")
            large = _log(folder / "large.zarr", log_rows)
            add(*_opening(large, log_rows, rounds, told))
    return found


def _store(path: Path, values: NDArray[np.float16], rows: int) -> Path:
    return write_store(
        path, [0] * rows, 2, "classification", {ARRAY: lambda here: values[: len(here)]}
    )


def _reading(path: Path, plain: Path, rows: int, rounds: int, told: Told) -> list[Row]:
    store = open_store(path)
    shape = store.shape(ARRAY)
    order = np.random.default_rng(1).permutation(rows).tolist()
    out = np.empty(shape[1:], np.float16)
    size = rows * out.nbytes / 2**30

    def timed(read: Callable[[int], Any]) -> Callable[[], float]:
        def measure() -> float:
            began = time.perf_counter()
            for row in order:
                np.copyto(out, read(row))
            return size / (time.perf_counter() - began)

        return measure

    mapped = np.memmap(plain, np.float16, "r", shape=shape)
    array: Any = store.zarr()[ARRAY]
    sides = {
        "verified": timed(lambda row: store.row(ARRAY, row)),
        "memmap": timed(lambda row: mapped[row]),
        "zarr-python": timed(lambda row: array[row]),
    }
    if importlib.util.find_spec("tensorstore") is not None:
        theirs = _tensorstore(path)
        sides["tensorstore"] = timed(lambda row: theirs[row].read().result())
    told(f"reading rows by {', '.join(sides)}")
    values = alternating(sides, rounds)
    ours = values.pop("verified")
    return [
        *(against("rows/verified", "GiB/s", ours, name, other) for name, other in values.items()),
        *(alone(f"rows/{name}", "GiB/s", other) for name, other in values.items()),
    ]


def _tensorstore(path: Path) -> Any:
    import tensorstore

    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": str(path.absolute() / ARRAY)},
    }
    return tensorstore.open(spec, read=True).result()


def _committing(folder: Path, values: NDArray[np.float16], rounds: int, told: Told) -> list[Row]:
    """Commit blocks, and write the same bytes to plain files."""
    told("committing blocks")
    turn = iter(range(10**6))

    def commit() -> float:
        """Commit the only block of a new store."""
        path = folder / f"commit-{next(turn)}.zarr"
        writer = begin_store(path, [0] * BLOCK_ROWS, 2, "classification", [ARRAY])
        began = time.perf_counter()
        write_block(writer, 0, {ARRAY: list(values)})
        return 1000 * (time.perf_counter() - began) / BLOCK_ROWS

    spec = _specs()[ARRAY]

    def write() -> float:
        path = folder / f"write-{next(turn)}"
        began = time.perf_counter()
        with path.open("wb") as file:
            for piece in encode_shard(spec, list(values), BLOCK_ROWS)[0]:
                file.write(piece)
        return 1000 * (time.perf_counter() - began) / BLOCK_ROWS

    both = alternating({"commit": commit, "write": write}, rounds)
    over = [mine - other for mine, other in zip(both["commit"], both["write"], strict=True)]
    return [
        against("commit/row", "ms", both["commit"], "plain-write", both["write"]),
        alone("commit/row/overhead", "ms", over),
    ]


def _specs() -> dict[str, ArraySpec]:
    return array_specs(
        channels=256,
        grid=(64, 64),
        cells=16,
        square=1024,
        features=[f"mean_{i}" for i in range(768)],
        statistics=["mean"],
    )


def _log(path: Path, rows: int) -> Path:
    """Write the table, records and pack of a store, but no rows."""
    specs = {name: spec for name, spec in _specs().items() if name != "mask"}
    fields = {"encoder": {"name": "none", "weights_sha256": "0" * 64}, "image_size": 1024}
    identity = make_identity(fields, specs, {"weights": "none", "untrained": True}, BLOCK_ROWS)
    random = np.random.default_rng(0)
    images = [random.bytes(32).hex() for _ in range(rows)]
    table, raw = SampleTable.make(
        dataset="bench",
        classes=("a", "b"),
        rows=range(rows),
        samples=[f"class_{row % 2}/image_{row:07d}.png" for row in range(rows)],
        labels=[row % 2 for row in range(rows)],
        images=images,
    ).placed(identity, NO_TABLE.about)
    for name, content in ((IDENTITY, identity.to_bytes()), (table.path, raw)):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    (path / "log").mkdir()
    about = {"device": "cuda:0", "pid": 1, "host": "bench", "versions": {"torch": "2.13.0"}}
    log = LogState(BLOCK_ROWS, rows)
    for start in range(0, rows, BLOCK_ROWS):
        n = min(BLOCK_ROWS, rows - start)
        shards = {
            name: Shard(
                spec.shard_bytes(n, BLOCK_ROWS),
                random.bytes(32).hex(),
                random.integers(0, 2**32, n).tolist(),
            )
            for name, spec in specs.items()
        }
        made_from = images[start : start + n]
        record = Record(
            start // BLOCK_ROWS, 0, identity.sha256, [OK] * n, {}, made_from, shards, about
        )
        raw, record = record.sealed()
        (path / record.name).write_bytes(raw)
        log.add(record, str(path))
    # As a pass that wrote this many blocks does.
    open_storage(path).replace(PACK, log.pack(identity))
    return path


_OPEN = """
import sys, time
from samtl._runtime import peak_memory
from samtl.store.reader import open_store
began = time.perf_counter()
store = open_store(sys.argv[1])
print(len(store), time.perf_counter() - began, peak_memory())
"""


def _opening(path: Path, rows: int, rounds: int, told: Told) -> list[Row]:
    told(f"opening a store of {rows} rows")
    seconds, memory = [], []
    for _ in range(rounds + 1):  # the first one warms the page cache
        done = subprocess.run(
            [sys.executable, "-c", _OPEN, path],
            capture_output=True, text=True, check=True, env=os.environ,
        )  # fmt: skip
        n, took, resident = done.stdout.split()
        assert int(n) == rows
        seconds.append(float(took))
        memory.append(int(resident) / 2**30)
    return [
        alone(f"open/{rows}", "s", seconds[1:]),
        alone(f"open/{rows}/memory", "GiB", memory[1:]),
    ]
