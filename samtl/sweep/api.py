"""Heads x splits x seeds: all trainings of a study, in as few passes over a store as possible, and resumable.

A sweep is a folder: `cells/` holds a run folder for each finished cell, `failed/` a file for each cell that failed,
`splits/` the lists of samples that runs share, `floors/` the scores of image statistics. A run folder appears whole or
not at all, and nothing else says that a cell is finished.
"""

from __future__ import annotations

import itertools
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from samtl import _io
from samtl._runtime import Note, machine_memory, run_tasks
from samtl.datasets import Dataset
from samtl.errors import InputError, writing
from samtl.experiment.run import read_run, runs_folder
from samtl.splits import parse_many
from samtl.store.storage import as_output
from samtl.sweep.plan import DEFAULT_HEADS as DEFAULT_HEADS
from samtl.sweep.plan import Cell, Given, Sources, Unit, plan, units_of
from samtl.sweep.results import Failure, Row, failed_row, rows_of
from samtl.sweep.results import SweepResult as SweepResult
from samtl.sweep.worker import CELLS, FAILED, FLOORS, SPLITS, Remote, Worker, why


@dataclass(frozen=True)
class Progress:
    """What became of a cell: `planned`, `skipped`, `started`, `event`, `done` or `failed`.

    `text` is that of the event, or the reason; `figures` are the metrics of a finished cell by name.
    """

    cell: Cell
    what: str
    text: str = ""
    figures: Mapping[str, float] | None = None

    def __str__(self) -> str:
        return f"{self.cell}: {self.text or self.what}"


OnEvent = Callable[[Progress | Note], None]


def sweep(
    stores: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    heads: Sequence[str] | None = None,
    splits: str | float | Sequence[str | float] = "0.1,0.2,...,0.9",
    seeds: int | str | Sequence[int] = 1,
    out: str | Path | None = None,
    *,
    baselines: Sequence[str] = (),
    features: Sequence[str] = (),
    params: Mapping[str, Mapping[str, Any]] | None = None,
    dataset: str | Dataset | None = None,
    root: str | Path | None = None,
    group_by: str | None = None,
    warm_start: bool = False,
    jobs: int | None = None,
    allow_partial: bool = False,
    room: int | None = None,
    on_event: OnEvent | None = None,
) -> SweepResult:
    """Train every head on every split with every seed, and every baseline beside them.

    The same call resumes: finished cells are skipped, failed ones are tried again.

    Parameters
    ----------
    stores : path, Store or sequence of these
        Stores to learn from; none if there are only baselines.
    heads : sequence of str, optional
        Heads to train; by default all for the store's task.
    splits : str, float or sequence of these
        Splits as for fit-head, separated by commas. "..." continues a series; kfold:5 is five splits.
    seeds : int, str or sequence of int
        How many, such as 5, or which, such as 0,5,7.
    out : path, optional
        Folder of the sweep; by default sweep-STORE in $SAMTL_RUNS or ./runs. An existing sweep is resumed. If the
        folder holds other things, the sweep is sweep-STORE in it.
    baselines : sequence of str
        Baselines to train on the pixels of the same samples; they need a dataset.
    features : sequence of str
        Columns of pooled to learn from, as for fit-head; heads on pooled features are trained on each choice.
    params : mapping, optional
        Parameters of heads and baselines that differ from the defaults, by name.
    dataset : str or Dataset, optional
        Images for the baselines: what the store was made from, as for embed.
    root : path, optional
        Where the dataset's files are, as for embed.
    group_by : str, optional
        Regular expression that finds the group in a sample's id, as for fit-head.
    warm_start : bool
        Start from the model of a smaller training part with the same seed if that shortens training. Results then
        differ from those of the same fits alone.
    jobs : int, optional
        Number of processes; by default one for each core.

        A script needs `if __name__ == "__main__":` for more than 1.
    allow_partial : bool
        Use a store that is not complete.
    room : int, optional
        Bytes of features that may stay in memory; by default half of the memory. Heads on grids of a larger store
        share their passes over it.
    on_event : callable, optional
        Called with each `Progress` and `Note`.

    Raises
    ------
    InputError
        If there is nothing to do, or a name, split, seed or store is wrong.
    MismatchError
        If baselines would read other images, labels or masks than the store was made from.
    ResourceError
        If the folder cannot be written.
    """
    began = time.perf_counter()
    paths = (stores,) if isinstance(stores, str | os.PathLike) else stores
    heads, baselines, features = map(_listed, (heads, baselines, features))
    splits = ",".join(map(str, _listed(splits)))
    if jobs is not None and jobs < 1:
        raise InputError(f"--jobs must be at least 1, got {jobs}")
    if baselines and dataset is None:
        raise InputError(
            f"the baselines {', '.join(baselines)} read pixels: say which with --dataset (and --root)"
        )
    if group_by is not None and not any(spec.draws for spec in parse_many(splits)):
        raise InputError(f"--group-by has no bearing on the splits {splits}: leave it out")
    sources = Sources(
        Given(
            _folder(out, _named(paths, dataset)),
            tuple(os.fspath(path) for path in paths),
            heads,
            splits,
            _seeds(seeds),
            baselines,
            features,
            params or {},
            dataset,
            root,
            group_by,
            warm_start,
            allow_partial,
            machine_memory() // 2 if room is None else room,
        )
    )
    cells = plan(sources)
    with _locked(sources.given.out) as alone:
        work = _Sweep(sources, cells, alone, on_event or (lambda event: None))
        return work.run(jobs or cores(), began)


