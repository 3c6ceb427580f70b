"""Zip archives from anyone: the whole directory is checked before any member is read, and nothing is unpacked."""

from __future__ import annotations

import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from zipfile import ZIP_DEFLATED, ZIP_STORED

from samtl.datasets.base import LeftOut
from samtl.datasets.files.listing import FolderTree, Tree, flaw, is_hidden, kind_of
from samtl.errors import InputError

MAX_MEMBERS = 200_000
MAX_MEMBER_BYTES = 512 * 2**20  # of one file, unpacked
MAX_TOTAL_BYTES = 64 * 2**30  # of all files, unpacked
MAX_PATH_BYTES = 1024
MAX_RATIO = 1040  # deflate shrinks nothing more than 1032-fold, and flat masks nearly as far
LISTED = 3  # files that a message names
_HEADER_BYTES = 30  # of a member, before its name
_UNREADABLE = (
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, OSError, ValueError
)  # fmt: skip


class Archive(Tree):
    """A zip archive whose files are read in place. It can be shared by threads, pickled and forked.

    `names` are the regular files in it, in the order of the archive's directory, with `/`. Raises InputError if it is
    no zip archive; holds links, devices, encrypted or overlapping members, or names that lead out of it; or is larger,
    unpacked, than the limits of this module.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: zipfile.ZipFile | None = None
        self._process = 0
        self.names = tuple(info.filename for info in self._zip().infolist() if not info.is_dir())
        self._shown = [n for n in self.names if not any(map(is_hidden, n.split("/")))]

    def folders(self, folder: str = "") -> list[str]:
        """List folders as `Tree.folders` does."""
        return sorted({name.split("/", 1)[0] for name in self._below(folder) if "/" in name})

    def read(self, name: str) -> bytes:
        """Unpack one of `names`; InputError if it does not exist, or has another size or checksum than listed."""
        archive = self._zip()
        try:
            info = archive.getinfo(name)
            with archive.open(info) as file:
                data = file.read(info.file_size + 1)  # without a number, a lie inflates without end
            if len(data) == info.file_size:
                return data
        except KeyError:
            raise InputError(f"{self.path.name} holds no file {name!r}") from None
        except _UNREADABLE:
            pass
        raise InputError(
            f"{name!r} in {self.path} is not what the archive's directory says; the archive is damaged, get it again"
        )

    def _files(self, folder: str, deep: bool) -> Iterator[str]:
        return (name for name in self._below(folder) if deep or "/" not in name)

    def _below(self, folder: str) -> list[str]:
        prefix = folder and f"{folder}/"
        return [name.removeprefix(prefix) for name in self._shown if name.startswith(prefix)]

    def _zip(self) -> zipfile.ZipFile:
        """Open the archive once in each process: a descriptor's position must not be shared after a fork."""
        if self._file is None or self._process != os.getpid():
            try:
                if not self.path.is_file():  # opening a pipe would block
                    raise OSError("it is not a regular file")
                archive = zipfile.ZipFile(self.path, metadata_encoding="utf-8")
            except _UNREADABLE as error:
                raise InputError(f"{self.path} is no readable zip archive: {error}") from error
            wrong = _flaw_of_all(archive) or next(filter(None, map(_flaw_of, archive.filelist)), "")
            if wrong:
                archive.close()
                raise InputError(f"{self.path} is refused: {wrong}; get it again, or unpack it")
            self._file, self._process = archive, os.getpid()
        return self._file

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}


def named(tree: Tree, names: Mapping[str, str], sample_id: str) -> bytes:
    """Read a file of a tree by its sample id; `names` maps ids to names in the tree."""
    return tree.read(names[sample_id])


def open_tree(path: Path, layout: str, bound: Path | None = None) -> Tree:
    """Open a folder or a zip archive; InputError, which describes the expected `layout`, if none is there.

    `bound` is that of `FolderTree`.
    """
    kind = kind_of(path)
    if kind == "nothing":
        raise InputError(f"there is no {str(path)!r}; {layout}")
    return FolderTree(path, bound) if kind == "folder" else Archive(path)


def left_out(tree: Tree, folders: Iterable[str]) -> tuple[LeftOut, ...]:
    """Count the files in these folders that are not named like images, by suffix, the most frequent first."""
    found: dict[str, list[str]] = {}
    for folder in folders:
        for name in tree.others(folder):
            own, path = PurePosixPath(name), f"{folder}/{name}".strip("/")
            found.setdefault(own.suffix.lower(), []).append(ascii(path) if flaw(own.name) else path)
    told = (
        LeftOut(
            f"{end} files" if end else "files without a suffix", len(names), tuple(names[:LISTED])
        )
        for end, names in found.items()
    )
    return tuple(sorted(told, key=lambda one: -one.count))


def _flaw_of_all(archive: zipfile.ZipFile) -> str:
    members = archive.filelist
    total = sum(info.file_size for info in members)
    if len(members) > MAX_MEMBERS or total > MAX_TOTAL_BYTES:
        return f"it lists {len(members):,} entries of {total:,} bytes, which is too much"
    if len(archive.NameToInfo) < len(members):
        return "it lists a name twice"
    # Members that share bytes could unpack to any size.
    ordered = sorted(members, key=lambda info: info.header_offset)
    ends = [info.header_offset for info in ordered[1:]] + [archive.start_dir]
    for info, end in zip(ordered, ends, strict=False):
        if info.header_offset + _HEADER_BYTES + info.compress_size > end:
            return f"{info.filename!a} overlaps what follows"
    return ""


def _flaw_of(info: zipfile.ZipInfo) -> str:
    name = info.orig_filename  # `filename` is cut at a NUL
    parts = name.removesuffix("/").split("/")
    kind = stat.S_IFMT(info.external_attr >> 16)
    unusable = next(filter(None, map(flaw, parts)), None)
    if not {"", ".", ".."}.isdisjoint(parts) or "\\" in name or name[1:2] == ":":
        return f"the name {name!a} leads out of it"
    if unusable or len(name.encode()) > MAX_PATH_BYTES:
        return f"the name {name[:80]!a} {unusable or 'is too long'}"
    if kind not in (0, stat.S_IFDIR if info.is_dir() else stat.S_IFREG):
        return f"{name!a} is a link, a device or otherwise not a regular file"
    if info.flag_bits & 0x2041 or info.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
        return f"{name!a} is encrypted, or compressed otherwise than deflated"
    # Empty deflate blocks pad without end, so that a small file could fill the memory.
    padded = info.compress_size > info.file_size * 65 // 64 + 1024
    if padded or info.file_size > min(MAX_MEMBER_BYTES, max(2**20, MAX_RATIO * info.compress_size)):
        return f"{name!a} unpacks from {info.compress_size:,} to {info.file_size:,} bytes"
    return ""
