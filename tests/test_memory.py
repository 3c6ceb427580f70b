"""Memory is that of this process alone, at its largest and now."""

import gc
import subprocess
import sys
from pathlib import Path

import pytest

from samtl._runtime import machine_memory, peak_memory, without_collecting

PEAK = """
from samtl._runtime import peak_memory
print(peak_memory())
block = bytearray(b"x") * 2**26
print(peak_memory())
del block
print(peak_memory())
"""


def peaks():
    """In a process of its own: before 64 MiB were used, while, and after."""
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    return [int(line) for line in done.stdout.split()]


def test_the_peak_grows_with_what_was_used_and_stays():
    before, during, after = peaks()
    assert during >= 2**26
    assert after > during - 2**20  # the kernel's counters are that exact
    assert during >= before


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="other systems have ru_maxrss alone"
)
def test_the_peak_of_whoever_started_the_process_does_not_count():
    """`ru_maxrss` would begin with it, which has loaded torch."""
    before, during, _ = peaks()
    assert 2**20 < before < peak_memory() / 2
    assert 0.9 * 2**26 < during - before < 1.2 * 2**26


RESIDENT = """
from samtl._runtime import resident_memory
print(resident_memory())
block = bytearray(b"x") * 2**26
print(resident_memory())
del block
print(resident_memory())
"""


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="other systems have ru_maxrss alone"
)
def test_resident_memory_falls_again():
    done = subprocess.run(
        [sys.executable, "-c", RESIDENT], capture_output=True, text=True, check=True
    )
    before, during, after = map(int, done.stdout.split())
    assert 0.9 * 2**26 < during - before < 1.2 * 2**26
    assert after < before + 2**24


def limits(monkeypatch, groups, files):
    """Let the process be in control groups."""
    real = Path.read_text

    def read(path, *rest, **options):
        if str(path) == "/proc/self/cgroup":
            return groups
        if str(path).startswith("/sys/fs/cgroup"):
            if str(path) not in files:
                raise FileNotFoundError(path)
            return files[str(path)]
        return real(path, *rest, **options)

    monkeypatch.setattr(Path, "read_text", read)


needs_groups = pytest.mark.skipif(
    not Path("/proc/self/cgroup").exists(), reason="this system has no control groups"
)


@needs_groups
@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/a/b\n", {"/sys/fs/cgroup/a/memory.max": "1000000\n", "/sys/fs/cgroup/a/b/memory.max": "max\n"}, 10**6),
        ("0::/a/b\n", {"/sys/fs/cgroup/a/memory.max": "1000000\n", "/sys/fs/cgroup/a/b/memory.max": "7\n"}, 7),
        ("4:memory:/x\n3:cpu:/y\n", {"/sys/fs/cgroup/memory/x/memory.limit_in_bytes": "4096\n"}, 4096),
        ("4:memory:/\n", {"/sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}, None),
        ("0::/\n", {}, None),
    ],
)  # fmt: skip
def test_a_control_groups_limit_counts(monkeypatch, groups, files, expected):
    limits(monkeypatch, "0::/\n", {})
    whole = machine_memory()
    limits(monkeypatch, groups, files)
    assert machine_memory() == (whole if expected is None else expected)


def test_a_machine_has_more_memory_than_a_process_has_used():
    assert machine_memory() > peak_memory() > 0


@pytest.mark.parametrize("enabled", [True, False])
def test_cycles_are_collected_again_as_before(enabled):
    was = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        with without_collecting():
            assert not gc.isenabled()
        with pytest.raises(KeyError), without_collecting():
            raise KeyError
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if was else gc.disable)()