def _listed(given: Any) -> Any:
    """Return names, or splits, that may be one, or several in one text, as a list; None stays None."""
    if isinstance(given, str):
        return given.split(",")
    return [given] if isinstance(given, float) else given


def _seeds(seeds: Any) -> Sequence[int]:
    try:
        if isinstance(seeds, str) and "," not in seeds:
            seeds = int(seeds)
        listed: Any = seeds.split(",") if isinstance(seeds, str) else seeds
        chosen = [*range(listed)] if np.ndim(listed) == 0 else [int(seed) for seed in listed]
    except ValueError:
        chosen = []
    if not chosen:
        raise InputError(
            f"--seeds takes how many, such as 3, or which, such as 0,5,7, got {seeds!r}"
        )
    for place, seed in enumerate(chosen):
        if seed in chosen[:place]:
            raise InputError(
                f"the seed {seed} is given twice, and would count twice in every mean; leave one out"
            )
        if not 0 <= seed < 2**32:
            raise InputError(f"a seed must lie between 0 and {2**32 - 1}, got {seed}")
    return chosen


def _named(paths: Sequence[str | os.PathLike[str]], dataset: str | Dataset | None) -> str:
    """Choose a name for the folder."""
    name = "-".join(Path(path).name.removesuffix(".zarr") for path in paths)
    if not paths:
        name = dataset.name if isinstance(dataset, Dataset) else str(dataset)
        name = "".join(c if c.isalnum() or c in "-." else "-" for c in name)
    return f"sweep-{_io.shortened(name, 100)}"


