"""Pictures of a study: samples of the dataset, true and predicted masks, images taken for another class.

Models are compared on the same held-out images only: of the splits nearest to 80-20, on the one, and the seed, that
most of them ran on. The floor, which does not look at places, is left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from samtl.datasets import Dataset
from samtl.errors import InputError
from samtl.images.codecs import decode, decode_mask
from samtl.images.transforms import (
    IGNORE,
    mask_square,
    resize_longest_side,
    resized_shape,
)
from samtl.metrics import classification as metrics
from samtl.metrics import segmentation as pixel_metrics
from samtl.report.content import (
    Drawing,
    ImageScores,
    Predictions,
    Study,
    Table,
    Trial,
)
from samtl.report.figures.groups import (
    FLOOR,
    STANDARD_SHARE,
    at_share,
    listed,
    sentences,
    untrained,
    untrained_words,
)
from samtl.report.overlays import (
    UNCOUNTED,
    judged,
    mapped,
    of_classes,
    of_errors,
)
from samtl.report.sheet import (
    Cell,
    Row,
    sheet,
    shortened,
)

TITLES = {"unet": "UNet", "vit": "SAM-ViT", "conv": "SAM-CONV"}  # and their order

_SAMPLES = 8
_ACROSS = 4  # where something is said of each
_CLASSES = 20  # more rows than that are no figure
_MODELS = 4
_PAIRS = 3
_FINE = 1024  # pixels of the longest side: no picture shows more

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Pictures:
    """Drawings, and what is missing.

    Attributes
    ----------
    drawings : tuple of Drawing
    notes : tuple of str
        A sentence for each thing that could not be shown, and why.
    """

    drawings: tuple[Drawing, ...] = ()
    notes: tuple[str, ...] = ()


def samples(dataset: Dataset | None, seed: int = 0) -> Pictures:
    """Show what a dataset looks like: eight images of each class, or eight images with their masks.

    Parameters
    ----------
    dataset : Dataset or None
    seed : int
        Of the random choice.
    """
    if dataset is None:
        return Pictures(notes=(_unopened("Samples of the dataset"),))
    order = np.random.default_rng(seed).permutation(len(dataset)).tolist()
    album = _Album(dataset)
    masks = dataset.read_mask is not None
    drawn = (_with_masks if masks else _by_class)(dataset, album, order)
    return Pictures(() if drawn is None else (drawn,), album.notes("Samples of the dataset"))


def panels(study: Study, dataset: Dataset | None) -> Pictures:
    """Show the best, the median and the worst held-out image: photograph, truth, and the mask of each model.

    Images are ranked by the mean of the compared models' IoU, then of their accuracy. Without the dataset the
    predicted masks are shown alone.

    Parameters
    ----------
    study : Study
        Of segmentations; of others nothing is shown.
    dataset : Dataset or None
        The one that the study is of.
    """
    if study.task != "segmentation":
        return Pictures()
    missing = "Photographs and true masks beside the predicted ones"
    found = {trial: trial.images for trial in _together(study) if trial.images is not None}
    if not found:
        return Pictures(notes=("Predicted masks: no run of a model has any.",))
    shown, rest = list(found)[:_MODELS], list(found)[_MODELS:]
    images = [found[trial] for trial in shown]
    dataset, why = _own(study, dataset, missing)
    album = _Album(dataset)
    columns = [*(() if dataset is None else ("photograph", "truth")), *map(_column, shown)]
    figures = [_figures(of) for of in images]
    ranked = _ranked(figures)
    rows, table, said = [], [], []
    for place, sample_id in _places(ranked):
        under = [f"IoU {of[sample_id][0]:.2f}\nDice {of[sample_id][1]:.2f}" for of in figures]
        mean = np.mean([of[sample_id][0] for of in figures])
        label = f"{place}: {shortened(sample_id, 48)}, mean IoU {mean:.2f}"
        rows.append(Row(label, _panel(album, images, under, sample_id, study.classes)))
        named = [
            (_title(trial), *of[sample_id][:2]) for trial, of in zip(shown, figures, strict=True)
        ]
        table += [(place, sample_id, *row) for row in named]
        said.append(f"{place} image: " + ", ".join(f"{title} {iou:.2f}" for title, iou, _ in named))
    caption = (
        f"Held-out images ranked by the mean IoU of {listed(map(_title, shown))}, then by accuracy: the best, the "
        f"median and the worst of {len(ranked)}. {_common(shown)}"
    )
    colours = of_classes if dataset is None else of_errors
    if dataset is None:
        caption += " Without photographs and truth: the predicted classes on black."
    if rest:
        caption += f" Not shown: {listed(map(_title, rest))}."
    drawing = Drawing(
        "panels", "Best, median and worst held-out image", caption,
        f"Predicted masks, with the IoU of each. {'; '.join(said)}.",
        sheet(rows, len(columns), columns, album.legend(colours(study.classes))),
        _table("panels", "Images shown", ("rank", "sample_id", "model", "iou", "dice"), table), picture=True,
    )  # fmt: skip
    return Pictures((drawing,), (*why, *album.notes("Masks")))


def confused(study: Study, dataset: Dataset | None) -> Pictures:
    """Show images of the pairs of classes that the best head, and the best baseline, mix up most often.

    Parameters
    ----------
    study : Study
        Of classifications; of others nothing is shown.
    dataset : Dataset or None
        The one that the study is of.
    """
    if study.task != "classification":
        return Pictures()
    what = "Images taken for another class"
    dataset, why = _own(study, dataset, what)
    if dataset is None:
        return Pictures(notes=why)
    album, drawings = _Album(dataset), []
    trials = sorted(_together(study), key=lambda trial: -trial.metrics["accuracy"].value)
    for kind in ("head", "baseline"):
        best = next((trial for trial in trials if trial.kind == kind), None)
        if best is not None and best.predictions is not None:
            drawings += _mistakes(best, best.predictions, study.classes, album)
    return Pictures(tuple(drawings), album.notes(what))


def hardest(study: Study, dataset: Dataset | None) -> Pictures:
    """Show held-out images that every model takes for another class, those first that most give the same one.

    Parameters
    ----------
    study : Study
        Of classifications with at least two models; of others nothing is shown.
    dataset : Dataset or None
        The one that the study is of.
    """
    found = {t: t.predictions for t in _together(study) if t.predictions is not None}
    if study.task != "classification" or len(found) < 2:
        return Pictures()
    what = "Images that no model knows"
    dataset, why = _own(study, dataset, what)
    if dataset is None:
        return Pictures(notes=why)
    first = next(iter(found.values()))
    truth = dict(zip(first.ids, first.truth.tolist(), strict=True))
    said = [dict(zip(of.ids, of.guess.tolist(), strict=True)) for of in found.values()]
    wrong = {
        sample_id: Counter(of[sample_id] for of in said).most_common(1)[0]
        for sample_id, label in truth.items()
        if all(of.get(sample_id, label) != label for of in said)
    }
    order = sorted(
        np.random.default_rng(0).permutation(sorted(wrong)).tolist(), key=lambda i: -wrong[i][1]
    )
    album = _Album(dataset)
    cells, table = [], []
    for sample_id, pixels in album.some(order, 2 * _ACROSS):
        other, times = wrong[sample_id]
        true, guess = study.classes[truth[sample_id]], study.classes[other]
        cells.append(Cell(pixels, f"{true}\n{times} of {len(said)} say\n{guess}"))
        table.append((sample_id, true, guess, times, len(said)))
    if not cells:
        return Pictures(notes=album.notes(what))
    drawing = Drawing(
        "hardest", what,
        f"{len(cells)} of the {len(wrong)} held-out images that {listed(map(_title, found))} all take for another "
        "class, those first that most of them give the same one: where models agree, the label may be what is wrong. "
        "Beneath: the label, and what most say. "
        f"{_common(list(found))}",
        f"{len(wrong)} of {len(truth)} held-out images are wrong with each of {len(said)} models; {len(cells)} of "
        "them are shown, with their class and what most models say.",
        sheet(_in_rows(cells, _ACROSS), _ACROSS, note=untrained(found)),
        _table("hardest", what, ("sample_id", "truth", "predicted by most", "times", "models"), table), picture=True,
    )  # fmt: skip
    return Pictures((drawing,), album.notes(what))


class _Album:
    """Reads what is to be shown, and keeps count of what cannot be read.

    Parameters
    ----------
    dataset : Dataset or None
        None where there are predicted masks only.
    """

    def __init__(self, dataset: Dataset | None) -> None:
        self.dataset = dataset
        self._known = frozenset(() if dataset is None else dataset.sample_ids)
        self._failed: dict[str, str] = {}
        self.uncounted = False

    def photograph(self, sample_id: str, size: int | None = None) -> Pixels | None:
        """Decode an image, its longest side brought to `size`; None where it is gone or cannot be used."""

        def read(dataset: Dataset) -> Pixels:
            pixels = decode(dataset.read(sample_id))
            return pixels if size is None else resize_longest_side(pixels, size)

        return self._tried(sample_id, read)

    def truth(self, sample_id: str, shape: tuple[int, ...]) -> Pixels | None:
        """Read a true mask and bring it to `shape`, (height, width); None where it is gone or cannot be used."""

        def read(dataset: Dataset) -> Pixels:
            if dataset.read_mask is None:
                raise InputError(f"{dataset.name} has no masks")
            mask = dataset.read_mask(sample_id)
            size = max(shape)
            height, width = resized_shape(mask.shape[0], mask.shape[1], size)
            if (height, width) != shape:
                raise InputError(
                    f"its mask of {mask.shape[0]} x {mask.shape[1]} pixels does not fit one of {shape[0]} x {shape[1]}"
                )
            mask = mask_square(mask, size)[:height, :width]
            self.uncounted |= bool((mask == IGNORE).any())
            return mask

        return self._tried(sample_id, read)

    def legend(self, colours: dict[str, str]) -> dict[str, str]:
        """Add what does not count, where masks have such pixels."""
        return {**colours, "not counted": UNCOUNTED} if self.uncounted else colours

    def predicted(self, images: ImageScores, sample_id: str) -> Pixels | None:
        """Read a predicted mask, (height, width); None where it is gone or cannot be used."""
        try:
            return decode_mask(images.masks[images.ids.index(sample_id)].read_bytes())
        except (OSError, InputError) as error:
            self._failed[sample_id] = str(error)
            return None

    def scored(
        self, images: ImageScores, sample_id: str, truth: Pixels, guess: Pixels, n_classes: int
    ) -> bool:
        """Tell whether a predicted mask comes to its scores by this truth, and not by one that changed since."""
        place = images.ids.index(sample_id)
        try:
            found = pixel_metrics.scores(pixel_metrics.confusion(truth, guess, n_classes))
        except InputError as error:
            self._failed[sample_id] = str(error)
            return False
        # Tables of scores have six digits.
        same = all(
            np.isclose(value, images.scores[name][place], rtol=1e-5, atol=1e-6)
            for name, value in found.items()
            if name in images.scores
        )
        if not same:
            self._failed[sample_id] = "its true mask is not the one that it was scored by"
        return same

    def some(self, sample_ids: Iterable[str], most: int) -> list[tuple[str, Pixels]]:
        """Give the first images that can be read, at most so many."""
        read = ((sample_id, self.photograph(sample_id)) for sample_id in sample_ids)
        return list(islice(((name, pixels) for name, pixels in read if pixels is not None), most))

    def notes(self, what: str) -> tuple[str, ...]:
        """Say what could not be read, in one sentence or none."""
        if not self._failed:
            return ()
        sample_id, reason = next(iter(self._failed.items()))
        return (
            f"{what}: {len(self._failed)} could not be shown, such as {sample_id!r} ({reason}).",
        )

    def _tried(self, sample_id: str, read: Callable[[Dataset], Pixels]) -> Pixels | None:
        if self.dataset is None:
            return None
        try:
            if sample_id not in self._known:
                raise InputError(f"{self.dataset.name} holds no such image")
            return read(self.dataset)
        except (OSError, InputError) as error:
            self._failed[sample_id] = str(error)
            return None


def _by_class(dataset: Dataset, album: _Album, order: Sequence[int]) -> Drawing:
    rows, table = [], []
    names = dataset.classes[:_CLASSES]
    for label, name in enumerate(names):
        ids = (dataset.sample_ids[i] for i in order if dataset.labels[i] == label)
        found = album.some(ids, _SAMPLES)
        rows.append(Row(name, tuple(Cell(pixels) for _, pixels in found)))
        table += [(name, sample_id) for sample_id, _ in found]
    some = "" if len(names) == len(dataset.classes) else f"the first {len(names)} of "
    return Drawing(
        "samples", "Samples of the dataset",
        f"{dataset.name}: up to {_SAMPLES} images, chosen at random, of each of {some}{len(dataset.classes)} "
        f"classes. {dataset.note}".strip(),
        f"Images of the classes {', '.join(names)}.",
        sheet(rows, _SAMPLES, side=True),
        _table("samples", "Images shown", ("class", "sample_id"), table), picture=True,
    )  # fmt: skip


def _with_masks(dataset: Dataset, album: _Album, order: Sequence[int]) -> Drawing | None:
    """Draw images of as many scenes as there are, each above the same one under its mask."""
    turn: Counter[str] = Counter()
    keyed: list[tuple[int, int, str]] = []
    for i in order:
        scene = dataset.groups[i] if dataset.groups else ""
        keyed.append((turn[scene], len(keyed), dataset.sample_ids[i]))
        turn[scene] += 1
    cells, masks = [], []
    table: list[tuple[str, float]] = []
    for _, _, sample_id in sorted(keyed):
        pixels = album.photograph(sample_id, _FINE)
        mask = None if pixels is None else album.truth(sample_id, pixels.shape[:2])
        if pixels is None or mask is None:
            continue
        pixels, mask = _middle(pixels), _middle(mask)
        cells.append(Cell(pixels))
        masks.append(Cell(mapped(pixels, mask, dataset.classes), _amount(mask, dataset.classes)))
        table.append((sample_id, _part(mask)))
        if len(cells) == _SAMPLES:
            break
    if not cells:
        return None
    pairs = zip(_in_rows(cells, _ACROSS), _in_rows(masks, _ACROSS), strict=True)
    return Drawing(
        "samples", "Samples of the dataset",
        f"{dataset.name}: {len(cells)} images, chosen at random{' from different scenes' * bool(dataset.groups)}, "
        f"each above its true mask; the squares in their middle. {dataset.note}".strip(),
        f"{len(cells)} images with their masks of {', '.join(dataset.classes[1:])}.",
        sheet([row for pair in pairs for row in pair], _ACROSS, legend=album.legend(of_classes(dataset.classes))),
        _table("samples", "Images shown", ("sample_id", "part that is not background"), table), picture=True,
    )  # fmt: skip


def _mistakes(
    trial: Trial, said: Predictions, classes: Sequence[str], album: _Album
) -> list[Drawing]:
    """Draw the pairs that one model confuses; nothing where it confuses none."""
    matrix = metrics.confusion(said.truth, said.guess, len(classes))
    support = matrix.sum(1)
    errors = matrix - np.diag(np.diag(matrix))
    random = np.random.default_rng(0)
    rows, table, pairs = [], [], []
    for flat in np.argsort(-errors, axis=None, kind="stable")[:_PAIRS].tolist():
        true, guess = divmod(flat, len(classes))
        count = int(errors[true, guess])
        if count == 0:
            break
        where = np.flatnonzero((said.truth == true) & (said.guess == guess))
        found = album.some((said.ids[i] for i in random.permutation(where)), _ACROSS)
        pair = f"{classes[true]} taken for {classes[guess]}: {count} of {support[true]}"
        pairs.append(pair)
        cells = [Cell(pixels, PurePosixPath(sample_id).stem) for sample_id, pixels in found]
        rows.append(Row(pair, tuple(cells)))
        table += [
            (classes[true], classes[guess], count, int(support[true]), sample_id)
            for sample_id, _ in found
        ]
    if not table:
        return []
    title = _title(trial)
    name = f"confused-{trial.kind}"
    score = trial.metrics["accuracy"]
    return [
        Drawing(
            name, f"Pairs of classes that {title} confuses most",
            f"{title}, the best {trial.kind}, accuracy {score.value:.3f} [{score.low:.3f}, {score.high:.3f}]: up to "
            f"{_ACROSS} images, chosen at random, of each of the most frequent confusions. {_common([trial])}",
            f"Images that {title} takes for another class. {'; '.join(pairs)}.",
            sheet(rows, _ACROSS, note=untrained([trial])),
            _table(name, "Images shown", ("truth", "predicted", "images", "of", "sample_id"), table), picture=True,
        )
    ]  # fmt: skip


def _panel(
    album: _Album,
    images: Sequence[ImageScores],
    under: Sequence[str],
    sample_id: str,
    classes: Sequence[str],
) -> tuple[Cell, ...]:
    """Give the photograph and the truth, where there is a dataset, and each model's mask at its own resolution."""
    before = (Cell(album.photograph(sample_id, _FINE)), Cell(None))
    masks = []
    for of, text in zip(images, under, strict=True):
        guess = album.predicted(of, sample_id)
        truth = None if guess is None else album.truth(sample_id, guess.shape)
        if guess is not None and truth is not None:
            truth = truth if album.scored(of, sample_id, truth, guess, len(classes)) else None
        ground = None if truth is None else album.photograph(sample_id, max(truth.shape))
        if guess is None:
            masks.append(Cell(None, text))
        elif truth is None or ground is None or ground.shape[:2] != truth.shape:
            masks.append(Cell(mapped(None, guess, classes), text))
        else:
            true = Cell(mapped(ground, truth, classes), _amount(truth, classes))
            before = (Cell(ground), true)
            masks.append(Cell(judged(ground, truth, guess), text))
    return tuple(masks) if album.dataset is None else (*before, *masks)


