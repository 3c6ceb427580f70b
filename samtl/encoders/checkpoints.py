"""Where a frozen network's weights come from: the published checkpoint, a file, or seeded random numbers.

Nothing here unpickles: files are read with `weights_only=True`, or are safetensors, and what they hold is compared
with the architecture tensor by tensor before it is used.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import pickle
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from samtl.errors import InputError, ResourceError

_log = logging.getLogger(__name__)

_SHA256_DIGITS = 64


@dataclass(frozen=True)
class Official:
    """A published checkpoint: file name, size in bytes, sha256 of the file or the first digits of it."""

    file: str
    size: int
    sha256: str

    def is_this(self, sha256: str) -> bool:
        """Tell whether a file of that sha256 is this checkpoint."""
        return sha256.startswith(self.sha256)

    @property
    def told_sha256(self) -> str:
        """The sha256 for messages."""
        return self.sha256 + "..." * (len(self.sha256) < _SHA256_DIGITS)


@dataclass(frozen=True)
class Weights:
    """What a network's weights are.

    Attributes
    ----------
    description : str
        Printed beside every figure: `official sam_vit_b_01ec64.pth`, `file NAME`, or `untrained (random:SEED)`.
    untrained : bool
        True for random weights.
    sha256 : str
        Over the network's tensors (sorted names, dtypes, shapes, bytes): equal weights agree whatever
        file they came in.
    """

    description: str
    untrained: bool
    sha256: str


@dataclass(frozen=True)
class Origin:
    """What is particular to a family of networks.

    Attributes
    ----------
    base_url : str
        What the official files' names are appended to.
    prefix : str
        Of the network's tensors in a file that holds more than it: taken off, and the rest of the file left out.
    remedy : str
        What to do about a file of another architecture, for messages.
    gain : int
        How much larger the variance of a product with random weights is than that of its input: 1, or 2 where a
        ReLU follows that halves it again (He et al. 2015, "Delving deep into rectifiers").
    """

    base_url: str
    prefix: str
    remedy: str
    gain: int = 1


def load_weights(
    model: nn.Module, checkpoint: str, official: Official | None, name: str, origin: Origin
) -> Weights:
    """Fill a network's parameters, in float32.

    Parameters
    ----------
    model : nn.Module
        Without buffers.
    checkpoint : str
        `official`, `random:SEED`, or the path of a file with the network or more.
    official : Official or None
        The published checkpoint of this architecture, if there is one.
    name : str
        The network's name, for messages.
    origin : Origin

    Raises
    ------
    InputError
        A seed that is not a number, a missing or unreadable file, a file of another architecture, or one that is named
        like the official one and has another hash.
    ResourceError
        Where the download fails.
    """
    check_source(checkpoint)
    if checkpoint.startswith("random:"):
        seed = int(checkpoint.removeprefix("random:"))
        _fill_at_random(model, seed, origin.gain)
        return Weights(f"untrained (random:{seed})", True, tensors_digest(model))
    if checkpoint == "official":
        if official is None:
            raise InputError(
                f"{name} has no official checkpoint; use --checkpoint random:SEED or a file"
            )
        path = download(official, origin.base_url)
        description = f"official {official.file}"
    else:
        path = Path(checkpoint)
        description = f"file {path.name}"
        if official is not None and path.name == official.file:
            # Whoever calls a file so means the published one: a truncated or altered copy must not pass for it.
            found = _file_sha256(path)
            if not official.is_this(found):
                raise InputError(
                    f"--checkpoint {checkpoint} is named like the official checkpoint, whose sha256 is "
                    f"{official.told_sha256}, but its own is {found}: download it again, or rename a file of your own"
                )
            description = f"official {official.file}"
    _fill_from(model, _read_tensors(path, origin.prefix), path, name, origin.remedy)
    return Weights(description, False, tensors_digest(model))


def check_source(checkpoint: str) -> None:
    """Raise InputError where `official`, `random:SEED` or a file is not what was named; reads nothing."""
    if checkpoint.startswith("random:"):
        seed = checkpoint.removeprefix("random:")
        if not (seed.isascii() and seed.isdecimal()):
            raise InputError(f"--checkpoint random:SEED needs a whole number from 0, got {seed!r}")
    elif checkpoint != "official" and not Path(checkpoint).is_file():
        raise InputError(
            f"--checkpoint {checkpoint}: no such file (expected a file, 'official' or 'random:SEED')"
        )


def tensors_digest(model: nn.Module) -> str:
    """Compute the sha256 over a network's tensors, independent of the file they came from."""
    digest = hashlib.sha256()
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def _fill_at_random(model: nn.Module, seed: int, gain: int) -> None:
    """Fill every parameter, the relative positions and biases that start at zero too.

    Only exact operations on raw generator output are used (24-bit uniform numbers and one rounded product), so a seed
    gives the same bits on every machine and with every torch.
    """
    for key, parameter in model.named_parameters():
        source = hashlib.sha256(f"samtl random weights {seed} {key}".encode()).digest()
        generator = np.random.Generator(np.random.PCG64(int.from_bytes(source[:16], "little")))
        values = generator.random(tuple(parameter.shape), dtype=np.float32) * np.float32(
            2
        ) - np.float32(1)
        is_norm_weight = key.endswith("weight") and parameter.ndim == 1
        if parameter.ndim == 1 or "pos" in key:
            values *= np.float32(0.05)
        else:  # products of (out, in, ...) matrices have `gain` times the variance of their input
            values *= np.float32(math.sqrt(3 * gain / math.prod(parameter.shape[1:])))
        if is_norm_weight:
            values += np.float32(1)
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(values))


