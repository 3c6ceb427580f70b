"""What long-running verbs share: prefetching, task pools, memory, signals, and how quantities are written."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import multiprocessing
import os
import re
import resource
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

from samtl.errors import EXIT_INTERRUPTED, ResourceError

if TYPE_CHECKING:
    import torch

_POLL = 0.2  # seconds between two calls of `idle`

Task = TypeVar("Task")
Result = TypeVar("Result")


def prefetch(
    work: Callable[[Task], Result], items: Iterable[Task], workers: int = 1, depth: int = 2
) -> Generator[Result, None, None]:
    """Map `work` over `items` in threads and yield the results in order.

    `depth` results are in work or waiting before the first is taken, later one less: with 2, the next result is made
    while the last one is in use. An exception of `work` is raised when its result is taken.
    """
    coming = iter(items)
    with ThreadPoolExecutor(workers, thread_name_prefix="prefetch") as pool:
        waiting = deque(pool.submit(work, item) for item in itertools.islice(coming, depth))
        try:
            while waiting:
                yield waiting.popleft().result()
                waiting.extend(pool.submit(work, item) for item in itertools.islice(coming, 1))
        finally:
            for future in waiting:
                future.cancel()


# Task pools
def run_tasks(
    work: Callable[[Task], Result],
    tasks: Iterable[Task],
    make_executor: Callable[[int], Executor],
    *,
    in_flight: int,
    idle: Callable[[], object] | None = None,
) -> Iterator[tuple[Task, Result | BaseException]]:
    """Run `work` over `tasks` on an executor and yield each task with its result or exception, as they complete.

    If a worker dies, the tasks that were in flight run again one by one, each in a new executor of one worker; a task
    that kills that one too yields a `BrokenExecutor`, and the rest goes on. Closing the generator kills the workers.

    Parameters
    ----------
    work : callable
        A function of a module, if the workers are processes.
    tasks : iterable
        Taken one at a time; it may end early, to stop after the tasks in flight.
    make_executor : callable
        Makes an executor of the given number of workers, such as `process_pool`.
    in_flight : int
        Number of workers, and of tasks that are submitted at the same time.
    idle : callable, optional
        Called about five times a second while tasks run.
    """
    waiting = iter(tasks)
    while True:
        lost = yield from _run_pool(work, waiting, make_executor(in_flight), in_flight, idle)
        if not lost:
            return
        for task in lost:
            again = yield from _run_pool(work, iter([task]), make_executor(1), 1, idle)
            for killer in again:
                yield killer, BrokenExecutor("the worker process was killed")


def _run_pool(
    work: Callable[[Task], Result],
    tasks: Iterator[Task],
    executor: Executor,
    in_flight: int,
    idle: Callable[[], object] | None,
) -> Generator[tuple[Task, Result | BaseException], None, list[Task]]:
    """Run tasks until they end or a worker dies; return the tasks that were lost with it."""
    running: dict[Future[Result], Task] = {}
    lost: list[Task] = []
    finished = False
    try:
        while not lost:
            for task in itertools.islice(tasks, in_flight - len(running)):
                try:
                    with deaf_children():
                        running[executor.submit(work, task)] = task
                except BrokenExecutor:
                    lost.append(task)
                    break
            if not running:
                break
            done = wait(
                running,
                None if idle is None else _POLL,
                "ALL_COMPLETED" if lost else FIRST_COMPLETED,
            ).done
            for future in done:
                task, error = running.pop(future), future.exception()
                if isinstance(error, BrokenExecutor):
                    lost.append(task)
                else:
                    yield task, error or future.result()
            if idle is not None:
                idle()
        finished = True
        return lost + list(running.values())
    finally:
        if not finished:  # Python 3.14 has ProcessPoolExecutor.kill_workers for this
            for process in list((getattr(executor, "_processes", None) or {}).values()):
                process.kill()
        executor.shutdown(wait=True, cancel_futures=True)


def process_pool(
    workers: int, initializer: Callable[..., object] | None = None, arguments: tuple[Any, ...] = ()
) -> ProcessPoolExecutor:
    """Make an executor of spawned processes, which ignore Ctrl-C and end with this process, even if it is killed."""
    context = multiprocessing.get_context("spawn")  # threads and CUDA do not survive a fork
    return ProcessPoolExecutor(workers, context, _begin_worker, (initializer, arguments))


def _begin_worker(initializer: Callable[..., object] | None, arguments: tuple[Any, ...]) -> None:
    serve_parent()
    if initializer is not None:
        initializer(*arguments)


@contextmanager
def deaf_children() -> Iterator[None]:
    """Block SIGINT in processes that are started within a `with` block, from their first moment on."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def serve_parent() -> None:
    """Ignore Ctrl-C in this worker process, and end it when its parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    join = parent.join
    threading.Thread(target=lambda: (join(), os._exit(1)), daemon=True).start()


def ended(code: int | None) -> str:
    """Describe an exit status, as the end of "the process ended ..."."""
    return f"by signal {-code}" if code is not None and code < 0 else f"with code {code}"


# Memory and devices
def peak_memory() -> int:
    """Return the largest resident size of this process so far, in bytes."""
    # On Linux, ru_maxrss starts at the size of the parent process.
    counted = _process_status("VmHWM")
    if counted is not None:
        return counted
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _process_status(field: str) -> int | None:
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    found = re.search(rf"^{field}:\s*(\d+) kB", status.read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else None


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
            with contextlib.suppress(OSError, ValueError):  # "max" means no limit
                limit = Path("/sys/fs/cgroup", root, str(group).lstrip("/"), file).read_text()
                found = min(found, int(limit))
    return found


def native_bfloat16(device: torch.device) -> bool:
    """Return whether a device multiplies bfloat16 natively; emulation is slower than float32."""
    import torch

    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        # AVX-512 alone emulates it. Older versions of torch have no get_capabilities.
        capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
        return any(bool(capabilities.get(name)) for name in ("amx_bf16", "avx512_bf16", "bf16"))
    return False


def out_of_memory(error: RuntimeError) -> bool:
    """Return whether an error of torch is a lack of memory: CUDA has a class for it, MPS and the CPU only text."""
    import torch

    text = str(error).lower()
    phrases = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")
    return isinstance(error, torch.OutOfMemoryError) or any(phrase in text for phrase in phrases)


@contextmanager
def bounded(what: str, remedy: str) -> Iterator[None]:
    """Turn a lack of memory within a `with` block into a `ResourceError` that says what to do."""
    try:
        yield
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise ResourceError(f"{what} does not fit in memory; {remedy}") from error


# Signals
class StopNow(BaseException):
    """Stop without waiting. Not a KeyboardInterrupt, which Typer would swallow silently."""

    def __init__(self, exit_code: int = EXIT_INTERRUPTED) -> None:
        super().__init__()
        self.exit_code = exit_code


class StopRequest:
    """Returns, if called, whether a signal came; `exit_code` is then 128 plus the signal's number, as in shells."""

    def __init__(self) -> None:
        self.exit_code = 0

    def __call__(self) -> bool:
        return self.exit_code != 0


