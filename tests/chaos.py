"""Encoder passes that are killed, or whose system calls fail, and crowds of writers; each in a process of its own.

A server that has imported everything forks a child for each pass, which waits until strace has hold of it. `strace`
counts calls by thread, so passes over what is there in part, in which one thread starts with the first call that
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

import numpy as np
import pytest
from stubs import everything

from samtl.store.reader import open_store
from samtl.store.storage import IDENTITY
from samtl.store.verify import check

ALL = bool(os.environ.get("SAMTL_TORTURE"))
ROWS = 64  # four blocks
BLOCK = 16
BATCH = 4
TIERS = ("pooled", "grid", "dense")
#: What changes a file system, or makes what was changed stay.
CALLS = ("write", "fsync", "link", "unlink", "rename", "mkdir", "openat")

SERVER = """
import contextlib, json, os, random, signal, sys, time
sys.path.insert(0, sys.argv[1])
import torch
from pathlib import Path
from stubs import StubEncoders, install, toy_dataset
from samtl.embed.api import embed
from samtl.errors import SamtlError
import samtl.embed.pipeline, samtl.store.reader, samtl.store.writer
torch.set_num_threads(1)


def told(code, error):
    with contextlib.suppress(OSError):  # which may be the call that fails
        print(error, file=sys.stderr)
    return code


def work(order):
    install(StubEncoders(seconds=order["seconds"], tally=Path(order["tally"])))
    dataset = toy_dataset(order["rows"])
    try:
        embed(dataset, "stub", out=order["out"], device="cpu", batch_size=order["batch"], tiers=order["tiers"])
    except SamtlError as error:
        return told(error.exit_code, error)
    except OSError as error:  # as the command line ends
        return told(5, repr(error))
    return 0


def child(order, go=None):
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        out = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1), os.dup2(out, 2)
        if go is not None:
            os.close(go[1])
            os.read(go[0], 1)
        code = work(order)
    except BaseException:
        import traceback
        traceback.print_exc()
    finally:
        os._exit(code)


def crowd(order):
    '''Let several writers start at once, kill one after the other at random and start another in its place.'''
    chance, codes, kills = random.Random(order["seed"]), [], 0
    there = [child(order) for _ in range(order["writers"])]
    while there:
        time.sleep(chance.random() * order["pause"])
        if kills < order["kills"]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(chance.choice(there), signal.SIGKILL)
        for pid in list(there):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if not ended:
                continue
            there.remove(pid)
            codes.append(os.waitstatus_to_exitcode(status))
            if codes[-1] < 0:
                kills += 1
                there.append(child(order))
    return {"codes": codes, "kills": kills}


for line in sys.stdin:
    order = json.loads(line)
    if "writers" in order:
        print(json.dumps(crowd(order)), flush=True)
        continue
    go = os.pipe()
    pid = child(order, go)
    os.close(go[0])
    print(json.dumps({"pid": pid}), flush=True)
    sys.stdin.readline()
    os.write(go[1], b"x")
    os.close(go[1])
    _, status = os.waitpid(pid, 0)
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

    def __init__(self, folder):
        self.folder = Path(folder)
        self.turn = 0

    def __enter__(self):
        self.server = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(Path(__file__).parent)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        return self

    def __exit__(self, *error):
        self.server.stdin.close()
        self.server.wait()
        self.server.stdout.close()

    def begin(self, out, tiers=TIERS, rows=ROWS, seconds=0.0):
        """Start a pass, and let the caller have its process; `end` waits for it."""
        self.turn += 1
        pid = self._ask(self._order(out, tiers=list(tiers), rows=rows, seconds=seconds))["pid"]
        self.server.stdin.write("\n")
        self.server.stdin.flush()
        return pid

    def end(self):
        """Wait for what was begun; gives how it went."""
        return self._ended(json.loads(self.server.stdout.readline())["code"])

    def embed(self, out, call="", nth=1, fault="", tiers=TIERS):
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
        trace = self.folder / f"{self.turn}.trace"
        pid = self._ask(self._order(out, tiers=list(tiers)))["pid"]
        if not call:
            return self._ended(self._ask({})["code"])
        # What `write` writes to pipes and the terminal is traced, too; a pass does not know the difference.
        tracer = subprocess.Popen(
            ["strace", "-f", "-qq", "-o", str(trace), "-p", str(pid), "-e", f"trace={call}", "-e",
             f"inject={call}:{fault}:when={nth}"],
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._attached(pid)
        done = self._ended(self._ask({})["code"])
        _, complaint = tracer.communicate(timeout=60)
        assert "ptrace" not in complaint, complaint
        done.struck |= "(INJECTED)" in trace.read_text()
        trace.unlink()
        return done

    def crowd(self, out, writers, rows, kills, seed, pause=0.02, seconds=0.001):
        """Let several writers start at once on one store, and kill so many of them; gives exit codes and kills."""
        self.turn += 1
        told = self._ask(
            self._order(
                out,
                writers=writers,
                rows=rows,
                kills=kills,
                seed=seed,
                pause=pause,
                seconds=seconds,
            )
        )
        return told["codes"], told["kills"], self._ended(0)

    def _order(self, out, **more):
        tally, log = (str(self.folder / f"{self.turn}.{name}") for name in ("tally", "log"))
        plain = {"tiers": list(TIERS), "rows": ROWS, "seconds": 0.0, "batch": BATCH}
        return {"out": str(out), "tally": tally, "log": log, **plain, **more}

    def _ended(self, code):
        tally, log = (self.folder / f"{self.turn}.{name}" for name in ("tally", "log"))
        encoded = tally.stat().st_size if tally.exists() else 0
        told = log.read_text() if log.exists() else ""  # it may be killed before it begins
        for path in (tally, log):
            path.unlink(missing_ok=True)
        return Pass(code, encoded, told, code < 0)

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


def committed_rows(store, expected, level="rows"):
    """Check every row that counts against a whole store; gives how many there are."""
    if not (store / IDENTITY).exists() or not list(store.glob("samples/*.parquet")):
        return 0
    opened = open_store(store)
    there = np.flatnonzero(opened.valid())
    for name in opened.arrays:
        np.testing.assert_array_equal(opened.read(name, there), expected.read(name)[there])
    assert check(store, level).findings == []
    return len(opened) - opened.missing if opened.arrays else 0


def require_whole(store, expected):
    """Check that a store has every row, and nothing that is wrong or left over but temporary files."""
    assert everything(open_store(store)) == everything(expected)
    found = check(store, "deep")
    assert found.findings == []
    assert [name for name in found.leftovers if ".tmp-" not in name] == []


def once_each(store):
    """Check that every block was committed once, and that no lock is left; gives how many blocks there are."""
    names = sorted(path.name for path in (store / "log").glob("[!.]*.json"))
    assert names == sorted(f"{block}.0.json" for block in range(len(names)))
    assert not [path for path in store.rglob("*") if "lock" in path.name]
    return len(names)


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
