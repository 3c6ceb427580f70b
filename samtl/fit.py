"""Train one head on one split of a store: a run folder comes out.

The held-out rows are read after the head is trained and everything about it is chosen, and are scored once.
"""

from __future__ import annotations

import importlib.metadata
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samtl import metrics, registry, splits
from samtl.errors import InputError, UnknownName
from samtl.heads._base import Candidate, Epoch, PooledHead
from samtl.heads._save import plain, save
from samtl.metrics import Score
from samtl.runs import FitResult as FitResult
from samtl.runs import RunFolder, runs_folder, split_json
from samtl.splits import Split
from samtl.store.documents import digest
from samtl.store.reader import Store, open_store

FEATURES = "pooled"
FLOOR_FEATURES = "image_stats"
FLOOR_HEAD = "logreg"
_DOING = {
    "read": "reading the features",
    "fit": "training the head",
    "score": "scoring what was held out",
    "floor": "fitting the floor",
    "write": "writing the run",
}
_LIBRARIES = ("samtl", "numpy", "scipy", "scikit-learn", "torch", "safetensors")


@dataclass(frozen=True)
class Stage:
    """A part of the work begins: `read`, `fit`, `score`, `floor` or `write`."""

    name: str

    def __str__(self) -> str:
        return _DOING[self.name]


OnEvent = Callable[[Stage | Epoch | Candidate], None]


def fit_head(
    store: str | Path | Store,
    head: str = "mlp",
    split: float | Split = 0.2,
    seed: int = 0,
    out: str | Path | None = None,
    *,
    params: Mapping[str, Any] | None = None,
    allow_partial: bool = False,
    on_event: OnEvent | None = None,
) -> FitResult:
    """Train a head on the pooled features of a store, score it on what was held out, write a run folder.

    A fifth of the training part serves as validation part: early stopping and hyper-parameters are decided there.

    Parameters
    ----------
    store : path or Store
    head : str
        A name in `samtl.registry.names("heads")`.
    split : float or Split
        The held-out share, in (0, 1): 0.2 is "80-20". Or a split of this store's rows, made elsewhere.
    seed : int
        For the split, the head and the intervals; 0 to 2**32 - 1.
    out : path, optional
        The folder in which the run folder is made; by default `$SAMTL_RUNS`, else `./runs`.
    params : mapping, optional
        Parameters of the head that differ from its defaults.
    allow_partial : bool
        Whether to go on with a store in which rows are not embedded yet.
    on_event : callable, optional
        Called with each `Stage`, and with each `Epoch` or `Candidate` of the head.

    Raises
    ------
    InputError
        Where there is no such head, parameter or store, the store is incomplete or lacks the features, the share is
        out of range, a class is too small to be in every part, or features are not finite.
    ResourceError
        Where the run folder cannot be written.
    """
    began = time.perf_counter()
    clock = _Clock(on_event or (lambda event: None))
    if not 0 <= seed < 2**32:
        raise InputError(f"--seed must lie between 0 and {2**32 - 1}, got {seed}")
    estimator = _configured(head, params or {}, seed)
    opened = store if not isinstance(store, (str, Path)) else open_store(store)
    data = _Data(opened, split, seed, allow_partial)
    config = _config(opened, store, head, estimator, seed, data)

    with RunFolder(runs_folder(out)) as folder:
        clock.start("read")
        train, held = (
            data.features(FEATURES, rows) for rows in (data.inner.train, data.inner.test)
        )
        clock.start("fit")
        validation = held, data.labels[data.inner.test]
        try:
            estimator.fit(train, data.labels[data.inner.train], validation, clock.on_event)
        except ValueError as error:  # a parameter out of its range
            raise InputError(f"the head {head} cannot be trained: {error}") from error
        del train, held, validation
        clock.start("score")
        truth = data.labels[data.split.test]
        chances = estimator.predict_proba(data.features(FEATURES, data.split.test))
        matrix = metrics.confusion(truth, chances.argmax(1), len(opened.classes))
        scores = metrics.bootstrap(truth, chances, seed=seed)
        clock.start("floor")
        floor, why = _floor(data, seed)
        clock.start("write")

        with folder.writing():
            save(estimator, folder.path, opened.columns(FEATURES), opened.classes)
        folder.write_json("config.json", config)
        _write_tables(folder, data, estimator, matrix, chances)
        clock.stop()
        result = FitResult(
            metrics=scores,
            floor=floor,
            floor_missing=why,
            split=data.split,
            fingerprint=opened.fingerprint,
            snapshot=opened.snapshot,
            run=folder.path,
            seconds={**clock.seconds, "total": time.perf_counter() - began},
            head=head,
            classes=tuple(opened.classes),
            confusion=matrix,
            per_class=metrics.per_class(matrix),
            n_train=len(data.inner.train),
            n_validation=len(data.inner.test),
            n_test=len(data.split.test),
            left_out_because=data.left_out,
            store=opened.name,
            dataset=opened.dataset,
            encoder=opened.encoder,
            weights=opened.weights,
            untrained=opened.untrained,
            note=opened.note,
        )
        content = result.to_json()
        del content["run"]
        folder.write_json("metrics.json", content)
        name = f"{opened.name}-{head}-{data.split.share:g}-s{seed}-{config['digest'][:8]}"
        return replace(result, run=folder.publish(name))


