"""Encoder passes that are killed, or whose system calls fail or are written down, each in a process of its own.

A server that has imported everything forks a child for each pass, which waits until strace has hold of it. `strace`
counts calls by thread, so passes over what is there in part, in which one thread starts with the first call that
counts, are tried beside whole ones.
"""

import contextlib
import os
import shutil
import subprocess
import tempfile
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
from forking import server
from stubs import StubEncoders, everything, install, toy_dataset

from samtl.embed import pipeline  # noqa: F401, so that no child has to import it
from samtl.embed.api import embed
from samtl.errors import SamtlError
from samtl.store.reader import open_store
from samtl.store.storage import IDENTITY, open_storage
from samtl.store.verify import check

ALL = bool(os.environ.get("SAMTL_TORTURE"))
ROWS = 64  # four blocks
BLOCK, BATCH = 16, 4


def work(gate, folder, out, rows, seconds, how):
    """What a child does, as the command line would end."""
    printed = os.open(folder / "printed", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(printed, 1), os.dup2(printed, 2)
    gate.recv()
    code = 70
    try:
        torch.set_num_threads(1)
        install(StubEncoders(seconds=seconds, tally=folder / "tally"))
        if how == "careless":
            os.fsync = lambda descriptor: None
        elif how == "two":  # writers, which do not wait for each other
            os.fork()
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


def fault_at(call, nth, fault):
    """What strace is to do at the nth turn of a call in a thread: `signal=KILL`, or `error=ENOSPC`."""
    return ("-e", f"trace={call}", "-e", f"inject={call}:{fault}:when={nth}")


class Pass:
    """A pass that has begun, for which `end` waits: traced with options of strace, and of `seconds` an image.

    One that is "careless" syncs nothing, "two" are two writers. When it has ended, it has the exit code, negative for a
    signal; how many images it encoded; what it `told`, and strace; and whether a fault or a signal `struck` it.
    """

    def __init__(self, out, strace=(), rows=ROWS, seconds=0.0, how=""):
        self.folder, self.tracer, self.trace = (
            Path(tempfile.mkdtemp(prefix="samtl-pass-")),
            None,
            "",
        )
        gate, go = server().Pipe(duplex=False)
        given = (gate, self.folder, out, rows, seconds, how)
        self.process = server().Process(target=work, args=given)
        self.process.start()
        if strace:
            # What it writes to pipes and the terminal is traced, too; a pass does not know the difference.
            command = ["strace", "-f", "-qq", "-o", self.folder / "trace", *strace]
            command += ["-p", str(self.process.pid)]
            self.tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
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
        if self.tracer:
            _, complaint = self.tracer.communicate(timeout=60)
            assert "ptrace" not in complaint, complaint
            self.trace = (self.folder / "trace").read_text("latin-1")
        self.struck = self.code < 0 or "(INJECTED)" in self.trace
        tally, printed = self.folder / "tally", self.folder / "printed"
        self.encoded = tally.stat().st_size if tally.exists() else 0
        # It may be killed before it begins.
        self.told = printed.read_text() if printed.exists() else ""
        shutil.rmtree(self.folder)
        return self


def committed_rows(store, expected, level="rows"):
    """Check every row that counts against a whole store; gives how many there are."""
    storage = open_storage(store)
    tables = [name for name in storage.list("samples") if name[0] != "."]
    if storage.size(IDENTITY) is None or not tables:
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
    records = {
        name for name in open_storage(store).list("log") if name[0] != "." and name[-5:] == ".json"
    }
    assert records == {f"{block}.0.json" for block in range(-(-len(expected) // BLOCK))}


TRACES = subprocess.run(["sh", "-c", "strace -e trace=none true"], capture_output=True, check=False)
needs_strace = pytest.mark.skipif(
    TRACES.returncode != 0, reason="strace is not here, or may trace nothing"
)
