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
from numpy.typing import NDArray

from samtl.datasets import Dataset
from samtl.experiment.run import Run
from samtl.experiment.tables import ImageScores, read_images, read_predictions
from samtl.images.transforms import IGNORE
from samtl.metrics import classification
from samtl.report.album import FINE, Album
from samtl.report.compare import FLOOR, Comparison, share_of, untrained
from samtl.report.figures.sheet import (
    Picture,
    Row,
    judged,
    mapped,
    of_classes,
    of_errors,
    sheet,
    shortened,
)
from samtl.report.parts import Drawing, Value, caption

TITLES = {"unet": "UNet", "vit": "SAM-ViT", "conv": "SAM-CONV"}  # of mask panels, in their order

_SAMPLES = 8
_ACROSS = 4  # pictures in a row if each has text
_CLASSES = 20  # rows that are readable
_MODELS = 4
_PAIRS = 3

Rows = list[dict[str, Value]]


def samples(album: Album, seed: int = 0) -> list[Drawing]:
    """Show eight images of each class, or eight images with their masks, chosen at random."""
    if album.dataset is None:
        return []
    order = np.random.default_rng(seed).permutation(len(album.dataset)).tolist()
    draw = _by_class if album.dataset.read_mask is None else _with_masks
    return draw(album.dataset, album, order)


def _by_class(dataset: Dataset, album: Album, order: Sequence[int]) -> list[Drawing]:
    rows, table = [], Rows()
    names = dataset.classes[:_CLASSES]
    for label, name in enumerate(names):
        ids = (dataset.sample_ids[i] for i in order if dataset.labels[i] == label)
        found = album.some(ids, _SAMPLES)
        rows.append(Row(name, [Picture(pixels) for _, pixels in found]))
        table += [{"class": name, "sample_id": sample_id} for sample_id, _ in found]
    facts = {"shown": len(names), "classes": len(dataset.classes), "most": _SAMPLES}
    return [
        Drawing(
            name="samples",
            title="Samples of the dataset",
            caption=caption("samples", dataset=dataset, **facts),
            rows=table,
            figure=sheet(rows, _SAMPLES),
            picture=True,
        )
    ]


def _with_masks(dataset: Dataset, album: Album, order: Sequence[int]) -> list[Drawing]:
    """Draw images of as many scenes as possible, each above itself under its mask."""
    taken: Counter[str] = Counter()
    turns: dict[int, int] = {}
    for i in order:
        scene = dataset.groups[i] if dataset.groups else ""
        turns[i] = taken[scene]
        taken[scene] += 1
    photographs, masks, table = [], [], Rows()
    what = dataset.classes[1] if len(dataset.classes) == 2 else "not background"
    for i in sorted(order, key=turns.__getitem__):
        pixels = album.photograph(dataset.sample_ids[i], FINE)
        mask = None if pixels is None else album.truth(dataset.sample_ids[i], pixels.shape[:2])
        if pixels is None or mask is None:
            continue
        known = mask != IGNORE
        part = float(classification.ratio(((mask > 0) & known).sum(), known.sum()))
        photographs.append(Picture(pixels))
        masks.append(Picture(mapped(pixels, mask, dataset.classes), f"{100 * part:.0f} % {what}"))
        table.append({"sample_id": dataset.sample_ids[i], "part that is not background": part})
        if len(masks) == _SAMPLES:
            break
    if not masks:
        return []
    pairs = zip(_in_rows(photographs), _in_rows(masks), strict=True)
    legend = album.legend(of_classes(dataset.classes))
    return [
        Drawing(
            name="samples",
            title="Samples of the dataset",
            caption=caption("samples_with_masks", dataset=dataset, shown=len(masks)),
            rows=table,
            figure=sheet([row for pair in pairs for row in pair], _ACROSS, legend=legend),
            picture=True,
        )
    ]


