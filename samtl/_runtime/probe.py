"""How fast this machine computes in each dtype: measured once for each kind of work, and kept.

The flags of a processor do not say it. Some that have bfloat16 multiply it at half the speed of float32, and on some
the same flag stands for ten times the speed.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import itertools
import os
import platform
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import torch

from samtl._download import user_folder
from samtl._io import digest, make_folder, read_regular, replace, seal, unseal
from samtl.errors import DamageError, InputError

#: Names the dtype that `auto` stands for, instead of a measurement: so that all nodes of a cluster compute alike.
DTYPE = "SAMTL_DTYPE"
MIXED = ("float32", "bfloat16")  # that products may be in beside weights in float32
GAIN = 1.1  # how much faster a way must be to be taken in place of an earlier, more exact one
TRIVIAL = 1e-3  # seconds: for less work than this nothing is gained by a choice
_HOPELESS = 4  # times as long as the fastest: a way that is not tried again
_COLD = 5.0  # seconds: a way whose first call takes less may only have to make its kernels, and is tried again
_CLEAR = 1.2  # how much slower each way must be than the one before it, for two rounds to be enough
_ROUNDS, _SECONDS = 6, 2.0  # at most, and time after which no further round begins
_LONG = 0.3  # seconds: work that takes longer is not repeated to warm up
LOAD = 0.25  # cores that others keep busy: with more, a measurement may be wrong, and counts for an hour only
_STALE = 3600.0

Work = Callable[[], object]
#: Prepares one way to do the same work, and returns a call that does it.
Prepare = Callable[[], Work]


class Timing(msgspec.Struct, frozen=True):
    """How long one kind of work takes in each way."""

    seconds: dict[str, float]  #: the least of some rounds
    load: float  #: cores that other processes kept busy meanwhile
    time: float  #: when it was measured, in seconds since 1970

    @property
    def disturbed(self) -> bool:
        """Whether other processes may have changed the order."""
        return self.load > LOAD

    def fastest(self, among: Iterable[str]) -> str:
        """Return the fastest of some ways; of two that are about as fast, the one that is named first."""
        best = ""
        for name in among:
            found = self.seconds.get(name)
            if found is not None and (not best or found * GAIN < self.seconds[best]):
                best = name
        return best

    def relative_to(self, way: str) -> dict[str, float]:
        """Return the speed of each way as a multiple of one of them."""
        if way not in self.seconds:
            return {}
        return {name: round(self.seconds[way] / s, 3) for name, s in self.seconds.items()}


class _Kept(msgspec.Struct):
    """The file in which the measurements of a machine are kept."""

    machine: dict[str, Any]
    timings: dict[str, Timing]
    checksum: str = ""


_known: dict[tuple[str, str], Timing] = {}  # by machine and work, in this process
_one_at_a_time = threading.Lock()


def machine() -> dict[str, Any]:
    """Describe what decides how fast products are here, for this number of threads."""
    limits = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")
    return {
        "processor": _processor(),
        # Virtual machines hide some, so that the name alone does not tell.
        "features": sorted(name for name, has in _capabilities().items() if has is True),
        "limits": {name: os.environ[name] for name in limits if name in os.environ},
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "samtl": importlib.metadata.version("samtl"),
    }


def possible_dtypes(device: torch.device) -> tuple[str, ...]:
    """List the dtypes that a device multiplies without emulation, as far as its flags tell; the most exact first."""
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("float32", "bfloat16", "float16") if native else ("float32", "float16")
    if device.type != "cpu":
        return ("float32",)
    flags = {
        "bfloat16": ("amx_bf16", "avx512_bf16", "bf16"),
        "float16": ("amx_fp16", "avx512_fp16", "fp16_arith"),
    }
    return ("float32", *(name for name, any_of in flags.items() if _has(any_of)))


def has_int8() -> bool:
    """Whether the processor has instructions for products of 8-bit integers."""
    return _has(("avx512_vnni", "avx_vnni", "amx_int8", "i8mm", "dot"))


def told_dtype() -> str | None:
    """Return what the environment says that `auto` stands for; InputError if it is neither of `MIXED`."""
    told = os.environ.get(DTYPE)
    if told and told not in MIXED:
        raise InputError(f"${DTYPE} must be {' or '.join(MIXED)}, got {told!r}")
    return told or None


def measured(work: str, ways: Mapping[str, Prepare], for_good: bool = False) -> Timing:
    """Return how long some work takes in each way; measure it unless that is known of this machine.

    `work` names it, and everything that its speed depends on; the first way must be possible everywhere. A measurement
    beside other load counts for an hour, unless the choice is made `for_good`, so that results can be repeated.
    """
    here = machine()
    key = digest(here)
    with _alone(_path(key)) as path:
        if (found := _known.get((key, work))) is None:
            found = read(path).get(work)
            stale = found is not None and time.time() - found.time > _STALE
            old = found is not None and found.disturbed and stale and not for_good
            if found is None or old or not found.seconds.keys() >= ways.keys():
                found = _measure(ways)
                if found.disturbed:
                    found = min(found, _measure(ways), key=lambda one: one.load)
                if for_good or max(found.seconds.values()) >= TRIVIAL:
                    _keep(path, here, work, found)
            _known[key, work] = found
    return found


@contextmanager
def _alone(path: Path) -> Iterator[Path]:
    """Keep other threads and processes from measuring at the same time."""
    with _one_at_a_time, ExitStack() as stack:
        with suppress(OSError):  # no place to write, or a file system without locks
            make_folder(path.parent)
            lock = stack.enter_context((path.parent / "lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield path


def fastest_dtype(work: str, prepare: Callable[[str], Work]) -> str:
    """Return `float32` or `bfloat16`, whichever a CPU does some work faster in; for other arguments see `measured`."""
    names = [name for name in possible_dtypes(torch.device("cpu")) if name in MIXED]
    if told := told_dtype():
        return told
    if len(names) == 1:
        return names[0]
    ways = {name: partial(prepare, name) for name in names}
    return measured(work, ways, for_good=True).fastest(names)


def known() -> dict[str, Timing]:
    """Return what is kept of this machine with this number of threads, by the name of the work."""
    return read(_path(digest(machine())))


def _path(key: str) -> Path:
    return user_folder("", "speed") / f"{key[:16]}.json"


def read(path: Path) -> dict[str, Timing]:
    """Read measurements; none if the file is missing or damaged."""
    with suppress(OSError, DamageError):
        return unseal(read_regular(path), _Kept, path).timings
    return {}


def _keep(path: Path, here: dict[str, Any], work: str, timing: Timing) -> None:
    kept = _Kept(here, {**read(path), work: timing})
    with suppress(OSError):  # then it is measured again the next time
        replace(path, seal(msgspec.to_builtins(kept)))


def _measure(ways: Mapping[str, Prepare]) -> Timing:
    """Time all ways in turn, until their order is clear."""
    least: dict[str, float] = {}
    ready: dict[str, Work] = {}
    began, others = time.monotonic(), busy_elsewhere()
    for name, prepare in ways.items():
        call = prepare()
        least[name] = _seconds(call)  # a warm-up
        first, bound = not ready, _HOPELESS * min(least.values()) + 0.05
        if least[name] < _LONG if first else bound <= least[name] < _COLD:
            least[name] = _seconds(call)
        if first and least[name] < TRIVIAL:
            break
        if least[name] < bound:
            ready[name] = call
    for round_ in range(_ROUNDS if len(ready) > 1 else 0):
        for name, call in ready.items():
            least[name] = min(least[name], _seconds(call)) if round_ else _seconds(call)
        order = sorted(least[name] for name in ready)
        clear = all(b > _CLEAR * a for a, b in itertools.pairwise(order))
        if time.monotonic() - began > _SECONDS or (round_ and clear):
            break
    return Timing(least, round(others(), 2), time.time())


def _seconds(call: Work) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def busy_elsewhere() -> Callable[[], float]:
    """Begin to watch the machine; the result returns how many cores other processes kept busy since (Linux only)."""
    began, before, own = time.perf_counter(), _busy(), sum(os.times()[:4])

    def others() -> float:
        elapsed, mine = time.perf_counter() - began, sum(os.times()[:4]) - own  # with children
        ticks = os.sysconf("SC_CLK_TCK")
        # The clock of the machine ticks, so little is known of a short time.
        spent = (_busy() - before) / ticks - mine - 2 / ticks
        return max(0.0, spent / elapsed) if before else 0.0

    return others


def _busy() -> int:
    """Return the ticks that all cores were at work, 0 if the system does not tell."""
    with suppress(OSError, ValueError):
        user, nice, system, _, _, *rest = map(int, Path("/proc/stat").read_text().split()[1:9])
        return user + nice + system + sum(rest)
    return 0


def _capabilities() -> Mapping[str, Any]:
    # Older versions of torch do not have it.
    return getattr(torch.cpu, "get_capabilities", dict[str, Any])()


def _has(any_of: Iterable[str]) -> bool:
    return any(_capabilities().get(name) for name in any_of)


def _processor() -> str:
    """Return the model of the processor on Linux, elsewhere the architecture."""
    with suppress(OSError):
        lines = re.findall(r"(?m)^([^:\n]+?)\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text())
        found = dict(reversed(lines))  # of the first core
        names = ("model name", "cpu family", "model", "CPU implementer", "CPU part")
        if told := [f"{name} {found[name]}" for name in names if name in found]:
            return ", ".join(told).removeprefix("model name ")
    return platform.processor() or platform.machine()
