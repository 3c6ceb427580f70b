"""What the machine can do is found out, not assumed; memory is that of this process alone."""

import subprocess
import sys
from pathlib import Path

import numpy as np
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


def test_the_peak_grows_with_what_was_used_and_never_falls():
    first = peak_memory()
    block = np.ones(first // 8 + 2**22)  # 32 MiB more than all that there was
    second = peak_memory()
    assert second >= block.nbytes
    del block
    assert peak_memory() > second - 2**20  # the kernel's counters are that exact


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="other systems have ru_maxrss alone"
)
def test_the_peak_of_whoever_started_the_process_does_not_count():
    """`ru_maxrss` would begin with it."""
    block = np.ones(2**25)  # 256 MiB
    code = (
        "import importlib.util, sys, types\n"
        "sys.modules['torch'] = types.ModuleType('torch')  # not needed, and large\n"
        "spec = importlib.util.spec_from_file_location('machine', sys.argv[1])\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "print(module.peak_memory())"
    )
    source = sys.modules["samtl.machine"].__file__
    done = subprocess.run(
        [sys.executable, "-c", code, source], capture_output=True, text=True, check=True
    )
    assert 2**20 < int(done.stdout) < block.nbytes / 2
