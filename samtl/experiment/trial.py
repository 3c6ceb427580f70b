"""One fit, whatever it learns from: train, score the held-out samples, compare with a floor, write a run folder."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import platform
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from samtl._runtime import peak_memory
from samtl.errors import InputError
from samtl.experiment import tables
from samtl.experiment.run import (
    Config,
    FitResult,
    RunFolder,
    Scores,
    SplitName,
    comparison_key,
)
from samtl.heads.base import Candidate, Epoch
from samtl.heads.io import plain, save
from samtl.images.transforms import IGNORE
from samtl.metrics import classification, segmentation
from samtl.splits import Samples, Split, record_of

FLOOR_MODELS = {
    "classification": "logistic regression on image statistics",
    "segmentation": "majority",
}
_DOING = {
    "read": "reading the features",
    "fit": "training",
    "score": "scoring the held-out samples",
    "floor": "fitting the floor",
    "write": "writing the run",
}
_LIBRARIES = ("samtl", "numpy", "scipy", "scikit-learn", "torch", "safetensors")

Rows = NDArray[np.int64]
Floors = dict[str, Scores]  # of each of a floor's models


@dataclass(frozen=True)
class Stage:
    """A part of the work begins: `read`, `fit`, `score`, `floor` or `write`."""

    name: str

    def __str__(self) -> str:
        return _DOING[self.name]


OnEvent = Callable[[Stage | Epoch | Candidate], None]


class Clock:
    """Times the stages and announces them."""

    def __init__(self, on_event: OnEvent | None) -> None:
        self.on_event = on_event or (lambda event: None)
        self.seconds: dict[str, float] = {}
        self._stage = ""
        self._began = self._since = time.perf_counter()

    def start(self, stage: str) -> None:
        """End the current stage and begin another."""
        self.stop()
        self._stage, self._since = stage, time.perf_counter()
        self.on_event(Stage(stage))

    def owe(self, seconds: float) -> None:
        """Add to this stage the time that something it uses took earlier."""
        self._since -= seconds
        self._began -= seconds

    def stop(self) -> dict[str, float]:
        """End the last stage and return the seconds of each, and `total`."""
        now = time.perf_counter()
        if self._stage:
            self.seconds[self._stage] = now - self._since
        self._stage = ""
        return {**self.seconds, "total": now - self._began}


class SharedClock(Clock):
    """Times a trial that takes turns with others: `total` is the sum of its own stages."""

    @contextmanager
    def spending(self, stage: str) -> Iterator[None]:
        """Add the time of a `with` block to a stage."""
        began = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - began
            self.seconds[stage] = self.seconds.get(stage, 0.0) + spent

    def stop(self) -> dict[str, float]:
        """End the last stage and return the seconds of each, and their sum as `total`."""
        super().stop()
        return {**self.seconds, "total": sum(self.seconds.values())}


class Parts(NamedTuple):
    """The held-out part, and the validation part within the others."""

    split: Split
    inner: Split


class Scored(NamedTuple):
    """How well a model did on the held-out samples."""

    metrics: Scores
    confusion: Rows  # (K, K), of samples or pixels; rows are the truth
    images: dict[str, NDArray[np.float64]]  # (n,) each, of a segmentation
    truth: dict[str, str]  # by sample id: the class name, or the sha256 of the mask


def score_classes(samples: Samples, rows: Rows, chances: NDArray[np.float64], seed: int) -> Scored:
    """Score class probabilities, (n, K), of some rows."""
    labels, names = samples.labels[rows], samples.classes
    scores = classification.bootstrap(labels, chances, seed=seed)
    confusion = classification.confusion(labels, chances.argmax(1), len(names))
    truth = {samples.ids[row]: names[label] for row, label in zip(rows, labels, strict=True)}
    return Scored(scores, confusion, {}, truth)


class MaskScores:
    """Counts the pixels of the predicted masks of some samples, in any order."""

    def __init__(self, samples: Samples, rows: Rows) -> None:
        self._ids, self._k = [samples.ids[row] for row in rows], len(samples.classes)
        self._matrices = np.zeros((len(rows), self._k, self._k), dtype=np.int64)
        self._truth: dict[str, str] = {}

    def add(
        self,
        position: int,
        truth: NDArray[np.uint8],
        guess: NDArray[np.uint8],
        folder: RunFolder | None = None,
    ) -> None:
        """Count one mask, (height, width), and write it into the folder.

        Raises InputError if no pixel of the true mask is of a known class.
        """
        sample_id = self._ids[position]
        if (truth == IGNORE).all():
            raise InputError(
                f"the mask of sample {sample_id!r} has no pixel of a known class, so nothing can be scored"
            )
        if folder is not None:
            with folder.writing():
                path = folder.path / tables.MASKS / tables.mask_name(position, sample_id)
                path.parent.mkdir(exist_ok=True)
                tables.write_mask(path, guess)
        self._matrices[position] = segmentation.confusion(truth, guess, self._k)
        content = repr(truth.shape).encode() + truth.tobytes()
        self._truth[sample_id] = hashlib.sha256(content).hexdigest()

    def scored(self, seed: int) -> Scored:
        """Score all masks."""
        scores = segmentation.bootstrap(self._matrices, seed=seed)
        images = segmentation.scores(self._matrices)
        return Scored(scores, self._matrices.sum(0), images, self._truth)


def most_frequent(classes: Sequence[str], masks: Iterator[NDArray[np.uint8]]) -> int:
    """Return the class with the most pixels in the masks of the training part.

    Raises InputError if a class has no pixel, so that it cannot be learnt.
    """
    pixels = np.zeros(len(classes), dtype=np.int64)
    for mask in masks:
        pixels += np.bincount(mask.ravel(), minlength=256)[: len(classes)]
    absent = [name for name, n in zip(classes, pixels, strict=True) if not n]
    if absent:
        raise InputError(
            f"no pixel of the training part is of class {absent[0]!r}, so it cannot be learnt: choose another "
            "--seed or a smaller --split, or check whether the mask values are named correctly"
        )
    return int(np.argmax(pixels))


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that decide figures."""
    found = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    return {"python": platform.python_version(), **found}


