"""Devices and compute dtypes are what was asked for, or a clear refusal."""

import pytest
import torch

from samtl.encoders._device import resolve_device, resolve_dtype
from samtl.errors import InputError

no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")


def test_auto_is_a_device_that_computes():
    device = resolve_device("auto")
    assert torch.ones(2, device=device).sum().item() == 2


@no_cuda
@pytest.mark.parametrize("name", ["cuda", "cuda:0"])
def test_cuda_without_cuda(name):
    with pytest.raises(InputError, match=f"--device {name} needs CUDA"):
        resolve_device(name)


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cuda:", "cuda:²", "cpu:", "cpu:0", "mps:1", ""])
def test_unknown_devices(name):
    with pytest.raises(InputError, match="--device must be auto, cpu, cuda, cuda:N or mps"):
        resolve_device(name)


def test_a_gpu_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert resolve_device("auto").type == "cuda"
    with pytest.raises(InputError, match="CUDA sees 1 device"):
        resolve_device("cuda:3")


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({"avx512_f": True, "avx2": True}, torch.float32),
        ({}, torch.float32),
    ],
)
def test_auto_dtype_is_bfloat16_only_where_native(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert resolve_dtype("auto", torch.device("cpu")) == expected


def test_named_dtypes():
    for name in ("float32", "bfloat16", "float16"):
        assert str(resolve_dtype(name, torch.device("cpu"))) == f"torch.{name}"
    with pytest.raises(InputError, match="--dtype must be auto, float32"):
        resolve_dtype("fp16", torch.device("cpu"))
