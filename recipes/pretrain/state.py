"""The saved state of a training run: one file of tensors, which is replaced atomically."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from samtl.errors import InputError, ResourceError

FILE = "state.safetensors"
_MODEL, _MOMENTS = "model.", ("exp_avg", "exp_avg_sq")
_ABOUT = "about"


def write_tensors(path: Path, tensors: dict[str, Tensor], about: dict[str, object]) -> None:
    """Write a safetensors file in place of the one there is.

    Parameters
    ----------
    path : Path
    tensors : dict
    about : dict
        JSON values; kept in the file's header.

    Raises
    ------
    ResourceError
        If the disk fails; an earlier file stays.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        try:
            with temporary.open("wb") as file:
                file.write(save(kept, {_ABOUT: json.dumps(about)}))
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise ResourceError(
            f"{path} could not be written ({error.strerror}); the earlier state stays: make room, and run the same "
            "command again"
        ) from error


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Read what `write_tensors` wrote.

    Raises
    ------
    InputError
        If it is another file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it has no iterator
            about = json.loads((file.metadata() or {})[_ABOUT])
    except (OSError, SafetensorError, KeyError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is no state of a training run ({type(error).__name__}): remove it to begin anew, or give "
            "another --out"
        ) from error
    if not isinstance(about, dict):
        raise InputError(f"{path} is no state of a training run: remove it to begin anew")
    return tensors, about


def packed(model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Name every tensor of a model and of its Adam optimiser."""
    tensors = {_MODEL + name: tensor for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for moment in _MOMENTS:
            if parameter in optimiser.state:
                tensors[f"{moment}.{name}"] = optimiser.state[parameter][moment]
    return tensors


def unpack(
    tensors: dict[str, Tensor], step: int, model: nn.Module, optimiser: torch.optim.Optimizer
) -> None:
    """Put back what `packed` gave after so many steps.

    Raises
    ------
    InputError
        If it belongs to another model.
    """
    own = {
        name.removeprefix(_MODEL): tensor
        for name, tensor in tensors.items()
        if name.startswith(_MODEL)
    }
    try:
        model.load_state_dict(own)
        if not step:
            return  # an optimiser that made no step has no moments
        for name, parameter in model.named_parameters():
            moments = {moment: tensors[f"{moment}.{name}"] for moment in _MOMENTS}
            if any(tensor.shape != parameter.shape for tensor in moments.values()):
                raise KeyError(name)
            optimiser.state[parameter] = {
                # Fused and plain Adam keep their count in a tensor each.
                "step": torch.tensor(float(step), device=parameter.device),
                **{moment: tensor.to(parameter.device) for moment, tensor in moments.items()},
            }
    except (RuntimeError, KeyError) as error:
        raise InputError(
            "the state is of another version of this training: remove it to begin anew"
        ) from error
