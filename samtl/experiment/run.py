"""The record of a fit, declared once, and the folder that holds it.

A run folder holds `config.json` (what decided the outcome), `metrics.json` (what came out), `split.json`, the model and
tables. It appears whole or not at all. `metrics.json` names the sha256 of the other files and carries its own checksum,
so that a run whose files do not belong together is recognised.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from samtl._html import table
from samtl._io import (
    AtomicFolder,
    digest,
    file_sha256,
    inside,
    read_json,
    require_size,
    shortened,
)
from samtl.errors import InputError, writing
from samtl.heads.io import CARD, TENSORS
from samtl.metrics import classification, multilabel
from samtl.metrics.classification import PerClass, Score
from samtl.metrics.declared import metrics_of, ranked_by
from samtl.store.storage import as_output

DEFAULT_RUNS = "runs"
FORMAT = 3  # of a run folder
CONFIG, METRICS, SPLIT = "config.json", "metrics.json", "split.json"
MOST_TABLE = 2**29  # bytes of a table that is read
_DECIDES = (
    "kind", "name", "task", "features", "columns", "params", "seed", "split", "validation",
    "samples_digest", "resolution", "order", "warm_start", "dataset", "fingerprint",
)  # fmt: skip

Scores = dict[str, Score]  # by the name of the metric
Count = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]


def runs_folder(out: str | Path | None = None) -> Path:
    """Return the folder of run folders: `out`, else `$SAMTL_RUNS`, else `./runs`."""
    return as_output(out if out is not None else os.environ.get("SAMTL_RUNS") or DEFAULT_RUNS)


class SplitName(Struct, frozen=True):
    """A `samtl.splits.Split` without its rows, or its validation part."""

    name: str
    share: float
    seed: int
    digest: str


class _Model(Struct):
    """What `head.json` repeats of `config.json`."""

    task: str
    class_names: tuple[str, ...]


class _Parts(Struct):
    """What `split.json` repeats of it."""

    digest: str
    validation_digest: str


class Config(Struct, frozen=True, kw_only=True, eq=False):
    """Everything that is needed to repeat a fit: the content of `config.json`."""

    format: int = FORMAT
    kind: Literal["head", "baseline"]
    name: str  #: the head's or baseline's
    task: Literal["classification", "multilabel", "regression", "segmentation"]
    classes: tuple[str, ...]
    features: str  #: an array of the store, or `pixels`
    columns: tuple[str, ...] = ()  #: groups of columns of `pooled` that were chosen; empty for all
    params: dict[str, Any]  #: of the model
    recipe: dict[str, Any] = {}  #: what `params` and the training part resolved to
    seed: int  #: of the split and the model
    split: SplitName
    validation: SplitName  #: cut from the training part
    samples_digest: str  #: of all samples that there are, with their labels, images and masks
    resolution: Count = 0  #: longest side at which masks are scored; 0 for labels
    #: Of samples in training, of a head on grids: `windows`; `own` or `shared` in earlier runs.
    order: str = ""
    warm_start: str = ""  #: the run of a sweep whose weights training began with, or ""
    digest: str = ""  #: of the fields that decide the outcome
    dataset: str
    note: str = ""  #: what readers of figures must know about the dataset
    store: str = (
        ""  #: name of the store that a head learnt from, "" for a baseline, as up to `encoder`
    )
    store_path: str = ""
    fingerprint: str = ""
    snapshot: str = ""
    encoder: str = ""
    identity: dict[str, Any] = {}  #: fields of the fingerprint
    weights: str = ""  #: of the encoder, or of a pretrained baseline
    untrained: bool = False  #: whether these weights are random numbers
    given: dict[str, Any] = {}  #: what the user asked for
    floor_model: str = ""  #: what `Run.floor` are the scores of
    machine: dict[str, Any] = {}  #: processor, its instructions, and what limits their use
    versions: dict[str, str] = {}  #: of Python and the libraries that decide figures

    def with_digest(self) -> Self:
        """Return the configuration with the digest of the fields that decide the outcome."""
        decides = {name: getattr(self, name) for name in _DECIDES}
        return msgspec.structs.replace(self, digest=digest(msgspec.to_builtins(decides)))

    @property
    def run_name(self) -> str:
        """Name of the run folder: what was learnt from, the model, the held-out share, the seed, the digest."""
        split = f"{self.split.share:.3g}-s{self.seed}-{self.digest[:8]}"
        return f"{shortened(self.store or self.dataset, 190)}-{self.name}-{split}"

    @property
    def inputs(self) -> str:
        """What was learnt from: an array, or the chosen columns of `pooled` as `pooled[mean,std]`."""
        return f"{self.features}[{','.join(self.columns)}]" if self.columns else self.features


class Run(Config, frozen=True, kw_only=True, eq=False):
    """A finished fit: the configuration and, from `metrics.json`, what came out.

    Scores are of the held-out samples, with 95 % intervals. Classification: see `samtl.metrics.classification.score`;
    segmentation: see `samtl.metrics.segmentation.score`.
    """

    path: Path = Path()  #: the folder; in neither file
    metrics: Scores
    floor: Scores | None  #: of `floor_model` on the same split
    floor_missing: str  #: why there is no floor, or ""
    also: dict[str, Scores]  #: of further models that were scored in the same run
    #: (K, K), of samples or pixels; rows are the truth. Multilabel: (K, 4), see `samtl.metrics.multilabel.counts`;
    #: regression: (0,).
    confusion: NDArray[np.int64]
    n_train: Count
    n_validation: Count  #: samples that were chosen on; `logreg` then learns from these, too
    n_test: Count
    n_groups: Count = (
        0  #: what the held-out samples were cut from, such as scenes; 0 if that is not known
    )
    #: Held-out samples whose image file is that of another one to train or validate on, too; only in splits that are
    #: given, since no drawn one divides identical images.
    copies_held_out: Count = 0
    #: Samples that are `quarantined`, `missing`, `unlabelled`, `not_in_the_split`.
    left_out_because: dict[str, Count]
    #: `stopped`, `epochs`, `best_epoch`, `samples_per_second`, `waiting` (a share); or empty.
    training: dict[str, Any]
    seconds: dict[str, float]  #: of each stage, and `total`
    peak_memory: Count  #: largest resident size of the process so far, in bytes
    finished: str  #: ISO 8601, UTC
    comparison_key: str  #: runs with the same key may be compared; see `samtl.experiment.held_out`
    files: dict[str, str] = {}  #: sha256 of the other files of the folder, but for masks

    def __repr__(self) -> str:
        """Describe the run in a line."""
        first = ranked_by(self.task)
        score = self.metrics.get(first.name)
        told = f", {first.title} {first.shown(score)}" if score else ""
        source = self.store or self.dataset
        return f"<samtl run {self.path}: {self.name} on {source}, {self.n_test} held out{told}>"

    def _repr_html_(self) -> str:
        """Show the scores in a notebook, beside those of the floor."""
        models = {self.name: self.metrics, **({"floor": self.floor} if self.floor else {})}
        rows = (
            (metric.title, *(metric.shown(scores[metric.name]) for scores in models.values()))
            for metric in metrics_of(self.task)
            if all(metric.name in scores for scores in models.values())
        )
        title = (
            f"{self.name} on {self.store or self.dataset}, {self.n_test} held out, 95 % intervals"
        )
        return table(title, rows, ("", *models))

    def __fspath__(self) -> str:
        """Stand for its folder wherever a path is expected."""
        return str(self.path)

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.path

    @property
    def left_out(self) -> int:
        """How many samples took no part."""
        return sum(self.left_out_because.values())

    @property
    def per_class(self) -> PerClass:
        """Precision, recall, F1 and support of each class; empty if numbers are predicted."""
        if self.task == "multilabel":
            return multilabel.per_class(self.confusion)
        return classification.per_class(self.confusion.reshape((len(self.confusion),) * 2))

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON values."""
        content: dict[str, Any] = msgspec.to_builtins(self, enc_hook=_to_json)
        each = {name: values.tolist() for name, values in asdict(self.per_class).items()}
        content["per_class"] = {
            label: {name: values[i] for name, values in each.items()}
            for i, label in enumerate(self.classes[: len(self.confusion)])
        }
        return {**content, "run": content.pop("path")}


