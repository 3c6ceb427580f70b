"""Folders and zip archives from anyone: what is listed, in which order, and how one file is read."""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal

from samtl.errors import InputError
from samtl.images.codecs import MAX_BYTES, SUFFIXES, BadImage

if TYPE_CHECKING:
    from samtl.datasets.archive import Archive

MAX_NAME_BYTES = 255

NaturalKey = list[tuple[list[tuple[int, str]], str]]


def natural(path: str) -> NaturalKey:
    """Return the key that sorts relative paths part by part as people count: `a2` before `a10`."""
    key = []
    for name in path.split("/"):
        parts = re.split(r"([0-9]+)", name)
        numbered = [(int(p), "") if i % 2 else (-1, p) for i, p in enumerate(parts)]
        key.append((numbered, name))
    return key


def expanded(path: str | Path) -> Path:
    """Replace a leading `~` by the home folder; raises InputError if there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(f"{str(path)!r}: {error}; write the whole path") from error


def kind_of(path: Path) -> Literal["folder", "file", "nothing"]:
    """Classify what a path leads to; `file` is anything that is no folder. Raises InputError if it is unreadable."""
    try:
        if path.is_dir():
            return "folder"
        return "file" if path.exists() else "nothing"
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be read: {error.strerror}") from error


def own_name(path: Path) -> str:
    """Derive a part of a dataset's name from a folder's or an archive's own name, without the path to it."""
    resolved = path.resolve()
    name = resolved.stem if resolved.suffix.lower() == ".zip" else resolved.name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:100] or "images"


def flaw(name: str) -> str | None:
    """Describe why a file name cannot be printed, compared and stored on any machine; None if it can."""
    if name.isascii() and name.isprintable() and len(name) <= MAX_NAME_BYTES:
        return None
    try:
        length = len(name.encode())
    except UnicodeEncodeError:  # os.fsdecode turns foreign bytes into surrogates
        return "is not UTF-8"
    if length > MAX_NAME_BYTES:
        return f"is {length} bytes long, over {MAX_NAME_BYTES}"
    if any(unicodedata.category(c) in {"Cc", "Cf", "Zl", "Zp"} for c in name):
        return "has a line break, a control or an invisible character"
    return None


def is_hidden(name: str) -> bool:
    """Return whether a name is left out of every listing: files of the system or the archiver."""
    return name.startswith(".") or name == "__MACOSX"


def subfolders(root: Path) -> list[str]:
    """List the visible folders directly in `root`, alphabetically; raises as `images_below` does."""
    return sorted(e.name for e in _entries(root) if _is_folder(e, root))


def images_below(
    folder: Path, root: Path, suffixes: frozenset[str] = SUFFIXES, *, deep: bool = True
) -> list[str]:
    """List the image files in `folder`, and below it if `deep`, in natural order.

    Parameters
    ----------
    folder : Path
        `root`, or a folder below it.
    root : Path
        The folder that links must not leave.
    suffixes : frozenset of str
        Lower-case file name endings that count, with the dot.
    deep : bool

    Returns
    -------
    list of str
        Paths relative to `folder`, with `/`, without hidden files and folders.

    Raises
    ------
    InputError
        If a file named like an image is no regular file inside `root`, a folder is a link, or a name is unusable.
        No file is opened to find out.
    """
    found = []
    waiting = [(folder, "")]
    while waiting:
        here, prefix = waiting.pop()
        for entry in _entries(here):
            if _is_folder(entry, root):
                if deep:
                    waiting.append((here / entry.name, f"{prefix}{entry.name}/"))
            elif Path(entry.name).suffix.lower() in suffixes:
                _require_file(entry, root)
                found.append(prefix + entry.name)
    return sorted(found, key=natural)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not is_hidden(entry.name)]
    except OSError as error:
        raise InputError(f"{str(folder)!r} cannot be listed: {error.strerror}") from error


def _is_folder(entry: os.DirEntry[str], root: Path) -> bool:
    try:
        if not entry.is_dir():
            return False
    except OSError:  # a link to itself
        return False
    if entry.is_symlink():
        raise _refusal(entry, root, "is a link to a folder, and such links are not followed")
    if (what := flaw(entry.name)) is not None:
        raise _refusal(entry, root, what)
    return True


