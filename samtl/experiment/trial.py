"""What every trial has in common, whether it reads a store or pixels: who is held out, the scores, the tables."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.base import BaseEstimator

from samtl import registry, splits
from samtl._runtime import peak_memory
from samtl.errors import InputError, UnknownName
from samtl.experiment.run import FORMAT, FitResult, RunFolder, split_json
from samtl.heads.base import Candidate, Epoch
from samtl.heads.io import plain, save
from samtl.images.transforms import IGNORE
from samtl.metrics import classification as metrics
from samtl.metrics import segmentation as pixel_metrics
from samtl.metrics.classification import PerClass, Score
from samtl.splits import Split, read_split
from samtl.splits import spec as split_spec
from samtl.splits.spec import Samples as Samples
from samtl.store import documents

DEFAULT_SHARE = 0.2
FLOORS = {"classification": "logistic regression on image statistics", "segmentation": "majority"}
_DOING = {
    "read": "reading the features",
    "fit": "training",
    "score": "scoring what was held out",
    "floor": "fitting the floor",
    "write": "writing the run",
}
_LIBRARIES = ("samtl", "numpy", "scipy", "scikit-learn", "torch", "safetensors")

Rows = NDArray[np.int64]


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
        """End the stage before and begin another."""
        self.stop()
        self._stage, self._since = stage, time.perf_counter()
        self.on_event(Stage(stage))

    def owe(self, seconds: float) -> None:
        """Count towards this stage what was spent before on something that it makes use of."""
        self._since -= seconds
        self._began -= seconds

    def stop(self) -> dict[str, float]:
        """End the last stage; gives the seconds of each, and `total`."""
        now = time.perf_counter()
        if self._stage:
            self.seconds[self._stage] = now - self._since
        self._stage = ""
        return {**self.seconds, "total": now - self._began}


class SharedClock(Clock):
    """Times a trial that takes turns with others: only what is spent on it counts, in `total`, too."""

    @contextmanager
    def spending(self, stage: str) -> Iterator[None]:
        """Count what a `with` block takes towards a stage."""
        began = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - began
            self.seconds[stage] = self.seconds.get(stage, 0.0) + spent

    def stop(self) -> dict[str, float]:
        """End the last stage; gives the seconds of each, and their sum as `total`."""
        super().stop()
        return {**self.seconds, "total": sum(self.seconds.values())}


class Parts(NamedTuple):
    """Who is held out, and within the others who validates."""

    split: Split
    inner: Split


def training_facts(model: Any) -> dict[str, Any]:
    """Give how training went, of a model that learns by steps."""
    if not hasattr(model, "stopped_"):
        return {}
    facts: dict[str, Any] = {
        "stopped": model.stopped_,
        "epochs": model.n_iter_,
        "best_epoch": model.best_epoch_,
    }
    return facts | {
        "samples_per_second": round(model.rate_, 2),
        "waiting": round(model.waiting_, 4),
        "recipe": asdict(model.recipe_),
    }


def configured(kind: str, name: str, params: Mapping[str, Any], seed: int) -> Any:
    """Make a head or baseline with its parameters, refusing those that it does not have or that are out of range."""
    module = registry.load(kind, name)
    made = module.Head if kind == "heads" else module.Baseline
    known = made().get_params()
    for key in params:
        if key not in known:
            raise UnknownName(f"parameter of the {kind.removesuffix('s')} {name}", key, known)
    model = made(**{"random_state": seed, **params})
    try:
        model._check()
    except (TypeError, ValueError, InputError) as error:
        told = ", ".join(f"{key} = {value!r}" for key, value in params.items())
        among = f" with {told}" if isinstance(error, TypeError) else ""  # names no parameter
        raise InputError(
            f"the {kind.removesuffix('s')} {name} cannot be trained{among}: {error}"
        ) from error
    return model


def choose(
    samples: Samples,
    split: float | str | Split | None,
    seed: int,
    same_split_as: str | Path | None,
    group_by: str | None = None,
) -> tuple[Split, Split]:
    """Decide who is held out, and which of the others validate.

    Parameters
    ----------
    samples : Samples
    split : float, str, Split or None
        A split spec (see `samtl.splits.spec`), such as the held-out share; None is the split that the dataset comes
        with, where there is one, else 0.2. Or a split of the same samples, made elsewhere.
    seed : int
    same_split_as : path, optional
        A run whose parts are to be taken over, validation part included.
    group_by : str, optional
        What the user wants kept together; refused where that has no bearing on the split.

    Returns
    -------
    split, inner : Split

    Raises
    ------
    InputError
        Where no such split of these samples is possible.
    ResourceError
        Where lists of samples cannot be downloaded.
    """
    if same_split_as is not None:
        if split is not None:
            raise InputError(
                "--split and --same-split-as exclude each other; leave one of them out"
            )
        if group_by is not None:
            raise InputError(
                "--group-by and --same-split-as exclude each other: the run's split is taken as it is; leave one out"
            )
        return split_spec.reuse(samples, read_split(same_split_as), same_split_as)
    if split is None:
        split = split_spec.SHIPPED if samples.parts else DEFAULT_SHARE
    if isinstance(split, Split):
        _require_same_samples(samples, split)
        return split, split_spec.validation_of(samples, split)
    spec = split_spec.parse(split)
    if group_by is not None and not spec.draws:
        raise InputError(
            f"--group-by has no bearing on --split {spec.text}, which takes the samples of {samples.where} as they "
            "are listed: give a share, such as --split 0.2, or leave it out"
        )
    return split_spec.select(samples, spec, seed)


def same_samples(samples: Samples, split: Split) -> bool:
    """Tell whether the rows of a split are, among these, the samples that it was made for."""
    rows = np.concatenate([split.train, split.test])
    return (
        rows.min(initial=0) >= 0
        and rows.max(initial=0) < len(samples.ids)
        and splits.digest_of(samples.ids, split.train, split.test) == split.digest
    )


def _require_same_samples(samples: Samples, split: Split) -> None:
    if not same_samples(samples, split):
        raise InputError(
            f"the split {split.name!r} was made for other samples than those of {samples.where}"
        )
    split_spec.require_usable(samples, split)


@dataclass(frozen=True)
class Scores:
    """What a trial came to on the held-out samples.

    Attributes
    ----------
    metrics : dict of str to Score
    confusion : (K, K) int64
        Of samples, or of all pixels; rows are the truth.
    per_class : PerClass
    images : dict of str to (n,) float64
        Scores of each image of a segmentation, in the order of the held-out samples; else empty.
    """

    metrics: dict[str, Score]
    confusion: NDArray[np.int64]
    per_class: PerClass
    images: dict[str, NDArray[np.float64]]


def score_classes(truth: Rows, chances: NDArray[np.float64], n_classes: int, seed: int) -> Scores:
    """Score class probabilities, (n, K), against class indices, (n,)."""
    matrix = metrics.confusion(truth, chances.argmax(1), n_classes)
    found = metrics.bootstrap(truth, chances, seed=seed)
    return Scores(found, matrix, metrics.per_class(matrix), {})


def score_masks(matrices: Sequence[NDArray[np.int64]], seed: int) -> Scores:
    """Score the confusions, (K, K) each, of the masks of several images."""
    stacked = np.stack(matrices)
    total = stacked.sum(0)
    return Scores(
        pixel_metrics.bootstrap(stacked, seed=seed),
        total,
        metrics.per_class(total),
        pixel_metrics.per_image(stacked),
    )


def score_maps(
    folder: RunFolder | None,
    position: int,
    sample_id: str,
    truth: NDArray[np.uint8],
    guess: NDArray[np.uint8],
    classes: Sequence[str],
) -> NDArray[np.int64]:
    """Count the pixels of one predicted mask, (height, width), and keep it in the folder, if there is one.

    Raises
    ------
    InputError
        Where no pixel of the true mask is of a known class.
    """
    if (truth == IGNORE).all():
        raise InputError(
            f"the mask of sample {sample_id!r} has no pixel of a known class, so nothing can be scored"
        )
    if folder is not None:
        with folder.writing():
            path = folder.path / "masks" / mask_name(position, sample_id)
            path.parent.mkdir(exist_ok=True)
            write_mask(path, guess)
    return pixel_metrics.confusion(truth, guess, len(classes))


def require_pixels(classes: Sequence[str], pixels: NDArray[np.int64]) -> None:
    """Refuse a training part that a class has no pixel in.

    Raises
    ------
    InputError
        Naming the class.
    """
    absent = [name for name, n in zip(classes, pixels, strict=True) if not n]
    if absent:
        raise InputError(
            f"no pixel of the training part is of class {absent[0]!r}, so it cannot be learnt: choose another "
            "--seed or a smaller --split, or see whether the masks' values were named rightly"
        )


def versions() -> dict[str, str]:
    """Name the versions of Python and of the libraries that decide figures."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "unknown"
    return found


