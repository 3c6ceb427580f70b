"""A whole case study in one go: the encoder's pass, every head and baseline on every split, the report.

One folder holds it: `store/`, `sweep/` and `report/`. Every step goes on where it was, the pass by its commits and the
sweep by its cells; the report is drawn anew.
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
from samtl.embed import api as embedding
from samtl.embed import plan as planning
from samtl.embed.api import EmbedResult
from samtl.encoders import checkpoints as weights
from samtl.errors import InputError, ResourceError, UnknownName
from samtl.experiment.features import Data
from samtl.report.api import ReportResult, make_report
from samtl.splits import Samples, parse, select
from samtl.store.find import stores_in
from samtl.store.layout import TIER_ARRAYS
from samtl.store.reader import open_store
from samtl.store.remote import as_folder
from samtl.sweep.api import (
    DEFAULT_HEADS,
    Progress,
    SweepResult,
    sweep,
)

STORE, SWEEP, REPORT = "store", "sweep", "report"  # folders of a study
ENCODER, QUICK_ENCODER = "sam_vit_b", "tiny"
SEEDS, QUICK_SEEDS = 3, 2
PER_CLASS, LIMIT = (
    50,
    48,
)  # images that a quick study takes: of each class; in all, where they have masks
_FROZEN = "vgg19"  # the baseline whose weights must be had first


@dataclass(frozen=True)
class Case:
    """What one case study is made of.

    Attributes
    ----------
    task, dataset : str
    tiers : tuple of str
        That its heads read.
    baselines : tuple of str
    splits, quick_splits : tuple of str
        See `samtl.splits.spec`.
    shipped, quick_shipped : tuple of str
        The same for a dataset that comes with a split of its own; or empty.
    """

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
        "classification", "eurosat", ("pooled", "grid"), ("floor", "cnn", _FROZEN),
        splits=tuple(f"0.{tenth}" for tenth in range(1, 10)),
        quick_splits=("0.2", "0.5", "0.8"),
    ),
    "roads": Case(
        "segmentation", "roads", planning.TIERS, ("floor", "unet"),
        splits=("0.25", "0.5", "0.75", "label:0.25@0.25", "label:0.5@0.25"),
        quick_splits=("0.25", "label:0.5@0.25"),
        shipped=("label:0.1@shipped", "label:0.25@shipped", "label:0.5@shipped", "shipped"),
        quick_shipped=("label:0.25@shipped", "shipped"),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Step:
    """A step that begins.

    Attributes
    ----------
    name : str
        `embed`, `sweep` or `report`.
    command : str
        What does the same alone on the command line.
    """

    name: str
    command: str


#: What happens: a `Step` begins; what `samtl.embed`, `samtl.sweep` and, as lines, `samtl.make_report` tell; its result.
Event = Step | embedding.Event | EmbedResult | Progress | Note | SweepResult | str | ReportResult


@dataclass(frozen=True, eq=False)
class ReproduceResult:
    """What a case study came to.

    Attributes
    ----------
    study : str
    out : Path
        Its folder.
    embed : EmbedResult
    sweep : SweepResult or None
        None where the pass was interrupted.
    report : ReportResult or None
        None where there is no sweep.
    notes : tuple of str
        What is not as in the whole study.
    seconds : float
    """

    study: str
    out: Path
    embed: EmbedResult
    sweep: SweepResult | None
    report: ReportResult | None
    notes: tuple[str, ...]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Give the result as JSON values."""
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
    """Do a case study from the images to the report; the same call goes on with one that was interrupted.

    Parameters
    ----------
    study : {"eurosat", "roads"}
        `eurosat` compares classifiers at held-out shares from 0.1 to 0.9. `roads` compares segmenters: on the split
        that the dataset comes with and fractions of its labels, else at held-out shares of 0.25, 0.5 and 0.75 of the
        scenes and fractions of the labels of the first. Each with three seeds.
    dataset, root, group_by
        As for `samtl.embed`: another dataset of the same task.
    encoder : str, optional
        By default `sam_vit_b`, for a quick study `tiny`.
    checkpoint, device, image_size
        Of the encoder, and the (first) device of `vgg19`, too: as for `samtl.embed`.
    vgg19 : str, path or None
        Weights of the baseline of that name: `official`, a file, or `random:SEED`. It is left out where the official
        ones cannot be had, where None is given, and in a quick study.
    out : path, optional
        The study's folder; by default `STUDY-study`, and `STUDY-quick` for a quick one.
    quick : bool
        Whether to take fewer images, splits and seeds, for a small machine; the notes say what is left out.
    params, jobs
        As for `samtl.sweep`.
    on_event : callable, optional
        Called with each `Event`.
    should_stop : callable, optional
        As for `samtl.embed`: ends the study after the block in flight, while there is a pass.

    Returns
    -------
    ReproduceResult

    Raises
    ------
    InputError
        For a study, dataset or argument that is not what it must be; where the folder holds a study of other
        embeddings; where no split of the dataset is possible.
    MismatchError, LockedError, ResourceError
        As the steps do. Weights that cannot be had end the study: no others are taken in their place.
    """
    began = time.perf_counter()
    if study not in CASES:
        raise UnknownName("case study", study, CASES)
    case, tell = CASES[study], on_event or (lambda event: None)
    folder = as_folder(out) if out is not None else Path(f"{study}-{'quick' if quick else 'study'}")
    notes: list[str] = []

    def note(text: str) -> None:
        notes.append(text)
        tell(Note(text))

    given = case.dataset if dataset is None else dataset
    images = resolve(given, root)
    _require_task(study, images)
    name = encoder or (QUICK_ENCODER if quick else ENCODER)
    options: dict[str, Any] = {
        "root": root, "group_by": group_by, "checkpoint": checkpoint, "device": device, "image_size": image_size,
        "tiers": case.tiers,
        **(_fewer(images) if quick else {}), "out": folder / STORE,
    }  # fmt: skip
    _require_same_store(folder, planning.plan(given, name, **options, check_images=False).store)
    baselines = [b for b in case.baselines if b != _FROZEN or _to_be_had(vgg19, quick, note)]
    if quick:
        note(_left_out(case, images, name, encoder))

    spec = images.name if isinstance(given, Dataset) else given
    source = {"dataset": spec, "root": root}
    tell(Step("embed", _command("embed", **source, encoder=name, **_but(options, "root"))))
    embedded = embedding.embed(given, name, **options, on_event=tell, should_stop=should_stop)
    tell(embedded)
    swept: SweepResult | None = None
    report: ReportResult | None = None
    if not embedded.interrupted:
        chosen = {model: dict(values) for model, values in (params or {}).items()}
        if _FROZEN in baselines:
            frozen = chosen.setdefault(_FROZEN, {})
            if vgg19 != "official":
                frozen["checkpoint"] = str(vgg19)
            if device != "auto":
                # One of several is enough for it.
                frozen.setdefault("device", device.split(",")[0].replace(":all", ""))
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
        target = folder / REPORT
        tell(
            Step("report", _command(f"report {shlex.quote(str(swept.out))}", **source, out=target))
        )
        report = make_report([swept.out], target, dataset=given, root=root, on_event=tell)
        tell(report)
    return ReproduceResult(
        study, folder, embedded, swept, report, tuple(notes), time.perf_counter() - began
    )


