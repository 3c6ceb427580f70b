"""The held-out samples of a split, what models say of them, and how good that is."""

from __future__ import annotations

import functools
import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samtl._io import digest
from samtl.errors import writing
from samtl.experiment import tables
from samtl.experiment.run import RunFolder, Scores
from samtl.metrics import classification, multilabel, regression, segmentation
from samtl.splits import Samples
from samtl.splits.labels import label_texts
from samtl.splits.split import Rows

FLOOR = "floor"
_FLOORS = {
    **dict.fromkeys(("classification", "multilabel", "regression"), "image statistics"),
    "segmentation": "nearest mean colour",
}
#: How labels and what a model said of them, (n, K), are scored.
_SCORES: dict[str, Callable[..., Scores]] = {
    "classification": classification.score,
    "multilabel": multilabel.score,
    "regression": regression.score,
}
#: How they are counted, for `Run.confusion`.
_COUNTS: dict[str, Callable[..., Rows]] = {
    "classification": lambda labels, said: classification.confusion(
        labels, said.argmax(1), said.shape[1]
    ),
    "multilabel": multilabel.counts,
    "regression": lambda labels, said: np.zeros(0, dtype=np.int64),
}
_BESIDE = ("segmentation",)  # tasks whose heads read no pixels, so that their floor is another one
_COMPANIONS = {"knn": "nearest neighbours", "mean-colour": "nearest mean colour"}

Mask = NDArray[np.uint8]
Answers = Mapping[str, NDArray[Any] | Sequence[NDArray[Any]]]  # by model


def floor_title(task: str, companion: str = "", *, beside: bool = False) -> str:
    """Return what one of the models of the floor is called wherever figures are shown.

    Parameters
    ----------
    task : str
    companion : str
        The name of a companion of the floor, as in `Run.also`; by default the floor itself.
    beside : bool
        Whether it is `Run.floor`, which was fitted beside another model.
    """
    if companion.startswith("all-") or (beside and task in _BESIDE):
        return f"{FLOOR} (most frequent class)"
    kind = _COMPANIONS.get(companion, companion.replace("-", " ")) or _FLOORS.get(task)
    return f"{FLOOR} ({kind})" if kind else FLOOR


@dataclass(eq=False)
class HeldOut:
    """The answers of one or several models on the held-out samples."""

    samples: Samples
    rows: Rows  #: of the held-out samples
    #: Reads the mask of a row, (height, width), at the resolution of scores; for segmentation.
    true_mask: Callable[[int], Mask] | None = None

    def __post_init__(self) -> None:
        n, k, samples = len(self.rows), len(self.samples.classes), self.samples
        shape, kind = ((n, k), float) if self.true_mask is None else ((n, k, k), int)
        #: By model: probabilities, (n, K), numbers, (n, 1), or the confusion of each image, (n, K, K).
        self.answers: dict[str, NDArray[Any]] = defaultdict(lambda: np.zeros(shape, kind))
        #: By sample id: the label as text, or the sha256 of the mask.
        self.truth: dict[str, str] = {}
        if self.true_mask is None:
            told = label_texts(samples.labels[self.rows], samples.classes)
            self.truth = {samples.ids[row]: text for row, text in zip(self.rows, told, strict=True)}

    def take(self, found: Iterable[Answers], folder: RunFolder | None = None) -> None:
        """Add all answers, which come in order."""
        begin = 0
        for answers in found:
            end = begin + len(next(iter(answers.values())))
            self.add(np.arange(begin, end), answers, folder)
            begin = end

    def add(self, positions: Rows, answers: Answers, folder: RunFolder | None = None) -> None:
        """Add answers on some of the held-out samples, by their place among these.

        The masks of the first model are written into the folder.
        """
        if self.true_mask is None:
            for name, chances in answers.items():
                self.answers[name][positions] = chances
            return
        for position, *guesses in zip(positions.tolist(), *answers.values(), strict=True):
            row = self.rows[position]
            truth, sample_id = self.true_mask(row), self.samples.ids[row]
            content = repr(truth.shape).encode() + truth.tobytes()
            self.truth[sample_id] = hashlib.sha256(content).hexdigest()
            if folder is not None:
                with writing(f"a run into {folder.parent}"):
                    file = tables.mask_name(position, sample_id)
                    tables.write_mask(folder.path / tables.MASKS / file, guesses[0])
            for name, guess in zip(answers, guesses, strict=True):
                counts = self.answers[name]
                counts[position] = segmentation.confusion(truth, guess, counts.shape[-1])

    def scores(self) -> dict[str, Scores]:
        """Score each model; intervals are between groups, if there are any."""
        score = functools.partial(segmentation.score, groups=self.groups)
        if self.true_mask is None:
            labels = self.samples.labels[self.rows]
            score = functools.partial(_SCORES[self.samples.task], labels, groups=self.groups)
        return {name: score(said) for name, said in self.answers.items()}

    @functools.cached_property
    def groups(self) -> tuple[str, ...]:
        """The group of each held-out sample, such as its scene; without groups, the first of its copies, if any."""
        samples, rows = self.samples, self.rows
        if samples.groups:
            return tuple(samples.groups[row] for row in rows)
        if len(samples.distinct(rows)) == len(rows):
            return ()
        return tuple(samples.ids[row] for row in samples.image[rows])

    def comparison_key(self, resolution: int) -> str:
        """Return the digest of what runs must have in common to be compared, after all answers."""
        samples = self.samples
        return digest([samples.task, samples.classes, resolution, sorted(self.truth.items())])

    def write(self, folder: RunFolder, lean: bool) -> Rows:
        """Write the tables of the first model, and return its confusion as `Run` has it.

        Probabilities of a classification are left out if `lean`.
        """
        said, samples, rows = next(iter(self.answers.values())), self.samples, self.rows
        if self.true_mask is None:
            tables.write_predictions(folder, samples, rows, said, lean)
            confusion = _COUNTS[samples.task](samples.labels[rows], said)
        else:
            tables.write_images(folder, samples, rows, segmentation.scores(said))
            tables.write_pixels(folder, samples, rows, segmentation.class_counts(said))
            confusion = said.sum(0)
        if self.groups:
            tables.write_groups(folder, samples, rows, self.groups)
        tables.write_confusion(folder, samples, confusion)
        return confusion