def not_in(samples: Samples, split: Split) -> Rows:
    """Rows that are in neither part: unusable, or left out by the run whose split this is."""
    taken = np.concatenate([split.train, split.test])
    return np.setdiff1d(np.arange(len(samples.ids)), taken)


def left_out(samples: Samples, split: Split, why: Mapping[str, int]) -> dict[str, int]:
    """Count the rows that take no part by reason, those that are usable but not in the split among them."""
    others = int(samples.usable[not_in(samples, split)].sum())
    return {**why, "not_in_the_split": others} if others else dict(why)


def write_split(
    folder: RunFolder, samples: Samples, split: Split, inner: Split, shared: Path | None = None
) -> None:
    """Write who was held out, who validated, and who took no part; everyone else was learnt from.

    With `shared`, a folder beside that of the runs, the lists go there, once for all runs of the split.
    """
    names = {
        **split_json(split),
        "validation_digest": inner.digest,
        "validation_share": inner.share,
    }
    lists = {
        "held_out": [samples.ids[row] for row in split.test],
        "validation": [samples.ids[row] for row in inner.test],
        "left_out": [samples.ids[row] for row in not_in(samples, split)],
    }
    whole = {**names, **lists}
    if shared is None:
        folder.write_json("split.json", whole)
        return
    # The digests do not tell who took no part.
    file = f"{split.digest[:16]}-{inner.digest[:8]}-{documents.digest(whole)[:8]}.json"
    with folder.writing():
        if not (shared / file).exists():
            shared.mkdir(exist_ok=True)
            # Several processes may write the same text at once.
            writing = shared / f".{file}.{folder.path.name}"
            writing.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
            writing.replace(shared / file)
    folder.write_json("split.json", {**names, "file": f"../../{shared.name}/{file}"})


