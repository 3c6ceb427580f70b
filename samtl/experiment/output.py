"""Predictions as files: a table, or a folder of masks with a table. They appear whole or not at all."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from samtl._io import AtomicFolder, replace
from samtl.datasets.listing import kind_of
from samtl.errors import InputError
from samtl.experiment.run import writing
from samtl.experiment.tables import MASKS, PREDICTIONS, write_mask


def place_for(out: str | Path | None, task: str, overwrite: bool) -> Path:
    """Return where predictions go; the parameters are those of `predict`.

    Raises InputError if the place is taken and must not be replaced: only a table is, or a folder that holds nothing
    but masks.
    """
    segments = task == "segmentation"
    place = Path(out if out is not None else MASKS if segments else PREDICTIONS).expanduser()
    if kind_of(place.absolute().parent) != "folder":
        raise InputError(f"--out {place}: expected a name in a folder that exists")
    kind = kind_of(place)
    if kind == ("file" if segments else "folder"):
        wanted = "a folder for the masks" if segments else "a file for the table"
        raise InputError(f"--out {place}: expected {wanted}, and this is a {kind}")
    if kind == "nothing" or (segments and not any(place.iterdir())):
        return place
    if not overwrite:
        raise InputError(
            f"{place} exists already: name another with --out, or replace it with --overwrite"
        )
    if not (_is_ours(place) if segments else place.is_file()):
        what = "holds more than masks and their table" if segments else "is no regular file"
        raise InputError(
            f"{place} {what}, and is not replaced: name another with --out, or remove it yourself"
        )
    return place


def _is_ours(folder: Path) -> bool:
    """Return whether a folder holds what a prediction of masks writes and nothing else."""
    table = folder / PREDICTIONS
    return (
        table.is_file()
        and table.read_bytes()[:100].split(b",")[1:2] == [b"mask"]
        and all(
            path.suffix == ".png" or path.is_dir() or path == table for path in folder.rglob("*")
        )
    )


class Output:
    """Predictions being written; a context manager that leaves nothing behind unless `publish` was reached.

    Parameters
    ----------
    place : Path
        From `place_for`, with the same task and `overwrite`.
    task : str
    classes : sequence of (K,) str
    column : str
        Name of the table's first column.
    overwrite : bool

    Attributes
    ----------
    rows : int
        Images written.
    counts : (K,) int64
        Images that count for each class: the likeliest one, or all that a pixel is of.
    sums : (K,) float64
        Of the images' probabilities, or of their shares of the pixels.
    """

    def __init__(
        self, place: Path, task: str, classes: Sequence[str], column: str, overwrite: bool
    ) -> None:
        self.place, self.task, self.classes, self.overwrite = place, task, classes, overwrite
        self.rows, self.counts = 0, np.zeros(len(classes), dtype=np.int64)
        self.sums = np.zeros(len(classes))
        self._folder: AtomicFolder | None = None
        if task == "segmentation":
            with self._writing():
                self._folder = AtomicFolder(place.resolve().parent)
        self._text = io.StringIO()
        self._table = csv.writer(self._text, lineterminator="\n")
        told, prefix = ("predicted", "p") if self._folder is None else ("mask", "share")
        self._table.writerow([column, told, *(f"{prefix}_{name}" for name in classes)])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._folder is not None:
            self._folder.__exit__(*error)

    def write(self, image: str, mask: str, answer: NDArray[Any]) -> None:
        """Write what was predicted for one image: probabilities, (K,), or class indices, (height, width).

        `image` is what the table calls it, `mask` the file of its mask, relative to the folder.
        """
        k = len(self.classes)
        if self._folder is None:
            best = int(answer.argmax())
            figures, found, told = answer, np.arange(k) == best, self.classes[best]
        else:
            figures = np.bincount(answer.ravel(), minlength=k) / answer.size
            found, told = figures > 0, mask
            with self._writing():
                write_mask(self._folder.path / mask, answer)
        self._table.writerow([image, told, *map("{:.9g}".format, figures)])
        self.rows += 1
        self.sums += figures
        self.counts += found

    def publish(self) -> None:
        """Move what was written to its place."""
        place_for(self.place, self.task, self.overwrite)  # hours may have passed
        content = self._text.getvalue().encode()
        with self._writing():
            if self._folder is None:
                replace(self.place, content)
                return
            (self._folder.path / PREDICTIONS).write_bytes(content)
            self._folder.publish(self.place.resolve().name, replace=True)

    def _writing(self) -> AbstractContextManager[None]:
        return writing(f"predictions to {self.place}")
