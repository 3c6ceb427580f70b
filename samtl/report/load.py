"""Runs and sweeps on disk to studies: which trials there are, and which of them may be compared.

Trials may be compared that learnt from one store (or from the pixels of its dataset), while what it holds was the same,
and were scored on the same held-out samples wherever both have the same share and seed. Splits that keep places apart
and splits that do not are never in one study: scores on the latter are higher for a reason that has nothing to do with
the models.
"""

from __future__ import annotations

import csv
import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samtl.errors import InputError
from samtl.experiment.run import Run, read_run
from samtl.metrics.classification import Score
from samtl.report.content import (
    ImageScores,
    Predictions,
    Study,
    Trial,
)
from samtl.splits.spec import leaks
from samtl.sweep.results import (
    FAILED,
    FILE,
    Results,
    Row,
)

CELLS = "cells"
# Any of them makes a folder a run, if a damaged one.
_MARKS = ("config.json", "metrics.json", "head.json")
_TIERS = ("pooled", "grid", "dense")
_ABOUT = "sample_id", "label", "predicted"
_ASKED = "group_by", "same_split_as", "root", "limit", "per_class"


def gather(sources: Sequence[str | Path]) -> list[Study]:
    """Read runs and sweeps, and group what may be compared.

    Parameters
    ----------
    sources : sequence of path
        Run folders, sweep folders, and folders that hold such. Hidden folders are passed over; of runs that were
        repeated the newest counts.

    Returns
    -------
    list of Study
        At least one. Predictions are read when they are first asked for. Warnings name the runs that are damaged and
        left out.

    Raises
    ------
    InputError
        Where a source is none of these, a results file is empty or damaged, or there is no sound run.
    ResourceError
        Where a results file cannot be read.
    """
    found = _Found()
    for source in sources:
        found.search(Path(source))
    if not found.runs:
        why = [*found.warnings, *(f"{what}: {reason}" for _, what, reason in found.failed)]
        raise InputError(
            f"no sound run in {', '.join(map(str, sources)) or 'no folder'}: expected folders that samtl fit-head, "
            "samtl fit-baseline or samtl sweep wrote" + "".join(f"\n  {line}" for line in why[:10])
        )
    groups: dict[tuple[Any, ...], list[_Run]] = defaultdict(list)
    for run in found.newest():
        groups[run.dataset, run.task, run.classes, leaks(run.split["name"])].append(run)
    studies = [
        _study(runs, found.warnings)
        for group in groups.values()
        for runs in _may_be_compared(group)
    ]
    studies.sort(key=lambda study: (study.dataset, -len(study.trials)))
    return _with_failures(studies, found.failed)


def comparable(studies: Sequence[Study], separate: bool = False) -> list[Study]:
    """Make sure that there is one comparison, or that several are wanted.

    Parameters
    ----------
    studies : sequence of Study
        From `gather`.
    separate : bool
        Whether several studies may stand side by side; each then has a warning that says so.

    Raises
    ------
    InputError
        Where there are several and `separate` is not given, naming what they differ in.
    """
    if len(studies) < 2:
        return list(studies)
    if not separate:
        raise InputError(
            f"these runs cannot be compared, they are {_told_apart(studies[0], studies[1])}; name the runs of one of "
            "them, or report each by itself with --separate"
        )
    found = []
    for study in studies:
        apart = dict.fromkeys(_told_apart(study, other) for other in studies if other is not study)
        told = (f"Other parts of this report cannot be compared with this: {why}." for why in apart)
        found.append(replace(study, warnings=(*study.warnings, *told)))
    return found


