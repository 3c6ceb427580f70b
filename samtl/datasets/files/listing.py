"""Folders and zip archives from anyone: what is listed, in which order, and how one file is read."""

from __future__ import annotations

import abc
import itertools
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from urllib.parse import unquote

from samtl._io import open_regular
from samtl.errors import InputError
from samtl.images.bands import UNITS
from samtl.images.codecs import SUFFIXES, check_bytes
from samtl.splits import PARTS

MAX_NAME_BYTES = 255
#: Names, in lower case, that folders of the parts of a published split have.
PART_NAMES = {
    **dict.fromkeys(("train", "training"), PARTS[0]),
    **dict.fromkeys(("val", "valid", "validation"), PARTS[1]),
    **dict.fromkeys(("test", "testing"), PARTS[2]),
}
_ENDINGS = tuple(SUFFIXES)
_OF_SYSTEMS = {"__MACOSX", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
_TWICE = "is a link to a folder whose files are listed already"
_OUTSIDE = (
    "is a link that leads out of the dataset's folder (name a folder that holds both with --root, and the dataset's "
    "folder as a path in it)"
)


#: Told if folders are called after parts.
PUBLISHED = "the folders of parts are taken for the published split (--split shipped)"


def published(parts: Sequence[str]) -> tuple[str, ...]:
    """Return the parts of a published split; () if an image is in none, "", or all are in one."""
    return tuple(parts) if all(parts) and len({*parts}) > 1 else ()


def natural(path: str) -> list[list[tuple[int, str]]]:
    """Return the key that sorts relative paths part by part as people count: `a2` before `a10`."""
    return [
        [(int(p) if p.isdecimal() else -1, p) for p in re.split(r"([0-9]+)", name)]
        for name in path.split("/")
    ]


def some(things: Sequence[object], most: int = 5) -> str:
    """List the first of some things in a message, and count the others."""
    more = f" and {len(things) - most} more" if len(things) > most else ""
    return ", ".join(map(repr, things[:most])) + more


def kind_of(path: Path) -> Literal["folder", "file", "nothing"]:
    """Classify what a path leads to; `file` is anything that is no folder. Raises InputError if it is unreadable."""
    try:
        if path.is_dir():
            return "folder"
        return "file" if path.exists() else "nothing"
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be read: {error.strerror}") from error


def one_place(what: str, argument: str | None, root: Path | None) -> tuple[Path, Path]:
    """Return the path that a dataset is read from, and the folder that links in it must not lead out of.

    The path is its argument or `--root`. With both, the argument is a path in the root, and links may lead anywhere in
    the root. Raises InputError if there is neither, or the argument leads out of the root.
    """
    if not argument:
        if root is None:
            raise InputError(f"{what}:PATH or {what} with --root was expected, got neither")
        return root, root
    path = Path(argument).expanduser()
    if root is None:
        return path, path
    path = root / path
    if not path.resolve().is_relative_to(root.resolve()):
        raise InputError(
            f"{str(path)!r} is not in {str(root)!r}; with --root, {what}:PATH is a path in that folder"
        )
    return path, root


#: Options of datasets whose images are not RGB of 8 bits.
BANDS = {
    "bands": "NAME,NAME... of all bands of the images, by common names such as blue,green,red,nir or B02,B03,B04,B08",
    "units": f"what their values are: {', '.join(UNITS)}",
}


def options_of(what: str, query: str, known: Mapping[str, str]) -> dict[str, str]:
    """Read the options of a dataset, `NAME=VALUE&NAME=VALUE`; InputError unless each is known, once, not empty.

    `known` describes each option's value. `%` and `&` are escaped as in a URL, `+` is not.
    """
    fields = [field.partition("=") for field in query.split("&") if query]
    options = {name: unquote(value) for name, _, value in fields}
    if len(options) < len(fields) or not all(options.values()) or options.keys() - known.keys():
        forms = "; ".join(f"{name}={form}" for name, form in known.items())
        raise InputError(
            f"options of {what} are written {what}:PATH?NAME=VALUE&NAME=VALUE, each once; known are {forms}; got "
            f"{query!r}"
        )
    return options


def bands_in(options: Mapping[str, str]) -> dict[str, Any]:
    """Return the bands and the units of a dataset that its options, `BANDS`, name."""
    units = {"units": options["units"]} if "units" in options else {}
    return units | ({"bands": tuple(options["bands"].split(","))} if "bands" in options else {})


def own_name(path: Path) -> str:
    """Derive a part of a dataset's name from a folder's or an archive's own name, without the path to it."""
    resolved = path.resolve()
    name = resolved.stem if resolved.suffix.lower() == ".zip" else resolved.name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:100] or "images"


