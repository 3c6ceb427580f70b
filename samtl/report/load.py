"""Run folders to comparisons: which runs there are, and which of them may be compared.

Runs may be compared if they are on one dataset and those with the same split, share and seed were scored on the same
held-out samples: their `comparison_key` says so. Splits that keep places apart and splits that do not are never in one
comparison: scores on the latter are higher for a reason that has nothing to do with the models.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from samtl.errors import InputError, SamtlError
from samtl.experiment.held_out import FLOOR, floor_title
from samtl.experiment.run import CONFIG, METRICS, Run, read_run
from samtl.experiment.tables import READERS
from samtl.report.compare import STORE, Comparison, Kind, kind_of, samples_of, share_of
from samtl.splits.spec import leaks
from samtl.store.reader import Store, open_store
from samtl.store.storage import is_url
from samtl.sweep.results import FAILED, failed_cells

CELLS = "cells"
_ORDER = (FLOOR, "logreg", "mlp", "conv", "vit", "cnn", "vgg19", "unet")  # of known models


class Model(NamedTuple):
    """What tells models apart; `store` is the fingerprint of the one that a head reads."""

    kind: str
    name: str
    inputs: str
    params: tuple[tuple[str, str], ...]
    store: str

    @classmethod
    def of(cls, run: Run) -> Model:
        """Return the model of a run."""
        params = {key: str(value) for key, value in run.params.items() if key != "random_state"}
        return cls(run.kind, run.name, run.inputs, tuple(sorted(params.items())), run.fingerprint)


def read_comparisons(sources: Sequence[str | Path]) -> list[Comparison]:
    """Read runs, sweeps and folders of such, and group the runs that may be compared, in one group at least.

    If a fit was repeated, the run that finished last counts. Warnings name damaged runs, which are left out. An
    InputError says that a source is none of these, or that there is no sound run.
    """
    runs, warnings, failed = _read(map(Path, sources))
    if not runs:
        lines = [*warnings, *(f"{what}: {why}" for _, what, why in failed)]
        raise InputError(
            f"no complete run in {', '.join(map(str, sources)) or 'no folder'}: expected folders that samtl fit-head, "
            "samtl fit-baseline or samtl sweep wrote"
            + "".join(f"\n  {line}" for line in lines[:10])
        )
    kept = _newest(runs)
    if (older := len({run.digest for run in runs}) - len(kept)) > 0:
        warnings.append(
            f"{older} older runs are left out: the same model was trained again on the same kind of split with the "
            "same seed, after the dataset changed or from another start"
        )
    found = [_comparison(group, warnings) for group in _grouped(kept)]
    found.sort(key=lambda one: (one.dataset, -len(one.runs)))
    lists: list[list[tuple[str, str]]] = [[] for _ in found]
    for folder, what, why in failed:  # goes to the comparison with most runs of its sweep
        counts = [sum(folder in run.path.parents for run in one.runs) for one in found]
        lists[counts.index(max(counts))].append((what, why))
    return [replace(one, failed=tuple(some)) for one, some in zip(found, lists, strict=True)]


def read_stores(comparison: Comparison) -> tuple[dict[str, Store], list[str]]:
    """Open the stores that heads read, by what tells them apart; name those that are not where the runs found them."""
    heads = [run for run in comparison.runs if run.store]
    runs, found = {run.fingerprint: run for run in heads}, {}
    for run in heads:
        # A report contacts no server.
        if run.fingerprint in found or is_url(run.store_path):
            continue
        with suppress(SamtlError, OSError, ValueError):
            store = open_store(run.store_path)
            if store.fingerprint == run.fingerprint:
                found[run.fingerprint] = store
    names = {
        key: _store(run, [other for other in runs.values() if other is not run])
        for key, run in runs.items()
    }
    return {names[k]: found[k] for k in runs if k in found}, [
        names[k] for k in runs if k not in found
    ]


def set_apart(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Add to each of several comparisons a warning that says why the others are not in it."""
    found = []
    for one in comparisons:
        why = dict.fromkeys(_difference(one, other) for other in comparisons if other is not one)
        said = (f"Other parts of this report cannot be compared with this one: {w}." for w in why)
        found.append(replace(one, warnings=(*one.warnings, *said)))
    return found


