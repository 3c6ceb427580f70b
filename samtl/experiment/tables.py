"""The tables of a run folder and the masks beside them: written by a fit, read by a report."""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from samtl._io import digest, inside, make_folder, replace
from samtl.errors import InputError
from samtl.experiment.run import Run, RunFolder
from samtl.splits import Samples, SplitRecord

Rows = NDArray[np.int64]

SPLIT, PREDICTIONS, IMAGES, CURVES = "split.json", "predictions.csv", "images.csv", "curves.csv"
MASKS = "masks"
_ABOUT = ["sample_id", "label", "predicted"]


def _palette() -> bytes:
    """Black for the background, then Okabe and Ito's colours, which colour-blind readers can tell apart, repeated."""
    colours = ["e69f00", "56b4e9", "009e73", "f0e442", "0072b2", "d55e00", "cc79a7"]
    return bytes(3) + b"".join(bytes.fromhex(colours[i % len(colours)]) for i in range(255))


PALETTE = _palette()


def mask_name(position: int, sample_id: str) -> str:
    """Return the file name of a predicted mask; its position makes it unique, whatever the id holds."""
    return f"{position:05d}_{re.sub(r'[^A-Za-z0-9._-]+', '_', sample_id)[-120:]}.png"


def write_mask(path: Path, classes: NDArray[np.uint8]) -> None:
    """Write a map of class indices, (height, width), as a PNG whose palette lets a person see them."""
    image = Image.fromarray(classes)
    image.putpalette(PALETTE)  # which turns grey levels into indices
    image.save(path, "PNG")


def write_split(folder: RunFolder, record: SplitRecord, shared: Path | None = None) -> None:
    """Write who was held out, who validated and who took no part; everyone else was learnt from.

    With `shared`, a folder beside that of the runs, the lists go there, once for all runs of the split.
    """
    content = msgspec.to_builtins(record)
    if shared is not None:
        # The digests of the parts do not cover who took no part.
        name = f"{record.digest[:16]}-{record.validation_digest[:8]}-{digest(content)[:8]}.json"
        with folder.writing():
            make_folder(shared)
            if not (shared / name).exists():  # several processes may write the same text at once
                replace(shared / name, msgspec.json.format(msgspec.json.encode(content), indent=1))
        lists = ("held_out", "validation", "left_out")
        content = {key: value for key, value in content.items() if key not in lists}
        content["file"] = f"../../{shared.name}/{name}"
    folder.write_json(SPLIT, content)


def write_predictions(
    folder: RunFolder, samples: Samples, rows: Rows, chances: NDArray[np.float64], lean: bool
) -> None:
    """Write the predicted class of the held-out samples and, unless `lean`, the probabilities, (n, K)."""
    names = samples.classes
    columns = [] if lean else [f"p_{name}" for name in names]
    folder.write_csv(
        PREDICTIONS,
        [*_ABOUT, *columns],
        (
            [samples.ids[row], names[samples.labels[row]], names[chance.argmax()]]
            + ([] if lean else [f"{value:.9g}" for value in chance])
            for row, chance in zip(rows, chances, strict=True)
        ),
    )


def write_images(
    folder: RunFolder, samples: Samples, rows: Rows, scores: Mapping[str, NDArray[np.float64]]
) -> None:
    """Write the scores, (n,) each, of the held-out images of a segmentation."""
    table = zip(rows, *scores.values(), strict=True)
    folder.write_csv(
        IMAGES,
        ["sample_id", "mask", *scores],
        (
            [samples.ids[row], f"{MASKS}/{mask_name(i, samples.ids[row])}"]
            + [f"{value:.6g}" for value in values]
            for i, (row, *values) in enumerate(table)
        ),
    )


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a classifier said of the held-out samples.

    Attributes
    ----------
    ids : tuple of (n,) str
    truth, guess : (n,) int64
        Class indices.
    """

    ids: tuple[str, ...]
    truth: Rows
    guess: Rows


@dataclass(frozen=True, eq=False)
class ImageScores:
    """How well a segmenter did on each held-out image.

    Attributes
    ----------
    ids : tuple of (n,) str
    scores : dict of str to (n,) float64
        `accuracy`, `iou`, `dice`, `f1`, `precision` and `recall`.
    masks : tuple of (n,) Path
        Predicted class indices as PNG files, at the encoder's resolution without padding.
    """

    ids: tuple[str, ...]
    scores: dict[str, NDArray[np.float64]]
    masks: tuple[Path, ...]


def read_predictions(run: Run) -> Predictions:
    """Read the predictions of a run of a classification, without probabilities.

    Raises
    ------
    InputError
        The table is damaged.
    """
    index = {name: i for i, name in enumerate(run.classes)}
    path = run.path / PREDICTIONS
    try:
        with inside(run.path, PREDICTIONS).open(encoding="utf-8", newline="") as file:
            columns = zip(*csv.reader(file), strict=True)
            names, labels, guesses = itertools.islice(columns, 3)
        if len(names) != run.n_test + 1:
            raise ValueError(f"expected {run.n_test} rows, got {len(names) - 1}")
        truth, guess = (
            np.fromiter(map(index.__getitem__, column[1:]), np.int64, run.n_test)
            for column in (labels, guesses)
        )
    except (OSError, KeyError, ValueError, csv.Error) as error:
        raise InputError(f"{path} is damaged: {error!r}") from error
    return Predictions(names[1:], truth, guess)


def read_images(run: Run) -> ImageScores:
    """Read the scores of the images of a run of a segmentation.

    Raises
    ------
    InputError
        The table is damaged, or a mask is gone or not in the run folder.
    """
    path = run.path / IMAGES
    try:
        with inside(run.path, IMAGES).open(encoding="utf-8", newline="") as file:
            (_, _, *names), *rows = csv.reader(file)
        values = np.array([row[2:] for row in rows], dtype=np.float64)
        if values.shape != (run.n_test, len(names)):
            raise ValueError(f"expected {run.n_test} rows, got {len(rows)}")
        masks = tuple(inside(run.path, row[1]) for row in rows)
    except (OSError, IndexError, ValueError, csv.Error) as error:
        raise InputError(f"{path} is damaged: {error}") from error
    scores = dict(zip(names, values.T, strict=True))
    return ImageScores(tuple(row[0] for row in rows), scores, masks)


def read_curves(run: Run) -> dict[str, list[float]]:
    """Read what was seen in training: the columns that are numbers, such as `epoch` and `validation_loss`.

    Raises
    ------
    InputError
        The table is damaged.
    """
    try:
        with inside(run.path, CURVES).open(encoding="utf-8", newline="") as file:
            table = csv.DictReader(file)
            rows = list(table)
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{run.path / CURVES} is damaged: {error}") from error
    curves = {}
    for name in table.fieldnames or ():
        try:
            curves[name] = [float(row[name]) for row in rows]
        except (TypeError, ValueError):
            continue  # such as the scaling that a candidate was tried with
    return curves
