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
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import obstore
import pooch
from obstore.exceptions import AlreadyExistsError, BaseError, InvalidPathError, PreconditionError
from obstore.store import AzureStore, GCSStore, S3Store

from samtl._io import TEMPORARY
from samtl._runtime import prefetch
from samtl.errors import InputError, ResourceError
from samtl.store.storage import (
    FOLDER,
    MAX_BYTES,
    Ranges,
    Result,
    Storage,
    Task,
    as_folder,
    parse,
    too_long,
)

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

Client = S3Store | GCSStore | AzureStore

REQUESTS = 32  # at a time
ATTEMPTS = 5  # of a write; the client itself repeats what is safe to repeat
FIRST_PAUSE = 0.1  # seconds, doubled each time
RETRY: RetryConfig = {"max_retries": 5, "retry_timeout": timedelta(seconds=30)}
CLIENT: ClientConfig = {"connect_timeout": "10s", "timeout": "120s"}
# A shard of up to so many bytes is fetched whole with its first row: a request takes longer than the bytes.
WHOLE = 4 * 2**20
DEFAULT_GIB = 16.0  # of the row cache

_PROCESS = os.getpid()
_ENDPOINT = re.compile(r"https?://[\w.-]+(:\d+)?(/[\w./-]*)?|https?://\[[0-9a-fA-F:]+\](:\d+)?/?")
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_VIRTUAL = "AWS_VIRTUAL_HOSTED_STYLE_REQUEST"
_SETTINGS = {"s3": "AWS", "gs": "GOOGLE", "az": "AZURE"}
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}
# Patterns of what a server or the client answers, and what it means; the first that matches counts.
_MEANINGS = (
    (
        # The addresses give cloud machines their credentials.
        r"169\.254\.169\.254|169\.254\.170\.2|metadata\.google|Missing (?:AccessKeyId|SecretAccessKey)\b",
        "there are no credentials; set {credentials} in the environment (profiles of tools are not read)",
    ),
    ("<Code>ExpiredToken", "the credentials have expired; set new ones by {settings}_... in the environment"),
    ("<Code>RequestTimeTooSkewed", "the server's time is far from this machine's; set this machine's clock"),
    (
        r"<Region>([\w-]+)</Region>|status code: 301|redirect without LOCATION|IllegalLocationConstraint",
        "the bucket is in another region ({group}); set AWS_REGION to that",
    ),
    (
        "(?s)performing HEAD.*status code: 400",
        "the server answers 400 and no reason, as for credentials that have expired or a bucket in another region; set "
        "new credentials by {settings}_... in the environment, or AWS_REGION",
    ),
    (
        "status code: 40[13]|PermissionDenied|Unauthenticated|Forbidden",
        "the server refuses access; set credentials by {settings}_... that may list, read and write there, and see "
        "that this machine's clock is right",
    ),
)  # fmt: skip


class _Refused(ResourceError):
    """An answer that asking again does not change."""


class BucketStorage(Storage):
    """Objects below a prefix of a bucket; settings and credentials come from the environment."""

    def __init__(self, url: str) -> None:
        self.scheme, self.bucket, self.prefix = parse(url)
        self.url = f"{self.scheme}://{self.bucket}/{self.prefix}".rstrip("/")
        self._sizes: dict[str, int] = {}  # of shards whose rows were fetched

    @property
    def _client(self) -> Client:
        if os.getpid() != _PROCESS:
            raise InputError(
                f"{self.url}: this process was forked from one that reads a bucket, and would hang; start it with "
                "spawn or forkserver (of a DataLoader: multiprocessing_context='spawn')"
            )
        return client(self.scheme, self.bucket, self.prefix)

    def read(self, name: str, most: int = MAX_BYTES) -> bytes:
        with self._explained(name):
            found = obstore.get(self._client, name)
            if found.meta["size"] <= most:
                return bytes(found.bytes())
        raise too_long(f"{self.url}/{name}", found.meta["size"], most)

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
        try:
            with self._explained(name):
                return obstore.head(self._client, name)["size"]
        except FileNotFoundError:
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
            except ResourceError as error:
                if isinstance(error, _Refused):
                    raise
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

    def each(self, work: Callable[[Task], Result], items: Iterable[Task]) -> Iterator[Result]:
        return prefetch(work, items, REQUESTS, 2 * REQUESTS)

    def sweep(self, seconds: float = 0) -> None:
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
        except InvalidPathError as error:
            raise InputError(f"{where} cannot be an object's name: {_first_line(error)}") from error
        except (FileNotFoundError, BaseError) as error:
            if "NoSuchBucket" in str(error):
                raise InputError(
                    f"{where}: there is no bucket {self.bucket!r}; make it first, or name another"
                ) from error
            taken = isinstance(error, (AlreadyExistsError, PreconditionError))
            meaning = _meaning(error, self.scheme)
            if meaning and not taken:
                raise _Refused(f"{where}: {meaning}, then run it again") from error
            if isinstance(error, FileNotFoundError):
                raise FileNotFoundError(f"{where} does not exist") from error
            raise ResourceError(
                f"{where}: the server does not answer as it should ({_first_line(error)}); what was committed is kept, "
                "run it again later"
            ) from error


