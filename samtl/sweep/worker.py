"""Training of units: what their cells have in common is read or computed once."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import time
from collections.abc import Callable
from typing import Any

import msgspec
import torch
from threadpoolctl import threadpool_limits

from samtl._io import digest, replace
from samtl._runtime import Link
from samtl.errors import MismatchError, SamtlError
from samtl.experiment.clock import Clock
from samtl.experiment.held_out import FLOOR
from samtl.experiment.run import Run
from samtl.experiment.trial import Floors, Trial
from samtl.heads.io import load
from samtl.sweep.plan import Cell, Given, Sources, Unit
from samtl.sweep.shared_pass import fit_together

CELLS, SPLITS, FLOORS, FAILED = "cells", "splits", "floors", "failed"  # folders of a sweep
#: Called with the number of a cell, what became of it, and a text: `started`, `event`, `note`, `done` with the name of
#: the run folder, or `failed` with the reason.
Tell = Callable[[int, str, str], None]
_LONGEST = 900  # characters of a message
_BETWEEN = 0.1  # seconds between two events of a worker process


class Worker(Sources):
    """Trains units; keeps stores, features and floors between them."""

    def __init__(self, given: Given) -> None:
        super().__init__(given)
        self.cells, self._splits = given.out / CELLS, given.out / SPLITS
        self._trained: dict[str, Any] = {}  # models of this unit, by run
        self._tell: Tell

    def perform(self, unit: Unit, tell: Tell) -> None:
        """Train the cells of a unit that have no run folder yet; a cell that fails does not stop the others."""
        first, self._tell = unit[0][0], tell
        lanes = [[cell for cell in lane if not (self.cells / cell.run).exists()] for lane in unit]
        try:
            if first.streamed:
                fit_together(self.store(first.store), first.array, lanes, self)
                return
            if first.array == "pooled":
                # For all cells to come. The cells that need a row report if it cannot be read.
                with contextlib.suppress(SamtlError):
                    self.data(first.store, first.array, first.features).hold()
            for cell in itertools.chain(*lanes):
                try:
                    run = self.begin(cell).fit(self.cells, self.clock(cell))
                except Exception as error:
                    self.fail(cell, error)
                else:
                    self.done(cell, run)
        finally:
            self._trained.clear()

    def clock(self, cell: Cell) -> Clock:
        """Start the clock of a cell; what it is told is an event of the cell."""
        return Clock(lambda event: self._tell(cell.number, "event", str(event)))

    def begin(self, cell: Cell) -> Trial:
        """Make a trial whose model starts from the planned one; from nothing if that one failed."""
        self._tell(cell.number, "started", "")
        trial = self.trial(cell)
        # A store or a folder of images may have changed in the hours since.
        assert cell.config is not None
        if not cell.rows.fits(trial.samples) or trial.config.digest != cell.config.digest:
            raise MismatchError(
                f"{trial.samples.where} changed while the sweep ran: run the same sweep again", []
            )
        start = self.cells / cell.start
        if cell.start in self._trained:
            trial.model.start_from(self._trained[cell.start])
        elif cell.start and start.is_dir():
            trial.model.start_from(load(start))
        elif cell.start:
            trial = self.trial(dataclasses.replace(cell, start=""))
            self._tell(cell.number, "note", f"{cell.start} failed, so {cell} starts without it")
        trial.floor_of, trial.shared = self._floor, self._splits
        # In a shared pass, the next in the lane begins before this one is scored.
        self._trained[trial.config.run_name] = trial.model
        return trial

    def done(self, cell: Cell, run: Run) -> None:
        """Report the run of a cell."""
        self._tell(cell.number, "done", run.path.name)

    def fail(self, cell: Cell, error: Exception) -> None:
        """Report that a cell failed."""
        self._trained.pop(cell.run, None)
        self._tell(cell.number, "failed", why(error))

    def _floor(self, trial: Trial) -> tuple[Floors, str]:
        """Return the floor's scores on a split, which are fitted once for all models."""
        about = trial.config
        # A split's digest covers the ids in it, and not the images behind them.
        key = [about.kind, about.fingerprint, about.resolution, about.samples_digest]
        key += [about.split.digest, about.validation.digest, about.seed]
        path = self.given.out / FLOORS / f"{digest(key)}.json"
        if trial.name != FLOOR and path.exists():
            return msgspec.json.decode(path.read_bytes(), type=Floors), ""
        found = trial.floor()
        floors = found[0]
        if trial.name == FLOOR and not self.given.params.get("floor"):
            # Others are compared with the floor with its defaults.
            floors = trial.scores
        if floors:
            replace(path, msgspec.json.encode(floors))  # in this order: the first is the main one
        return found


def why(error: BaseException) -> str:
    """Describe in one line why a cell failed."""
    text = " ".join(str(error).split())
    return text if isinstance(error, SamtlError) else f"{type(error).__name__}: {text}"


class Remote:
    """A worker in a process of its own, which is made when it gets its first unit."""

    def __init__(self, given: Given, threads: int) -> None:
        self.given, self.threads = given, threads

    @functools.cached_property
    def _worker(self) -> Worker:
        torch.set_num_threads(self.threads)
        threadpool_limits(self.threads)
        return Worker(self.given)

    def perform(self, unit: Unit, link: Link) -> None:
        """Train a unit; sends the arguments of `Tell`."""
        sent = 0.0

        def tell(number: int, what: str, text: str) -> None:
            nonlocal sent
            if what == "event" and time.monotonic() - sent < _BETWEEN:
                return
            sent = time.monotonic()
            link.send((number, what, text[:_LONGEST]))

        self._worker.perform(unit, tell)