def flaw(name: str) -> str | None:
    """Describe why a file name cannot be printed, compared and stored on any machine; None if it can."""
    # Nearly all names, and fast.
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
    return name.startswith(".") or name in _OF_SYSTEMS


def is_image(name: str) -> bool:
    """Return whether a file is named like an image that can be read."""
    return name.lower().endswith(_ENDINGS)


class Tree(abc.ABC):
    """Files in a folder or an archive. Names are relative to it, with `/`; hidden ones are left out."""

    path: Path

    @abc.abstractmethod
    def folders(self, folder: str = "") -> list[str]:
        """List the names of the folders directly in `folder`, alphabetically."""

    @abc.abstractmethod
    def read(self, name: str) -> bytes:
        """Read one file; raises InputError or OSError."""

    @abc.abstractmethod
    def _files(self, folder: str, deep: bool) -> Iterable[str]: ...

    def images(self, folder: str = "", *, deep: bool = True) -> list[str]:
        """List the files in `folder`, and below it if `deep`, that are named like images, in natural order.

        Paths are relative to `folder`.
        """
        return sorted(filter(is_image, self._files(folder, deep)), key=natural)

    def others(self, folder: str = "") -> list[str]:
        """List the other files in `folder` and below it; their names may have line breaks."""
        return sorted(itertools.filterfalse(is_image, self._files(folder, True)), key=natural)


@dataclass(frozen=True)
class FolderTree(Tree):
    """The files in a folder.

    Links lead to files and folders in `bound`, by default the folder itself. A file named like an image that is no
    regular file in there, a link to a folder that is listed anyway, and an unusable name raise InputError. No file is
    opened to find out.
    """

    path: Path
    bound: Path | None = None

    def folders(self, folder: str = "") -> list[str]:
        """List folders as `Tree.folders` does."""
        return sorted(entry.name for entry, is_folder in self._entries(folder) if is_folder)

    def read(self, name: str) -> bytes:
        """Read one regular file below the folder, whatever became of it since it was listed."""
        path = (self.path / name).resolve(strict=True)
        if ".." in PurePosixPath(name).parts or not self._holds(path):
            raise InputError(f"{name!r} leads out of the dataset's folder")
        with open_regular(path, os.O_NOFOLLOW) as file:
            check_bytes(os.fstat(file.fileno()).st_size)
            return file.read()

    def _holds(self, path: Path) -> bool:
        return path.is_relative_to((self.bound or self.path).resolve())

    def _files(self, folder: str, deep: bool) -> Iterator[str]:
        waiting, linked = [""], set[Path]()
        while waiting:
            prefix = waiting.pop()
            for entry, is_folder in self._entries(f"{folder}/{prefix}".strip("/")):
                if not is_folder:
                    if is_image(entry.name):
                        self._refuse(entry, flaw(entry.name) or self._flaw_of_file(entry))
                    yield prefix + entry.name
                elif deep:
                    waiting.append(f"{prefix}{entry.name}/")
                    if entry.is_symlink():
                        target = Path(entry).resolve()
                        self._refuse(entry, _TWICE if target in linked else None)
                        linked.add(target)

    def _entries(self, folder: str) -> list[tuple[os.DirEntry[str], bool]]:
        """List what is visible in a folder, and whether each entry is a folder itself."""
        try:
            with os.scandir(self.path / folder) as entries:
                found = [(e, e.is_dir()) for e in entries if not is_hidden(e.name)]
        except OSError as error:
            raise InputError(f"{error.filename!a} cannot be listed: {error.strerror}") from error
        for entry, is_folder in found:
            if is_folder:
                wrong = self._flaw_of_link(entry) if entry.is_symlink() else None
                self._refuse(entry, wrong or flaw(entry.name))
        return found

    def _flaw_of_link(self, entry: os.DirEntry[str]) -> str | None:
        """Describe why a link to a folder cannot be followed."""
        target, own = Path(entry).resolve(), self.path.resolve()
        if target.is_relative_to(own) or own.is_relative_to(target):
            return _TWICE
        return None if self._holds(target) else _OUTSIDE

    def _flaw_of_file(self, entry: os.DirEntry[str]) -> str | None:
        if not entry.is_file():
            return "is not a regular file, or a link to no file"
        inside = not entry.is_symlink() or self._holds(Path(entry).resolve())
        return None if inside else _OUTSIDE

    def _refuse(self, entry: os.DirEntry[str], what: str | None) -> None:
        if what is not None:
            # ascii() keeps line breaks and foreign bytes out of the message.
            inside = ascii(os.path.relpath(entry.path, self.path))
            raise InputError(
                f"{inside} in the folder {str(self.path)!a} {what}; rename, replace or remove it"
            )