def _meaning(error: Exception, scheme: str) -> str:
    text = f"{type(error).__name__} {error}"
    for pattern, meaning in _MEANINGS:
        if found := re.search(pattern, text):
            group = next(filter(None, found.groups()), "the server does not say which")
            credentials = _CREDENTIALS[scheme]
            return meaning.format(settings=_SETTINGS[scheme], credentials=credentials, group=group)
    return ""


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


@functools.cache
def client(scheme: str, bucket: str, prefix: str) -> Client:
    """Connect to a bucket."""
    where = f"{scheme}://{bucket}"
    virtual = os.environ.get(_VIRTUAL, "").lower() in ("1", "true", "on", "yes", "y")
    given = {name: os.environ[name] for name in _ENDPOINTS if name in os.environ}
    for name, endpoint in given.items() if scheme == "s3" else ():
        if not _ENDPOINT.fullmatch(endpoint):  # the client would panic
            raise InputError(
                f"{name} must be http://HOST or https://HOST, with a port if the server has one, got {endpoint!r}"
            )
        if virtual and not endpoint.partition("//")[2].startswith(f"{bucket}."):
            # The first part of a key would be taken for the bucket there.
            raise InputError(
                f"{name} must begin with the bucket's name, http(s)://{bucket}.HOST, if {_VIRTUAL} is set, got "
                f"{endpoint!r}"
            )
    plain = any(endpoint.startswith("http://") for endpoint in given.values())
    options: ClientConfig = {**CLIENT, "allow_http": plain}
    kinds: dict[str, type[Client]] = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}
    try:
        # Not by its URL, which the client would take apart and decode.
        return kinds[scheme](
            bucket, prefix=prefix or None, retry_config=RETRY, client_options=options
        )
    except (BaseError, ValueError) as error:
        if meaning := _meaning(error, scheme):
            raise ResourceError(f"{where}: {meaning}") from error
        raise InputError(f"{where} cannot be used: {_first_line(error)}") from error


class RowCache:
    """A folder of parts of shards; those not used for the longest time are removed first.

    Nothing depends on it: a part that cannot be kept is fetched again. `most` is in bytes.
    """

    def __init__(self, folder: Path, most: int) -> None:
        self.folder, self.most = folder, most
        self._lock = threading.Lock()
        self._since = most  # bytes kept since the folder was last looked through; at first unknown

    def get(self, sha256: str, part: tuple[int, int]) -> bytes | memoryview:
        """Map a part of a shard into memory; empty if it is not kept."""
        path = self._path(sha256, part)
        try:
            with path.open("rb") as file:
                content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            os.utime(path)
        except (OSError, ValueError):  # it is missing or empty
            return b""
        return content if len(content) == part[1] - part[0] else b""

    def put(self, sha256: str, part: tuple[int, int], content: bytes) -> None:
        """Keep a part of a shard, if it is one and the disk takes it."""
        if len(content) != part[1] - part[0] or not 0 < len(content) <= self.most:
            return
        path = self._path(sha256, part)
        temporary = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(content)
            temporary.replace(path)
        except OSError:
            with suppress(OSError):
                temporary.unlink()
            return
        with self._lock:
            self._since += len(content)
            if self._since * 16 >= self.most:
                self._since = 0
                self._make_room()

    def _path(self, sha256: str, part: tuple[int, int]) -> Path:
        return self.folder / sha256 / f"{part[0]}-{part[1]}"

    def _make_room(self) -> None:
        """Remove the oldest until a sixteenth is free."""
        found = []
        for path in self.folder.glob("*/*"):
            with suppress(OSError):
                about = path.stat()
                found.append((about.st_mtime, about.st_size, path))
        there = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if there <= self.most - self.most // 16:
                break
            there -= size
            with suppress(OSError):
                path.unlink()
                path.parent.rmdir()  # fails unless it was the last


def row_cache() -> RowCache:
    """Return the cache in `$SAMTL_ROW_CACHE`, of at most `$SAMTL_ROW_CACHE_GIB` GiB."""
    folder = os.environ.get("SAMTL_ROW_CACHE") or str(pooch.os_cache("samtl") / "rows")
    return _row_cache(folder, os.environ.get("SAMTL_ROW_CACHE_GIB") or str(DEFAULT_GIB))


@functools.cache
def _row_cache(folder: str, given: str) -> RowCache:
    try:
        most = int(float(given) * 2**30)
    except (ValueError, OverflowError):
        raise InputError(f"SAMTL_ROW_CACHE_GIB must be a number of GiB, got {given!r}") from None
    return RowCache(as_folder(folder), max(0, most))
