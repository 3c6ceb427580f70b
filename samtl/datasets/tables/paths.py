"""Paths in a table, which anyone may have written: to ids of images below a folder, or a message that names the bad."""

from __future__ import annotations

import functools
import posixpath
import stat
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from samtl.datasets.files.listing import FolderTree, flaw, some
from samtl.errors import InputError
from samtl.images.codecs import SUFFIXES


def image_ids(tree: FolderTree, texts: Sequence[Any], column: str) -> tuple[str, ...]:
    r"""Return the path of each image below the folder, with `/`.

    Paths may be relative or absolute, with `\` if no file is called so, or without the suffix. Raises InputError, with
    the first five and their number, for paths that are empty, lead out of the folder, to no regular file, or to one
    file twice, and for names that cannot be printed.
    """
    places = _Places(tree)
    found = [places.of("" if text is None else str(text)) for text in texts]
    rows = Counter(name for name, _ in found)
    found = [(name, wrong or _TWICE * (rows[name] > 1)) for name, wrong in found]
    for problem, remedy in _REMEDIES.items():
        if bad := [name for name, wrong in found if wrong == problem]:
            raise InputError(
                f"of the {len(texts)} paths in the column {column!r}, {len(bad)} {problem} {str(tree.path)!r}: "
                f"{some([*dict.fromkeys(bad)])}; {remedy}"
            )
    return tuple(name for name, _ in found)


_EMPTY = "are empty and name nothing in"
_OUTSIDE = "lead out of the folder"
_MISSING = "lead to no file in"
_IRREGULAR = "lead to something other than a regular file in"
_UNPRINTABLE = "cannot be printed, compared and stored as names in"
_TWICE = "stand in several rows for one file in"
_REMEDIES = {
    _EMPTY: "fill them in, or remove the rows",
    _OUTSIDE: "name a folder that holds all images with --root",
    _MISSING: "name the folder that paths are relative to with --root, or another column with ?path=COLUMN",
    _IRREGULAR: "list image files only",
    _UNPRINTABLE: "rename the files",
    _TWICE: "list each image once, with all of its labels in one row",
}


class _Places:
    """The files below a folder."""

    def __init__(self, tree: FolderTree) -> None:
        self.root, self.real = tree.path, tree.path.resolve()
        # Many files, few folders.
        self.flawed = functools.cache(lambda folder: any(map(flaw, folder.split("/"))))
        self.folder_inside = functools.cache(lambda folder: self.inside(self.root / folder))

    def inside(self, path: Path) -> bool:
        """Whether a path leads below the folder."""
        return path.resolve().is_relative_to(self.real)

    def of(self, text: str) -> tuple[str, str]:
        """Return the path below the folder, and what is wrong with it."""
        if not text:
            return "", _EMPTY
        for candidate in dict.fromkeys((text, text.replace("\\", "/"))):
            name, wrong = self._checked(candidate)
            if wrong != _MISSING:
                return name, wrong
        return text, wrong

    def _checked(self, text: str) -> tuple[str, str]:
        # normpath, since `a/../b.png` and `b.png` are one image.
        name = posixpath.normpath(text)
        for top in (self.root.absolute(), self.real) if name.startswith("/") else ():
            if PurePosixPath(name).is_relative_to(top):
                name = str(PurePosixPath(name).relative_to(top))
        if name.startswith("/") or name.split("/")[0] == "..":
            return text, _OUTSIDE
        parent, _, own = name.rpartition("/")
        if flaw(own) or self.flawed(parent):
            return text, _UNPRINTABLE
        mode = self._mode(name)
        if mode is None and PurePosixPath(name).suffix.lower() not in SUFFIXES:
            endings = [f"{name}{suffix}" for suffix in sorted(SUFFIXES)]
            there = [ending for ending in endings if self._mode(ending) is not None]
            name, mode = (there[0], self._mode(there[0])) if len(there) == 1 else (name, mode)
        if mode is None:
            return text, _MISSING
        path = self.root / name
        if not (self.inside(path) if path.is_symlink() else self.folder_inside(parent)):
            return text, _OUTSIDE
        return (name, "") if stat.S_ISREG(mode) else (text, _IRREGULAR)

    def _mode(self, name: str) -> int | None:
        try:
            return (self.root / name).stat().st_mode
        except OSError:
            return None