class _Data:
    """The usable rows of a store and their parts; features are read when they are asked for."""

    def __init__(self, store: Store, split: float | Split, seed: int, allow_partial: bool) -> None:
        self.store, self.ids = store, store.sample_ids
        if FEATURES not in store.arrays:
            raise InputError(
                f"the head needs the array {FEATURES!r}, and {store.path} has {', '.join(store.arrays) or 'none'}: "
                f"add it with samtl embed --tiers {FEATURES}"
            )
        valid = store.valid(FEATURES)
        quarantined = np.zeros_like(valid)
        quarantined[[entry.row for entry in store.quarantined]] = True
        missing = ~valid & ~quarantined
        if missing.any() and not allow_partial:
            raise InputError(
                f"{store.path} is not complete: {missing.sum()} of {len(valid)} rows have no {FEATURES!r} yet; run "
                "samtl embed again to finish it, or go on without them with --allow-partial"
            )
        stored = np.asarray(store.labels, dtype=np.int64)
        unlabelled = valid & (stored < 0)
        self.left_out = {
            "quarantined": int((~valid & quarantined).sum()),
            "missing": int(missing.sum()),
            "unlabelled": int(unlabelled.sum()),
        }
        self.labels = np.where(valid, stored, -1)
        if len(store.classes) < 2 or not (self.labels >= 0).any():
            raise InputError(
                f"a classifier needs embedded rows of at least 2 classes, and {store.path} has "
                f"{(self.labels >= 0).sum()} labelled rows of {len(store.classes)} classes"
            )
        if isinstance(split, Split):
            self._check(split)
            self.split = split
        else:
            self.split = splits.holdout(self.ids, self.labels, split, seed, store.classes)
        self.inner = splits.inner(self.split, self.ids, self.labels, classes=store.classes)

    def _check(self, split: Split) -> None:
        rows = np.concatenate([split.train, split.test])
        if (
            rows.min(initial=0) < 0
            or rows.max(initial=0) >= len(self.ids)
            or splits.digest_of(self.ids, split.train, split.test) != split.digest
        ):
            raise InputError(
                f"the split {split.name!r} was made for other samples than those of {self.store.path}"
            )
        unusable = rows[self.labels[rows] < 0]
        if len(unusable):
            raise InputError(
                f"the split {split.name!r} has {len(unusable)} rows that {self.store.path} holds no label or no "
                f"{FEATURES!r} for, such as {self.ids[unusable[0]]!r}"
            )

    def features(self, array: str, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Read (n, F) features and make sure that they are numbers."""
        values: NDArray[np.float32] = self.store.read(array, rows)
        if not np.isfinite(values).all():
            row, column = np.argwhere(~np.isfinite(values))[0]
            raise InputError(
                f"{array} of sample {self.ids[rows[row]]!r} is not finite in column "
                f"{self.store.columns(array)[column]!r}: check the store with samtl verify, and embed it again"
            )
        return values


class _Clock:
    """Times the stages and announces them."""

    def __init__(self, on_event: OnEvent) -> None:
        self.on_event = on_event
        self.seconds: dict[str, float] = {}
        self._stage, self._since = "", 0.0

    def start(self, stage: str) -> None:
        self.stop()
        self._stage, self._since = stage, time.perf_counter()
        self.on_event(Stage(stage))

    def stop(self) -> None:
        if self._stage:
            self.seconds[self._stage] = time.perf_counter() - self._since
        self._stage = ""


def _configured(name: str, params: Mapping[str, Any], seed: int) -> PooledHead:
    made: type[PooledHead] = registry.load("heads", name).Head
    known = made().get_params()
    for key in params:
        if key not in known:
            raise UnknownName(f"parameter of the head {name}", key, known)
    return made(**{"random_state": seed, **params})


def _floor(data: _Data, seed: int) -> tuple[dict[str, Score] | None, str]:
    """Score logistic regression on image statistics, same parts; or say why there is no floor."""
    if FLOOR_FEATURES not in data.store.arrays:
        return None, f"the store has no {FLOOR_FEATURES}"
    valid = data.store.valid(FLOOR_FEATURES)
    parts = (data.inner.train, data.inner.test, data.split.test)
    absent = sum(int((~valid[rows]).sum()) for rows in parts)
    if absent:
        return None, f"the store has no {FLOOR_FEATURES} for {absent} of the rows"
    floor = _configured(FLOOR_HEAD, {}, seed)
    train, held, test = (data.features(FLOOR_FEATURES, rows) for rows in parts)
    y = data.labels
    floor.fit(train, y[parts[0]], validation=(held, y[parts[1]]))
    return metrics.bootstrap(y[parts[2]], floor.predict_proba(test), seed=seed), ""


def _config(
    store: Store,
    given: str | Path | Store,
    head: str,
    estimator: PooledHead,
    seed: int,
    data: _Data,
) -> dict[str, Any]:
    """Give everything that is needed to repeat the run; `digest` covers what decides its outcome."""
    decides = {
        "head": head,
        "params": {name: plain(value) for name, value in estimator.get_params().items()},
        "features": FEATURES,
        "seed": seed,
        "split": split_json(data.split),
        "validation": split_json(data.inner),
        "fingerprint": store.fingerprint,
    }
    return {
        "format": 1,
        **decides,
        "digest": digest(decides),
        "bootstrap": {"resamples": metrics.RESAMPLES, "level": metrics.LEVEL, "seed": seed},
        "floor": {"head": FLOOR_HEAD, "features": FLOOR_FEATURES},
        "store": {
            "path": str(given if isinstance(given, (str, Path)) else store.path),
            "name": store.name,
            "snapshot": store.snapshot,
            "dataset": store.dataset,
            "encoder": store.encoder,
            "weights": store.weights,
            "untrained": store.untrained,
        },
        "versions": {"python": platform.python_version(), **_versions()},
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "unknown"
    return found


def _write_tables(
    folder: RunFolder,
    data: _Data,
    estimator: PooledHead,
    matrix: NDArray[np.int64],
    chances: NDArray[np.float64],
) -> None:
    names, ids = data.store.classes, data.ids
    folder.write_json(
        "split.json",
        {
            **split_json(data.split),
            "validation_digest": data.inner.digest,
            "held_out": [ids[row] for row in data.split.test],
            "validation": [ids[row] for row in data.inner.test],
        },
    )
    folder.write_csv(
        "confusion.csv",
        ["truth", *names],
        ([name, *counts] for name, counts in zip(names, matrix.tolist(), strict=True)),
    )
    curves = estimator.curves_
    folder.write_csv("curves.csv", list(curves), zip(*curves.values(), strict=True))
    folder.write_csv(
        "predictions.csv",
        ["sample_id", "label", "predicted", *(f"p_{name}" for name in names)],
        (
            [
                ids[row],
                names[data.labels[row]],
                names[chance.argmax()],
                *map("{:.9g}".format, chance),
            ]
            for row, chance in zip(data.split.test, chances, strict=True)
        ),
    )
