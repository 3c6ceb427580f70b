"""Devices and compute dtypes are what was asked for, or a clear refusal."""

import pytest
import torch

from samtl.encoders.device import resolve_device, resolve_devices, resolve_dtype
from samtl.errors import InputError


def test_auto_is_a_device_that_computes():
    device = resolve_device("auto")
    assert torch.ones(2, device=device).sum().item() == 2


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:all"])
def test_cuda_without_cuda(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"--device cuda.* needs .* CUDA"):
        resolve_devices(name)


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


def test_several_devices(monkeypatch):
    assert resolve_devices("cpu") == (torch.device("cpu"),)
    assert resolve_devices("cpu, cpu") == (torch.device("cpu"),) * 2
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    gpus = [torch.device("cuda", i) for i in range(3)]
    assert resolve_devices("cuda:0,cuda:2") == (gpus[0], gpus[2])
    assert resolve_devices("cuda:all") == tuple(gpus)
    with pytest.raises(InputError, match="twice"):
        resolve_devices("cuda:1,cuda:1")
    with pytest.raises(InputError, match="does not exist"):
        resolve_devices("cuda:0,cuda:7")
    with pytest.raises(InputError, match="--device must be"):
        resolve_devices("cpu,")
