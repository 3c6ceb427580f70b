"""A whole case study: embed, train every head and baseline on every split, report.

One folder holds `store/`, `sweep/` and `report/`. Every step resumes: the embedding by its commits, the sweep by its
runs; the report is drawn anew.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samtl import registry
from samtl._runtime import Note
from samtl.datasets import Dataset, resolve
from samtl.embed import api as embed_api
from samtl.embed import plan as planning
from samtl.embed.api import EmbedResult
from samtl.encoders.weights import checkpoints
from samtl.errors import InputError, ResourceError, UnknownName
from samtl.experiment.sources import Data
from samtl.report.api import ReportResult, make_report
from samtl.splits import Samples, parse, select
from samtl.store.reader import open_store
from samtl.store.storage import as_output, stores_in
from samtl.sweep.api import DEFAULT_HEADS, Progress, SweepResult, sweep

STORE, SWEEP, REPORT = "store", "sweep", "report"  # folders of a study
ENCODER, QUICK_ENCODER = "sam_vit_b", "tiny"
SEEDS, QUICK_SEEDS = 3, 2
PER_CLASS, LIMIT = 50, 48  # images in a quick study: of each class; in all if they have masks
_PRETRAINED = "vgg19"  # the baseline whose weights have to be downloaded


@dataclass(frozen=True)
class Case:
    """A case study; the splits are those of a quick and a whole one, `shipped` if the dataset comes with its own."""

    task: str
    dataset: str
    tiers: tuple[str, ...]
    baselines: tuple[str, ...]
    splits: tuple[str, ...]
    quick_splits: tuple[str, ...]
    shipped: tuple[str, ...] = ()
    quick_shipped: tuple[str, ...] = ()

    def planned(self, images: Dataset | Samples, quick: bool) -> tuple[str, ...]:
        """Choose the splits for a dataset."""
        if images.parts and self.shipped:
            return self.quick_shipped if quick else self.shipped
        return self.quick_splits if quick else self.splits


CASES = {
    "eurosat": Case(
        task="classification",
        dataset="eurosat",
        tiers=("pooled", "grid"),
        baselines=("floor", "cnn", _PRETRAINED),
        splits=tuple(f"0.{tenth}" for tenth in range(1, 10)),
        quick_splits=("0.2", "0.5", "0.8"),
    ),
    "roads": Case(
        task="segmentation",
        dataset="roads",
        tiers=("pooled", "grid", "dense"),
        baselines=("floor", "unet"),
        splits=("0.25", "0.5", "0.75", "label:0.25@0.25", "label:0.5@0.25"),
        quick_splits=("0.25", "label:0.5@0.25"),
        shipped=("label:0.1@shipped", "label:0.25@shipped", "label:0.5@shipped", "shipped"),
        quick_shipped=("label:0.25@shipped", "shipped"),
    ),
}


@dataclass(frozen=True)
class Step:
    """A step begins: `embed`, `sweep` or `report`, and the command that does the same alone."""

    name: str
    command: str


#: A `Step` begins; what `samtl.embed`, `samtl.sweep` and `samtl.make_report` (lines) report; the result of each.
Event = Step | embed_api.Event | EmbedResult | Progress | Note | SweepResult | str | ReportResult


@dataclass(frozen=True, eq=False)
class ReproduceResult:
    """The results of a case study."""

    study: str
    out: Path  #: its folder
    embed: EmbedResult
    sweep: SweepResult | None  #: None if embedding was interrupted
    report: ReportResult | None  #: None if there is no sweep
    notes: tuple[str, ...]  #: what differs from the whole study
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return {
            "study": self.study,
            "out": str(self.out),
            "embed": self.embed.to_json(),
            "sweep": self.sweep and self.sweep.to_json(),
            "report": self.report and self.report.to_json(),
            "notes": list(self.notes),
            "seconds": round(self.seconds, 3),
        }


def reproduce(
    study: str,
    *,
    dataset: str | Dataset | None = None,
    root: str | Path | None = None,
    group_by: str | None = None,
    encoder: str | None = None,
    checkpoint: str | Path | None = None,
    device: str = "auto",
    image_size: int | None = None,
    vgg19: str | Path | None = "official",
    out: str | Path | None = None,
    quick: bool = False,
    params: Mapping[str, Mapping[str, Any]] | None = None,
    jobs: int = 1,
    on_event: Callable[[Event], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> ReproduceResult:
    """Run a case study from the images to the report; the same call resumes an interrupted one.

    Parameters
    ----------
    study : {"eurosat", "roads"}
        `eurosat` compares classifiers at held-out shares from 0.1 to 0.9. `roads` compares segmenters on the split that
        the dataset comes with and fractions of its labels, else at held-out shares of 0.25, 0.5 and 0.75 of the scenes
        and fractions of the labels of the first. Both with three seeds.
    dataset
        As for `samtl.embed`: another dataset of the same task.
    root, group_by, checkpoint, image_size
        As for `samtl.embed`.
    encoder : str, optional
        By default `sam_vit_b`, or `tiny` for a quick study.
    device
        As for `samtl.embed`; `vgg19` uses the (first) device, too.
    vgg19 : str, path or None
        Weights of the baseline of that name: `official`, a file, or `random:SEED`. It is left out if the official
        ones cannot be downloaded, in a quick study, and for None (`none` on the command line).
    out : path, optional
        The study's folder; by default `STUDY-study`, or `STUDY-quick` for a quick one.
    quick : bool
        Whether to use fewer images, splits and seeds, for a small machine; the notes say what is left out.
    params, jobs
        As for `samtl.sweep`.
    on_event : callable, optional
        Called with each `Event`.
    should_stop : callable, optional
        As for `samtl.embed`.

    Returns
    -------
    ReproduceResult

    Raises
    ------
    InputError
        If the study, the dataset or an argument is wrong, the folder holds a study of other embeddings, or no split of
        the dataset is possible.
    MismatchError, ResourceError
        As the steps do. Weights that are not available end the study: they are never replaced by others.
    """
    began = time.perf_counter()
    if study not in CASES:
        raise UnknownName("case study", study, CASES)
    case, tell = CASES[study], on_event or (lambda event: None)
    folder = as_output(out) if out is not None else Path(f"{study}-{'quick' if quick else 'study'}")
    notes: list[str] = []

    def note(text: str) -> None:
        notes.append(text)
        tell(Note(text))

    given = case.dataset if dataset is None else dataset
    images = resolve(given, root)
    if images.task != case.task:
        fitting = [name for name, other in CASES.items() if other.task == images.task]
        raise InputError(
            f"the study {study} is one of {case.task}, and {images.name} is for {images.task}: name another --dataset, "
            f"or reproduce {' or '.join(fitting)}"
        )
    name = encoder or (QUICK_ENCODER if quick else ENCODER)
    options: dict[str, Any] = {
        "group_by": group_by,
        "checkpoint": checkpoint,
        "device": device,
        "image_size": image_size,
        "tiers": case.tiers,
        **(_fewer(images) if quick else {}),
        "out": folder / STORE,
    }
    config = planning.EmbedConfig(given, name, root=root, **options)
    store = Path(planning.place_of(config, images.name))
    others = [path for path in map(Path, stores_in(store.parent)) if path.name != store.name]
    if others:  # nothing in such a study could be compared
        raise InputError(
            f"{folder} holds a study of {others[0].name}, and asked for is {store.name}: the dataset, the encoder, its "
            "weights, the image size or the number of images differ; choose another folder with --out"
        )
    baselines = [b for b in case.baselines if b != _PRETRAINED or _available(vgg19, quick, note)]
    if quick:
        few, whole = (", ".join(case.planned(images, small)) for small in (True, False))
        note(
            f"a quick study: {' '.join(f'{key} {n}' for key, n in _fewer(images).items())}, splits {few}, seeds "
            f"{QUICK_SEEDS}, baselines {', '.join(baselines) or 'none'}, encoder {name}; the whole one has all "
            f"{len(images):,} images, splits {whole}, seeds {SEEDS}, baselines {', '.join(case.baselines)}, encoder "
            f"{encoder or ENCODER}"
        )

    source = {"dataset": images.name if isinstance(given, Dataset) else given, "root": root}
    tell(Step("embed", _command("embed", **source, encoder=name, **options)))
    embedded = embed_api.embed(
        given, name, root=root, **options, on_event=tell, should_stop=should_stop
    )
    tell(embedded)
    swept: SweepResult | None = None
    report: ReportResult | None = None
    if not embedded.interrupted:
        chosen = {model: dict(values) for model, values in (params or {}).items()}
        if _PRETRAINED in baselines:
            mine = chosen.setdefault(_PRETRAINED, {})
            if vgg19 != "official":
                mine["checkpoint"] = str(vgg19)
            if device != "auto":
                mine["device"] = device.split(",")[0].replace(":all", "")
        parts: dict[str, Any] = {
            "heads": DEFAULT_HEADS[case.task],
            "splits": _possible(embedded.store, case, quick, note),
            "seeds": QUICK_SEEDS if quick else SEEDS,
            "baselines": baselines,
            "jobs": jobs,
            "out": folder / SWEEP,
        }
        tell(Step("sweep", _command("sweep", cache=embedded.store, **source, **parts, set=chosen)))
        swept = sweep(
            embedded.store, **parts, dataset=given, root=root, params=chosen, on_event=tell
        )
        tell(swept)
        verb = f"report {shlex.quote(str(swept.out))}"
        tell(Step("report", _command(verb, **source, out=folder / REPORT)))
        report = make_report(swept.out, folder / REPORT, dataset=given, root=root, on_event=tell)
        tell(report)
    seconds = time.perf_counter() - began
    return ReproduceResult(study, folder, embedded, swept, report, tuple(notes), seconds)


def _fewer(images: Dataset) -> dict[str, int]:
    """Choose how many images a quick study uses."""
    if images.task == "segmentation":
        return {"limit": min(LIMIT, len(images))}
    least = min((images.labels.count(c) for c in range(len(images.classes))), default=0)
    return {"per_class": min(PER_CLASS, max(least, 1))}  # embed refuses an empty class


def _available(source: str | Path | None, quick: bool, note: Callable[[str], None]) -> bool:
    """Tell whether there are weights for VGG-19; official ones are downloaded now, not after hours."""
    if source is None or quick:
        return False
    try:
        if source == "official":
            checkpoints.download(registry.load("baselines", _PRETRAINED).OFFICIAL)
        else:
            checkpoints.check_source(str(source))
    except ResourceError as error:
        note(
            f"{_PRETRAINED} is left out: {error}. The same command adds it once they are there; --vgg19 none does "
            "without it, --vgg19 random:0 uses untrained weights"
        )
        return False
    return True


def _possible(store: Path | str, case: Case, quick: bool, note: Callable[[str], None]) -> str:
    """List the splits that are possible with this store: with few scenes, not every share can be held out."""
    samples = Data(open_store(store), case.tiers[-1], None, None, False).samples
    found: dict[Any, str] = {}  # by their digests: with few scenes, a fraction is soon all of them
    seeds = range(QUICK_SEEDS if quick else SEEDS)
    for split in case.planned(samples, quick):
        try:
            drawn = [select(samples, parse(split), seed) for seed in seeds]
        except InputError as error:
            why = str(error)
        else:
            digests = tuple((one.digest, one.validation_digest) for one in drawn)
            same = found.setdefault(digests, split)
            why = f"with these images it is the same as {same}" if same != split else ""
        if why:
            note(f"the split {split} is left out: {why}")
    if not found:
        raise InputError(f"{store} cannot be split: {why}")
    return ",".join(found.values())


def _command(verb: str, **options: Any) -> str:
    """Write a command as a user would."""
    words = [f"samtl {verb}"]
    for name, value in options.items():
        if value in (None, ()) or (name, value) in (("device", "auto"), ("jobs", 1)):
            continue
        each = [",".join(value)] if isinstance(value, tuple | list) else [value]
        if name == "set":
            each = [f"{m}.{key}={v}" for m, some in value.items() for key, v in some.items()]
        words += [f"--{name.replace('_', '-')} {shlex.quote(str(one))}" for one in each]
    return " ".join(words)