def _require_task(study: str, images: Dataset) -> None:
    if images.task != CASES[study].task:
        others = [name for name, case in CASES.items() if case.task == images.task]
        raise InputError(
            f"the study {study} is one of {CASES[study].task}, and {images.name} is for {images.task}: name another "
            f"--dataset, or reproduce {' or '.join(others)}"
        )


def _require_same_store(folder: Path, store: Path) -> None:
    """Refuse to mix embeddings in one study: nothing in it could be compared."""
    others = [path for path in stores_in(store.parent) if path.name != store.name]
    if others:
        raise InputError(
            f"{folder} holds a study of {others[0].name}, and asked for is {store.name}: the dataset, the encoder, its "
            "weights, the image size or the number of images differ; choose another folder with --out"
        )


def _fewer(images: Dataset) -> dict[str, int]:
    """Choose how many images a quick study takes."""
    if images.task == "segmentation":
        return {"limit": min(LIMIT, len(images))}
    least = min((images.labels.count(c) for c in range(len(images.classes))), default=0)
    return {"per_class": min(PER_CLASS, max(least, 1))}  # none of a class: embed says so


def _to_be_had(source: str | Path | None, quick: bool, note: Callable[[str], None]) -> bool:
    """Tell whether there are weights for VGG-19; official ones are downloaded now, not after hours."""
    if source is None or quick:
        return False
    module = registry.load("baselines", _FROZEN)
    try:
        if source == "official":
            weights.download(module.OFFICIAL)
        else:
            weights.check_source(str(source))
    except ResourceError as error:
        note(
            f"{_FROZEN} is left out: {error}. The same command, once they are there, adds it; --vgg19 none does "
            "without, --vgg19 random:0 takes untrained weights"
        )
        return False
    return True


