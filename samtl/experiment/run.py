"""The record of a fit, declared once, and the folder that holds it.

A run folder holds `config.json` (what decided the outcome), `metrics.json` (what came out), `split.json`, the model and
tables. It appears whole or not at all. `metrics.json` names the sha256 of the other files and carries its own checksum,
so that a run whose files do not belong together is recognised.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from samtl._io import AtomicFolder, digest, file_sha256, read_object
from samtl.errors import InputError, ResourceError
from samtl.heads.io import TENSORS
from samtl.metrics import classification
from samtl.metrics.classification import PerClass, Score
from samtl.splits import Split
from samtl.store.remote import as_folder

DEFAULT_RUNS = "runs"
FORMAT = 3  # of a run folder
CONFIG, METRICS = "config.json", "metrics.json"


def runs_folder(out: str | Path | None = None) -> Path:
    """Return the folder of run folders: `out`, else `$SAMTL_RUNS`, else `./runs`."""
    return as_folder(out if out is not None else os.environ.get("SAMTL_RUNS") or DEFAULT_RUNS)


class SplitName(Struct, frozen=True):
    """A split without its rows; see `samtl.splits.Split`."""

    name: str
    share: float
    seed: int
    digest: str

    @classmethod
    def of(cls, split: Split) -> Self:
        """Return the name of a split."""
        return cls(split.name, split.share, split.seed, split.digest)


class Config(Struct, frozen=True, kw_only=True, eq=False):
    """Everything that is needed to repeat a fit: the content of `config.json`.

    Attributes
    ----------
    kind : str
        `head` or `baseline`.
    name : str
        The head's or baseline's.
    task : str
        `classification` or `segmentation`.
    classes : tuple of (K,) str
    features : str
        An array of the store, or `pixels`.
    columns : tuple of str
        Groups of columns of `pooled` that were chosen; empty for all.
    params : dict
        Parameters of the model.
    recipe : dict
        What the parameters and the size of the training part resolved to, such as the batch size.
    seed : int
        Of the split, the model and the intervals.
    split, validation : SplitName
        Who was held out, and who of the others validated.
    samples_digest : str
        Digest of all samples of the dataset or store with their labels, images and masks, as far as these are known.
    resolution : int
        Longest side at which masks are scored; 0 for labels.
    order : str
        For heads on grids `own` or `shared`: whether other heads shared the passes over the store; else "".
    warm_start : str
        The run of a sweep whose weights training began with, or "".
    digest : str
        Of the fields that decide the outcome.
    dataset, note : str
        The dataset's name, and what readers of figures must know about it.
    store, store_path, fingerprint, snapshot, encoder : str
        The store that a head learnt from; "" for a baseline.
    identity : dict
        Fields of the fingerprint; empty for a baseline.
    weights : str
        What the weights of the encoder, or of a pretrained baseline, are; "" if there are none.
    untrained : bool
        Whether these weights are random numbers.
    given : dict
        What the user asked for.
    floor_model : str
        What `floor` holds the scores of.
    versions : dict of str to str
        Of Python and the libraries that decide figures.
    """

    format: int = FORMAT
    kind: str
    name: str
    task: str
    classes: tuple[str, ...]
    features: str
    columns: tuple[str, ...] = ()
    params: dict[str, Any]
    recipe: dict[str, Any] = {}
    seed: int
    split: SplitName
    validation: SplitName
    samples_digest: str
    resolution: int = 0
    order: str = ""
    warm_start: str = ""
    digest: str = ""
    dataset: str
    note: str = ""
    store: str = ""
    store_path: str = ""
    fingerprint: str = ""
    snapshot: str = ""
    encoder: str = ""
    identity: dict[str, Any] = {}
    weights: str = ""
    untrained: bool = False
    given: dict[str, Any] = {}
    floor_model: str = ""
    versions: dict[str, str] = {}

    @property
    def run_name(self) -> str:
        """Name of the run folder: what was learnt from, the model, the held-out share, the seed, the digest."""
        split = f"{self.split.share:.3g}-s{self.seed}-{self.digest[:8]}"
        return f"{self.store or self.dataset}-{self.name}-{split}"

    @property
    def inputs(self) -> str:
        """What was learnt from: an array, or the chosen columns of `pooled` as `pooled[mean,std]`."""
        return f"{self.features}[{','.join(self.columns)}]" if self.columns else self.features


_DECIDES = (
    "kind", "name", "task", "features", "columns", "params", "seed", "split", "validation",
    "samples_digest", "resolution", "order", "warm_start", "dataset", "fingerprint",
)  # fmt: skip


def with_digest(config: Config) -> Config:
    """Return the configuration with the digest of the fields that decide the outcome."""
    return msgspec.structs.replace(config, digest=digest(_builtins(config, _DECIDES)))


class Run(Config, frozen=True, kw_only=True, eq=False):
    """A run folder: the configuration and, from `metrics.json`, what came out.

    Attributes
    ----------
    path : Path
        The folder; in neither file.
    metrics : dict of str to Score
        On the held-out samples, with 95 % bootstrap intervals. Classification: `accuracy`, `balanced_accuracy`,
        `macro_f1`, `ece`, `log_loss` (nats). Segmentation: see `samtl.metrics.segmentation.bootstrap`.
    floor : dict of str to Score, or None
        The same scores of `floor_model`, fitted on the same split.
    floor_missing : str
        Why there is no floor, or "".
    also : dict
        Further models that were scored in the same run: name to scores.
    confusion : (K, K) int64
        Of samples or pixels; rows are the truth.
    n_train, n_validation, n_test : int
        Samples that were learnt from, chosen on (`logreg` then learns from these, too), and scored on.
    left_out_because : dict of str to int
        Samples that took no part: `quarantined`, `missing` (not embedded yet), `unlabelled`, `not_in_the_split`.
    training : dict
        If the model learns by steps: `stopped` (why it ended), `epochs`, `best_epoch`, `samples_per_second`, and
        `waiting`, the part of the time spent waiting for data; else empty.
    seconds : dict of str to float
        Wall time of each stage, and `total`.
    peak_memory : int
        Largest resident size of the process so far, in bytes.
    finished : str
        When, as ISO 8601 in UTC.
    comparison_key : str
        Runs with the same key may be compared: see `comparison_key`.
    files : dict of str to str
        sha256 of the other files of the folder, but for masks.
    """

    path: Path = Path()
    metrics: dict[str, Score]
    floor: dict[str, Score] | None
    floor_missing: str
    also: dict[str, dict[str, Score]]
    confusion: NDArray[np.int64]
    n_train: int
    n_validation: int
    n_test: int
    left_out_because: dict[str, int]
    training: dict[str, Any]
    seconds: dict[str, float]
    peak_memory: int
    finished: str
    comparison_key: str
    files: dict[str, str] = {}

    @property
    def left_out(self) -> int:
        """How many samples took no part."""
        return sum(self.left_out_because.values())

    @property
    def per_class(self) -> PerClass:
        """Precision, recall, F1 and support of each class."""
        return classification.per_class(self.confusion)

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON values."""
        return {
            **_builtins(self, Config.__struct_fields__),
            **figures(self),
            "run": str(self.path),
        }


