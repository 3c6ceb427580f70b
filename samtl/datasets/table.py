"""Images listed in a table of your own, CSV or Parquet, `table:FILE.csv`: a column of paths and one of labels."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from samtl._io import digest
from samtl.datasets.base import Dataset
from samtl.datasets.files.listing import (
    PART_NAMES,
    FolderTree,
    kind_of,
    options_of,
    own_name,
    some,
)
from samtl.datasets.tables.columns import chosen_column, known_column, read_columns
from samtl.datasets.tables.labels import (
    class_columns,
    class_indices,
    class_sets,
    numbers,
    require_classes,
    text_of,
)
from samtl.datasets.tables.paths import image_ids
from samtl.errors import InputError

_LONGEST = 40  # letters of a column's name in that of the dataset
_OPTIONS = {
    "path": "COLUMN of the images' paths",
    "label": "COLUMN of the class of each image",
    "separator": "TEXT between several classes in that column",
    "labels": "COLUMN,COLUMN[,COLUMN...] of 0 and 1, one for each class",
    "target": "COLUMN of a number to be predicted for each image",
    "group": "COLUMN of what an image was cut from",
    "part": "COLUMN of train, val and test",
}


def open_dataset(argument: str | None, root: Path | None, download: bool = True) -> Dataset:
    """List the images of a table.

    `argument` is `FILE` or `FILE?OPTIONS`: a CSV (UTF-8, with a header) or Parquet file, and options as in a URL, which
    name columns: `path=file&label=class&group=scene&part=split`. Columns with usual names need no option. Several
    classes of an image are in one column, `label=tags&separator=;`, or in columns of 0 and 1, `labels=water,forest`; a
    number is in `target=ndvi`. `root` is the folder that paths are relative to, and that all images lie in; by default
    the table's own. The dataset is named `table-`, the file's own name and, unless that is "label", what is predicted.
    Ids are the images' paths below the folder. Raises InputError.
    """
    text, _, query = (argument or "").partition("?")
    file, options = Path(text).expanduser(), options_of("table", query, _OPTIONS)
    if not text or kind_of(file) != "file":
        raise InputError(f"table:FILE.csv was expected, and {text!r} is no file")
    columns = read_columns(file)
    named = {what: chosen_column(columns, what, options) for what in ("path", "group", "part")}
    tree = FolderTree(root or file.parent)
    ids = image_ids(tree, columns[named["path"]], named["path"])
    column, classes, labels, readings = _labels(columns, options)
    parts, told_of_parts = _parts(columns, named["part"], "part" in options)
    told = ", ".join(
        f"{what} from {name!a}" for what, name in {"path": "", **column, **named}.items() if name
    )
    predicted = next(iter(column.values()))
    return Dataset(
        name="table-" + own_name(file.with_suffix("")) + _suffix(predicted),
        classes=classes,
        sample_ids=ids,
        labels=labels,
        read=tree.read,
        groups=_groups(columns, named["group"]),
        parts=parts,
        readings=(f"columns of the table: {told}", *readings, *told_of_parts),
    )


def _labels(
    columns: Mapping[str, Sequence[Any]], options: Mapping[str, str]
) -> tuple[dict[str, str], tuple[str, ...], tuple[Any, ...], list[str]]:
    """Return the columns of what is to be predicted, the classes, the labels of a `Dataset`, and what to tell."""
    if len(options.keys() & {"target", "labels", "label"}) > 1 or (
        "separator" in options and options.keys() & {"target", "labels"}
    ):
        raise InputError(
            "table takes label= (one class, or several with separator=), labels= (a column for each class) or target= "
            f"(a number), one of them, got {', '.join(options)}"
        )
    if "target" in options:
        target = known_column(columns, options["target"])
        values, readings = numbers(columns[target], target)
        return {"target": target}, (target,), values, readings
    if "labels" in options:
        names = [known_column(columns, name.strip()) for name in options["labels"].split(",")]
        require_classes(names, options["labels"])
        return {"labels": ",".join(names)}, tuple(names), class_columns(columns, names), []
    label = chosen_column(columns, "label", options)
    separator = options.get("separator")
    if separator or any(isinstance(value, list) for value in columns[label]):
        return {"label": label}, *class_sets(columns[label], label, separator or ";"), []
    return {"label": label}, *class_indices(columns[label], label)


def _suffix(column: str) -> str:
    """Return the end of a dataset's name: what is predicted, shortened if that is long."""
    if column == "label":
        return ""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", column).strip("-.")
    if plain == column and len(column) <= _LONGEST:
        return f"-{column}"
    return f"-{plain[:_LONGEST]}-{digest(column)[:8]}"


def _groups(columns: Mapping[str, Sequence[Any]], name: str) -> tuple[str, ...]:
    groups = tuple(text_of(value) for value in columns[name]) if name else ()
    if empty := groups.count(""):
        raise InputError(
            f"the column {name!r} must have a group for every image, and {empty} of {len(groups)} have none: fill them "
            "in, or rename the column"
        )
    return groups


def _parts(
    columns: Mapping[str, Sequence[Any]], name: str, asked: bool
) -> tuple[tuple[str, ...], list[str]]:
    """Return the part of each image, and what to tell; a column that was not asked for may hold something else."""
    texts = [text_of(value) for value in columns[name]] if name else []
    strange = [text for text in dict.fromkeys(texts) if text.lower() not in PART_NAMES]
    if not strange:
        return tuple(PART_NAMES[text.lower()] for text in texts), []
    if asked:
        raise InputError(
            f"the column {name!r} must have one of {', '.join(PART_NAMES)} for every image, got {some(strange)}"
        )
    return (), [f"{name!a} is not used, since it does not hold train, val and test only"]