def _to_json(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value.tolist()


def _from_json(kind: Any, value: Any) -> Any:
    if kind is Path:
        return Path(value)
    return np.array(msgspec.convert(value, list[list[Count]]), dtype=np.int64)


def read_run(path: str | os.PathLike[str], *, whole: bool = False) -> Run:
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
    try:
        config, content = read_json(folder / CONFIG, dict), read_json(folder / METRICS, dict)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(
            f"{folder} is no run: expected {CONFIG} and {METRICS}, which samtl fit-head writes"
        ) from error
    if config.get("format") != FORMAT:
        raise InputError(
            f"{folder} has run format {config.get('format')!r}, and this samtl reads {FORMAT}: train again, or use "
            "the samtl that wrote it"
        )
    try:
        if content.pop("checksum", None) != digest(content):
            raise ValueError(f"{METRICS} fails its checksum")
        content |= {**config, "path": str(folder)}
        run = msgspec.convert(content, Run, dec_hook=_from_json)
        k = len(run.classes)
        if run.confusion.shape != {"multilabel": (k, 4), "regression": (0,)}.get(run.task, (k, k)):
            raise ValueError(f"{METRICS} is of other classes than {CONFIG}")
        for name, expected in run.files.items():
            if whole or name != TENSORS:
                _require_file(inside(folder, name), expected)
        _require_agreement(run)
    except (ValueError, OverflowError, RecursionError, OSError) as error:
        raise InputError(f"{folder} is damaged: {error}") from error
    return run


def _require_file(path: Path, sha256: str) -> None:
    """Raise ValueError if a file is larger than a run's can be, or is not the one that was written."""
    if path.name != TENSORS:
        require_size(path.name, path.stat().st_size, MOST_TABLE)
    if file_sha256(path) != sha256:
        raise ValueError(f"{path.name} is not the file that was written with the run")


def _require_agreement(run: Run) -> None:
    """Raise ValueError if scores are none or missing, or the files of a run contradict each other."""
    wanted = {one.name for one in metrics_of(run.task) if one.curve}
    if missing := wanted - run.metrics.keys() | {"total"} - run.seconds.keys():
        raise ValueError(f"{METRICS} lacks {', '.join(sorted(missing))}")
    for scores in (run.metrics, run.floor or {}, *run.also.values()):
        for name, score in scores.items():
            if not -math.inf < score.low <= score.value <= score.high < math.inf:
                raise ValueError(f"the interval of {name} does not hold its value")
    if CARD in run.files:
        model = read_json(run.path / CARD, _Model)
        if (model.task, model.class_names) != (run.task, run.classes):
            raise ValueError(f"{CARD} is of another task or other classes than {CONFIG}")
    if SPLIT in run.files:
        parts = read_json(run.path / SPLIT, _Parts)
        if (parts.digest, parts.validation_digest) != (run.split.digest, run.validation.digest):
            raise ValueError(f"{SPLIT} is of another split than {CONFIG}")


class RunFolder(AtomicFolder):
    """A run folder being written."""

    def __init__(self, parent: Path) -> None:
        with writing(f"a run into {parent}"):
            super().__init__(parent)

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write one JSON object."""
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
        (self.path / name).write_text(text + "\n", encoding="utf-8")

    def write_csv(self, name: str, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Write a table."""
        with (self.path / name).open("w", encoding="utf-8", newline="") as file:
            plain = csv.writer(file, lineterminator="\n")
            quoted = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
            for row in itertools.chain([header], rows):
                # A reader would take it for the end of a line.
                (quoted if any("\r" in str(cell) for cell in row) else plain).writerow(row)

    def record(self, run: Run) -> Run:
        """Write `config.json` and, after all other files, `metrics.json`, and move the folder to its name."""
        content = run.to_json()
        config = {name: content.pop(name) for name in Config.__struct_fields__}
        self.write_json(CONFIG, config)
        files = {p.name: file_sha256(p) for p in sorted(self.path.iterdir()) if p.is_file()}
        del content["run"]
        content["files"] = files
        self.write_json(METRICS, {**content, "checksum": digest(content)})
        path = self.publish(run.run_name)
        return msgspec.structs.replace(run, files=files, path=path)