def _told_apart(a: Study, b: Study) -> str:
    """Say what two studies differ in."""
    if (a.dataset, a.task) != (b.dataset, b.task):
        return f"on the datasets {a.dataset} ({a.task}) and {b.dataset} ({b.task})"
    if a.classes != b.classes:
        return f"on {a.dataset} with the classes {', '.join(a.classes)}, and with {', '.join(b.classes)}"
    stores = _stores(a), _stores(b)
    if all(stores) and stores[0].keys() != stores[1].keys():
        first, second = (
            " and ".join(f"{name} (fingerprint {mark[:8]})" for mark, name in store.items())
            for store in stores
        )
        return f"from the stores {first} and {second}"
    for one, other in itertools.product(a.trials, b.trials):
        runs = f"{one.path} ({one.model}) and {other.path} ({other.model})"
        if _changed(one.config, other.config):
            return f"of a dataset before and after it changed, such as {runs}: train the older one again"
        if (sample_id := _labelled_apart(one, other)) is not None:
            return (
                f"scored with different labels, such as of {sample_id!r} in {runs}: train the older one again, a head "
                "after samtl embed"
            )
    sizes = [study.trials[0].config["resolution"] for study in (a, b)]
    if sizes[0] != sizes[1]:
        return f"of masks scored at {sizes[0]} pixels and at {sizes[1]}"
    kinds = [" and ".join(sorted({t.split["name"] for t in study.trials})) for study in (a, b)]
    if leaks(a.trials[0].split["name"]) != leaks(b.trials[0].split["name"]):
        return f"on splits that keep places apart and splits that do not, {kinds[0]} and {kinds[1]}"
    first, second = (
        f"{study.trials[0].split['digest'][:8]} ({', '.join(study.models)})" for study in (a, b)
    )
    return f"on different held-out samples, such as those of the splits {first} and {second}"


def _labelled_apart(a: Trial, b: Trial) -> str | None:
    """Name a sample that a head and a baseline were scored on with different labels on one split."""
    if a.kind == b.kind or a.split["digest"] != b.split["digest"]:
        return None
    if a.predictions is None or b.predictions is None:
        return None
    first, second = (
        dict(zip(found.ids, found.truth.tolist(), strict=True))
        for found in (a.predictions, b.predictions)
    )
    return next((name for name in first if first[name] != second.get(name)), None)


def _stores(study: Study) -> dict[str, str]:
    """Give the names of a study's stores by fingerprint."""
    return {t.fingerprint: t.store for t in study.trials if t.fingerprint}


# What is on disk


@dataclass(frozen=True, eq=False)
class _Run:
    """A run folder, read but for its predictions."""

    path: Path
    config: dict[str, Any]
    metrics: dict[str, Any]
    written: str

    @property
    def dataset(self) -> str:
        return str(self.metrics["dataset"])

    @property
    def task(self) -> str:
        return str(self.config["task"])

    @property
    def kind(self) -> str:
        return str(self.config["kind"])

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.config["classes"])

    @property
    def split(self) -> Mapping[str, Any]:
        return dict(self.config["split"])

    @property
    def learnt(self) -> int:
        return int(self.metrics["counts"]["train"] + self.metrics["counts"]["validation"])

    @property
    def samples(self) -> int:
        """How many could have taken part."""
        counts = self.metrics["counts"]
        left_out = counts["left_out"].get("not_in_the_split", 0)
        return int(self.learnt + counts["test"] + left_out)

    @property
    def place(self) -> tuple[Any, ...]:
        """What the runs of two models have in common that stand side by side in a figure."""
        # Two digits: an image that was set aside leaves samples of another split at the same place.
        return self.split["share"], f"{self.learnt / self.samples:.2g}", self.config["seed"]

    @property
    def model(self) -> tuple[str, str, str, tuple[tuple[str, Any], ...], str]:
        """What tells models apart."""
        params = {k: repr(v) for k, v in self.config["params"].items() if k != "random_state"}
        name = str(self.config[self.kind])
        mark = str(self.metrics["fingerprint"]) or str(self.config["resolution"])
        return self.kind, name, str(self.config["inputs"]), tuple(sorted(params.items())), mark

    @property
    def named(self) -> str:
        """A digest of the samples that the model learnt and was scored with, where it is known."""
        return str(self.config.get("samples", ""))

    @property
    def asked(self) -> tuple[Any, ...]:
        """What was asked for: where nothing changed since, the same comes out of it."""
        given, store = self.config.get("given") or {}, self.config.get("store") or {}
        # Resolved, since the same store may have been named from several folders.
        path = Path(str(store.get("path", ""))).resolve()
        spec = self.split["share"] if given.get("split") is None else str(given["split"])
        how = (str(given.get(name)) for name in _ASKED)
        about = self.metrics["store"], path, self.split["name"], spec
        return self.dataset, *self.model, *about, *how, self.config["seed"]

    @property
    def state(self) -> tuple[str, str]:
        """What runs that ask for the same have in common while nothing changes."""
        # A split that was handed over as such may be one of several.
        fixed = (self.config.get("given") or {}).get("split") is not None
        return self.named, self.split["digest"] if fixed else ""

    @cached_property
    def truth(self) -> dict[str, int]:
        """The labels of the held-out samples by id; nothing where the table of them is damaged."""
        try:
            path, n = self.path / "predictions.csv", int(self.metrics["counts"]["test"])
            found = _predictions(path, self.classes, n, {})
        except InputError:
            return {}  # which is told when it is read for its predictions
        return dict(zip(found.ids, found.truth.tolist(), strict=True))


