"""Runs that may be compared, put together as figures need them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, Self

import numpy as np

from samtl.experiment.held_out import FLOOR, floor_title
from samtl.experiment.run import Run, Scores
from samtl.metrics.classification import Score
from samtl.metrics.declared import Metric, ranked_by

STORE = " @ "  # in a model's name, before what its head reads
STANDARD_SHARE = 0.2  # the held-out share of the headline: "80-20"


def share_of(run: Run) -> float:
    """Return the share of all samples that training saw, validation included, in (0, 1)."""
    return (run.n_train + run.n_validation) / samples_of(run)


def samples_of(run: Run) -> int:
    """Count the samples that a split was drawn from."""
    return run.n_train + run.n_validation + run.n_test + unused(run)


def unused(run: Run) -> int:
    """Count the samples that a split leaves out, such as those beyond a label fraction."""
    return run.left_out_because.get("not_in_the_split", 0)


def weights_of(run: Run) -> str:
    """Name a run's encoder and weights."""
    return ", ".join(filter(None, (run.encoder, run.weights)))


def untrained(models: Iterable[tuple[str, Run]]) -> str:
    """Name the untrained weights that runs depend on, and their models; "" if there are none."""
    found: dict[str, dict[str, None]] = defaultdict(dict)
    for model, run in models:
        if run.untrained:
            found[f"{'encoder ' * bool(run.encoder)}{weights_of(run)}"][model] = None
    return "; ".join(f"{weights}: {', '.join(names)}" for weights, names in found.items())


class Kind(NamedTuple):
    """What the splits of several seeds have in common: how they are drawn, the shares held out and labelled."""

    split: str
    held_out: float
    labelled: float


def kind_of(run: Run) -> Kind:
    """Return the kind of a run's split."""
    # Whole groups never make up exactly the same share with every seed, hence two digits.
    labelled = float(f"{share_of(run):.2g}") if unused(run) else 1.0
    return Kind(run.split.name, run.split.share, labelled)


class Spread(NamedTuple):
    """One score over seeds."""

    mean: float
    deviation: float | None  #: n - 1 in the denominator; None for a single seed
    low: float  #: mean of the lower bounds of each seed's interval
    high: float
    values: tuple[float, ...]

    @classmethod
    def of(cls, scores: Sequence[Score]) -> Self:
        """Summarise one score of at least one seed."""
        values, lows, highs = zip(*((one.value, one.low, one.high) for one in scores), strict=True)
        mean, low, high = (float(np.mean(some)) for some in (values, lows, highs))
        deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
        return cls(mean, deviation, low, high, values)


@dataclass(frozen=True, eq=False)
class Series:
    """One model on one kind of split: a run for each seed or fold, and the scores of each.

    `beside` marks models of the floor that have no runs of their own: the runs are those that they were fitted with.
    """

    model: str
    kind: Kind
    runs: tuple[Run, ...]
    scores: tuple[Scores, ...]
    beside: bool = False

    @property
    def is_floor(self) -> bool:
        """Whether these are scores of the floor."""
        return self.beside or self.runs[0].name == FLOOR

    @property
    def only_class(self) -> str:
        """The class that every run predicts everywhere; "" if there is none, or it is not known."""
        if self.runs[0].task not in ("classification", "segmentation"):
            return ""
        said = {tuple(np.flatnonzero(run.confusion.any(0)).tolist()) for run in self.runs}
        alike = not self.beside and len(said) == 1 and len(min(said)) == 1
        return self.runs[0].classes[min(said)[0]] if alike else ""

    @property
    def share(self) -> float:
        """Mean share of all samples that training saw, in (0, 1)."""
        return float(np.mean([share_of(run) for run in self.runs]))

    @property
    def pairs(self) -> list[tuple[str, Run]]:
        """The runs with the model's name; none for a floor that was not run itself."""
        return [] if self.beside else [(self.model, run) for run in self.runs]

    def spread(self, metric: str) -> Spread:
        """Summarise a score over seeds."""
        return Spread.of([scores[metric] for scores in self.scores])


