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
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self, TypeVar

import msgspec
import numpy as np

from samtl.errors import DamageError

TEMPORARY = ".tmp-"
MOST_JSON = 64 * 2**20  # bytes of a document that is read
#: What a disk raises if it, or a process's share of it, is exhausted.
DISK_ERRORS = frozenset(
    {
        errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM
    }
)  # fmt: skip
_Struct = TypeVar("_Struct", bound=msgspec.Struct)

try:
    from awscrt.checksums import crc32c as _crc32c
except ImportError:
    import google_crc32c

    def _crc32c(data: Any) -> int:
        # It takes read-only arrays without a copy, but no memoryview.
        array = np.frombuffer(data, np.uint8)
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


def seal(content: Mapping[str, object]) -> bytes:
    """Encode a document that carries the sha256 of the rest of itself as `checksum`."""
    rest = {key: value for key, value in content.items() if key != "checksum"}
    return canonical({**rest, "checksum": digest(rest)}) + b"\n"


def unseal(raw: bytes, kind: type[_Struct], where: str | Path) -> _Struct:
    """Decode a document made by `seal`.

    Parameters
    ----------
    raw : bytes
    kind : type
        A `msgspec.Struct` with a field `checksum`.
    where : str or Path
        Names the document in messages.

    Raises
    ------
    DamageError
        If the bytes are not such a document or fail their own checksum.
    """
    found: _Struct = _decode(raw, kind, where)
    mark = f'"checksum":"{getattr(found, "checksum")}"'.encode()  # noqa: B009
    before, _, after = raw.removesuffix(b"\n").partition(mark)
    rest = before + after[1:] if before.endswith(b"{") else before[:-1] + after
    if hashlib.sha256(rest).hexdigest() != getattr(found, "checksum"):  # noqa: B009
        raise DamageError(f"{where} fails its own checksum: it was altered or is damaged")
    return found


def read_json(path: Path, kind: type[_Struct]) -> _Struct:
    """Read a JSON file into a `msgspec.Struct`; DamageError if its content does not fit."""
    found: _Struct = _decode(read_document(path), kind, path)
    return found


def read_object(path: Path) -> dict[str, Any]:
    """Read a file that holds one JSON object; DamageError if it is anything else."""
    found: dict[str, Any] = _decode(read_document(path), dict, path)
    return found


def read_document(path: Path) -> bytes:
    """Read a regular file of at most `MOST_JSON` bytes; DamageError if it is anything else."""
    # Opening a pipe would wait for a writer, hence O_NONBLOCK.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise DamageError(f"{path} is damaged: it is not a regular file")
        raw = file.read(MOST_JSON + 1)
    if len(raw) > MOST_JSON:
        raise DamageError(f"{path} is damaged: expected at most {MOST_JSON} bytes")
    return raw


def inside(folder: Path, name: str, top: Path | None = None) -> Path:
    """Resolve the name of a file that a document names, which anyone may have written.

    Parameters
    ----------
    folder : Path
        What the name is relative to.
    name : str
    top : Path, optional
        The folder that the file must be in, or below; by default `folder`.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    DamageError
        If the name leads out of `top`, through links or otherwise, or to something other than a regular file.
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


def _decode(raw: bytes, kind: Any, where: str | Path) -> Any:
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise DamageError(f"{where} is damaged: {error}") from error


def publish(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    """Write a file durably under a name that must be free; its folder must exist.

    Raises
    ------
    FileExistsError
        If the name is taken; that file is left as it is.
    OSError
        If the disk is exhausted, or cannot link; nothing is left behind.
    """
    temporary = _write_temporary(path, pieces)
    try:
        os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def replace(path: Path, content: bytes) -> None:
    """Write a file durably, replacing an earlier one; readers see the one or the other."""
    temporary = _write_temporary(path, [content])
    try:
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def make_folder(path: Path) -> None:
    """Create a folder and its parents durably."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    _sync(path, os.O_DIRECTORY)


def _sync(path: Path, flags: int = 0) -> None:
    descriptor = os.open(path, os.O_RDONLY | flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_temporary(path: Path, pieces: Iterable[bytes | memoryview]) -> Path:
    temporary = path.parent / f"{TEMPORARY}{uuid.uuid4().hex}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(temporary, flags, 0o644), "wb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


class AtomicFolder:
    """A folder that is filled under a temporary name and then published: it appears whole or not at all.

    A context manager; nothing is left if `publish` was not reached. What killed processes of this machine left in
    `parent` is removed: the lock on a temporary folder ends with its process.

    Parameters
    ----------
    parent : Path
        The folder that the new one will be in; created if needed.

    Attributes
    ----------
    path : Path
        The folder to fill, until it is published.

    Raises
    ------
    OSError
        If the disk does not take it.
    """

    def __init__(self, parent: Path) -> None:
        self.parent = parent
        parent.mkdir(parents=True, exist_ok=True)
        host = re.sub(r"\W", "_", platform.node())
        for leftover in parent.glob(f"{TEMPORARY}{host}-*"):
            lock = _lock(leftover)
            # A younger one may be about to be locked.
            if lock is not None and time.time() - os.fstat(lock).st_mtime > 60:
                shutil.rmtree(leftover, ignore_errors=True)
            if lock is not None:
                os.close(lock)
        self.path = parent / f"{TEMPORARY}{host}-{uuid.uuid4().hex}"
        self.path.mkdir()
        self._lock = _lock(self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def publish(self, name: str, *, replace: bool = False, numbered: bool = False) -> Path:
        """Sync the content and move the folder to its name; nothing of it may be written afterwards.

        Parameters
        ----------
        name : str
        replace : bool
            Whether it takes the place of an earlier folder, which is removed.
        numbered : bool
            Whether a taken name becomes `name.2`, `name.3` and so on.

        Returns
        -------
        Path

        Raises
        ------
        FileExistsError
            If the name is taken, and neither is allowed.
        """
        for entry in (*self.path.rglob("*"), self.path):
            _sync(entry)
        for count in itertools.count(1):
            target = self.parent / (name if count == 1 else f"{name}.{count}")
            try:
                self.path.rename(target)  # fails on a file, and on a folder that is not empty
                break
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                    raise
                if replace:
                    replace_folder(self.path, target)
                    break
                if not numbered:
                    raise FileExistsError(errno.EEXIST, "the name is taken", str(target)) from error
        sync_folder(self.parent)
        return target


def replace_folder(new: Path, place: Path) -> None:
    """Put a folder in the place of another one beside it, in one step if the system can, and remove that one."""
    if not _exchange(new, place):
        # A process killed between these leaves both, the old one under a name that nobody removes.
        old = place.with_name(f"{place.name}.old-{uuid.uuid4().hex[:8]}")
        if place.exists():
            place.rename(old)
        new.rename(place)
        new = old
    sync_folder(place.parent)
    shutil.rmtree(new, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    library, swap, here = ctypes.CDLL(None, use_errno=True), 2, -100  # AT_FDCWD
    names = os.fsencode(one), os.fsencode(other)
    with suppress(AttributeError):  # an old C library
        if sys.platform == "darwin":
            return bool(library.renamex_np(*names, swap) == 0)
        return bool(library.renameat2(here, names[0], here, names[1], swap) == 0)
    return False


def _lock(folder: Path) -> int | None:
    """Lock a folder while this process lives; None if another one holds it, or the file system has no locks."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