def panels(comparison: Comparison, album: Album) -> list[Drawing]:
    """Show the best, the median and the worst held-out image: photograph, truth, and the mask of each model.

    Images are ranked by the models' mean IoU, then by accuracy. Without the dataset the predicted masks are shown
    alone. For classifications there is nothing to show.
    """
    runs = _without_floor(comparison)
    if comparison.task != "segmentation" or not runs:
        return []
    order = [*TITLES, *(run.name for run in runs.values())]
    models = sorted(runs, key=lambda model: order.index(runs[model].name))
    shown, hidden = {model: runs[model] for model in models[:_MODELS]}, models[_MODELS:]
    images = {model: read_images(run) for model, run in shown.items()}
    iou, dice, accuracy = (
        {model: _by_id(of.ids, of.scores[name]) for model, of in images.items()}
        for name in ("iou", "dice", "accuracy")
    )

    def mean(of: Mapping[str, Mapping[str, float]], sample_id: str) -> float:
        return float(np.mean([of[model][sample_id] for model in shown]))

    ids = set.intersection(*(set(of.ids) for of in images.values()))
    ranked = sorted(ids, key=lambda i: (-mean(iou, i), -mean(accuracy, i), i))
    places = {"Best": 0, "Median": (len(ranked) - 1) // 2, "Worst": len(ranked) - 1}
    if len(ranked) < 3:
        del places["Median"]
    rows, table = [], Rows()
    for place, i in list(places.items())[: len(ranked)]:
        sample_id = ranked[i]
        label = f"{place}: {shortened(sample_id, 40)}, mean IoU {mean(iou, sample_id):.2f}"
        figures = {m: {"iou": iou[m][sample_id], "dice": dice[m][sample_id]} for m in shown}
        rows.append(Row(label, _panel(album, images, figures, sample_id, comparison.classes)))
        table += [
            {"rank": place, "sample_id": sample_id, "model": _title(m, shown[m]), **figures[m]}
            for m in shown
        ]
    columns = [] if album.dataset is None else ["photograph", "truth"]
    for model, run in shown.items():
        lines = (TITLES.get(run.name), model, "untrained" * run.untrained)
        columns.append("\n".join(filter(None, lines)))
    colours = of_classes if album.dataset is None else of_errors
    return [
        Drawing(
            name="panels",
            title="Best, median and worst held-out image",
            caption=caption(
                "panels",
                **_conditions(shown),
                shown=[_title(model, run) for model, run in shown.items()],
                hidden=[_title(model, runs[model]) for model in hidden],
                count=len(ranked),
                dataset=album.dataset,
            ),
            rows=table,
            figure=sheet(rows, len(columns), columns, album.legend(colours(comparison.classes))),
            picture=True,
            note=untrained(shown.items()),
        )
    ]


def _panel(
    album: Album,
    images: Mapping[str, ImageScores],
    figures: Mapping[str, Mapping[str, float]],
    sample_id: str,
    classes: Sequence[str],
) -> list[Picture]:
    """Return photograph and truth, if there is a dataset, and each model's mask at its own resolution."""
    before = [Picture(album.photograph(sample_id)), Picture(None)]
    masks = []
    for model, of in images.items():
        text = "IoU {iou:.2f}\nDice {dice:.2f}".format(**figures[model])
        guess, truth = album.masks(of, sample_id, len(classes))
        ground = None if truth is None else album.photograph(sample_id, max(truth.shape))
        if guess is None:
            masks.append(Picture(None, text))
        elif truth is None or ground is None or ground.shape[:2] != truth.shape:
            masks.append(Picture(mapped(None, guess, classes), text))
        else:
            before = [Picture(ground), Picture(mapped(ground, truth, classes))]
            masks.append(Picture(judged(ground, truth, guess), text))
    return masks if album.dataset is None else [*before, *masks]


def confused(comparison: Comparison, album: Album) -> list[Drawing]:
    """Show images of the pairs of classes that the best head and the best baseline confuse most often.

    For segmentations there is nothing to show.
    """
    if comparison.task != "classification" or album.dataset is None:
        return []
    runs, best = _without_floor(comparison), {}
    for model in sorted(runs, key=lambda model: runs[model].metrics["accuracy"].value):
        best[runs[model].kind] = model
    kinds = [kind for kind in ("head", "baseline") if kind in best]
    return [one for kind in kinds for one in _mistakes(best[kind], runs[best[kind]], album)]


def _mistakes(model: str, run: Run, album: Album) -> list[Drawing]:
    """Draw the pairs of classes that one model confuses; nothing if it confuses none."""
    said, classes = read_predictions(run), run.classes
    matrix = classification.confusion(said.truth, said.guess, len(classes))
    errors = matrix - np.diag(np.diag(matrix))
    random = np.random.default_rng(0)
    rows, table = [], Rows()
    for flat in np.argsort(-errors, axis=None, kind="stable")[:_PAIRS].tolist():
        true, guess = divmod(flat, len(classes))
        count, of = int(errors[true, guess]), int(matrix[true].sum())
        if not count:
            break
        where = np.flatnonzero((said.truth == true) & (said.guess == guess))
        found = album.some((said.ids[i] for i in random.permutation(where)), _ACROSS)
        pictures = [Picture(pixels, PurePosixPath(name).stem) for name, pixels in found]
        label = f"{classes[true]} taken for {classes[guess]}: {count} of {of}"
        rows.append(Row(label, pictures))
        pair = {"truth": classes[true], "predicted": classes[guess], "images": count, "of": of}
        table += [{**pair, "sample_id": name} for name, _ in found]
    if not table:
        return []
    title, note = _title(model, run), untrained([(model, run)])
    facts = {"model": title, "score": run.metrics["accuracy"], "most": _ACROSS}
    return [
        Drawing(
            name=f"confused-{run.kind}",
            title=f"Pairs of classes that {title} confuses most",
            caption=caption("confused", **_conditions({model: run}), **facts),
            rows=table,
            figure=sheet(rows, _ACROSS, note=note),
            picture=True,
            note=note,
        )
    ]


def hardest(comparison: Comparison, album: Album) -> list[Drawing]:
    """Show held-out images that all models mistake for another class, first those on which most models agree.

    With a single model, and for segmentations, there is nothing to show.
    """
    runs, classes = _without_floor(comparison), comparison.classes
    if comparison.task != "classification" or len(runs) < 2 or album.dataset is None:
        return []
    found = [read_predictions(run) for run in runs.values()]
    guesses = [_by_id(one.ids, one.guess) for one in found]
    truth = _by_id(found[0].ids, found[0].truth)
    wrong = {
        sample_id: Counter(of[sample_id] for of in guesses).most_common(1)[0]
        for sample_id, label in truth.items()
        if all(of.get(sample_id, label) != label for of in guesses)
    }
    order = np.random.default_rng(0).permutation(sorted(wrong)).tolist()
    order.sort(key=lambda sample_id: -wrong[sample_id][1])
    pictures, table = [], Rows()
    for sample_id, pixels in album.some(order, 2 * _ACROSS):
        other, times = wrong[sample_id]
        true, guess = classes[truth[sample_id]], classes[other]
        pictures.append(Picture(pixels, f"{true}\n{times} of {len(runs)} say\n{guess}"))
        said = {"predicted by most": guess, "times": times, "models": len(runs)}
        table.append({"sample_id": sample_id, "truth": true, **said})
    if not pictures:
        return []
    facts = {"models": runs, "shown": len(pictures), "count": len(wrong)}
    note = untrained(runs.items())
    return [
        Drawing(
            name="hardest",
            title="Images that no model recognises",
            caption=caption("hardest", **_conditions(runs), **facts),
            rows=table,
            figure=sheet(_in_rows(pictures), _ACROSS, note=note),
            picture=True,
            note=note,
        )
    ]


def _without_floor(comparison: Comparison) -> dict[str, Run]:
    return {m: run for m, run in comparison.together.items() if run.name != FLOOR}


def _by_id(ids: Sequence[str], values: NDArray[Any]) -> dict[str, Any]:
    return dict(zip(ids, values.tolist(), strict=True))


def _title(model: str, run: Run) -> str:
    return f"{model}{' (untrained)' * run.untrained}"


def _conditions(runs: Mapping[str, Run]) -> dict[str, Any]:
    """Return what captions say of the split and the seed."""
    first = next(iter(runs.values()))
    return {"run": first, "share": share_of(first)}


def _in_rows(pictures: Sequence[Picture]) -> list[Row]:
    return [Row("", pictures[i : i + _ACROSS]) for i in range(0, len(pictures), _ACROSS)]
