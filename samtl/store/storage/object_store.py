"""Stores in a bucket: S3, Google Cloud Storage or Azure, through obstore (extra `cloud`).

Objects are created on the condition that there is none (`If-None-Match: *`). Rows are fetched by ranges and kept on the
local disk under the committed sha256 of their shard; whoever reads a row verifies its checksum.
"""

from __future__ import annotations

import functools
import mmap
import os
import random
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import AzureStore, GCSStore, S3Store

from samtl._download import user_folder
from samtl._io import require_size
from samtl._runtime import Result, Task, prefetch
from samtl.errors import InputError, ResourceError
from samtl.store.storage import FOLDER, MAX_BYTES, Ranges, Storage, as_folder, parse

REQUESTS = 32  # at a time
ATTEMPTS = 5  # of a write; the client itself repeats what is safe to repeat
FIRST_PAUSE = 0.1  # seconds, doubled each time
RETRY: Any = {"max_retries": 5, "retry_timeout": timedelta(seconds=30)}
CLIENT: Any = {"connect_timeout": "10s", "timeout": "120s"}
# A shard of up to so many bytes is fetched whole with its first row: a request takes longer than the bytes.
WHOLE = 4 * 2**20
DEFAULT_GIB = "16"  # of the row cache

_PROCESS = os.getpid()
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_HOST = r"({}[\w.-]+|\[[0-9a-fA-F:]+\])(:\d+)?(/[\w./-]*)?"
_VIRTUAL = "AWS_VIRTUAL_HOSTED_STYLE_REQUEST"
_CLIENTS: dict[str, Any] = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}
# Patterns of what a server or the client answers, and what it means; the first that matches counts.
_MEANINGS = {
    # The addresses give cloud machines their credentials.
    r"169\.254\.169\.254|169\.254\.170\.2|metadata\.google|Missing (?:AccessKeyId|SecretAccessKey)\b":
        "there are no credentials; set {credentials} in the environment (profiles of tools are not read)",
    "<Code>ExpiredToken": "the credentials have expired; set new ones, {credentials}, in the environment",
    "<Code>RequestTimeTooSkewed": "the server's time is far from this machine's; set this machine's clock",
    r"<Region>([\w-]+)</Region>|status code: 301|redirect without LOCATION|IllegalLocationConstraint":
        "the bucket is in another region ({group}); set AWS_REGION to that",
    "(?s)performing HEAD.*status code: 400":
        "the server answers 400 and no reason, as for credentials that have expired ({credentials}) or a bucket in "
        "another region (AWS_REGION)",
    "status code: 40[13]|PermissionDenied|Unauthenticated|Forbidden":
        "the server refuses access; set {credentials} in the environment to some that may list, read and write there, "
        "and see that this machine's clock is right",
}  # fmt: skip


class _Refused(ResourceError):
    """An answer that asking again does not change."""


