"""Labels in a table's column, which anyone may have written: to classes and their indices, or to numbers."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from samtl.datasets.files.listing import natural, some
from samtl.errors import InputError

_WHOLE = re.compile(r"[+-]?[0-9]+(\.0*)?")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?", re.IGNORECASE)
_BITS = {"0": 0, "0.0": 0, "false": 0, "1": 1, "1.0": 1, "true": 1, "": None}
_MANY = 10  # classes from which on numbers may be measurements


def text_of(value: Any) -> str:
    """Return a value as text, "" if it is missing: null, NaN, or the text nan."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    text = str(value)
    return "" if text.lower() == "nan" else text


def class_indices(
    values: Sequence[Any], column: str
) -> tuple[tuple[str, ...], tuple[int, ...], list[str]]:
    """Read one class for each image: classes in natural order, the index of each image, and what labels were taken for.

    The index is -1 without a label. Whole numbers that were written as floats, such as 1.0, are read as 1. Raises
    InputError if there are fewer than two classes, or numbers do not look like classes.
    """
    texts, readings = [text_of(value) for value in values], list[str]()
    if all(map(_NUMBER.fullmatch, filter(None, texts))):
        written, texts = texts, _whole(texts, column)
        if texts != written:
            readings.append(
                f"the labels in {column!a}, which are whole numbers, are read without .0"
            )
    classes = sorted({*texts} - {""}, key=natural)
    require_classes(classes, column)
    readings += _several(classes, column)
    index = {name: i for i, name in enumerate(classes)}
    return tuple(classes), tuple(index.get(text, -1) for text in texts), readings


def class_sets(
    values: Sequence[Any], column: str, separator: str
) -> tuple[tuple[str, ...], tuple[tuple[int, ...] | None, ...]]:
    """Read several classes for each image, texts with a separator or lists: classes in natural order, and indices.

    None stands for an empty cell, which may mean that no class applies or that nobody looked. Raises InputError if
    there are fewer than two classes.
    """
    cells: list[set[str] | None] = []
    for value in values:
        pieces = value if isinstance(value, list) else text_of(value).split(separator)
        names = {text_of(piece).strip() for piece in pieces} - {""}
        cells.append(names if names or isinstance(value, list) else None)
    classes = sorted(set().union(*filter(None, cells)), key=natural)
    require_classes(classes, column)
    index = {name: i for i, name in enumerate(classes)}
    labels = (None if some is None else tuple(sorted(index[n] for n in some)) for some in cells)
    return tuple(classes), tuple(labels)


def class_columns(
    columns: Mapping[str, Sequence[Any]], names: Sequence[str]
) -> tuple[tuple[int, ...] | None, ...]:
    """Read a column of 0 and 1 for each class: the indices of those with 1, None if a cell is empty.

    Raises InputError for other values.
    """
    for name in names:
        strange = [t for t in dict.fromkeys(map(text_of, columns[name])) if t.lower() not in _BITS]
        if strange:
            raise InputError(
                f"the column {name!r} must have 1 where the class applies and 0 where it does not, got {some(strange)}"
            )
    rows = zip(*([_BITS[text_of(v).lower()] for v in columns[name]] for name in names), strict=True)
    return tuple(None if None in row else tuple(np.flatnonzero(row).tolist()) for row in rows)


def numbers(values: Sequence[Any], column: str) -> tuple[tuple[float, ...], list[str]]:
    """Read a number for each image, NaN for an empty cell, and describe them.

    Raises InputError for anything else, infinite numbers, and if there are fewer than two different ones.
    """
    texts = [text_of(value) for value in values]
    bad = [text for text in texts if text and not _NUMBER.fullmatch(text)]
    if bad:
        raise InputError(
            f"the column {column!r} must have a number for each image, with a decimal point, and {len(bad)} of "
            f"{len(texts)} cells have none: {some(bad)}"
        )
    found = [float(text or "nan") for text in texts]
    known = [number for number in found if number == number]
    if len(set(known)) < 2 or not np.isfinite(known).all():
        raise InputError(
            f"the column {column!r} must have different numbers to learn from, all finite, got {some(texts)}"
        )
    told = f"{column!a} has {len(known)} numbers from {min(known):.6g} to {max(known):.6g}, mean {np.mean(known):.6g}"
    return tuple(found), [told]


def require_classes(classes: Sequence[str], column: str) -> None:
    """Raise InputError if there are fewer than two classes."""
    if len(classes) < 2:
        raise InputError(
            f"the column {column!r} must have at least 2 classes, got {', '.join(classes) or 'empty cells only'}"
        )


def _whole(texts: Sequence[str], column: str) -> list[str]:
    """Return whole numbers without a decimal point; InputError if numbers look like measurements."""
    broken = [text for text in texts if text and not _WHOLE.fullmatch(text)]
    counts = Counter(filter(None, texts))
    single = sum(n == 1 for n in counts.values())
    if broken or (len(counts) > _MANY and 2 * single > len(counts)):
        told = (
            f"numbers such as {some(broken)}" if broken else "a number of its own for most images"
        )
        raise InputError(
            f"the column {column!r} has {told}, and classes were expected: to predict numbers, use "
            f"table:FILE?target={column}"
        )
    if not any("." in text for text in texts):
        return list(texts)
    return [str(int(float(text))) if text else "" for text in texts]


def _several(classes: Sequence[str], column: str) -> list[str]:
    """Tell of labels that look like lists of labels."""
    for separator in ";|,":
        pieces = {piece.strip() for name in classes for piece in name.split(separator)}
        if len(pieces) < len(classes):
            return [
                f"some labels in {column!a} contain {separator!r} and are read as one class each; several labels of an "
                f"image are read with ?separator={separator}"
            ]
    return []
