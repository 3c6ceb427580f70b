"""Train many heads on grids of features at once: each pass over the store serves all of them.

A pass reads every row that a head needs, once, in windows of blocks whose order is fixed for a store. In a pass, a head
learns from its training rows, its state at the end of the last pass is judged on its validation rows, and a head whose
training has ended predicts its held-out rows. So an epoch costs one pass, however many heads there are.

The result of a head does not depend on which others share its passes, so a resumed sweep ends as an uninterrupted one.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samtl._runtime import bounded, prefetch
from samtl.errors import SamtlError
from samtl.experiment.clock import Clock, OnEvent
from samtl.experiment.features import AT_ONCE, Targets, read_features, window_rows
from samtl.experiment.run import RunFolder
from samtl.experiment.trial import Trial
from samtl.heads.grid import STATISTICS_ROWS, GridHead, moments
from samtl.heads.trainer import Tally, isolated
from samtl.store.format import BLOCK_ROWS
from samtl.store.reader import Store

Rows = NDArray[np.int64]

ORDER = 0  # seed of the order of blocks, which must not depend on when a head began


@dataclass
class Job:
    """One head to be trained."""

    make: Callable[[], Trial]  #: makes the trial when its turn has come
    folder: Callable[[], RunFolder]
    done: Callable[[Trial, RunFolder, Clock], None]  #: writes the run, once all is predicted
    failed: Callable[[Exception], None]  #: called with what was raised instead
    on_event: OnEvent = field(default=lambda event: None)


def fit_together(store: Store, array: str, lanes: Sequence[Sequence[Job]]) -> int:
    """Train heads on one array of a store.

    Parameters
    ----------
    store : Store
    array : str
        `grid` or `dense`.
    lanes : sequence of sequence of Job
        Lanes go on side by side; within one, a job begins when the one before is trained.

    Returns
    -------
    int
        Bytes of features that were read.
    """
    stream = _Stream(store, array)
    active = every = [_Lane(stream, jobs) for jobs in lanes]
    try:
        with isolated(0):
            while active := [lane for lane in active if lane.begin_pass()]:
                wanted = np.logical_or.reduce([lane.wanted() for lane in active])
                learnt_from = np.logical_or.reduce([lane.targets_wanted() for lane in active])
                asked = time.perf_counter()
                for window in stream.windows(wanted, learnt_from):
                    waited = (time.perf_counter() - asked) / len(active)
                    for lane in active:
                        lane.take(window, waited)
                    asked = time.perf_counter()
                for lane in active:
                    lane.end_pass()
    finally:
        for lane in every:
            lane.abandon()
    return stream.bytes


@dataclass(frozen=True)
class _Window:
    """Rows in memory: `targets` are those of `rows[learnt]`; `lost` holds the errors of rows that could not be read."""

    rows: Rows
    inputs: Tensor
    learnt: NDArray[np.bool_]
    targets: Tensor
    lost: Mapping[int, SamtlError]

    def require(self, needed: NDArray[np.bool_]) -> None:
        """Raise the error of one of these rows of the store, if it could not be read."""
        for row, error in self.lost.items():
            if needed[row]:
                raise error


class _Stream:
    """Reads rows of a store in windows, one ahead, and counts the bytes."""

    def __init__(self, store: Store, array: str) -> None:
        self.store, self.array = store, array
        self.task = store.task
        labels = None if self.task == "segmentation" else np.asarray(store.labels, dtype=np.int64)
        self.targets = Targets(store, array, labels)
        self.size = window_rows(store, array)
        blocks = -(-len(store) // BLOCK_ROWS)
        order = np.random.default_rng(ORDER).permutation(blocks)
        rows = (order[:, None] * BLOCK_ROWS + np.arange(BLOCK_ROWS)).ravel()
        self._order = rows[rows < len(store)]
        self._moments: dict[int, Tensor] = {}
        self.bytes = 0

    def windows(
        self, wanted: NDArray[np.bool_], learnt_from: NDArray[np.bool_]
    ) -> Iterator[_Window]:
        """Yield the wanted rows, ascending within a window; windows are cut before unwanted rows are left out."""
        cut = [self._order[i : i + self.size] for i in range(0, len(self._order), self.size)]
        kept = [np.sort(rows[wanted[rows]]) for rows in cut]

        def load(rows: Rows) -> _Window:
            try:
                return self._load(rows, learnt_from, {})
            except SamtlError:
                # A row that is damaged ends only the heads that need it.
                lost = self._lost(rows, learnt_from)
                there = np.array([row for row in rows.tolist() if row not in lost], dtype=np.int64)
                return self._load(there, learnt_from, lost)

        return prefetch(load, [rows for rows in kept if len(rows)])

    def _load(
        self, rows: Rows, learnt_from: NDArray[np.bool_], lost: Mapping[int, SamtlError]
    ) -> _Window:
        learnt = learnt_from[rows]
        return _Window(rows, self.read(rows), learnt, self.targets.read(rows[learnt]), lost)

    def _lost(self, rows: Rows, learnt_from: NDArray[np.bool_]) -> dict[int, SamtlError]:
        found: dict[int, SamtlError] = {}
        for row in rows:
            try:
                self._load(np.array([row]), learnt_from, {})
            except SamtlError as error:
                found[int(row)] = error
        return found

    def read(self, rows: Rows) -> Tensor:
        inputs = read_features(self.store, self.array, rows)
        self.bytes += inputs.nbytes
        return inputs

    def moments(self, rows: Rows) -> Tensor:
        """Return the mean of the `moments` of some rows; each row is read once for all heads."""
        missing = np.array([row for row in rows.tolist() if row not in self._moments], dtype=int)
        at_once = max(BLOCK_ROWS, self.size // 4)
        for start in range(0, len(missing), at_once):
            part = missing[start : start + at_once]
            self._moments.update(zip(part.tolist(), moments(self.read(part)), strict=True))
        return torch.stack([self._moments[row] for row in rows.tolist()]).mean(0)


class _Lane:
    """Heads that are trained one after the other."""

    def __init__(self, stream: _Stream, jobs: Sequence[Job]) -> None:
        self.stream, self.jobs = stream, list(jobs)
        self.training: _Training | None = None
        self.scoring: _Scoring | None = None

    def begin_pass(self) -> bool:
        """Begin the next job if the last is trained; return whether there is anything left to do."""
        while self.training is None and self.jobs:
            job = self.jobs.pop(0)
            try:
                self.training = _Training(self.stream, job)
            except Exception as error:
                job.failed(error)
        return self.training is not None or self.scoring is not None

    def wanted(self) -> NDArray[np.bool_]:
        """Return which rows of the store are needed in this pass."""
        found = np.zeros(len(self.stream.store), dtype=bool)
        if self.training is not None:
            found |= self.training.wanted()
        if self.scoring is not None:
            found |= self.scoring.position >= 0
        return found

    def targets_wanted(self) -> NDArray[np.bool_]:
        """Return which rows are needed with their targets."""
        if self.training is None:
            return np.zeros(len(self.stream.store), dtype=bool)
        return self.training.wanted()

    def take(self, window: _Window, waited: float) -> None:
        """Use the rows of a window."""
        training, scoring = self.training, self.scoring
        if training and not self._safely(training.job, lambda: training.take(window, waited)):
            self.training = None
        if scoring and not self._safely(scoring.job, lambda: scoring.take(window)):
            scoring.abandon()
            self.scoring = None

    def end_pass(self) -> None:
        """Finish the pass."""
        if self.scoring is not None:
            scoring, self.scoring = self.scoring, None
            if not self._safely(scoring.job, scoring.end):
                scoring.abandon()
        if self.training is not None:
            training = self.training
            if not self._safely(training.job, training.end_pass):
                self.training = None
            elif training.trainer.finished:
                self.training = None
                self._safely(training.job, lambda: self._score(training))

    def _score(self, training: _Training) -> None:
        self.scoring = _Scoring(self.stream, training)

    def abandon(self) -> None:
        """Remove the unfinished folder if the work was interrupted."""
        if self.scoring is not None:
            self.scoring.abandon()

    @staticmethod
    def _safely(job: Job, work: Callable[[], None]) -> bool:
        try:
            work()
        except Exception as error:
            job.failed(error)
            return False
        return True


class _Training:
    """One head being trained, a pass at a time."""

    def __init__(self, stream: _Stream, job: Job) -> None:
        self.job, self.trial = job, job.make()
        self.clock = Clock(job.on_event)
        with self.clock.spending("fit"):
            self._begin(stream)

    def _begin(self, stream: _Stream) -> None:
        head = self.trial.model
        assert isinstance(head, GridHead)
        store, inner = stream.store, self.trial.parts.inner
        self.learnt, self.judged = (_mask(store, rows) for rows in (inner.train, inner.test))
        self.trial.check()
        head.adopt(
            stream.task, list(range(len(self.trial.samples.classes))), store.shape(stream.array)[1:]
        )
        with self.trial.refusing():
            self.trainer = head.begin(
                len(inner.train), stream.moments(inner.train[:STATISTICS_ROWS]), self.job.on_event
            )
        self.head = head
        self._pool = _Pool(stream, self.trainer.recipe.batch_size, len(inner.train))
        self._frozen = copy.deepcopy(self.trainer.model)
        self._sealed: Tally | None = None
        self._judged = Tally()
        self._epochs = 0

    def wanted(self) -> NDArray[np.bool_]:
        """Return which rows are learnt from or judged on in this pass."""
        found = np.zeros_like(self.learnt)
        if self._epochs < self.trainer.recipe.epochs:
            found |= self.learnt
        if self._sealed is not None:
            found |= self.judged
        return found

    def take(self, window: _Window, waited: float) -> None:
        window.require(self.wanted())
        self.trainer.waited += waited
        self.clock.add("read", waited)
        with self.clock.spending("fit"):
            self._take(window)

    def _take(self, window: _Window) -> None:
        rows, trainer = window.rows[window.learnt], self.trainer
        offset = np.flatnonzero(window.learnt)
        with bounded("training", "lower --batch-size, or train fewer heads at once with --jobs 1"):
            if self._epochs < trainer.recipe.epochs:
                mine = np.flatnonzero(self.learnt[rows])
                for inputs, targets in self._pool.add(window, offset[mine], mine, trainer.order):
                    trainer.learn(inputs, targets)
            if self._sealed is not None:
                mine = np.flatnonzero(self.judged[rows])
                for part in np.split(mine, range(64, len(mine), 64)) if len(mine) else []:
                    inputs, targets = window.inputs[offset[part]], window.targets[part].long()
                    trainer.judge(self._frozen, self._judged, inputs, targets)

    def end_pass(self) -> None:
        with self.clock.spending("fit"):
            self._end_pass()

    def _end_pass(self) -> None:
        trainer = self.trainer
        for inputs, targets in self._pool.rest(trainer.order):
            trainer.learn(inputs, targets)
        if self._sealed is not None:
            trainer.settle(self._sealed, self._judged, self._frozen.state_dict())
        if not trainer.finished:
            self._sealed, self._judged = trainer.seal(), Tally()
            self._frozen.load_state_dict(trainer.model.state_dict())
            self._epochs += 1
            if trainer.diverged:
                trainer.settle(self._sealed, self._judged, self._frozen.state_dict())


class _Pool:
    """Collects a head's rows until there are as many as a window holds, and yields them in random batches."""

    def __init__(self, stream: _Stream, batch: int, n: int) -> None:
        self.batch = batch
        self.capacity = max(batch, min(stream.size, n))
        self._inputs: list[Tensor] = []
        self._targets: list[Tensor] = []
        self._n = 0

    def add(
        self, window: _Window, at: Rows, which: Rows, order: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Add rows `at` of a window, whose targets are at `which`; yield full batches if there are enough rows."""
        if len(at):
            self._inputs.append(window.inputs[at])
            self._targets.append(window.targets[which])
            self._n += len(at)
        if self._n >= self.capacity:
            yield from self._batches(order, self._n - self._n % self.batch)

    def rest(self, order: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield all that is left; the last batch may be smaller."""
        if self._n:
            yield from self._batches(order, self._n)

    def _batches(self, order: torch.Generator, n: int) -> Iterator[tuple[Tensor, Tensor]]:
        inputs, targets = torch.cat(self._inputs), torch.cat(self._targets)
        chosen = torch.randperm(self._n, generator=order)
        left = chosen[n:]
        self._inputs, self._targets = [inputs[left]], [targets[left]]
        self._n = len(left)
        for some in torch.split(chosen[:n], self.batch):
            yield inputs[some], targets[some].long()


class _Scoring:
    """A trained head that predicts its held-out rows."""

    def __init__(self, stream: _Stream, training: _Training) -> None:
        self.job, self.trial, self.clock = training.job, training.trial, training.clock
        training.head.finish(training.trainer)
        rows = self.trial.parts.split.test
        self.position = np.full(len(stream.store), -1, dtype=np.int64)
        self.position[rows] = np.arange(len(rows))
        self.folder = self.job.folder()
        self.at_once = AT_ONCE[stream.task]

    def take(self, window: _Window) -> None:
        window.require(self.position >= 0)
        positions = self.position[window.rows]
        mine = np.flatnonzero(positions >= 0)
        with self.clock.spending("score"):
            for part in np.split(mine, range(self.at_once, len(mine), self.at_once)):
                if len(part):
                    self.trial.answer(positions[part], window.inputs[part].numpy(), self.folder)

    def end(self) -> None:
        self.job.done(self.trial, self.folder, self.clock)

    def abandon(self) -> None:
        self.folder.__exit__(None, None, None)


def _mask(store: Store, rows: Rows) -> NDArray[np.bool_]:
    found = np.zeros(len(store), dtype=bool)
    found[rows] = True
    return found
