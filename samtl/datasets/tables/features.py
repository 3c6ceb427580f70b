"""Features that somebody else computed: a table with a row for each sample, or arrays of numpy."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from samtl._io import read_regular
from samtl.datasets.tables.columns import IDS, MOST, USUAL, read_table
from samtl.datasets.tables.labels import text_of
from samtl.errors import InputError

# Numbers that say where a sample is, or which row it was, and not what it looks like.
_PLACES = {"x", "y", "lon", "lat", "longitude", "latitude", "", "unnamed: 0", "__index_level_0__"}
_ARRAYS = "an npz file has the arrays `ids` (n) and `features` (n, F), and may have `labels` (n)"


@dataclass(frozen=True)
class Features:
    """Features of n samples, and what a file says of these."""

    ids: tuple[str, ...]
    values: NDArray[np.float32]  #: (n, F)
    names: tuple[str, ...]  #: of the F columns
    #: `label`, `group` and `part` of each sample, if the file has them.
    about: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()  #: columns that are no features


def read_features(path: Path) -> Features:
    """Read features from CSV, Parquet or npz.

    A table has a column of ids with a usual name, and columns of numbers, or one of lists of numbers. Raises InputError
    if the file is none of these, an id is empty or there twice, or the features are no (n, F) numbers.
    """
    kind = path.suffix.lower()
    if kind == ".npy":
        raise InputError(
            f"{path} has features without ids, and the order of rows proves nothing: save both with "
            "numpy.savez(FILE, ids=ids, features=features), and import that"
        )
    found = _of_arrays(path) if kind == ".npz" else _of_table(path)
    if found.values.ndim != 2 or 0 in found.values.shape or len(found.ids) != len(found.values):
        raise InputError(
            f"{path} must have features of the shape (n, F) and n ids, got {found.values.shape} and {len(found.ids)}"
        )
    seen = set[str]()
    for name in found.ids:
        if not name or name in seen:
            raise InputError(f"{path} must have each id once, and not {name!r}, empty or twice")
        seen.add(name)
    return found


def _of_arrays(path: Path) -> Features:
    try:
        with np.load(io.BytesIO(read_regular(path, MOST)), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} cannot be read, {_ARRAYS}: {error}") from error
    about = {name: arrays.get(f"{name}s", np.empty(0)) for name in ("label", "group", "part")}
    nothing = np.empty(0, bool)
    values, ids = arrays.get("features", nothing), arrays.get("ids", nothing)
    if values.dtype.kind not in "fiu" or ids.dtype.kind not in "USiu" or ids.ndim != 1:
        kinds = ", ".join(
            f"{name} {array.shape} of {array.dtype}" for name, array in arrays.items()
        )
        raise InputError(
            f"{path} has {kinds or 'nothing'}; {_ARRAYS}; ids are texts or whole numbers"
        )
    for name, array in about.items():
        if array.size and array.shape != ids.shape:
            raise InputError(f"{path} must have one {name} for each id, not {array.shape}")
    return Features(
        tuple(map(_text, ids.tolist())),
        _floats(values),
        tuple(f"f{i}" for i in range(values.shape[-1] if values.ndim else 0)),
        {name: [*map(_text, array.tolist())] for name, array in about.items() if array.size},
    )


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else text_of(value)


def _floats(values: NDArray[Any]) -> NDArray[np.float32]:
    with np.errstate(
        over="ignore"
    ):  # what is too large is not finite then, and the row is quarantined
        return np.ascontiguousarray(values, np.float32)


def _of_table(path: Path) -> Features:
    table = read_table(path)
    columns = dict(zip(table.column_names, table.columns, strict=True))
    usual = {"id": IDS} | {name: USUAL[name] for name in ("label", "group", "part")}
    named = {what: _named(path, columns, what, names) for what, names in usual.items()}
    if not named["id"]:
        raise InputError(f"{path} has no column of ids: call it id, it has {', '.join(columns)}")
    about = {
        what: [value.strip() if isinstance(value, str) else value for value in columns[name].to_pylist()]
        for what, name in named.items()
        if name
    }  # fmt: skip
    left_out, numbers = list[str](), dict[str, NDArray[Any]]()
    lists = [name for name, column in columns.items() if _listed(column.type)]
    if len(lists) > 1:
        raise InputError(f"{path} has several columns of lists, {', '.join(lists)}: leave one")
    for name, column in columns.items():
        if name in named.values():
            continue
        found = None
        if not lists and name.lower() not in _PLACES:
            found = _numbers(path, name, column)
        if found is not None:
            numbers[name] = found
        elif name not in lists:
            left_out.append(name)
    if lists:
        values = _of_lists(path, lists[0], columns[lists[0]])
        names = tuple(f"{lists[0]}_{i}" for i in range(values.shape[1]))
    elif numbers:
        values, names = np.stack([*numbers.values()], axis=1), tuple(numbers)
    else:
        raise InputError(f"{path} has no column of numbers beside {', '.join(left_out) or 'ids'}")
    ids = tuple(map(text_of, about.pop("id")))
    return Features(ids, _floats(values), names, about, tuple(left_out))


def _named(path: Path, columns: Mapping[str, Any], what: str, usual: Sequence[str]) -> str:
    """Return the only column with a usual name, "" if there is none; the first of `usual` goes before all others."""
    found = [name for name in columns if name.lower().replace(" ", "_") in usual]
    found = [name for name in found if name.lower() == usual[0]] or found
    if len(found) > 1:
        raise InputError(
            f"{path} has several columns that may be the {what}, {', '.join(found)}: rename all but one of them"
        )
    return "".join(found)


def _listed(kind: pa.DataType) -> bool:
    kinds = (pa.ListType, pa.LargeListType, pa.FixedSizeListType)
    return isinstance(kind, kinds)


def _numbers(path: Path, name: str, column: pa.ChunkedArray) -> NDArray[np.float64] | None:
    """Return a column's values, NaN where there is none; None if it has no numbers."""
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        texts = pc.utf8_trim_whitespace(column)
        texts = pc.if_else(pc.equal(texts, ""), pa.scalar(None, texts.type), texts)
        try:
            return _plain(pc.cast(texts, pa.float64()))
        except pa.ArrowInvalid as error:
            values = [text for text in texts.to_pylist() if text is not None]
            if any(map(_is_number, values)):
                bad = next(text for text in values if not _is_number(text))
                raise InputError(
                    f"{path}: the column {name!r} has numbers and {bad!r}; leave what is not known empty"
                ) from error
            return None
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        return None
    return _plain(column)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _plain(column: pa.ChunkedArray) -> NDArray[np.float64]:
    return np.asarray(pc.fill_null(pc.cast(column, pa.float64(), safe=False), np.nan).to_numpy())


def _of_lists(path: Path, name: str, column: pa.ChunkedArray) -> NDArray[np.float64]:
    """Stack lists of one length; of a null, all values are NaN."""
    lengths = {n for n in pc.unique(pc.list_value_length(column)).to_pylist() if n is not None}
    inner = column.type.value_type
    if len(lengths) != 1 or not (pa.types.is_integer(inner) or pa.types.is_floating(inner)):
        raise InputError(
            f"{path}: the column {name!r} must have lists of as many numbers, got {inner} in lengths of "
            f"{', '.join(map(str, sorted(lengths)[:5]))}"
        )
    known = ~column.is_null().to_numpy()
    values = np.full((len(known), lengths.pop()), np.nan)
    flat = pc.list_flatten(column)  # without nulls
    values[known] = _plain(flat).reshape(int(known.sum()), -1)
    return values
