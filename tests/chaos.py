"""Encoder passes that are killed, or whose system calls fail, at a chosen call.

A process with everything imported forks one child for each pass, which waits until strace has hold of it. `strace`
counts calls by thread; so passes over what is there in part, in which one thread starts with the first call that
counts, are tried beside whole ones.
"""

import contextlib
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROWS = 64  # four blocks
BATCH = 4
#: What changes a file system, or makes what was changed stay.
CALLS = ("write", "fsync", "link", "unlink", "rename", "mkdir", "openat")

SERVER = """
import contextlib, json, os, sys
sys.path.insert(0, sys.argv[1])
import torch
from stubs import StubEncoders, install, toy_dataset
from samtl.embed.api import embed
from samtl.errors import SamtlError
import samtl.store.reader, samtl.store.writer, samtl.embed.pipeline, filelock
dataset = toy_dataset(int(sys.argv[2]))
torch.set_num_threads(1)
if sys.argv[4] == "no locks":  # as on a drive that ignores them
    samtl.store.writer.locked = contextlib.nullcontext


def work(order):
    install(StubEncoders(tally=__import__("pathlib").Path(order["tally"])))
    try:
        embed(dataset, "stub", out=order["out"], device="cpu", batch_size=int(sys.argv[3]), tiers=order["tiers"])
    except SamtlError as error:
        return told(error.exit_code, error)
    except OSError as error:  # as the command line ends
        return told(5, repr(error))
    return 0


def told(code, error):
    with contextlib.suppress(OSError):  # which may be the call that fails
        print(error, file=sys.stderr)
    return code


for line in sys.stdin:
    order = json.loads(line)
    go, start = os.pipe()
    ready, there = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(start), os.close(ready)
        out = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1), os.dup2(out, 2)
        os.close(there)
        os.read(go, 1)
        code = 70
        try:
            code = work(order)
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(go), os.close(there)
    os.read(ready, 1)  # only what a pass does itself is to fail
    os.close(ready)
    print(json.dumps({"pid": child}), flush=True)
    sys.stdin.readline()
    os.write(start, b"x")
    os.close(start)
    _, status = os.waitpid(child, 0)
    print(json.dumps({"code": os.waitstatus_to_exitcode(status)}), flush=True)
"""


@dataclasses.dataclass
class Pass:
    """How one went: its exit code, negative for a signal; images encoded; what it printed; whether the fault struck."""

    code: int
    encoded: int
    told: str
    struck: bool


class Machine:
    """Where passes run that something happens to; a context manager."""

    def __init__(self, folder, locks=True):
        self.folder = Path(folder)
        self.locks = locks
        self.turn = 0

    def __enter__(self):
        self.server = subprocess.Popen(
            [
                sys.executable,
                "-c",
                SERVER,
                str(Path(__file__).parent),
                str(ROWS),
                str(BATCH),
                "locks" if self.locks else "no locks",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *error):
        self.server.stdin.close()
        self.server.wait()
        self.server.stdout.close()

    def begin(self, out):
        """Start a pass, and let the caller have its process; `end` waits for it."""
        self.turn += 1
        tally, log = (self.folder / f"{self.turn}.{name}" for name in ("tally", "log"))
        order = {
            "out": str(out),
            "tally": str(tally),
            "log": str(log),
            "tiers": ["pooled", "grid", "dense"],
        }
        pid = self._ask(order)["pid"]
        self.server.stdin.write("\n")
        self.server.stdin.flush()
        return pid

    def end(self):
        """Wait for what was begun; gives how it went."""
        code = json.loads(self.server.stdout.readline())["code"]
        tally, log = (self.folder / f"{self.turn}.{name}" for name in ("tally", "log"))
        told = log.read_text() if log.exists() else ""  # it may be killed before it begins
        return Pass(code, tally.stat().st_size if tally.exists() else 0, told, code < 0)

    def embed(self, out, call="", nth=1, fault="", tiers=("pooled", "grid", "dense")):
        """Run a pass.

        Parameters
        ----------
        out : path
        call : str
            The system call at whose nth turn in a thread something happens; "" for a pass to which nothing does.
        nth : int
        fault : str
            In strace's words: `signal=KILL`, `error=ENOSPC`.
        """
        self.turn += 1
        tally, log, trace = (
            self.folder / f"{self.turn}.{name}" for name in ("tally", "log", "trace")
        )
        order = {"out": str(out), "tally": str(tally), "log": str(log), "tiers": list(tiers)}
        pid = self._ask(order)["pid"]
        tracer = None
        if call:
            # What `write` writes to pipes and the terminal is traced, too; a pass does not know the difference.
            tracer = subprocess.Popen(
                ["strace", "-f", "-qq", "-o", str(trace), "-p", str(pid), "-e", f"trace={call}", "-e",
                 f"inject={call}:{fault}:when={nth}"],
                stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
            self._attached(pid)
        code = self._ask({})["code"]
        struck = False
        if tracer is not None:
            _, complaint = tracer.communicate(timeout=60)
            struck = code < 0 or "(INJECTED)" in trace.read_text()
            trace.unlink()
            assert "ptrace" not in complaint, complaint
        encoded = tally.stat().st_size if tally.exists() else 0
        told = log.read_text()
        for path in (tally, log):
            path.unlink(missing_ok=True)
        return Pass(code, encoded, told, struck)

    def _ask(self, order):
        self.server.stdin.write(json.dumps(order) + "\n")
        self.server.stdin.flush()
        return json.loads(self.server.stdout.readline())

    @staticmethod
    def _attached(pid):
        """Wait until the tracer has hold of a process."""
        while True:
            status = Path(f"/proc/{pid}/status").read_text()
            if not re.search(r"^TracerPid:\s*0$", status, re.MULTILINE):
                return
            os.sched_yield()


def can_trace():
    """Tell whether strace is here and may be used."""
    if shutil.which("strace") is None:
        return False
    done = subprocess.run(["strace", "-e", "trace=none", "true"], capture_output=True, check=False)
    return done.returncode == 0


needs_strace = pytest.mark.skipif(
    not can_trace(), reason="strace is not here, or may trace nothing"
)


def copied(store, place):
    """Copy a store; gives the copy."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(place)
    shutil.copytree(store, place)
    return place
