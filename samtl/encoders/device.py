"""The device of an encoder."""

from __future__ import annotations

import torch

from samtl.errors import InputError


def resolve_device(name: str) -> torch.device:
    """Return the device that `auto`, `cpu`, `cuda`, `cuda:N` or `mps` stands for.

    `auto` is the first of CUDA, MPS and the CPU that is available. Raises InputError for another name, or a device
    that this machine or this torch does not have.
    """
    has_cuda, has_mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if has_cuda else "mps" if has_mps else "cpu"
    kind, colon, index = name.partition(":")
    numbered = kind == "cuda" and index.isascii() and index.isdecimal()
    if kind not in ("cpu", "cuda", "mps") or (colon and not numbered):
        raise InputError(f"--device must be auto, cpu, cuda, cuda:N or mps, got {name!r}")
    if (kind == "cuda" and not has_cuda) or (kind == "mps" and not has_mps):
        what = "a torch with CUDA and an NVIDIA GPU" if kind == "cuda" else "an Apple GPU"
        raise InputError(f"--device {name} needs {what}; use --device cpu or auto")
    if index and int(index) >= torch.cuda.device_count():
        raise InputError(
            f"--device {name} does not exist: CUDA sees {torch.cuda.device_count()} device(s)"
        )
    return torch.device(name)


def resolve_devices(names: str) -> tuple[torch.device, ...]:
    """Return the devices that a comma-separated list or `cuda:all` stands for.

    Raises InputError as `resolve_device` does, for devices of different kinds, and for a GPU that is named twice.
    """
    if names == "cuda:all":
        resolve_device("cuda")
        return tuple(torch.device("cuda", i) for i in range(torch.cuda.device_count()))
    found = tuple(resolve_device(name.strip()) for name in names.split(","))
    if len(found) == 1 or {device.type for device in found} == {"cpu"}:
        return found
    numbered = tuple(torch.device(device.type, device.index or 0) for device in found)
    if len(set(numbered)) < len(numbered) or len({device.type for device in found}) > 1:
        raise InputError(f"--device takes several of one kind, and no GPU twice, got {names!r}")
    return numbered
