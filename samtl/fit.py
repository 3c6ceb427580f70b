"""Train one head on one split of a store: a run folder comes out.

The held-out rows are read after the head is trained and everything about it is chosen, and are scored once.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from samtl import metrics, registry
from samtl.datasets import groups_by
from samtl.errors import InputError, UnknownName
from samtl.feed import Feed, Targets, held_in_memory
from samtl.heads._base import PooledHead
from samtl.heads._grid import GridHead
from samtl.heads._save import plain, save
from samtl.machine import peak_memory
from samtl.metrics import Score
from samtl.preprocess import resized_shape
from samtl.runs import FORMAT, RunFolder, runs_folder, split_json
from samtl.runs import FitResult as FitResult
from samtl.splits import Split
from samtl.store.documents import digest
from samtl.store.layout import TIER_ARRAYS
from samtl.store.reader import Store, open_store
from samtl.trial import (
    Clock,
    OnEvent,
    Samples,
    Scores,
    choose,
    left_out,
    published,
    require_pixels,
    score_classes,
    score_maps,
    score_masks,
    versions,
    write_scores,
    write_split,
)

FLOOR_FEATURES = "image_stats"
FLOOR_HEAD = "logreg"
FLOORS = {"classification": "logistic regression on image statistics", "segmentation": "majority"}
_AT_ONCE = 4  # dense embeddings, and masks of 1024 x 1024, in memory at a time

Head = PooledHead | GridHead


def fit_head(
    store: str | Path | Store,
    head: str = "mlp",
    split: float | str | Split | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    *,
    params: Mapping[str, Any] | None = None,
    features: str | None = None,
    group_by: str | None = None,
    same_split_as: str | Path | None = None,
    allow_partial: bool = False,
    on_event: OnEvent | None = None,
) -> FitResult:
    """Train a head on the features of a store, score it on what was held out, write a run folder.

    A fifth of the training part serves as validation part: early stopping and hyper-parameters are decided there.

    Parameters
    ----------
    store : path or Store
    head : str
        A name in `samtl.registry.names("heads")`.
    split : float, str or Split, optional
        The held-out share, in (0, 1): 0.2 is "80-20". Or any other way to hold out: see `samtl.protocols`. Or a split
        of this store's rows, made elsewhere. By default the split that the dataset comes with, else 0.2.
    seed : int
        For the split, the head and the intervals; 0 to 2**32 - 1.
    out : path, optional
        The folder in which the run folder is made; by default `$SAMTL_RUNS`, else `./runs`.
    params : mapping, optional
        Parameters of the head that differ from its defaults.
    features : str, optional
        Which columns of `pooled` a head learns from: patterns of their names without the number, separated by commas,
        such as "mean,std" or "block*".
    group_by : str, optional
        A regular expression that finds what an image was cut from in its id; such groups stay together in every
        part. By default those that the store knows of.
    same_split_as : path, optional
        A run whose held-out, validation and training part are taken over.
    allow_partial : bool
        Whether to go on with a store in which rows are not embedded yet.
    on_event : callable, optional
        Called with each `Stage`, and with each `Epoch` or `Candidate` of the head.

    Raises
    ------
    InputError
        Where there is no such head, parameter or store, the head is for another task, the store is incomplete or lacks
        the features, no such split is possible, or features are not finite.
    ResourceError
        Where the run folder cannot be written.
    """
    clock = Clock(on_event)
    if not 0 <= seed < 2**32:
        raise InputError(f"--seed must lie between 0 and {2**32 - 1}, got {seed}")
    estimator = configured("heads", head, params or {}, seed)
    opened = store if not isinstance(store, (str, Path)) else open_store(store)
    data = Data(opened, array_for(opened, head, estimator), features, group_by, allow_partial)
    parts = Parts(*choose(data.samples, split, seed, same_split_as, group_by))
    given = {
        "store": str(store if isinstance(store, (str, Path)) else opened.path),
        "split": None if isinstance(split, Split) else split,
        "group_by": group_by,
        "same_split_as": None if same_split_as is None else str(same_split_as),
        "allow_partial": allow_partial,
    }
    trial = head_trial(data, head, estimator, parts, seed, given)
    with RunFolder(runs_folder(out)) as folder:
        clock.start("read")
        with trial.refusing():
            trial.train(clock)
        clock.start("score")
        scores = trial.score(folder)
        clock.start("floor")
        floor = trial.floor()
        clock.start("write")
        return trial.conclude(folder, clock, scores, *floor)


class Parts(NamedTuple):
    """Who is held out, and within the others who validates."""

    split: Split
    inner: Split


class Data:
    """The usable rows of a store."""

    def __init__(
        self,
        store: Store,
        array: str,
        features: str | None,
        group_by: str | None,
        allow_partial: bool,
    ) -> None:
        self.store, self.array = store, array
        self.columns, self._chosen = _columns(store, array, features)
        self._held: NDArray[np.float32] | None = None
        self._place = np.full(len(store.sample_ids), -1)  # of a row in what is held
        needed = (array, "mask") if store.task == "segmentation" else (array,)
        valid = store.valid(*needed)
        quarantined = np.zeros_like(valid)
        quarantined[[entry.row for entry in store.quarantined]] = True
        missing = ~valid & ~quarantined
        if missing.any() and not allow_partial:
            raise InputError(
                f"{store.path} is not complete: {missing.sum()} of {len(valid)} rows have no {array!r} yet; run "
                "samtl embed again to finish it, or go on without them with --allow-partial"
            )
        labels = np.asarray(store.labels, dtype=np.int64)
        unlabelled = valid & (labels < 0) if store.task == "classification" else valid & False
        self.left_out = {
            "quarantined": int((~valid & quarantined).sum()),
            "missing": int(missing.sum()),
            "unlabelled": int(unlabelled.sum()),
        }
        usable = valid & ~unlabelled
        if len(store.classes) < 2 or not usable.any():
            raise InputError(
                f"a head needs embedded rows of at least 2 classes, and {store.path} has {usable.sum()} rows that can "
                f"be used, and {len(store.classes)} classes"
            )
        self.samples = Samples(
            str(store.path),
            store.task,
            store.sample_ids,
            store.classes,
            labels,
            usable,
            groups_by(store.sample_ids, group_by) if group_by is not None else store.groups,
            store.parts,
        )

    @functools.cached_property
    def digest(self) -> str:
        """Name the usable samples, with their labels and the hashes of their images."""
        rows = np.flatnonzero(self.samples.usable).tolist()
        ids, labels = self.samples.ids, self.samples.labels
        named = [[ids[i], int(labels[i]), self.store.image_sha256(i)] for i in rows]
        return digest({"classes": list(self.samples.classes), "samples": sorted(named)})

    def hold(self) -> None:
        """Read all features now and keep them, where they are few enough."""
        rows = np.flatnonzero(self.samples.usable)  # others may not be there yet
        if self._held is None and held_in_memory(self.store, self.array, len(rows)):
            values: NDArray[np.float32] = self.store.read(self.array, rows)
            self._place[rows] = np.arange(len(rows))
            self._held = values if self._chosen is None else values[:, self._chosen]

    def features(self, rows: NDArray[np.int64], array: str | None = None) -> NDArray[np.float32]:
        """Read (n, F) features and make sure that they are numbers."""
        name = array or self.array
        values: NDArray[np.float32] = (
            self._held[self._place[rows]]
            if self._held is not None and not array
            else self.store.read(name, rows)
        )
        if not np.isfinite(values).all():
            row, column = np.argwhere(~np.isfinite(values))[0]
            columns = self.store.columns(name) if array or self._held is None else self.columns
            raise InputError(
                f"{name} of sample {self.samples.ids[rows[row]]!r} is not finite in column "
                f"{columns[column]!r}: embed it again, into another store"
            )
        if self._held is not None or self._chosen is None or array:
            return values
        # Else the columns lie one after the other, and products differ in the last digit from those of rows.
        return np.ascontiguousarray(values[:, self._chosen])

    def feeds(self, parts: Parts, labels: NDArray[np.int64] | None) -> tuple[Feed, Feed]:
        """Give the training and validation part as batches."""
        targets = Targets(self.store, labels)
        held = held_in_memory(self.store, self.array, len(parts.split.train))
        training = Feed(self.store, self.array, parts.inner.train, targets, held)
        return training, Feed(self.store, self.array, parts.inner.test, targets, held)


class HeadTrial(ABC):
    """One head on one split of a store.

    Parameters
    ----------
    data : Data
    name : str
        The head's.
    head : Head
        Not trained yet.
    parts : Parts
    seed : int
    given : mapping
        What the user asked for, to be written down.
    warm_start : str
        The run whose weights training begins with, or "".
    """

    def __init__(
        self,
        data: Data,
        name: str,
        head: Head,
        parts: Parts,
        seed: int,
        given: Mapping[str, Any],
        warm_start: str = "",
    ) -> None:
        self.data, self.name, self.head, self.parts, self.seed = data, name, head, parts, seed
        self.warm_start = warm_start
        self.labels, self.classes = data.samples.labels, data.samples.classes
        self.config = _config(data.store, given, name, head, seed, data, parts, warm_start)

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Within a `with` block, what a head calls a wrong value is the user's error."""
        try:
            yield
        except ValueError as error:  # a parameter out of its range
            raise InputError(f"the head {self.name} cannot be trained: {error}") from error

    @abstractmethod
    def train(self, clock: Clock) -> None:
        """Read the training part and learn from it."""

    @abstractmethod
    def answer(
        self, positions: NDArray[np.int64], features: NDArray[Any], folder: RunFolder | None
    ) -> None:
        """Predict some of the held-out samples, by their place among these, from their features."""

    @abstractmethod
    def scores(self) -> Scores:
        """Score the answers, once all held-out samples were predicted."""

    @abstractmethod
    def floor(self) -> tuple[dict[str, Score] | None, str]:
        """Score the floor on the same parts; or say why there is none."""

    @abstractmethod
    def check(self) -> None:
        """Refuse a training part that nothing can be learnt from, as far as the split does not see to that."""

    #: Held-out samples that are predicted at a time.
    at_once: ClassVar[int] = 512
    chances: NDArray[np.float64] | None = None

    def score(self, folder: RunFolder) -> Scores:
        """Read and predict the held-out samples, and score the answers."""
        rows = self.parts.split.test
        read = self.data.features if isinstance(self.head, PooledHead) else self._stored
        for start in range(0, len(rows), self.at_once):
            positions = np.arange(start, min(start + self.at_once, len(rows)))
            self.answer(positions, read(rows[positions]), folder)
        return self.scores()

    def _stored(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        return self.data.store.read(self.data.array, rows)

    def conclude(
        self,
        folder: RunFolder,
        clock: Clock,
        scores: Scores,
        floor: dict[str, Score] | None,
        floor_missing: str,
        shared: Path | None = None,
    ) -> FitResult:
        """Write the run; with `shared`, its split goes there and probabilities are left out."""
        store, head, (split, inner) = self.data.store, self.head, self.parts
        samples = self.data.samples
        with folder.writing():
            save(head, folder.path, self.data.columns, store.classes)
        facts = training_facts(head)
        folder.write_json("config.json", {**self.config, "recipe": facts.get("recipe")})
        write_split(folder, samples, split, inner, shared)
        write_scores(folder, samples, split, scores, head.curves_, self.chances, shared is not None)
        result = FitResult(
            kind="head",
            name=self.name,
            task=store.task,
            metrics=scores.metrics,
            floor=floor,
            floor_missing=floor_missing,
            also={},
            split=split,
            fingerprint=store.fingerprint,
            snapshot=store.snapshot,
            run=folder.path,
            seconds=clock.stop(),
            training=facts,
            peak_memory=peak_memory(),
            features=self.data.array,
            seed=self.seed,
            classes=tuple(store.classes),
            confusion=scores.confusion,
            per_class=scores.per_class,
            images=scores.images,
            n_train=len(inner.train),
            n_validation=len(inner.test),
            n_test=len(split.test),
            left_out_because=left_out(samples, split, self.data.left_out),
            store=store.name,
            dataset=store.dataset,
            encoder=store.encoder,
            weights=store.weights,
            untrained=store.untrained,
            note=store.note,
            warm_start=self.warm_start,
        )
        return published(folder, result, store.name, self.config["digest"])


class _Classification(HeadTrial):
    """One label for each sample."""

    def train(self, clock: Clock) -> None:
        train, held = self.parts.inner.train, self.parts.inner.test
        if isinstance(self.head, PooledHead):
            X, validation = self.data.features(train), self.data.features(held)
            clock.start("fit")
            self.head.fit(X, self.labels[train], (validation, self.labels[held]), clock.on_event)
            return
        feeds = self.data.feeds(self.parts, self.labels)
        clock.start("fit")
        self.head.fit(
            *feeds,
            task="classification",
            n_classes=len(self.classes),
            shape=self.data.store.shape(self.data.array)[1:],
            on_event=clock.on_event,
        )

    def check(self) -> None:
        """See to nothing: splits have every class in both parts."""

    def answer(
        self, positions: NDArray[np.int64], features: NDArray[Any], folder: RunFolder | None
    ) -> None:
        if self.chances is None:
            self.chances = np.full((len(self.parts.split.test), len(self.classes)), np.nan)
        self.chances[positions] = self.head.predict_proba(features)

    def scores(self) -> Scores:
        assert self.chances is not None
        truth = self.labels[self.parts.split.test]
        return score_classes(truth, self.chances, len(self.classes), self.seed)

    def floor(self) -> tuple[dict[str, Score] | None, str]:
        """Logistic regression on image statistics."""
        store, inner = self.data.store, self.parts.inner
        parts = (inner.train, inner.test, self.parts.split.test)
        if FLOOR_FEATURES not in store.arrays:
            return None, f"the store has no {FLOOR_FEATURES}"
        valid = store.valid(FLOOR_FEATURES)
        absent = sum(int((~valid[rows]).sum()) for rows in parts)
        if absent:
            return None, f"the store has no {FLOOR_FEATURES} for {absent} of the rows"
        floor = configured("heads", FLOOR_HEAD, {}, self.seed)
        train, held, test = (self.data.features(rows, FLOOR_FEATURES) for rows in parts)
        y = self.labels
        floor.fit(train, y[parts[0]], validation=(held, y[parts[1]]))
        return metrics.bootstrap(y[parts[2]], floor.predict_proba(test), seed=self.seed), ""


class _Segmentation(HeadTrial):
    """A class for each pixel."""

    at_once = _AT_ONCE

    def train(self, clock: Clock) -> None:
        assert isinstance(self.head, GridHead)  # others have no tier for this task
        feeds = self.data.feeds(self.parts, None)
        self.check()
        clock.start("fit")
        self.head.fit(
            *feeds,
            task="segmentation",
            n_classes=len(self.classes),
            shape=self.data.store.shape(self.data.array)[1:],
            on_event=clock.on_event,
        )

    def check(self) -> None:
        """Refuse a training part that lacks a class; takes note of the most frequent one."""
        pixels = np.zeros(len(self.classes), dtype=np.int64)
        for row in self.parts.inner.train:
            pixels += np.bincount(self._mask(row).ravel(), minlength=256)[: len(self.classes)]
        self._majority = int(np.argmax(pixels))
        require_pixels(self.classes, pixels)

    def answer(
        self, positions: NDArray[np.int64], features: NDArray[Any], folder: RunFolder | None
    ) -> None:
        assert isinstance(self.head, GridHead)
        if not hasattr(self, "_matrices"):
            k = len(self.classes)
            self._matrices = np.zeros((len(self.parts.split.test), k, k), dtype=np.int64)
        ids, rows = self.data.samples.ids, self.parts.split.test[positions]
        shapes = [_shape(self.data.store, row) for row in rows]
        maps = self.head.class_maps(features, shapes, _side(self.data.store))
        for position, row, guess in zip(positions.tolist(), rows, maps, strict=True):
            self._matrices[position] = score_maps(
                folder, position, ids[row], self._mask(row), guess, self.classes
            )

    def scores(self) -> Scores:
        return score_masks(list(self._matrices), self.seed)

    def floor(self) -> tuple[dict[str, Score] | None, str]:
        """The most frequent class everywhere: for roads, that nothing is a road."""
        matrices = []
        for row in self.parts.split.test:
            truth = self._mask(row)
            guess = np.full_like(truth, self._majority)
            matrices.append(score_maps(None, 0, "", truth, guess, self.classes))
        return score_masks(matrices, self.seed).metrics, ""

    def _mask(self, row: int) -> NDArray[np.uint8]:
        """The mask of a row without its padding."""
        height, width = _shape(self.data.store, row)
        mask: NDArray[np.uint8] = self.data.store.row("mask", int(row))[:height, :width]
        return mask


def head_trial(
    data: Data,
    name: str,
    head: Head,
    parts: Parts,
    seed: int,
    given: Mapping[str, Any],
    warm_start: str = "",
) -> HeadTrial:
    """Make the trial for a store's task."""
    kind = _Segmentation if data.store.task == "segmentation" else _Classification
    return kind(data, name, head, parts, seed, given, warm_start)


def stored_masks(
    store: Store, head: GridHead, rows: NDArray[np.int64]
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Predict the masks of some rows, a few at a time.

    Yields
    ------
    row : int
    classes : (height, width) uint8
        Class indices at the encoder's resolution, without padding.
    """
    side = _side(store)
    for start in range(0, len(rows), _AT_ONCE):
        some = rows[start : start + _AT_ONCE]
        shapes = [_shape(store, row) for row in some]
        maps = head.class_maps(store.read(head.tiers["segmentation"], some), shapes, side)
        yield from zip(some.tolist(), maps, strict=True)


def _shape(store: Store, row: int) -> tuple[int, int]:
    """Height and width of a row's image at the encoder's resolution."""
    height, width = store.row("original_size", int(row))
    return resized_shape(int(height), int(width), _side(store))


def _side(store: Store) -> int:
    """Side of the encoder's square in pixels."""
    return int(store.identity["image_size"])


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


def array_for(store: Store, name: str, head: Head) -> str:
    """Give the array that a head reads for the store's task, or say what is missing."""
    array = head.tiers.get(store.task)
    if array is None:
        others = [
            other
            for other in registry.names("heads")
            if store.task in registry.load("heads", other).Head.tiers
        ]
        raise InputError(
            f"the head {name} is for {' and '.join(head.tiers)}, and {store.path} is for {store.task}: heads for that "
            f"are {', '.join(others)}"
        )
    if array not in store.arrays:
        tier = next(tier for tier, held in TIER_ARRAYS.items() if held == array)
        have = [tier for tier, held in TIER_ARRAYS.items() if held in store.arrays]
        raise InputError(
            f"the head {name} needs the tier {tier} for {store.task}, and {store.path} has "
            f"{', '.join(have) or 'none'}: add it with samtl embed --tiers {tier} --out {store.path}, and the "
            "--dataset, --encoder and other options that the store was made with"
        )
    return array


def _columns(
    store: Store, array: str, features: str | None
) -> tuple[tuple[str, ...], NDArray[np.int64] | None]:
    """Give the names of the columns that are learnt from, and which they are where it is not all."""
    if array != "pooled":
        if features is not None:
            raise InputError(
                f"--features chooses columns of pooled, and this head reads {array}: leave it out"
            )
        return (), None
    names = store.columns(array)
    if features is None:
        return names, None
    groups = [name.rpartition("_")[0] for name in names]
    known = list(dict.fromkeys(groups))
    patterns = [pattern.strip() for pattern in features.split(",")]
    for pattern in patterns:
        if not any(fnmatchcase(group, pattern) for group in known):
            raise UnknownName("group of columns", pattern, known)
    kept = [
        i
        for i, group in enumerate(groups)
        if any(fnmatchcase(group, pattern) for pattern in patterns)
    ]
    return tuple(names[i] for i in kept), np.array(kept, dtype=np.int64)


def _config(
    store: Store,
    given: Mapping[str, Any],
    head: str,
    estimator: Head,
    seed: int,
    data: Data,
    parts: Parts,
    warm_start: str,
) -> dict[str, Any]:
    """Give everything that is needed to repeat the run; `digest` covers what decides its outcome."""
    decides: dict[str, Any] = {
        "head": head,
        "params": {name: plain(value) for name, value in estimator.get_params().items()},
        "task": store.task,
        "features": data.array,
        "columns": _named(data.columns, store, data.array),
        "seed": seed,
        "split": split_json(parts.split),
        "validation": split_json(parts.inner),
        "fingerprint": store.fingerprint,
        "samples": data.digest,
    }
    if warm_start:
        decides["start"] = warm_start  # which names what that was trained from in turn
    return {
        "format": FORMAT,
        "kind": "head",
        **decides,
        "digest": digest(decides),
        "bootstrap": {"resamples": metrics.RESAMPLES, "level": metrics.LEVEL, "seed": seed},
        "floor": FLOORS[store.task],
        "given": given,
        "warm_start": warm_start,
        "store": {
            "path": str(given.get("store", store.path)),
            "name": store.name,
            "snapshot": store.snapshot,
            "dataset": store.dataset,
            "identity": store.identity,
            "encoder": store.encoder,
            "weights": store.weights,
            "untrained": store.untrained,
        },
        "classes": list(store.classes),
        "versions": versions(),
    }


def _named(columns: Sequence[str], store: Store, array: str) -> list[str] | str:
    """Name the groups of columns in use; "all" where it is all of them."""
    if not columns or len(columns) == len(store.columns(array)):
        return "all"
    return list(dict.fromkeys(column.rpartition("_")[0] for column in columns))
