"""What the machine can do is found out, not assumed; memory is that of this process alone."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from samtl.machine import native_bfloat16, peak_memory


@pytest.mark.parametrize(
    ("capabilities", "native"),
    [
        ({"avx512_f": True, "avx512_bf16": True}, True),
        ({"avx512_f": True, "amx_bf16": True, "avx512_bf16": False}, True),
        ({"architecture": "aarch64", "bf16": True}, True),
        ({"avx512_f": True, "avx512_bf16": False}, False),  # would emulate it
        ({}, False),
    ],
)
def test_a_cpu_tells_whether_it_multiplies_bfloat16(capabilities, native, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert native_bfloat16(torch.device("cpu")) is native


def test_a_torch_that_cannot_tell_means_float32(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert native_bfloat16(torch.device("cpu")) is False


def test_emulation_on_a_gpu_does_not_count(monkeypatch):
    asked = []

    def supported(including_emulation):
        asked.append(including_emulation)
        return not including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert native_bfloat16(torch.device("cuda")) is True
    assert asked == [False]


def test_other_devices_have_none():
    assert native_bfloat16(torch.device("meta")) is False


PEAK = """
import importlib.util, sys, types
sys.modules["torch"] = types.ModuleType("torch")  # not needed, and large
spec = importlib.util.spec_from_file_location("machine", sys.argv[1])
machine = importlib.util.module_from_spec(spec)
spec.loader.exec_module(machine)
print(machine.peak_memory())
block = bytearray(b"x") * 2**26
print(machine.peak_memory())
del block
print(machine.peak_memory())
"""


def peaks():
    """In a process of its own: before 64 MiB were used, while, and after."""
    source = sys.modules["samtl.machine"].__file__
    done = subprocess.run(
        [sys.executable, "-c", PEAK, source], capture_output=True, text=True, check=True
    )
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
