"""Heads x splits x seeds: all trainings of a study, in as few passes over a store as possible, and resumable.

A sweep is a folder: `cells/` holds a run folder for each finished cell, `failed/` a file for each cell that failed,
`splits/` the lists of samples that runs share, `floors/` the scores of image statistics. A run folder appears whole or
not at all, and nothing else says that a cell is finished.
"""

from __future__ import annotations

import multiprocessing
import pickle
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
from filelock import FileLock, Timeout

from samtl import _io
from samtl._runtime import Note, machine_memory, process_pool, run_tasks
from samtl.datasets import Dataset
from samtl.errors import InputError, ResourceError, SamtlError
from samtl.experiment.run import read_run, runs_folder
from samtl.splits import parse_many
from samtl.store.storage import as_folder
from samtl.sweep import worker
from samtl.sweep.plan import DEFAULT_HEADS as DEFAULT_HEADS
from samtl.sweep.plan import Cell, Given, Sources, Unit, configure, plan, units_of
from samtl.sweep.plan import cost as cost
from samtl.sweep.plan import labelled as labelled
from samtl.sweep.results import Failure, Row, failed_row, rows_of
from samtl.sweep.results import SweepResult as SweepResult
from samtl.sweep.worker import CELLS, FAILED, FLOORS, SETTLED, SPLITS, Worker, cores, why


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
    stores: str | Path | Sequence[str | Path],
    heads: Sequence[str] | None = None,
    splits: str = "0.1,0.2,...,0.9",
    seeds: int | Sequence[int] = 1,
    out: str | Path | None = None,
    *,
    baselines: Sequence[str] = (),
    features: Sequence[str] = (),
    params: Mapping[str, Mapping[str, Any]] | None = None,
    dataset: str | Dataset | None = None,
    root: str | Path | None = None,
    group_by: str | None = None,
    warm_start: bool = True,
    jobs: int | None = None,
    allow_partial: bool = False,
    room: int | None = None,
    on_event: OnEvent | None = None,
) -> SweepResult:
    """Train every head on every split with every seed, and every baseline beside them.

    The same call resumes: finished cells are skipped, failed ones are tried again.

    Parameters
    ----------
    stores : path or sequence of paths
        Stores to learn from; none if there are only baselines.
    heads : sequence of str, optional
        Heads to train; by default all for the store's task.
    splits : str
        Splits as for fit-head, separated by commas. "..." continues a series; kfold:5 is five splits.
    seeds : int or sequence of int
        How many seeds, from 0, or which.
    out : path, optional
        Folder of the sweep; by default sweep-STORE in $SAMTL_RUNS or ./runs. An existing sweep is resumed.
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
        Start from the model of a smaller training part with the same seed if that shortens training without loss.
    jobs : int, optional
        Number of processes; by default one for each core. A script needs `if __name__ == "__main__":` for more than 1.
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
    paths = [str(stores)] if isinstance(stores, (str, Path)) else [str(path) for path in stores]
    chosen = _seeds(seeds)
    if jobs is not None and jobs < 1:
        raise InputError(f"--jobs must be at least 1, got {jobs}")
    if baselines and dataset is None:
        raise InputError(
            f"the baselines {', '.join(baselines)} read pixels: say which with --dataset (and --root)"
        )
    specs = parse_many(splits)
    if group_by is not None and not any(spec.draws for spec in specs):
        raise InputError(f"--group-by has no bearing on the splits {splits}: leave it out")
    folder = as_folder(
        out if out is not None else runs_folder() / f"sweep-{_named(paths, dataset)}"
    )
    place = None if root is None else str(root)
    given = Given(folder, dict(params or {}), dataset, place, group_by, allow_partial)
    sources = Sources(given)
    allowed = machine_memory() // 2 if room is None else room
    cells = plan(sources, paths, heads, specs, chosen, baselines, features, warm_start, allowed)
    _require_known(given.params, cells)
    with _locked(folder):
        running = _Sweep(sources, cells, on_event or (lambda event: None))
        running.run(jobs or cores())
        return running.result(began)


def _seeds(seeds: int | Sequence[int]) -> list[int]:
    chosen = list(range(seeds)) if isinstance(seeds, int) else [int(seed) for seed in seeds]
    if not chosen:
        raise InputError(f"--seeds takes how many, such as 3, or which, such as 0,5,7, got {seeds}")
    for place, seed in enumerate(chosen):
        if seed in chosen[:place]:
            raise InputError(
                f"the seed {seed} is given twice, and would count twice in every mean; leave one out"
            )
        if not 0 <= seed < 2**32:
            raise InputError(f"a seed must lie between 0 and {2**32 - 1}, got {seed}")
    return chosen


def _named(paths: Sequence[str], dataset: str | Dataset | None) -> str:
    if paths:
        return "-".join(Path(path).name.removesuffix(".zarr") for path in paths)[:100]
    name = dataset.name if isinstance(dataset, Dataset) else str(dataset)
    return "".join(c if c.isalnum() or c in "-." else "-" for c in name)[:100]


def _require_known(params: Mapping[str, Any], cells: Sequence[Cell]) -> None:
    for name, some in params.items():
        if name not in {cell.name for cell in cells}:
            raise InputError(
                f"parameters are given for {name}, which is not in this sweep: leave them out"
            )
        if "random_state" in some:
            raise InputError(
                f"random_state of {name} is what each seed of a sweep sets: name the --seeds instead"
            )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Allow one sweep at a time in a folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout as error:
        raise InputError(
            f"another sweep writes to {folder}; wait for it, or choose another folder with --out"
        ) from error
    except OSError as error:
        if isinstance(error, SamtlError):
            raise
        raise ResourceError(
            f"cannot write a sweep into {folder}: {error.strerror or error}; choose another folder with --out, or "
            "make room"
        ) from error


class _Sweep:
    """Keeps account of the cells while they are trained, here or in worker processes."""

    def __init__(self, sources: Sources, cells: Sequence[Cell], on_event: OnEvent) -> None:
        self.sources, self.out, self.on_event = sources, sources.given.out, on_event
        self.cells = {cell.number: cell for cell in cells}
        self.several = len({cell.store for cell in cells}) > 1
        self.done = self.skipped = 0
        self.failed: dict[str, str] = {}
        self.rows: dict[int, list[Row]] = {}
        self.notes: list[str] = []
        self.started: set[int] = set()
        self.settled: set[int] = set()
        self.orphans: list[Cell] = []
        self.lost: list[Unit] = []  # whose worker process was killed twice
        self.begun = False  # whether a worker process ever got as far as working
        self.messages: Any = None

    def run(self, jobs: int) -> None:
        """Train what is not finished."""
        self._tidy()
        for cell in self.cells.values():
            self.on_event(Progress(cell, "planned"))
        left = [cell for cell in self.cells.values() if not self._finished(cell)]
        # The whole plan decides the processes, and so the threads of each: a sweep that resumes has as many.
        jobs = min(jobs, len(units_of(self.sources, self.cells.values())))
        units = units_of(self.sources, left)
        while units:
            try:
                if jobs == 1:
                    here = Worker(self.sources.given)  # sees if a store has changed since
                    for unit in units:
                        here.perform(unit, self._tell)
                else:
                    self._spread(units, jobs)
            finally:
                self._tidy()
            units = self._halves() + units_of(self.sources, self._adopted())

    def result(self, began: float) -> SweepResult:
        """Return what it came to."""
        rows = [row for number in sorted(self.rows) for row in self.rows[number]]
        seconds = time.perf_counter() - began
        notes = tuple(self.notes)
        return SweepResult(self.out, self.done, self.skipped, self.failed, rows, seconds, notes)

    def _spread(self, units: Sequence[Unit], jobs: int) -> None:
        """Train units in worker processes."""
        given, threads = self.sources.given, max(1, cores() // jobs)
        try:
            pickle.dumps(given)
        except (AttributeError, TypeError, pickle.PicklingError) as error:
            raise InputError(
                f"the dataset cannot be sent to another process ({error}): its functions must be those of a module, "
                "or jobs must be 1"
            ) from error

        def pool(workers: int) -> Executor:
            # A new queue for each pool: a killed worker may leave the lock of the last one taken.
            self._listen()
            self.messages = multiprocessing.get_context("spawn").SimpleQueue()
            return process_pool(workers, worker.begin, (given, self.messages, threads))

        tasks = run_tasks(worker.perform, units, pool, in_flight=jobs, idle=self._listen)
        for unit, found in tasks:
            if isinstance(found, BrokenExecutor):
                self._listen()
                if not self.begun:
                    raise InputError(
                        'a process of the sweep ended before it began: a script needs `if __name__ == "__main__":` '
                        "around what starts a sweep with jobs above 1; if it has that, try jobs=1"
                    ) from found
                self.lost.append(unit)
            elif isinstance(found, BaseException):
                raise found
        self._listen()

    def _listen(self) -> None:
        """Take the messages of the worker processes."""
        while self.messages is not None and not self.messages.empty():
            number, what, text = self.messages.get()
            if what == "begun":
                self.begun = True
            else:
                self._tell(self.cells[number], what, text)

    def _tell(self, cell: Cell, what: str, text: str) -> None:
        if cell.number in self.settled:  # told again by the next worker
            return
        if what == "started":
            self.started.add(cell.number)
        if what in SETTLED:
            self.settled.add(cell.number)
        if what == "orphaned":
            self.orphans.append(cell)
        elif what == "done":
            self.done += self._take(cell, what)
        elif what == "failed":
            self._fail(cell, text)
        else:
            self.on_event(Progress(cell, what, text))

    def _finished(self, cell: Cell) -> bool:
        """Return whether a cell has a run folder, which is then taken into the table."""
        if not (self.out / CELLS / cell.run).exists():
            return False
        self.skipped += self._take(cell, "skipped")
        return True

    def _take(self, cell: Cell, what: str) -> bool:
        """Read the run of a cell; if it is not sound, the cell has failed."""
        folder = self.out / CELLS / cell.run
        try:
            run = read_run(folder)
            if run.digest != cell.digest:
                raise InputError(f"{folder} is of another training")
        except InputError as error:
            self._fail(
                cell, f"{why(error)}; take {cell.run} out of {CELLS} and run the sweep again"
            )
            return False
        self.rows[cell.number] = rows_of(run, cell.split)
        self._failure(cell).unlink(missing_ok=True)
        figures = {name: score.value for name, score in run.metrics.items()}
        self.on_event(Progress(cell, what, figures=figures))
        return True

    def _fail(self, cell: Cell, text: str) -> None:
        assert cell.config is not None
        self.failed[f"{cell}, {cell.config.store}" if self.several else str(cell)] = text
        self.rows[cell.number] = [failed_row(cell.config, cell.split, text)]
        _io.make_folder(self.out / FAILED)
        failure = Failure(str(cell), text)
        _io.replace(self._failure(cell), _io.canonical(msgspec.structs.asdict(failure)))
        self.on_event(Progress(cell, "failed", text))

    def _failure(self, cell: Cell) -> Path:
        return self.out / FAILED / f"{cell.run}.json"

    def _adopted(self) -> list[Cell]:
        """Let the cells whose start failed start from what that started from, or from nothing."""
        by_run = {cell.run: cell for cell in self.cells.values()}
        left = []
        for orphan in self.orphans:
            start = by_run[orphan.start].start
            while start and not (self.out / CELLS / start).exists():
                start = by_run[start].start
            cell = configure(self.sources, replace(orphan, start=start))
            self.cells[cell.number] = cell
            self.settled.discard(cell.number)
            note = f"{orphan.start} failed, so {cell.run} starts without it"
            self.notes.append(note)
            self.on_event(Note(note))
            if not self._finished(cell):
                left.append(cell)
        self.orphans = []
        return left

    def _halves(self) -> list[Unit]:
        """Cut up the units that killed their worker twice, until one cell is found that does."""
        units = []
        for unit in self.lost:
            lanes = [
                [cell for cell in lane if cell.number not in self.settled] for lane in unit.lanes
            ]
            lanes = [lane for lane in lanes if lane]
            if len(lanes) == 1:
                first = next((c for c in lanes[0] if c.number in self.started), lanes[0][0])
                self._tell(
                    first,
                    "failed",
                    "its worker process was killed twice; if memory is short, use fewer --jobs",
                )
                lanes[0].remove(first)
            units += [Unit((tuple(lane),)) for lane in lanes if lane]
        self.lost = []
        return units

    def _tidy(self) -> None:
        """Remove what killed processes have left half-written; nobody else writes here."""
        for folder in (CELLS, SPLITS, FLOORS, FAILED):
            for old in (self.out / folder).glob(".*"):
                if old.is_dir():
                    shutil.rmtree(old, ignore_errors=True)
                else:
                    old.unlink(missing_ok=True)
