"""The held-out samples of a split, what models say of them, and how good that is."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from samtl.errors import InputError
from samtl.experiment import tables
from samtl.experiment.run import RunFolder, Scores, writing
from samtl.images.transforms import IGNORE
from samtl.metrics import classification, segmentation
from samtl.splits import Samples, Split
from samtl.splits.split import Rows

FLOOR = "floor"

Mask = NDArray[np.uint8]
Answers = Mapping[str, NDArray[Any] | Sequence[NDArray[Any]]]  # by model


class Parts(NamedTuple):
    """The held-out part, and the validation part within the others."""

    split: Split
    inner: Split


class HeldOut:
    """The answers of one or several models on the held-out samples, which come in any order.

    Parameters
    ----------
    samples : Samples
    rows : (n,) int64
        Of the held-out samples.
    true_mask : callable, optional
        Reads the mask of a row, (height, width) uint8, at the resolution of scores; for segmentation.
    """

    def __init__(
        self, samples: Samples, rows: Rows, true_mask: Callable[[int], Mask] | None = None
    ) -> None:
        self.samples, self.rows, self.true_mask = samples, rows, true_mask
        n, k = len(rows), len(samples.classes)
        shape, kind = ((n, k), float) if true_mask is None else ((n, k, k), int)
        #: By model: probabilities, (n, K), or the confusion of each image, (n, K, K).
        self.answers: dict[str, NDArray[Any]] = defaultdict(lambda: np.zeros(shape, kind))
        #: By sample id: the class name, or the sha256 of the mask.
        self.truth: dict[str, str] = {}
        if true_mask is None:
            named = zip(rows, samples.labels[rows], strict=True)
            self.truth = {samples.ids[row]: samples.classes[label] for row, label in named}

    def add(self, positions: Rows, answers: Answers, folder: RunFolder | None = None) -> None:
        """Take answers on some of the held-out samples, by their place among these.

        The masks of the first model are written into the folder. Raises InputError if no pixel of a true mask is of a
        known class.
        """
        if self.true_mask is None:
            for name, chances in answers.items():
                self.answers[name][positions] = chances
            return
        for position, *guesses in zip(positions.tolist(), *answers.values(), strict=True):
            sample_id = self.samples.ids[self.rows[position]]
            truth = self.true_mask(self.rows[position])
            if (truth == IGNORE).all():
                raise InputError(
                    f"the mask of sample {sample_id!r} has no pixel of a known class, so nothing can be scored"
                )
            content = repr(truth.shape).encode() + truth.tobytes()
            self.truth[sample_id] = hashlib.sha256(content).hexdigest()
            if folder is not None:
                with writing(f"a run into {folder.parent}"):
                    file = tables.mask_name(position, sample_id)
                    tables.write_mask(folder.path / tables.MASKS / file, guesses[0])
            for name, guess in zip(answers, guesses, strict=True):
                counts = self.answers[name]
                counts[position] = segmentation.confusion(truth, guess, counts.shape[-1])

    def scores(self, seed: int) -> dict[str, Scores]:
        """Score each model."""
        if self.true_mask is None:
            bootstrap, labels = classification.bootstrap, self.samples.labels[self.rows]
            return {name: bootstrap(labels, said, seed=seed) for name, said in self.answers.items()}
        return {name: segmentation.bootstrap(m, seed=seed) for name, m in self.answers.items()}

    def write(self, folder: RunFolder, lean: bool) -> Rows:
        """Write the table of the first model, without probabilities if `lean`, and return its confusion, (K, K)."""
        said, samples, rows = next(iter(self.answers.values())), self.samples, self.rows
        if self.true_mask is not None:
            tables.write_images(folder, samples, rows, segmentation.scores(said))
            return np.asarray(said.sum(0))
        tables.write_predictions(folder, samples, rows, said, lean)
        return classification.confusion(samples.labels[rows], said.argmax(1), said.shape[1])
