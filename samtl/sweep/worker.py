"""The cells of a sweep and how they are worked off: what can be shared between them is read or computed once."""

from __future__ import annotations

import contextlib
import functools
import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from samtl import registry
from samtl.datasets import (
    Dataset,
    groups_by,
    only,
    resolve,
    shuffled,
)
from samtl.errors import MismatchError, SamtlError
from samtl.experiment.baseline_trial import IMAGE_SIZE, BaselineTrial, samples_of
from samtl.experiment.features import Data, array_for
from samtl.experiment.fit import configured, same_samples
from samtl.experiment.head_trial import HeadTrial
from samtl.experiment.run import RunFolder
from samtl.experiment.trial import Clock, Floors, Parts
from samtl.heads.io import load
from samtl.metrics.classification import Score
from samtl.store.reader import Store, open_store
from samtl.sweep.shared_pass import Job, fit_together

CELLS, SPLITS, FLOORS = "cells", "splits", "floors"  # folders of a sweep


@dataclass(frozen=True, eq=False)
class Cell:
    """One training of a sweep.

    Attributes
    ----------
    number : int
        In the order of the plan.
    kind : str
        `heads` or `baselines`.
    name : str
    store : str
        Path of the store; "" for a baseline.
    features : str or None
        Which columns of `pooled`.
    split : str
        As it was asked for.
    seed : int
    parts : Parts
    digest : str
        Of the configuration.
    run : str
        Name of the run folder.
    start : str
        Run folder of the cell that training starts from, or "".
    streamed : bool
        Whether it is trained by passes over the store that it shares.
    """

    number: int
    kind: str
    name: str
    store: str
    features: str | None
    split: str
    seed: int
    parts: Parts
    digest: str = ""
    run: str = ""
    start: str = ""
    streamed: bool = False


@dataclass(frozen=True, eq=False)
class Unit:
    """Cells that one process works off.

    Attributes
    ----------
    lanes : tuple of tuple of Cell
        In a lane each cell may start from one before it.
        Those of streamed cells share their passes over the store; others are worked off one after the other, and share
        what a baseline keeps.
    """

    lanes: tuple[tuple[Cell, ...], ...]

    @property
    def cells(self) -> list[Cell]:
        """All of them."""
        return [cell for lane in self.lanes for cell in lane]


@dataclass(frozen=True)
class Given:
    """What all cells of a sweep have in common.

    Attributes
    ----------
    out : Path
        The sweep's folder.
    params : dict
        Of heads and baselines, by name.
    dataset, root : str or None
        Where baselines find their images.
    group_by : str or None
    allow_partial : bool
    pixels : str
        A digest of these images, and of their masks, when the sweep was planned; "" where nothing reads them.
    """

    out: Path
    params: Mapping[str, Mapping[str, Any]]
    dataset: str | Dataset | None = None
    root: str | None = None
    group_by: str | None = None
    allow_partial: bool = False
    pixels: str = ""


#: What ends a cell's turn. One is orphaned when the cell that it starts from came to nothing.
SETTLED = ("done", "failed", "orphaned")
#: Called with a cell and what becomes of it: `started`, `event` or one of these, and a text.
Tell = Callable[[Cell, str, str], None]


class Orphaned(Exception):
    """The cell to start from came to nothing."""


