"""Duration of a sweep against the naive loop, which trains one cell after the other.

The loop calls `samtl.fit_head` once for each cell, in one process that uses all cores. It is run for some of the splits
with the first seed. Its time for the other splits is estimated from the number of training samples n as a + b n, fitted
to the measured times.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.made_store import Make, write_store
from benchmarks.paired import Row
from samtl.errors import InputError
from samtl.experiment.fit import fit_head
from samtl.experiment.run import read_run
from samtl.images.transforms import PATCH
from samtl.splits.spec import parse_many
from samtl.store.format import BLOCK_ROWS
from samtl.store.reader import Store, open_store
from samtl.sweep.api import sweep
from samtl.sweep.worker import CELLS

SPLITS = "0.1,0.2,...,0.9"
POOLED_COLUMNS = 768
CHANNELS, SIDE = 256, 64


@dataclass(frozen=True)
class Case:
    """One sweep.

    Attributes
    ----------
    heads : tuple of str
    array : str
        The array that they read.
    seeds : int
    every : int
        The loop is run for every n-th split.
    features : str or None
        Columns of `pooled`, if the store is the user's.
    """

    heads: tuple[str, ...]
    array: str
    seeds: int
    every: int
    features: str | None = None


CASES = {
    "pooled": Case(("logreg", "mlp"), "pooled", 5, 2, "mean,max,std"),
    "grid": Case(("vit", "conv"), "grid", 3, 4),
}
DENSE_HEADS, DENSE_EPOCHS = 9, 4
Told = Callable[[str], None]


def bench_sweep(
    cases: Sequence[str] = ("pooled", "grid", "dense"),
    store: str | Path | None = None,
    rows: int = 27_000,
    dense_rows: int = 2_400,
    splits: str = SPLITS,
    seeds: int | None = None,
    jobs: int = 1,
    out: str | Path | None = None,
    on_row: Callable[[Row], None] | None = None,
    on_event: Told | None = None,
) -> list[Row]:
    """Measure sweeps.

    Parameters
    ----------
    cases : sequence of str
        Which sweeps to measure: `pooled`, `grid` and `dense`.
    store : path, optional
        Store with `pooled` and `grid`; by default, features are generated.
    rows : int
        Number of samples to generate for `pooled` and `grid`.
    dense_rows : int
        Number of samples to generate for `dense`.
    splits : str
        Splits to sweep over, as for sweep.
    seeds : int, optional
        Number of seeds, by default 5 for `pooled` and 3 for `grid`.
    jobs : int
        Number of worker processes.
    out : path, optional
        New folder to keep the sweeps, the runs of the loop and the generated stores (some gigabytes) in. By default
        nothing is kept.
    on_row, on_event : callable, optional
        Called with each figure, and with a line about each step.

    Returns
    -------
    list of Row
        `HEADS/SPLITSxSEEDS` in seconds, with the ratio of the loop's time to it; `HEADS/.../naive`, the loop's time;
        `HEADS/.../peak memory` in GiB, of the sweep's largest process. `9xconv/dense/passes`, how many times the store
        is read, against a loop in which each of nine heads reads it separately: one pass for each epoch, and up to
        three to standardise channels, to validate the last epoch and to score.
    """
    told = on_event or (lambda text: None)
    found: list[Row] = []

    def add(rows: Sequence[Row]) -> None:
        for row in rows:
            found.append(row)
            if on_row is not None:
                on_row(row)

    if out is not None and Path(out).exists() and any(Path(out).iterdir()):
        raise InputError(
            f"{out} is not empty, and a resumed sweep cannot be measured: name a new folder"
        )
    with ExitStack() as stack:
        folder = out or stack.enter_context(tempfile.TemporaryDirectory(prefix="samtl-bench-"))
        for name in cases:
            if name == "dense":
                told("writing a dense store")
                path = _dense(Path(folder) / "dense.zarr", dense_rows)
                add(_passes(path, Path(folder), told))
                continue
            case = CASES[name]
            if store is None:
                told(f"generating features for {name}")
                path = _made_up(Path(folder) / f"{name}.zarr", name, rows)
            else:
                path = Path(store)
            add(_beside_the_loop(case, path, Path(folder), splits, seeds, jobs, told))
    return found


def _beside_the_loop(
    case: Case, path: Path, folder: Path, splits: str, seeds: int | None, jobs: int, told: Told
) -> list[Row]:
    n_seeds = seeds or case.seeds
    specs = [spec.text for spec in parse_many(splits)]
    store = open_store(path)
    features = (
        case.features if case.array == "pooled" and len(store.columns("pooled")) > 1 else None
    )
    if features and not any(name.startswith("mean") for name in store.columns("pooled")):
        features = None  # generated columns have no groups
    began = time.perf_counter()
    out = folder / f"sweep-{case.array}"
    result = sweep(
        path,
        case.heads,
        splits,
        n_seeds,
        out,
        features=(features,) if features else (),
        jobs=jobs,
        on_event=lambda event: told(f"the sweep: {event}"),
    )
    ours = time.perf_counter() - began
    if result.failed:
        raise RuntimeError(f"cells failed: {result.failed}")
    naive = 0.0
    for head in case.heads:
        sizes, times = [], []
        for spec in specs[:: case.every]:
            told(f"the loop: {head} at {spec}")
            began = time.perf_counter()
            run = fit_head(
                path,
                head,
                spec,
                0,
                folder / "loop",
                features=features if case.array == "pooled" else None,
            )
            times.append(time.perf_counter() - began)
            sizes.append(run.n_train)
        naive += n_seeds * _over_all(sizes, times, _sizes(out, head, specs))
    name = f"{'+'.join(case.heads)}/{len(specs)}x{n_seeds}"
    return [
        Row(name, ours, "s", "naive", naive / ours),
        Row(f"{name}/naive", naive, "s"),
        Row(f"{name}/peak memory", _peak(out) / 2**30, "GiB a process"),
    ]


def _peak(sweep_folder: Path) -> int:
    """Peak memory of the largest process that finished a cell, in bytes."""
    runs = (sweep_folder / CELLS).iterdir()
    return max(read_run(run).peak_memory for run in runs)


def _sizes(sweep_folder: Path, head: str, specs: Sequence[str]) -> list[int]:
    """Number of training samples of the first seed's cells, by split."""
    sizes = {}
    for run in (sweep_folder / CELLS).iterdir():
        found = read_run(run)
        if found.name == head and found.seed == 0:
            sizes[found.given["split"]] = found.n_train
    return [sizes[spec] for spec in specs]