class Trial(ABC):
    """A model, not trained yet, on one split; `config.digest` covers what decides the outcome."""

    left_out: Mapping[str, int]  # how many samples take no part, by reason
    columns: tuple[str, ...] = ()  # of pooled features that are learnt from

    def __init__(self, samples: Samples, parts: Parts, model: Any, seed: int, **about: Any) -> None:
        self.samples, self.parts, self.model, self.seed = samples, parts, model, seed
        self.chances: NDArray[np.float64] | None = None  # (n, K), of the held-out samples
        self.scored: Mapping[str, Scored] = {}  # by model, once the run is being written
        self.config = Config(
            task=samples.task,
            classes=tuple(samples.classes),
            params={name: plain(value) for name, value in model.get_params().items()},
            seed=seed,
            split=SplitName.of(parts.split),
            validation=SplitName.of(parts.inner),
            floor_model=FLOOR_MODELS[samples.task],
            versions=versions(),
            **about,
        ).with_digest()

    @abstractmethod
    def train(self, clock: Clock) -> None:
        """Read the training part and learn from it."""

    @abstractmethod
    def score(self, folder: RunFolder, clock: Clock) -> dict[str, Scored]:
        """Predict and score the held-out samples: by name, the model first, then its companions."""

    @abstractmethod
    def floor(self) -> tuple[Floors, str]:
        """Score the floor on the same parts, or return why there is none."""

    def fit(
        self,
        parent: Path,
        clock: Clock,
        *,
        floor: Callable[[], tuple[Floors, str]] | None = None,
        splits: Path | None = None,
    ) -> FitResult:
        """Train, score and write a run folder into `parent`; `floor` and `splits` as for `write`."""
        with RunFolder(parent) as folder:
            self.train(clock)
            clock.start("score")
            return self.write(folder, clock, self.score(folder, clock), floor=floor, splits=splits)

    def write(
        self,
        folder: RunFolder,
        clock: Clock,
        scored: Mapping[str, Scored],
        *,
        floor: Callable[[], tuple[Floors, str]] | None = None,
        splits: Path | None = None,
    ) -> FitResult:
        """Fit the floor and write the run.

        Parameters
        ----------
        folder : RunFolder
        clock : Clock
        scored : mapping of str to Scored
            The model's first, then those of its companions.
        floor : callable, optional
            Takes the place of the method `floor`.
        splits : Path, optional
            A folder in which runs share their lists of samples; predictions are then written without probabilities.
        """
        self.scored = scored
        clock.start("floor")
        floors, why_not = (floor or self.floor)()
        clock.start("write")
        # Of a floor of several models, the one that is beside heads, too, comes first.
        first = next((name for name in floors if name.startswith("all-")), next(iter(floors), ""))
        own, *companions = scored.values()
        also = dict(zip([*scored][1:], (other.metrics for other in companions), strict=True))
        also |= {name: other for name, other in floors.items() if name != first}
        (split, inner), samples, model, names = (
            self.parts,
            self.samples,
            self.model,
            self.samples.classes,
        )
        with folder.writing():
            save(model, folder.path, self.columns, names)
        tables.write_split(folder, record_of(samples.ids, split, inner), splits)
        counts = zip(names, own.confusion.tolist(), strict=True)
        folder.write_csv("confusion.csv", ["truth", *names], ([name, *row] for name, row in counts))
        folder.write_csv(tables.CURVES, [*model.curves_], zip(*model.curves_.values(), strict=True))
        if self.chances is not None:
            tables.write_predictions(folder, samples, split.test, self.chances, splits is not None)
        else:
            tables.write_images(folder, samples, split.test, own.images)
        idle = int(samples.usable.sum()) - len(split.train) - len(split.test)
        config = msgspec.structs.asdict(self.config) | {"split": split, "recipe": _recipe(model)}
        return folder.record(
            FitResult(
                **config,
                images=own.images,
                metrics=own.metrics,
                floor=floors.get(first),
                floor_missing=why_not,
                also=also,
                confusion=own.confusion,
                n_train=len(inner.train),
                n_validation=len(inner.test),
                n_test=len(split.test),
                left_out_because={**self.left_out, **({"not_in_the_split": idle} if idle else {})},
                training=_training(model),
                seconds={stage: round(value, 3) for stage, value in clock.stop().items()},
                peak_memory=peak_memory(),
                finished=datetime.now(UTC).isoformat(timespec="milliseconds"),
                comparison_key=comparison_key(
                    samples.task, names, own.truth, self.config.resolution
                ),
            )
        )


def _training(model: Any) -> dict[str, Any]:
    """Return how training went, if the model learns by steps."""
    if not hasattr(model, "stopped_"):
        return {}
    return {
        "stopped": model.stopped_,
        "epochs": model.n_iter_,
        "best_epoch": model.best_epoch_,
        "samples_per_second": round(model.rate_, 2),
        "waiting": round(model.waiting_, 4),
    }


def _recipe(model: Any) -> dict[str, Any]:
    """Return what parameters and data resolved to: the recipe of a model that learns by steps, else its choices."""
    if hasattr(model, "recipe_"):
        return asdict(model.recipe_)
    return {name.removesuffix("_"): plain(getattr(model, name)) for name in model.facts}
