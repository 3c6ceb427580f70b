"""What a disk may hold after a power cut: a program's calls replayed, with what was never made durable lost.

The rules are POSIX's, and so harsher than most file systems: bytes are safe once their file was synced after they were
written; a name is safe once its folder was synced after it was made, changed or removed. All else may be there or not,
each by itself, and unsynced bytes may be cut short anywhere or be zeros.
"""

import dataclasses
import os
import re
import subprocess
from pathlib import Path

TRACED = (
    "openat,write,pwrite64,writev,fsync,fdatasync,link,linkat,unlink,unlinkat,rename,renameat,renameat2,"
    "mkdir,mkdirat,ftruncate,rmdir"
)
_LINE = re.compile(r"^(?:\[pid\s+\d+\]\s+)?(?:\d+\s+)?(\w+)\((.*)\)\s+= (-?\d+)(.*)$")
_PATH = re.compile(r"^\d+<(.*)>$")
_UNSYNCED_SIZES = (0.0, 0.3, 0.99, 1.0)


@dataclasses.dataclass(frozen=True)
class Call:
    """One that changed something: `what`, the path, and its bytes or other path."""

    what: str
    path: str
    other: str = ""
    data: bytes = b""


def recorded(command, root, **options):
    """Run a program under strace; gives its calls below `root`, in order.

    Parameters
    ----------
    command : sequence of str
    root : path
    **options
        Of `subprocess.run`.
    """
    trace = Path(f"{root}.trace")
    subprocess.run(
        ["strace", "-f", "-qq", "-y", "-xx", "-s", "100000000", "-e", f"trace={TRACED}", "-o", trace, *command],
        check=True, **options,
    )  # fmt: skip
    root = os.path.realpath(root)
    calls = []
    waiting = {}
    with trace.open(encoding="latin-1") as lines:
        for line in lines:
            line = _whole(line.rstrip("\n"), waiting)
            if line:
                calls += _calls(line, root)
    trace.unlink()
    return calls


def _whole(line, waiting):
    """Put a call together that another thread's interrupted; "" where its end is still to come."""
    thread, _, rest = line.partition(" ")
    rest = rest.lstrip()
    if rest.endswith("<unfinished ...>"):
        waiting[thread] = rest.removesuffix("<unfinished ...>").rstrip()
        return ""
    resumed = re.match(r"<\.\.\. \w+ resumed>\s?(.*)$", rest)
    return waiting.pop(thread) + resumed[1] if resumed else rest


def _text(quoted):
    return bytes.fromhex(quoted.strip('"').replace("\\x", "")).decode("latin-1")


def _arguments(text):
    """Split at commas that are in no string and no bracket."""
    return [part.strip() for part in re.findall(r'(?:"[^"]*"|<[^>]*>|\[[^\]]*\]|[^,])+', text)]


def _calls(line, root):
    match = _LINE.match(line)
    if match is None or int(match[3]) < 0:
        return
    name, arguments, result, after = match[1], _arguments(match[2]), int(match[3]), match[4]

    def full(folder, path):
        path = _text(path)
        return path if path.startswith("/") else os.path.normpath(f"{_described(folder)}/{path}")

    def here(path):
        return path == root or path.startswith(f"{root}/")

    if name == "openat":
        path = _described(f"{result}{after.strip()}")
        if here(path) and "O_CREAT" in arguments[2]:
            yield Call("create", path, other="O_TRUNC" if "O_TRUNC" in arguments[2] else "")
    elif name in ("write", "pwrite64", "fsync", "fdatasync", "ftruncate", "writev"):
        path = _described(arguments[0])
        if not here(path):
            return
        if name == "write":
            yield Call(
                "write",
                path,
                data=bytes.fromhex(arguments[1].strip('"').replace("\\x", ""))[:result],
            )
        elif name in ("fsync", "fdatasync"):
            yield Call("sync", path)
        else:
            raise NotImplementedError(f"{name} below {root}")
    elif name in ("link", "rename"):
        old, new = (full("", path) for path in arguments[:2])
        if here(new):
            yield Call(name, new, old)
    elif name in ("linkat", "renameat", "renameat2"):
        old, new = full(arguments[0], arguments[1]), full(arguments[2], arguments[3])
        if here(new):
            yield Call(name.removesuffix("2").removesuffix("at"), new, old)
    elif name in ("unlink", "rmdir", "mkdir"):
        path = full("", arguments[0])
        if here(path):
            yield Call("unlink" if name == "rmdir" else name, path)
    elif name in ("unlinkat", "mkdirat"):
        path = full(arguments[0], arguments[1])
        if here(path):
            yield Call(name.removesuffix("at"), path)


