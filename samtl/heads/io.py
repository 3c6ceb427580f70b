"""Saved models: `head.safetensors` holds the arrays, `head.json` describes them. Nothing is unpickled."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file
from safetensors.numpy import save as to_bytes

from samtl import registry
from samtl._io import as_text, inside, read_regular
from samtl.errors import InputError
from samtl.heads.base import Layout, Model

FORMAT = 3
CARD = "head.json"
TENSORS = "head.safetensors"
#: Name of the class of each kind of model in its module.
CLASSES = {"heads": "Head", "baselines": "Baseline"}

_LATER = (
    "precision",
    "class_weights",
    "calibrate",
)  # parameters that models of this format may lack
_LATER_FACTS = {"temperature_": 1.0}


class Card(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The content of `head.json`."""

    format: int = FORMAT
    kind: Literal["heads", "baselines"]
    name: str
    parameters: dict[str, Any]
    task: str
    shape: list[Annotated[int, msgspec.Meta(gt=0, lt=2**31)]]
    classes: list[int | str]
    class_names: list[str]
    columns: list[str]
    facts: dict[str, Any]


def save(
    model: Model,
    folder: str | Path,
    columns: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
) -> None:
    """Write a fitted model into a folder, replacing files of the same names.

    Raises InputError if there are not as many names as features, or labels are neither integers nor strings.

    Parameters
    ----------
    model : Model
        Fitted; of a module in `samtl.heads` or `samtl.baselines`.
    folder : path
    columns : sequence of (F,) str, optional
        Names of pooled features, in the order of X; by default those that the model was loaded with.
    class_names : sequence of str, optional
        Names of the labels 0, 1, ...
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
    _, kind, module = type(model).__module__.rsplit(".", 2)
    card = Card(
        kind=kind,  # type: ignore[arg-type]
        name=module,
        parameters={name: plain(value) for name, value in model.get_params().items()},
        task=model.task_,
        shape=list(model.shape_),
        classes=model.classes_.tolist(),
        class_names=list(class_names or ()),
        columns=names,
        facts={name: plain(getattr(model, name)) for name in model.facts},
    )
    text = json.dumps(msgspec.to_builtins(card), indent=1, allow_nan=False, ensure_ascii=False)
    Path(folder, CARD).write_text(text + "\n", encoding="utf-8")
    tensors = {role: np.ascontiguousarray(array) for role, array in model.tensors().items()}
    Path(folder, TENSORS).write_bytes(to_bytes(tensors))


def load(folder: str | Path) -> Any:
    """Read the `Head` or `Baseline` that `save` wrote into a folder; it predicts the same to the bit.

    Raises InputError if a file is missing, names an unknown model, or its content is not as `save` writes it.
    """
    path = Path(folder, CARD)
    try:
        return _load(Path(folder), read_regular(inside(Path(folder), CARD)))
    except FileNotFoundError as error:
        raise InputError(
            f"{folder} holds no saved model: expected {CARD} and {TENSORS}, which samtl fit-head writes"
        ) from error
    # RuntimeError: nested too deep for JSON (RecursionError), or parameters that torch cannot build a network from.
    except (
        msgspec.MsgspecError, TypeError, ValueError, AttributeError, OSError, RuntimeError
    ) as error:  # fmt: skip
        raise InputError(f"{path} is not a model that samtl wrote: {error}") from error


def _load(folder: Path, raw: bytes) -> Model:
    found = msgspec.json.decode(raw).get("format")
    if found != FORMAT:
        raise ValueError(f"its format is {found!r}, and this samtl reads {FORMAT}: train it again")
    card = msgspec.json.decode(raw, type=Card)
    made = getattr(registry.load(card.kind, card.name), CLASSES[card.kind])
    known = made().get_params()
    earlier = {name: known[name] for name in _LATER if name in known}
    _require("parameters", {**earlier, **card.parameters}, known)
    facts = {name: value for name, value in _LATER_FACTS.items() if name in made.facts} | card.facts
    _require("facts", facts, made.facts)
    model: Model = made(
        **{k: tuple(v) if isinstance(v, list) else v for k, v in card.parameters.items()}
    )
    for name, value in facts.items():
        setattr(model, name, value)
    model.adopt(card.task, card.classes, card.shape)
    if card.columns and len(card.columns) != model.shape_[0]:
        raise ValueError(f"{len(card.columns)} columns for {model.shape_[0]} features")
    model.columns_ = tuple(card.columns)
    model.restore(_tensors(inside(folder, TENSORS), model.layout()))
    return model


def _require(what: str, found: Any, expected: Any) -> None:
    if set(found) != set(expected):
        raise ValueError(
            f"expected the {what} {', '.join(sorted(expected))}, got {', '.join(sorted(found))}"
        )


def _tensors(path: Path, layout: Layout) -> dict[str, NDArray[Any]]:
    """Read arrays that match a layout and are finite."""
    try:
        # Copied, because results may depend on an array's alignment, and that depends on its place in the file.
        tensors = {role: array.copy() for role, array in load_file(path).items()}
    except SafetensorError as error:
        raise ValueError(f"{path.name} is not a safetensors file: {error}") from error
    _require("tensors", tensors, layout)
    for role, (dtype, shape) in layout.items():
        array = tensors[role]
        if (str(array.dtype), array.shape) != (dtype, shape):
            raise ValueError(
                f"{role} must be {dtype} of shape {shape}, and is {array.dtype} of shape {array.shape}"
            )
        if not np.isfinite(array).all():
            raise ValueError(f"{role} holds numbers that are not finite")
    return tensors


def plain(value: Any) -> Any:
    """Convert a parameter or fact to a JSON value; raises InputError if it is not made of scalars and sequences."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if isinstance(value, str):
        return as_text(value)  # a path need not be UTF-8
    if not isinstance(value, (int, float, bool, type(None))):
        raise InputError(f"a head with the parameter {value!r} cannot be saved; use plain numbers")
    return value
