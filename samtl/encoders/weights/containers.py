"""The tensors of a checkpoint, in the files that people have: from trainers, exports, and the Hugging Face hub.

Nothing is unpickled: files are read with `weights_only=True` or as safetensors.
"""

from __future__ import annotations

import argparse
import json
import pickle
import re
import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from samtl.errors import InputError

Tensors = dict[str, Tensor]

# Under these a trainer keeps a state dict, beside others such as an average or a teacher.
_MODELS = ("model", "state_dict", "model_state", "model_state_dict", "net", "network")
_IN_A_FOLDER = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
)  # fmt: skip
_BEGINNINGS = {
    r"\s*<": "a web page: the address was wrong, or the download needs an account; download it again",
    r"version https://git-lfs": "the pointer of git-lfs and not the file itself: run git lfs pull",
}
# What names of tensors tell about a file of another kind.
_KINDS = {
    r"lora|\.linear_[ab]_|\.adapter": "a LoRA or adapter: merge it into the weights that it was trained on",
    r"image_encoder\.trunk\.|vision_encoder\.backbone\.": "of SAM 2",
    r"image_encoder\.(layers|patch_embed\.seq)\.": "of MobileSAM, whose encoder is a TinyViT",
}


def read_tensors(path: Path) -> Tensors:
    """Read the tensors of a network from a file, from the index of several, or from a folder with either.

    A state dict may be within what a trainer saved beside it. Raises InputError for anything else, and names it.
    """
    if path.is_dir():
        found = next((path / name for name in _IN_A_FOLDER if (path / name).is_file()), None)
        if found is None:
            raise InputError(
                f"--checkpoint {path} is a folder without {' or '.join(_IN_A_FOLDER[::2])}"
            )
        path = found
    with path.open("rb") as file:
        beginning = file.read(64).decode("latin-1")
    for pattern, what in _BEGINNINGS.items():
        if re.match(pattern, beginning):
            raise InputError(f"--checkpoint {path} is {what}")
    try:
        if path.suffix == ".json":
            files = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
            parts = [_content(path.parent / Path(name).name) for name in sorted(files)]
            content: object = {key: value for part in parts for key, value in part.items()}
        else:
            content = _content(path)
    except Exception as error:  # zip, pickle and safetensors have their own classes for damage
        more = "it holds more than tensors, and was not run; "
        raise InputError(
            f"--checkpoint {path} cannot be read ({type(error).__name__}): "
            f"{more if isinstance(error, pickle.UnpicklingError) else ''}expected a PyTorch or safetensors file of "
            "tensors, as torch.save(model.state_dict(), FILE) writes it"
        ) from error
    tensors = _state_dict(content)
    if not tensors:
        raise InputError(f"--checkpoint {path} must hold a state dict (names to tensors)")
    return tensors


def below(tensors: Tensors, expected: Iterable[str]) -> Tensors:
    """Return the tensors of a part of a network, named as in `expected`: what comes before these names is cut off.

    Of several such parts the one with most of these names is taken. Without any, all tensors are returned.
    """
    names = set(expected)
    last = {name.rpartition(".")[2] for name in names}
    found = Counter[str]()
    for key in tensors:
        pieces = key.split(".")
        if pieces[-1] in last:
            found.update(
                ".".join([*pieces[:i], ""]) if i else ""
                for i in range(len(pieces))
                if ".".join(pieces[i:]) in names
            )
    prefix = found.most_common(1)[0][0] if found else ""
    return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}


def kind_of(names: Iterable[str]) -> str:
    """Say what a file is whose tensors have these names, "" if that is not known."""
    text = "\n".join(names)
    return next((what for pattern, what in _KINDS.items() if re.search(pattern, text)), "")


def _content(path: Path) -> dict[str, object]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return dict(load_file(path))
    with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
        warnings.simplefilter("ignore")  # about old formats and environment variables
        content = torch.load(path, map_location="cpu", weights_only=True)
    return content if isinstance(content, dict) else {}


def _state_dict(content: object) -> Tensors:
    """Find the state dict in what a file holds, which may have counters beside the tensors."""
    if not isinstance(content, dict):
        return {}
    tensors = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if tensors:
        return tensors
    nested = {key: _state_dict(value) for key, value in content.items() if key in _MODELS}
    return next((found for found in nested.values() if found), {})