def _difference(a: Comparison, b: Comparison) -> str:
    """Describe what two comparisons differ in."""
    facts, others = _facts(a.runs[0]), _facts(b.runs[0])
    for name, value in facts.items():
        if value != others[name]:
            return f"the {name} differs, {value} and {others[name]}"
    places = (f"{one.runs[0].path} ({', '.join(one.models)})" for one in (a, b))
    return (
        f"held-out samples or their labels differ, as in {' and '.join(places)}; if the dataset changed, train the "
        "older ones again"
    )


def _facts(run: Run) -> dict[str, str]:
    """Return what all runs of a comparison have in common."""
    return {
        "dataset": run.dataset,
        "task": run.task,
        "list of classes": ", ".join(run.classes),
        "way of splitting": "at random" if leaks(run.split.name) else "with places kept apart",
    }


def _read(sources: Iterable[Path]) -> tuple[list[Run], list[str], list[tuple[Path, str, str]]]:
    """Return runs, warnings, and the failed cells of sweeps: folder, what, why."""
    paths: list[Path] = []
    failed: list[tuple[Path, str, str]] = []
    for source in sources:
        if not source.is_dir():
            raise InputError(f"{source} is not a folder: expected one with runs, or a sweep's")
        for folder in [source] if _is_run(source) or _is_sweep(source) else _folders(source):
            if _is_run(folder):
                paths.append(folder)
            elif _is_sweep(folder):
                paths += filter(_is_run, _folders(folder / CELLS))
                failed += [(folder, *cell) for cell in failed_cells(folder)]
    runs, warnings = [], []
    for path in paths:
        try:
            run = read_run(path)
            # A mask may be gone, or scores are not what a table says.
            READERS[run.task](run)
            runs.append(run)
        except InputError as error:
            warnings.append(f"A run is left out: {error}")
    return runs, warnings, failed


def _is_run(folder: Path) -> bool:
    """Whether a folder is a run, if a damaged one."""
    return (folder / CONFIG).exists() or (folder / METRICS).exists()


def _is_sweep(folder: Path) -> bool:
    return (folder / CELLS).is_dir() or (folder / FAILED).is_dir()


def _folders(parent: Path) -> list[Path]:
    """List the folders in a folder, except hidden ones."""
    return sorted(p for p in parent.glob("[!.]*") if p.is_dir())


def _newest(runs: Iterable[Run]) -> list[Run]:
    """Return of the runs of which the same was asked the one that finished last."""
    found = sorted(runs, key=lambda run: (run.finished, str(run.path)))
    newest = {_asked(run): run for run in found}
    last = {(_asked(run), run.comparison_key): run for run in found}
    # A sweep over several stores has each baseline on the samples of each.
    beside = {run.comparison_key for run in newest.values() if run.kind == "head"}
    return [
        run
        for (asked, key), run in last.items()
        if run is newest[asked] or (run.kind != "head" and key in beside)
    ]


def _asked(run: Run) -> tuple[Any, ...]:
    """Return what the user asked for, which has the same result as long as nothing changes."""
    given = run.given.get("split")
    # A split that was handed over as rows is one of any number.
    split = (run.split.share, run.split.digest) if given is None else str(given)
    how = tuple(str(run.given.get(name)) for name in ("group_by", "same_split_as"))
    return (run.dataset, Model.of(run), run.split.name, split, *how, run.store, run.seed)


def _grouped(runs: Iterable[Run]) -> list[list[Run]]:
    """Group runs: a model joins a group if it was scored on the same samples as the others."""
    units: dict[Any, list[Run]] = defaultdict(list)
    for run in runs:
        units[(Model.of(run), run.samples_digest, *_facts(run).values())].append(run)
    groups: list[list[Run]] = []
    for unit in sorted(units.values(), key=lambda unit: (unit[0].kind != "head", -len(unit))):
        fitting = [group for group in groups if _alike(unit, group)]
        # A baseline may be on the samples of several groups of heads.
        keys = {run.comparison_key for run in unit if run.kind != "head"}
        joined = [group for group in fitting if keys & {run.comparison_key for run in group}]
        for group in joined or fitting[:1]:
            group += unit
        if not fitting:
            groups.append(unit)
    return groups


