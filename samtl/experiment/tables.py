"""The tables of a run folder and the masks beside them: written by a fit, read by a report."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from samtl._io import digest, inside, replace, require_size
from samtl.errors import InputError
from samtl.experiment.run import MOST_TABLE, SPLIT, Run, RunFolder
from samtl.metrics import classification, multilabel, segmentation
from samtl.metrics.paired import FIGURES, ImageScores, Outcome, Outputs, Predictions
from samtl.splits import Samples, SplitRecord
from samtl.splits.labels import label_array, label_texts

Rows = NDArray[np.int64]

PREDICTIONS, IMAGES, CURVES = "predictions.csv", "images.csv", "curves.csv"
PIXELS, GROUPS = "pixels.csv", "groups.csv"
MASKS = "masks"
CONFIDENCE = "confidence"  # probability of the predicted class
#: Black for the background, then Okabe and Ito's colours, which colour-blind readers can tell apart, repeated.
_COLOURS = bytes.fromhex("e69f00 56b4e9 009e73 f0e442 0072b2 d55e00 cc79a7")
PALETTE = (bytes(3) + 37 * _COLOURS)[:768]


def mask_name(position: int, sample_id: str) -> str:
    """Return the file name of a predicted mask; its position makes it unique, whatever the id holds."""
    return f"{position:05d}_{re.sub(r'[^A-Za-z0-9._-]+', '_', sample_id)[-120:]}.png"


def write_mask(path: Path, classes: NDArray[np.uint8]) -> None:
    """Write a map of class indices, (height, width), as a PNG whose palette lets a person see them."""
    path.parent.mkdir(parents=True, exist_ok=True)
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
        if not (shared / name).exists():  # several processes may write the same text at once
            replace(shared / name, msgspec.json.format(msgspec.json.encode(content), indent=1))
        for ids in ("held_out", "validation", "left_out"):
            del content[ids]
        content["file"] = f"../../{shared.name}/{name}"
    folder.write_json(SPLIT, content)


def write_predictions(
    folder: RunFolder, samples: Samples, rows: Rows, chances: NDArray[np.float64], lean: bool
) -> None:
    """Write the predictions on the held-out samples and the probabilities, (n, K); if `lean`, only the class's own."""
    names, task = samples.classes, samples.task
    columns, figures = [f"p_{name}" for name in names], chances
    if task == "regression":
        columns, figures = [], chances[:, :0]
    elif task == "classification" and lean:
        columns, figures = [CONFIDENCE], chances.max(axis=1, keepdims=True)
    # Scores of other tasks are computed anew from the table, and rounding makes ties of what is nearly certain.
    written: Callable[[float], str] = "{:.9g}".format if task == "classification" else repr
    ids = [samples.ids[row] for row in rows]
    texts = label_texts(samples.labels[rows], names), predicted_texts(task, chances, names)
    told = (
        [*told, *map(written, values)]
        for *told, values in zip(ids, *texts, figures.tolist(), strict=True)
    )
    folder.write_csv(PREDICTIONS, ["sample_id", "label", "predicted", *columns], told)


def predicted_texts(task: str, said: NDArray[np.float64], classes: Sequence[str]) -> list[str]:
    """Write what was predicted as text: the likeliest class, or all that are likely, or the number."""
    if task == "regression":
        return [*map(repr, said[:, 0].tolist())]
    if task == "multilabel":
        return label_texts((said >= multilabel.LIKELY).astype(np.int8), classes)
    return [classes[i] for i in said.argmax(axis=1)]


def write_confusion(folder: RunFolder, samples: Samples, confusion: NDArray[np.int64]) -> None:
    """Write which class is mistaken for which, (K, K), or how often each is right and wrong, (K, 4)."""
    header = ["truth", *samples.classes]
    if samples.task == "multilabel":
        header = ["class", "true_negatives", "false_positives", "false_negatives", "true_positives"]
    if confusion.size:
        counts = zip(samples.classes, confusion.tolist(), strict=True)
        folder.write_csv("confusion.csv", header, ([name, *row] for name, row in counts))


