"""Training of units: what their cells have in common is read or computed once."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from samtl._io import make_folder, replace
from samtl.errors import MismatchError, SamtlError
from samtl.experiment.clock import Clock
from samtl.experiment.fit import same_samples
from samtl.experiment.run import RunFolder
from samtl.experiment.trial import Floors, Trial
from samtl.heads.io import load
from samtl.metrics.classification import Score
from samtl.sweep.plan import Cell as Cell
from samtl.sweep.plan import Given, Sources, Unit
from samtl.sweep.shared_pass import Job, fit_together

CELLS, SPLITS, FLOORS, FAILED = "cells", "splits", "floors", "failed"  # folders of a sweep
#: What ends a cell's turn; a cell is orphaned if the one that it starts from failed.
SETTLED = ("done", "failed", "orphaned")
#: Called with a cell, `started`, `event` or one of these, and a text.
Tell = Callable[[Cell, str, str], None]
_LONGEST = 900  # characters: a message fits into one atomic write to a pipe, so a killed worker leaves no part of one
_BETWEEN = 0.1  # seconds between two events of a worker process


class Orphaned(Exception):
    """The cell to start from has no run folder."""


class Worker(Sources):
    """Trains units; keeps stores, features and floors between them."""

    def __init__(self, given: Given) -> None:
        super().__init__(given)
        self._trained: dict[str, Any] = {}  # models of this unit, by run

    def perform(self, unit: Unit, tell: Tell) -> None:
        """Train the cells of a unit that have no run folder yet; a cell that fails does not stop the others."""
        left = {cell.number: cell for cell in unit.cells}

        def told(cell: Cell, what: str, text: str) -> None:
            if what in SETTLED:
                left.pop(cell.number, None)
            tell(cell, what, text)

        try:
            lanes = []
            for lane in unit.lanes:
                done = [cell for cell in lane if (self._cells / cell.run).exists()]
                for cell in done:  # by a worker that was killed later
                    told(cell, "done", "")
                lanes.append([cell for cell in lane if cell not in done])
            self._perform([lane for lane in lanes if lane], told)
        except Exception as error:  # of what they share, such as the store
            for cell in list(left.values()):
                told(cell, "failed", why(error))
        finally:
            self._trained.clear()

    def _perform(self, lanes: list[list[Cell]], tell: Tell) -> None:
        first = lanes[0][0] if lanes else None
        if first is not None and first.streamed:
            jobs = [[self._job(cell, tell) for cell in lane] for lane in lanes]
            fit_together(self.store(first.store), self.array(first), jobs)
            return
        if first is not None and first.kind == "heads" and self.array(first) == "pooled":
            # For all cells to come. The cells that need a row report if it cannot be read.
            with contextlib.suppress(SamtlError):
                self.data(first.store, "pooled", first.features).hold()
        for lane in lanes:
            for cell in lane:
                self._fit(cell, tell)

    def _fit(self, cell: Cell, tell: Tell) -> None:
        tell(cell, "started", "")
        try:
            clock = Clock(lambda event: tell(cell, "event", str(event)))
            trial = self._started(cell)
            trial.fit(self._cells, clock, floor=lambda: self._floor(trial), splits=self._splits)
            self._trained[cell.run] = trial.model
        except Exception as error:
            _tell_failure(cell, error, tell)
        else:
            tell(cell, "done", "")

    def _job(self, cell: Cell, tell: Tell) -> Job:
        def make() -> Trial:
            tell(cell, "started", "")
            trial = self._started(cell)
            self._trained[cell.run] = (
                trial.model
            )  # the next in the lane begins before this one is scored
            return trial

        def failed(error: Exception) -> None:
            self._trained.pop(cell.run, None)
            _tell_failure(cell, error, tell)

        def done(trial: Trial, folder: RunFolder, clock: Clock) -> None:
            with folder:
                trial.write(folder, clock, floor=lambda: self._floor(trial), splits=self._splits)
            tell(cell, "done", "")

        return Job(
            make,
            lambda: RunFolder(self._cells),
            done,
            failed,
            lambda event: tell(cell, "event", str(event)),
        )

    def _started(self, cell: Cell) -> Trial:
        """Make a trial whose model starts from the planned one, and check that the samples are those of the plan."""
        trial = self.trial(cell)
        # A store or a folder of images may have changed in the hours since.
        if trial.config.digest != cell.digest or not all(
            same_samples(trial.samples, part) for part in trial.parts
        ):
            raise MismatchError(
                f"{trial.samples.where} changed while the sweep ran: run the same sweep again", []
            )
        if cell.start:
            other = self._trained.get(cell.start)
            if other is None:
                if not (self._cells / cell.start).is_dir():
                    raise Orphaned
                other = load(self._cells / cell.start)
            trial.model.start_from(other)
        return trial

    @property
    def _cells(self) -> Path:
        return self.given.out / CELLS

    @property
    def _splits(self) -> Path:
        return self.given.out / SPLITS

    def _floor(self, trial: Trial) -> tuple[Floors, str]:
        """Return the floor's scores on a split, which are fitted once for all models."""
        config = trial.config
        name = f"store-{config.fingerprint[:8]}" if config.store else f"pixels-{config.resolution}"
        (split, inner), samples = trial.parts, trial.config.samples_digest
        # A split's digest covers the ids in it, and not the images behind them.
        of = f"{samples[:16]}-{split.digest[:16]}-{inner.digest[:8]}-s{trial.seed}"
        path = self.given.out / FLOORS / f"{name}-{of}.json"
        if trial.name != "floor" and path.exists():
            content = json.loads(path.read_bytes())
            return {n: {m: Score(**s) for m, s in f.items()} for n, f in content.items()}, ""
        found = trial.floor()
        floors = found[0]
        if trial.name == "floor" and not self.given.params.get("floor"):
            # Others are compared with the floor with its defaults.
            floors = trial.scores
        if floors:
            make_folder(path.parent)
            content = {n: {m: asdict(s) for m, s in f.items()} for n, f in floors.items()}
            replace(path, json.dumps(content).encode())  # in this order: the first is the main one
        return found


def why(error: BaseException) -> str:
    """Describe in one line why a cell failed."""
    text = " ".join(str(error).split())
    return text if isinstance(error, SamtlError) else f"{type(error).__name__}: {text}"


def _tell_failure(cell: Cell, error: Exception, tell: Tell) -> None:
    if isinstance(error, Orphaned):
        tell(cell, "orphaned", "")
    else:
        tell(cell, "failed", why(error))


def cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# In a worker process
_worker: Worker
_messages: Any


def begin(given: Given, messages: Any, threads: int) -> None:
    """Prepare a worker process, which puts (number of a cell, what, text) into the queue `messages`."""
    global _worker, _messages
    torch.set_num_threads(threads)
    threadpool_limits(threads)
    _worker, _messages = Worker(given), messages
    messages.put((-1, "begun", ""))


def perform(unit: Unit) -> None:
    """Train a unit in a worker process."""
    sent = 0.0

    def tell(cell: Cell, what: str, text: str) -> None:
        nonlocal sent
        if what == "event" and time.monotonic() - sent < _BETWEEN:
            return
        sent = time.monotonic()
        _messages.put((cell.number, what, text[:_LONGEST]))

    _worker.perform(unit, tell)
