"""Memory is that of this process alone, at its largest and now."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from samtl.memory import peak_memory, resident_memory

PEAK = """
from samtl.memory import peak_memory
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


def test_resident_memory_falls_again():
    assert torch.__version__  # is loaded, and large
    before = resident_memory()
    block = np.ones(2**26, np.uint8)
    during = resident_memory()
    del block
    assert during - before > 0.9 * 2**26 or during == peak_memory()
    assert resident_memory() <= peak_memory()