def write_images(
    folder: RunFolder, samples: Samples, rows: Rows, scores: Mapping[str, NDArray[np.float64]]
) -> None:
    """Write the scores, (n,) each, of the held-out images of a segmentation."""
    ids = [samples.ids[row] for row in rows]
    told = (
        [name, f"{MASKS}/{mask_name(i, name)}", *(f"{value:.6g}" for value in values)]
        for i, (name, *values) in enumerate(zip(ids, *scores.values(), strict=True))
    )
    folder.write_csv(IMAGES, ["sample_id", "mask", *scores], told)


def write_pixels(
    folder: RunFolder, samples: Samples, rows: Rows, counts: NDArray[np.int64]
) -> None:
    """Write, of each held-out image and class that occurs in it, the counts (n, K, 3) of `class_counts`."""
    told = (
        [samples.ids[rows[i]], samples.classes[k], *counts[i, k].tolist()]
        for i, k in np.argwhere(counts.any(-1)).tolist()
    )
    folder.write_csv(PIXELS, ["sample_id", "class", "true", "predicted", "both"], told)


def write_groups(folder: RunFolder, samples: Samples, rows: Rows, groups: Sequence[str]) -> None:
    """Write the group of each held-out sample."""
    told = zip((samples.ids[row] for row in rows), groups, strict=True)
    folder.write_csv(GROUPS, ["sample_id", "group"], told)


def read_predictions(run: Run) -> Predictions:
    """Read the predictions of a run of a classification; InputError if the table is damaged or has other scores."""
    code = {name: i for i, name in enumerate(run.classes)}
    with _table(run, PREDICTIONS, run.n_test) as ((_, _, _, *names), rows):
        truth, guess = np.array([[code[row[1]], code[row[2]]] for row in rows], dtype=np.int64).T
        # Sweeps of earlier versions have no probabilities.
        own = [0] * len(rows) if names == [CONFIDENCE] else guess.tolist() if names else []
        chances = [float(row[3 + i]) for row, i in zip(rows, own, strict=False)]
        confidence = np.array(chances) if names else None
        ids = tuple(row[0] for row in rows)
        counts = classification.confusion(truth, guess, len(code))
        _require(
            run, counts, {name: score(counts) for name, score in classification.OF_MATRIX.items()}
        )
    return Predictions(ids, truth, guess, confidence, _read_groups(run, ids))


def read_outputs(run: Run) -> Outputs:
    """Read the predictions of a run whose samples do not have one class each.

    InputError if the table is damaged or has other scores than the run.
    """
    code = {name: i for i, name in enumerate(run.classes)}
    several = run.task == "multilabel"
    with _table(run, PREDICTIONS, run.n_test) as (_, rows):
        labels = [
            tuple(code[name] for name in row[1].split(";") if name) if several else float(row[1])
            for row in rows
        ]
        said = np.array([row[3:] if several else row[2:] for row in rows], dtype=np.float64)
        if said.shape != (len(rows), len(code)) or not np.isfinite(said).all():
            raise ValueError(f"expected {len(code)} numbers for each sample")
        ids = tuple(row[0] for row in rows)
        truth = label_array(run.task, labels, len(code))
        counts = multilabel.counts(truth, said) if several else None
        _require(
            run, counts, {k: value for k, (value, _) in FIGURES[run.task](truth, said).items()}
        )
    return Outputs(run.task, ids, truth, said, _read_groups(run, ids))