@dataclass(frozen=True, eq=False)
class Comparison:
    """Runs on one dataset that may be compared."""

    dataset: str
    task: str
    classes: tuple[str, ...]
    models: Mapping[str, tuple[Run, ...]]  #: by display name, runs by training share and seed
    failed: tuple[tuple[str, str], ...] = ()  #: cells of sweeps: what, and why
    warnings: tuple[str, ...] = ()  #: on runs that are not in it

    @property
    def pairs(self) -> list[tuple[str, Run]]:
        """Every run with its model's name."""
        return [(model, run) for model, runs in self.models.items() for run in runs]

    @property
    def runs(self) -> list[Run]:
        """Every run."""
        return [run for _, run in self.pairs]

    @property
    def one_state(self) -> bool:
        """Whether all runs saw the same state of the dataset, as far as they have masks of one size."""
        states = {(run.resolution, run.samples_digest) for run in self.runs}
        return len(states) == len({resolution for resolution, _ in states})

    @cached_property
    def by_kind(self) -> dict[Kind, list[Series]]:
        """The series of models by kind of split, in order of the split and training share."""
        kinds: dict[Kind, dict[str, list[Run]]] = defaultdict(lambda: defaultdict(list))
        for model, run in self.pairs:
            kinds[kind_of(run)][model].append(run)
        found = {
            kind: [
                Series(model, kind, tuple(runs), tuple(run.metrics for run in runs))
                for model, runs in models.items()
            ]
            for kind, models in kinds.items()
        }
        return dict(sorted(found.items(), key=lambda item: (item[0].split, item[1][0].share)))

    @cached_property
    def series(self) -> list[Series]:
        """Each model on each kind of split, ordered by model, way of splitting and training share.

        The floor's companions follow. If no floor was run, the one that was fitted beside other models is last.
        """
        found = [one for some in self.by_kind.values() for one in some]
        found.sort(key=lambda one: list(self.models).index(one.model))
        if any(one.is_floor for one in found):
            return found + [
                replace(
                    one, model=title, scores=tuple(run.also[name] for run in one.runs), beside=True
                )
                for one in found
                if one.is_floor
                for name in one.runs[0].also
                if (title := floor_title(self.task, name)) not in self.models
            ]
        for kind, some in self.by_kind.items():
            each = {run.split.digest: run for one in some for run in one.runs if run.floor}
            if each:  # one floor for each split
                scores = tuple(run.floor or {} for run in each.values())
                title = floor_title(self.task, beside=True)
                found.append(Series(title, kind, tuple(each.values()), scores, beside=True))
        return found

    @property
    def names(self) -> list[str]:
        """Every model that has scores, floors and their companions among them."""
        return list(dict.fromkeys((*self.models, *(one.model for one in self.series))))

    @property
    def metric(self) -> Metric:
        """The score that models are ranked and compared by."""
        return ranked_by(self.task)

    @property
    def standard(self) -> list[Series]:
        """The series of the kind of split whose training share is nearest to `1 - STANDARD_SHARE`.

        Of several such kinds it is the one that most models ran on.
        """

        def distance(some: list[Series]) -> tuple[float, int]:
            off = float(np.mean([one.share for one in some])) - (1 - STANDARD_SHARE)
            return round(abs(off), 2), -len(some)

        return min(self.by_kind.values(), key=distance)

    @property
    def together(self) -> dict[str, Run]:
        """One run of each model on the same split: of the standard split, the seed that most models have."""
        splits: dict[tuple[int, str], dict[str, Run]] = defaultdict(dict)
        for one in self.standard:
            for run in one.runs:
                splits[run.seed, run.split.digest].setdefault(one.model, run)
        return min(splits.items(), key=lambda item: (-len(item[1]), item[0]))[1]

    def ranked(self, some: Iterable[Series]) -> list[Series]:
        """Sort series from the best to the worst by their mean over seeds of the score of the task."""
        metric = self.metric
        return sorted(some, key=lambda one: -metric.better(one.spread(metric.name).mean))

    @property
    def leading(self) -> list[Series]:
        """The best head, the best baseline and the best floor that was run, on the standard split, the best first.

        Models that predict one class everywhere are passed over if there are others.
        """
        kinds: dict[str, list[Series]] = defaultdict(list)
        ranked = self.ranked(self.standard)
        for one in sorted(ranked, key=lambda one: bool(one.only_class)):
            kinds[FLOOR if one.is_floor else one.runs[0].kind].append(one)
        first = [some[0] for some in kinds.values()]
        return [one for one in ranked if one in first]

    def beside(self, some: Iterable[Series]) -> list[Series]:
        """Return the models of the floor without runs of their own, on the kinds of split of some series."""
        kinds = {one.kind for one in some}
        return [one for one in self.series if one.beside and one.kind in kinds]
