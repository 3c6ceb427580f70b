"""Zip archives from anyone: the directory is checked whole before a byte of any member is used.

Members are read in place and nothing is ever unpacked to a disk, so there is nothing that could land outside a
target, be left half done, or need cleaning up.

`zipfile` is not used: it opens archives whose members overlap, whose names climb out of the target
or whose sizes are lies, and what it lets pass differs between Python versions (CVE-2024-0450 is in
the oldest ones that samtl runs on). The reader here knows plain and deflated files, with or without
the 64-bit extension, and refuses everything else: links, devices, encryption, several disks, bytes
before the first or after the last record. The format is PKWARE's APPNOTE.TXT 6.3.10.
"""

from __future__ import annotations

import itertools
import os
import re
import stat
import struct
import unicodedata
import zlib
from dataclasses import dataclass
from pathlib import Path

from samtl.datasets.listing import flaw
from samtl.errors import InputError

MAX_PATH_BYTES = 1024

_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_ENCRYPTED = 1 << 0 | 1 << 6 | 1 << 13
_STORED, _DEFLATED = 0, 8


@dataclass(frozen=True)
class Caps:
    """How large an archive may be.

    Attributes
    ----------
    members : int
        Entries, folders included.
    directory_bytes : int
        The archive's own directory, which is held in memory.
    member_bytes : int
        One file, unpacked.
    total_bytes : int
        All files, unpacked.
    ratio : float
        Unpacked over packed size, for files over `ratio_from` bytes. Images hardly shrink, and
        deflate shrinks nothing more than 1032-fold.
    ratio_from : int
        Below this size a file may be as compressible as it likes: flat masks are.
    """

    members: int = 200_000
    directory_bytes: int = 64 * 2**20
    member_bytes: int = 512 * 2**20
    total_bytes: int = 64 * 2**30
    ratio: float = 200.0
    ratio_from: int = 2**20


class _OddError(Exception):
    """What is wrong with the archive, for a message that names it."""


@dataclass(frozen=True)
class _Entry:
    """One entry of the directory, sizes and offsets in bytes."""

    raw_name: bytes
    name: str
    is_folder: bool
    flags: int
    method: int
    crc: int
    packed: int
    size: int
    offset: int
    kind: int


@dataclass(frozen=True)
class _Member:
    name: str
    method: int
    crc: int
    packed: int
    size: int
    start: int  # of the packed bytes, from the beginning of the archive


class Archive:
    """A zip archive whose directory has been checked, read member by member.

    No descriptor stays open between calls, so that it may be shared between threads, forked and
    pickled.

    Parameters
    ----------
    path : Path
    caps : Caps, optional

    Attributes
    ----------
    names : tuple of str
        The regular files in it, in the order of the archive's directory, with `/`.
    total_bytes : int
        Their size, unpacked.

    Raises
    ------
    InputError
        Where it is not a zip archive or breaks any rule of this module.
    """

    def __init__(self, path: Path, caps: Caps | None = None) -> None:
        self.path = path
        descriptor = _open(path)
        try:
            self._identity = _identity(descriptor)
            members = _checked(descriptor, caps or Caps())
        except _OddError as odd:
            raise InputError(
                f"{path} is refused: {odd}; get it again, or unpack it with a tool that you trust "
                "and give the folder"
            ) from None
        finally:
            os.close(descriptor)
        self._members = {member.name: member for member in members}
        self.names = tuple(self._members)
        self.total_bytes = sum(member.size for member in members)

    def read(self, name: str) -> bytes:
        """Unpack one file and check its size and checksum.

        Parameters
        ----------
        name : str
            One of `names`.

        Raises
        ------
        InputError
            Where there is no such file, its bytes are not what the directory says, or the archive
            is no longer the one that was opened.
        """
        if name not in self._members:
            raise InputError(f"{self.path.name} holds no file {name!r}")
        member = self._members[name]
        descriptor = _open(self.path)
        try:
            if _identity(descriptor) != self._identity:
                raise InputError(f"{self.path} was changed while it was in use; start again")
            packed = _read(descriptor, member.start, member.packed)
        except _OddError as odd:
            raise self._damaged(name) from odd
        finally:
            os.close(descriptor)
        data = packed if member.method == _STORED else self._inflate(member, packed)
        if len(data) != member.size or zlib.crc32(data) != member.crc:
            raise self._damaged(name)
        return data

    def _inflate(self, member: _Member, packed: bytes) -> bytes:
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            # One byte beyond what the directory promises is enough to catch a lie.
            data = inflater.decompress(packed, member.size + 1)
        except zlib.error as error:
            raise self._damaged(member.name) from error
        if not inflater.eof or inflater.unused_data:
            raise self._damaged(member.name)
        return data

    def _damaged(self, name: str) -> InputError:
        return InputError(
            f"{name!r} in {self.path} is not what the archive's directory says (size or checksum); "
            "the archive is damaged, get it again"
        )


