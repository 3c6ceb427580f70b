"""Where a store's files are: a folder on a disk, or a prefix in a bucket; and which stores are there.

A file is written once, under a name that nobody has taken, or replaced as a whole; readers see all of it or nothing.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from samtl import _io
from samtl._io import TEMPORARY
from samtl._runtime import Result, Task
from samtl.errors import DamageError, InputError, ResourceError, require_extra

Ranges = Sequence[tuple[int, int]]  # from start to before stop
FOLDER = -1  # the size that `Storage.list` gives for a folder
MAX_BYTES = 1 << 30  # no record, table or metadata is larger
IDENTITY = "fingerprint.json"  # the file that makes a folder a store
STALE_SECONDS = 86_400.0
SCHEMES = ("s3", "gs", "az")
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
# No character in a bucket's name by which a URL would be taken apart: the rest could be another bucket.
_BUCKET = re.compile(r"[A-Za-z0-9._-]+")
# A drive's name has one letter. `Path` collapses the two slashes of a URL.
_URL = re.compile(rf"[A-Za-z][A-Za-z0-9+.-]+:/|(?i:{'|'.join(SCHEMES)}):$")


class Storage(ABC):
    """The files below one place. Names are relative to it, with `/`.

    Every method raises ResourceError if the disk, the network or the server gives out.

    Attributes
    ----------
    url : str
        The place, as messages show it.
    """

    url: str

    @abstractmethod
    def read(self, name: str, most: int = MAX_BYTES) -> bytes:
        """Read a file; FileNotFoundError if it is missing, DamageError if it is a folder or longer than `most`."""

    def read_ranges(
        self, name: str, ranges: Ranges, size: int, sha256: str, anew: bool = False
    ) -> Sequence[bytes]:
        """Read parts of a committed file, each from `start` to before `stop`; shorter if the file is shorter.

        Parameters
        ----------
        name : str
        ranges : sequence of (start, stop)
        size, sha256 : int, str
            Of the file, as committed. A bucket keeps what it fetched on the local disk under this digest.
        anew : bool
            Ignore what is kept there: the caller found that it fails its checksum.
        """
        content = self.read(name)
        return [content[start:stop] for start, stop in ranges]

    @abstractmethod
    def list(self, folder: str = "") -> dict[str, int]:
        """Map the names directly below a folder to their sizes in bytes, folders to `FOLDER`; empty if missing."""

    @abstractmethod
    def size(self, name: str) -> int | None:
        """Size of a file in bytes; None if there is none of that name."""

    @abstractmethod
    def create(self, name: str, pieces: Iterable[bytes | memoryview]) -> None:
        """Write a new file, whole and durable; FileExistsError if there is one with another content."""

    @abstractmethod
    def replace(self, name: str, content: bytes) -> None:
        """Write a file that takes the place of an older one, if there is one."""

    @abstractmethod
    def delete(self, name: str) -> None:
        """Remove a file, if it is there."""

    @abstractmethod
    def settle(self, *folders: str) -> None:
        """Make the names in the store and some of its folders, which are made if need be, durable.

        Others may have given them a moment ago, and not yet synced them.
        """

    @abstractmethod
    def zarr_store(self) -> Any:
        """What `zarr.open_group` takes to read the store."""

    def path(self, name: str) -> Path | None:
        """The file's path on this machine, to map it into memory; None in a bucket."""
        return None

    @abstractmethod
    def sweep(self) -> None:
        """Remove old temporary files, and make all names durable: their writers may be gone."""

    def each(self, work: Callable[[Task], Result], items: Iterable[Task]) -> Iterator[Result]:
        """Map `work`, which asks for files, over items in order; in a bucket several at a time."""
        return map(work, items)

    def probe(self) -> None:
        """Raise ResourceError if this place would let a second writer overwrite what the first one created."""
        name = f"{TEMPORARY}probe-{uuid.uuid4().hex}"
        try:
            self.create(name, [b"1"])
            with suppress(FileExistsError):
                self.create(name, [b"2"])
                raise ResourceError(
                    f"{self.url}: what was created there is overwritten by the next who creates it, so that two "
                    "writers could destroy each other's rows; keep the store elsewhere"
                )
        finally:
            with suppress(OSError, ResourceError):
                self.delete(name)


