"""Encoder passes that are killed, or whose system calls fail, each in a process of its own.

A server that has imported everything forks a child for each pass, which waits until strace has hold of it. `strace`
counts calls by thread, so passes over what is there in part, in which one thread starts with the first call that
counts, are tried beside whole ones.
"""

import contextlib
import functools
import multiprocessing.forkserver
import os
import shutil
import signal
import subprocess
import tempfile
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
from stubs import StubEncoders, everything, install, toy_dataset

from samtl.embed import pipeline  # noqa: F401, so that no child has to import it
from samtl.embed.api import embed
from samtl.errors import SamtlError
from samtl.store.reader import open_store
from samtl.store.storage import IDENTITY
from samtl.store.verify import check

ALL = bool(os.environ.get("SAMTL_TORTURE"))
ROWS = 64  # four blocks
BLOCK = 16
BATCH = 4
#: What changes a file system, or makes what was changed stay.
CALLS = ("write", "fsync", "link", "unlink", "rename", "mkdir", "openat")


@functools.cache
def server():
    """Start the server; returns what makes its children."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["chaos"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        multiprocessing.forkserver.ensure_running()
    return context


def work(gate, folder, out, rows, seconds):
    """What a child does, as the command line would end."""
    printed = os.open(folder / "printed", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(printed, 1), os.dup2(printed, 2)
    gate.recv()
    code = 70
    try:
        torch.set_num_threads(1)
        install(StubEncoders(seconds=seconds, tally=folder / "tally"))
        embed(toy_dataset(rows), "stub", out=out, device="cpu", batch_size=BATCH)
        code = 0
    except (SamtlError, OSError) as error:
        code = getattr(error, "exit_code", 5)
        with contextlib.suppress(OSError):  # which may be the call that fails
            os.write(2, repr(error).encode())
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


class Pass:
    """A pass that has begun, for which `end` waits.

    Parameters
    ----------
    out : path
    call : str
        The system call at whose nth turn in a thread something happens; "" for a pass to which nothing does.
    nth : int
    fault : str
        In strace's words: `signal=KILL`, `error=ENOSPC`.
    rows : int
    seconds : float
        That an image takes.

    Attributes
    ----------
    code, encoded, told, struck : int, int, str, bool
        When it has ended: its exit code, negative for a signal; images encoded; what it printed; whether something
        happened to it.
    """

    def __init__(self, out, call="", nth=1, fault="", rows=ROWS, seconds=0.0):
        self.folder, self.tracer = Path(tempfile.mkdtemp(prefix="samtl-pass-")), None
        gate, go = server().Pipe(duplex=False)
        self.process = server().Process(target=work, args=(gate, self.folder, out, rows, seconds))
        self.process.start()
        if call:
            # What it writes to pipes and the terminal is traced, too; a pass does not know the difference.
            self.tracer = subprocess.Popen(
                ["strace", "-f", "-qq", "-o", self.folder / "trace", "-p", str(self.process.pid),
                 "-e", f"trace={call}", "-e", f"inject={call}:{fault}:when={nth}"],
                stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
            while "TracerPid:\t0\n" in Path(f"/proc/{self.process.pid}/status").read_text():
                os.sched_yield()
        go.send(None)

    def tell(self, what):
        """Send it a signal, if it has not ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, what)

    def end(self):
        self.process.join()
        self.code = self.process.exitcode
        self.struck = self.code < 0
        if self.tracer:
            _, complaint = self.tracer.communicate(timeout=60)
            assert "ptrace" not in complaint, complaint
            self.struck |= "(INJECTED)" in (self.folder / "trace").read_text()
        tally, printed = self.folder / "tally", self.folder / "printed"
        self.encoded = tally.stat().st_size if tally.exists() else 0
        self.told = (
            printed.read_text() if printed.exists() else ""
        )  # it may be killed before it begins
        shutil.rmtree(self.folder)
        return self


def crowd(out, writers, rows, kills, chance):
    """Let several writers start at once on one store, kill so many at random, and start another in each one's place.

    Returns what those did that came to their end, and the images that all encoded.
    """
    there = [Pass(out, rows=rows, seconds=0.001) for _ in range(writers)]
    whole, encoded = [], 0
    while there:
        if kills:
            multiprocessing.connection.wait(
                [one.process.sentinel for one in there], chance.random() * 0.02
            )
            chance.choice(there).tell(signal.SIGKILL)
        ended = multiprocessing.connection.wait([one.process.sentinel for one in there])
        for one in [one for one in there if one.process.sentinel in ended]:
            there.remove(one)
            encoded += one.end().encoded
            if one.code == -signal.SIGKILL:
                kills -= 1
                there.append(Pass(out, rows=rows, seconds=0.001))
            else:
                whole.append(one)
    return whole, encoded


def committed_rows(store, expected, level="rows"):
    """Check every row that counts against a whole store; gives how many there are."""
    if not (store / IDENTITY).exists() or not list(store.glob("samples/*.parquet")):
        return 0
    opened = open_store(store)
    there = np.flatnonzero(opened.valid())
    for name in opened.arrays:
        np.testing.assert_array_equal(opened.read(name, there), expected.read(name)[there])
    assert [(one.path, one.told) for one in check(store, level).findings] == []
    return len(opened) - opened.missing if opened.arrays else 0


def require_whole(store, expected):
    """Check that a store has every row, each block committed once, and nothing wrong or left but temporary files."""
    assert everything(open_store(store)) == everything(expected)
    found = check(store, "deep")
    assert [(one.path, one.told) for one in found.findings] == []
    assert [name for name in found.leftovers if ".tmp-" not in name] == []
    names = {path.name for path in store.glob("log/[!.]*.json")}
    assert names == {f"{block}.0.json" for block in range(-(-len(expected) // BLOCK))}


def can_trace():
    """Whether strace is here and may be used."""
    command = ["strace", "-e", "trace=none", "true"]
    return (
        bool(shutil.which("strace"))
        and not subprocess.run(command, capture_output=True, check=False).returncode
    )


needs_strace = pytest.mark.skipif(
    not can_trace(), reason="strace is not here, or may trace nothing"
)