class Workshop:
    """Works off units; keeps stores, features and floors between them.

    Parameters
    ----------
    given : Given
    """

    def __init__(self, given: Given) -> None:
        self.given = given
        self.store = functools.cache(open_store)
        self.data = functools.cache(self._data)
        self.images = functools.cache(self._images)
        self._trained: dict[str, Any] = {}
        self._kept: dict[tuple[str, str], dict[Any, Any]] = {}

    def trial(self, cell: Cell) -> HeadTrial | BaselineTrial:
        """Make the trial of a cell; nothing is read or trained."""
        params = self.given.params.get(cell.name, {})
        model = configured(cell.kind, cell.name, params, cell.seed)
        given = {"sweep": self.given.out.name, "split": cell.split, "group_by": self.given.group_by}
        if cell.kind == "heads":
            array = array_of(self.store(cell.store), cell.name)
            data = self.data(cell.store, array, cell.features)
            return HeadTrial(
                data, cell.name, model, cell.parts, cell.seed, given, cell.start, cell.streamed
            )
        images, samples = self.images(cell.store)
        if model.caches:
            model.use_cache(self._kept.setdefault((cell.store, cell.name), {}))
        size = int(self.store(cell.store).identity["image_size"]) if cell.store else IMAGE_SIZE
        return BaselineTrial(
            images,
            samples,
            cell.name,
            model,
            cell.parts,
            cell.seed,
            given,
            cell.start,
            size,
            self.given.pixels,
        )

    def perform(self, unit: Unit, tell: Tell) -> None:
        """Work off a unit; a cell that fails is told of, and the others go on."""
        left = {cell.number: cell for cell in unit.cells}

        def told(cell: Cell, what: str, text: str) -> None:
            if what in SETTLED:
                left.pop(cell.number, None)
            tell(cell, what, text)

        try:
            self._perform(unit, told)
        except Exception as error:  # of what they share, such as the store
            for cell in list(left.values()):
                told(cell, "failed", why(error))
        finally:
            self._trained.clear()

    def _perform(self, unit: Unit, tell: Tell) -> None:
        first = unit.cells[0]
        if first.kind == "heads":
            store = self.store(first.store)
            array = array_of(store, first.name)
            if first.streamed:
                jobs = [[self._job(cell, tell) for cell in lane] for lane in unit.lanes]
                fit_together(store, array, jobs)
                return
            if array == "pooled":
                # For all cells to come; what is already there is not read again. Rows that cannot be read are told of
                # by the cells that need them.
                with contextlib.suppress(SamtlError):
                    self.data(first.store, array, first.features).hold()
        for lane in unit.lanes:
            for cell in lane:
                self._alone(cell, tell)

    def _alone(self, cell: Cell, tell: Tell) -> None:
        tell(cell, "started", "")
        try:
            clock = Clock(lambda event: tell(cell, "event", str(event)))
            trial = self._started(cell)
            trial.fit(
                self.given.out / CELLS, clock, floor=lambda: self._floor(trial), splits=self._shared
            )
            self._trained[cell.run] = trial.model
        except Orphaned:
            tell(cell, "orphaned", "")
        except Exception as error:
            tell(cell, "failed", why(error))
        else:
            tell(cell, "done", "")

    def _job(self, cell: Cell, tell: Tell) -> Job:
        def make() -> HeadTrial:
            tell(cell, "started", "")
            trial = self._started(cell)
            assert isinstance(trial, HeadTrial)
            # The next in the lane begins while this one is still answering.
            self._trained[cell.run] = trial.model
            return trial

        def failed(error: Exception) -> None:
            self._trained.pop(cell.run, None)
            if isinstance(error, Orphaned):
                tell(cell, "orphaned", "")
            else:
                tell(cell, "failed", why(error))

        def done(trial: HeadTrial, folder: RunFolder, clock: Clock) -> None:
            with folder:
                trial.write(
                    folder,
                    clock,
                    trial.scores(),
                    floor=lambda: self._floor(trial),
                    splits=self._shared,
                )
            tell(cell, "done", "")

        return Job(
            make,
            self._folder,
            done,
            failed,
            lambda event: tell(cell, "event", str(event)),
        )

    def _started(self, cell: Cell) -> HeadTrial | BaselineTrial:
        """Make a trial whose model starts from the one that the plan names; of what the plan was made of only."""
        trial = self.trial(cell)
        # A store may be written to, or a folder of images grow, for hours before the turn of a cell comes: its rows are
        # others then, or those of other samples.
        if trial.config.digest != cell.digest or not all(
            same_samples(trial.samples, part) for part in trial.parts
        ):
            raise MismatchError(
                f"{trial.samples.where} changed while the sweep ran: run the same sweep again", []
            )
        if cell.start:
            other = self._trained.get(cell.start)
            if other is None:
                folder = self.given.out / CELLS / cell.start
                if not folder.is_dir():
                    raise Orphaned
                other = load(folder)
            trial.model.start_from(other)
        return trial

    def _folder(self) -> RunFolder:
        return RunFolder(self.given.out / CELLS)

    @property
    def _shared(self) -> Path:
        return self.given.out / SPLITS

    def _floor(self, trial: HeadTrial | BaselineTrial) -> tuple[Floors, str]:
        """Return the floor's scores on a split: they are the same beside every model, and the floor is fitted once."""
        if isinstance(trial, HeadTrial):
            name = f"store-{trial.data.store.fingerprint[:8]}"
        else:
            name = f"pixels-{trial.image_size}" if trial.image_size else "pixels"
        (split, inner), samples = trial.parts, trial.config.samples_digest
        # A split's digest covers the ids in it, and not what these stand for.
        of = f"{samples[:16]}-{split.digest[:16]}-{inner.digest[:8]}-s{trial.seed}"
        path = self.given.out / FLOORS / f"{name}-{of}.json"
        if trial.name == "floor":
            if not self.given.params.get(
                "floor"
            ):  # others are held against the floor with its defaults
                _keep(path, {name: scored.metrics for name, scored in trial.scored.items()})
            return trial.floor()
        if path.exists():
            content = json.loads(path.read_text(encoding="utf-8"))
            return {n: {m: Score(**s) for m, s in f.items()} for n, f in content.items()}, ""
        found, why_not = trial.floor()
        if found:
            _keep(path, found)
        return found, why_not

    def _data(self, store: str, array: str, features: str | None) -> Data:
        given = self.given
        return Data(self.store(store), array, features, given.group_by, given.allow_partial)

    def _images(self, store: str) -> tuple[Dataset, Any]:
        """Open the images of a store's rows, in their order; or all where there is no store."""
        assert self.given.dataset is not None
        found = resolve(self.given.dataset, self.given.root)
        data = only(found, self.store(store).sample_ids) if store else shuffled(found)
        if self.given.group_by is not None:
            data = replace(data, groups=groups_by(data.sample_ids, self.given.group_by))
        return data, samples_of(data)


def _keep(path: Path, floors: Floors) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    writing = path.with_name(f".{uuid.uuid4().hex}")
    content = {n: {m: asdict(s) for m, s in f.items()} for n, f in floors.items()}
    writing.write_text(json.dumps(content), encoding="utf-8")
    writing.replace(path)


def why(error: BaseException) -> str:
    """Say in one line why a cell failed."""
    text = " ".join(str(error).split())
    return text if isinstance(error, SamtlError) else f"{type(error).__name__}: {text}"


def keeps(name: str) -> bool:
    """Tell whether one process should work off all cells of a baseline, since they share most of their work."""
    found: bool = registry.load("baselines", name).Baseline.caches
    return found


def array_of(store: Store, name: str) -> str:
    """Give the array that a head reads."""
    return array_for(store, name, configured("heads", name, {}, 0))


def lanes_of(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Divide cells into those that start from one another, and order them so that each comes after its start."""
    lane: dict[str, list[Cell]] = {}
    lanes: list[list[Cell]] = []
    for cell in sorted(cells, key=lambda cell: (len(cell.parts.split.train), cell.number)):
        found = lane.get(cell.start)
        if found is None:
            found = []
            lanes.append(found)
        found.append(cell)
        lane[cell.run] = found
    return lanes