def _left_out(case: Case, images: Dataset, encoder: str, asked: str | None) -> str:
    """Say what a quick study does without."""
    taken = _fewer(images)
    count = taken.get("limit") or taken["per_class"] * len(images.classes)
    told = [
        f"{count:,} of {len(images):,} images" if count < len(images) else "",
        f"the splits {', '.join(case.planned(images, True))} of {', '.join(case.planned(images, False))}",
        f"{QUICK_SEEDS} of {SEEDS} seeds",
        f"not the baseline {_FROZEN}" if _FROZEN in case.baselines else "",
        "" if asked else f"the small encoder {encoder} in the place of {ENCODER}",
    ]
    return f"a quick study: {'; '.join(filter(None, told))}"


def _possible(store: Path, case: Case, quick: bool, note: Callable[[str], None]) -> str:
    """Write the splits down that this store can be divided by: with few scenes, not every share can be held out."""
    opened = open_store(store)
    samples = Data(opened, TIER_ARRAYS[case.tiers[-1]], None, None, False).samples
    # By who is in which part: of few scenes, a fraction is soon all of them.
    found: dict[tuple[bytes, ...], str] = {}
    refused: InputError | None = None
    for split in case.planned(samples, quick):
        spec = parse(split)
        try:
            drawn = [select(samples, spec, seed) for seed in range(QUICK_SEEDS if quick else SEEDS)]
        except InputError as error:
            refused = error
            note(f"the split {split} is left out: {error}")
            continue
        parts = tuple(
            rows.tobytes()
            for outer, inner in drawn
            for rows in (outer.test, inner.train, inner.test)
        )
        same = found.setdefault(parts, split)
        if same != split:
            note(f"the split {split} is left out: with these images it is the same as {same}")
    if refused is not None and not found:
        raise InputError(f"{store} cannot be split: {refused}") from refused
    return ",".join(found.values())


def _but(options: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key != name}


def _command(verb: str, **options: Any) -> str:
    """Write a command as a user would."""
    words = [f"samtl {verb}"]
    for name, value in options.items():
        if value is None or value == () or (name, value) in (("device", "auto"), ("jobs", 1)):
            continue
        given = [value]
        if name == "set":
            given = [
                f"{model}.{key}={v}" for model, some in value.items() for key, v in some.items()
            ]
        elif isinstance(value, (tuple, list)):
            given = [",".join(value)]
        words += [f"--{name.replace('_', '-')} {shlex.quote(str(one))}" for one in given]
    return " ".join(words)