class BucketStorage(Storage):
    """Objects below a prefix of a bucket; settings and credentials come from the environment."""

    def __init__(self, url: str) -> None:
        self.scheme, self.bucket, self.prefix = parse(url)
        self.url = f"{self.scheme}://{self.bucket}/{self.prefix}".rstrip("/")
        self._sizes: dict[str, int] = {}  # of shards whose rows were fetched

    @property
    def _client(self) -> Any:
        if os.getpid() != _PROCESS:
            raise InputError(
                f"{self.url}: this process was forked from one that reads a bucket, and would hang; start it with "
                "spawn or forkserver (of a DataLoader: multiprocessing_context='spawn')"
            )
        return client(self.scheme, self.bucket, self.prefix)

    def read(self, name: str, most: int = MAX_BYTES) -> bytes:
        with self._explained(name):
            found = obstore.get(self._client, name)
            require_size(f"{self.url}/{name}", found.meta["size"], most)
            return bytes(found.bytes())

    def read_ranges(
        self, name: str, ranges: Ranges, size: int, sha256: str, anew: bool = False
    ) -> Sequence[bytes]:
        """Read ranges of an object, those near each other with one request, and keep them in the row cache."""
        cache = row_cache()
        whole = size <= min(WHOLE, cache.most)
        parts = [(0, size)] if whole else ranges
        held = {part: b"" if anew else cache.get(sha256, part) for part in parts}
        lacking = [part for part, content in held.items() if not content]
        if lacking:
            fetched = [self.read(name)] if whole else self._fetch(name, lacking, size, anew)
            for part, content in zip(lacking, fetched, strict=True):
                held[part] = content
                cache.put(sha256, part, content)
        if whole:
            return [bytes(held[0, size][start:stop]) for start, stop in ranges]
        return [bytes(held[part]) for part in ranges]

    def _fetch(self, name: str, parts: Ranges, size: int, anew: bool) -> list[bytes]:
        # The client would panic at a range beyond the end.
        if anew or self._sizes.get(name) != size:
            there = self.size(name)
            if there is None:
                raise FileNotFoundError(f"{self.url}/{name} does not exist")
            if there != size:
                return [b""] * len(parts)
            self._sizes[name] = size
        starts, ends = zip(*parts, strict=True)
        with self._explained(name):
            found = obstore.get_ranges(self._client, name, starts=starts, ends=ends)
            return [bytes(one) for one in found]

    def list(self, folder: str = "") -> dict[str, int]:
        with self._explained(folder):
            found = obstore.list_with_delimiter(self._client, folder or None)
        names = {name.rstrip("/").rpartition("/")[2]: FOLDER for name in found["common_prefixes"]}
        for one in found["objects"]:
            name = one["path"].rpartition("/")[2]
            # "NAME/" is an empty object that some tools write for a folder.
            if one["path"] not in ("", folder) and (one["size"] or name not in names):
                names[name] = one["size"]
        return names

    def size(self, name: str) -> int | None:
        with suppress(FileNotFoundError), self._explained(name):
            return obstore.head(self._client, name)["size"]
        return None

    def create(self, name: str, pieces: Iterable[bytes | memoryview]) -> None:
        self._put(name, b"".join(pieces), "create")

    def replace(self, name: str, content: bytes) -> None:
        self._put(name, content, "overwrite")

    def _put(self, name: str, content: bytes, mode: Literal["create", "overwrite"]) -> None:
        """Write an object, repeatedly if the server gives no clear answer.

        An answer may be lost after the object was written, and a server may say of two writes at the same time that the
        object exists when neither wrote it; so what is there is read and compared.
        """
        for number in range(ATTEMPTS):
            try:
                with self._explained(name):
                    obstore.put(self._client, name, content, mode=mode, use_multipart=False)
                return
            except _Refused:
                raise
            except ResourceError as error:
                failed = error
            if mode == "create":
                with suppress(FileNotFoundError, ResourceError):
                    if self.read(name) == content:
                        return
                    raise FileExistsError(f"{self.url}/{name} exists")
            time.sleep(FIRST_PAUSE * 2**number * random.uniform(1, 1.5))
        raise failed

    def delete(self, name: str) -> None:
        with suppress(FileNotFoundError), self._explained(name):
            obstore.delete(self._client, name)

    def settle(self, *folders: str) -> None:
        """Do nothing: what a bucket lists is durable."""

    def each(self, work: Callable[[Task], Result], items: Iterable[Task]) -> Iterator[Result]:
        return prefetch(work, items, REQUESTS, 2 * REQUESTS)

    def sweep(self) -> None:
        """Do nothing: objects have no temporary names."""

    def zarr_store(self) -> Any:
        from zarr.storage import ObjectStore

        return ObjectStore(self._client, read_only=True)

    @contextmanager
    def _explained(self, name: str) -> Iterator[None]:
        """Turn what a server answers into one clear message."""
        where = f"{self.url}/{name}".rstrip("/")
        try:
            yield
        except (FileNotFoundError, BaseError) as error:
            if "NoSuchBucket" in str(error):
                raise InputError(
                    f"{where}: there is no bucket {self.bucket!r}; make it first, or name another"
                ) from error
            taken = isinstance(error, (AlreadyExistsError, PreconditionError))
            if not taken and (meaning := _meaning(error, self.scheme)):
                raise _Refused(f"{where}: {meaning}, then run it again") from error
            if isinstance(error, FileNotFoundError):
                raise FileNotFoundError(f"{where} does not exist") from error
            raise ResourceError(
                f"{where}: the server does not answer as it should ({_first_line(error)}); what was committed is kept, "
                "run it again later"
            ) from error


