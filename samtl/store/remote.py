"""Stores in a bucket: what the code of a store asks of a path, answered by an object store.

A `RemotePath` looks like a path. What would touch this machine's disk by mistake fails: it has no name there. There
are no folders in a bucket, so that one "exists" where an object's key begins with its name.
"""

from __future__ import annotations

import errno
import fnmatch
import functools
import io
import os
import random
import re
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path, PosixPath
from typing import IO, TYPE_CHECKING, Any, TypeVar

from samtl.errors import DamageError, InputError, ResourceError

if TYPE_CHECKING:
    from obstore import ObjectMeta, PutMode, PutResult, UpdateVersion
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

_Result = TypeVar("_Result")

SCHEMES = {"s3": "AWS", "gs": "GOOGLE", "az": "AZURE"}  # and what its settings' names begin with
# A drive's name has one letter; of a URL without a bucket, a path keeps the scheme alone.
_URL = re.compile(rf"[A-Za-z][A-Za-z0-9+.-]+:/|(?i:{'|'.join(SCHEMES)}):$")
# No sign by which a URL would be taken apart: what is left of it may be the name of another bucket.
_BUCKET = re.compile(r"[A-Za-z0-9._-]+")
# For stores that this process holds: what raises where it may not write there any more.
holds: dict[str, Callable[[], None]] = {}
# How often what may have failed is tried, the client's own attempts at what is safe to repeat not counted.
ATTEMPTS = 5
_FIRST_PAUSE = 0.1  # seconds, doubled each time, and up to half of it by chance
_RETRY: RetryConfig = {"max_retries": 5, "retry_timeout": timedelta(seconds=30)}
_CLIENT: ClientConfig = {"connect_timeout": "10s", "timeout": "120s"}
_NO_RETRY: RetryConfig = {"max_retries": 0, "retry_timeout": timedelta(seconds=5)}
_QUICK_CLIENT: ClientConfig = {"connect_timeout": "5s", "timeout": "8s"}
_ASKED_BY_NOBODY = (".lock", ".probe-")  # what `samtl.store.lease` itself writes
_CREDENTIALS = {
    "AWS": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "GOOGLE": "GOOGLE_APPLICATION_CREDENTIALS",
    "AZURE": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}