def _described(descriptor):
    """Give the path that strace names beside a descriptor."""
    match = _PATH.match(descriptor)
    if match is None:
        return ""
    return (
        bytes.fromhex(match[1].replace("\\x", "")).decode("latin-1")
        if "\\x" in match[1]
        else match[1]
    )


@dataclasses.dataclass
class _File:
    """Bytes that were written, and how many of them are safe; a folder has none."""

    data: bytearray = dataclasses.field(default_factory=bytearray)
    safe: int = 0
    folder: bool = False


@dataclasses.dataclass(frozen=True)
class _Name:
    """A change of a name in a folder that is not safe yet: what stands there then, or nothing; `gone` goes with it."""

    path: str
    file: object
    gone: str = ""

    def happen(self, there):
        if self.file is None:
            there.pop(self.path, None)
        else:
            there[self.path] = self.file
        there.pop(self.gone, None)


class Disk:
    """Names and files after some calls, with what of them is safe."""

    def __init__(self, root):
        self.root = os.path.realpath(root)
        self.safe = {}  # path to file, as it is after a power cut at the least
        self.now = {}
        self.unsafe = []  # changes of names in the order in which they were made

    def apply(self, call):
        """Take note of a call."""
        if call.what == "create":
            if call.path not in self.now:
                self._name(call.path, _File())
            elif call.other:
                self.now[call.path].data.clear()
                self.now[call.path].safe = 0
        elif call.what == "mkdir":
            self._name(call.path, _File(folder=True))
        elif call.what == "write":
            # A file may have lost the name under which it is open; it is the same file.
            file = self.now.get(call.path) or self._last(call.path)
            file.data += call.data
        elif call.what == "sync":
            file = self.now.get(call.path)
            if call.path == self.root or (file is not None and file.folder):
                self._sync(call.path)
            elif file is not None:
                file.safe = len(file.data)
        elif call.what == "link":
            self._name(call.path, self.now[call.other])
        elif call.what == "rename":
            assert _parent(call.path) == _parent(call.other), (
                "between folders it is not known what is safe"
            )
            self._name(call.path, self.now[call.other], call.other)
        elif call.what == "unlink":
            self._name(call.path, None)

    def _last(self, path):
        return next(name.file for name in reversed(self.unsafe) if name.path == path and name.file)

    def _name(self, path, file, gone=""):
        self.unsafe.append(_Name(path, file, gone))
        self.unsafe[-1].happen(self.now)

    def _sync(self, folder):
        """Make the names in a folder safe."""
        kept = []
        for name in self.unsafe:
            if _parent(name.path) != folder:
                kept.append(name)
            else:
                name.happen(self.safe)
        self.unsafe = kept

    def cut(self, chance):
        """Draw what is there after a power cut now: path to bytes, or None for a folder.

        Parameters
        ----------
        chance : random.Random
        """
        keep = chance.choice([0.0, 0.5, 0.9, 1.0])  # of the names that are not safe
        there = dict(self.safe)
        for name in self.unsafe:
            if chance.random() < keep:
                name.happen(there)
        share = chance.choice(_UNSYNCED_SIZES)  # of the bytes that are not safe
        zeros = chance.random() < 0.3
        found = {}
        for path, file in there.items():
            if not self._reachable(path, there):
                continue
            if file.folder:
                found[path] = None
                continue
            left = file.safe + round(share * (len(file.data) - file.safe))
            data = bytes(file.data[: file.safe])
            rest = bytes(file.data[file.safe : left])
            found[path] = data + (bytes(len(rest)) if zeros else rest)
        return found

    def _reachable(self, path, there):
        parent = _parent(path)
        while parent != self.root:
            if parent not in there:
                return False
            parent = _parent(parent)
        return True


def _parent(path):
    return path.rpartition("/")[0]


def laid_out(state, root, place):
    """Write a state to a folder; gives the folder that `root` has become."""
    root, place = os.path.realpath(root), Path(place)
    place.mkdir(parents=True)
    for path, data in sorted(state.items()):
        target = place / os.path.relpath(path, root)
        if data is None:
            target.mkdir(exist_ok=True)
        else:
            target.write_bytes(data)
    return place