def write_scores(
    folder: RunFolder,
    samples: Samples,
    split: Split,
    scores: Scores,
    curves: Mapping[str, list[Any]],
    chances: NDArray[np.float64] | None,
    lean: bool = False,
) -> None:
    """Write confusion, curves, and the predictions or the scores of each image; `lean` leaves out probabilities."""
    names, ids = samples.classes, samples.ids
    folder.write_csv(
        "confusion.csv",
        ["truth", *names],
        ([name, *counts] for name, counts in zip(names, scores.confusion.tolist(), strict=True)),
    )
    folder.write_csv("curves.csv", list(curves), zip(*curves.values(), strict=True))
    if chances is not None:
        folder.write_csv(
            "predictions.csv",
            ["sample_id", "label", "predicted", *([] if lean else [f"p_{name}" for name in names])],
            (
                [
                    ids[row],
                    names[samples.labels[row]],
                    names[chance.argmax()],
                    *([] if lean else map("{:.9g}".format, chance)),
                ]
                for row, chance in zip(split.test, chances, strict=True)
            ),
        )
    else:
        figures = scores.images
        folder.write_csv(
            "images.csv",
            ["sample_id", "mask", *figures],
            (
                [ids[row], f"masks/{mask_name(i, ids[row])}", *map("{:.6g}".format, values)]
                for i, (row, *values) in enumerate(zip(split.test, *figures.values(), strict=True))
            ),
        )


def published(folder: RunFolder, result: FitResult, source: str, digest: str) -> FitResult:
    """Write the figures, and move the folder to its name: of what it learnt from, the model, the split, the seed."""
    content = result.to_json()
    del content["run"]
    folder.write_json("metrics.json", content)
    return replace(
        result,
        run=folder.publish(run_name(source, result.name, result.split, result.seed, digest)),
    )


def run_name(source: str, model: str, split: Split, seed: int, digest: str) -> str:
    """Name a run: what it learnt from, the model, the held-out share, the seed, and what decides its outcome."""
    return f"{source}-{model}-{split.share:.3g}-s{seed}-{digest[:8]}"