def _meaning(error: Exception, scheme: str) -> str:
    for pattern, meaning in _MEANINGS.items():
        if found := re.search(pattern, f"{type(error).__name__} {error}"):
            group = next(filter(None, found.groups()), "the server does not say which")
            return meaning.format(credentials=_CREDENTIALS[scheme], group=group)
    return ""


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


@functools.cache
def client(scheme: str, bucket: str, prefix: str) -> Any:
    """Connect to a bucket."""
    virtual = os.environ.get(_VIRTUAL, "").lower() in ("1", "true", "on", "yes", "y")
    first = f"{bucket}." if virtual else ""
    given = {name: os.environ[name] for name in _ENDPOINTS if name in os.environ}
    for name, endpoint in given.items() if scheme == "s3" else ():
        # The client would panic, or take the first part of a key for the bucket.
        if not re.fullmatch(f"https?://{_HOST.format(re.escape(first))}", endpoint):
            raise InputError(
                f"{name} must be http://{first}HOST or https://{first}HOST, with a port if the server has one, got "
                f"{endpoint!r}"
            )
    plain = any(endpoint.startswith("http://") for endpoint in given.values())
    options = {"retry_config": RETRY, "client_options": {**CLIENT, "allow_http": plain}}
    try:
        # Not by its URL, which the client would take apart and decode.
        return _CLIENTS[scheme](bucket, prefix=prefix or None, **options)
    except (BaseError, ValueError) as error:
        if meaning := _meaning(error, scheme):
            raise ResourceError(f"{scheme}://{bucket}: {meaning}") from error
        raise InputError(f"{scheme}://{bucket} cannot be used: {_first_line(error)}") from error


class RowCache:
    """A folder of parts of shards; those not used for the longest time are removed first.

    Nothing depends on it: a part that cannot be kept is fetched again. `most` is in bytes.
    """

    def __init__(self, folder: Path, most: int) -> None:
        self.folder, self.most = folder, most
        self._since = most  # bytes kept since the folder was last looked through; at first unknown

    def get(self, sha256: str, part: tuple[int, int]) -> bytes | memoryview:
        """Map a part of a shard into memory; empty if it is not kept."""
        path = self.path(sha256, part)
        with suppress(OSError, ValueError):  # it is missing or empty
            with path.open("rb") as file:
                content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            os.utime(path)
            return content if len(content) == part[1] - part[0] else b""
        return b""

    def put(self, sha256: str, part: tuple[int, int], content: bytes) -> None:
        """Keep a part of a shard, if it is one and the disk takes it."""
        if len(content) != part[1] - part[0] or not 0 < len(content) <= self.most:
            return
        temporary = self.folder / f".tmp-{uuid.uuid4().hex}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(content)
            temporary.replace(self.path(sha256, part))
        except OSError:
            with suppress(OSError):
                temporary.unlink()
        self._since += len(content)
        if self._since * 16 >= self.most:
            self._since = 0
            with suppress(OSError):  # others remove parts, too
                self._make_room()

    def path(self, sha256: str, part: tuple[int, int]) -> Path:
        """Return where a part is kept."""
        return self.folder / f"{sha256}.{part[0]}-{part[1]}"

    def _make_room(self) -> None:
        """Remove the oldest until a sixteenth is free."""
        about = {path: path.stat() for path in self.folder.glob("*.*-*")}
        excess = sum(one.st_size for one in about.values()) - self.most * 15 // 16
        for path in sorted(about, key=lambda path: about[path].st_mtime):
            if excess > 0:
                path.unlink()
                excess -= about[path].st_size


def row_cache() -> RowCache:
    """Return the cache in `$SAMTL_ROW_CACHE`, of at most `$SAMTL_ROW_CACHE_GIB` GiB."""
    return _row_cache(
        user_folder("SAMTL_ROW_CACHE", "rows"), os.environ.get("SAMTL_ROW_CACHE_GIB") or DEFAULT_GIB
    )


@functools.cache
def _row_cache(folder: Path, given: str) -> RowCache:
    try:
        most = int(float(given) * 2**30)
    except (ValueError, OverflowError):
        raise InputError(f"SAMTL_ROW_CACHE_GIB must be a number of GiB, got {given!r}") from None
    return RowCache(as_folder(folder), max(0, most))
