"""What this process has used of the machine's memory."""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path


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


def _told(field: str) -> int | None:
    """Read a size from what Linux tells of this process."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    found = re.search(rf"^{field}:\s*(\d+) kB", status.read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else None
