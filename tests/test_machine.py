"""What the machine can do is found out, not assumed."""

import pytest
import torch

from samtl._runtime import native_bfloat16


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
