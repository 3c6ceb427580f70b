"""Predictions as files: a table, or masks with a table. There whole or not at all."""

from __future__ import annotations

import csv
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from samtl.datasets.listing import expanded, kind_of
from samtl.errors import InputError, ResourceError
from samtl.experiment.tables import write_mask
from samtl.heads.base import Floats
from samtl.store.durable import replace_folder

TABLE = "predictions.csv"
MASKS = "masks"


def place_for(out: str | Path | None, task: str, overwrite: bool) -> Path:
    """Say where predictions go, refusing a place that they cannot or must not take.

    Parameters
    ----------
    out : path, optional
        The file of a classification, by default `predictions.csv`; the folder of a segmentation, by default `masks`.
    task : str
    overwrite : bool
        Whether an earlier prediction may be replaced. Of folders, only those are that hold nothing else.

    Raises
    ------
    InputError
        Saying what is in the way.
    """
    segments = task == "segmentation"
    place = expanded(out if out is not None else MASKS if segments else TABLE)
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
            f"{place} is there already: name another with --out, or replace it with --overwrite"
        )
    if not (_is_ours(place) if segments else place.is_file()):
        what = "holds more than masks and their table" if segments else "is no regular file"
        raise InputError(
            f"{place} {what}, and is not replaced: name another with --out, or remove it yourself"
        )
    return place


def _is_ours(folder: Path) -> bool:
    """Tell whether a folder holds what a prediction of masks writes and nothing else, so that it can be removed."""
    try:
        with (folder / TABLE).open(encoding="utf-8") as file:
            header = file.readline().split(",")
    except (OSError, UnicodeDecodeError):
        return False
    return header[1:2] == ["mask"] and all(
        path.suffix == ".png" or path.is_dir() or path == folder / TABLE
        for path in folder.rglob("*")
    )


class Output:
    """Predictions being written in a hidden folder beside their place; nothing is left unless `publish` was reached.

    Parameters
    ----------
    place : Path
        From `place_for`.
    task : str
    classes : sequence of str
    column : str
        What the table's first column is called.
    overwrite : bool
        As for `place_for`.

    Raises
    ------
    ResourceError
        Where the disk does not take it.
    """

    def __init__(
        self, place: Path, task: str, classes: Sequence[str], column: str, overwrite: bool
    ) -> None:
        self.place, self.task, self.classes, self.overwrite = place, task, classes, overwrite
        segments = task == "segmentation"
        self._final = place.resolve() if segments else place.absolute()
        self._folder = self._final.parent / f".tmp-{uuid.uuid4().hex}"
        columns = (
            ["mask", *(f"share_{name}" for name in classes)]
            if segments
            else ["predicted", *(f"p_{name}" for name in classes)]
        )
        with self._writing():
            self._folder.mkdir()
            self._file = (self._folder / TABLE).open("w", encoding="utf-8", newline="")
            self._table = csv.writer(self._file, lineterminator="\n")
            self._table.writerow([column, *columns])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # What a full disk did not take is tried again here, and does not matter any more.
        with suppress(OSError):
            self._file.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def write(
        self, image: str, mask: str, answer: NDArray[Any]
    ) -> tuple[Floats, NDArray[np.bool_]]:
        """Write what was predicted for one image.

        Parameters
        ----------
        image : str
            What the table calls it.
        mask : str
            The file of its mask, of a segmentation, relative to the folder.
        answer : (K,) float64 or (height, width) uint8
            Probabilities, or class indices.

        Returns
        -------
        figures : (K,) float64
            Probabilities, or shares of the pixels.
        found : (K,) bool
            The classes that the image counts for: the likeliest, or all that a pixel is of.
        """
        k = len(self.classes)
        if self.task == "classification":
            figures, found = answer, np.arange(k) == answer.argmax()
            told = self.classes[int(answer.argmax())]
        else:
            figures = np.bincount(answer.ravel(), minlength=k) / answer.size
            found, told = figures > 0, mask
        with self._writing():
            if self.task == "segmentation":
                path = self._folder / mask
                path.parent.mkdir(parents=True, exist_ok=True)
                write_mask(path, answer)
            self._table.writerow([image, told, *map("{:.9g}".format, figures)])
        return figures, found

    def publish(self) -> None:
        """Move what was written to its place."""
        place_for(self.place, self.task, self.overwrite)  # hours may have passed
        with self._writing():
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            if self.task == "classification":
                (self._folder / TABLE).replace(self._final)
                return
            replace_folder(self._folder, self._final)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise ResourceError(
                f"cannot write predictions to {self.place}: {error.strerror or error}; choose another place with "
                "--out, or make room"
            ) from error
