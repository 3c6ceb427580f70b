"""Pictures: samples of the dataset, true and predicted masks, images that were mistaken for another class.

Models are compared on the same held-out images of one split and seed; see `Comparison.together`. The floor, which
does not look at places, is left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from samtl.datasets import Dataset
from samtl.experiment.held_out import FLOOR
from samtl.experiment.run import Run
from samtl.experiment.tables import read_images, read_predictions
from samtl.images.transforms import IGNORE
from samtl.metrics import classification
from samtl.metrics.paired import ImageScores
from samtl.report.compare import Comparison, Series, share_of, untrained
from samtl.report.figures.single_images import without_foreground
from samtl.report.page import Part, caption
from samtl.report.pictures.album import SIDE, Album
from samtl.report.pictures.sheet import (
    Picture,
    Row,
    judged,
    mapped,
    of_classes,
    of_errors,
    sheet,
)
from samtl.report.style import shortened

TITLES = {"unet": "UNet", "vit": "SAM-ViT", "conv": "SAM-CONV"}  # of mask panels, in their order

_SAMPLES = 8
_ACROSS = 4  # pictures in a row if each has text
_CLASSES = 20  # rows that are readable
_MODELS = 4
_PAIRS = 3


def samples(album: Album, seed: int = 0) -> list[Part]:
    """Show eight images of each class, or eight images with their masks, chosen at random."""
    if album.dataset is None:
        return []
    order = np.random.default_rng(seed).permutation(len(album.dataset)).tolist()
    draw = _by_class if album.dataset.read_mask is None else _with_masks
    return draw(album.dataset, album, order)


def _by_class(dataset: Dataset, album: Album, order: Sequence[int]) -> list[Part]:
    rows = []
    for name, some in _rows_of(dataset, order):
        found = album.some((dataset.sample_ids[i] for i in some), _SAMPLES, SIDE // 2)
        pictures = [Picture(pixels, "", {"class": name, "sample_id": i}) for i, pixels in found]
        rows.append(Row(name, pictures))
    facts = {"dataset": dataset, "shown": len(rows), "most": _SAMPLES}
    return drawn("samples", "Samples of the dataset", rows, _SAMPLES, facts)


def _rows_of(dataset: Dataset, order: Sequence[int]) -> list[tuple[str, list[int]]]:
    """Choose the images of each class, or those with the lowest, middle and highest numbers."""
    labels = dataset.truth
    if dataset.task == "regression":
        known = [i for i in np.argsort(labels, kind="stable").tolist() if not np.isnan(labels[i])]
        middle = max(0, len(known) // 2 - _SAMPLES // 2)
        return [
            (f"lowest {dataset.classes[0]}", known[:_SAMPLES]),
            ("middle", known[middle : middle + _SAMPLES]),
            ("highest", known[-_SAMPLES:]),
        ]
    of = labels.T == 1 if dataset.task == "multilabel" else [labels == k for k in range(_CLASSES)]
    names = dataset.classes[:_CLASSES]
    return [(name, [i for i in order if mine[i]]) for name, mine in zip(names, of, strict=False)]


def _with_masks(dataset: Dataset, album: Album, order: Sequence[int]) -> list[Part]:
    """Draw images of as many scenes as possible, each above itself under its mask."""
    groups = dataset.groups or dataset.sample_ids
    first = {groups[i]: i for i in reversed(order)}  # one image of each scene
    photographs, masks = [], []
    what = dataset.classes[1] if len(dataset.classes) == 2 else "not background"
    for i in dict.fromkeys([*first.values(), *order]):
        name = dataset.sample_ids[i]
        pixels = album.photograph(name)
        mask = None if pixels is None else album.truth(name, pixels.shape[:2])
        if pixels is None or mask is None:
            continue
        known = mask != IGNORE
        part = float(classification.ratio(((mask > 0) & known).sum(), known.sum()))
        record = {"sample_id": name, "part that is not background": part}
        tinted = mapped(pixels, mask, dataset.classes)
        photographs.append(Picture(pixels))
        masks.append(Picture(tinted, f"{100 * part:.0f} % {what}", record))
        if len(masks) == _SAMPLES:
            break
    pairs = zip(_in_rows(photographs), _in_rows(masks), strict=True)
    rows = [row for pair in pairs for row in pair]
    facts = {"dataset": dataset, "shown": len(masks), "most": 0}
    legend = album.legend(of_classes(dataset.classes))
    return drawn("samples", "Samples of the dataset", rows, _ACROSS, facts, legend=legend)


def panels(comparison: Comparison, album: Album) -> list[Part]:
    """Show the best, the median and the worst held-out image: photograph, truth, and the mask of each model.

    Images are ranked by the models' mean IoU, then by accuracy. Without the dataset the predicted masks are shown
    alone. For classifications there is nothing to show.
    """
    runs = _without_floor(comparison)
    if comparison.task != "segmentation" or not runs:
        return []
    order = [*TITLES, *(run.name for run in runs.values())]
    models = sorted(runs, key=lambda model: order.index(runs[model].name))
    shown = {model: runs[model] for model in models[:_MODELS]}
    images = [read_images(run) for run in shown.values()]
    ids = sorted(images[0].ids)  # those of the others, too, as all are on one split
    iou, dice, accuracy = (
        np.array([of.scores[name][np.argsort(of.ids)] for of in images])
        for name in ("iou", "dice", "accuracy")
    )
    empty = without_foreground(images[0])[np.argsort(images[0].ids)]
    if not empty.all():  # an image with nothing to find is no example of a model that finds it
        ids = [name for name, none in zip(ids, empty.tolist(), strict=True) if not none]
        iou, dice, accuracy = (values[:, ~empty] for values in (iou, dice, accuracy))
    ranked = np.lexsort((-accuracy.mean(axis=0), -iou.mean(axis=0))).tolist()
    places = {"Best": ranked[0], "Median": ranked[(len(ids) - 1) // 2], "Worst": ranked[-1]}
    if len(ids) < 3:
        del places["Median"]
    rows = []
    for place, i in list(places.items())[: len(ids)]:
        label = f"{place}: {shortened(ids[i], 40)}, mean IoU {100 * iou[:, i].mean():.0f} %"
        records = [
            {"rank": place, "sample_id": ids[i], "model": _title(*item)}
            | {"IoU, %": 100 * float(a), "Dice, %": 100 * float(b)}
            for item, a, b in zip(shown.items(), iou[:, i], dice[:, i], strict=True)
        ]
        rows.append(Row(label, _panel(album, images, records, comparison.classes)))
    columns = [] if album.dataset is None else ["photograph", "truth"]
    for model, run in shown.items():
        lines = (TITLES.get(run.name), model, "untrained" * run.untrained)
        columns.append("\n".join(filter(None, lines)))
    titles = [_title(model, runs[model]) for model in models]
    facts = {"shown": titles[:_MODELS], "hidden": titles[_MODELS:], "count": len(ids)}
    facts |= {"dataset": album.dataset, "empty": 0 if empty.all() else int(empty.sum())}
    colours = of_classes if album.dataset is None else of_errors
    look: dict[str, Any] = {"columns": columns, "legend": album.legend(colours(comparison.classes))}
    title = "Best, median and worst held-out image"
    return drawn("panels", title, rows, len(columns), facts, shown, **look)


def _panel(
    album: Album,
    images: Sequence[ImageScores],
    records: Sequence[dict[str, Any]],
    classes: Sequence[str],
) -> list[Picture]:
    """Return photograph and truth, if there is a dataset, and each model's mask at its own resolution."""
    sample_id = records[0]["sample_id"]
    before = [Picture(album.photograph(sample_id)), Picture(None)]
    masks = []
    for of, record in zip(images, records, strict=True):
        guess, truth = album.masks(of, sample_id, len(classes))
        ground = None if truth is None else album.photograph(sample_id, max(truth.shape))
        if guess is None:
            shown = None
        elif truth is None or ground is None or ground.shape[:2] != truth.shape:
            shown = mapped(None, guess, classes)
        else:
            before = [Picture(ground), Picture(mapped(ground, truth, classes))]
            shown = judged(ground, truth, guess)
        under = "IoU {IoU, %:.0f} %\nDice {Dice, %:.0f} %".format(**record)
        masks.append(Picture(shown, under, record))
    return masks if album.dataset is None else [*before, *masks]


