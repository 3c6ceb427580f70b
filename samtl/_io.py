"""Files and folders that appear whole or not at all, canonical JSON, and checksums.

A file is published by writing it under a temporary name in the same folder, syncing it, linking it to its final name
(which fails if that exists) and syncing the folder. So a name never shows part of a file, content is never
overwritten, and exactly one of several writers succeeds.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import itertools
import json
import os
import platform
import re
import shutil
import stat
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Self, TypeVar

import msgspec
import numpy as np

from samtl.errors import DamageError

TEMPORARY = ".tmp-"  # begins the names of what is being written, or was when its writer was killed
_UNLOCKED = ".tmp-new-"  # and these are of folders that are about to be locked
MOST_JSON = 64 * 2**20  # bytes of a document that is read
_Kind = TypeVar("_Kind")

try:
    from awscrt.checksums import crc32c as _crc32c
except ImportError:
    import google_crc32c

    def _crc32c(data: Any) -> int:
        array = np.frombuffer(data, np.uint8)  # it takes no memoryview, and copies what is writable
        array.setflags(write=False)
        return int(google_crc32c.value(array))


def crc32c(data: bytes | memoryview) -> int:
    """Compute the CRC-32C (Castagnoli) of bytes."""
    return int(_crc32c(data))


def file_sha256(path: Path) -> str:
    """Compute the sha256 of a file, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical(content: object) -> bytes:
    """Encode JSON so that equal content gives equal bytes: sorted keys, no spaces, UTF-8, no NaN."""
    return json.dumps(
        content,
        sort_keys=True,
        separators=(",", ":"),
        ensure_ascii=False,
        allow_nan=False,
        default=msgspec.to_builtins,
    ).encode()


def digest(content: object) -> str:
    """Compute the sha256 of the canonical JSON, as 64 hexadecimal digits."""
    return hashlib.sha256(canonical(content)).hexdigest()


def shortened(name: str, most: int) -> str:
    """Cut a name so that it has at most that many bytes in UTF-8: file systems take 255."""
    return os.fsencode(name)[:most].decode(errors="ignore")


def as_text(path: str | Path) -> str:
    """Return a path as text that files can hold: a name need not be UTF-8."""
    return os.fsencode(path).decode(errors="replace")


def seal(content: Mapping[str, object]) -> bytes:
    """Encode a document that carries the sha256 of the rest of itself as `checksum`."""
    rest = {key: value for key, value in content.items() if key != "checksum"}
    return canonical({**rest, "checksum": digest(rest)}) + b"\n"


def unseal(raw: bytes, kind: type[_Kind], where: str | Path) -> _Kind:
    """Decode a document made by `seal` into a `msgspec.Struct`; DamageError if it is none, or was altered."""
    found = _decode(raw, kind, where)
    checksum: str = getattr(found, "checksum")  # noqa: B009
    before, _, after = raw.removesuffix(b"\n").partition(f'"checksum":"{checksum}"'.encode())
    rest = before + after[1:] if before.endswith(b"{") else before[:-1] + after
    if hashlib.sha256(rest).hexdigest() != checksum:
        raise DamageError(f"{where} fails its own checksum: it was altered or is damaged")
    return found


def read_json(path: Path, kind: type[_Kind]) -> _Kind:
    """Read a JSON file into a `msgspec.Struct` or a `dict`; DamageError if its content does not fit."""
    try:
        raw = read_regular(path)
    except IsADirectoryError as error:
        raise DamageError(f"{path} is a folder, not a file") from error
    return _decode(raw, kind, path)


def read_regular(path: str | Path, most: int = MOST_JSON) -> bytes:
    """Read a regular file; DamageError if it is none, or longer than `most`."""
    with open_regular(path) as file:
        require_size(path, os.fstat(file.fileno()).st_size, most)
        return file.read()


def require_size(what: str | Path, size: int, most: int) -> None:
    """Raise DamageError if a file is larger than `most`."""
    if size > most:
        raise DamageError(f"{what} has {size} bytes, at most {most} are expected")


def open_regular(path: str | Path, flags: int = 0) -> IO[bytes]:
    """Open a regular file to read, with further flags of `os.open`.

    IsADirectoryError for a folder, and DamageError for anything else that is no regular file.
    """

    def opener(name: str, mode: int) -> int:
        return os.open(name, mode | flags | os.O_NONBLOCK)  # a pipe would wait for a writer

    file = open(path, "rb", buffering=0, opener=opener)  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise DamageError(f"{path} is not a regular file")
    return file


