"""Files that are there whole or not at all, and stay after a power cut.

Publishing is: write under a temporary name in the same folder, fsync, link to the final name (which
fails where that exists), fsync the folder. So a final name never shows a part of a file, is never
overwritten, and of two writers one wins. In a bucket an object is put there on condition that there is none.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import sys
import uuid
from collections.abc import Iterable
from pathlib import Path

from samtl.errors import DamageError
from samtl.store.remote import RemotePath

TEMPORARY = ".tmp-"
#: Where a disk, or what a process may have of it, gives out.
DISK_ERRORS = frozenset(
    {
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EIO,
        errno.EROFS,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
    }
)


def publish(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    """Write a file once.

    Parameters
    ----------
    path : Path
        Its folder must exist.
    pieces : iterable of bytes-like
        The content, in order.

    Raises
    ------
    FileExistsError
        Where the name is taken; that file is left as it is.
    FileNotFoundError
        Where the folder is gone, or someone removed the temporary file.
    OSError
        Where the disk gives out; nothing is left behind.
    LockedError
        In a bucket, where this process may not write there any more.
    """
    if isinstance(path, RemotePath):
        path.create(b"".join(pieces))
        return
    temporary = _write_temporary(path, pieces)
    try:
        os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def replace(path: Path, content: bytes) -> None:
    """Write a file that may take the place of an older one; readers see the one or the other."""
    if isinstance(path, RemotePath):
        path.replace_with(content)
        return
    temporary = _write_temporary(path, [content])
    try:
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def require_no_folder(path: Path) -> None:
    """Raise DamageError where a folder has the name of a file of a store: whose it is, nobody knows."""
    if path.is_dir() and not path.is_symlink():
        raise DamageError(
            f"{path} is a folder, and a file of the store belongs there: move it elsewhere and start again"
        )


def replace_folder(new: Path, place: Path) -> None:
    """Put a folder in the place of an older one, which is there again where that fails.

    On Linux they change places in one step. Elsewhere there is a moment without either, and `recover_folder` mends what
    a process leaves that is killed in it.

    Parameters
    ----------
    new, place : Path
        In one parent folder; `new` is under a temporary name.
    """
    if not place.is_dir():
        new.rename(place)
        return
    if _exchange(new, place):
        old = new
    else:
        old = _old(new)
        shutil.rmtree(
            old, ignore_errors=True
        )  # of a process that was killed after it had put its own in place
        place.rename(old)
        try:
            new.rename(place)
        except OSError:
            old.rename(place)
            raise
    sync_folder(place.parent)
    shutil.rmtree(old, ignore_errors=True)


def beside(place: Path) -> Path:
    """Name the folder that is to take another's place, for `replace_folder` and `recover_folder`."""
    return place.with_name(f"{TEMPORARY}{place.name}")


def clear_beside(place: Path) -> Path:
    """Remove what killed processes left beside a folder that is in its place; gives the name of the one to come.

    The older one first: with both of them there, and the folder itself removed by its owner, `recover_folder` would
    take what was half written for what was to come.
    """
    new = beside(place)
    for left in (_old(new), new):
        shutil.rmtree(left, ignore_errors=True)
    return new


def recover_folder(place: Path) -> None:
    """Put a folder in its place that a process left beside it which was killed in `replace_folder`."""
    new = beside(place)
    if isinstance(place, RemotePath):
        return
    # The new one was whole before the old one was moved.
    if not place.exists() and new.is_dir() and _old(new).is_dir():
        new.rename(place)
        sync_folder(place.parent)
        shutil.rmtree(_old(new), ignore_errors=True)


def _old(new: Path) -> Path:
    return new.with_name(f"{new.name}-old")


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders change places in one step, where the system can."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):  # an old C library
        return False
    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return bool(rename(here, os.fsencode(one), here, os.fsencode(other), swap) == 0)


def make_folder(path: Path) -> None:
    """Make a folder and its parents so that they stay; a bucket has none."""
    if isinstance(path, RemotePath) or path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable; in a bucket they are."""
    if isinstance(path, RemotePath):
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_temporary(path: Path, pieces: Iterable[bytes | memoryview]) -> Path:
    temporary = path.parent / f"{TEMPORARY}{uuid.uuid4().hex}"
    descriptor = os.open(
        temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644
    )
    try:
        with os.fdopen(descriptor, "wb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary
