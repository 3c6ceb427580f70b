"""What this process may use of the machine's memory, and has used."""

from __future__ import annotations

import contextlib
import gc
import os
import re
import resource
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


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