def _together(study: Study) -> list[Trial]:
    """Give one trial of each model, all of one split and seed, in the order in which they are shown."""
    groups: dict[tuple[str, int], dict[str, Trial]] = {}
    for cell in at_share(study, STANDARD_SHARE):
        for trial in cell.trials:
            if cell.model == trial.model and trial.name != FLOOR:
                key = trial.split["digest"], trial.seed
                groups.setdefault(key, {}).setdefault(trial.model, trial)
    if not groups:
        return []
    chosen = min(groups, key=lambda key: (-len(groups[key]), key[1]))
    known = [*TITLES]
    return sorted(
        groups[chosen].values(),
        key=lambda trial: known.index(trial.name) if trial.name in known else len(known),
    )


def _figures(images: ImageScores) -> dict[str, tuple[float, float, float]]:
    """Give IoU, Dice and accuracy of each image."""
    columns = (images.scores[name].tolist() for name in ("iou", "dice", "accuracy"))
    return dict(zip(images.ids, zip(*columns, strict=True), strict=True))


def _ranked(figures: Sequence[dict[str, tuple[float, float, float]]]) -> list[str]:
    """Sort the images that all models were scored on, from best to worst."""

    def badness(sample_id: str) -> tuple[float, float, str]:
        iou, _, accuracy = np.mean([of[sample_id] for of in figures], axis=0).tolist()
        return -iou, -accuracy, sample_id

    return sorted(set.intersection(*map(set, figures)), key=badness)


