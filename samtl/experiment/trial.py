"""One fit, whatever it learns from: train, score the held-out samples, compare with a floor, write a run folder.

The held-out samples are read after the model is trained and everything about it is chosen, and are scored once.
"""

from __future__ import annotations

import functools
import importlib.metadata
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from samtl._runtime import peak_memory, probe
from samtl.errors import InputError, writing
from samtl.experiment import tables
from samtl.experiment.clock import Clock
from samtl.experiment.held_out import FLOOR, HeldOut
from samtl.experiment.run import Config, Run, RunFolder, Scores, SplitName
from samtl.experiment.sources import Data, Images
from samtl.heads.io import plain, save
from samtl.splits import Split, record_of
from samtl.splits.split import Rows

#: What every model is held against.
FLOOR_MODELS = {
    "classification": "logistic regression on mean, deviation and extremes of the pixels",
    "multilabel": "logistic regression, one for each class, on mean, deviation and extremes of the pixels",
    "regression": "ridge regression on mean, deviation and extremes of the pixels",
    "segmentation": "the most frequent class everywhere",
}
_LIBRARIES = ("samtl", "numpy", "scipy", "scikit-learn", "torch", "safetensors")

Floors = dict[str, Scores]  # of each of a floor's models


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that decide figures."""
    found = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    return {"python": platform.python_version(), **found}


@functools.cache
def machine() -> dict[str, Any]:
    """Describe the processor: what decides the last digits of figures beside the versions."""
    found = probe.machine()
    return {name: found[name] for name in ("processor", "features", "limits")}


@dataclass(eq=False)
class Trial:
    """One model, not trained yet, on one split; `config.digest` covers what decides the outcome."""

    source: Data | Images
    name: str
    model: Any
    split: Split
    seed: int
    given: Mapping[str, Any]  #: what the user asked for, to be written down
    warm_start: str = ""  #: the run whose weights training begins with
    #: Takes the place of the method `floor`.
    floor_of: Callable[[Trial], tuple[Floors, str]] | None = None
    #: Where runs share their lists of samples; predictions are then written without probabilities.
    shared: Path | None = None

    def __post_init__(self) -> None:
        self.samples, split = self.source.samples, self.split
        about = self.source.about
        self.config = Config(
            name=self.name,
            task=self.samples.task,  # type: ignore[arg-type]
            classes=tuple(self.samples.classes),
            params={key: plain(value) for key, value in self.model.get_params().items()},
            seed=self.seed,
            split=SplitName(split.name, split.share, split.seed, split.digest),
            validation=SplitName(
                "validation", split.validation_share, split.seed, split.validation_digest
            ),
            floor_model=FLOOR_MODELS[self.samples.task],
            machine=machine(),
            versions=versions(),
            warm_start=self.warm_start,
            given={key: plain(value) for key, value in self.given.items()},
            **about,
        ).with_digest()
        #: Of the model and its companions, once the run is being written.
        self.scores: Floors = {}
        self._majority = 0

    def check(self) -> None:
        """Raise InputError if a class has no pixel to be learnt from; labels are in each part of every split."""
        if not self.source.masks:
            return
        pixels = np.zeros(256, dtype=np.int64)
        for row in self.split.train:
            pixels += np.bincount(self.source.mask(row).ravel(), minlength=256)
        for name, count in zip(self.samples.classes, pixels, strict=False):
            if not count:
                raise InputError(
                    f"no pixel of the training part is of class {name!r}, so it cannot be learnt: choose another "
                    "--seed or a smaller --split, or check whether the mask values are named correctly"
                )
        self._majority = int(pixels[: len(self.samples.classes)].argmax())

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Report what a model calls a wrong value, within a `with` block, as the user's error."""
        try:
            yield
        except ValueError as error:
            told = f"the {self.config.kind} {self.name} cannot be trained: {error}"
            raise InputError(told) from error

    def fit(self, parent: Path, clock: Clock) -> Run:
        """Train, score and write a run folder into `parent`."""
        with RunFolder(parent) as folder:
            clock.start("read")
            self.check()
            with self.refusing():
                changes = self.source.fit(self.model, self.split, clock)
            self.config = msgspec.structs.replace(self.config, **changes)
            clock.start("score")
            answers = self.source.answers(self.model, self.name, self.held.rows, clock)
            self.held.take(answers, folder)
            return self.write(folder, clock)

    def answer(self, positions: Rows, features: NDArray[Any], folder: RunFolder) -> None:
        """Predict some of the held-out samples, by their place among these, from their features."""
        assert isinstance(self.source, Data)
        said = self.source.answer(self.model, self.held.rows[positions], features)
        self.held.add(positions, {self.name: said}, folder)

    def floor(self) -> tuple[Floors, str]:
        """Score the floor on the same parts, or return why there is none."""
        if self.name == FLOOR:
            return {}, "this baseline is the floor"
        found = self.source.floor(self.split, self.seed, self._majority)
        if isinstance(found, str):
            return {}, found
        held = self._held_out()
        held.take(found)
        return held.scores(), ""

    def write(self, folder: RunFolder, clock: Clock) -> Run:
        """Score the answers, fit the floor and write the run."""
        clock.start("score")
        self.scores = self.held.scores()
        clock.start("floor")
        floors, why_not = (self.floor_of or Trial.floor)(self)
        clock.start("write")
        (_, metrics), *companions = self.scores.items()
        # Of a floor of several models, the one that is beside heads, too, comes first.
        main = next((name for name in floors if name.startswith("all-")), next(iter(floors), ""))
        split, samples, model = self.split, self.samples, self.model
        idle = int(samples.usable.sum()) - len(split.seen) - len(split.test)
        with writing(f"a run into {folder.parent}"):
            save(model, folder.path, self.source.columns, samples.classes)
            for name, content in self.source.files().items():
                (folder.path / name).write_bytes(content)
            tables.write_split(folder, record_of(samples.ids, split), self.shared)
            confusion = self.held.write(folder, lean=self.shared is not None)
            curves = zip(*model.curves_.values(), strict=True)
            folder.write_csv(tables.CURVES, [*model.curves_], curves)
            run = Run(
                **{**msgspec.structs.asdict(self.config), "recipe": _recipe(model)},
                metrics=metrics,
                floor=floors.get(main),
                floor_missing=why_not,
                also=dict(companions)
                | {name: other for name, other in floors.items() if name != main},
                confusion=confusion,
                n_train=len(split.train),
                n_validation=len(split.validation),
                n_test=len(split.test),
                n_groups=len({*self.held.groups}) if samples.groups else 0,
                copies_held_out=split.copies_held_out(samples),
                left_out_because=self.source.left_out
                | ({"not_in_the_split": idle} if idle else {}),
                training=_training(model),
                seconds={stage: round(value, 3) for stage, value in clock.stop().items()},
                peak_memory=peak_memory(),
                finished=datetime.now(UTC).isoformat(timespec="milliseconds"),
                comparison_key=self.held.comparison_key(self.config.resolution),
            )
            return folder.record(run)

    @functools.cached_property
    def held(self) -> HeldOut:
        """What the model says of the held-out samples."""
        return self._held_out()

    def _held_out(self) -> HeldOut:
        true_mask = self.source.mask if self.source.masks else None
        return HeldOut(self.samples, self.split.test, true_mask)


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