def _folder(out: str | Path | None, name: str) -> Path:
    """Return the folder of a sweep: `out`, or a folder of the name in it if it holds other things than a sweep."""
    if out is None:
        return runs_folder() / name
    folder = as_output(out)
    held = {path.name for path in folder.glob("[!.]*")} if folder.is_dir() else set()
    return folder / name if held and not held & {CELLS, FAILED, SPLITS, FLOORS} else folder


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Allow one sweep at a time in a folder, if its file system has locks; else cells may be trained twice."""
    with writing(f"a sweep into {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = _io.lock_folder(folder)
        except BlockingIOError as error:
            raise InputError(
                f"another sweep writes to {folder}; wait for it, or choose another folder with --out"
            ) from error
        try:
            yield lock is not None
        finally:
            if lock is not None:
                os.close(lock)


class _Sweep:
    """Keeps account of the cells while they are trained, here or in worker processes."""

    def __init__(
        self, sources: Sources, cells: Sequence[Cell], alone: bool, on_event: OnEvent
    ) -> None:
        self.sources, self.out, self.on_event = sources, sources.given.out, on_event
        self.cells, self.alone = cells, alone
        self.count: Counter[str] = Counter()
        self.failed: dict[str, str] = {}
        self.rows: dict[int, list[Row]] = {}  # of the cells that are done or failed
        self.notes: list[str] = []

    def run(self, jobs: int, began: float) -> SweepResult:
        """Train what is not finished."""
        self._tidy()
        for cell in self.cells:
            self.on_event(Progress(cell, "planned"))
        self._take("skipped", self.cells)
        # The whole plan decides the processes, and so the threads of each: a sweep that resumes has as many.
        jobs = min(jobs, len(units_of(self.cells)))
        units = units_of(cell for cell in self.cells if cell.number not in self.rows)
        here = Worker(self.sources.given)  # sees if a store has changed since
        try:
            while units and jobs > 1:
                units = self._spread(units, jobs)
            for unit in units:
                try:
                    here.perform(unit, self._tell)
                except Exception as error:  # of what the cells share
                    self._settle(unit, error)
        finally:
            self._tidy()
        rows = [row for number in sorted(self.rows) for row in self.rows[number]]
        done, skipped, seconds = self.count["done"], self.count["skipped"], time.perf_counter()
        notes = tuple(self.notes)
        return SweepResult(self.out, done, skipped, self.failed, rows, seconds - began, notes)

    def _spread(self, units: Sequence[Unit], jobs: int) -> list[Unit]:
        """Train units in worker processes; return what is left of those that killed their worker twice."""
        remote = Remote(self.sources.given, max(1, cores() // jobs))
        lost: list[Unit] = []
        for unit, found in run_tasks(
            remote.perform,
            units,
            jobs,
            instead="jobs must be 1",
            on_message=lambda message: self._tell(*message),
        ):
            lost += self._settle(unit, found)
        return lost

    def _settle(self, unit: Unit, error: Any) -> list[Unit]:
        """Account for a unit that has ended; return its lanes if its worker was killed twice.

        If there is only one, the cell that was at work has failed.
        """
        self._take("done", itertools.chain(*unit))  # by a worker that was killed before it told
        left = ([cell for cell in lane if cell.number not in self.rows] for lane in unit)
        lanes = [lane for lane in left if lane]
        if not isinstance(error, BrokenExecutor):
            for cell in itertools.chain(*lanes):
                self._tell(cell.number, "failed", why(error))
            return []
        if len(lanes) == 1:
            reason = "its worker process was killed twice; if memory is short, use fewer --jobs"
            self._tell(lanes[0].pop(0).number, "failed", reason)
        return [[lane] for lane in lanes if lane]

    def _take(self, what: str, cells: Iterable[Cell]) -> None:
        """Take account of the cells that have a run folder."""
        for cell in cells:
            if (self.out / CELLS / cell.run).exists():
                self._tell(cell.number, what, cell.run)

    def _tell(self, number: int, what: str, text: str) -> None:
        """Take a message of a worker; see `samtl.sweep.worker.Tell`. What is `skipped` was done before."""
        cell = self.cells[number]
        if number in self.rows:  # told again by the next worker
            return
        if what == "note":
            self.notes.append(text)
            self.on_event(Note(text))
            return
        failure, figures = self.out / FAILED / f"{cell.run}.json", None
        if what in ("done", "skipped"):
            try:
                run = read_run(self.out / CELLS / text)
            except InputError as error:
                what = "failed"
                text = f"{why(error)}; take {text} out of {CELLS} and run the sweep again"
            else:
                text, figures = "", {name: score.value for name, score in run.metrics.items()}
                self.rows[number] = rows_of(run, cell.split)
                failure.unlink(missing_ok=True)
        if what == "failed":
            assert cell.config is not None
            several = len(self.sources.given.stores) > 1
            self.failed[f"{cell}, {cell.store}" if several else str(cell)] = text
            self.rows[number] = [failed_row(cell.config, cell.split, text)]
            _io.replace(failure, msgspec.json.encode(Failure(str(cell), text)))
        self.count[what] += 1
        self.on_event(Progress(cell, what, text, figures))

    def _tidy(self) -> None:
        """Remove what killed processes have left half-written, if it is known that nobody else writes here."""
        for old in self.out.glob(f"*/{_io.TEMPORARY}*") if self.alone else ():
            if old.is_dir():
                shutil.rmtree(old, ignore_errors=True)
            else:
                old.unlink(missing_ok=True)


def cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
