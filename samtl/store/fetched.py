"""Rows of shards in a bucket: asked for by their ranges, and kept on this machine's disk.

What is kept is named after the committed sha256 of the shard, so it can never be that of another content. It is no
evidence: whoever reads a row compares its checksum, and lets go of what does not fit.
"""

from __future__ import annotations

import contextlib
import os
import threading
import uuid
from collections.abc import Iterable
from pathlib import Path

from samtl.errors import DamageError, InputError, ResourceError
from samtl.store.layout import INDEX_BYTES
from samtl.store.log import CommittedFile
from samtl.store.remote import RemotePath, as_folder

# A shard of up to so many bytes is fetched whole with its first row: a request takes longer than the bytes.
WHOLE = 4 * 2**20
DEFAULT_GIB = 16.0


class RowCache:
    """A folder of pieces of shards; those that were not used for the longest time go first.

    Parameters
    ----------
    folder : Path
    most : int
        Bytes.
    """

    def __init__(self, folder: Path, most: int) -> None:
        self.folder, self.most = folder, most
        self._lock = threading.Lock()
        # Bytes that were kept since the folder was looked through; at first nobody knows.
        self._since = most
        self._stuck: set[str] = set()  # shards whose pieces could not be removed

    def get(self, sha256: str, start: int, stop: int) -> bytes | None:
        """Give a piece of a shard, None where it is not kept."""
        if sha256 in self._stuck:
            return None
        path = self._path(sha256, start, stop)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return content if len(content) == stop - start else None

    def put(self, sha256: str, start: int, stop: int, content: bytes) -> None:
        """Keep a piece of a shard; where the disk does not take it, go without."""
        if len(content) > self.most:
            return
        path = self._path(sha256, start, stop)
        temporary = path.with_name(f".tmp-{uuid.uuid4().hex}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(content)
            temporary.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            return
        with self._lock:
            self._since += len(content)
            if self._since * 16 >= self.most:
                self._since = 0
                self._make_room()

    def drop(self, sha256: str) -> None:
        """Forget all pieces of a shard; where they cannot be removed, give none of them any more."""
        try:
            for path in (self.folder / sha256).iterdir():
                path.unlink(missing_ok=True)
        except FileNotFoundError:
            pass
        except OSError:
            self._stuck.add(sha256)

    def _path(self, sha256: str, start: int, stop: int) -> Path:
        return self.folder / sha256 / f"{start}-{stop}"

    def _make_room(self) -> None:
        """Remove the oldest until there is room for a sixteenth."""
        found = []
        for folder in _entries(self.folder):
            for entry in _entries(folder.path):
                with contextlib.suppress(OSError):
                    about = entry.stat(follow_symlinks=False)
                    found.append((about.st_mtime, about.st_size, entry.path))
        there = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if there <= self.most - self.most // 16:
                break
            with contextlib.suppress(OSError):
                os.unlink(path)  # noqa: PTH108
            there -= size
        for folder in _entries(self.folder):
            with contextlib.suppress(OSError):
                os.rmdir(folder.path)  # noqa: PTH106  # those that are empty


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        return list(entries)
    return []


def row_cache() -> RowCache:
    """Give the folder that the environment names: `$SAMTL_ROW_CACHE`, of `$SAMTL_ROW_CACHE_GIB` GiB at the most."""
    import pooch

    given = os.environ.get("SAMTL_ROW_CACHE_GIB") or DEFAULT_GIB
    try:
        most = int(float(given) * 2**30)
    except (ValueError, OverflowError):
        raise InputError(f"SAMTL_ROW_CACHE_GIB must be a number of GiB, got {given!r}") from None
    folder = as_folder(os.environ.get("SAMTL_ROW_CACHE") or pooch.os_cache("samtl") / "rows")
    return RowCache(folder, max(0, most))


class FetchedShard:
    """A shard in a bucket, of which bytes are taken like those of a file in memory.

    Parameters
    ----------
    path : RemotePath
    file : CommittedFile
    cache : RowCache
    """

    def __init__(self, path: RemotePath, file: CommittedFile, cache: RowCache) -> None:
        self.path, self.file, self._cache = path, file, cache
        self._recent: dict[tuple[int, int], memoryview] = {}  # pieces of the latest call

    def __len__(self) -> int:
        """Give its size in bytes, as it was committed."""
        return self.file.size

    def __getitem__(self, part: slice) -> memoryview:
        """Give the bytes from `start` to before `stop`."""
        return self.pieces([(int(part.start), int(part.stop))])[0]

    def end(self, *, anew: bool = False) -> memoryview:
        """Give the shard's index.

        Parameters
        ----------
        anew : bool
            Whether to ask the bucket whatever is kept.

        Raises
        ------
        DamageError
            Where the object is gone or of another size.
        """
        size = self.file.size
        start = size - INDEX_BYTES
        if anew:
            self._forget()
        if size <= WHOLE:
            return self._whole(anew)[start:]
        kept = self._kept((start, size), anew)
        if kept is not None:
            return kept
        try:
            content, there = self.path.read_end(INDEX_BYTES)
        except FileNotFoundError as error:
            raise self._gone() from error
        self._check_size(there)
        self._cache.put(self.file.sha256, start, size, content)
        return memoryview(content)

    def pieces(self, ranges: Iterable[tuple[int, int]], *, anew: bool = False) -> list[memoryview]:
        """Give several ranges, those that are not kept in as few requests as it takes.

        Parameters
        ----------
        ranges : iterable of (start, stop)
        anew : bool
            Whether to ask the bucket whatever is kept: that may be what is wrong.

        Raises
        ------
        DamageError
            Where the object is gone or of another size.
        """
        asked = list(ranges)
        if anew:
            self._forget()
        if self.file.size <= WHOLE:
            whole = self._whole(anew)
            return [whole[start:stop] for start, stop in asked]
        found: dict[tuple[int, int], memoryview] = {}
        lacking = []
        for one in dict.fromkeys(asked):
            kept = self._kept(one, anew)
            if kept is None:
                lacking.append(one)
            else:
                found[one] = kept
        if lacking:
            try:
                fetched = self.path.read_ranges(lacking)
            except FileNotFoundError as error:
                raise self._gone() from error
            except ResourceError:
                self._check_size(self.path.stat().st_size)  # or there are no such bytes
                raise
            for one, content in zip(lacking, fetched, strict=True):
                found[one] = memoryview(content)
                self._cache.put(self.file.sha256, *one, content)
        if anew or not self._recent.keys() >= found.keys():
            self._recent = found
        return [found[one] for one in asked]

    def _forget(self) -> None:
        # In memory another thread, which had the same from the disk already, may keep it again.
        self._recent = {}
        self._cache.drop(self.file.sha256)

    def _kept(self, piece: tuple[int, int], anew: bool) -> memoryview | None:
        if anew:
            return None
        kept = self._recent.get(piece) or self._cache.get(self.file.sha256, *piece)
        return None if kept is None else memoryview(kept)

    def _whole(self, anew: bool) -> memoryview:
        every = (0, self.file.size)
        whole = self._kept(every, anew)
        if whole is None:
            try:
                content = self.path.read_bytes(self.file.size)
            except FileNotFoundError as error:
                raise self._gone() from error
            self._check_size(len(content))
            self._cache.put(self.file.sha256, *every, content)
            whole = memoryview(content)
        self._recent = {every: whole}
        return whole

    def _check_size(self, there: int) -> None:
        if there != self.file.size:
            raise DamageError(
                f"{self.path} has {there} bytes, but {self.file.size} were committed: the store is damaged there"
            )

    def _gone(self) -> DamageError:
        return DamageError(f"{self.path} is not there: the store is damaged")
