"""Train many heads on grids of features at once: each pass over the store serves all of them.

A pass reads every row that a head needs, once, in the order of `samtl.experiment.features`. In a pass, a head learns
from its training rows, its state at the end of the last pass is judged on its validation rows, and a head whose
training has ended predicts its held-out rows. So an epoch costs one pass, however many heads there are.

The result is that of a head that is trained alone, to the last bit.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samtl._runtime import bounded, prefetch
from samtl.errors import SamtlError
from samtl.experiment.features import (
    AT_ONCE,
    Pool,
    Targets,
    moments_of,
    read_features,
    wanted_in,
    window_rows,
    windows_of,
)
from samtl.experiment.run import RunFolder
from samtl.heads.grid import STATISTICS_ROWS, GridHead
from samtl.heads.training.trainer import Tally, isolated
from samtl.store.reader import Store
from samtl.store.reader.views import samples_of
from samtl.sweep.plan import Cell

if TYPE_CHECKING:
    from samtl.sweep.worker import Worker

Rows = NDArray[np.int64]


def fit_together(store: Store, array: str, lanes: Sequence[Sequence[Cell]], worker: Worker) -> None:
    """Train heads on one array of a store, `grid` or `dense`.

    Lanes go on side by side; within one, a cell begins when the one before is trained. The worker makes the trial of
    a cell when its turn has come, and is told of its run, or of what was raised instead.
    """
    stream = _Stream(store, array)
    waiting = [list(cells) for cells in lanes]
    fits: list[list[_Fit]] = [[] for _ in lanes]

    def each(work: Callable[..., None], *arguments: object) -> None:
        for lane in fits:
            for fit in list(lane):
                try:
                    work(fit, *arguments)
                except Exception as error:
                    fit.end()
                    worker.fail(fit.cell, error)
                if fit.ended:
                    lane.remove(fit)

    try:
        with isolated(0):
            while True:
                for cells, lane in zip(waiting, fits, strict=True):
                    while cells and all(fit.trained for fit in lane):
                        cell = cells.pop(0)
                        try:
                            lane.append(_Fit(stream, cell, worker))
                        except Exception as error:
                            worker.fail(cell, error)
                wanted = [fit.wanted() for lane in fits for fit in lane]
                if not wanted:
                    return
                asked = time.perf_counter()
                for window in stream.windows(np.logical_or.reduce(wanted)):
                    each(_Fit.take, window, (time.perf_counter() - asked) / len(wanted))
                    asked = time.perf_counter()
                each(_Fit.end_pass)
    finally:
        each(_Fit.end)


@dataclass(frozen=True)
class _Window:
    """Rows in memory; `lost` holds the errors of rows that could not be read."""

    rows: Rows
    inputs: Tensor
    targets: Tensor
    lost: Mapping[int, SamtlError]


class _Stream:
    """Reads rows of a store in windows, one ahead."""

    def __init__(self, store: Store, array: str) -> None:
        self.store, self.array = store, array
        labels = None if store.task == "segmentation" else samples_of(store, array).labels
        self.targets = Targets(store, array, labels)
        self.size = window_rows(store, array)
        self._windows = windows_of(store, array)
        self._moments: dict[int, Tensor] = {}

    def windows(self, wanted: NDArray[np.bool_]) -> Iterator[_Window]:
        """Yield the wanted rows, ascending within a window; windows are cut before unwanted rows are left out."""
        return prefetch(self._window, wanted_in(self._windows, wanted))

    def _window(self, rows: Rows) -> _Window:
        try:
            return _Window(rows, self.read(rows), self.targets.read(rows), {})
        except SamtlError:
            pass
        lost: dict[int, SamtlError] = {}
        for row in rows.tolist():
            try:
                self.read(np.array([row]))
                self.targets.read(np.array([row]))
            except SamtlError as error:
                lost[row] = error
        rows = rows[~np.isin(rows, [*lost])]
        return _Window(rows, self.read(rows), self.targets.read(rows), lost)

    def read(self, rows: Rows) -> Tensor:
        return read_features(self.store, self.array, rows)

    def moments(self, rows: Rows) -> Tensor:
        """Return the mean of the `moments` of some rows; each row is read once for all heads."""
        missing = np.array([row for row in rows.tolist() if row not in self._moments], dtype=int)
        found = moments_of(self.store, self.array, missing)
        self._moments.update(zip(missing.tolist(), found, strict=True))
        return torch.stack([self._moments[row] for row in rows.tolist()]).mean(0)


class _Fit:
    """One head: trained a pass at a time; in the pass after the last, it predicts its held-out rows."""

    def __init__(self, stream: _Stream, cell: Cell, worker: Worker) -> None:
        self.cell, self.worker, self.trial = cell, worker, worker.begin(cell)
        self.ended = False
        self.folder: RunFolder | None = None  # once it is trained
        self.clock = worker.clock(cell)
        store, split = stream.store, self.trial.split
        # Place of a row in each part, else -1
        self._learnt, self._judged, self._held_out = (
            _places(len(store), rows) for rows in (split.train, split.validation, split.test)
        )
        assert isinstance(self.trial.model, GridHead)
        self._head = head = self.trial.model
        with self.clock.spending("fit"):
            self.trial.check()
            classes = list(range(len(self.trial.samples.classes)))
            head.adopt(store.task, classes, store.shape(stream.array)[1:])
            with self.trial.refusing():
                statistics = stream.moments(split.train[:STATISTICS_ROWS])
                codes = self.trial.samples.labels[split.train]
                self._trainer = head.begin(len(split.train), statistics, self.clock.on_event, codes)
        batch, n = self._trainer.recipe.batch_size, len(split.train)
        self._learning = Pool(batch, min(stream.size, n), self._trainer.order)
        self._judging = Pool(self._trainer.judged_at_once, 0, None)
        self._passes = 0  # that were learnt from
        # The last of them, which is judged in the next pass
        self._sealed, self._tally = Tally(), Tally()
        self._frozen = copy.deepcopy(self._trainer.model)

    @property
    def trained(self) -> bool:
        """Whether it has only to predict."""
        return self.folder is not None

    @property
    def _learns(self) -> bool:
        return self._passes < self._trainer.recipe.epochs

    def wanted(self) -> NDArray[np.bool_]:
        """Return which rows of the store are needed in this pass."""
        if self.trained:
            return self._held_out >= 0
        return (self._learns & (self._learnt >= 0)) | ((self._passes > 0) & (self._judged >= 0))

    def take(self, window: _Window, waited: float) -> None:
        """Use the rows of a window."""
        for row, error in window.lost.items():
            if self.wanted()[row]:
                raise error
        if self.folder is not None:
            with self.clock.spending("score"):
                self._predict(window, self.folder)
            return
        self._trainer.waited += waited
        self.clock.add("read", waited)
        remedy = "lower --batch-size, or train fewer heads at once with --jobs 1"
        with self.clock.spending("fit"), bounded("training", remedy):
            self._learn(window)

    def _learn(self, window: _Window) -> None:
        if self._learns:
            mine = np.flatnonzero(self._learnt[window.rows] >= 0)
            self._learning.add(window.inputs[mine], window.targets[mine])
            self._take_steps()
        if self._passes:
            mine = np.flatnonzero(self._judged[window.rows] >= 0)
            self._judging.add(window.inputs[mine], window.targets[mine])
            self._judge()

    def _take_steps(self, last: bool = False) -> None:
        for inputs, targets in self._learning.batches(last):
            self._trainer.learn(inputs, targets.long())

    def _judge(self, last: bool = False) -> None:
        for inputs, targets in self._judging.batches(last):
            self._trainer.judge(self._frozen, self._tally, inputs, targets.long())

    def _predict(self, window: _Window, folder: RunFolder) -> None:
        positions = self._held_out[window.rows]
        mine = np.flatnonzero(positions >= 0)
        at_once = AT_ONCE[self.trial.samples.task]
        for start in range(0, len(mine), at_once):
            some = mine[start : start + at_once]
            self.trial.answer(positions[some], window.inputs[some].numpy(), folder)

    def end_pass(self) -> None:
        """Finish an epoch, or the run."""
        if self.folder is not None:
            self.worker.done(self.cell, self.trial.write(self.folder, self.clock))
            self.end()
            return
        with self.clock.spending("fit"):
            trainer = self._trainer
            self._take_steps(last=True)
            if self._passes:
                self._judge(last=True)
                trainer.settle(self._sealed, self._tally, self._frozen.state_dict())
            if not trainer.finished:
                self._sealed, self._tally = trainer.seal(), Tally()
                self._frozen.load_state_dict(trainer.model.state_dict())
                self._passes += 1
            if trainer.diverged:
                trainer.settle(self._sealed, self._tally, self._frozen.state_dict())
        if trainer.finished:
            self._head.finish(trainer)
            self.folder = RunFolder(self.worker.cells)

    def end(self) -> None:
        """Remove the unfinished folder."""
        self.ended = True
        if self.folder is not None:
            self.folder.__exit__(None, None, None)


def _places(n: int, rows: Rows) -> Rows:
    found = np.full(n, -1, dtype=np.int64)
    found[rows] = np.arange(len(rows))
    return found
