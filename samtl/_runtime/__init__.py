"""What long-running verbs share: prefetching, task pools, memory, signals, and how quantities are written."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import itertools
import multiprocessing
import os
import pickle
import re
import resource
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent import futures
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import FrameType
from typing import Any, TypeVar

from samtl.errors import InputError, ResourceError

Task = TypeVar("Task")
Result = TypeVar("Result")

_SPAWN = multiprocessing.get_context("spawn")  # threads and CUDA do not survive a fork
_link: Link  # in a worker process


def prefetch(
    work: Callable[[Task], Result], items: Iterable[Task], workers: int = 1, depth: int = 2
) -> Generator[Result, None, None]:
    """Map `work` over `items` in threads and yield the results in order.

    `depth` results are in work or waiting before the first is taken, later one less: with 2, the next result is made
    while the last one is in use. An exception of `work` is raised when its result is taken.
    """
    coming = iter(items)
    with futures.ThreadPoolExecutor(workers, thread_name_prefix="prefetch") as pool:
        waiting = deque(pool.submit(work, item) for item in itertools.islice(coming, depth))
        try:
            while waiting:
                yield waiting.popleft().result()
                waiting.extend(pool.submit(work, item) for item in itertools.islice(coming, 1))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


class Link:
    """What a worker process has of the one that started it."""

    def __init__(self, stop: Any) -> None:
        self.messages, self._stop = _SPAWN.SimpleQueue(), stop

    def send(self, message: Any) -> None:
        """Send a message of less than 4 KiB: a worker that is killed leaves no part of it in the pipe."""
        self.messages.put(message)

    def stopped(self) -> bool:
        """Return whether the worker is asked to end its task."""
        return bool(self._stop.value)


def run_tasks(
    work: Callable[[Task, Link], Result],
    tasks: Iterable[Task],
    workers: int,
    *,
    instead: str,
    on_message: Callable[[Any], object] = lambda message: None,
    on_loss: Callable[[], object] = lambda: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[Task, Result | BaseException]]:
    """Run `work` over `tasks` in worker processes and yield each task with its result or exception, as they complete.

    Each worker gets a copy of `work`, a function or method of a module. Tasks are taken when a worker is free.
    `on_message` is called with what workers send, and `should_stop` asked about five times a second.

    If a worker dies, `on_loss` is called, and the tasks that were in flight run again one by one, in a process each;
    a task that kills that one too yields a `BrokenExecutor`, and the rest goes on. Closing the generator kills the
    workers. Raises InputError, which names what to do `instead`, if `work` cannot be pickled or no worker ever begins.
    """
    try:
        pickled = pickle.dumps(work)
    except (AttributeError, TypeError, pickle.PicklingError) as error:
        raise InputError(
            f"the dataset cannot be sent to another process ({error}): its functions must be those of a module, or "
            f"{instead}"
        ) from error
    pools = _Pools(pickled, on_message, should_stop)
    waiting = iter(tasks)
    while lost := (yield from pools.run(waiting, workers)):
        on_loss()
        for task in lost:
            for killer in (yield from pools.run(iter([task]), 1)):
                if not pools.begun:
                    raise InputError(
                        'a worker process ended before it began: a script needs `if __name__ == "__main__":` around '
                        f"what starts processes; if it has that, {instead}"
                    )
                yield killer, futures.BrokenExecutor("the worker process was killed")


class _Pools:
    """The process pools of `run_tasks`, one after the other."""

    def __init__(
        self, work: bytes, on_message: Callable[[Any], object], should_stop: Callable[[], bool]
    ) -> None:
        self.work, self.on_message, self.should_stop = work, on_message, should_stop
        self.stop = _SPAWN.RawValue(ctypes.c_bool, False)  # has no lock that a killed worker keeps
        self.begun = False  # whether a worker ever got as far as working

    def run(
        self, tasks: Iterator[Any], workers: int
    ) -> Generator[tuple[Any, Any], None, list[Any]]:
        """Run tasks until they end or a worker dies; return the tasks that were lost with it."""
        link = Link(self.stop)  # new for each pool: a killed worker may keep the lock of the queue
        executor = process_pool(workers, _begin_tasks, (link,))
        running: dict[futures.Future[Any], Any] = {}
        lost: list[Any] = []
        try:
            while True:
                for task in () if lost else itertools.islice(tasks, workers - len(running)):
                    # Processes that start now leave Ctrl-C to this one from their first moment.
                    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
                    try:
                        running[executor.submit(_perform, self.work, task)] = task
                    except futures.BrokenExecutor:
                        lost.append(task)
                    finally:
                        signal.pthread_sigmask(signal.SIG_SETMASK, before)
                done = futures.wait(running, 0.2, futures.FIRST_COMPLETED).done
                if not running:
                    executor.shutdown()
                self._listen(link)
                if not running:
                    return lost
                for future in done:
                    task, error = running.pop(future), future.exception()
                    if isinstance(error, futures.BrokenExecutor):
                        lost.append(task)
                    else:
                        yield task, error or future.result()
        finally:
            # Python 3.14 has ProcessPoolExecutor.kill_workers for this.
            for process in list((getattr(executor, "_processes", None) or {}).values()):
                if running:
                    process.kill()
            executor.shutdown(cancel_futures=True)

    def _listen(self, link: Link) -> None:
        while not link.messages.empty():
            message = link.messages.get()
            self.begun = True
            if message is not None:
                self.on_message(message)
        self.stop.value = self.stop.value or self.should_stop()


def _begin_tasks(link: Link) -> None:
    global _link
    _link = link
    link.send(None)


def _perform(work: bytes, task: Any) -> Any:
    return _loaded(work)(task, _link)


@functools.lru_cache(1)
def _loaded(work: bytes) -> Any:
    # It comes with each task, for one that is given at the start blocks this process if the worker dies before.
    return pickle.loads(work)


def process_pool(
    workers: int, initializer: Callable[..., object] | None = None, arguments: tuple[Any, ...] = ()
) -> futures.ProcessPoolExecutor:
    """Make an executor of spawned processes, which ignore Ctrl-C and end with this process, even if it is killed."""
    return futures.ProcessPoolExecutor(workers, _SPAWN, _begin_worker, (initializer, arguments))


def _begin_worker(initializer: Callable[..., object] | None, arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    join = parent.join
    threading.Thread(target=lambda: (join(), os._exit(1)), daemon=True).start()
    if initializer is not None:
        initializer(*arguments)


def peak_memory() -> int:
    """Return the largest resident size of this process so far, in bytes."""
    status = Path("/proc/self/status")  # on Linux, where ru_maxrss starts at the parent's size
    if status.exists() and (found := re.search(r"VmHWM:\s*(\d+) kB", status.read_text())):
        return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def machine_memory() -> int:
    """Return the bytes of memory that this process may use: the machine's, or its control group's limit."""
    found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    groups = Path("/proc/self/cgroup")
    for line in groups.read_text().splitlines() if groups.exists() else ():
        _, controllers, name = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, file = ("memory", "memory.limit_in_bytes") if controllers else ("", "memory.max")
        for group in (PurePosixPath(name), *PurePosixPath(name).parents):
            with suppress(OSError, ValueError):  # "max" means no limit
                limit = Path("/sys/fs/cgroup", root, str(group).lstrip("/"), file).read_text()
                found = min(found, int(limit))
    return found


def out_of_memory(error: RuntimeError) -> bool:
    """Return whether an error of torch is a lack of memory: CUDA has a class for it, MPS and the CPU only text."""
    import torch

    phrases = "out of memory|can't allocate memory|not enough memory|alloc_failed"
    found = re.search(phrases, str(error), re.IGNORECASE)
    return isinstance(error, torch.OutOfMemoryError) or found is not None


@contextmanager
def bounded(what: str, remedy: str) -> Iterator[None]:
    """Turn a lack of memory within a `with` block into a `ResourceError` that says what to do."""
    try:
        yield
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise ResourceError(f"{what} does not fit in memory; {remedy}") from error


class StopNow(BaseException):
    """Stop without waiting. Not a KeyboardInterrupt, which Typer would swallow silently."""

    def __init__(self, exit_code: int) -> None:
        self.exit_code = exit_code


class StopRequest:
    """Returns, if called, whether a signal came; `exit_code` is then 128 plus the signal's number, as in shells."""

    exit_code = 0

    def __call__(self) -> bool:
        return self.exit_code != 0


