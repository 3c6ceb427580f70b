"""What is in a folder of a store, on a disk or in a bucket."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from samtl.store.remote import RemotePath


def names(folder: Path, hidden: bool = False) -> list[str]:
    """List the names in a folder, sorted; none where there is no such folder."""
    found: list[str] = []
    if isinstance(folder, RemotePath):
        found = folder.names()
    else:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            found = os.listdir(folder)  # noqa: PTH208  # names are enough
    return sorted(name for name in found if hidden or not name.startswith("."))


def sizes(folder: Path) -> dict[str, int]:
    """Map each regular file of a folder to its size in bytes."""
    if isinstance(folder, RemotePath):
        return folder.sizes()
    found = {}
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        for entry in entries:
            about = entry.stat(follow_symlinks=False)
            if stat.S_ISREG(about.st_mode):
                found[entry.name] = about.st_size
    return found