@dataclass
class _Found:
    """What the sources hold.

    Attributes
    ----------
    runs : list of _Run
    failed : list of (Row, str, str)
        The row, what failed, and why.
    warnings : list of str
    """

    runs: list[_Run] = field(default_factory=list)
    failed: list[tuple[Row, str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def search(self, source: Path) -> None:
        """Read a run, a sweep, or a folder of them."""
        if source.name == FILE and source.is_file():
            source = source.parent
        if not source.is_dir():
            raise InputError(f"{source} is no folder: expected one with runs, or a sweep's")
        if not self._take(source):
            for folder in _folders(source):
                self._take(folder)

    def newest(self) -> Iterator[_Run]:
        """Give the runs; of those of one model, split and seed the last, however it was trained.

        Those are left out that were trained again after what they were made of had changed.
        """
        runs = sorted(self.runs, key=lambda run: (run.written, str(run.path)))
        last = {
            (run.dataset, *run.model, run.named, run.split["digest"], run.config["seed"]): run
            for run in runs
        }
        differ = len({run.config["digest"] for run in runs}) - len(last)
        if differ > 0:
            self.warnings.append(
                f"{differ} runs are left out: the same model was trained on the same split with the same seed in "
                "another way (such as from a warm start), and the last counts"
            )
        now = {run.asked: run for run in runs}
        kept = [run for run in last.values() if run.state == now[run.asked].state]
        beside = {run.split["digest"] for run in kept if run.kind == "head"}
        # A sweep of several stores has a baseline on the samples of each, and nothing in it says of which.
        kept += [
            run
            for run in last.values()
            if run.kind != "head"
            and run.state != now[run.asked].state
            and run.split["digest"] in beside - {now[run.asked].split["digest"]}
        ]
        if len(kept) < len(last):
            self.warnings.append(
                f"{len(last) - len(kept)} runs are left out: the dataset changed since (its samples, images, masks, "
                "labels or groups, or the lists that split it), and the same model was trained again with the same "
                "seed on what it is now"
            )
        return iter(kept)

    def _take(self, folder: Path) -> bool:
        """Read a folder that is a run or a sweep; tell whether it was."""
        if any((folder / name).exists() for name in _MARKS):
            try:
                self.runs.append(_read(folder))
            except InputError as error:
                self.warnings.append(f"A run is left out: {error}")
            return True
        if (folder / FILE).exists():
            self._sweep(folder)
            return True
        return False

    def _sweep(self, folder: Path) -> None:
        results = Results(folder / FILE)
        cells = results.cells()
        if not cells:
            raise InputError(
                f"{results.path} is empty: no cell of this sweep is done yet; run the same samtl sweep again, it goes "
                "on where it stopped"
            )
        self.warnings += [f"{folder}: {note}" for note in results.torn()]
        for rows in cells.values():
            row = rows[0]
            if row["status"] == FAILED:
                read = f" on {row['features']}" if row["features"] else ""
                what = f"{row['method']}{read}, split {row['split']}, seed {row['seed']}"
                self.failed.append((row, what, row["error"]))
            elif row["run"] and not (folder / CELLS / Path(row["run"]).name).is_dir():
                self.warnings.append(
                    f"{folder}: the run {Path(row['run']).name} is in {FILE}, and its folder is gone"
                )
        if (folder / CELLS).is_dir():
            for path in _folders(folder / CELLS):
                self._take(path)


def _folders(parent: Path) -> list[Path]:
    """List the folders in a folder, but for hidden ones."""
    return sorted(
        path for path in parent.iterdir() if not path.name.startswith(".") and path.is_dir()
    )


def _read(path: Path) -> _Run:
    """Read a run folder, and make sure that what belongs to it is there.

    Raises
    ------
    InputError
        Where it is damaged, or of another format.
    """
    config, metrics = _as_before(read_run(path))
    run = _Run(path, config, metrics, metrics["finished"])
    try:
        trial = _trial(run, "", {})
        known = run.asked, run.state, tuple(_samples_of(config).items())
        if hash((known, run.place, trial.split["name"], trial.split["digest"])):
            config["digest"].encode()
        k = len(run.classes)
        if trial.confusion.shape != (k, k) or not trial.metrics:
            raise ValueError("its figures are not complete")
        if trial.images is None:
            _require_predictions(path / "predictions.csv", trial.n_test)
    except (KeyError, TypeError, AttributeError, ValueError, OSError, csv.Error) as error:
        raise InputError(f"{path} is damaged: {error!r}") from error
    return run


def _as_before(run: Run) -> tuple[dict[str, Any], dict[str, Any]]:
    """Give a run as the two dictionaries that this module works on."""
    content = run.to_json()
    store = {
        "path": run.store_path,
        "identity": run.identity,
        "snapshot": run.snapshot,
        "samples": {"store": run.samples_digest},
    }
    config = {
        **content,
        run.kind: run.name,
        "inputs": run.inputs,
        "samples": run.samples_digest,
        "floor": run.floor_model,
        "store": store if run.store else None,
    }
    counts = {
        "train": run.n_train,
        "validation": run.n_validation,
        "test": run.n_test,
        "left_out": run.left_out_because,
    }
    return config, {**content, "counts": counts}


def _trial(run: _Run, model: str, shared: _Shared) -> Trial:
    config, metrics, counts = run.config, run.metrics, run.metrics["counts"]
    floor = metrics["floor"]
    segments = run.task == "segmentation"
    return _Stored(
        path=run.path,
        kind=run.kind,
        name=str(config[run.kind]),
        model=model,
        features=str(config["inputs"]),
        seed=int(config["seed"]),
        split=run.split,
        n_train=int(counts["train"]),
        n_validation=int(counts["validation"]),
        n_test=int(counts["test"]),
        n_left_out=int(counts["left_out"].get("not_in_the_split", 0)),
        metrics=_scores(metrics["metrics"]),
        floor=None if floor is None else _scores(floor),
        also={name: _scores(scores) for name, scores in metrics["also"].items()},
        confusion=np.array(metrics["confusion"], dtype=np.int64),
        curves=_curves(run.path / "curves.csv"),
        seconds={stage: float(value) for stage, value in metrics["seconds"].items()},
        training=dict(metrics["training"]),
        peak_memory=int(metrics["peak_memory"]),
        fingerprint=str(metrics["fingerprint"]),
        store=str(metrics["store"]),
        dataset=run.dataset,
        encoder=str(metrics["encoder"]),
        weights=str(metrics["weights"]),
        untrained=bool(metrics["untrained"]),
        note=str(metrics["note"]),
        warm_start=str(config.get("warm_start") or ""),
        config=config,
        predictions=None,
        images=_images(run.path, int(counts["test"])) if segments else None,
        classes=None if segments else run.classes,
        shared=shared,
    )


_Shared = dict[tuple[str, ...], tuple[tuple[str, ...], NDArray[np.int64]]]


@dataclass(frozen=True, eq=False)
class _Stored(Trial):
    """A trial whose predictions are read when they are first asked for.

    Attributes
    ----------
    classes : tuple of str, or None
        None where there are no predictions of labels.
    shared : dict
        Ids and truth that were read before: many trials hold out the same samples, and need them in memory once.
    """

    classes: tuple[str, ...] | None
    shared: _Shared

    def __post_init__(self) -> None:
        if self.classes is not None:
            del self.__dict__["predictions"]  # so that it is missed, and read then

    def __getattr__(self, name: str) -> Any:
        if name != "predictions" or self.classes is None:
            raise AttributeError(name)
        path = self.path / "predictions.csv"
        found = _predictions(path, self.classes, self.n_test, self.shared)
        self.__dict__["predictions"] = found
        return found


def _scores(figures: Mapping[str, Mapping[str, float]]) -> dict[str, Score]:
    return {
        name: Score(float(score["value"]), float(score["low"]), float(score["high"]))
        for name, score in figures.items()
    }


def _curves(path: Path) -> dict[str, list[float]]:
    """Read the columns that are numbers."""
    with path.open(encoding="utf-8", newline="") as file:
        table = csv.DictReader(file)
        rows = list(table)
    curves = {}
    for name in table.fieldnames or ():
        try:
            curves[name] = [float(row[name]) for row in rows]
        except ValueError:
            continue  # such as the scaling that a candidate was tried with
    return curves


def _images(run: Path, n: int) -> ImageScores:
    with (run / "images.csv").open(encoding="utf-8", newline="") as file:
        (_, _, *names), *rows = csv.reader(file)
    values = np.array([row[2:] for row in rows], dtype=np.float64)
    if values.shape != (n, len(names)) or not n:
        raise ValueError(f"images.csv has {len(rows)} of {n} rows")
    masks = tuple(run / row[1] for row in rows)
    gone = [mask.name for mask in masks if not mask.is_file()]
    if gone:
        raise ValueError(f"the mask {gone[0]} is gone")
    columns = dict(zip(names, values.T, strict=True))
    return ImageScores(tuple(row[0] for row in rows), columns, masks)


def _require_predictions(path: Path, n: int) -> None:
    """Make sure that a table was not cut short, without reading what is in it."""
    content = path.read_bytes()
    if (
        not content.startswith(",".join(_ABOUT).encode())
        or not content.endswith(b"\n")
        or content.count(b"\n") < n + 1
    ):
        raise ValueError(f"{path.name} does not hold the predictions of {n} samples")


def _predictions(path: Path, classes: tuple[str, ...], n: int, shared: _Shared) -> Predictions:
    """Read a table of predictions; probabilities are passed over.

    Raises
    ------
    InputError
        Where it is damaged.
    """
    index = {name: i for i, name in enumerate(classes)}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            columns = zip(*csv.reader(file), strict=True)
            names, labels, guesses = itertools.islice(columns, 3)
        header, names = (names[0], labels[0], guesses[0]), names[1:]
        if header != _ABOUT or len(names) != n:
            raise ValueError(f"expected {n} rows, got {len(names)}")
        truth, guess = (
            np.fromiter(map(index.__getitem__, itertools.islice(column, 1, None)), np.int64, n)
            for column in (labels, guesses)
        )
    except (OSError, KeyError, IndexError, ValueError, csv.Error) as error:
        raise InputError(f"{path} is damaged: {error!r}") from error
    ids, known = shared.setdefault(names, (names, truth))
    return Predictions(ids, known if np.array_equal(known, truth) else truth, guess)


# What may be compared


def _may_be_compared(runs: Iterable[_Run]) -> list[list[_Run]]:
    """Group the runs of one dataset: those of one store, and of pixels, with the same held-out samples."""
    by_model: dict[Any, list[_Run]] = defaultdict(list)
    for run in runs:
        by_model[run.model, run.named].append(run)
    heads = [model for model in by_model.values() if model[0].kind == "head"]
    others = [model for model in by_model.values() if model[0].kind != "head"]
    groups: list[list[list[_Run]]] = []
    for model in sorted(heads, key=len, reverse=True):
        fitting = [group for group in groups if _joins(model, group)][:1]
        for group in fitting or _new(groups):
            group.append(model)
    with_heads = list(groups)
    for model in sorted(others, key=len, reverse=True):
        # Pixels are of no store: a baseline stands beside the heads of each.
        fitting = [group for group in with_heads if _joins(model, group)]
        fitting = fitting or [group for group in groups if _joins(model, group)][:1]
        for group in fitting or _new(groups):
            group.append(model)
    return [[run for model in group for run in model] for group in groups]


def _new(groups: list[list[list[_Run]]]) -> list[list[list[_Run]]]:
    """Add a group, and give it as the only one."""
    groups.append([])
    return groups[-1:]


def _joins(model: list[_Run], group: list[list[_Run]]) -> bool:
    """Tell whether a model may be compared with all of a group."""
    return all(_alike(model, other) for other in group)


def _alike(a: list[_Run], b: list[_Run]) -> bool:
    """Tell whether two models learnt from one state of one store, if from any, and were scored on the same samples."""
    marks = {run.metrics["fingerprint"] for run in (a[0], b[0])} - {""}
    if len(marks) > 1 or a[0].config["resolution"] != b[0].config["resolution"]:
        return False
    if _changed(a[0].config, b[0].config) or _relabelled(a, b):
        return False
    splits, others = _digests(a), _digests(b)
    if any(splits[place].isdisjoint(others[place]) for place in splits.keys() & others.keys()):
        return False
    if not set().union(*splits.values()).isdisjoint(set().union(*others.values())):
        return True
    return not {run.samples for run in a}.isdisjoint(run.samples for run in b)


def _samples_of(config: Mapping[str, Any]) -> dict[str, str]:
    """Give the digests of the samples that there were, by what is learnt from: an array of the store, or pixels."""
    found = dict((config.get("store") or {}).get("samples", {}))
    if not found:
        found[str(config["features"])] = str(config["samples"])
    return found


def _changed(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Tell whether the dataset is known to have changed between two runs.

    Who could take part may differ from array to array. A store that gained an array has the same samples in the others.
    """
    first, second = _samples_of(a), _samples_of(b)
    both = first.keys() & second.keys()
    return bool(both) and all(first[array] != second[array] for array in both)


def _relabelled(a: list[_Run], b: list[_Run]) -> bool:
    """Tell whether a head and a baseline were scored with other labels on a split that both have.

    Pixels and the store may be of the dataset at different times, and the digests of their samples do not tell.
    """
    if a[0].kind == b[0].kind or a[0].task != "classification":
        return False
    first, second = ({run.split["digest"]: run for run in model} for model in (a, b))
    both = min(first.keys() & second.keys(), default="")
    if not both or not first[both].truth or not second[both].truth:
        return False
    return first[both].truth != second[both].truth


def _digests(runs: Iterable[_Run]) -> dict[tuple[Any, ...], set[str]]:
    found: dict[tuple[Any, ...], set[str]] = defaultdict(set)
    for run in runs:
        found[run.place].add(run.split["digest"])
    return dict(found)


def _study(runs: Sequence[_Run], warnings: Sequence[str]) -> Study:
    names = _names({run.model for run in runs})
    shared: _Shared = {}
    trials = [_trial(run, names[run.model], shared) for run in runs]
    trials.sort(key=lambda t: (*_rank(t), t.share, t.seed, t.split["digest"]))
    first = runs[0]
    return Study(
        dataset=first.dataset,
        task=first.task,
        classes=first.classes,
        trials=tuple(trials),
        warnings=(*_cautions(trials), *warnings),
    )


def _rank(trial: Trial) -> tuple[Any, ...]:
    """Order models as they are read: the floor, heads by how much of an image they see, then other baselines."""
    tier = trial.features.partition("[")[0]
    return (
        trial.kind == "baseline" and trial.name != "floor",
        trial.kind == "head",
        _TIERS.index(tier) if tier in _TIERS else len(_TIERS),
        trial.name,
        trial.model,
    )


def _names(models: Iterable[Any]) -> dict[Any, str]:
    """Name models: features and parameters are told where models of one name differ in them."""
    by_name: dict[str, list[Any]] = defaultdict(list)
    for model in models:
        by_name[model[1]].append(model)
    names = {}
    for name, group in by_name.items():
        several = len({(kind, features) for kind, _, features, _, _ in group}) > 1
        for model in group:
            kind, _, features, params, _ = model
            same = [dict(other[3]) for other in group if (other[0], other[2]) == (kind, features)]
            told = [
                f"{key} {value.strip(chr(39))}"
                for key, value in params
                if value != "None" and any(other.get(key) != value for other in same)
            ]
            names[model] = (
                name
                + (f" on {features}" if several else "")
                + (f" ({', '.join(told)})" if told else "")
            )
    return names


def _cautions(trials: Sequence[Trial]) -> list[str]:
    """Say what a reader must know before comparing."""
    found = []
    untrained: dict[str, None] = {t.model: None for t in trials if t.untrained}
    if untrained:
        weights = sorted({t.weights for t in trials if t.untrained})
        found.append(
            f"The weights behind {', '.join(untrained)} are {' and '.join(weights)}: these figures say that the "
            "machinery works, and nothing about trained weights."
        )
    if all(leaks(t.split["name"]) for t in trials):
        found.append(
            "All splits are random: where images are neighbouring tiles of one place, some of them were learnt from "
            "and others scored on, and scores are higher than they would be on new land."
        )
    found += [
        f"{note[:1].upper()}{note[1:]}" for note in dict.fromkeys(t.note for t in trials) if note
    ]
    return found


def _with_failures(studies: Sequence[Study], failed: Sequence[tuple[Row, str, str]]) -> list[Study]:
    """Put each failed cell to the study that it would have been in, as far as its row tells."""
    lists: list[list[tuple[str, str]]] = [[] for _ in studies]
    for row, what, why in failed:

        def likeness(i: int, row: Row = row) -> tuple[bool, bool, bool, int]:
            study = studies[i]
            same_kind = leaks(row["split_name"]) == leaks(study.trials[0].split["name"])
            return (
                study.dataset == row["dataset"],
                row["fingerprint"] in _stores(study),
                same_kind,
                -i,
            )

        lists[max(range(len(studies)), key=likeness)].append((what, why))
    return [
        replace(study, failed=tuple(cells)) for study, cells in zip(studies, lists, strict=True)
    ]