def mask_name(position: int, sample_id: str) -> str:
    """Name the file of a predicted mask; an id may hold anything, its place makes it unique."""
    return f"{position:05d}_{re.sub(r'[^A-Za-z0-9._-]+', '_', sample_id)[-120:]}.png"


def write_mask(path: Path, classes: NDArray[np.uint8]) -> None:
    """Write a map of class indices, (height, width), as a PNG whose palette lets a person see them."""
    image = Image.fromarray(classes)
    image.putpalette(PALETTE)  # which turns grey levels into indices
    image.save(path, "PNG")


def _palette() -> bytes:
    """Black for the background, then Okabe and Ito's colours, which colour-blind readers can tell apart, repeated."""
    colours = ["e69f00", "56b4e9", "009e73", "f0e442", "0072b2", "d55e00", "cc79a7"]
    return bytes(3) + b"".join(bytes.fromhex(colours[i % len(colours)]) for i in range(255))


PALETTE = _palette()


class Trial:
    """A model on one split: what heads on a store and baselines on pixels have in common.

    Parameters
    ----------
    samples : Samples
    parts : Parts
    seed : int
    warm_start : str
        The run whose weights training begins with, or "".

    Attributes
    ----------
    config : dict
        What is needed to repeat the run: see `described`.
    chances : (n, K) float64 or None
        Of the held-out samples, once they are answered; None of masks.
    """

    config: dict[str, Any]
    chances: NDArray[np.float64] | None = None

    def __init__(self, samples: Samples, parts: Parts, seed: int, warm_start: str) -> None:
        self.samples, self.parts, self.seed, self.warm_start = samples, parts, seed, warm_start

    def described(
        self,
        kind: str,
        model: BaseEstimator,
        decides: Mapping[str, Any],
        given: Mapping[str, Any],
        **more: Any,
    ) -> dict[str, Any]:
        """Give everything that is needed to repeat the run; `digest` covers what decides its outcome."""
        task, (split, inner) = self.samples.task, self.parts
        decides = {
            **decides,
            "params": {name: plain(value) for name, value in model.get_params().items()},
            "task": task,
            "seed": self.seed,
            "split": split_json(split),
            "validation": split_json(inner),
        }
        if self.warm_start:
            decides["start"] = self.warm_start  # which names what that was trained from in turn
        return {
            "format": FORMAT,
            "kind": kind,
            **decides,
            "digest": documents.digest(decides),
            "bootstrap": {
                "resamples": metrics.RESAMPLES,
                "level": metrics.LEVEL,
                "seed": self.seed,
            },
            "floor": FLOORS[task],
            "given": given,
            "warm_start": self.warm_start,
            **more,
            "classes": list(self.samples.classes),
            "versions": versions(),
        }

    def written(
        self,
        folder: RunFolder,
        clock: Clock,
        model: Any,
        scores: Scores,
        source: str,
        left: Mapping[str, int],
        shared: Path | None,
        columns: Sequence[str] = (),
        **about: Any,
    ) -> FitResult:
        """Write the run and give its result; with `shared`, its split goes there and probabilities are left out.

        `about` has the fields of the result that only heads, or only baselines, know of.
        """
        samples, (split, inner) = self.samples, self.parts
        with folder.writing():
            save(model, folder.path, columns, samples.classes)
        facts = training_facts(model)
        folder.write_json("config.json", {**self.config, "recipe": facts.get("recipe")})
        write_split(folder, samples, split, inner, shared)
        lean = shared is not None
        write_scores(folder, samples, split, scores, model.curves_, self.chances, lean)
        result = FitResult(
            task=samples.task,
            metrics=scores.metrics,
            split=split,
            run=folder.path,
            seconds=clock.stop(),
            training=facts,
            peak_memory=peak_memory(),
            seed=self.seed,
            classes=tuple(samples.classes),
            confusion=scores.confusion,
            per_class=scores.per_class,
            images=scores.images,
            n_train=len(inner.train),
            n_validation=len(inner.test),
            n_test=len(split.test),
            left_out_because=left_out(samples, split, left),
            warm_start=self.warm_start,
            **about,
        )
        return published(folder, result, source, self.config["digest"])
