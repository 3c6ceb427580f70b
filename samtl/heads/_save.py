"""A head on disk: `head.safetensors` holds its arrays, `head.json` says what they are. Nothing is ever unpickled."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file
from safetensors.numpy import save as to_bytes

from samtl import registry
from samtl.errors import InputError
from samtl.heads._base import PooledHead

FORMAT = 1
CARD = "head.json"
TENSORS = "head.safetensors"
_FIELDS = {
    "format",
    "head",
    "parameters",
    "classes",
    "class_names",
    "columns",
    "facts",
    "tensors",
}
_SCALARS = (str, int, float, bool, type(None))


def save(
    head: PooledHead,
    folder: str | Path,
    columns: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
) -> None:
    """Write a fitted head into a folder.

    Parameters
    ----------
    head : PooledHead
        Fitted; of a module in `samtl.heads`.
    folder : path
        Exists; files of the same names in it are replaced.
    columns : sequence of (F,) str, optional
        Names of the features, in the order of X; by default those the head was loaded with.
    class_names : sequence of str, optional
        What the labels 0, 1, ... stand for.

    Raises
    ------
    InputError
        Where names are not as many as features, or labels are neither integers nor strings.
    """
    names = list(head.columns_ if columns is None else columns)
    if names and len(names) != head.n_features_in_:
        raise InputError(
            f"the head takes {head.n_features_in_} features, but {len(names)} column names were given"
        )
    if head.classes_.dtype.kind not in "iuU":
        raise InputError(
            f"only heads with integer or string labels can be saved, these are {head.classes_.dtype}"
        )
    tensors = {role: np.ascontiguousarray(array) for role, array in head.tensors().items()}
    card = {
        "format": FORMAT,
        "head": type(head).__module__.rpartition(".")[2],
        "parameters": {name: plain(value) for name, value in head.get_params().items()},
        "classes": head.classes_.tolist(),
        "class_names": list(class_names or ()),
        "columns": names,
        "facts": {name: plain(getattr(head, name)) for name in head.facts},
        "tensors": {
            role: {"dtype": str(array.dtype), "shape": list(array.shape)}
            for role, array in tensors.items()
        },
    }
    text = json.dumps(card, indent=1, allow_nan=False, ensure_ascii=False)
    Path(folder, CARD).write_text(text + "\n", encoding="utf-8")
    Path(folder, TENSORS).write_bytes(to_bytes(tensors))


def load(folder: str | Path) -> PooledHead:
    """Read a head that `save` wrote; it predicts bit for bit what the saved one did.

    Parameters
    ----------
    folder : path
        A run folder, or any other with both files.

    Raises
    ------
    InputError
        Where a file is missing, names an unknown head, or anything in it is not as `save` writes it.
    """
    path = Path(folder, CARD)
    try:
        return _load(Path(folder), path)
    except FileNotFoundError as error:
        raise InputError(
            f"{folder} holds no saved head: expected {CARD} and {TENSORS}, which samtl fit-head writes"
        ) from error
    except (KeyError, TypeError, ValueError, AttributeError, OSError, RecursionError) as error:
        raise InputError(f"{path} is not a head that samtl wrote: {error}") from error


def _load(folder: Path, path: Path) -> PooledHead:
    card: Any = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(card, dict) or card.keys() != _FIELDS:
        raise ValueError(f"expected the fields {', '.join(sorted(_FIELDS))}")
    if card["format"] != FORMAT:
        raise InputError(
            f"{path} has format {card['format']!r}, and this samtl reads {FORMAT}: update samtl"
        )
    made: type[PooledHead] = registry.load("heads", str(card["head"])).Head
    parameters = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in card["parameters"].items()
    }
    known = made().get_params().keys()
    if parameters.keys() != known:
        raise ValueError(f"expected the parameters {', '.join(known)}")
    if card["facts"].keys() != set(made.facts):
        raise ValueError(f"expected the facts {', '.join(made.facts)}")
    head = made(**parameters)
    for name, value in card["facts"].items():
        setattr(head, name, value)
    head.classes_ = np.array(card["classes"])
    if head.classes_.ndim != 1 or head.classes_.dtype.kind not in "iU" or len(head.classes_) < 2:
        raise ValueError("classes must be a list of 2 or more integers or strings")
    tensors = _tensors(folder / TENSORS)
    mean = tensors.get("mean")
    if mean is None or mean.ndim != 1:
        raise InputError(f"{folder / TENSORS} must hold a row `mean`, one number for each feature")
    head.n_features_in_ = len(mean)
    _compare(folder / TENSORS, tensors, head.layout())
    head.columns_ = tuple(str(name) for name in card["columns"])
    if head.columns_ and len(head.columns_) != head.n_features_in_:
        raise ValueError(f"{len(head.columns_)} columns for {head.n_features_in_} features")
    head.restore(tensors)
    return head


def _tensors(path: Path) -> dict[str, NDArray[Any]]:
    try:
        # Copied: an array's alignment in memory must not depend on its place in the file.
        return {role: array.copy() for role, array in load_file(path).items()}
    except SafetensorError as error:
        raise InputError(f"{path} is not a safetensors file: {error}") from error


def _compare(
    path: Path,
    tensors: Mapping[str, NDArray[Any]],
    layout: Mapping[str, tuple[str, tuple[int, ...]]],
) -> None:
    if tensors.keys() != layout.keys():
        raise InputError(
            f"{path} must hold the tensors {', '.join(sorted(layout))}, and holds {', '.join(sorted(tensors))}"
        )
    for role, (dtype, shape) in layout.items():
        array = tensors[role]
        if (str(array.dtype), array.shape) != (dtype, shape):
            raise InputError(
                f"{path}: {role} must be {dtype} of shape {shape}, and is {array.dtype} of shape {array.shape}"
            )
        if not np.isfinite(array).all():
            raise InputError(f"{path}: {role} holds numbers that are not finite")


def plain(value: Any) -> Any:
    """Turn a parameter or fact into what JSON can hold."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if not isinstance(value, _SCALARS):
        raise InputError(f"a head with the parameter {value!r} cannot be saved; use plain numbers")
    return value
