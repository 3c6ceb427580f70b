"""Labels in a table's column, which anyone may have written: to classes and their indices."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from samtl.datasets.files.listing import natural
from samtl.datasets.tables.columns import some
from samtl.errors import InputError

_WHOLE = re.compile(r"[+-]?[0-9]+(\.0*)?")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?", re.IGNORECASE)
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
    InputError if there are fewer than two classes, numbers do not look like classes, or classes differ only by upper
    and lower case.
    """
    texts = [text_of(value) for value in values]
    known = [text for text in texts if text]
    readings = list[str]()
    if all(map(_NUMBER.fullmatch, known)):
        texts = _whole(texts, column)
        if texts != [text_of(value) for value in values]:
            readings.append(
                f"the labels in {column!a}, which are whole numbers, are read without .0"
            )
    counts = Counter(text for text in texts if text)
    classes = sorted(counts, key=natural)
    require_classes(classes, column)
    readings += _several(classes, column)
    index = {name: i for i, name in enumerate(classes)}
    return tuple(classes), tuple(index.get(text, -1) for text in texts), readings


def require_classes(classes: Sequence[str], column: str) -> None:
    """Raise InputError if there are fewer than two classes, or some differ only by upper and lower case."""
    if len(classes) < 2:
        raise InputError(
            f"the column {column!r} must have at least 2 classes, got {', '.join(classes) or 'empty cells only'}"
        )
    first: dict[str, str] = {}
    for name in classes:
        if (other := first.setdefault(name.casefold(), name)) != name:
            raise InputError(
                f"the column {column!r} has the classes {other!r} and {name!r}, which differ only by upper and lower "
                "case: write them alike"
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
