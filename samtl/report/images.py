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
from samtl.report.album import FINE, Album, Pixels
from samtl.report.compare import Comparison, share_of
from samtl.report.content import Drawing
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
from samtl.report.words import FLOOR, listed, sentences, untrained, untrained_words

TITLES = {"unet": "UNet", "vit": "SAM-ViT", "conv": "SAM-CONV"}  # of mask panels, in their order

_SAMPLES = 8
_ACROSS = 4  # pictures in a row if each has text
_CLASSES = 20  # rows that are readable
_MODELS = 4
_PAIRS = 3


def samples(album: Album, seed: int = 0) -> list[Drawing]:
    """Show eight images of each class, or eight images with their masks, chosen at random."""
    if album.dataset is None:
        return []
    order = np.random.default_rng(seed).permutation(len(album.dataset)).tolist()
    drawn = _by_class if album.dataset.read_mask is None else _with_masks
    return drawn(album.dataset, album, order)


def panels(comparison: Comparison, album: Album) -> list[Drawing]:
    """Show the best, the median and the worst held-out image: photograph, truth, and the mask of each model.

    Images are ranked by the models' mean IoU, then by accuracy. Without the dataset the predicted masks are shown
    alone. For classifications there is nothing to show.
    """
    order = [*TITLES]
    runs = sorted(
        _without_floor(comparison).items(),
        key=lambda item: order.index(item[1].name) if item[1].name in order else len(order),
    )
    if comparison.task != "segmentation" or not runs:
        return []
    shown, rest = dict(runs[:_MODELS]), dict(runs[_MODELS:])
    images = {model: read_images(run) for model, run in shown.items()}
    scores = {
        name: {model: _by_id(of.ids, of.scores[name]) for model, of in images.items()}
        for name in ("iou", "dice", "accuracy")
    }

    def mean(sample_id: str, name: str) -> float:
        return float(np.mean([scores[name][model][sample_id] for model in shown]))

    ids = set.intersection(*(set(of.ids) for of in images.values()))
    ranked = sorted(ids, key=lambda i: (-mean(i, "iou"), -mean(i, "accuracy"), i))
    last = len(ranked) - 1
    places = (
        {last: "Worst", last // 2: "Median", 0: "Best"} if last > 1 else {last: "Worst", 0: "Best"}
    )
    rows, table = [], []
    for i, place in sorted(places.items()):
        figures = {m: (scores["iou"][m][ranked[i]], scores["dice"][m][ranked[i]]) for m in shown}
        label = f"{place}: {shortened(ranked[i], 40)}, mean IoU {mean(ranked[i], 'iou'):.2f}"
        rows.append(Row(label, _panel(album, images, figures, ranked[i], comparison.classes)))
        table += [(place, ranked[i], _title(m, shown[m]), *pair) for m, pair in figures.items()]
    columns = [] if album.dataset is None else ["photograph", "truth"]
    columns += [
        "\n".join(filter(None, (TITLES.get(run.name), model, "untrained" * run.untrained)))
        for model, run in shown.items()
    ]
    colours = of_classes if album.dataset is None else of_errors
    return [
        Drawing(
            name="panels",
            title="Best, median and worst held-out image",
            caption=sentences(
                f"held-out images ranked by the mean IoU of {_titles(shown)}, then by accuracy: the best, the median "
                f"and the worst of {len(ranked)}.",
                _conditions(shown),
                "Photographs and truth are missing: predicted classes on black."
                * (album.dataset is None),
                f"Not shown: {_titles(rest)}." if rest else "",
            ),
            header=("rank", "sample_id", "model", "iou", "dice"),
            rows=tuple(table),
            figure=sheet(rows, len(columns), columns, album.legend(colours(comparison.classes))),
            picture=True,
        )
    ]


def _panel(
    album: Album,
    images: Mapping[str, ImageScores],
    figures: Mapping[str, tuple[float, float]],
    sample_id: str,
    classes: Sequence[str],
) -> list[Picture]:
    """Return photograph and truth, if there is a dataset, and each model's mask at its own resolution."""
    before = [Picture(album.photograph(sample_id)), Picture(None)]
    masks = []
    for model, of in images.items():
        text = "IoU {:.2f}\nDice {:.2f}".format(*figures[model])
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
    runs, drawings = _without_floor(comparison), []
    for kind in ("head", "baseline"):
        of_kind = {model: run for model, run in runs.items() if run.kind == kind}
        if of_kind:
            best = max(of_kind, key=lambda model: runs[model].metrics["accuracy"].value)
            drawings += _mistakes(best, runs[best], album)
    return drawings


def _mistakes(model: str, run: Run, album: Album) -> list[Drawing]:
    """Draw the pairs of classes that one model confuses; nothing if it confuses none."""
    said, classes = read_predictions(run), run.classes
    matrix = classification.confusion(said.truth, said.guess, len(classes))
    errors = matrix - np.diag(np.diag(matrix))
    random = np.random.default_rng(0)
    rows, table = [], []
    for flat in np.argsort(-errors, axis=None, kind="stable")[:_PAIRS].tolist():
        true, guess = divmod(flat, len(classes))
        if not errors[true, guess]:
            break
        count = (int(errors[true, guess]), int(matrix[true].sum()))
        where = np.flatnonzero((said.truth == true) & (said.guess == guess))
        found = album.some((said.ids[i] for i in random.permutation(where)), _ACROSS)
        label = f"{classes[true]} taken for {classes[guess]}: {count[0]} of {count[1]}"
        rows.append(
            Row(label, [Picture(pixels, PurePosixPath(name).stem) for name, pixels in found])
        )
        table += [(classes[true], classes[guess], *count, name) for name, _ in found]
    if not table:
        return []
    score = run.metrics["accuracy"]
    return [
        Drawing(
            name=f"confused-{run.kind}",
            title=f"Pairs of classes that {_title(model, run)} confuses most",
            caption=sentences(
                f"the best {run.kind}, {_title(model, run)}, accuracy {score.value:.3f} [{score.low:.3f}, "
                f"{score.high:.3f}]: up to {_ACROSS} images, chosen at random, of each of the most frequent "
                "confusions.",
                _conditions({model: run}),
            ),
            header=("truth", "predicted", "images", "of", "sample_id"),
            rows=tuple(table),
            figure=sheet(rows, _ACROSS, note=untrained([(model, run)])),
            picture=True,
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
    truth = _by_id(found[0].ids, found[0].truth)
    guesses = [_by_id(one.ids, one.guess) for one in found]
    wrong = {
        sample_id: Counter(of[sample_id] for of in guesses).most_common(1)[0]
        for sample_id, label in truth.items()
        if all(of.get(sample_id, label) != label for of in guesses)
    }
    order = np.random.default_rng(0).permutation(sorted(wrong)).tolist()
    order.sort(key=lambda sample_id: -wrong[sample_id][1])
    pictures, table = [], []
    for sample_id, pixels in album.some(order, 2 * _ACROSS):
        other, times = wrong[sample_id]
        true, guess = classes[truth[sample_id]], classes[other]
        pictures.append(Picture(pixels, f"{true}\n{times} of {len(runs)} say\n{guess}"))
        table.append((sample_id, true, guess, times, len(runs)))
    if not pictures:
        return []
    return [
        Drawing(
            name="hardest",
            title="Images that no model recognises",
            caption=sentences(
                f"{len(pictures)} of the {len(wrong)} held-out images that {listed(runs)} all mistake for another "
                "class, first those on which most of them agree: then the label may be wrong. Beneath: the label, and "
                "what most models say.",
                _conditions(runs),
            ),
            header=("sample_id", "truth", "predicted by most", "times", "models"),
            rows=tuple(table),
            figure=sheet(_in_rows(pictures), _ACROSS, note=untrained(runs.items())),
            picture=True,
        )
    ]


def _by_class(dataset: Dataset, album: Album, order: Sequence[int]) -> list[Drawing]:
    rows, table = [], []
    names = dataset.classes[:_CLASSES]
    for label, name in enumerate(names):
        ids = (dataset.sample_ids[i] for i in order if dataset.labels[i] == label)
        found = album.some(ids, _SAMPLES)
        rows.append(Row(name, [Picture(pixels) for _, pixels in found]))
        table += [(name, sample_id) for sample_id, _ in found]
    some = "" if len(names) == len(dataset.classes) else f"the first {len(names)} of "
    drawing = Drawing(
        name="samples",
        title="Samples of the dataset",
        caption=f"{dataset.name}: up to {_SAMPLES} images, chosen at random, of each of {some}"
        f"{len(dataset.classes)} classes. {dataset.note}".strip(),
        header=("class", "sample_id"),
        rows=tuple(table),
        figure=sheet(rows, _SAMPLES),
        picture=True,
    )
    return [drawing]


def _with_masks(dataset: Dataset, album: Album, order: Sequence[int]) -> list[Drawing]:
    """Draw images of as many scenes as possible, each above itself under its mask."""
    turn: Counter[str] = Counter()
    keyed: list[tuple[int, int, str]] = []
    for i in order:
        scene = dataset.groups[i] if dataset.groups else ""
        keyed.append((turn[scene], len(keyed), dataset.sample_ids[i]))
        turn[scene] += 1
    photographs, masks, table = [], [], []
    what = dataset.classes[1] if len(dataset.classes) == 2 else "not background"
    for _, _, sample_id in sorted(keyed):
        pixels = album.photograph(sample_id, FINE)
        mask = None if pixels is None else album.truth(sample_id, pixels.shape[:2])
        if pixels is None or mask is None:
            continue
        part = _part(mask)
        photographs.append(Picture(pixels))
        masks.append(Picture(mapped(pixels, mask, dataset.classes), f"{100 * part:.0f} % {what}"))
        table.append((sample_id, part))
        if len(masks) == _SAMPLES:
            break
    if not masks:
        return []
    pairs = zip(_in_rows(photographs), _in_rows(masks), strict=True)
    drawing = Drawing(
        name="samples",
        title="Samples of the dataset",
        caption=f"{dataset.name}: {len(masks)} images, chosen at random"
        f"{' from different scenes' * bool(dataset.groups)}, each above its true mask. {dataset.note}".strip(),
        header=("sample_id", "part that is not background"),
        rows=tuple(table),
        figure=sheet(
            [row for pair in pairs for row in pair],
            _ACROSS,
            legend=album.legend(of_classes(dataset.classes)),
        ),
        picture=True,
    )
    return [drawing]


def _without_floor(comparison: Comparison) -> dict[str, Run]:
    return {m: run for m, run in comparison.together().items() if run.name != FLOOR}


def _by_id(ids: Sequence[str], values: NDArray[Any]) -> dict[str, Any]:
    return dict(zip(ids, values.tolist(), strict=True))


def _title(model: str, run: Run) -> str:
    return f"{model}{' (untrained)' * run.untrained}"


def _titles(runs: Mapping[str, Run]) -> str:
    return listed(_title(model, run) for model, run in runs.items())


def _conditions(runs: Mapping[str, Run]) -> str:
    """Describe the split and seed, and name untrained weights."""
    first = next(iter(runs.values()))
    return sentences(
        f"split {first.split.name} {first.split.digest[:8]}, seed {first.seed}, {first.n_test:,} images held out, "
        f"trained on {100 * share_of(first):.3g} % of the samples.",
        untrained_words(runs.items()),
    )


def _part(mask: Pixels) -> float:
    """Return the share of a mask's known pixels that is not background."""
    known = mask != IGNORE
    return float(classification.ratio(((mask > 0) & known).sum(), known.sum()))


def _in_rows(pictures: Sequence[Picture]) -> list[Row]:
    return [Row("", pictures[i : i + _ACROSS]) for i in range(0, len(pictures), _ACROSS)]
