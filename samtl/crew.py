"""Processes that work off the units of a sweep, each with its share of the cores."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from samtl.cells import Cell, Given, Tell, Unit, Workshop

_LOOK = 0.5  # seconds between looks at whether the others are alive


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
        See `samtl.cells.Tell`; called in this process. Of a cell whose process was killed it is told that it failed.
    """
    if jobs == 1:
        shop = Workshop(given)
        for unit in units:
            shop.perform(unit, tell)
        return
    _Crew(units, given, jobs, tell).run()


class _Crew:
    def __init__(self, units: Sequence[Unit], given: Given, jobs: int, tell: Tell) -> None:
        self.given, self.jobs, self.tell = given, jobs, tell
        self.context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
        self.told: Any = self.context.Queue()
        self.units = list(units)
        self.cells = {cell.number: cell for unit in units for cell in unit.cells}
        self.busy: dict[int, tuple[BaseProcess, Any, Unit | None]] = {}
        self.settled: set[int] = set()

    def run(self) -> None:
        try:
            for pid in [self._hire() for _ in range(min(self.jobs, len(self.units)))]:
                self._order(pid)
            while self.busy:
                self._listen()
                self._look_after()
        finally:
            for process, _, _ in self.busy.values():
                process.terminate()
            for process, _, _ in self.busy.values():
                process.join()

    def _hire(self) -> int:
        orders = self.context.SimpleQueue()
        threads = max(1, cores() // self.jobs)
        process = self.context.Process(
            target=_serve, args=(self.given, threads, orders, self.told, os.getpid()), daemon=True
        )
        process.start()
        assert process.pid is not None
        self.busy[process.pid] = (process, orders, None)
        return process.pid

    def _order(self, pid: int) -> None:
        """Give a process its next unit, or send it home."""
        process, orders, _ = self.busy[pid]
        unit = self.units.pop(0) if self.units else None
        self.busy[pid] = (process, orders, unit)
        orders.put(unit)

    def _listen(self) -> None:
        try:
            pid, number, what, text = self.told.get(timeout=_LOOK)
        except queue.Empty:
            return
        if what == "ready":
            self._order(pid)
            return
        if what in ("done", "failed"):
            self.settled.add(number)
        self.tell(self.cells[number], what, text)

    def _look_after(self) -> None:
        for pid, (process, _, unit) in list(self.busy.items()):
            if process.is_alive() or not self.told.empty():
                continue
            process.join()
            del self.busy[pid]
            if unit is None:
                continue
            # Killed, or out of memory: what it was at is lost, the rest is tried by another.
            left = [
                [cell for cell in lane if cell.number not in self.settled] for lane in unit.lanes
            ]
            for lane in left:
                if lane:
                    lost = lane.pop(0)
                    self.settled.add(lost.number)
                    self.tell(lost, "failed", _ended(process.exitcode))
            if rest := tuple(tuple(lane) for lane in left if lane):
                self.units.insert(0, Unit(rest))
            if self.units:
                self._order(self._hire())


def _ended(code: int | None) -> str:
    how = f"by signal {-code}" if code is not None and code < 0 else f"with code {code}"
    return f"its process was ended {how}; where memory is short, fewer --jobs need less"


def _serve(given: Given, threads: int, orders: Any, told: Any, parent: int) -> None:
    """Work off units until there are none; the first was ordered when the process was started."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    torch.set_num_threads(threads)
    pid = os.getpid()

    def tell(cell: Cell, what: str, text: str) -> None:
        told.put((pid, cell.number, what, text))

    with threadpool_limits(threads):
        shop = Workshop(given)
        while (unit := orders.get()) is not None:
            shop.perform(unit, tell)
            told.put((pid, -1, "ready", ""))


def _watch(parent: int, end: Callable[[int], None] = os._exit) -> None:
    """End when the parent is gone: one that was killed cannot say so."""
    while os.getppid() == parent:
        time.sleep(_LOOK)
    end(1)