def _over_all(sizes: Sequence[int], times: Sequence[float], wanted: Sequence[int]) -> float:
    """Estimate the seconds of all trainings from some, linearly in the number of samples."""
    if list(sizes) == list(wanted):
        return sum(times)
    slope, offset = np.polyfit(sizes, times, 1) if len(sizes) > 1 else (0.0, times[0])
    return float(sum(offset + slope * n for n in wanted))


def _passes(path: Path, folder: Path, told: Told) -> list[Row]:
    """Count the passes over dense embeddings of nine heads, trained together and one by one."""
    store = open_store(path)
    size = int(np.prod(store.shape("dense"))) * 2
    heads = f"{DENSE_HEADS}xconv/dense/passes"
    params: dict[str, Any] = {"width": 8, "epochs": DENSE_EPOCHS}
    counted = _Counted()
    with counted:
        told(f"{DENSE_HEADS} heads in one sweep")
        began = time.perf_counter()
        result = sweep(
            path,
            ("conv",),
            "0.2",
            DENSE_HEADS,
            folder / "sweep-dense",
            params={"conv": params},
            warm_start=False,
            room=0,  # as if the store were larger than the memory
        )
        ours = time.perf_counter() - began
    if result.failed:
        raise RuntimeError(f"cells failed: {result.failed}")
    together = counted.bytes / size
    counted = _Counted()
    with counted:
        told("one head alone")
        began = time.perf_counter()
        fit_head(path, "conv", "0.2", 0, folder / "loop", params=params)
        alone = (time.perf_counter() - began) * DENSE_HEADS
    apart = DENSE_HEADS * counted.bytes / size
    return [
        Row(heads, together, f"passes for {DENSE_EPOCHS} epochs", "naive", apart / together),
        Row(f"{heads}/seconds", ours, "s", "naive", alone / ours),
    ]


class _Counted:
    """Counts the bytes of features read from stores in a `with` block, in this process."""

    def __init__(self) -> None:
        self.bytes = 0

    def __enter__(self) -> None:
        self._read: Any = Store.read

        def counting(store: Store, array: str, rows: Any = None) -> NDArray[Any]:
            values: NDArray[Any] = self._read(store, array, rows)
            self.bytes += values.nbytes
            return values

        setattr(Store, "read", counting)  # noqa: B010  # a method may not be assigned to

    def __exit__(self, *args: object) -> None:
        setattr(Store, "read", self._read)  # noqa: B010


def _made_up(path: Path, array: str, rows: int) -> Path:
    """Write features of ten overlapping classes; a good head reaches about 90 % accuracy."""
    random = np.random.default_rng(0)
    n = rows - rows % BLOCK_ROWS
    labels = random.integers(0, 10, n)
    # Classes and samples vary along few directions, as features of real images do.
    hidden = 48
    centres = random.standard_normal((10, hidden)) * 0.45
    width = POOLED_COLUMNS if array == "pooled" else CHANNELS
    mix = random.standard_normal((hidden, width)) * np.geomspace(3, 0.05, hidden)[:, None]

    def pooled(here: Sequence[int]) -> Iterable[Any]:
        latent = centres[labels[list(here)]] + random.standard_normal((len(here), hidden))
        noise = 0.1 * random.standard_normal((len(here), width))
        return (latent @ mix + noise).astype(np.float32)

    noise = random.standard_normal((4 * BLOCK_ROWS, CHANNELS, 16, 16), np.float32).astype(
        np.float16
    )

    def grid(here: Sequence[int]) -> Iterable[Any]:
        latent = centres[labels[list(here)]] + 0.5 * random.standard_normal((len(here), hidden))
        level = (latent @ mix).astype(np.float16)[:, :, None, None]
        return noise[random.integers(0, len(noise), len(here))] + level

    makes: dict[str, Make] = {"pooled": pooled, "grid": grid}
    columns = [f"made_{i:03d}" for i in range(width)] if array == "pooled" else ()
    return write_store(path, labels.tolist(), 10, "classification", {array: makes[array]}, columns)


def _dense(path: Path, rows: int) -> Path:
    """Write dense embeddings with masks, the same block repeated."""
    random = np.random.default_rng(0)
    shape = (BLOCK_ROWS, CHANNELS, SIDE, SIDE)
    values = random.standard_normal(shape, np.float32).astype(np.float16)
    masks = random.integers(0, 2, (BLOCK_ROWS, SIDE * PATCH, SIDE * PATCH), np.uint8)
    sizes = np.full((BLOCK_ROWS, 2), SIDE * PATCH, dtype=np.int32)
    arrays: dict[str, Make] = {
        "dense": lambda here: values,
        "mask": lambda here: masks,
        "original_size": lambda here: sizes,
    }
    n = rows - rows % BLOCK_ROWS
    return write_store(path, [-1] * n, 2, "segmentation", arrays, side=SIDE)