@contextmanager
def polite_stop(announcement: str = "") -> Iterator[StopRequest]:
    """Turn the first SIGINT, SIGTERM or SIGHUP into a request, and the next one into `StopNow`.

    The request is announced on standard error. Without an announcement, the first one becomes `StopNow`. A SIGHUP that
    is ignored, as under nohup, stays ignored.
    """
    request = StopRequest()

    def handle(number: int, frame: FrameType | None) -> None:
        if request() or not announcement:
            raise StopNow(128 + number)
        request.exit_code = 128 + number
        # Straight to the descriptor: a handler may run in the middle of another write to the stream. On a terminal it
        # takes the place of the line with the progress and with the ^C that the terminal has echoed.
        begin = "\r\x1b[2K" if os.isatty(2) else "\n"
        os.write(2, f"{begin}{announcement}\n".encode())

    before = {
        number: signal.signal(number, handle)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if (number, signal.getsignal(number)) != (signal.SIGHUP, signal.SIG_IGN)
    }
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def stop_at_once() -> Iterator[None]:
    """Turn SIGINT, SIGTERM and SIGHUP into `StopNow`, which removes what is half-written on its way."""
    with polite_stop():
        yield


@dataclass(frozen=True)
class Note:
    """One line that the user should know."""

    text: str

    def __str__(self) -> str:
        return self.text


def size(count: float) -> str:
    """Write a number of bytes with a binary unit."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} TiB"


def duration(seconds: float) -> str:
    """Write a time span in its one or two largest units."""
    if seconds < 10:
        return f"{round(seconds, 2):.2g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(hours, "h"), (minutes, "min"), (0 if hours else rest, "s")]
    return " ".join(f"{count} {unit}" for count, unit in parts if count)


def hash_order(sample_ids: Sequence[str]) -> list[int]:
    """Return the positions of samples in the order of their ids' sha256: mixed classes, reproducible."""
    digests = [hashlib.sha256(sample_id.encode()).digest() for sample_id in sample_ids]
    return sorted(range(len(digests)), key=digests.__getitem__)