class DiskStorage(Storage):
    """Files in a folder. A created file is durable when `create` returns: its bytes and its name were synced."""

    def __init__(self, root: str | Path) -> None:
        self.root, self.url = Path(root), str(root)

    def read(self, name: str, most: int = MAX_BYTES) -> bytes:
        path = f"{self.root}/{name}"  # a string, since a large store has ten thousands of records
        with _explained(path, "read"):
            return _io.read_regular(path, most)

    def list(self, folder: str = "") -> dict[str, int]:
        path, found = self.root / folder, {}
        if path.is_file():
            raise DamageError(f"{path} is not a folder: the store is damaged")
        with suppress(FileNotFoundError), _explained(path, "read"), os.scandir(path) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # removed meanwhile
                    about = entry.stat()
                    found[entry.name] = FOLDER if stat.S_ISDIR(about.st_mode) else about.st_size
        return found

    def size(self, name: str) -> int | None:
        with suppress(FileNotFoundError), _explained(self.root / name, "read"):
            about = (self.root / name).stat()
            return None if stat.S_ISDIR(about.st_mode) else about.st_size
        return None

    def create(self, name: str, pieces: Iterable[bytes | memoryview]) -> None:
        path = self.root / name
        with _explained(path, "written"):
            _io.publish(path, pieces)

    def replace(self, name: str, content: bytes) -> None:
        path = self.root / name
        with _explained(path, "written"):
            _io.replace(path, content)

    def delete(self, name: str) -> None:
        path = self.root / name
        with _explained(path, "removed"), suppress(FileNotFoundError):
            path.unlink()
            _io.sync_folder(path.parent)

    def settle(self, *folders: str) -> None:
        for folder in (*folders, ""):
            with _explained(self.root / folder, "synced"):
                _io.make_folder(self.root / folder)
                _io.sync_folder(self.root / folder)

    def path(self, name: str) -> Path:
        return self.root / name

    def sweep(self) -> None:
        for folder, _, names in os.walk(self.root):
            with _explained(folder, "read"):
                for path in (Path(folder, name) for name in names if name.startswith(TEMPORARY)):
                    with suppress(FileNotFoundError):
                        if time.time() - path.stat().st_mtime >= STALE_SECONDS:
                            path.unlink()
                _io.sync_folder(Path(folder))

    def zarr_store(self) -> Path:
        return self.root


@contextmanager
def _explained(path: str | Path, done: str) -> Iterator[None]:
    """Turn what a disk answers into one clear message; a missing file and a taken name stay what they are."""
    try:
        yield
    except (FileNotFoundError, FileExistsError):
        raise
    except NotADirectoryError as error:
        raise FileNotFoundError(error.errno, error.strerror, str(path)) from error
    except IsADirectoryError as error:
        raise folder_in_place(path) from error
    except OSError as error:
        hint = "What was committed is kept; make room or fix the access, then run it again"
        if error.errno in _NO_LINKS:
            hint = "If its file system has no hard links, writers could overwrite each other's rows there: use another"
        raise ResourceError(f"{path} cannot be {done}: {error.strerror}. {hint}") from error


def folder_in_place(path: str | Path) -> DamageError:
    """Refuse to touch a folder that has the name of a file: whatever it holds belongs to somebody."""
    return DamageError(
        f"{path} is a folder, and a file of the store belongs there: move it elsewhere, then run it again"
    )


def is_url(path: str | Path) -> bool:
    """Whether this names a place in a bucket, even if a command line has made a `Path` of it."""
    return _URL.match(str(path)) is not None


