"""What every long-running verb shares: prefetching, memory, processes, signals and how numbers are written."""

from __future__ import annotations

import contextlib
import gc
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
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import FrameType
from typing import TYPE_CHECKING, TypeVar

from samtl.errors import EXIT_INTERRUPTED, ResourceError

if TYPE_CHECKING:
    import torch


# ahead
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def ahead(
    work: Callable[[_Item], _Result], items: Iterable[_Item], workers: int = 1, depth: int = 2
) -> Generator[_Result, None, None]:
    """Map over items in order, in threads.

    Parameters
    ----------
    work : callable
        An exception that it raises reaches whoever takes the result.
    items : iterable
    workers : int
        Threads.
    depth : int
        Results that are in work or waiting before the first is taken; from then on one less, so that with 2 the next
        one is made while the last is in use.
    """
    coming = iter(items)
    with ThreadPoolExecutor(workers, thread_name_prefix="ahead") as pool:
        waiting = deque(pool.submit(work, item) for item in itertools.islice(coming, depth))
        try:
            while waiting:
                yield waiting.popleft().result()
                waiting.extend(pool.submit(work, item) for item in itertools.islice(coming, 1))
        finally:
            for future in waiting:
                future.cancel()


# memory
def peak_memory() -> int:
    """Give the largest resident size that this process has had, in bytes."""
    # On Linux, ru_maxrss starts at the size of the process that started this one.
    told = _told("VmHWM")
    if told is not None:
        return told
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident_memory() -> int:
    """Give the resident size of this process, in bytes, or its largest so far where only that can be told."""
    told = _told("VmRSS")
    return peak_memory() if told is None else told


@contextlib.contextmanager
def without_collecting() -> Iterator[None]:
    """Keep the collector of cycles from looking at millions of objects again and again while they are made.

    For code that makes no cycles. Reading the log of a million rows takes two thirds of the time with it.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _told(field: str) -> int | None:
    """Read a size from what Linux tells of this process."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    found = re.search(rf"^{field}:\s*(\d+) kB", status.read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def machine_memory() -> int:
    """Give the bytes of memory that this process may use: the machine's, or its control group's where that has less."""
    found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for limit in _limits():
        with contextlib.suppress(OSError, ValueError):  # "max" is none
            found = min(found, int(limit.read_text()))
    return found


def _limits() -> Iterator[Path]:
    """Name the files that may hold the limit of a control group that this process is in, or of one around that."""
    groups = Path("/proc/self/cgroup")
    if not groups.exists():
        return
    for line in groups.read_text().splitlines():
        _, controllers, name = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, file = ("memory", "memory.limit_in_bytes") if controllers else ("", "memory.max")
        place = PurePosixPath(name)
        for group in (place, *place.parents):
            yield Path("/sys/fs/cgroup", root, str(group).lstrip("/"), file)


# machine
def native_bfloat16(device: torch.device) -> bool:
    """Tell whether a device multiplies bfloat16 natively; elsewhere it is emulated, and slower than float32."""
    import torch

    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        # AVX-512 alone would emulate it. Older torch cannot tell: then float32 is the safe answer.
        capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
        return any(bool(capabilities.get(name)) for name in ("amx_bf16", "avx512_bf16", "bf16"))
    return False


def out_of_memory(error: RuntimeError) -> bool:
    """Tell lack of memory from a defect: CUDA has a class for it, MPS and the CPU only words."""
    import torch

    told = str(error).lower()
    words = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")
    return isinstance(error, torch.OutOfMemoryError) or any(word in told for word in words)


@contextmanager
def bounded(what: str, remedy: str) -> Iterator[None]:
    """Turn a lack of memory within a `with` block into a `ResourceError` that says what to do."""
    try:
        yield
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise ResourceError(f"{what} does not fit in the memory that there is; {remedy}") from error


# processes
@contextmanager
def deaf_children() -> Iterator[None]:
    """Processes that are started in this `with` block do not hear Ctrl-C, from their first moment on."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def serve_parent() -> None:
    """Leave Ctrl-C to the parent, and end when it is gone: one that was killed cannot say so."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def ended(code: int | None) -> str:
    """Say how a process ended, as the rest of "its process was ended ..."."""
    return f"by signal {-code}" if code is not None and code < 0 else f"with code {code}"


# signals
class StopNow(BaseException):
    """Stop without waiting. Not a KeyboardInterrupt, which Typer would swallow without a word.

    Attributes
    ----------
    exit_code : int
        As of `StopRequest`.
    """

    def __init__(self, exit_code: int = EXIT_INTERRUPTED) -> None:
        super().__init__()
        self.exit_code = exit_code


class StopRequest:
    """Whether somebody asked the pass to end; call it to know.

    Attributes
    ----------
    exit_code : int
        128 and the signal's number, as shells have it; 130 for Ctrl-C.
    """

    def __init__(self) -> None:
        self.exit_code = 0

    def __call__(self) -> bool:
        """Tell whether a signal came."""
        return self.exit_code != 0


@contextmanager
def polite_stop(announcement: str) -> Iterator[StopRequest]:
    """Turn the first SIGINT or SIGTERM into a request, and the next into StopNow.

    Parameters
    ----------
    announcement : str
        Written to standard error when the first one comes.
    """
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
    """Turn each SIGINT or SIGTERM into StopNow: for work that loses little by it."""

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


# notes
@dataclass(frozen=True)
class Note:
    """Something that the user must know, in a line."""

    text: str

    def __str__(self) -> str:
        return self.text


# units
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
    """Put samples in an order that mixes classes and depends on nothing but their ids: that of their sha256."""
    return sorted(
        range(len(sample_ids)), key=lambda i: hashlib.sha256(sample_ids[i].encode()).digest()
    )
