"""Processes that work off the units of a sweep, each with its share of the cores."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from samtl._runtime import deaf_children, ended, serve_parent
from samtl.errors import InputError, ResourceError
from samtl.sweep.worker import (
    SETTLED,
    Cell,
    Given,
    Tell,
    Unit,
    Workshop,
)


def cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def work(units: Sequence[Unit], given: Given, jobs: int, tell: Tell) -> None:
    """Work off all units.

    Parameters
    ----------
    units : sequence of Unit
        Are begun in this order.
    given : Given
    jobs : int
        Processes at a time; with 1, the work is done in this one. Together they use as many threads as there are cores.
    tell : callable
        See `samtl.sweep.worker.Tell`; called in this process. A cell whose process was killed is reported as failed.

    Raises
    ------
    InputError
        Where a process does not get as far as working, as those of a script do that is not guarded.
    """
    if jobs == 1:
        shop = Workshop(given)
        for unit in units:
            shop.perform(unit, tell)
        return
    _Crew(units, given, jobs, tell).run()


@dataclass(eq=False)
class _Worker:
    """A process, the line to it, and what it is at; `ready` once it has asked for work."""

    process: BaseProcess
    line: Any
    unit: Unit | None = None
    ready: bool = False


class _Crew:
    """The parent's side. Each process has a line of its own: one that is killed can spoil no other's."""

    def __init__(self, units: Sequence[Unit], given: Given, jobs: int, tell: Tell) -> None:
        self.given, self.jobs, self.tell = given, jobs, tell
        self.context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
        self.units = list(units)
        self.cells = {cell.number: cell for unit in units for cell in unit.cells}
        self.busy: list[_Worker] = []
        self.started = False  # whether any process ever got as far as working
        self.settled: set[int] = set()
        self.lost: Counter[int] = Counter()

    def run(self) -> None:
        try:
            for _ in range(min(self.jobs, len(self.units))):
                self._hire()
            while self.busy:
                lines = {worker.line: worker for worker in self.busy}
                for line in connection.wait(list(lines)):
                    self._listen(lines[line])
        finally:
            for worker in self.busy:
                worker.process.terminate()
            for worker in self.busy:
                worker.process.join()

    def _hire(self) -> None:
        ours, theirs = self.context.Pipe()
        process = self.context.Process(target=_serve, args=(theirs,), daemon=True)
        try:
            with deaf_children():
                process.start()
        except BrokenPipeError as error:
            raise _unguarded() from error
        except OSError as error:
            raise ResourceError(
                f"no further process could be started: {error.strerror or error}; try fewer --jobs"
            ) from error
        theirs.close()  # so that the line ends when the process does
        self.busy.append(_Worker(process, ours))

    def _listen(self, worker: _Worker) -> None:
        try:
            number, what, text = worker.line.recv()
        except (EOFError, OSError):
            self._part(worker)
            return
        if what == "hello":
            self._hand_over(worker)
            return
        if what == "ready":
            worker.ready = self.started = True
            self._order(worker)
            return
        if what in SETTLED:
            self.settled.add(number)
        self.tell(self.cells[number], what, text)

    def _hand_over(self, worker: _Worker) -> None:
        """Give a process what it needs. Not at its start: that would wait for ever for one that dies meanwhile."""
        try:
            worker.line.send((self.given, max(1, cores() // self.jobs)))
        except (AttributeError, TypeError, pickle.PicklingError) as error:
            raise InputError(
                f"the dataset cannot be handed to another process ({error}): its functions must be those of a module, "
                "or jobs=1"
            ) from error
        except OSError:
            self._part(worker)

    def _order(self, worker: _Worker) -> None:
        """Give a process its next unit, or send it home."""
        worker.unit = self.units.pop(0) if self.units else None
        try:
            worker.line.send(worker.unit)
        except OSError:  # it ended meanwhile, and has begun on nothing
            self.units[:0] = [worker.unit] if worker.unit else []
            worker.unit = None
            self._part(worker)

    def _part(self, worker: _Worker) -> None:
        """Take note that a process has ended; another goes on with what it was at."""
        self.busy.remove(worker)
        worker.line.close()
        worker.process.join()
        if not self.started:
            raise _unguarded()
        if not worker.ready:
            if self.busy:
                return  # the others go on
            raise ResourceError(
                f"no further process could be started: {_ended(worker.process.exitcode)}"
            )
        if worker.unit is not None:
            # Killed, or out of memory: what it was at is tried once more, each lane by itself, before it is given up.
            for lane in worker.unit.lanes:
                left = [cell for cell in lane if cell.number not in self.settled]
                if left:
                    self.lost[left[0].number] += 1
                if left and self.lost[left[0].number] > 1:
                    given_up = left.pop(0)
                    self.settled.add(given_up.number)
                    self.tell(given_up, "failed", _ended(worker.process.exitcode))
                if left:
                    self.units.insert(0, Unit((tuple(left),)))
        if self.units and len(self.busy) < self.jobs:
            self._hire()


def _ended(code: int | None) -> str:
    return f"its process was ended {ended(code)}; where memory is short, fewer --jobs need less"


def _unguarded() -> InputError:
    return InputError(
        'a process of the sweep ended before it began: a script needs `if __name__ == "__main__":` around what starts '
        "a sweep with jobs above 1; where that is there, try jobs=1"
    )


def _serve(line: Any) -> None:
    """Work off units until there are none."""
    serve_parent()
    line.send((-1, "hello", ""))
    given, threads = line.recv()
    torch.set_num_threads(threads)

    def tell(cell: Cell, what: str, text: str) -> None:
        line.send((cell.number, what, text))

    with threadpool_limits(threads):
        shop = Workshop(given)
        line.send((-1, "ready", ""))
        while (unit := line.recv()) is not None:
            shop.perform(unit, tell)
            line.send((-1, "ready", ""))
