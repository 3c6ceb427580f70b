"""A head on disk: `head.safetensors` holds its arrays, `head.json` says what they are. Nothing is ever unpickled."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file
from safetensors.numpy import save as to_bytes

from samtl import registry
from samtl.errors import InputError

FORMAT = 2
CARD = "head.json"
TENSORS = "head.safetensors"
_FIELDS = {
    "format",
    "kind",
    "name",
    "parameters",
    "task",
    "shape",
    "classes",
    "class_names",
    "columns",
    "facts",
    "tensors",
}
_SCALARS = (str, int, float, bool, type(None))
#: What the class of each kind of model is called in its module.
CLASSES = {"heads": "Head", "baselines": "Baseline"}


class Model(Protocol):
    """What can be saved: a head, or a baseline."""

    facts: ClassVar[tuple[str, ...]]
    classes_: NDArray[Any]
    columns_: tuple[str, ...]

    @property
    def task_(self) -> str: ...
    @property
    def shape_(self) -> tuple[int, ...]: ...
    def get_params(self) -> dict[str, Any]: ...
    def adopt(self, task: str, classes: Sequence[Any], shape: Sequence[int]) -> None: ...
    def tensors(self) -> dict[str, NDArray[Any]]: ...
    def layout(self) -> dict[str, tuple[str, tuple[int, ...]]]: ...
    def restore(self, tensors: Mapping[str, NDArray[Any]]) -> None: ...


def save(
    model: Model,
    folder: str | Path,
    columns: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
) -> None:
    """Write a fitted model into a folder.

    Parameters
    ----------
    model : Model
        Fitted; of a module in `samtl.heads` or `samtl.baselines`.
    folder : path
        Exists; files of the same names in it are replaced.
    columns : sequence of (F,) str, optional
        Names of pooled features, in the order of X; by default those the head was loaded with.
    class_names : sequence of str, optional
        What the labels 0, 1, ... stand for.

    Raises
    ------
    InputError
        Where names are not as many as features, or labels are neither integers nor strings.
    """
    names = list(model.columns_ if columns is None else columns)
    if names and len(names) != model.shape_[0]:
        raise InputError(
            f"the head takes {model.shape_[0]} features, but {len(names)} column names were given"
        )
    if model.classes_.dtype.kind not in "iuU":
        raise InputError(
            f"only heads with integer or string labels can be saved, these are {model.classes_.dtype}"
        )
    tensors = {role: np.ascontiguousarray(array) for role, array in model.tensors().items()}
    package, _, module = type(model).__module__.rpartition(".")
    kind = package.rpartition(".")[2]
    card = {
        "format": FORMAT,
        "kind": kind,
        "name": module,
        "parameters": {name: plain(value) for name, value in model.get_params().items()},
        "task": model.task_,
        "shape": list(model.shape_),
        "classes": model.classes_.tolist(),
        "class_names": list(class_names or ()),
        "columns": names,
        "facts": {name: plain(getattr(model, name)) for name in model.facts},
        "tensors": {
            role: {"dtype": str(array.dtype), "shape": list(array.shape)}
            for role, array in tensors.items()
        },
    }
    text = json.dumps(card, indent=1, allow_nan=False, ensure_ascii=False)
    Path(folder, CARD).write_text(text + "\n", encoding="utf-8")
    Path(folder, TENSORS).write_bytes(to_bytes(tensors))


def load(folder: str | Path) -> Any:
    """Read a model that `save` wrote; it predicts bit for bit what the saved one did.

    Parameters
    ----------
    folder : path
        A run folder, or any other with both files.

    Returns
    -------
    Model
        A `Head` or a `Baseline`.

    Raises
    ------
    InputError
        Where a file is missing, names an unknown model, or anything in it is not as `save` writes it.
    """
    path = Path(folder, CARD)
    try:
        return _load(Path(folder), path)
    except FileNotFoundError as error:
        raise InputError(
            f"{folder} holds no saved model: expected {CARD} and {TENSORS}, which samtl fit-head writes"
        ) from error
    # RuntimeError: too deep for JSON (RecursionError), or parameters that torch makes no network of.
    except (KeyError, TypeError, ValueError, AttributeError, OSError, RuntimeError) as error:
        raise InputError(f"{path} is not a model that samtl wrote: {error}") from error


def _load(folder: Path, path: Path) -> Model:
    card: Any = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(card, dict) or "format" not in card:
        raise ValueError(f"expected the fields {', '.join(sorted(_FIELDS))}")
    if card["format"] != FORMAT:
        raise InputError(
            f"{path} has format {card['format']!r}, and this samtl reads {FORMAT}: train the head again, or use the "
            "samtl that wrote it"
        )
    if card.keys() != _FIELDS:
        raise ValueError(f"expected the fields {', '.join(sorted(_FIELDS))}")
    if card["kind"] not in CLASSES:
        raise ValueError(f"kind must be one of {', '.join(CLASSES)}")
    made = getattr(registry.load(card["kind"], str(card["name"])), CLASSES[card["kind"]])
    parameters = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in card["parameters"].items()
    }
    known = made().get_params().keys()
    if parameters.keys() != known:
        raise ValueError(f"expected the parameters {', '.join(known)}")
    if card["facts"].keys() != set(made.facts):
        raise ValueError(f"expected the facts {', '.join(made.facts)}")
    model: Model = made(**parameters)
    for name, value in card["facts"].items():
        setattr(model, name, value)
    if not all(isinstance(n, int) and 0 < n < 2**31 for n in card["shape"]):
        raise ValueError("shape must be a list of whole numbers")
    model.adopt(str(card["task"]), card["classes"], card["shape"])
    tensors = _tensors(folder / TENSORS)
    _compare(folder / TENSORS, tensors, model.layout())
    model.columns_ = tuple(str(name) for name in card["columns"])
    if model.columns_ and len(model.columns_) != model.shape_[0]:
        raise ValueError(f"{len(model.columns_)} columns for {model.shape_[0]} features")
    model.restore(tensors)
    return model


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
