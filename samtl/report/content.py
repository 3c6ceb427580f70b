"""What a report is made of: the trials that it compares, and the parts of a page that are made from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from samtl.metrics.classification import Score
from samtl.report.style import png

Cell = str | int | float | None


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
    truth: NDArray[np.int64]
    guess: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ImageScores:
    """What a segmenter came to on each held-out image.

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


@dataclass(frozen=True, eq=False)
class Trial:
    """One run: a model, a split, a seed.

    Attributes
    ----------
    path : Path
        The run folder.
    kind : str
        `head` or `baseline`.
    name : str
        The head's or baseline's.
    model : str
        What it is called in figures: the name, followed by the features where a study has the head on several.
    features : str
        `pooled`, `grid`, `dense` or `pixels`; or the chosen columns of `pooled`, as `pooled[mean,std]`.
    seed : int
    split : dict
        `name`, `share`, `seed` and `digest`.
    n_train, n_validation, n_test : int
    n_left_out : int
        Samples that could take part and do not, such as those that a label fraction leaves out.
    metrics : dict of str to Score
    floor : dict of str to Score, or None
    also : dict of str to dict of str to Score
        Companions that were scored in the same run.
    confusion : (K, K) int64
        Of samples or pixels; rows are the truth.
    curves : dict of str to list of float
        By epoch: `epoch`, `train_loss`, `train_accuracy`, `validation_loss`, `validation_accuracy`; or of what was
        tried where there are no epochs; or empty.
    seconds : dict of str to float
        Wall time of each stage, and `total`.
    training : dict
    peak_memory : int
        Bytes.
    fingerprint, store, dataset, encoder, weights, note : str
        "" where there is none.
    untrained : bool
    warm_start : str
        The run whose weights it started from, or "".
    config : dict
        All of `config.json`.
    predictions : Predictions or None
        Of a classification.
    images : ImageScores or None
        Of a segmentation.
    """

    path: Path
    kind: str
    name: str
    model: str
    features: str
    seed: int
    split: Mapping[str, Any]
    n_train: int
    n_validation: int
    n_test: int
    n_left_out: int
    metrics: Mapping[str, Score]
    floor: Mapping[str, Score] | None
    also: Mapping[str, Mapping[str, Score]]
    confusion: NDArray[np.int64]
    curves: Mapping[str, list[float]]
    seconds: Mapping[str, float]
    training: Mapping[str, Any]
    peak_memory: int
    fingerprint: str
    store: str
    dataset: str
    encoder: str
    weights: str
    untrained: bool
    note: str
    warm_start: str
    config: Mapping[str, Any]
    predictions: Predictions | None
    images: ImageScores | None

    @property
    def learnt(self) -> int:
        """Samples that training saw, those that it was stopped on among them."""
        return self.n_train + self.n_validation

    @property
    def share(self) -> float:
        """Part of all samples that training saw, in (0, 1)."""
        return self.learnt / (self.learnt + self.n_test + self.n_left_out)


@dataclass(frozen=True, eq=False)
class Study:
    """Trials on one dataset that may be compared.

    Attributes
    ----------
    dataset, task : str
    classes : tuple of str
    trials : tuple of Trial
        In the order of models, shares and seeds.
    failed : tuple of (str, str)
        Cells of a sweep that came to nothing: what, and why.
    warnings : tuple of str
        What a reader must know before comparing.
    """

    dataset: str
    task: str
    classes: tuple[str, ...]
    trials: tuple[Trial, ...]
    failed: tuple[tuple[str, str], ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models, each once, in order."""
        return tuple(dict.fromkeys(trial.model for trial in self.trials))


@dataclass(frozen=True)
class Table:
    """Rows of text and numbers.

    Attributes
    ----------
    name : str
        Of its file: lower-case letters, digits and hyphens.
    title, caption : str
    header : tuple of str
    rows : tuple of tuples
    """

    name: str
    title: str
    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True, eq=False)
class Drawing:
    """A figure.

    Attributes
    ----------
    name : str
        Of its files: lower-case letters, digits and hyphens.
    title : str
    caption : str
        What is shown, of what, and what intervals or bands are.
    alt : str
        What it shows, in a sentence or two, for those who do not see it: the figures that matter.
    figure : matplotlib Figure
    table : Table
        The numbers in it.
    picture : bool
        Whether it is made of photographs, which are no good as vectors.
    """

    name: str
    title: str
    caption: str
    alt: str
    figure: Figure
    table: Table
    picture: bool = False

    def _repr_png_(self) -> bytes:
        """Show it in a notebook."""
        return png(self.figure)


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Attributes
    ----------
    name, title : str
    paragraphs : tuple of str
    warnings : tuple of str
    parts : tuple of Drawing or Table
    """

    name: str
    title: str
    paragraphs: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    parts: tuple[Drawing | Table, ...] = field(default=())


@dataclass(frozen=True)
class Page:
    """A report."""

    title: str
    subtitle: str
    sections: tuple[Section, ...]