class FitResult(Run, frozen=True, kw_only=True, eq=False):
    """What one fit came to: its record, with the rows of the split.

    Attributes
    ----------
    split : Split
    images : dict of str to (n,) float64
        Scores of each held-out image of a segmentation; else empty.
    """

    split: Split  # type: ignore[assignment]  # which has the fields of a SplitName
    images: dict[str, NDArray[np.float64]] = {}

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.path


_FIGURES = tuple(
    name for name in Run.__struct_fields__ if name not in (*Config.__struct_fields__, "path")
)


def figures(run: Run) -> dict[str, Any]:
    """Return the content of `metrics.json`, without its checksum, as JSON values."""
    of_each = run.per_class
    names = ("precision", "recall", "f1", "support")
    per_class = {
        label: {name: getattr(of_each, name)[i].item() for name in names}
        for i, label in enumerate(run.classes)
    }
    return {**_builtins(run, _FIGURES), "per_class": per_class}


def comparison_key(
    task: str, classes: Sequence[str], truth: Mapping[str, str], resolution: int
) -> str:
    """Return the digest of what runs must have in common to be compared.

    Parameters
    ----------
    task : str
    classes : sequence of str
    truth : mapping of str to str
        The held-out samples: id to class name, or to the sha256 of the mask that is scored against.
    resolution : int
        As in `Config`.
    """
    held_out = sorted(truth.items())
    return digest(
        {"task": task, "classes": list(classes), "held_out": held_out, "resolution": resolution}
    )