def _places(ranked: Sequence[str]) -> list[tuple[str, str]]:
    """Name the best, the median and the worst; of fewer than three, as many as there are."""
    last = len(ranked) - 1
    named = {0: "Best"}
    if last > 1:
        named[last // 2] = "Median"
    if last:
        named[last] = "Worst"
    return [(name, ranked[i]) for i, name in named.items()]


def _own(
    study: Study, dataset: Dataset | None, what: str
) -> tuple[Dataset | None, tuple[str, ...]]:
    """Give the dataset where it is the study's; else None and why."""
    if dataset is None:
        return None, (_unopened(what),)
    if dataset.name != study.dataset:
        return None, (f"{what} are missing: the study is of {study.dataset}, not {dataset.name}.",)
    return dataset, ()


def _unopened(what: str) -> str:
    return f"{what} are missing, because the dataset was not opened."


def _title(trial: Trial) -> str:
    return f"{trial.model}{' (untrained)' * trial.untrained}"


def _column(trial: Trial) -> str:
    """Put the study's name above the one that the model has here."""
    lines = TITLES.get(trial.name, ""), trial.model, "untrained" * trial.untrained
    return "\n".join(filter(None, lines))


def _common(trials: Sequence[Trial]) -> str:
    """Tell split and seed, and whose weights are untrained."""
    first = trials[0]
    return sentences(
        f"split {first.split['name']} {first.split['digest'][:8]}, seed {first.seed}, {first.n_test:,} images held "
        f"out, trained on {100 * first.share:.3g} % of the samples.",
        untrained_words(trials),
    )


def _middle(pixels: Pixels) -> Pixels:
    """Cut the square out of the middle of an image or a mask, so that a sheet of them is even."""
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return pixels[top : top + side, left : left + side]


def _part(mask: Pixels) -> float:
    """Give the part of a mask's known pixels that is not background."""
    known = mask != IGNORE
    return float(metrics.ratio(((mask > 0) & known).sum(), known.sum()))


def _amount(mask: Pixels, classes: Sequence[str]) -> str:
    what = classes[1] if len(classes) == 2 else "not background"
    return f"{100 * _part(mask):.0f} % {what}"


def _in_rows(cells: Sequence[Cell], across: int) -> list[Row]:
    return [Row("", tuple(cells[i : i + across])) for i in range(0, len(cells), across)]


def _table(
    name: str, title: str, header: tuple[str, ...], rows: Iterable[tuple[str | int | float, ...]]
) -> Table:
    return Table(name, title, "", header, tuple(rows))