def inside(folder: Path, name: str, top: Path | None = None) -> Path:
    """Resolve the name, relative to `folder`, of a file that a document names, which anyone may have written.

    FileNotFoundError if it is missing; DamageError if it leads out of `top` (by default `folder`), through links or
    otherwise, or to something other than a regular file.
    """
    try:
        path = (folder / name).resolve(strict=True)
        if path.is_relative_to((top or folder).resolve()) and path.is_file():
            return path
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RuntimeError):  # too long, a NUL, links in a circle
        pass
    raise DamageError(
        f"{folder} is damaged: it names {name!a}, which is not a regular file in {top or folder}"
    )


def _decode(raw: bytes, kind: type[_Kind], where: str | Path) -> _Kind:
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise DamageError(f"{where} is damaged: {error}") from error


def publish(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    """Write a file durably under a name that must be free, else FileExistsError; its folder is made if need be."""
    _write(path, pieces, os.link)


def replace(path: Path, content: bytes) -> None:
    """Write a file durably, replacing an earlier one; readers see the one or the other."""
    _write(path, [content], os.replace)


def _write(
    path: Path, pieces: Iterable[bytes | memoryview], name: Callable[[Path, Path], None]
) -> None:
    make_folder(path.parent)
    temporary = path.parent / f"{TEMPORARY}{uuid.uuid4().hex}"
    try:
        with temporary.open("xb") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        name(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
        # If the name was taken, too: its writer may not have synced it, and whoever goes on from it must find it.
        sync_folder(path.parent)


def make_folder(path: Path) -> None:
    """Create a folder and its parents durably."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make the names in a folder, or the content of a file, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class AtomicFolder:
    """A folder that is filled under a temporary name and then published: it appears whole or not at all.

    A context manager around filling `path`, a new folder in `parent`; nothing is left if `publish` was not reached.
    What killed processes of this machine left in `parent` is removed: the lock on a temporary folder ends with its
    process.
    """

    def __init__(self, parent: Path) -> None:
        self.parent = parent
        parent.mkdir(parents=True, exist_ok=True)
        prefix = TEMPORARY + re.sub(r"\W", "_", platform.node()) + "-"
        for leftover in parent.glob(f"{prefix}*"):
            with suppress(OSError):
                if (lock := lock_folder(leftover)) is not None:
                    shutil.rmtree(leftover, ignore_errors=True)
                    os.close(lock)
        for leftover in parent.glob(f"{_UNLOCKED}*"):
            with suppress(OSError):
                if time.time() - leftover.stat().st_mtime > 60:
                    leftover.rmdir()
        self.path = parent / f"{prefix}{uuid.uuid4().hex}"
        # It has a name by which others remove it once it is locked.
        unlocked = parent / f"{_UNLOCKED}{uuid.uuid4().hex}"
        unlocked.mkdir()
        self._lock = lock_folder(unlocked)
        unlocked.rename(self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def publish(self, name: str, *, replace: bool = False) -> Path:
        """Sync the content and move the folder to its name; nothing of it may be written afterwards.

        If the name is taken, the earlier folder is removed (`replace`), or the new one is called `name.2`, `name.3`
        and so on.
        """
        for entry in (*self.path.rglob("*"), self.path):
            sync_folder(entry)
        for count in itertools.count(1):
            target = self.parent / (name if count == 1 else f"{name}.{count}")
            try:
                self.path.rename(target)  # fails on a file, and on a folder that is not empty
                break
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                    raise
                if replace:
                    _replace_folder(self.path, target)
                    break
        sync_folder(self.parent)
        return target


def _replace_folder(new: Path, place: Path) -> None:
    """Exchange a folder with the one in its place, in one step if the system can, and remove that one."""
    library, swap, here = ctypes.CDLL(None, use_errno=True), 2, -100  # AT_FDCWD
    names = os.fsencode(new), os.fsencode(place)
    try:
        if sys.platform == "darwin":
            failed = library.renamex_np(*names, swap)
        else:
            failed = library.renameat2(here, names[0], here, names[1], swap)
    except AttributeError:  # an old C library
        failed = True
    if failed:
        # A process killed between these leaves both, the old one under a name that nobody removes.
        old = place.with_name(f"{place.name}.old-{uuid.uuid4().hex[:8]}")
        place.rename(old)
        new.rename(place)
        new = old
    sync_folder(place.parent)
    shutil.rmtree(new, ignore_errors=True)


def lock_folder(folder: Path) -> int | None:
    """Lock a folder until the descriptor that is returned is closed, or this process ends.

    None if the file system has no locks; BlockingIOError if another process holds this one.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return descriptor
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise
        return None