def _alike(unit: Sequence[Run], group: Sequence[Run]) -> bool:
    """Tell whether a model was scored on the samples of a group wherever both have the same split, share and seed."""
    if _facts(unit[0]) != _facts(group[0]):
        return False
    ours, theirs = _by_place(unit), _by_place(group)
    for place in ours.keys() & theirs.keys():
        if not any(_same_samples(a, b) for a, b in product(ours[place], theirs[place])):
            return False
    mine, others = (
        {mark for run in some for mark in (run.comparison_key, samples_of(run))}
        for some in (unit, group)
    )
    return not mine.isdisjoint(others)


def _by_place(runs: Iterable[Run]) -> dict[tuple[Kind, int], list[Run]]:
    places: dict[tuple[Kind, int], list[Run]] = defaultdict(list)
    for run in runs:
        places[kind_of(run), run.seed].append(run)
    return places


def _same_samples(a: Run, b: Run) -> bool:
    """Tell whether two runs were scored on the same samples with the same truth.

    Stores of several image sizes have the masks at several resolutions, so that only the images can be told to be the
    same ones.
    """
    if a.resolution == b.resolution:
        return a.comparison_key == b.comparison_key
    return a.split.digest == b.split.digest


def _comparison(runs: Sequence[Run], warnings: Iterable[str]) -> Comparison:
    models: dict[Model, list[Run]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: (share_of(run), run.seed, run.split.digest)):
        models[Model.of(run)].append(run)
    names = _names({model: some[0] for model, some in models.items()})
    known = [*_ORDER, *(model.name for model in models)]
    order = sorted(models, key=lambda model: (known.index(model.name), names[model]))
    return Comparison(
        dataset=runs[0].dataset,
        task=runs[0].task,
        classes=runs[0].classes,
        models={names[model]: tuple(models[model]) for model in order},
        warnings=tuple(warnings),
    )


def _names(runs: dict[Model, Run]) -> dict[Model, str]:
    """Name models; inputs, parameters and stores are added if models of one name differ in them."""
    names = {}
    for model, run in runs.items():
        same = [other for other in runs if other.name == model.name]
        read = [other for other in same if (other.kind, other.inputs) == (model.kind, model.inputs)]
        name = floor_title(run.task) if model.name == FLOOR else model.name
        if len({other.inputs for other in same}) > 1:
            name += f" on {model.inputs}"
        differ = [
            f"{key} {value}"
            for key, value in model.params
            if value != "None" and any(dict(other.params).get(key) != value for other in read)
        ]
        if differ:
            name += f" ({', '.join(differ)})"
        if others := [runs[other] for other in same if other.store != model.store and other.store]:
            name += f"{STORE}{_store(run, others)}"
        names[model] = name
    return names


def _store(run: Run, others: Sequence[Run]) -> str:
    """Describe the store of a run by what tells it from those of others; by its encoder if there are none."""
    if not others:
        return run.encoder.rpartition("/")[2]
    for own, *rest in zip(_descriptions(run), *map(_descriptions, others), strict=True):
        differ = [fact for i, fact in enumerate(own) if any(other[i] != fact for other in rest)]
        if differ and all(other != own for other in rest):
            return " ".join(differ)
    return run.fingerprint


def _descriptions(run: Run) -> list[list[str]]:
    """Describe the store of a run by ever more of what made it, then by its name, then by its fingerprint."""
    # Of a model of transformers, the folder or the name of the repository.
    encoder, size = run.encoder.rpartition("/")[2], f"{run.identity.get('image_size')} px"
    embedding = [encoder], [encoder, size], [run.encoder, run.weights, size]
    return [*embedding, [run.store], [run.fingerprint[:8]]]
