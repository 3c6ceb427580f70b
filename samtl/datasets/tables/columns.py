"""Tables from anyone: CSV or Parquet files read as columns, and columns found by their names."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from samtl._io import read_regular
from samtl.errors import InputError, UnknownName
from samtl.images.codecs import SUFFIXES

_PARQUET, _TEXT = frozenset({".parquet", ".pq"}), frozenset({".csv", ".tsv", ".txt"})
_SEPARATORS = ",;\t|"
MOST = 2**31  # bytes of a table
#: Names that a column has if it is not named.
USUAL = {
    "path": (
        "path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "image_name", "img",
        "img_path",
    ),
    "label": ("label", "labels", "class", "class_name", "category", "tags"),
    "group": ("group", "scene", "site"),
    "part": ("part", "split", "subset", "partition"),
}  # fmt: skip
#: Of the ids of features, which have no image of their own.
IDS = ("id", "ids", "sample_id", "sample", *USUAL["path"])
_NEEDED = ("path", "label")


def read_table(path: Path) -> pa.Table:
    """Read a table with one name for each column.

    Values of a CSV are texts; its separator is the one of comma, semicolon, tab and bar that
    occurs most often in the first line. Values of Parquet keep their types. Raises InputError if the file is no such
    table, or two columns have one name.
    """
    kind = path.suffix.lower()
    if kind not in _PARQUET | _TEXT:
        raise InputError(
            f"{str(path)!r} is no table: expected {', '.join(sorted(_TEXT | _PARQUET))}"
        )
    try:
        raw = read_regular(path, MOST)
        table = pq.read_table(pa.BufferReader(raw)) if kind in _PARQUET else _text(raw)
    except (OSError, UnicodeError, pa.ArrowException, csv.Error) as error:
        why = "its text is not UTF-8" if isinstance(error, UnicodeError) else error
        raise InputError(f"{str(path)!r} cannot be read as a table: {why}") from error
    names = [name.strip() for name in table.column_names]
    if twice := [name for name, n in Counter(names).items() if n > 1]:
        raise InputError(
            f"{str(path)!r} has several columns called {twice[0]!r}: rename all but one of them"
        )
    if not len(table):
        raise InputError(f"{str(path)!r} has no rows: expected a header and one row for each image")
    if any(Path(name).suffix.lower() in SUFFIXES for name in names):
        raise InputError(
            f"{str(path)!r} has no header: its first line must name the columns, as in path,label"
        )
    return table.rename_columns(names)


def read_columns(path: Path) -> dict[str, list[Any]]:
    """Read a table as `read_table`: its columns by name, in order, texts without spaces around them."""
    table = read_table(path)
    return {
        name: [value.strip() if isinstance(value, str) else value for value in column.to_pylist()]
        for name, column in zip(table.column_names, table.columns, strict=True)
    }


def _text(raw: bytes) -> pa.Table:
    """Read a CSV, every value as text."""
    text = raw.decode("utf-8-sig").lstrip("\r\n")
    first = re.split(r"[\r\n]", text, maxsplit=1)[0]
    unquoted = re.sub(r'"[^"]*"', "", first)
    separator = max(_SEPARATORS, key=unquoted.count)
    names = [name.strip() for name in next(csv.reader([first], delimiter=separator), [])]
    # By number, since names may be there twice.
    columns = [str(i) for i in range(len(names))]
    table = pa_csv.read_csv(
        pa.BufferReader(text.encode()),
        pa_csv.ReadOptions(column_names=columns, skip_rows=1),
        pa_csv.ParseOptions(delimiter=separator, newlines_in_values=True),
        pa_csv.ConvertOptions(column_types=dict.fromkeys(columns, pa.string())),
    )
    return table.rename_columns(names)


def known_column(columns: Mapping[str, Any], name: str) -> str:
    """Return a column's name if it is there; else raise UnknownName."""
    if name not in columns:
        raise UnknownName("column of the table", name, columns)
    return name


def chosen_column(columns: Mapping[str, Any], what: str, options: Mapping[str, str]) -> str:
    """Return the column that an option names or, without it, the only one with a usual name.

    Without either, it is "" for what images need not have. Raises UnknownName, or InputError.
    """
    if what in options:
        return known_column(columns, options[what])
    found = [column for column in columns if column.lower().replace(" ", "_") in USUAL[what]]
    if len(found) == 1 or (not found and what not in _NEEDED):
        return "".join(found)
    how = f"several columns ({', '.join(found)})" if found else "no column"
    raise InputError(
        f"the table has {how} with a usual name of the {what}, its columns are {', '.join(columns)}: name one, as in "
        f"table:FILE?{what}={(found or [*columns])[0]}"
    )
