"""A run: what one training came to, and its folder, which is there whole or not at all.

The folder is written under a hidden temporary name beside its place and renamed when complete; a name that is taken
is never touched, the next one is `NAME.2`, then `NAME.3` and so on.
"""

from __future__ import annotations

import csv
import errno
import io
import itertools
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from samtl._io import read_object
from samtl.errors import InputError, ResourceError
from samtl.metrics.classification import PerClass, Score
from samtl.splits import Split
from samtl.store.storage import as_folder

DEFAULT_RUNS = "runs"
FORMAT = 2  # of a run's config.json


def runs_folder(out: str | Path | None = None) -> Path:
    """Where run folders land: `out`, else `$SAMTL_RUNS`, else `./runs`."""
    return as_folder(out if out is not None else os.environ.get("SAMTL_RUNS") or DEFAULT_RUNS)


@dataclass(frozen=True, eq=False)
class FitResult:
    """What one training came to.

    Attributes
    ----------
    kind : str
        `head` or `baseline`.
    name : str
        The head's or baseline's.
    task : str
        `classification` or `segmentation`.
    metrics : dict of str to Score
        On the held-out samples, with 95 % bootstrap intervals. Classification: `accuracy`, `balanced_accuracy`,
        `macro_f1`, `ece`, `log_loss` (nats). Segmentation: see `samtl.metrics.segmentation.bootstrap`.
    floor : dict of str to Score, or None
        The same figures of the floor, same split: of logistic regression on image statistics; of the most frequent
        class everywhere.
    floor_missing : str
        Why there is no floor, or "".
    also : dict
        Further models that were scored in the same run: name to figures.
    split : Split
    fingerprint, snapshot : str
        Of the store; "" where pixels were read.
    run : Path
        The run folder.
    seconds : dict of str to float
        Wall time of each stage, and `total`.
    training : dict
        Of what learns by steps: `stopped` (why it ended), `epochs`, `best_epoch`, `samples_per_second`, and
        `waiting`, the part of the time spent waiting for data; else empty.
    peak_memory : int
        The process's largest resident size so far, in bytes.
    features : str
        What was learnt from: an array of the store, or `pixels`.
    seed : int
        Of the split, the model and the intervals.
    classes : tuple of str
    confusion : (K, K) int64
        Of samples or pixels; rows are the truth.
    per_class : PerClass
    images : dict of str to (n,) float64
        Of a segmentation, the scores of each held-out image; else empty.
    n_train, n_validation, n_test : int
        Samples that were learnt from, chosen on (`logreg` then learns from these, too), and scored on.
    left_out_because : dict of str to int
        Samples that took no part: `quarantined`, `missing` (not embedded yet), `unlabelled`, `not_in_the_split`.
    store, dataset, encoder, weights : str
        "" where there is none.
    untrained : bool
        Whether the weights that features came from are random numbers.
    note : str
        What readers of figures must know about the dataset, or "".
    warm_start : str
        The run of a sweep whose weights training began with, or "".
    """

    kind: str
    name: str
    task: str
    metrics: dict[str, Score]
    floor: dict[str, Score] | None
    floor_missing: str
    also: dict[str, dict[str, Score]]
    split: Split
    fingerprint: str
    snapshot: str
    run: Path
    seconds: dict[str, float]
    training: dict[str, Any]
    peak_memory: int
    features: str
    seed: int
    classes: tuple[str, ...]
    confusion: NDArray[np.int64]
    per_class: PerClass
    images: dict[str, NDArray[np.float64]]
    n_train: int
    n_validation: int
    n_test: int
    left_out_because: dict[str, int]
    store: str
    dataset: str
    encoder: str
    weights: str
    untrained: bool
    note: str
    warm_start: str = ""

    @property
    def left_out(self) -> int:
        """How many samples took no part."""
        return sum(self.left_out_because.values())

    def to_json(self) -> dict[str, Any]:
        """Give the result as JSON values."""
        return {
            self.kind: self.name,
            "task": self.task,
            "metrics": _plain(self.metrics),
            "floor": self.floor and _plain(self.floor),
            "floor_missing": self.floor_missing,
            "also": {name: _plain(scores) for name, scores in self.also.items()},
            "split": split_json(self.split),
            "fingerprint": self.fingerprint,
            "run": str(self.run),
            "seconds": {stage: round(value, 3) for stage, value in self.seconds.items()},
            "training": self.training,
            "peak_memory": self.peak_memory,
            "features": self.features,
            "seed": self.seed,
            "store": self.store,
            "dataset": self.dataset,
            "note": self.note,
            "encoder": self.encoder,
            "weights": self.weights,
            "untrained": self.untrained,
            "warm_start": self.warm_start,
            "snapshot": self.snapshot,
            "counts": {
                "train": self.n_train,
                "validation": self.n_validation,
                "test": self.n_test,
                "left_out": self.left_out_because,
            },
            "per_class": {
                name: {
                    "precision": float(self.per_class.precision[i]),
                    "recall": float(self.per_class.recall[i]),
                    "f1": float(self.per_class.f1[i]),
                    "support": int(self.per_class.support[i]),
                }
                for i, name in enumerate(self.classes)
            },
            "confusion": self.confusion.tolist(),
        }