@contextmanager
def polite_stop(announcement: str) -> Iterator[StopRequest]:
    """Turn the first SIGINT or SIGTERM into a request, announced on standard error, and the next into `StopNow`."""
    request = StopRequest()

    def handle(number: int, frame: FrameType | None) -> None:
        if request():
            raise StopNow
        request.exit_code = 128 + number
        # Straight to the descriptor: a handler may run in the middle of another write to the stream.
        os.write(2, f"\n{announcement}\n".encode())

    with _handled_by(handle):
        yield request


@contextmanager
def stop_at_once() -> Iterator[None]:
    """Turn SIGINT and SIGTERM into `StopNow`, for work that loses little by it."""

    def handle(number: int, frame: FrameType | None) -> None:
        raise StopNow(128 + number)

    with _handled_by(handle):
        yield


@contextmanager
def _handled_by(handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# Text and order
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
    if hours:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    if not minutes:
        return f"{rest} s"
    return f"{minutes} min {rest} s" if rest else f"{minutes} min"


def hash_order(sample_ids: Sequence[str]) -> list[int]:
    """Return the positions of samples in the order of their ids' sha256: mixed classes, reproducible."""
    return sorted(
        range(len(sample_ids)), key=lambda i: hashlib.sha256(sample_ids[i].encode()).digest()
    )
