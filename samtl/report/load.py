"""Run folders to comparisons: which runs there are, and which of them may be compared.

Runs may be compared if they are on one dataset and those with the same split, share and seed were scored on the same
held-out samples: their `comparison_key` says so. Splits that keep places apart and splits that do not are never in one
comparison: scores on the latter are higher for a reason that has nothing to do with the models.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from samtl.errors import InputError
from samtl.experiment.run import Run, read_run
from samtl.experiment.tables import read_images
from samtl.report.compare import Comparison, share_of, unused
from samtl.report.words import FLOOR, sentences
from samtl.splits.spec import leaks
from samtl.sweep.results import FAILED, failed_cells

CELLS = "cells"
_MARKS = (
    "config.json",
    "metrics.json",
    "head.json",
)  # any of them makes a folder a run, if a damaged one
_TIERS = ("pooled", "grid", "dense")


class Model(NamedTuple):
    """What tells models apart; `store` is the fingerprint of the one that a head reads."""

    kind: str
    name: str
    inputs: str
    params: tuple[tuple[str, str], ...]
    store: str


def model_of(run: Run) -> Model:
    """Return the model of a run."""
    params = {key: repr(value) for key, value in run.params.items() if key != "random_state"}
    return Model(run.kind, run.name, run.inputs, tuple(sorted(params.items())), run.fingerprint)


def read_comparisons(sources: Sequence[str | Path]) -> list[Comparison]:
    """Read runs and sweeps, and group those that may be compared.

    Parameters
    ----------
    sources : sequence of path
        Run folders, sweep folders, and folders of such. Hidden folders are skipped. If a fit was repeated, the run
        that finished last counts.

    Returns
    -------
    list of Comparison
        At least one. Its warnings name damaged runs, which are left out.

    Raises
    ------
    InputError
        If a source is none of these, or there is no sound run.
    """
    found = _Found()
    for source in map(Path, sources):
        found.search(source)
    if not found.runs:
        failed = [f"{what}: {why}" for _, what, why in found.failed]
        raise InputError(
            f"no sound run in {', '.join(map(str, sources)) or 'no folder'}: expected folders that samtl fit-head, "
            "samtl fit-baseline or samtl sweep wrote"
            + "".join(f"\n  {line}" for line in [*found.warnings, *failed][:10])
        )
    groups: dict[Any, list[Run]] = defaultdict(list)
    for run in _newest(found.runs, found.warnings):
        key = (run.dataset, run.task, run.classes, run.resolution, leaks(run.split.name))
        groups[key].append(run)
    comparisons = [
        _comparison(some, found.warnings) for group in groups.values() for some in _grouped(group)
    ]
    comparisons.sort(key=lambda one: (one.dataset, -len(one.runs)))
    return _with_failures(comparisons, found.failed)


def require_one(comparisons: Sequence[Comparison], separate: bool = False) -> list[Comparison]:
    """Refuse several comparisons unless they are to be reported `separate`ly, with a warning in each.

    Raises
    ------
    InputError
        If there are several; names what they differ in.
    """
    if len(comparisons) < 2:
        return list(comparisons)
    if not separate:
        raise InputError(
            f"these runs cannot be compared, they are {_difference(*comparisons[:2])}; name the runs of one of them, "
            "or report each by itself with --separate"
        )
    found = []
    for one in comparisons:
        why = dict.fromkeys(_difference(one, other) for other in comparisons if other is not one)
        said = (
            f"Other parts of this report cannot be compared with this one: {text}." for text in why
        )
        found.append(replace(one, warnings=(*one.warnings, *said)))
    return found


def _difference(a: Comparison, b: Comparison) -> str:
    """Describe what two comparisons differ in."""
    first, second = a.runs[0], b.runs[0]
    if (a.dataset, a.task) != (b.dataset, b.task):
        return f"on the datasets {a.dataset} ({a.task}) and {b.dataset} ({b.task})"
    if a.classes != b.classes:
        return f"on {a.dataset} with the classes {', '.join(a.classes)}, and with {', '.join(b.classes)}"
    if first.resolution != second.resolution:
        return f"of masks scored at {first.resolution} pixels and at {second.resolution}"
    if leaks(first.split.name) != leaks(second.split.name):
        kinds = [" and ".join(sorted({run.split.name for run in one.runs})) for one in (a, b)]
        return f"on splits that keep places apart and splits that do not, {' and '.join(kinds)}"
    return (
        f"on different held-out samples or labels, such as {first.path} ({', '.join(a.models)}) and {second.path} "
        f"({', '.join(b.models)}); if the dataset changed, train the older ones again"
    )


@dataclass
class _Found:
    """Runs, failed cells (sweep folder, what, why) and warnings."""

    runs: list[Run] = field(default_factory=list)
    failed: list[tuple[Path, str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def search(self, source: Path) -> None:
        """Read a run, a sweep, or a folder of them."""
        if not source.is_dir():
            raise InputError(f"{source} is not a folder: expected one with runs, or a sweep's")
        if not self._take(source):
            for folder in _folders(source):
                self._take(folder)

    def _take(self, folder: Path) -> bool:
        """Read a folder that is a run or a sweep; tell whether it was."""
        if any((folder / name).exists() for name in _MARKS):
            try:
                run = read_run(folder)
                if run.task == "segmentation":
                    read_images(run)  # a mask may be gone
                self.runs.append(run)
            except InputError as error:
                self.warnings.append(f"A run is left out: {error}")
            return True
        if not any((folder / name).is_dir() for name in (CELLS, FAILED)):
            return False
        for path in _folders(folder / CELLS):
            self._take(path)
        self.failed += [(folder, what, why) for what, why in failed_cells(folder)]
        return True


def _folders(parent: Path) -> list[Path]:
    """List the folders in a folder, except hidden ones."""
    if not parent.is_dir():
        return []
    return sorted(p for p in parent.iterdir() if not p.name.startswith(".") and p.is_dir())


def _newest(runs: Iterable[Run], warnings: list[str]) -> list[Run]:
    """Return of the runs of which the same was asked the one that finished last."""
    found = sorted(runs, key=lambda run: (run.finished, str(run.path)))
    newest = {_asked(run): run for run in found}
    last = {(_asked(run), run.comparison_key): run for run in found}
    # A sweep over several stores has each baseline on the samples of each.
    beside = {run.comparison_key for run in newest.values() if run.kind == "head"}
    kept = [
        run
        for run in last.values()
        if run is newest[_asked(run)] or (run.kind != "head" and run.comparison_key in beside)
    ]
    older = len({run.digest for run in found}) - len(kept)
    if older > 0:
        warnings.append(
            f"{older} older runs are left out: the same model was trained again on the same kind of split with the "
            "same seed, after the dataset changed or from another start"
        )
    return kept


def _asked(run: Run) -> tuple[Any, ...]:
    """Return what the user asked for, which has the same result as long as nothing changes."""
    given = run.given.get("split")
    # A split that was handed over as rows is one of any number.
    split = (run.split.share, run.split.digest) if given is None else str(given)
    how = tuple(str(run.given.get(name)) for name in ("group_by", "same_split_as"))
    return (run.dataset, model_of(run), run.split.name, split, *how, run.store, run.seed)


def _grouped(runs: Iterable[Run]) -> list[list[Run]]:
    """Group the runs on one dataset: models join a group if they were scored on the same samples as its others."""
    units: dict[Any, list[Run]] = defaultdict(list)
    for run in runs:
        units[model_of(run), run.samples_digest].append(run)
    groups: list[list[list[Run]]] = []
    for unit in sorted(units.values(), key=lambda unit: (unit[0].kind != "head", -len(unit))):
        fitting = [group for group in groups if all(_alike(unit, other) for other in group)]
        # A baseline may be on the samples of several groups of heads.
        joined = [g for g in fitting if unit[0].kind != "head" and _keys(unit) & _keys(*g)]
        if not fitting:
            groups.append([unit])
        for group in joined or fitting[:1]:
            group.append(unit)
    return [[run for unit in group for run in unit] for group in groups]


def _alike(a: Sequence[Run], b: Sequence[Run]) -> bool:
    """Tell whether two models were scored on the same samples wherever both have the same split, share and seed."""
    first, second = _by_place(a), _by_place(b)
    if any(first[place].isdisjoint(second[place]) for place in first.keys() & second.keys()):
        return False
    return bool(_keys(a) & _keys(b)) or not set(map(_samples, a)).isdisjoint(map(_samples, b))


def _keys(*units: Iterable[Run]) -> set[str]:
    return {run.comparison_key for unit in units for run in unit}


def _samples(run: Run) -> int:
    return run.n_train + run.n_validation + run.n_test + unused(run)


def _by_place(runs: Iterable[Run]) -> dict[tuple[Any, ...], set[str]]:
    """Return the comparison keys by what runs that stand side by side in a figure have in common."""
    found: dict[tuple[Any, ...], set[str]] = defaultdict(set)
    for run in runs:
        # Two digits, since a quarantined image leaves samples of another split at the same place.
        place = (run.split.name, run.split.share, f"{share_of(run):.2g}", run.seed)
        found[place].add(run.comparison_key)
    return found


def _comparison(runs: Sequence[Run], warnings: Sequence[str]) -> Comparison:
    models: dict[Model, list[Run]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: (share_of(run), run.seed, run.split.digest)):
        models[model_of(run)].append(run)
    names = _names({model: some[0].store for model, some in models.items()})
    order = sorted(models, key=lambda model: (*_rank(model), names[model]))
    made = Comparison(
        dataset=runs[0].dataset,
        task=runs[0].task,
        classes=runs[0].classes,
        models={names[model]: tuple(models[model]) for model in order},
    )
    return replace(made, warnings=(*_cautions(made), *warnings))


def _rank(model: Model) -> tuple[Any, ...]:
    """Order models for reading: the floor, heads by how much of an image they see, then other baselines."""
    tier = model.inputs.partition("[")[0]
    place = _TIERS.index(tier) if tier in _TIERS else len(_TIERS)
    return model.kind == "baseline" and model.name != FLOOR, model.kind == "head", place, model.name


def _names(stores: dict[Model, str]) -> dict[Model, str]:
    """Name models; inputs, parameters and stores are added if models of one name differ in them."""
    names = {}
    for model, store in stores.items():
        same = [other for other in stores if other.name == model.name]
        read = [other for other in same if (other.kind, other.inputs) == (model.kind, model.inputs)]
        differ = [
            f"{key} {value.strip(chr(39))}"
            for key, value in model.params
            if value != "None" and any(dict(other.params).get(key) != value for other in read)
        ]
        at = {stores[other] for other in same if other.store != model.store} - {""}
        names[model] = "".join(
            (
                model.name,
                f" on {model.inputs}"
                if len(read) < len(same) and len({m.inputs for m in same}) > 1
                else "",
                f" ({', '.join(differ)})" if differ else "",
                f" @ {store}" if at - {store} else f" @ {model.store[:8]}" if at else "",
            )
        )
    return names


def _cautions(comparison: Comparison) -> list[str]:
    """Return what a reader must know before comparing."""
    pairs, found = comparison.pairs, []
    untrained = dict.fromkeys(model for model, run in pairs if run.untrained)
    if untrained:
        weights = sorted({run.weights for run in comparison.runs if run.untrained})
        found.append(
            f"The weights behind {', '.join(untrained)} are {' and '.join(weights)}: these figures show that the "
            "machinery works, and say nothing about trained weights."
        )
    if all(leaks(run.split.name) for run in comparison.runs):
        found.append(
            "All splits are random: if images are neighbouring tiles of one place, models are scored next to what they "
            "were trained on, and scores are higher than they would be on new land."
        )
    # Pixels and each store are digested by themselves.
    states = {(run.store, run.samples_digest) for run in comparison.runs}
    if len(states) > len({run.store for run in comparison.runs}):
        found.append(
            "Not all runs saw the same state of the dataset, although their held-out samples have the same labels: to "
            "be sure, train the older ones again."
        )
    return found + [sentences(n) for n in dict.fromkeys(run.note for run in comparison.runs) if n]


def _with_failures(
    comparisons: Sequence[Comparison], failed: Sequence[tuple[Path, str, str]]
) -> list[Comparison]:
    """Put each failed cell to the comparison that has most runs of its sweep."""
    lists: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for folder, what, why in failed:
        counts = Counter(
            i for i, one in enumerate(comparisons) for run in one.runs if folder in run.path.parents
        )
        lists[max(range(len(comparisons)), key=lambda i: (counts[i], -i))].append((what, why))
    return [replace(one, failed=tuple(lists[i])) for i, one in enumerate(comparisons)]