def _open(path: Path) -> int:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise InputError(f"{path} cannot be opened: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError(f"a zip file was expected, {path} is not a regular file")
    return descriptor


def _identity(descriptor: int) -> tuple[int, int, int, int]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _read(descriptor: int, start: int, size: int) -> bytes:
    data = os.pread(descriptor, size, start)
    while len(data) < size:  # one call gives at most 2 GiB
        more = os.pread(descriptor, size - len(data), start + len(data))
        if not more:
            raise _OddError("it ends in the middle of a record")
        data += more
    return data


def _checked(descriptor: int, caps: Caps) -> list[_Member]:
    """Read the directory, hold every entry and all of them together against the rules."""
    start, size, count = _find_directory(descriptor)
    if count > caps.members or size > caps.directory_bytes:
        raise _OddError(
            f"it lists {count:,} entries in {size:,} bytes, at most {caps.members:,} in "
            f"{caps.directory_bytes:,} are read"
        )
    entries = _parse(_read(descriptor, start, size), count)
    for entry in entries:
        _check_entry(entry, caps)
    total = sum(entry.size for entry in entries)
    if total > caps.total_bytes:
        raise _OddError(f"it unpacks to {total:,} bytes, over {caps.total_bytes:,}")
    _check_names(entries)
    starts = [_data_start(descriptor, entry, start) for entry in entries]
    _check_spans(entries, starts, start)
    return [
        _Member(entry.name, entry.method, entry.crc, entry.packed, entry.size, at)
        for entry, at in zip(entries, starts, strict=True)
        if not entry.is_folder
    ]


def _find_directory(descriptor: int) -> tuple[int, int, int]:
    """Find where the directory starts, its size in bytes and its number of entries."""
    file_size = os.fstat(descriptor).st_size
    tail_at = max(0, file_size - _END.size - 0xFFFF)
    tail = _read(descriptor, tail_at, file_size - tail_at)
    end = tail.rfind(b"PK\x05\x06")
    # The signature may also occur in the comment; the true record's comment ends the file.
    while end >= 0 and end + _END.size + int.from_bytes(tail[end + 20 : end + 22], "little") != len(
        tail
    ):
        end = tail.rfind(b"PK\x05\x06", 0, end)
    if end < 0:
        raise _OddError("it is no zip archive, or is cut short")
    _, disk, first_disk, here, count, size, start, _ = _END.unpack_from(tail, end)
    limit = tail_at + end
    if 0xFFFF in (here, count) or 0xFFFFFFFF in (size, start):
        at = max(0, limit - _END64_LOCATOR.size)
        mark, disk, limit, _ = _END64_LOCATOR.unpack(_read(descriptor, at, _END64_LOCATOR.size))
        if mark != b"PK\x06\x07" or limit > at - _END64.size:
            raise _OddError("its end record is damaged")
        mark, length, _, _, _, first_disk, here, count, size, start = _END64.unpack(
            _read(descriptor, limit, _END64.size)
        )
        if mark != b"PK\x06\x06" or limit + 12 + length != at:
            raise _OddError("its end record is damaged")
    if disk or first_disk or here != count:
        raise _OddError("it is one of several parts")
    if start + size != limit:
        raise _OddError("it holds bytes that belong to no record")
    return start, size, count


def _parse(directory: bytes, count: int) -> list[_Entry]:
    entries = []
    at = 0
    for _ in range(count):
        head = directory[at : at + _ENTRY.size]
        if len(head) < _ENTRY.size or not head.startswith(b"PK\x01\x02"):
            raise _OddError("its directory is damaged")
        fields = _ENTRY.unpack(head)
        _, _, _, flags, method, _, _, crc, packed, size = fields[:10]
        name_size, extra_size, comment_size, _, _, attributes, offset = fields[10:]
        at += _ENTRY.size
        raw_name = directory[at : at + name_size]
        extra = directory[at + name_size : at + name_size + extra_size]
        at += name_size + extra_size + comment_size
        if at > len(directory):
            raise _OddError("its directory is damaged")
        name = _name(raw_name)
        size, packed, offset = _widened(extra, size, packed, offset)
        entries.append(
            _Entry(
                raw_name=raw_name,
                name=name.removesuffix("/"),
                is_folder=name.endswith("/"),
                flags=flags,
                method=method,
                crc=crc,
                packed=packed,
                size=size,
                offset=offset,
                kind=stat.S_IFMT(attributes >> 16),
            )
        )
    if at != len(directory):
        raise _OddError("its directory is damaged")
    return entries


def _name(raw: bytes) -> str:
    if len(raw) > MAX_PATH_BYTES:
        raise _OddError(f"the name {raw[:40]!r}... has {len(raw):,} bytes")
    # The flag that promises UTF-8 is not asked: it is missing from archives made on a Mac.
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        raise _OddError(f"the name {raw!r} is not UTF-8") from None
    parts = name.removesuffix("/").split("/")
    if not {"", ".", ".."}.isdisjoint(parts) or "\\" in name or re.match(r"[A-Za-z]:", name):
        raise _OddError(f"the name {name!a} may lead out of the target")
    for what in map(flaw, parts):
        if what is not None:
            raise _OddError(f"the name {name!a} {what}")
    return name


def _widened(extra: bytes, *values: int) -> list[int]:
    """Replace each value that did not fit 32 bits by its 64-bit form, which follows in `extra`."""
    wide = b""
    at = 0
    while at + 4 <= len(extra):
        tag, length = struct.unpack_from("<2H", extra, at)
        if tag == 1:
            wide = extra[at + 4 : at + 4 + length]
            break
        at += 4 + length
    result = []
    for value in values:
        if value == 0xFFFFFFFF:
            if len(wide) < 8:
                raise _OddError("its directory is damaged")
            value, wide = int.from_bytes(wide[:8], "little"), wide[8:]
        result.append(value)
    return result


def _check_entry(entry: _Entry, caps: Caps) -> None:
    name = repr(entry.name)
    if entry.kind not in (0, stat.S_IFDIR if entry.is_folder else stat.S_IFREG):
        raise _OddError(f"{name} is a link, a device or otherwise not a regular file")
    if entry.flags & _ENCRYPTED:
        raise _OddError(f"{name} is encrypted")
    if entry.method not in (_STORED, _DEFLATED):
        raise _OddError(f"{name} is packed by method {entry.method}; stored and deflated are read")
    slack = entry.size // 64 + 1024 if entry.method == _DEFLATED else 0
    if (
        (entry.method == _STORED and entry.packed != entry.size)
        or (entry.is_folder and entry.size)
        or entry.packed > entry.size + slack  # or a tiny file could fill the memory
    ):
        raise _OddError(f"the sizes given for {name} contradict each other")
    if entry.size > caps.member_bytes:
        raise _OddError(f"{name} unpacks to {entry.size:,} bytes, over {caps.member_bytes:,}")
    if entry.size > max(caps.ratio_from, caps.ratio * entry.packed):
        raise _OddError(f"{name} unpacks to over {caps.ratio:g} times its packed size")


def _check_names(entries: list[_Entry]) -> None:
    """Refuse names that would be one file on a system that ignores case or composes accents."""
    seen: set[str] = set()
    above: set[str] = set()
    for entry in entries:
        folded = _folded(entry.name)
        if folded in seen:
            raise _OddError(
                f"{entry.name!r} occurs twice, or differs from another name in case only"
            )
        seen.add(folded)
        parts = folded.split("/")
        above.update("/".join(parts[:i]) for i in range(1, len(parts)))
    for entry in entries:
        if not entry.is_folder and _folded(entry.name) in above:
            raise _OddError(f"{entry.name!r} is both a file and a folder")


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _data_start(descriptor: int, entry: _Entry, directory: int) -> int:
    """Find where a member's bytes begin: after its own header, which must agree with its entry."""
    size = _LOCAL.size + len(entry.raw_name)
    if entry.offset + size > directory:
        raise _OddError(f"{entry.name!r} lies outside the archive")
    header = _read(descriptor, entry.offset, size)
    mark, _, flags, method, _, _, _, _, _, name_size, extra_size = _LOCAL.unpack_from(header)
    if (
        mark != b"PK\x03\x04"
        or header[_LOCAL.size :] != entry.raw_name
        or name_size != len(entry.raw_name)
        or method != entry.method
        or flags & _ENCRYPTED
    ):
        raise _OddError(f"{entry.name!r} differs between the directory and its own header")
    return entry.offset + size + int(extra_size)


def _check_spans(entries: list[_Entry], starts: list[int], directory: int) -> None:
    """Refuse members that share bytes: a small archive could unpack to any size that way."""
    spans = sorted(
        (entry.offset, start + entry.packed, entry.name)
        for entry, start in zip(entries, starts, strict=True)
    )
    spans.append((directory, directory, "the archive's directory"))
    for (_, end, name), (begin, _, after) in itertools.pairwise(spans):
        if end > begin:
            raise _OddError(f"{name!r} overlaps {after!r}")
