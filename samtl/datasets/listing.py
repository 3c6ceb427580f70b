"""Folders and file names from anyone: what is listed, in which order, and how one file is read."""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from samtl.errors import InputError
from samtl.images.codecs import MAX_BYTES, BadImage

MAX_NAME_BYTES = 255

# Files of the operating system or the archiver, never of a dataset.
_NOT_DATA = frozenset({"__MACOSX"})


def natural(name: str) -> tuple[list[tuple[int, str]], str]:
    """Key for sorting names as people count: `a2` before `a10`."""
    parts = re.split(r"([0-9]+)", name)
    numbered = [(int(p), "") if i % 2 else (-1, p) for i, p in enumerate(parts)]
    return numbered, name


def natural_path(path: str) -> list[tuple[list[tuple[int, str]], str]]:
    """Key for sorting relative paths part by part in natural order."""
    return [natural(part) for part in path.split("/")]


def expanded(path: str | Path) -> Path:
    """Replace a leading `~` by the home folder.

    Raises
    ------
    InputError
        Where there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(f"{str(path)!r}: {error}; write the whole path") from error


def kind_of(path: Path) -> Literal["folder", "file", "nothing"]:
    """Tell what a path given by the user leads to; `file` is whatever is there and no folder.

    Raises
    ------
    InputError
        Where the system does not say, for want of permission or because the path is too long.
    """
    try:
        if path.is_dir():
            return "folder"
        return "file" if path.exists() else "nothing"
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be looked at: {error.strerror}") from error


def flaw(name: str) -> str | None:
    """Say what makes a file or folder name unusable, None where it is fine.

    A name is unusable where it could not be printed, compared and stored as text on any machine.
    """
    if name.isascii() and name.isprintable() and len(name) <= MAX_NAME_BYTES:
        return None
    try:
        size = len(name.encode())
    except UnicodeEncodeError:  # os.fsdecode smuggles foreign bytes in as surrogates
        return "is not UTF-8"
    if size > MAX_NAME_BYTES:
        return f"is {size} bytes long, over {MAX_NAME_BYTES}"
    if any(unicodedata.category(c) in {"Cc", "Cf", "Zl", "Zp"} for c in name):
        return "has a line break, a control or an invisible character"
    return None


def is_hidden(name: str) -> bool:
    """Tell whether a name is left out of every listing."""
    return name.startswith(".") or name in _NOT_DATA


def subfolders(root: Path) -> list[str]:
    """List the visible folders directly in `root`, alphabetically.

    Raises
    ------
    InputError
        Where `root` cannot be listed, or one of them is a link or has an unusable name.
    """
    names = []
    for entry in _entries(root):
        if not is_hidden(entry.name) and _leads_to_folder(entry):
            _refuse_flawed(root, entry)
            names.append(entry.name)
    return sorted(names)


def images_below(folder: Path, root: Path, suffixes: frozenset[str]) -> list[str]:
    """List the image files in `folder` and its sub-folders, in natural order.

    Parameters
    ----------
    folder : Path
        What to walk; `root` or a folder below it.
    root : Path
        What links may not leave.
    suffixes : frozenset of str
        Lower-case file name endings that count, with the dot.

    Returns
    -------
    list of str
        Paths relative to `folder`, with `/`. Hidden files and folders are not among them.

    Raises
    ------
    InputError
        Where something that is named like an image is not a regular file inside `root`, where a
        folder is a link, or where a name is unusable. Nothing is opened to find out.
    """
    found = []
    real_root = root.resolve()
    waiting = [(folder, "")]
    while waiting:
        here, prefix = waiting.pop()
        for entry in _entries(here):
            if is_hidden(entry.name):
                continue
            if _leads_to_folder(entry):
                _refuse_flawed(root, entry)
                waiting.append((here / entry.name, f"{prefix}{entry.name}/"))
            elif Path(entry.name).suffix.lower() in suffixes:
                _refuse_flawed(root, entry)
                _refuse_odd_file(real_root, root, entry)
                found.append(prefix + entry.name)
    return sorted(found, key=natural_path)


@dataclass(frozen=True)
class FolderReader:
    """Reads files below a folder by their relative path; see `samtl.datasets.Reader`."""

    root: Path

    def __call__(self, sample_id: str) -> bytes:
        """Read one file, refusing whatever became of it since it was listed."""
        path = (self.root / sample_id).resolve(strict=True)
        if not path.is_relative_to(self.root.resolve()):
            raise InputError(f"{sample_id!r} leads out of the dataset's folder")
        return read_regular(path)


def read_regular(path: Path, limit: int = MAX_BYTES) -> bytes:
    """Read a whole regular file, never a link, a device or a pipe.

    Raises
    ------
    InputError
        Where it is not a regular file.
    BadImage
        Of code `too_large`, where it has more than `limit` bytes.
    OSError
        Where it cannot be read.
    """
    # Opening a pipe would wait for a writer for ever, hence O_NONBLOCK.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path.name!r} is not a regular file")
        data = file.read(limit + 1) if status.st_size <= limit else b""
    if max(status.st_size, len(data)) > limit:
        raise BadImage(
            "too_large",
            f"{path.name!r} has {status.st_size / 2**20:,.1f} MiB, an image file may have at most "
            f"{limit / 2**20:,.0f} MiB; cut it into tiles",
        )
    return data


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except OSError as error:
        raise InputError(f"{str(folder)!r} cannot be listed: {error.strerror}") from error


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _leads_to_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False


def _refuse_flawed(root: Path, entry: os.DirEntry[str]) -> None:
    what = flaw(entry.name)
    if what is not None:
        raise _refusal(root, entry, what, "rename or remove it")
    if entry.is_symlink() and _leads_to_folder(entry):
        what = "is a link to a folder, and such links are not followed"
        raise _refusal(root, entry, what, "put the folder itself there")


def _refuse_odd_file(real_root: Path, root: Path, entry: os.DirEntry[str]) -> None:
    if entry.is_file(follow_symlinks=False):
        return
    if not _leads_to_file(entry):
        what = "is a link to no file" if entry.is_symlink() else "is not a regular file"
        raise _refusal(root, entry, what, "remove it")
    if not Path(entry.path).resolve().is_relative_to(real_root):
        what = "is a link that leads out of the dataset's folder"
        raise _refusal(root, entry, what, "put the file itself there")


def _refusal(root: Path, entry: os.DirEntry[str], what: str, remedy: str) -> InputError:
    # ascii() keeps line breaks and foreign bytes out of the message.
    inside = ascii(os.path.relpath(entry.path, root))
    return InputError(f"{inside} in the folder {str(root)!a} {what}; {remedy}")
