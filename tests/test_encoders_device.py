"""Devices and compute dtypes are what was asked for, or a clear refusal."""

import pytest
import torch

from samtl.encoders.device import resolve_device, resolve_devices, resolve_dtype
from samtl.errors import InputError


def given(monkeypatch, gpus):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)


@pytest.mark.parametrize(
    ("gpus", "names", "said"),
    [
        *((0, name, "cuda.* needs .* CUDA") for name in ("cuda", "cuda:0", "cuda:all")),
        *((1, name, "--device must be auto, cpu, cuda, cuda:N or mps")
          for name in ("gpu", "cuda:x", "cuda:", "cuda:²", "cpu:", "cpu:0", "mps:1", "", "cpu,")),
        (1, "cuda:3", "CUDA sees 1 device"),
        (3, "cuda:0,cuda:7", "does not exist"),
        (3, "cuda:1,cuda:1", "twice"),
        (3, "cuda:1,cpu", "one kind"),
    ],
)  # fmt: skip
def test_what_there_is_not(monkeypatch, gpus, names, said):
    given(monkeypatch, gpus)
    with pytest.raises(InputError, match=said):
        resolve_devices(names)


def test_several_devices(monkeypatch):
    assert torch.ones(2, device=resolve_device("auto")).sum().item() == 2
    assert resolve_devices("cpu") == (torch.device("cpu"),)
    assert resolve_devices("cpu, cpu") == (torch.device("cpu"),) * 2
    given(monkeypatch, 3)
    gpus = [torch.device("cuda", i) for i in range(3)]
    assert resolve_device("auto").type == "cuda"
    assert resolve_devices("cuda:0,cuda:2") == (gpus[0], gpus[2])
    assert resolve_devices("cuda:all") == tuple(gpus)


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [("avx512_bf16", "bfloat16"), ("amx_bf16", "bfloat16"), ("avx2", "float32"), ("", "float32")],
)
def test_auto_dtype_is_bfloat16_only_where_native(monkeypatch, capabilities, expected):
    found = {capabilities: True, "avx512_f": True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    cpu = torch.device("cpu")
    assert str(resolve_dtype("auto", cpu)) == f"torch.{expected}"
    for name in ("float32", "bfloat16", "float16"):
        assert str(resolve_dtype(name, cpu)) == f"torch.{name}"
    with pytest.raises(InputError, match="--dtype must be auto, float32"):
        resolve_dtype("fp16", cpu)
