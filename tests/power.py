"""What a disk may hold after a power cut: a program's calls replayed, with what was never made durable lost.

The rules are POSIX's, and so harsher than most file systems: bytes are safe once their file was synced after they were
written; a name is safe once its folder was synced after it was made, changed or removed. All else may be there or not,
each by itself, and unsynced bytes may be cut short anywhere or be zeros.
"""

import dataclasses
import os
import re
from itertools import zip_longest
from pathlib import Path

# Options of strace, for `calls`.
RECORD = (
    "-y", "-xx", "-s", "100000000", "-e",
    "trace=openat,write,pwrite64,writev,fsync,fdatasync,link,linkat,unlink,unlinkat,rename,renameat,renameat2,mkdir,"
    "mkdirat,ftruncate,rmdir",
)  # fmt: skip
_LINE = re.compile(r"(\w+)\((.*)\)\s+= (-?\d+)")
_FOLDER = re.compile(r"(?:\d+|AT_FDCWD)<([^>]*)>")
_STRING = re.compile(r'"([^"]*)"')
_NAMING = ("create", "mkdir", "link", "rename", "unlink")


@dataclasses.dataclass(frozen=True)
class Call:
    """One that changed something: `what`, the path, and its bytes or other path."""

    what: str
    path: str
    other: str = ""
    data: bytes = b""


def calls(trace, root):
    """The calls below `root`, in order, that strace wrote down.

    Others may see a name from the moment at which the call that gives it begins, and what they sync then has it.
    """
    root, found, waiting = os.path.realpath(root), [], {}
    for line in trace.splitlines():
        thread, _, rest = line.partition(" ")
        rest = rest.strip()
        if rest.endswith("<unfinished ...>"):  # another thread's call comes between
            waiting[thread] = rest.removesuffix("<unfinished ...>"), len(found)
            found.append(None)
            continue
        begun = None
        if resumed := re.match(r"<\.\.\. \w+ resumed>\s?(.*)$", rest):
            text, begun = waiting.pop(thread)
            rest = text + resumed[1]
        match = _LINE.match(rest)
        if match and int(match[3]) >= 0:
            call = _call(match[1], match[2], int(match[3]))
            if call and f"{call.path}/".startswith(f"{root}/"):
                if begun is not None and call.what in _NAMING:
                    found[begun] = call
                else:
                    found.append(call)
    return [call for call in found if call]


def _call(name, arguments, result):
    folders, strings = ([_bytes(text) for text in p.findall(arguments)] for p in (_FOLDER, _STRING))
    folders = [os.fsdecode(folder) for folder in folders]
    if name == "write":
        return Call("write", folders[0], data=strings[0][:result])
    if name in ("fsync", "fdatasync"):
        return Call("sync", folders[0])
    if name in ("pwrite64", "ftruncate", "writev"):
        return Call("unknown", folders[0])
    pairs = zip_longest(folders, map(os.fsdecode, strings), fillvalue="")
    paths = [os.path.normpath(os.path.join(*pair)) for pair in pairs]  # noqa: PTH118
    if name == "openat":
        cut = "O_TRUNC" if "O_TRUNC" in arguments else ""
        return Call("create", paths[0], cut) if "O_CREAT" in arguments else None
    what = name.removesuffix("2").removesuffix("at").replace("rmdir", "unlink")
    return Call(what, paths[-1], paths[0] if len(paths) == 2 else "")


def _bytes(text):
    return bytes.fromhex(text.replace("\\x", "")) if "\\x" in text else text.encode("latin-1")


@dataclasses.dataclass(eq=False)
class _File:
    """Bytes that were written, and how many of them are safe; a folder has none."""

    data: bytearray = dataclasses.field(default_factory=bytearray)
    safe: int = 0
    folder: bool = False


class Disk:
    """Names and files after some calls, with what of them is safe."""

    def __init__(self, root):
        self.root = os.path.realpath(root)
        self.safe = {}  # path to file, as it is after a power cut at the least
        self.now = {}
        # Changes of names that are not safe yet, as they were made: path, the file that it names, the name that goes.
        self.unsafe = []

    def apply(self, call):
        """Take note of a call."""
        file = self.now.get(call.path)
        if call.what == "create" and file is None:
            self._name(call.path, _File())
        elif call.what == "create" and call.other:
            file.data.clear()
            file.safe = 0
        elif call.what == "mkdir":
            self._name(call.path, _File(folder=True))
        elif call.what == "write":
            # A file may have lost the name under which it is open; it is the same file.
            named = (f for path, f, _ in reversed(self.unsafe) if path == call.path and f)
            (file or next(named)).data += call.data
        elif call.what == "sync" and (call.path == self.root or (file and file.folder)):
            waiting, self.unsafe = self.unsafe, []
            for change in waiting:
                if change[0].rpartition("/")[0] == call.path:
                    _happen(change, self.safe)
                else:
                    self.unsafe.append(change)
        elif call.what == "sync" and file:
            file.safe = len(file.data)
        elif call.what in ("link", "rename"):
            folders = {path.rpartition("/")[0] for path in (call.path, call.other)}
            assert call.what == "link" or len(folders) == 1, "between folders"
            self._name(call.path, self.now[call.other], call.other if call.what == "rename" else "")
        elif call.what == "unlink":
            self._name(call.path, None)
        elif call.what not in ("create", "sync"):
            raise NotImplementedError(call)

    def _name(self, path, file, gone=""):
        self.unsafe.append((path, file, gone))
        _happen(self.unsafe[-1], self.now)

    def cut(self, chance):
        """Draw what is there after a power cut now: path to bytes, or None for a folder."""
        keep = chance.choice([0.0, 0.5, 0.9, 1.0])  # of the names that are not safe
        there = dict(self.safe)
        for change in self.unsafe:
            if chance.random() < keep:
                _happen(change, there)
        share = chance.choice([0.0, 0.3, 0.99, 1.0])  # of the bytes that are not safe
        zeros = chance.random() < 0.3
        found = {}
        for path, file in there.items():
            folders = [one for one in Path(path).parents if Path(self.root) in one.parents]
            if all(str(one) in there for one in folders):
                left = file.safe + round(share * (len(file.data) - file.safe))
                rest = bytes(left - file.safe) if zeros else bytes(file.data[file.safe : left])
                found[path] = None if file.folder else bytes(file.data[: file.safe]) + rest
        return found


def _happen(change, there):
    path, file, gone = change
    if file is None:
        there.pop(path, None)
    else:
        there[path] = file
    there.pop(gone, None)


def lay_out(state, root, place):
    """Write a state to a folder, which `root` has become."""
    place.mkdir(parents=True)
    for path, data in sorted(state.items()):
        target = place / os.path.relpath(path, os.path.realpath(root))
        if data is None:
            target.mkdir(exist_ok=True)
        else:
            target.write_bytes(data)