# Where a client without credentials asks for those of the machine, in a cloud that it is not in.
_MACHINES = ("169.254.169.254", "169.254.170.2", "metadata.google")
_ENDPOINT = re.compile(r"https?://[\w.-]+(:\d+)?(/[\w./-]*)?|https?://\[[0-9a-fA-F:]+\](:\d+)?/?")
# What S3 answers, as the client's text has it: the answer to a HEAD has no code.
_STATUS = re.compile(r"non-2xx status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_REGION = re.compile(r"<Region>([\w-]+)</Region>")
_HEAD = "Error performing HEAD"
_LIST = "Error performing list request"
_OTHER_REGION = (
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
    "PermanentRedirect",
)
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_VIRTUAL = "AWS_VIRTUAL_HOSTED_STYLE_REQUEST"


class RemotePath(PosixPath):
    """The place of an object, or of several under one prefix: `s3://BUCKET/KEY`.

    Only what stores need is there: reading, listing, publishing. Renaming copies. What writes asks first whether this
    process still holds the store, where it did.
    """

    attempts = ATTEMPTS

    def __str__(self) -> str:
        """Give the URL."""
        if not self.parts or not self.parts[0].endswith(":"):
            return "/".join(self.parts) or "."  # relative to another
        scheme, *rest = self.parts
        return f"{scheme}//{'/'.join(rest)}"

    def __repr__(self) -> str:
        """Give the URL as Python."""
        return f"RemotePath({str(self)!r})"

    def __fspath__(self) -> str:
        """Refuse to be a name on this machine's disk."""
        raise TypeError(f"{self} is in a bucket: there is no file of that name")

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to another process by the URL."""
        return remote, (str(self),)

    @property
    def key(self) -> str:
        """The object's name in its bucket."""
        return "/".join(self.parts[2:])

    @property
    def bucket(self) -> ObjectStore:
        """The client of its bucket."""
        return client(self.parts[0], self.parts[1], os.getpid())

    def _require_held(self) -> None:
        """Raise LockedError where the store is held by this process no more."""
        if self.name.startswith(_ASKED_BY_NOBODY):
            return
        for parent in self.parents:
            require = holds.get(str(parent))
            if require is not None:
                require()

    # What paths on a disk can, too

    def resolve(self, strict: bool = False) -> RemotePath:
        """Give the path: there are no links in a bucket."""
        return self

    def absolute(self) -> RemotePath:
        """Give the path."""
        return self

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """Give the size of an object, and when it was written by the server's clock."""
        import obstore

        with self._asked():
            about = obstore.head(self.bucket, self.key)
        seconds = int(about["last_modified"].timestamp())
        return os.stat_result((0o100644, 0, 0, 1, 0, 0, about["size"], seconds, seconds, seconds))

    def is_file(self, **options: bool) -> bool:
        """Tell whether there is an object of that name."""
        if len(self.parts) < 3:
            return False
        try:
            self.stat()
        except FileNotFoundError:
            return False
        return True

    def is_dir(self, **options: bool) -> bool:
        """Tell whether an object's name begins with this one; a bucket's always does."""
        import obstore

        if len(self.parts) < 3:
            return True
        with self._asked():
            return next(iter(obstore.list(self.bucket, self.key, chunk_size=1)), None) is not None

    def is_symlink(self) -> bool:
        """Say that it is none."""
        return False

    def exists(self, **options: bool) -> bool:
        """Tell whether there is an object of that name, or one whose name begins with it."""
        return self.is_file() or self.is_dir()

    def iterdir(self) -> Generator[RemotePath, None, None]:
        """List what is directly below."""
        for name in self.names():
            yield self / name

    def glob(self, pattern: str, **options: bool) -> Iterator[RemotePath]:  # type: ignore[override]
        """List what is below and fits a pattern, which may have several parts but no `**`."""
        first, _, rest = pattern.partition("/")
        for name in sorted(self.names()):
            if not fnmatch.fnmatchcase(name, first):
                continue
            if not rest:
                yield self / name
            elif any(sign in rest for sign in "*?["):
                yield from (self / name).glob(rest)
            elif (self / name / rest).exists():
                yield self / name / rest

    def read_bytes(self, most: int | None = None) -> bytes:
        """Read an object; raises DamageError where it has more bytes than it may, before they are fetched."""
        import obstore

        with self._asked():
            try:
                found = obstore.get(self.bucket, self.key)
            except FileNotFoundError:
                if self.is_dir():  # as a disk says of a folder
                    raise IsADirectoryError(
                        errno.EISDIR, os.strerror(errno.EISDIR), str(self)
                    ) from None
                raise
            size = found.meta["size"]
            if most is None or size <= most:
                return bytes(found.bytes())
        raise DamageError(f"{self} has {size} bytes, but at most {most} may be: it is damaged")

    def open(self, mode: str = "r", *arguments: Any, **options: Any) -> IO[Any]:  # type: ignore[override]
        """Read an object, as a file of bytes."""
        if mode != "rb":
            raise ValueError(f"an object is opened with 'rb', not with {mode!r}")
        return io.BytesIO(self.read_bytes())

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove an object."""
        import obstore

        self._require_held()
        with self._asked():
            obstore.delete(self.bucket, self.key)

    def rename(self, target: str | os.PathLike[str]) -> RemotePath:
        """Copy an object, or all below, then remove what was copied."""
        import obstore

        other = remote(str(target))
        self._require_held()
        with self._asked():
            try:
                obstore.copy(self.bucket, self.key, other.key)
            except FileNotFoundError:
                if not self.is_dir():
                    raise
                for name in self.names():
                    (self / name).rename(other / name)
                return other
        self.unlink()
        return other

    # What is other than on a disk

    def names(self) -> list[str]:
        """List the names of what is directly below."""
        objects, folders = self._below()
        return list(dict.fromkeys([*objects, *folders]))

    def sizes(self) -> dict[str, int]:
        """Map each object directly below to its size in bytes."""
        return self._below()[0]

    def _below(self) -> tuple[dict[str, int], list[str]]:
        import obstore

        with self._asked():
            found = obstore.list_with_delimiter(self.bucket, self.key or None)
        folders = [name.rstrip("/").rpartition("/")[2] for name in found["common_prefixes"]]
        objects = {
            one["path"].rpartition("/")[2]: one["size"]
            for one in found["objects"]
            if one["path"] != self.key  # "NAME/", which some tools write for a folder
        }
        return {
            name: size for name, size in objects.items() if size or name not in folders
        }, folders

    def read_ranges(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Read several ranges of an object, those near each other at once."""
        import obstore

        starts, ends = [start for start, _ in ranges], [stop for _, stop in ranges]
        with self._asked():
            found = obstore.get_ranges(self.bucket, self.key, starts=starts, ends=ends)
        return [bytes(one) for one in found]

    def read_end(self, length: int) -> tuple[bytes, int]:
        """Read the last bytes of an object, and its size."""
        import obstore

        with self._asked():
            found = obstore.get(self.bucket, self.key, options={"range": {"suffix": length}})
            return bytes(found.bytes()), found.meta["size"]

    def create(self, content: bytes) -> None:
        """Write an object that is not there yet; it is there whole or not at all.

        Raises
        ------
        FileExistsError
            Where it is there with another content; that stays.
        ResourceError
            Where the server does not answer in several attempts.
        """
        self.swap(content, None)

    def swap(self, content: bytes, version: UpdateVersion | None) -> UpdateVersion:
        """Write an object where it is still of a version, or is not there.

        An answer may be lost after the object was written, and a server may say of two writes at a time that the object
        exists when neither wrote it. So what is there is read and compared before anything is believed.

        Parameters
        ----------
        content : bytes
        version : UpdateVersion, optional
            What `version` gave, or an earlier `swap`; None where there must be no such object.

        Returns
        -------
        UpdateVersion
            Of what is there now.

        Raises
        ------
        FileExistsError
            Where it is of another version, and of another content; that stays.
        FileNotFoundError
            Where it is gone.
        ResourceError
            Where the server does not answer in several attempts.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

        def attempt() -> UpdateVersion | None:
            self._require_held()
            failed: BaseError | None = None
            mode: PutMode = "create" if version is None else version
            try:
                done = obstore.put(self.bucket, self.key, content, mode=mode, use_multipart=False)
                return _version(done)
            except (AlreadyExistsError, PreconditionError):
                pass
            except BaseError as error:
                failed = error
            try:
                found = obstore.get(self.bucket, self.key)
                there = bytes(found.bytes())
            except FileNotFoundError:
                if failed is not None:
                    raise failed from None
                if version is not None:
                    raise
                return None
            now = _version(found.meta)
            if there == content:
                return now
            if now == version:
                if failed is not None:
                    raise failed
                return None  # another write was on its way, and failed
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(self))

        return self._often(attempt)

    def version(self) -> tuple[UpdateVersion, float]:
        """Give the version of an object, and when it was written by the server's clock, in seconds since 1970."""
        import obstore

        with self._asked():
            about = obstore.head(self.bucket, self.key)
        return _version(about), about["last_modified"].timestamp()

    def replace_with(self, content: bytes) -> None:
        """Write an object, in the place of an older one if there is one."""
        import obstore

        def attempt() -> PutResult:
            self._require_held()
            return obstore.put(
                self.bucket, self.key, content, mode="overwrite", use_multipart=False
            )

        self._often(attempt)

    def _often(self, attempt: Callable[[], _Result | None]) -> _Result:
        """Try until there is a result; `attempt` raises what the client does."""
        for number in range(self.attempts):
            with self._asked(last=number == self.attempts - 1):
                result = attempt()
                if result is not None:
                    return result
            pause = _FIRST_PAUSE * 2**number
            time.sleep(pause + random.uniform(0, pause / 2))
        raise ResourceError(
            f"{self} cannot be written: the server refuses it as if another wrote it, and nobody does; tried "
            f"{self.attempts} times"
        )

    @contextmanager
    def _asked(self, last: bool = True) -> Iterator[None]:
        """Say in samtl's own words what an object store answers."""
        from obstore.exceptions import (
            BaseError,
            InvalidPathError,
            PermissionDeniedError,
            UnauthenticatedError,
        )

        prefix = SCHEMES[self.parts[0].rstrip(":")]
        try:
            yield
        except (PermissionDeniedError, UnauthenticatedError) as error:
            self._raise_known(error)
            clock = (
                "; one whose clock is wrong is refused like this, too"
                if _HEAD in str(error)
                else ""
            )
            raise ResourceError(
                f"{self}: the server refuses access ({_first_line(error)}); set the credentials by {prefix}_... in the "
                f"environment, and see what they may do{clock}"
            ) from error
        except (InvalidPathError, ValueError) as error:
            raise InputError(f"{self} is no name of an object: {_first_line(error)}") from error
        except IsADirectoryError:
            raise
        except (FileNotFoundError, BaseError) as error:
            if any(machine in str(error) for machine in _MACHINES):
                raise _no_credentials(str(self), prefix) from error
            if "NoSuchBucket" in str(error):
                raise InputError(
                    f"{self}: there is no bucket {self.parts[1]!r}; make it first, or name another"
                ) from error
            if isinstance(error, FileNotFoundError):
                raise FileNotFoundError(
                    errno.ENOENT, os.strerror(errno.ENOENT), str(self)
                ) from error
            self._raise_known(error)
            if last:
                raise ResourceError(
                    f"{self}: the server does not answer as it should ({_first_line(error)}); nothing that was "
                    "committed is lost, run it again once it does"
                ) from error

    def _raise_known(self, error: BaseException) -> None:
        """Raise ResourceError where an answer is one that asking again does not change, and it is known why."""
        what = _meaning(str(error), SCHEMES[self.parts[0].rstrip(":")])
        if what:
            raise ResourceError(
                f"{self}: {what}, then run it again: nothing that was committed is lost"
            ) from error


def remote(url: str) -> RemotePath:
    """Make a path of a URL.

    Raises
    ------
    InputError
        Where its scheme is none that can be had, no bucket is named or none that can be, or the package is not
        installed.
    """
    given, _, rest = url.partition(":")
    scheme = given.lower()
    parts = [part for part in rest.split("/") if part]
    if scheme not in SCHEMES or not parts or {".", ".."} & {*parts} or not url.isprintable():
        raise InputError(
            f"{url} is no place for a store: expected a folder, or "
            f"{' or '.join(f'{name}://BUCKET/PREFIX' for name in SCHEMES)}"
        )
    if not _BUCKET.fullmatch(parts[0]):
        raise InputError(
            f"{url}: a bucket's name has letters from A to Z, digits, '.', '_' and '-' alone, got {parts[0]!r}"
        )
    try:
        import obstore  # noqa: F401
    except ImportError:
        raise InputError(
            f"{url}: buckets need the package obstore; pip install 'samtl[cloud]'"
        ) from None
    return RemotePath(f"{scheme}:", *parts)


def as_folder(path: str | Path) -> Path:
    """Make a path of what must be a folder on a disk.

    Raises
    ------
    InputError
        Where it is a URL.
    """
    if isinstance(as_path(path), RemotePath):
        raise InputError(f"{as_path(path)} is in a bucket, where only stores can be; name a folder")
    return Path(path)


def as_path(path: str | Path) -> Path:
    """Make a path of what a user gave: a folder, or a URL, which a command line may have taken for a path."""
    if isinstance(path, RemotePath):
        return path
    if _URL.match(str(path)):
        return remote(str(path))
    return Path(path)


@functools.cache
def client(
    scheme: str, bucket: str, process: int, patient: bool = True, prefix: str | None = None
) -> ObjectStore:
    """Connect to a bucket; settings come from the environment.

    Parameters
    ----------
    scheme : str
        With its colon.
    bucket : str
    process : int
        The number of this process: a client does not survive a fork.
    patient : bool
        Whether it may wait for an answer for minutes.
    prefix : str, optional
        What the keys that are asked of it are below, as it is: nothing in it is decoded.
    """
    if _first_process.setdefault("pid", process) != process:
        raise InputError(
            f"{scheme}//{bucket}: this process was forked from one that reads a bucket, and would hang; start it with "
            "spawn or forkserver (of a DataLoader: multiprocessing_context='spawn')"
        )
    from obstore.exceptions import BaseError
    from obstore.store import AzureStore, GCSStore, S3Store

    virtual = os.environ.get(_VIRTUAL, "").lower() in ("1", "true", "on", "yes", "y")
    for name in _ENDPOINTS if scheme == "s3:" else ():
        endpoint = os.environ.get(name)
        if endpoint is not None and not _ENDPOINT.fullmatch(endpoint):  # the client would panic
            raise InputError(
                f"{name} must be the server's http://HOST or https://HOST, with its port where it has one, got "
                f"{endpoint!r}; set it, or unset it for Amazon's own"
            )
        if virtual and endpoint and not endpoint.partition("//")[2].startswith(f"{bucket}."):
            # A key's first part would pass for the bucket there, and a list of buckets for an empty one.
            raise InputError(
                f"{name} must begin with the bucket's name, http(s)://{bucket}.HOST, where {_VIRTUAL} is set, got "
                f"{endpoint!r}; unset the one, or mend the other"
            )
    # Whoever names a server without TLS means it.
    plain = any(os.environ.get(name, "").startswith("http://") for name in _ENDPOINTS)
    try:
        # Not by its URL, of which the client would take a part for something else, or decode it.
        kind: type[S3Store | GCSStore | AzureStore] = {
            "s3:": S3Store,
            "gs:": GCSStore,
            "az:": AzureStore,
        }[scheme]
        return kind(
            bucket,
            prefix=prefix,
            retry_config=_RETRY if patient else _NO_RETRY,
            client_options={**(_CLIENT if patient else _QUICK_CLIENT), "allow_http": plain},
        )
    except (BaseError, ValueError) as error:
        if _first_line(error).endswith(("Missing AccessKeyId", "Missing SecretAccessKey")):
            raise _no_credentials(f"{scheme}//{bucket}", "AWS") from error
        raise InputError(f"{scheme}//{bucket} cannot be used: {_first_line(error)}") from error


_first_process: dict[str, int] = {}


def _version(about: ObjectMeta | PutResult) -> UpdateVersion:
    """Take what names a version from what a server says of an object."""
    found: UpdateVersion = {"e_tag": about["e_tag"]}
    if about["version"] is not None:
        found["version"] = about["version"]
    return found


def _no_credentials(where: str, prefix: str) -> ResourceError:
    return ResourceError(
        f"{where}: there are no credentials; set {_CREDENTIALS[prefix]} in the environment (profiles of command-line "
        "tools are not read)"
    )


def _meaning(text: str, prefix: str) -> str:
    """Say what a server's answer means and what to do; nothing where that is not known."""
    status, code, region = (
        found[1] if (found := sign.search(text)) else "" for sign in (_STATUS, _CODE, _REGION)
    )
    if code == "ExpiredToken":
        return f"the credentials have expired; set new ones by {prefix}_... in the environment"
    if code == "RequestTimeTooSkewed":
        return "the server's time is far from this machine's; set this machine's clock"
    if status in ("401", "403") and _LIST in text:
        return (
            f"the server refuses to list what is there ({code or status}); set credentials by {prefix}_... in the "
            "environment that may list the bucket"
        )
    if prefix != "AWS":
        return ""
    if code in _OTHER_REGION or status == "301" or "redirect without LOCATION" in text:
        where = f"the region {region}" if region else "another region"
        return f"the bucket is in {where}; set AWS_REGION to that"
    if status == "400" and _HEAD in text:
        return (
            "the server answers 400 and no reason, as where the credentials have expired or the bucket is in another "
            "region; set new credentials by AWS_... in the environment, or AWS_REGION"
        )
    return ""


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
