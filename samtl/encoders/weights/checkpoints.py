"""Weights of a frozen network: a published checkpoint, a file, or seeded random numbers.

Nothing is unpickled: files are read with `weights_only=True` or as safetensors, and every tensor is compared with the
architecture before it is used.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from samtl import _download
from samtl.encoders.base import Weights
from samtl.encoders.weights.containers import Tensors, below, kind_of, read_tensors
from samtl.errors import InputError


@dataclass(frozen=True)
class Official:
    """A published checkpoint: its URL, size in bytes, and the sha256 of the file or the first digits of it."""

    url: str
    size: int
    sha256: str

    @property
    def file(self) -> str:
        return self.url.rpartition("/")[2]

    @property
    def hash(self) -> str:
        return f"sha256:{self.sha256}"


def check_source(checkpoint: str) -> None:
    """Raise InputError unless the argument is `official`, `random:SEED` or an existing path; reads nothing."""
    kind, _, seed = checkpoint.partition(":")
    seeded = kind == "random" and seed.isascii() and seed.isdecimal()
    if not seeded and checkpoint != "official" and not Path(checkpoint).exists():
        raise InputError(
            f"--checkpoint {checkpoint}: no such file (expected a file, official, or random:SEED with a whole number)"
        )


def load_weights(
    model: nn.Module,
    checkpoint: str,
    official: Official | None,
    name: str,
    *,
    remedy: str = "",
    gain: int = 1,
    adapt: Callable[[Tensors], Tensors] = lambda tensors: tensors,
) -> Weights:
    """Fill a network's parameters, in float32.

    Raises InputError for another seed or file, or a file that has the name of the official one but not its sha256;
    ResourceError if the download fails.

    Parameters
    ----------
    model : nn.Module
        Without buffers.
    checkpoint : str
        `official`, `random:SEED`, or the path of a file or folder with the network's tensors, alone or within a larger
        model; see `samtl.encoders.weights.containers`.
    official : Official or None
        The published checkpoint of this architecture, if there is one.
    name, remedy : str
        For messages: the network's name, and what can be done about a file of another architecture.
    gain : int
        Ratio of the variances of output and input of a layer with random weights: 1, or 2 if a ReLU follows, which
        halves it again (He et al. 2015).
    adapt : callable
        Gives the tensors of a file the names that they have in `model`; it may change the shape of its parameters.
    """
    check_source(checkpoint)
    kind, _, seed = checkpoint.partition(":")
    if kind == "random" and seed:
        _fill_at_random(model, int(seed), gain)
        return Weights(f"untrained (random:{int(seed)})", True, tensors_digest(model))
    path = Path(checkpoint)
    if checkpoint == "official":
        if official is None:
            raise InputError(
                f"{name} has no official checkpoint; use --checkpoint random:SEED or a file"
            )
        path = download(official)
    elif official and path.name == official.file and not _download.has_hash(path, official.hash):
        raise InputError(
            f"--checkpoint {checkpoint} is named like the official checkpoint, but does not have its sha256 "
            f"{official.sha256}: download it again, or rename a file of your own"
        )
    published = official is not None and path.name == official.file
    held = read_tensors(path)
    tensors = below(adapt(held), model.state_dict())
    odd = _shapes(model.state_dict()) ^ _shapes(tensors)
    if odd:
        what = kind_of(held)
        raise InputError(
            f"--checkpoint {path} is {what and what + ', and '}not of the architecture {name}: {len(odd)} tensors are "
            f"missing, do not belong or have another shape, such as {min(odd)}. {remedy}"
        )
    useless = [key for key, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if useless or not any(tensor.any() for tensor in tensors.values()):
        came = f"NaN or infinity in {useless[0]}" if useless else "nothing but zeros"
        raise InputError(f"--checkpoint {path} holds {came}: its training failed; use another file")
    model.load_state_dict({key: tensor.float() for key, tensor in tensors.items()})
    description = f"{'official' if published else 'file'} {path.name}"
    return Weights(description, False, tensors_digest(model))


def tensors_digest(model: nn.Module) -> str:
    """Compute the sha256 over a network's tensors, whatever file they came from."""
    digest = hashlib.sha256()
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()


@torch.no_grad()
def _fill_at_random(model: nn.Module, seed: int, gain: int) -> None:
    """Fill every parameter, including relative positions and biases, which usually start at zero.

    Only exact operations are applied to the generator's 24-bit uniform numbers, and one rounded product, so that a seed
    gives the same bits on every machine and with every version of torch.
    """
    for key, parameter in model.named_parameters():
        source = hashlib.sha256(f"samtl random weights {seed} {key}".encode()).digest()
        generator = np.random.Generator(np.random.PCG64(int.from_bytes(source[:16], "little")))
        values = generator.random(tuple(parameter.shape), dtype=np.float32)
        values = values * np.float32(2) - np.float32(1)
        small = parameter.ndim == 1 or "pos" in key
        values *= np.float32(0.05 if small else math.sqrt(3 * gain / parameter[0].numel()))
        if parameter.ndim == 1 and key.endswith("weight"):  # of a norm
            values += np.float32(1)
        parameter.copy_(torch.from_numpy(values))


def download(official: Official) -> Path:
    """Download a published checkpoint unless this machine has it already, and return its path."""
    return _download.download(
        {official.url: official.hash},
        _download.user_folder("SAMTL_WEIGHTS", "weights"),
        f"put {official.file} there yourself, pass it with --checkpoint FILE, or try without weights: --checkpoint "
        "random:0",
        f"{official.size // 10**6} MB",
    )


def _shapes(tensors: Tensors) -> set[tuple[str, tuple[int, ...]]]:
    return {(key, tuple(tensor.shape)) for key, tensor in tensors.items()}