def _require_file(entry: os.DirEntry[str], root: Path) -> None:
    what = flaw(entry.name)
    if what is None and not entry.is_file(follow_symlinks=False):
        target = Path(os.path.realpath(entry.path))
        if not entry.is_symlink():
            what = "is not a regular file"
        elif not target.is_file():
            what = "is a link to no file"
        elif not target.is_relative_to(root.resolve()):
            what = "is a link that leads out of the dataset's folder"
    if what is not None:
        raise _refusal(entry, root, what)


def _refusal(entry: os.DirEntry[str], root: Path, what: str) -> InputError:
    # ascii() keeps line breaks and foreign bytes out of the message.
    inside = ascii(os.path.relpath(entry.path, root))
    return InputError(f"{inside} in the folder {str(root)!a} {what}; rename, replace or remove it")


@dataclass(frozen=True)
class FolderReader:
    """Reads files below a folder by their relative path; see `samtl.datasets.Reader`."""

    root: Path

    def __call__(self, sample_id: str) -> bytes:
        """Read one regular file below the folder, whatever became of it since it was listed."""
        path = (self.root / sample_id).resolve(strict=True)
        if not path.is_relative_to(self.root.resolve()):
            raise InputError(f"{sample_id!r} leads out of the dataset's folder")
        # Opening a pipe would wait for a writer, hence O_NONBLOCK.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise InputError(f"{path.name!r} is not a regular file")
            if status.st_size > MAX_BYTES:
                raise BadImage(
                    "too_large",
                    f"{path.name!r} has {status.st_size / 2**20:,.1f} MiB, an image file may have at most "
                    f"{MAX_BYTES / 2**20:,.0f} MiB; cut it into tiles",
                )
            return file.read(MAX_BYTES + 1)


@dataclass(frozen=True)
class FolderTree:
    """The files in a folder; names are relative to it, with `/`."""

    path: Path

    def folders(self, folder: str) -> list[str]:
        """List the names of the visible folders directly in `folder`, alphabetically."""
        return subfolders(self.path / folder)

    def images(self, folder: str) -> list[str]:
        """List the image files in `folder` and below, relative to it, in natural order."""
        return images_below(self.path / folder, self.path)

    def read(self, name: str) -> bytes:
        """Read a whole file."""
        return FolderReader(self.path)(name)


@dataclass(frozen=True)
class ZipTree:
    """The files in a zip archive, listed like those of `FolderTree`."""

    archive: Archive

    @property
    def path(self) -> Path:
        return self.archive.path

    def folders(self, folder: str) -> list[str]:
        return sorted({name.split("/", 1)[0] for name in self._below(folder) if "/" in name})

    def images(self, folder: str) -> list[str]:
        found = [n for n in self._below(folder) if PurePosixPath(n).suffix.lower() in SUFFIXES]
        return sorted(found, key=natural)

    def read(self, name: str) -> bytes:
        return self.archive.read(name)

    def _below(self, folder: str) -> list[str]:
        prefix = folder and f"{folder}/"
        names = [n.removeprefix(prefix) for n in self.archive.names if n.startswith(prefix)]
        return [name for name in names if not any(map(is_hidden, name.split("/")))]


Tree = FolderTree | ZipTree


@dataclass(frozen=True)
class Files:
    """Reads files of a tree by their sample ids; see `samtl.datasets.Reader`."""

    tree: Tree
    names: Mapping[str, str]

    def __call__(self, sample_id: str) -> bytes:
        """Read one file."""
        if sample_id not in self.names:
            raise InputError(f"{self.tree.path} has no sample {sample_id!r}")
        return self.tree.read(self.names[sample_id])


def open_tree(path: Path, layout: str) -> Tree:
    """Open a folder or a zip archive; raises InputError, which describes the expected `layout`, if there is none."""
    from samtl.datasets.archive import Archive

    kind = kind_of(path)
    if kind == "nothing":
        raise InputError(f"there is no {str(path)!r}; {layout}")
    return FolderTree(path) if kind == "folder" else ZipTree(Archive(path))