def _plain(scores: Mapping[str, Score]) -> dict[str, dict[str, float]]:
    return {name: asdict(score) for name, score in scores.items()}


def split_json(split: Split) -> dict[str, Any]:
    """Name a split as JSON values."""
    return {"name": split.name, "share": split.share, "seed": split.seed, "digest": split.digest}


def read_run(path: str | Path, file: str = "config.json") -> dict[str, Any]:
    """Read a JSON object of a run folder.

    Raises
    ------
    InputError
        Where the folder is no run, or the file is not what a run holds.
    """
    try:
        return read_object(Path(path, file))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(
            f"{path} is no run: expected a folder with {file}, which samtl fit-head and samtl fit-baseline write"
        ) from error


class RunFolder:
    """A run folder being written; a context manager that leaves nothing behind unless `publish` was reached.

    Parameters
    ----------
    parent : Path
        Made where it does not exist.

    Attributes
    ----------
    path : Path
        Where files go until it is published.

    Raises
    ------
    ResourceError
        Where the disk does not take it.
    """

    def __init__(self, parent: Path) -> None:
        self.parent = parent
        self.path = parent / f".tmp-{uuid.uuid4().hex}"
        try:
            self.path.mkdir(parents=True)
        except OSError as error:
            raise _refused(parent, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Turn what the disk refuses within a `with` block into a `ResourceError`."""
        try:
            yield
        except OSError as error:
            raise _refused(self.parent, error) from error

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write one JSON object."""
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
        with self.writing():
            (self.path / name).write_text(text + "\n", encoding="utf-8")

    def write_csv(self, name: str, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Write a table."""
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(header)
        table.writerows(rows)
        with self.writing():
            (self.path / name).write_text(text.getvalue(), encoding="utf-8")

    def publish(self, name: str) -> Path:
        """Move the folder to its name, or the next free one; gives its path."""
        with self.writing():
            for entry in self.path.rglob("*"):
                _sync(entry)
            _sync(self.path)
            for count in itertools.count(1):
                target = self.parent / (name if count == 1 else f"{name}.{count}")
                try:
                    # Fails where a file or a folder with content is, and a run folder is never empty.
                    self.path.rename(target)
                except OSError as error:
                    if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                        raise
                else:
                    break
            _sync(self.parent)
        return target


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refused(parent: Path, error: OSError) -> ResourceError:
    return ResourceError(
        f"cannot write a run into {parent}: {error.strerror or error}; "
        "choose another folder with --out, or make room"
    )


def scored_at(config: Mapping[str, Any]) -> int:
    """Give the longest side at which the masks of a run were scored, from its `config.json`; 0 of labels."""
    if config["task"] != "segmentation":
        return 0
    return int(
        config["store"]["identity"]["image_size"] if "store" in config else config["image_size"]
    )
