"""Downloads of published files, which get their names only once their hashes are right."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

from samtl._io import AtomicFolder
from samtl.errors import InputError, ResourceError, SamtlError

_log = logging.getLogger(__name__)
_forbidden = ContextVar("_forbidden", default=False)


class NotHere(ResourceError):
    """A published file is not on this machine, and downloads are forbidden."""


@contextmanager
def forbidden() -> Iterator[None]:
    """Let `download` raise `NotHere` within a `with` block, instead of downloading."""
    token = _forbidden.set(True)
    try:
        yield
    finally:
        _forbidden.reset(token)


def is_forbidden() -> bool:
    """Whether downloads are forbidden here."""
    return _forbidden.get()


def has_hash(path: Path, known: str) -> bool:
    """Whether there is a file with this hash, `ALGORITHM:DIGITS`; the first digits are enough."""
    algorithm, _, digits = known.partition(":")
    with suppress(OSError), path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest().startswith(digits)
    return False


def user_folder(variable: str, name: str = "") -> Path:
    """Return the folder that an environment variable names, by default `name` in the user's cache folder."""
    import pooch

    return Path(os.environ.get(variable) or pooch.os_cache("samtl") / name)


def downloaded(sources: Mapping[str, str], folder: Path) -> Path | None:
    """Find a file that `download` put into a folder; its hash is checked each time."""
    paths = ((folder / _file_name(url), known) for url, known in sources.items())
    return next((path for path, known in paths if has_hash(path, known)), None)


def download(sources: Mapping[str, str], folder: Path, remedy: str, size: str = "") -> Path:
    """Return a published file in a folder; it is downloaded if it is missing or has another hash.

    Parameters
    ----------
    sources : mapping of str to str
        URLs, tried in this order, and the hash of the file at each: see `has_hash`.
    folder : Path
    remedy, size : str
        For messages: what else can be done, and how much is downloaded.

    Raises
    ------
    InputError
        If every URL gives a file with another hash.
    ResourceError
        If a download fails; `NotHere` if it is forbidden.
    """
    import pooch

    if path := downloaded(sources, folder):
        return path
    if _forbidden.get():
        name = _file_name(next(iter(sources)))
        raise NotHere(f"{name}{size and f' ({size})'} is not on this machine")
    pooch.get_logger().setLevel(logging.WARNING)  # it would log to standard error
    failures: list[str] = []
    kind: type[SamtlError] = InputError
    for url, known in sources.items():
        path = folder / _file_name(url)
        _log.info("downloading %s%s into %s", url, size and f" ({size})", folder)
        try:
            with AtomicFolder(folder) as temporary:
                new = Path(pooch.retrieve(url, None, path.name, temporary.path))
                if has_hash(new, known):
                    return new.replace(path)
            failures.append(f"{url} (its hash is not {known})")
        except OSError as error:  # includes the errors of requests, whose texts are nested errors
            status = getattr(getattr(error, "response", None), "status_code", None)
            failures.append(
                f"{url} ({f'HTTP status {status}' if status else type(error).__name__})"
            )
            kind = ResourceError
    raise kind(f"could not download {'; '.join(failures)} into {folder}: {remedy}")


def _file_name(url: str) -> str:
    return url.partition("?")[0].rpartition("/")[2]
