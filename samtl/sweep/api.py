"""Heads x splits x seeds: every training of a study, in as few passes over a store as possible, and resumable.

A sweep is a folder: `results.csv`, one row for each cell and metric; `cells/`, a run folder for each cell; `splits/`,
who was in which part; `floors/`, what image statistics alone come to. A cell is finished when its rows are there,
or its run folder, which appears whole or not at all; so a sweep that was killed goes on where it was.
"""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from samtl._io import digest
from samtl._runtime import Note, machine_memory
from samtl.datasets import Dataset
from samtl.embed.changes import look
from samtl.errors import (
    InputError,
    LockedError,
    MismatchError,
    ResourceError,
    SamtlError,
)
from samtl.experiment.features import Data
from samtl.experiment.fit import configured
from samtl.experiment.run import read_run, runs_folder
from samtl.experiment.trial import Parts
from samtl.splits import Samples, Split, SplitSpec, parse_many, read_split, select
from samtl.store.reader import Store
from samtl.store.storage import as_folder
from samtl.sweep import crew, results
from samtl.sweep.results import Results
from samtl.sweep.worker import (
    CELLS,
    FLOORS,
    SPLITS,
    Cell,
    Given,
    Unit,
    Workshop,
    array_of,
    keeps,
    lanes_of,
    why,
)

DEFAULT_HEADS = {
    "classification": ("logreg", "mlp", "conv", "vit"),
    "segmentation": ("conv", "vit"),
}
DEFAULT_SPLITS = "0.1,0.2,...,0.9"
# How long a training takes for one sample, roughly and relative to each other: long ones begin first.
MOST_KNOWN = 0.05  # part of a validation part that a warm start may have learnt from
_LANES = 12  # heads on grids at a time in one process: each holds some of its rows
_COSTS = {
    "floor": 0.5,
    "logreg": 1.0,
    "mlp": 0.5,
    "conv": 6.0,
    "vit": 9.0,
    "cnn": 10.0,
    "unet": 60.0,
}


@dataclass(frozen=True)
class Progress:
    """What became of a cell: `planned`, `skipped`, `started`, `event`, `done` or `failed`.

    `text` is the event's or the reason's; of a cell that is done or was skipped, `figures` are its metrics by name.
    """

    cell: Cell
    what: str
    text: str = ""
    figures: Mapping[str, float] | None = None

    def __str__(self) -> str:
        cell = self.cell
        return f"{cell.name}, split {cell.split}, seed {cell.seed}: {self.text or self.what}"


