"""A folder or a zip archive, listed and read in the same way."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Protocol

from samtl.datasets.archive import Archive, Caps
from samtl.datasets.listing import (
    FolderReader,
    images_below,
    is_hidden,
    kind_of,
    natural_path,
    subfolders,
)
from samtl.errors import InputError
from samtl.images.codecs import SUFFIXES

# Deflate shrinks nothing more than 1032-fold, and flat masks nearly as far.
_CAPS = Caps(ratio=1040.0)


class Tree(Protocol):
    """Folders and files below a path that the user gave; names are relative to it, with `/`."""

    @property
    def path(self) -> Path:
        """What the user gave."""

    def folders(self, folder: str) -> list[str]:
        """List the names of the visible folders directly in `folder`, alphabetically."""

    def images(self, folder: str) -> list[str]:
        """List what is named like an image in `folder` and below, relative to it, in natural order."""

    def read(self, name: str) -> bytes:
        """Read a whole file."""

    def open(self, name: str) -> IO[bytes]:
        """Open a file to look at its header."""


@dataclass(frozen=True)
class FolderTree:
    """What lies in a folder."""

    path: Path

    def folders(self, folder: str) -> list[str]:
        """See `Tree`."""
        return subfolders(self.path / folder)

    def images(self, folder: str) -> list[str]:
        """See `Tree`."""
        return images_below(self.path / folder, self.path, SUFFIXES)

    def read(self, name: str) -> bytes:
        """See `Tree`."""
        return FolderReader(self.path)(name)

    def open(self, name: str) -> IO[bytes]:
        """See `Tree`; for names just listed, which `images` has found to be regular files."""
        return (self.path / name).open("rb")


@dataclass(frozen=True)
class ZipTree:
    """What lies in a zip archive."""

    archive: Archive

    @property
    def path(self) -> Path:
        """See `Tree`."""
        return self.archive.path

    def folders(self, folder: str) -> list[str]:
        """See `Tree`."""
        return sorted({name.split("/", 1)[0] for name in self._below(folder) if "/" in name})

    def images(self, folder: str) -> list[str]:
        """See `Tree`."""
        found = [n for n in self._below(folder) if PurePosixPath(n).suffix.lower() in SUFFIXES]
        return sorted(found, key=natural_path)

    def read(self, name: str) -> bytes:
        """See `Tree`."""
        return self.archive.read(name)

    def open(self, name: str) -> IO[bytes]:
        """See `Tree`."""
        return io.BytesIO(self.archive.read(name))

    def _below(self, folder: str) -> list[str]:
        prefix = folder and f"{folder}/"
        names = [n.removeprefix(prefix) for n in self.archive.names if n.startswith(prefix)]
        return [name for name in names if not any(map(is_hidden, name.split("/")))]


@dataclass(frozen=True)
class Files:
    """Reads files of a tree by the ids that stand for them; see `samtl.datasets.Reader`."""

    tree: Tree
    names: Mapping[str, str]

    def __call__(self, sample_id: str) -> bytes:
        """Read one file."""
        if sample_id not in self.names:
            raise InputError(f"{self.tree.path} has no sample {sample_id!r}")
        return self.tree.read(self.names[sample_id])


def open_tree(path: Path, layout: str) -> Tree:
    """Open a folder or a zip archive; `layout` tells what is expected there.

    Raises
    ------
    InputError
        Where there is nothing, or something else.
    """
    kind = kind_of(path)
    if kind == "nothing":
        raise InputError(f"there is no {str(path)!r}; {layout}")
    return FolderTree(path) if kind == "folder" else ZipTree(Archive(path, _CAPS))


def located(tree: Tree, layout: str, *kinds: frozenset[str], below: str = "") -> list[str]:
    """Find one folder of each kind beside each other, in a folder or in the only folder in it.

    Parameters
    ----------
    tree : Tree
    layout : str
        What is expected, for messages.
    *kinds : frozenset of str
        Names that a folder of each kind may have, in lower case.
    below : str
        Where to look; the top by default.

    Returns
    -------
    list of str
        Path of the folder of each kind, in their order.

    Raises
    ------
    InputError
        Where a kind has no folder or several.
    """
    top = names = tree.folders(below)
    here = below
    if len(top) == 1 and not any(top[0].lower() in kind for kind in kinds):
        here = f"{below}/{top[0]}" if below else top[0]
        names = tree.folders(here)
    found = []
    for kind in kinds:
        fitting = [name for name in names if name.lower() in kind]
        if len(fitting) != 1:
            where = f"{str(tree.path)!r}" + (f" has in {here!r}" if here else " has")
            came = f"the folders {', '.join(map(repr, names[:8]))}" if names else "no folder"
            raise InputError(
                f"{where} {came}, and exactly one called {' or '.join(sorted(kind))} was expected; {layout}"
            )
        found.append(f"{here}/{fitting[0]}" if here else fitting[0])
    return found


def own_name(path: Path) -> str:
    """Make a part of a dataset's name from a folder's or an archive's own, never from the way to it."""
    resolved = path.resolve()
    name = resolved.stem if resolved.suffix.lower() == ".zip" else resolved.name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:100] or "images"
