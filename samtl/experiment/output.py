"""Predictions as files: a table, or a folder of masks with a table. They appear whole or not at all."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from samtl._io import AtomicFolder, replace
from samtl.datasets.files.listing import kind_of
from samtl.errors import InputError, writing
from samtl.experiment.tables import MASKS, PREDICTIONS, predicted_texts, write_mask
from samtl.metrics.multilabel import LIKELY
from samtl.store.storage import as_folder, as_output

DEFAULT_OUT, TABLE_SUFFIX = "predictions", ".csv"


@dataclass(frozen=True)
class Skipped:
    """An image, or a row of a store, that nothing could be predicted for."""

    image: str
    code: str
    reason: str

    def __str__(self) -> str:
        return f"{self.image}: {self.code}: {self.reason}"


@dataclass(frozen=True)
class Predicted:
    """How far a prediction is: images done and skipped, of so many."""

    done: int
    skipped: int
    total: int

    def __str__(self) -> str:
        return f"predicted {self.done} of {self.total}"


@dataclass(frozen=True)
class PredictResult:
    """What was predicted, and where it is."""

    run: Path
    kind: str  #: `head` or `baseline`
    name: str
    task: str  #: `classification`, `multilabel`, `regression` or `segmentation`
    source: str  #: the images' folder or file, or the store
    #: A line for each image; None if the work was interrupted, which leaves nothing behind.
    table: Path | None
    masks: Path | None  #: the folder of the masks, of a segmentation
    rows: int  #: images predicted
    #: Images of each predicted class; of a segmentation, those with a pixel of it; of a regression, all.
    counts: dict[str, int]
    #: Mean probability, or share of the pixels, of each class; or mean of the numbers.
    means: dict[str, float]
    skipped: tuple[Skipped, ...]
    #: The least and the largest value of pixels, and whether they hardly are in their units; "" for pictures.
    values: str
    beside: Path | None  #: earlier predictions that were in the place of these, and are kept
    seconds: float
    encoder: str  #: what the features came from, or ""
    weights: str
    untrained: bool  #: whether these weights are random numbers
    note: str  #: what readers must know about the dataset that was learnt from
    interrupted: bool

    def to_json(self) -> dict[str, object]:
        """Return the result as JSON values."""
        content: dict[str, object] = msgspec.to_builtins(self, enc_hook=str)
        return content


def place_for(out: str | Path | None, task: str, overwrite: bool) -> tuple[Path, Path | None]:
    """Return where predictions go, and the earlier ones beside which they go; the parameters are those of `predict`.

    A table is `predictions.csv` in the folder `out`, or `out` itself if that ends in `.csv`. Masks fill the folder, or
    `masks` in it if it holds anything else. Earlier predictions are replaced with `overwrite`; else the next free
    number is added to the name. Nothing else is ever replaced.
    """
    masks = task == "segmentation"
    place = as_folder(DEFAULT_OUT if out is None else out).expanduser()
    if not masks and place.suffix != TABLE_SUFFIX:
        place /= PREDICTIONS
    as_output(place if masks else place.parent)
    if masks and not _is_free(place) and not _is_ours(place):
        place /= MASKS
    if kind_of(place) == ("file" if masks else "folder"):
        raise InputError(f"--out {place}: expected a {'folder' if masks else 'file'} there")
    if _is_free(place) or (overwrite and (not masks or _is_ours(place))):
        return place, None
    stem, suffix = (place.name, "") if masks else (place.stem, place.suffix)
    beside = (place.with_name(f"{stem}.{count}{suffix}") for count in itertools.count(2))
    return next(free for free in beside if kind_of(free) == "nothing"), place


def _is_free(place: Path) -> bool:
    """Return whether nothing is there but an empty folder."""
    kind = kind_of(place)
    return kind == "nothing" or (kind == "folder" and not any(place.iterdir()))


def _is_ours(folder: Path) -> bool:
    """Return whether a folder holds what a prediction of masks writes and nothing else."""
    table = folder / PREDICTIONS
    if not table.is_file() or b",mask," not in table.read_bytes()[:100]:
        return False
    return all(
        path.suffix == ".png" or path.is_dir() or path == table for path in folder.rglob("*")
    )


class Output(AtomicFolder):
    """Predictions being written; a context manager that leaves nothing behind unless `finish` was reached."""

    def __init__(
        self, place: Path, task: str, classes: Sequence[str], column: str, overwrite: bool
    ) -> None:
        self.place, self.task, self.classes, self.overwrite = place, task, classes, overwrite
        told, prefix = ("mask", "share") if task == "segmentation" else ("predicted", "p")
        figures = [] if task == "regression" else [f"{prefix}_{name}" for name in classes]
        self._table = [[column, told, *figures]]
        self._figures: list[NDArray[Any]] = []  # probabilities, or shares of the pixels, (K,) each
        self._new_parent = not place.parent.exists()
        with self._writing():
            super().__init__(place.resolve().parent)

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        if self._new_parent:
            with suppress(OSError):  # unless something was written
                self.parent.rmdir()

    @property
    def rows(self) -> int:
        """How many images were written."""
        return len(self._figures)

    def by_class(self) -> tuple[dict[str, int], dict[str, float]]:
        """Return each class's images and its mean probability, or share of the pixels; or the mean of numbers.

        Images count for the likeliest class, for all that are likely, or for all that a pixel is of.
        """
        figures = np.reshape(self._figures, (-1, len(self.classes)))
        found = np.isfinite(figures) if self.task == "regression" else figures > 0
        if self.task == "classification":
            found = np.eye(len(self.classes), dtype=bool)[figures.argmax(1)]
        if self.task == "multilabel":
            found = figures >= LIKELY
        means = figures.sum(0) / max(self.rows, 1)
        counted = zip(self.classes, found.sum(0).tolist(), strict=True)
        return dict(counted), dict(zip(self.classes, means.tolist(), strict=True))

    def write(self, image: str, mask: str, answer: NDArray[Any]) -> None:
        """Write what was predicted for one image: probabilities, (K,), a number, (1,), or a mask, (height, width).

        `image` is what the table calls it, `mask` the file of its mask, relative to the folder.
        """
        figures, told = answer, mask
        if answer.ndim == 1:
            told = predicted_texts(self.task, answer[None], self.classes)[0]
        else:
            figures = np.bincount(answer.ravel(), minlength=len(self.classes)) / answer.size
            with self._writing():
                write_mask(self.path / mask, answer)
        shown = () if self.task == "regression" else figures
        self._table.append([image, told, *map("{:.9g}".format, shown)])
        self._figures.append(figures)

    def finish(self) -> None:
        """Move what was written to its place, or beside it if that was taken meanwhile: hours may have passed."""
        self.place = place_for(self.place, self.task, self.overwrite)[0]
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(self._table)
        with self._writing():
            if self.task != "segmentation":
                replace(self.place, text.getvalue().encode())
                return
            (self.path / PREDICTIONS).write_text(text.getvalue(), encoding="utf-8")
            self.publish(self.place.resolve().name, replace=True)

    def _writing(self) -> AbstractContextManager[None]:
        return writing(f"predictions to {self.place}")