def confused(comparison: Comparison, album: Album) -> list[Part]:
    """Show images of the pairs of classes that the best head and the best baseline confuse most often.

    For segmentations there is nothing to show.
    """
    if comparison.task != "classification" or album.dataset is None:
        return []
    found = []
    for one in comparison.leading:
        if not one.is_floor:
            found += _mistakes(comparison, one, album)
    return found


def _mistakes(comparison: Comparison, one: Series, album: Album) -> list[Part]:
    """Draw the pairs of classes that the first run of a model confuses; nothing if it confuses none."""
    model, run, metric = one.model, one.runs[0], comparison.metric
    said, classes = read_predictions(run), run.classes
    matrix = classification.confusion(said.truth, said.guess, len(classes))
    errors = matrix - np.diag(np.diag(matrix))
    random = np.random.default_rng(0)
    rows = []
    for flat in np.argsort(-errors, axis=None, kind="stable")[:_PAIRS].tolist():
        true, guess = divmod(flat, len(classes))
        count, of = int(errors[true, guess]), int(matrix[true].sum())
        if not count:
            break
        where = np.flatnonzero((said.truth == true) & (said.guess == guess))
        found = album.some((said.ids[i] for i in random.permutation(where)), _ACROSS)
        pair = {"truth": classes[true], "predicted": classes[guess], "images": count, "of": of}
        pictures = [
            Picture(pixels, PurePosixPath(name).stem, {**pair, "sample_id": name})
            for name, pixels in found
        ]
        label = f"{classes[true]} taken for {classes[guess]}: {count} of {of}"
        rows.append(Row(label, pictures))
    score = f"{metric.title} {metric.written(one.spread(metric.name).mean)} {metric.unit}"
    facts = {"model": _title(model, run), "score": score, "most": _ACROSS}
    title = f"Pairs of classes that {_title(model, run)} confuses most"
    return drawn(f"confused-{run.kind}", title, rows, _ACROSS, facts, {model: run})