def parse(url: str) -> tuple[str, str, str]:
    """Split a URL into scheme, bucket and prefix; InputError if it names no place in a bucket."""
    given, _, rest = url.partition(":")
    scheme = given.lower()
    parts = [part for part in rest.split("/") if part]
    if scheme not in SCHEMES or not parts or {".", ".."} & {*parts} or not url.isprintable():
        expected = " or ".join(f"{name}://BUCKET/PREFIX" for name in SCHEMES)
        raise InputError(f"{url} is no place for a store: expected a folder, or {expected}")
    if not _BUCKET.fullmatch(parts[0]):
        raise InputError(
            f"{url}: a bucket's name has letters from A to Z, digits, '.', '_' and '-' alone, got {parts[0]!r}"
        )
    return scheme, parts[0], "/".join(parts[1:])


def as_place(path: str | os.PathLike[str]) -> Path | str:
    """Return a folder as a `Path`, and a URL as the text that it was; InputError if no store can be there."""
    text = os.fspath(path)
    if text.startswith("file:///"):
        text = unquote(text.removeprefix("file://"))
    if not is_url(text):
        return Path(text).expanduser() if text.startswith("~/") else Path(text)
    scheme, bucket, prefix = parse(text)
    return f"{scheme}://{bucket}/{prefix}".rstrip("/")


def as_folder(path: str | Path) -> Path:
    """Return a folder on a disk; InputError for a URL, since only stores can be in buckets."""
    if is_url(path):
        raise InputError(
            f"{as_place(path)} is in a bucket, where only stores can be; name a folder"
        )
    return Path(path)


def as_output(path: str | Path) -> Path:
    """Return a folder on a disk that is there or can be made; InputError for a URL, a file or a place in a file."""
    if not (there := existing(folder := as_folder(path))).is_dir():
        raise InputError(f"{there} is a file; name a folder")
    return folder


def existing(place: Path) -> Path:
    """Return a path if it exists, else the nearest of its parents that does."""
    return next(path for path in (place.absolute(), *place.absolute().parents) if path.exists())


def open_storage(place: str | os.PathLike[str]) -> Storage:
    """Return the storage at a folder, or at a URL `s3://`, `gs://` or `az://BUCKET/PREFIX`."""
    place = as_place(place)
    if isinstance(place, Path):
        return DiskStorage(place)
    require_extra("obstore", "cloud")
    from samtl.store.storage.object_store import BucketStorage

    return BucketStorage(place)


def cache_folder() -> Path | str:
    """Return where stores land by default: `$SAMTL_CACHE`, else `./cache`."""
    return as_place(os.environ.get("SAMTL_CACHE") or "cache")


def below(place: Path | str, name: str) -> Path | str:
    """Return the place of a name in a folder or below a URL."""
    return as_place(f"{place}/{name}")


def stores_in(place: Path | str) -> list[Path | str]:
    """List the stores directly in a folder by name, without hidden ones; a store is the only one in itself."""
    storage = open_storage(place)
    if storage.size(IDENTITY) is not None:
        return [place]
    folders = sorted(name for name, size in storage.list().items() if size == FOLDER)
    return [
        below(place, name)
        for name in folders
        if name[0] != "." and storage.size(f"{name}/{IDENTITY}") is not None
    ]


def locate(cache: str | os.PathLike[str] | None = None) -> Path | str:
    """Find the store that is meant.

    Parameters
    ----------
    cache : str or Path, optional
        A store, or a folder with exactly one, on a disk or in a bucket (`s3://...`); by default `cache_folder()`.

    Raises
    ------
    InputError
        If there is none, or there are several; these are listed.
    """
    place = as_place(cache) if cache is not None else cache_folder()
    found = stores_in(place)
    if not found:
        raise InputError(
            f"there is no store in {place}; make one with samtl embed, or name one with --cache"
        )
    if len(found) > 1:
        listed = "\n".join(f"  --cache {one}" for one in found)
        raise InputError(f"there are several stores in {place}; choose one:\n{listed}")
    return found[0]