@dataclass(frozen=True, eq=False)
class SweepResult:
    """What a sweep came to.

    Attributes
    ----------
    out : Path
        Its folder.
    done, skipped : int
        Cells that were trained now; that were finished before.
    failed : dict of str to str
        What each cell that came to nothing was, and why.
    rows : list of dict
        Of `results.csv`, those of this sweep's cells, in the order in which they were asked for.
    seconds : float
    notes : tuple of str
    """

    out: Path
    done: int
    skipped: int
    failed: dict[str, str]
    rows: list[dict[str, Any]]
    seconds: float
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Give the result as JSON values."""
        return {
            "out": str(self.out),
            "done": self.done,
            "skipped": self.skipped,
            "failed": self.failed,
            "rows": self.rows,
            "seconds": round(self.seconds, 3),
            "notes": list(self.notes),
        }


OnEvent = Callable[[Progress | Note], None]
Rows = NDArray[np.int64]


def sweep(
    stores: str | Path | Sequence[str | Path],
    heads: Sequence[str] | None = None,
    splits: str = DEFAULT_SPLITS,
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
    jobs: int = 1,
    allow_partial: bool = False,
    room: int | None = None,
    on_event: OnEvent | None = None,
) -> SweepResult:
    """Train every head on every split with every seed, and every baseline beside them.

    Finished cells are skipped, so the same call resumes. A cell that fails is recorded and tried again next time.

    Parameters
    ----------
    stores : path or sequence of paths
        May be empty where there are only baselines.
    heads : sequence of str, optional
        By default all for the store's task.
    splits : str
        Separated by commas, "..." continues a row: see `samtl.splits.spec.parse_many`.
    seeds : int or sequence of int
        How many, from 0; or which.
    out : path, optional
        The sweep's folder; by default `sweep-STORE` in `$SAMTL_RUNS` or `./runs`.
    baselines : sequence of str
        Are trained on the pixels of `dataset`, on the same samples.
    features : sequence of str
        Patterns of columns of `pooled`, as in `samtl.fit_head`; each head on pooled features is trained on each.
    params : mapping, optional
        By head or baseline, its parameters that differ from the defaults.
    dataset, root
        As for `samtl.embed`; needed for baselines.
    group_by : str, optional
        As for `samtl.fit_head`.
    warm_start : bool
        Whether a cell starts from the one whose training part is the largest within its own (same model and seed),
        where training is then shorter and at most 5 % of its validation part were learnt from on the way; held-out
        samples never are. `vit`, which loses by it, always begins with nothing.
    jobs : int
        Processes at a time. More than 1 start this program anew: a script needs `if __name__ == "__main__":`.
    allow_partial : bool
        Whether to use a store in which rows are not embedded yet.
    room : int, optional
        Bytes of features that can stay in memory; half of what this process may use by default. Heads on grids of a
        larger store share their passes over it, and then see its blocks in one order in every epoch; else each is
        trained as `samtl.fit_head` does, which learns a little more.
    on_event : callable, optional
        Called with each `Progress` and `Note`.

    Raises
    ------
    InputError
        Where there is nothing to do, or a name, split, seed or store is not one.
    MismatchError
        Where baselines would read other images, labels or masks than the store was made from.
    LockedError
        Where another sweep writes to the folder.
    ResourceError
        Where it cannot be written.
    """
    began = time.perf_counter()
    paths = [str(stores)] if isinstance(stores, (str, Path)) else [str(path) for path in stores]
    chosen = _seeds(seeds)
    if jobs < 1:
        raise InputError(f"--jobs must be at least 1, got {jobs}")
    if baselines and dataset is None:
        raise InputError(
            f"the baselines {', '.join(baselines)} read pixels: say which with --dataset (and --root)"
        )
    asked = parse_many(splits)
    if group_by is not None and not any(spec.draws for spec in asked):
        raise InputError(f"--group-by has no bearing on the splits {splits}: leave it out")
    folder = (
        as_folder(out) if out is not None else runs_folder() / f"sweep-{_named(paths, dataset)}"
    )
    given = Given(
        folder,
        dict(params or {}),
        dataset,
        None if root is None else str(root),
        group_by,
        allow_partial,
    )
    shop = Workshop(given)
    allowed = machine_memory() // 2 if room is None else room
    cells = _plan(
        shop, paths, heads, asked, chosen, tuple(baselines), features, warm_start, allowed
    )
    _known_params(given.params, cells)
    with _locked(folder):
        return _Sweep(shop, cells, folder, on_event or (lambda event: None)).run(jobs, began)


def labelled(models: Iterable[tuple[str, str, str]]) -> dict[tuple[str, str, str], str]:
    """Name models, given by name, features and store: by the latter two where models of one name differ in them."""
    found = list(models)
    names = {}
    for model in found:
        name, features, store = model
        by_features, by_store = (
            len({other[i] for other in found if other[0] == name}) > 1 for i in (1, 2)
        )
        on = f" on {features or 'all'}" if by_features else ""
        names[model] = f"{name}{on}{f' @ {store}' if by_store and store else ''}"
    return names


def _seeds(seeds: int | Sequence[int]) -> list[int]:
    chosen = list(range(seeds)) if isinstance(seeds, int) else [int(seed) for seed in seeds]
    if not chosen:
        raise InputError(f"--seeds takes how many, such as 3, or which, such as 0,5,7, got {seeds}")
    twice = sorted({seed for seed in chosen if chosen.count(seed) > 1})
    if twice:
        raise InputError(
            f"the seed {twice[0]} is given twice, and would count twice in every mean; leave one out"
        )
    for seed in chosen:
        if not 0 <= seed < 2**32:
            raise InputError(f"a seed must lie between 0 and {2**32 - 1}, got {seed}")
    return chosen


def _named(paths: Sequence[str], dataset: str | Dataset | None) -> str:
    if paths:
        return "-".join(Path(path).name.removesuffix(".zarr") for path in paths)[:100]
    name = dataset.name if isinstance(dataset, Dataset) else str(dataset)
    return "".join(c if c.isalnum() or c in "-." else "-" for c in name)[:100]


def _known_params(params: Mapping[str, Any], cells: Sequence[Cell]) -> None:
    unused = sorted(set(params) - {cell.name for cell in cells})
    if unused:
        raise InputError(
            f"parameters are given for {unused[0]}, which is not in this sweep: leave them out"
        )
    seeded = next((name for name, some in params.items() if "random_state" in some), None)
    if seeded is not None:
        raise InputError(
            f"random_state of {seeded} is what each seed of a sweep sets: name the --seeds instead"
        )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One sweep at a time in a folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock", timeout=0)
        with lock:
            yield
    except Timeout as error:
        raise LockedError(
            f"another sweep writes to {folder}; wait for it, or choose another folder with --out"
        ) from error
    except OSError as error:
        if isinstance(error, SamtlError):
            raise
        raise ResourceError(
            f"cannot write a sweep into {folder}: {error.strerror or error}; choose another folder with --out, or "
            "make room"
        ) from error


def _plan(
    shop: Workshop,
    paths: Sequence[str],
    heads: Sequence[str] | None,
    asked: Sequence[SplitSpec],
    seeds: Sequence[int],
    baselines: Sequence[str],
    features: Sequence[str],
    warm_start: bool,
    room: int,
) -> list[Cell]:
    """List the cells, with who is in which part, what decides their outcome, and where each starts."""
    counter = itertools.count()
    plan: list[Cell] = []

    def several(
        store: str, kind: str, name: str, chosen: str | None, parts: _Chosen, streamed: bool = False
    ) -> None:
        cells = [
            Cell(next(counter), kind, name, store, chosen, spec, seed, found, streamed=streamed)
            for (spec, seed), found in parts.items()
        ]
        for group in _by_seed(cells):
            plan.extend(_chained(shop, group, warm_start))

    for path in paths:
        store = shop.store(path)
        names = list(heads) if heads is not None else DEFAULT_HEADS[store.task]
        split: dict[str, _Chosen] = {}  # of each array: it decides which rows are usable
        for name in names:
            array = array_of(store, name)
            data = shop.data(path, array, None)
            if array not in split:
                split[array] = _parts(data.samples, asked, seeds)
            for some in (features or (None,)) if array == "pooled" else (None,):
                streamed = array != "pooled" and store.bytes_of(array) > room
                several(path, "heads", name, some, split[array], streamed)
    base = paths[0] if paths else ""
    if baselines:
        sizes = {int(shop.store(path).identity["image_size"]) for path in paths}
        if len(sizes) > 1 and shop.store(base).task == "segmentation":
            raise InputError(
                "masks of baselines are scored at the resolution of the heads that they are compared with, and these "
                f"stores have images of {' and '.join(map(str, sorted(sizes)))} pixels: sweep each by itself"
            )
        samples = _pixel_samples(shop, base)
        shop.given = replace(shop.given, pixels=_pixels(shop, base, samples))
        parts = _parts(samples, asked, seeds)
        for name in baselines:
            several(base, "baselines", name, None, parts)
    if features and not any(cell.features for cell in plan):
        raise InputError(
            "--features chooses columns of pooled, and no head of this sweep reads these: leave it out"
        )
    if not plan:
        raise InputError("there is nothing to sweep: name --heads or --baselines")
    seen: dict[str, Cell] = {}
    for cell in plan:
        other = seen.setdefault(cell.digest, cell)
        if other is not cell:
            raise InputError(
                f"{cell.name} with seed {cell.seed} would be trained twice in the same way, on the split {other.split} "
                f"and on {cell.split}: a head, baseline, store, split or choice of features is given twice; leave one "
                "out"
            )
    return plan


_Chosen = Mapping[tuple[str, int], Parts]


def _pixel_samples(shop: Workshop, store: str) -> Samples:
    """Give the samples that baselines are split by: those of the store, where there is one."""
    images: Dataset
    samples: Samples
    images, samples = shop.images(store)
    if not store:
        return samples
    opened: Store = shop.store(store)
    usable = next((array for array in ("pooled", "grid", "dense") if array in opened.arrays), None)
    if usable is None:
        raise InputError(f"{opened.path} holds no features yet; run samtl embed first")
    data: Data = shop.data(store, usable, None)
    if images.task != data.samples.task:
        raise InputError(
            f"{opened.path} is for {data.samples.task}, and {images.name} for {images.task}: give the --dataset that "
            "the store was made from"
        )
    _require_labels(opened, images, data.samples.usable)
    return replace(samples, usable=data.samples.usable, groups=data.samples.groups)


def _require_labels(store: Store, images: Dataset, usable: NDArray[np.bool_]) -> None:
    """Refuse labels that are not those which the heads learn from."""
    have, now = store.labels, np.array(images.labels)
    differ: list[tuple[str, str, str]] = []
    if images.classes != store.classes:
        differ = [("classes", ", ".join(store.classes), ", ".join(images.classes))]
    elif len(rows := np.flatnonzero(usable & (have != now))):
        names = (*store.classes, "none")  # of -1
        row = rows[0]
        differ = [(f"label of {images.sample_ids[row]!r}", names[have[row]], names[now[row]])]
    if differ:
        raise MismatchError(_outdated(store, images), differ)


def _pixels(shop: Workshop, store: str, samples: Samples) -> str:
    """Name the images, and masks, of the usable samples; of a store, they must be those that it was made from."""
    images: Dataset = shop.images(store)[0]
    opened: Store | None = shop.store(store) if store else None
    rows = np.flatnonzero(samples.usable).tolist()
    seen = []
    for row, (name, found) in zip(
        rows, look(images, [samples.ids[row] for row in rows]), strict=True
    ):
        seen.append([name, found.image, found.mask])
        if opened is None:
            continue
        for what, have, now in (
            ("image", opened.image_sha256(row), found.image),
            ("mask", opened.mask_sha256(row), found.mask),
        ):
            # What cannot be read is for those to tell that need it.
            if have and now is not None and have != now:
                told = f"sha256 {now[:16]}" if now else "none that can be used"
                raise MismatchError(
                    _outdated(opened, images),
                    [(f"{what} of {name!r}", f"sha256 {have[:16]}", told)],
                )
    return digest({"samples": sorted(seen)})


def _outdated(store: Store, images: Dataset) -> str:
    return (
        f"{store.path} was made from other images or labels than {images.name} has now, and heads cannot be compared "
        "with baselines of these: run samtl embed to bring the store up to date, or give the --dataset that it was "
        "made from:"
    )


def _parts(
    samples: Samples, asked: Sequence[SplitSpec], seeds: Sequence[int]
) -> dict[tuple[str, int], Parts]:
    """Draw every split, with every seed that makes a difference."""
    found: dict[tuple[str, int], Parts] = {}
    for spec, seed in itertools.product(asked, seeds):
        found[spec.text, seed] = Parts(*select(samples, spec, seed))
    return found


def _by_seed(cells: Sequence[Cell]) -> list[list[Cell]]:
    seeds = dict.fromkeys(cell.seed for cell in cells)
    return [[cell for cell in cells if cell.seed == seed] for seed in seeds]


def _chained(shop: Workshop, cells: Sequence[Cell], warm_start: bool) -> list[Cell]:
    """Name the cells, each with the one that it starts from: the largest whose training part is within its own."""
    first = cells[0]
    made = configured(first.kind, first.name, shop.given.params.get(first.name, {}), 0)
    convex = getattr(made, "convex", False)
    heads = first.kind == "heads"
    task = shop.store(first.store).task if heads else shop.images(first.store)[0].task
    named: list[Cell] = []
    known: dict[str, Rows] = {
        "": np.zeros(0, dtype=np.int64)
    }  # by run: learnt from, starts included
    for cell in sorted(cells, key=lambda cell: len(cell.parts.split.train)):
        train, (learnt, judged) = cell.parts.split.train, _rows(cell.parts.inner)
        within = [
            other
            for other in named
            if warm_start
            and hasattr(made, "start_from")
            and made.gains(len(cell.parts.inner.train), task)
            and len(other.parts.split.train) < len(train)
            and np.isin(other.parts.split.train, train, assume_unique=True).all()
            and (convex or np.isin(judged, known[other.run]).mean() <= MOST_KNOWN)
        ]
        cell = _named_by(shop, replace(cell, start=within[-1].run if within else ""))
        known[cell.run] = np.union1d(known[cell.start], learnt)
        named.append(cell)
    return named


def _rows(split: Split) -> tuple[Rows, Rows]:
    return split.train, split.test


def _named_by(shop: Workshop, cell: Cell) -> Cell:
    """Name a cell after what decides its outcome."""
    trial = shop.trial(cell)
    return replace(cell, digest=trial.config.digest, run=trial.config.run_name)


class _Sweep:
    """The bookkeeping: what is finished, what became of the rest."""

    def __init__(self, shop: Workshop, cells: Sequence[Cell], out: Path, on_event: OnEvent) -> None:
        self.shop, self.cells, self.out, self.on_event = shop, list(cells), out, on_event
        self.results = Results(out / results.FILE)
        self.done = 0
        self.failed: dict[str, str] = {}
        self.notes: list[str] = []

    def run(self, jobs: int, began: float) -> SweepResult:
        self._tidy()
        self._note(self.results.mend())
        for cell in self.cells:
            self.on_event(Progress(cell, "planned"))
        finished = self.results.done()
        recorded = self.results.cells()
        left, skipped = [], 0
        for cell in self.cells:
            if cell.digest in finished:
                figures = {
                    row["metric_name"]: row["metric_value"]
                    for row in recorded[cell.digest]
                    if row["method"] == cell.name
                }
                self.on_event(Progress(cell, "skipped", figures=figures))
                skipped += 1
            elif (self.out / CELLS / cell.run).exists():
                skipped += self._adopt(cell)
            else:
                left.append(cell)
        # What is asked for decides the processes, and so the threads of each: a sweep that resumes has as many.
        jobs = min(jobs, len(self._units(self.cells)))
        left += self._starts_of(left)
        while left:
            self.orphans: list[Cell] = []
            try:
                crew.work(self._units(left), self.shop.given, jobs, self._tell)
            finally:
                self._tidy()
            left = self._adopted()
        recorded = self.results.cells()
        asked = sorted(self.cells, key=lambda cell: cell.number)
        rows = [row for cell in asked for row in recorded.get(cell.digest, ())]
        return SweepResult(
            self.out,
            self.done,
            skipped,
            self.failed,
            rows,
            time.perf_counter() - began,
            tuple(self.notes),
        )

    def _starts_of(self, left: Sequence[Cell]) -> list[Cell]:
        """Give the finished cells that others are to start from, and whose run folder is gone."""
        by_run = {cell.run: cell for cell in self.cells}
        needed: dict[str, Cell] = {}
        starts = [cell.start for cell in left]
        while starts:
            start = by_run.get(starts.pop())
            if start is None or start in left or start.run in needed:
                continue
            if not (self.out / CELLS / start.run).exists():
                needed[start.run] = start
                starts.append(start.start)
        return list(needed.values())

    def _adopted(self) -> list[Cell]:
        """Let the cells whose start came to nothing start from what that started from, or from nothing."""
        by_run = {cell.run: cell for cell in self.cells}
        left = []
        for orphan in self.orphans:
            start = by_run[orphan.start].start
            while start and not (self.out / CELLS / start).exists():
                start = by_run[start].start
            cell = _named_by(self.shop, replace(orphan, start=start))
            self.cells[self.cells.index(orphan)] = cell
            self._note([f"{orphan.start} came to nothing, so {cell.run} starts without it"])
            if (self.out / CELLS / cell.run).exists():
                self._adopt(cell)
            else:
                left.append(cell)
        return left

    def _note(self, texts: Sequence[str]) -> None:
        for text in texts:
            self.notes.append(text)
            self.on_event(Note(text))

    def _tidy(self) -> None:
        """Remove what processes that were killed have left half-written; nobody else writes here."""
        for folder in (CELLS, SPLITS, FLOORS):
            for old in (self.out / folder).glob(".*"):
                if old.is_dir():
                    shutil.rmtree(old, ignore_errors=True)
                else:
                    old.unlink(missing_ok=True)

    def _adopt(self, cell: Cell) -> bool:
        """Take up a run folder that has no rows yet; tells whether it could be."""
        folder = self.out / CELLS / cell.run
        try:
            if read_run(folder).digest != cell.digest:
                raise InputError(f"{folder} is of another training")
            self._require_parts(cell, folder)
            self._record(cell)
        except (InputError, KeyError) as error:
            self._tell(
                cell,
                "failed",
                f"{why(error)}; take {cell.run} out of {CELLS} and run the sweep again",
            )
            return False
        self.on_event(Progress(cell, "skipped", figures=self._figures(cell)))
        return True

    def _require_parts(self, cell: Cell, folder: Path) -> None:
        """Refuse a run whose samples are in other parts than the plan says."""
        ids, record = self.shop.trial(cell).samples.ids, read_split(folder)
        split, inner = cell.parts
        for part, rows in (("held_out", split.test), ("validation", inner.test)):
            if set(getattr(record, part)) != {ids[row] for row in rows}:
                raise InputError(f"{folder} is of other samples: its {part} part is another")

    def _tell(self, cell: Cell, what: str, text: str) -> None:
        figures = None
        if what == "orphaned":
            self.orphans.append(cell)
            return
        if what == "done":
            try:
                self._record(cell)
                figures = self._figures(cell)
                self.done += 1
            except (InputError, KeyError) as error:  # the folder went away, or is damaged
                what, text = "failed", why(error)
        if what == "failed":
            self.failed[cell.run] = text
            self.results.append([self._failed(cell, text)])
        self.on_event(Progress(cell, what, text, figures))

    def _record(self, cell: Cell) -> None:
        folder = self.out / CELLS / cell.run
        run = read_run(folder)
        self.results.append(results.rows_of(run, split_spec=cell.split))

    def _figures(self, cell: Cell) -> dict[str, float]:
        found = read_run(self.out / CELLS / cell.run).metrics
        return {name: score.value for name, score in found.items()}

    def _failed(self, cell: Cell, why: str) -> dict[str, Any]:
        split = cell.parts.split
        config = self.shop.trial(cell).config
        return results.failed_row(
            cell=cell.digest,
            error=why,
            method=cell.name,
            kind=config.kind,
            task=config.task,
            dataset=config.dataset,
            store=config.store,
            fingerprint=config.fingerprint,
            snapshot=config.snapshot,
            features=config.inputs,
            split=cell.split,
            split_name=split.name,
            share=split.share,
            split_digest=split.digest,
            seed=cell.seed,
            run=f"{CELLS}/{cell.run}",
        )

    def _units(self, cells: Sequence[Cell]) -> list[Unit]:
        """Divide what is left among processes: long units first, the floor before what is held against it."""
        units: list[Unit] = []
        grids: dict[tuple[str, str], list[Cell]] = {}
        for cell in cells:
            if cell.streamed:
                array = array_of(self.shop.store(cell.store), cell.name)
                grids.setdefault((cell.store, array), []).append(cell)
        for some in grids.values():
            lanes = lanes_of(some)
            hands = _dealt(lanes, -(-len(lanes) // _LANES))
            units += [Unit(tuple(map(tuple, hand))) for hand in hands]
        shared: dict[tuple[str, str], list[Cell]] = {}
        for cell in cells:
            if cell.kind == "baselines" and keeps(cell.name):
                shared.setdefault((cell.store, cell.name), []).append(cell)
        units += [Unit(tuple((cell,) for cell in some)) for some in shared.values()]
        taken = {cell.number for unit in units for cell in unit.cells}
        rest = [cell for cell in cells if cell.number not in taken]
        units += [Unit((tuple(lane),)) for lane in lanes_of(rest)]
        units.sort(key=lambda unit: (unit.cells[0].name != "floor", -cost(unit.cells)))
        return units


def cost(cells: Sequence[Cell]) -> float:
    """Say how long cells take to train, roughly and relative to others."""
    return sum(len(cell.parts.split.train) * _COSTS.get(cell.name, 5.0) for cell in cells)


def _dealt(lanes: Sequence[list[Cell]], bins: int) -> list[list[list[Cell]]]:
    """Deal lanes out, the costliest first, each to where there is least to do."""
    hands: list[list[list[Cell]]] = [[] for _ in range(min(bins, len(lanes)))]
    for lane in sorted(lanes, key=cost, reverse=True):
        min(hands, key=lambda hand: sum(map(cost, hand))).append(lane)
    return hands
