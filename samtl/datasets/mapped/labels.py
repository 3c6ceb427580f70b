"""Labels of samples: numbers or names of classes, 0 or 1 for each of several classes, or measurements."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from samtl.datasets.files.listing import natural, some
from samtl.datasets.mapped.arrays import array_of
from samtl.errors import InputError

#: A number, a name, 0 or 1 for each class, a measurement, or None if it cannot be read.
Label = int | str | tuple[int, ...] | float | None


def label_of(value: Any) -> Label:
    """Read the label of a sample; InputError if it is none."""
    if isinstance(value, str):
        return str(value)
    label = array_of(value)
    if label.size == 1 and label.dtype.kind in "biu":
        return int(label.reshape(()))
    if label.size == 1 and label.dtype.kind == "f":
        return float(label.reshape(()))
    if label.ndim == 1 and label.dtype.kind in "biuf" and np.isin(label, (0, 1)).all():
        return tuple(label.astype(int).tolist())
    raise InputError(
        f"a label must be the number or the name of a class, 0 or 1 for each class, or a measurement, got "
        f"{label.dtype} of shape {label.shape}"
    )


def dataset_labels(labels: Sequence[Label], names: list[str]) -> tuple[list[str], list[Any], str]:
    """Return the classes, by default named after the labels, the labels of a `Dataset`, and what they are."""
    kinds = {type(label) for label in labels} - {type(None)}
    if len(kinds) > 1:
        told = " and ".join(sorted(kind.__name__ for kind in kinds))
        raise InputError(f"labels must be of one kind, and these are {told}")
    kind = kinds.pop() if kinds else int
    return {int: _numbers, str: _names, tuple: _several, float: _measured}[kind](labels, names)


def _numbers(labels: Sequence[Any], names: list[str]) -> tuple[list[str], list[Any], str]:
    values = [-1 if label is None else label for label in labels]
    found = sorted({*values} - {-1})
    names = names or [str(i) for i in range(len(found))]
    if found and not 0 <= found[0] <= found[-1] < len(names):
        raise InputError(
            f"labels must be 0 to {len(names) - 1}, for the classes {some(names)}, or -1 for none, and these "
            f"are {found[0]} to {found[-1]}: name all classes with samtl.from_torch(dataset, classes=[...])"
        )
    return names, values, ""


def _names(labels: Sequence[Any], names: list[str]) -> tuple[list[str], list[Any], str]:
    names = names or sorted({*labels} - {None}, key=natural)
    place: dict[Any, int] = {**{name: i for i, name in enumerate(names)}, None: -1}
    if strange := [label for label in labels if label not in place]:
        raise InputError(f"labels must be of {some(names)}, got {strange[0]!r}")
    return names, [place[label] for label in labels], ""


def _several(labels: Sequence[Any], names: list[str]) -> tuple[list[str], list[Any], str]:
    lengths = sorted({len(label) for label in labels if label is not None})
    names = names or [str(i) for i in range(lengths[0])]
    if lengths != [len(names)]:
        raise InputError(
            f"labels must have 0 or 1 for each of {len(names)} classes, and these have {lengths} of them"
        )
    sets = [
        None if label is None else tuple(i for i, one in enumerate(label) if one)
        for label in labels
    ]
    if all(one is None or len(one) == 1 for one in sets):
        told = "labels have a single 1 and are read as one class for each image"
        return names, [-1 if one is None else one[0] for one in sets], told
    return names, sets, "labels have 0 or 1 for each class, of which several may apply"


def _measured(labels: Sequence[Any], names: list[str]) -> tuple[list[str], list[Any], str]:
    values = [math.nan if label is None else label for label in labels]
    if len(names) > 1 or (not names and all(value % 1 == 0 for value in values if value == value)):
        raise InputError(
            "labels are floats, and it is not certain whether they are classes: make them integers, or name the "
            "measurement with samtl.from_torch(dataset, classes=['biomass'])"
        )
    return names or ["label"], values, "labels are measurements"
