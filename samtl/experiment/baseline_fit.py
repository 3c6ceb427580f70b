"""Train one baseline on the pixels of a dataset: a run folder comes out, beside those of the heads.

The same samples give the same split as a store made of them, by digest; what is held out is read for the score alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samtl.baselines.base import PixelBaseline
from samtl.baselines.pixels import read_image, read_mask
from samtl.datasets import (
    Dataset,
    groups_by,
    resolve,
    shuffled,
    subset,
)
from samtl.errors import InputError
from samtl.experiment.run import (
    FitResult,
    RunFolder,
    read_run,
    runs_folder,
    scored_at,
)
from samtl.experiment.trial import (
    Clock,
    OnEvent,
    Parts,
    Samples,
    Scores,
    Trial,
    choose,
    configured,
    require_pixels,
    score_classes,
    score_maps,
    score_masks,
)
from samtl.images.transforms import Preprocessing, mask_square, resized_shape
from samtl.metrics.classification import Score
from samtl.splits import Split
from samtl.store.documents import digest

FLOOR = "floor"
Floors = dict[str, dict[str, Score]]  # figures of each of the floor's models
IMAGE_SIZE = Preprocessing().image_size  # of an encoder, where none is named


def fit_baseline(
    dataset: str | Dataset = "eurosat",
    baseline: str = "cnn",
    split: float | str | Split | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    *,
    root: str | Path | None = None,
    limit: int | None = None,
    per_class: int | None = None,
    group_by: str | None = None,
    same_split_as: str | Path | None = None,
    params: Mapping[str, Any] | None = None,
    on_event: OnEvent | None = None,
) -> FitResult:
    """Train a baseline on the pixels of a dataset, score it on what was held out, write a run folder.

    Parameters
    ----------
    dataset : str or Dataset
        As for `samtl.embed`, with `root`, `limit` and `per_class`: the same images then give the same split.
    baseline : str
        A name in `samtl.registry.names("baselines")`.
    split, seed, out, group_by, same_split_as, on_event
        As for `samtl.fit_head`; `same_split_as` may name a run of a head. Masks are scored at the resolution of that
        run, else at 1024 pixels.
    params : mapping, optional
        Parameters of the baseline that differ from its defaults.

    Raises
    ------
    InputError
        Where there is no such baseline, parameter or dataset, the baseline is for another task, no such split is
        possible, or an image is gone or cannot be used.
    ResourceError
        Where the run folder cannot be written.
    """
    clock = Clock(on_event)
    if not 0 <= seed < 2**32:
        raise InputError(f"--seed must lie between 0 and {2**32 - 1}, got {seed}")
    model: PixelBaseline = configured("baselines", baseline, params or {}, seed)
    data = subset(shuffled(resolve(dataset, root)), limit=limit, per_class=per_class)
    if data.task not in model.tasks:
        raise InputError(
            f"the baseline {baseline} is for {' and '.join(model.tasks)}, and {data.name} is for {data.task}"
        )
    if group_by is not None:
        data = replace(data, groups=groups_by(data.sample_ids, group_by))
    samples = samples_of(data)
    parts = Parts(*choose(samples, split, seed, same_split_as, group_by))
    given = {
        "root": None if root is None else str(root),
        "limit": limit,
        "per_class": per_class,
        "split": None if isinstance(split, Split) else split,
        "group_by": group_by,
        "same_split_as": None if same_split_as is None else str(same_split_as),
    }
    size = IMAGE_SIZE
    if data.task == "segmentation" and same_split_as is not None:
        size = _image_size_of(Path(same_split_as))
    trial = BaselineTrial(data, samples, baseline, model, parts, seed, given, image_size=size)
    with RunFolder(runs_folder(out)) as folder:
        scores, also = trial.run(folder, clock)
        clock.start("floor")
        floor = trial.floor()
        clock.start("write")
        return trial.conclude(folder, clock, scores, also, floor)


class BaselineTrial(Trial):
    """One baseline on one split of a dataset.

    Parameters
    ----------
    data : Dataset
    samples : Samples
        As `samples_of` gives them.
    name : str
        The baseline's.
    model : PixelBaseline
        Not trained yet.
    parts : Parts
    seed : int
    given : mapping
        What the user asked for, to be written down.
    warm_start : str
        The run whose weights training begins with, or "".
    image_size : int
        Masks are scored at this resolution, the encoder's of the heads that they are compared with.
    pixels : str
        A digest of the images and masks, where they were read before; or "".
    """

    def __init__(
        self,
        data: Dataset,
        samples: Samples,
        name: str,
        model: PixelBaseline,
        parts: Parts,
        seed: int,
        given: Mapping[str, Any],
        warm_start: str = "",
        image_size: int = IMAGE_SIZE,
        pixels: str = "",
    ) -> None:
        super().__init__(samples, parts, seed, warm_start)
        self.data, self.name, self.model, self.image_size = data, name, model, image_size
        named: dict[str, Any] = {
            "classes": list(data.classes),
            "samples": sorted(zip(data.sample_ids, data.labels, strict=True)),
        }
        if pixels:
            named["pixels"] = pixels
        decides: dict[str, Any] = {
            "baseline": name,
            "features": "pixels",
            "dataset": data.name,
            "samples": digest(named),
        }
        if data.task == "segmentation":
            decides["image_size"] = image_size
        self.config = self.described("baseline", model, decides, given)

    def run(self, folder: RunFolder, clock: Clock) -> tuple[Scores, dict[str, Scores]]:
        """Train, and score what was held out; gives the scores of the baseline and of its companions."""
        data, inner = self.data, self.parts.inner
        if data.task == "segmentation":
            _require_classes(data, inner.train)
        clock.start("fit")
        self.model.fit(data, inner.train, inner.test, clock.on_event)
        clock.owe(self.model.cached_seconds())
        clock.start("score")
        found, self.chances = self._score(self.model, folder)
        clock.owe(self.model.cached_seconds())
        #: Figures of the baseline and its companions by name, as `floor` gives those of the floor.
        self.figures = {name: scores.metrics for name, scores in found}
        return found[0][1], dict(found[1:])

    def floor(self) -> Floors | None:
        """Fit the floor to the same parts; gives the figures of each of its models, or None of the floor itself."""
        if self.name == FLOOR:
            return None
        floor: PixelBaseline = configured("baselines", FLOOR, {}, self.seed)
        floor.fit(self.data, self.parts.inner.train, self.parts.inner.test)
        return {name: scores.metrics for name, scores in self._score(floor, None)[0]}

    def _score(
        self, model: PixelBaseline, folder: RunFolder | None
    ) -> tuple[list[tuple[str, Scores]], NDArray[np.float64] | None]:
        """Score a fitted baseline and its companions on the held-out images, the principal first.

        Gives the principal's probabilities, too, where there are labels. A principal's masks are kept in the folder.
        """
        data, rows, seed = self.data, self.parts.split.test, self.seed
        predictions = model.predict_all(data, rows, image_size=self.image_size)
        if data.task == "classification":
            blocks = list(predictions)
            labels = np.array(data.labels, dtype=np.int64)[rows]
            by_name = {
                name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]
            }
            found = [
                (name, score_classes(labels, chances, len(data.classes), seed))
                for name, chances in by_name.items()
            ]
            return found, next(iter(by_name.values()))
        matrices: dict[str, list[NDArray[np.int64]]] = {}
        for position, (row, maps) in enumerate(zip(rows.tolist(), predictions, strict=True)):
            truth = self._mask(row)
            for name, guess in maps.items():
                kept = None if name in list(maps)[1:] else folder
                matrix = score_maps(
                    kept, position, data.sample_ids[row], truth, guess, data.classes
                )
                matrices.setdefault(name, []).append(matrix)
        return [(name, score_masks(counted, seed)) for name, counted in matrices.items()], None

    def _mask(self, row: int) -> NDArray[np.uint8]:
        """Read a mask at the encoder's resolution, without padding."""
        mask = read_mask(self.data, row, read_image(self.data, row).shape[:2])
        height, width = resized_shape(mask.shape[0], mask.shape[1], self.image_size)
        return mask_square(mask, self.image_size)[:height, :width]

    def conclude(
        self,
        folder: RunFolder,
        clock: Clock,
        scores: Scores,
        also: Mapping[str, Scores],
        floor: Floors | None,
        shared: Path | None = None,
    ) -> FitResult:
        """Write the run; with `shared`, its split goes there and probabilities are left out."""
        data, model, samples = self.data, self.model, self.samples
        beside = {name: other.metrics for name, other in also.items()}
        if floor is not None:
            beside = {name: other for name, other in floor.items() if name != _floor_name(floor)}
        return self.written(
            folder,
            clock,
            model,
            scores,
            data.name,
            {"unlabelled": int((~samples.usable).sum())},
            shared,
            kind="baseline",
            name=self.name,
            floor=None if floor is None else floor[_floor_name(floor)],
            floor_missing="this is the floor" if floor is None else "",
            also=beside,
            features="pixels",
            fingerprint="",
            snapshot="",
            store="",
            dataset=data.name,
            encoder="",
            weights=model.weights,
            untrained=model.untrained,
            note=data.note,
        )


def samples_of(data: Dataset) -> Samples:
    """Give what splits are made of."""
    labels = np.array(data.labels, dtype=np.int64)
    usable = np.ones(len(data), dtype=bool) if data.task == "segmentation" else labels >= 0
    return Samples(
        data.name, data.task, data.sample_ids, data.classes, labels, usable, data.groups, data.parts
    )


def _require_classes(data: Dataset, rows: NDArray[np.int64]) -> None:
    """Refuse a training part without a pixel of some class, as `fit_head` does."""
    pixels = np.zeros(len(data.classes), dtype=np.int64)
    for row in rows:
        mask = read_mask(data, row, read_image(data, row).shape[:2])
        pixels += np.bincount(mask.ravel(), minlength=256)[: len(data.classes)]
    require_pixels(data.classes, pixels)


def _image_size_of(run: Path) -> int:
    """At which resolution a run's masks were scored."""
    config = read_run(run)
    try:
        return scored_at(config)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{run / 'config.json'} is damaged: {error!r}") from error


def _floor_name(floor: Mapping[str, Any]) -> str:
    """Of the floor's models, the one that heads have beside them, too."""
    return next((name for name in floor if name.startswith("all-")), next(iter(floor)))