def read_images(run: Run) -> ImageScores:
    """Read the scores of the images of a run of a segmentation.

    InputError if a table is damaged or has other scores than the run, or a mask is not there.
    """
    with _table(run, IMAGES, run.n_test) as ((_, _, *names), rows):
        values = np.array([row[2:] for row in rows], dtype=np.float64)
        masks = tuple(inside(run.path, row[1]) for row in rows)
        for mask in masks:
            require_size(mask, mask.stat().st_size, MOST_TABLE)
        scores, ids = dict(zip(names, values.T, strict=True)), tuple(row[0] for row in rows)
        pooled = segmentation.scores(run.confusion)
        means = {name: found.mean() for name, found in scores.items()}
        _require(run, None, means | {f"pooled_{name}": value for name, value in pooled.items()})
    pixels = _read_pixels(run, ids)
    with _named(run, PIXELS):
        if pixels is not None and (pixels.sum(0) != segmentation.class_counts(run.confusion)).any():
            raise ValueError("it counts other pixels than the run")
    return ImageScores(ids, scores, masks, pixels, _read_groups(run, ids))


def _require(run: Run, counts: NDArray[np.int64] | None, scores: Mapping[str, Any]) -> None:
    """Raise ValueError if a table comes to other counts or scores than the run, beyond what it rounds."""
    if counts is not None and (counts != run.confusion).any():
        raise ValueError("it counts other predictions than the run")
    for name in run.metrics.keys() & scores.keys():
        if not math.isclose(run.metrics[name].value, scores[name], rel_tol=1e-6, abs_tol=1e-5):
            raise ValueError(f"its {name} is {scores[name]:.6g}, and that of the run another one")


#: Reads what a run of each task said of the held-out samples.
READERS: dict[str, Callable[[Run], Outcome]] = {
    "classification": read_predictions,
    "multilabel": read_outputs,
    "regression": read_outputs,
    "segmentation": read_images,
}


def groups_of(run: Run, ids: Sequence[str]) -> tuple[str, ...]:
    """Return the group of each sample, "" of those that the run did not hold out; nothing if its split had none."""
    if not run.n_groups:
        return ()
    with _table(run, GROUPS, run.n_test) as (_, rows):
        group = {row[0]: row[1] for row in rows}
        return tuple(group.get(name, "") for name in ids)


def _read_groups(run: Run, ids: Sequence[str]) -> tuple[str, ...]:
    """Read the group of each held-out sample; empty if the run has none."""
    if GROUPS not in run.files:
        return ()
    with _table(run, GROUPS, len(ids)) as (_, rows):
        group = {row[0]: row[1] for row in rows}
        return tuple(group[name] for name in ids)


def _read_pixels(run: Run, ids: Sequence[str]) -> NDArray[np.int64] | None:
    """Read the counts of pixels, (n, K, 3), of the held-out images; None if the run is older than their table."""
    if PIXELS not in run.files:
        return None
    places = (
        {name: i for i, name in enumerate(ids)},
        {name: i for i, name in enumerate(run.classes)},
    )
    counts = np.zeros((len(ids), len(run.classes), 3), dtype=np.int64)
    with _table(run, PIXELS) as (_, rows):
        for name, label, *values in rows:
            counts[places[0][name], places[1][label]] = [int(value) for value in values]
    return counts


def read_curves(run: Run) -> dict[str, list[float]]:
    """Read what was seen in training: the columns that are numbers, such as `epoch` and `validation_loss`.

    Raises InputError if the table is damaged.
    """
    curves = {}
    with _table(run, CURVES) as (names, rows):
        for name, column in zip(names, zip(*rows, strict=True), strict=False):
            try:
                curves[name] = [float(value) for value in column]
            except ValueError:
                continue  # such as the scaling that a candidate was tried with
    return curves


@contextmanager
def _table(
    run: Run, name: str, n: int | None = None
) -> Iterator[tuple[list[str], list[list[str]]]]:
    """Read the header and the rows of a table; what is wrong with them in the block is an InputError."""
    with _named(run, name):
        with inside(run.path, name).open(encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file)
        if len(rows) != (len(rows) if n is None else n):
            raise ValueError(f"expected {n} rows, got {len(rows)}")
        yield header, rows


@contextmanager
def _named(run: Run, name: str) -> Iterator[None]:
    """Report what is wrong with a table, within a `with` block."""
    try:
        yield
    except (OSError, LookupError, ValueError, OverflowError, csv.Error) as error:
        raise InputError(f"{run.path / name} is damaged: {error}") from error