def read_run(path: str | Path, *, whole: bool = False) -> Run:
    """Read a run folder and check that its files belong together.

    Parameters
    ----------
    path : path
    whole : bool
        Whether to hash the model's tensors, too, which may be large.

    Raises
    ------
    InputError
        The folder is no run, is of another format, or is damaged.
    """
    folder = Path(path)
    config = _object(folder, CONFIG)
    if config.get("format") != FORMAT:
        raise InputError(
            f"{folder} has run format {config.get('format')!r}, and this samtl reads {FORMAT}: train again, or use the "
            "samtl that wrote it"
        )
    content = _object(folder, METRICS)
    try:
        if content.pop("checksum", None) != digest(content):
            raise ValueError(f"{METRICS} fails its checksum")
        run = msgspec.convert({**content, **config}, Run, dec_hook=_from_json)
        if run.confusion.shape != (len(run.classes),) * 2 or not run.metrics:
            raise ValueError(f"{METRICS} is of other classes than {CONFIG}")
        for name, expected in run.files.items():
            if (whole or name != TENSORS) and file_sha256(folder / name) != expected:
                raise ValueError(f"{name} is not the file that was written with the run")
    except FileNotFoundError as error:
        raise InputError(
            f"{folder} is damaged: {Path(str(error.filename)).name} is missing"
        ) from error
    except (ValueError, RecursionError, OSError) as error:
        raise InputError(f"{folder} is damaged: {error}") from error
    return msgspec.structs.replace(run, path=folder)


def _object(folder: Path, name: str) -> dict[str, Any]:
    try:
        return read_object(folder / name)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(
            f"{folder} is no run: expected a folder with {name}, which samtl fit-head and samtl fit-baseline write"
        ) from error


def _builtins(record: Config, names: Iterable[str]) -> dict[str, Any]:
    """Return some fields of a record as JSON values."""
    found = {name: getattr(record, name) for name in names}
    split = found.get("split")
    if isinstance(split, Split):
        found["split"] = SplitName.of(split)
    values: dict[str, Any] = msgspec.to_builtins(found, enc_hook=_to_json)
    return values


def _to_json(value: Any) -> Any:
    return value.tolist()  # of numpy


def _from_json(kind: type, value: Any) -> Any:
    return np.array(value, dtype=np.int64)  # the confusion


class RunFolder(AtomicFolder):
    """A run folder being written: an `AtomicFolder` whose errors are `ResourceError`s."""

    def __init__(self, parent: Path) -> None:
        self.parent = parent
        with self.writing():
            super().__init__(parent)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Turn an OSError within a `with` block into a `ResourceError`."""
        try:
            yield
        except OSError as error:
            raise ResourceError(
                f"cannot write a run into {self.parent}: {error.strerror or error}; choose another folder with --out, "
                "or make room"
            ) from error

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write one JSON object."""
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
        with self.writing():
            (self.path / name).write_text(text + "\n", encoding="utf-8")

    def write_csv(self, name: str, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Write a table."""
        with self.writing(), (self.path / name).open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(header)
            table.writerows(rows)

    def record(self, result: FitResult) -> FitResult:
        """Write `config.json` and, after all other files, `metrics.json`, and move the folder to its name."""
        self.write_json(CONFIG, _builtins(result, Config.__struct_fields__))
        with self.writing():
            files = {p.name: file_sha256(p) for p in sorted(self.path.iterdir()) if p.is_file()}
            result = msgspec.structs.replace(result, files=files)
            content = figures(result)
            self.write_json(METRICS, {**content, "checksum": digest(content)})
            path = self.publish(result.run_name, numbered=True)
        return msgspec.structs.replace(result, path=path)