def download(official: Official, base_url: str) -> Path:
    """Fetch a published checkpoint, where it is not on this machine yet, and give its path.

    Raises
    ------
    InputError
        Where what comes is another file.
    ResourceError
        Where nothing comes.
    """
    import pooch

    folder = Path(os.environ.get("SAMTL_WEIGHTS") or pooch.os_cache("samtl") / "weights")
    url = base_url + official.file
    path = folder / official.file
    pooch.get_logger().setLevel(logging.WARNING)  # samtl tells it in its own words
    try:
        if path.is_file():
            if official.is_this(_file_sha256(path)):
                return path
            path.unlink()  # a damaged copy
        _log.info("downloading %s (%d MB) into %s", url, official.size // 10**6, folder)
        # Pooch compares whole hashes only.
        pooch.retrieve(url, known_hash=None, fname=official.file, path=folder)
        if not official.is_this(_file_sha256(path)):
            path.unlink()
            raise InputError(
                f"{url} does not have the sha256 {official.told_sha256}: try again, or get the file elsewhere "
                "and pass it with --checkpoint FILE"
            )
    except OSError as error:  # requests' errors are OSErrors
        raise ResourceError(
            f"could not download {url} ({type(error).__name__}) into {folder}: put {official.file} there "
            "yourself, pass it with --checkpoint FILE, or try without weights: --checkpoint random:0"
        ) from error
    return path


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_tensors(path: Path, prefix: str) -> dict[str, Tensor]:
    """Read a checkpoint's tensors; where names begin with `prefix`, those alone, without it."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: object = load_file(path)
        else:
            with warnings.catch_warnings():
                # Torch warns about old formats and environment variables; what counts is what follows.
                warnings.simplefilter("ignore")
                content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"--checkpoint {path} holds more than tensors, or is no checkpoint; it was not run. "
            "Save the state dict alone: torch.save(model.state_dict(), FILE)"
        ) from error
    except Exception as error:  # a damaged file fails in zip, in pickle or in safetensors' parser, each its own way
        raise InputError(
            f"--checkpoint {path} cannot be read ({type(error).__name__}): expected a PyTorch or "
            "safetensors file of tensors; it may be truncated"
        ) from error
    if not isinstance(content, dict) or not all(isinstance(t, Tensor) for t in content.values()):
        raise InputError(f"--checkpoint {path} must hold a state dict (names to tensors)")
    if any(key.startswith(prefix) for key in content):
        content = {k.removeprefix(prefix): t for k, t in content.items() if k.startswith(prefix)}
    return content


def _fill_from(
    model: nn.Module, tensors: dict[str, Tensor], path: Path, name: str, remedy: str
) -> None:
    wanted = model.state_dict()
    missing = sorted(wanted.keys() - tensors.keys())
    surplus = sorted(tensors.keys() - wanted.keys())
    shapes = [
        f"{key} is {tuple(tensors[key].shape)} and must be {tuple(wanted[key].shape)}"
        for key in wanted.keys() & tensors.keys()
        if tensors[key].shape != wanted[key].shape
    ]
    if missing or surplus or shapes:
        told = [
            f"{len(missing)} tensors are missing (first: {missing[0]})" if missing else "",
            f"{len(surplus)} do not belong (first: {surplus[0]})" if surplus else "",
            f"{len(shapes)} have another shape (first: {sorted(shapes)[0]})" if shapes else "",
        ]
        raise InputError(
            f"--checkpoint {path} is not of the architecture {name}: {'; '.join(filter(None, told))}. "
            f"{remedy}"
        )
    model.load_state_dict({key: tensor.float() for key, tensor in tensors.items()})