def hardest(comparison: Comparison, album: Album) -> list[Part]:
    """Show held-out images that all models mistake for another class, first those on which most models agree.

    With a single model, and for segmentations, there is nothing to show.
    """
    runs, classes = _without_floor(comparison), comparison.classes
    if comparison.task != "classification" or len(runs) < 2 or album.dataset is None:
        return []
    found = [read_predictions(run) for run in runs.values()]
    guesses = [dict(zip(one.ids, one.guess.tolist(), strict=True)) for one in found]
    truth = dict(zip(found[0].ids, found[0].truth.tolist(), strict=True))
    wrong = {
        sample_id: Counter(of[sample_id] for of in guesses).most_common(1)[0]
        for sample_id, label in truth.items()
        if all(of.get(sample_id, label) != label for of in guesses)
    }
    order = np.random.default_rng(0).permutation(sorted(wrong)).tolist()
    order.sort(key=lambda sample_id: -wrong[sample_id][1])
    pictures = []
    for sample_id, pixels in album.some(order, 2 * _ACROSS):
        guess, times = wrong[sample_id]
        names = {"truth": classes[truth[sample_id]], "predicted by most": classes[guess]}
        record = {"sample_id": sample_id, **names, "times": times, "models": len(runs)}
        under = f"\n{times} of {len(runs)} say\n".join(names.values())
        pictures.append(Picture(pixels, under, record))
    facts = {"models": runs, "shown": len(pictures), "count": len(wrong)}
    title = "Images that no model recognises"
    return drawn("hardest", title, _in_rows(pictures), _ACROSS, facts, runs)


def drawn(
    name: str,
    title: str,
    rows: Sequence[Row],
    across: int,
    facts: Mapping[str, Any],
    runs: Mapping[str, Run] | None = None,
    note: str = "",
    **look: Any,
) -> list[Part]:
    """Draw a sheet, with the records of its pictures as a table and `facts` in the caption; nothing without pictures.

    `runs` are of one split and seed; `note` says what is untrained beside their models.
    """
    records = [picture.record for row in rows for picture in row.pictures if picture.record]
    if not records:
        return []
    if runs:
        run = next(iter(runs.values()))
        facts = {**facts, "run": run, "share": share_of(run)}
    note = note or untrained((runs or {}).items())
    figure = sheet(rows, across, note=note, **look)
    text = caption(name.partition("-")[0], **facts)
    return [Part(name, title, text, records, note, figure, picture=True)]


def _without_floor(comparison: Comparison) -> dict[str, Run]:
    return {m: run for m, run in comparison.together.items() if run.name != FLOOR}


def _title(model: str, run: Run) -> str:
    return f"{model}{' (untrained)' * run.untrained}"


def _in_rows(pictures: Sequence[Picture]) -> list[Row]:
    return [Row("", pictures[i : i + _ACROSS]) for i in range(0, len(pictures), _ACROSS)]
