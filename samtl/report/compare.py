"""Runs that may be compared, put together as figures need them, and the differences between their models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, pairwise
from typing import NamedTuple

import numpy as np

from samtl.experiment.run import Run
from samtl.experiment.tables import read_images, read_predictions
from samtl.metrics.bootstrap import Difference, Outcome, describe, over_seeds, paired_differences
from samtl.metrics.classification import Score
from samtl.report.words import FLOOR

STANDARD_SHARE = 0.2  # the held-out share of the comparison in words: "80-20"
SCORES = {
    "classification": ("accuracy", "macro_f1"),
    "segmentation": ("iou", "dice", "f1", "pooled_iou"),
}


class Kind(NamedTuple):
    """What the splits of several seeds have in common: how they are drawn, the shares held out and labelled."""

    split: str
    held_out: float
    labelled: float


class Summary(NamedTuple):
    """One score over seeds.

    `low` and `high` are means of the bounds of each seed's interval; `deviation` is None for a single seed.
    """

    mean: float
    deviation: float | None
    low: float
    high: float
    values: tuple[float, ...]


def share_of(run: Run) -> float:
    """Return the share of all samples that training saw, validation included, in (0, 1)."""
    learnt = run.n_train + run.n_validation
    return learnt / (learnt + run.n_test + unused(run))


def unused(run: Run) -> int:
    """Count the samples that a split leaves out, such as those beyond a label fraction."""
    return run.left_out_because.get("not_in_the_split", 0)


def kind_of(run: Run) -> Kind:
    """Return the kind of a run's split."""
    # Whole groups never make up exactly the same share with every seed, hence two digits.
    labelled = float(f"{share_of(run):.2g}") if unused(run) else 1.0
    return Kind(run.split.name, run.split.share, labelled)


@dataclass(frozen=True, eq=False)
class Series:
    """One model on one kind of split: a run for each seed or fold, and the scores of each.

    `beside` marks the floor that was fitted with other models instead of being run itself.
    """

    model: str
    kind: Kind
    runs: tuple[Run, ...]
    scores: tuple[Mapping[str, Score], ...]
    beside: bool = False

    @property
    def share(self) -> float:
        """Mean share of all samples that training saw, in (0, 1)."""
        return float(np.mean([share_of(run) for run in self.runs]))

    def summary(self, metric: str) -> Summary | None:
        """Summarise a score over seeds; None if it was not taken."""
        found = [scores[metric] for scores in self.scores if metric in scores]
        if not found:
            return None
        spread = over_seeds(score.value for score in found)
        low, high = (float(np.mean([getattr(s, end) for s in found])) for end in ("low", "high"))
        return Summary(spread.mean, spread.deviation, low, high, tuple(s.value for s in found))


@dataclass(frozen=True, eq=False)
class Comparison:
    """Runs on one dataset that may be compared."""

    dataset: str
    task: str
    classes: tuple[str, ...]
    models: Mapping[str, tuple[Run, ...]]  #: by display name, runs by training share and seed
    failed: tuple[tuple[str, str], ...] = ()  #: cells of sweeps: what, and why
    warnings: tuple[str, ...] = ()  #: what a reader must know before comparing

    @property
    def pairs(self) -> list[tuple[str, Run]]:
        """Every run with its model's name."""
        return [(model, run) for model, runs in self.models.items() for run in runs]

    @property
    def runs(self) -> list[Run]:
        """Every run."""
        return [run for _, run in self.pairs]

    @cached_property
    def series(self) -> list[Series]:
        """Each model on each kind of split, ordered by model, way of splitting and training share.

        If no floor was run, the one that was fitted beside the heads comes last.
        """
        found = []
        for model, runs in self.models.items():
            kinds: dict[Kind, list[Run]] = {}
            for run in runs:
                kinds.setdefault(kind_of(run), []).append(run)
            found += [
                Series(model, kind, tuple(some), tuple(run.metrics for run in some))
                for kind, some in kinds.items()
            ]
        if not any(run.name == FLOOR for run in self.runs):
            floors: dict[Kind, dict[str, Run]] = {}  # one for each split
            for run in self.runs:
                if run.floor is not None:
                    floors.setdefault(kind_of(run), {}).setdefault(run.split.digest, run)
            for kind, each in floors.items():
                scores = tuple(run.floor or {} for run in each.values())
                found.append(Series(FLOOR, kind, tuple(each.values()), scores, beside=True))
        order = [*self.models, FLOOR]
        return sorted(found, key=lambda one: (order.index(one.model), one.kind.split, one.share))

    def standard(self, held_out: float = STANDARD_SHARE, beside: bool = False) -> list[Series]:
        """Return the series of the kind of split whose training share is nearest to `1 - held_out`.

        Of several, the kind that most models ran on counts. Floors beside other models are left out unless `beside`.
        """
        kinds: dict[Kind, list[Series]] = {}
        for one in self.series:
            kinds.setdefault(one.kind, []).append(one)
        if not kinds:
            return []

        def distance(some: list[Series]) -> tuple[float, int]:
            off = float(np.mean([one.share for one in some])) - (1 - held_out)
            return round(abs(off), 2), -len(some)

        return [one for one in min(kinds.values(), key=distance) if beside or not one.beside]

    def ranked(self, some: Iterable[Series]) -> list[Series]:
        """Sort series from the best to the worst by the first score of the task."""
        means = {one: one.summary(SCORES[self.task][0]) for one in some}
        return sorted(means, key=lambda one: -(found.mean if (found := means[one]) else -1.0))

    def together(self, held_out: float = STANDARD_SHARE) -> dict[str, Run]:
        """Return one run of each model on the same split: of the standard split, the seed that most models have."""
        splits: dict[tuple[str, int], dict[str, Run]] = {}
        for one in self.standard(held_out):
            for run in one.runs:
                splits.setdefault((run.split.digest, run.seed), {}).setdefault(one.model, run)
        return min(splits.items(), key=lambda item: (-len(item[1]), item[0][1]), default=("", {}))[
            1
        ]


class Compared(NamedTuple):
    """Two models on one kind of split, the better one first, and their difference in words."""

    better: Series
    other: Series
    difference: Difference
    words: str


def compared(comparison: Comparison) -> list[Compared]:
    """Compare every two models on each kind of split by paired bootstrap over the samples that both were scored on.

    Classifications are compared by accuracy, segmentations by the mean IoU of the images.
    """
    metric = SCORES[comparison.task][0]
    kinds: dict[Kind, list[Series]] = {}
    for one in comparison.series:
        if not one.beside:
            kinds.setdefault(one.kind, []).append(one)
    found = []
    for some in sorted(kinds.values(), key=lambda some: (some[0].kind.split, some[0].share)):
        ranked = comparison.ranked(some)
        gaps = _gaps({one.model: _outcomes(one) for one in ranked}, metric)
        found += [
            Compared(
                a, b, gaps[a.model, b.model], describe(_name(a), _name(b), gaps[a.model, b.model])
            )
            for a, b in combinations(ranked, 2)
            if (a.model, b.model) in gaps
        ]
    return found


def findings(comparison: Comparison, found: Sequence[Compared]) -> tuple[str, ...]:
    """Return the words on each model against the next better one, on the standard split."""
    ranked = comparison.ranked(comparison.standard())
    words = {(one.better, one.other): one.words for one in found}
    return tuple(words[pair] for pair in pairwise(ranked) if pair in words)


def _name(one: Series) -> str:
    return f"{one.model} (untrained)" if one.runs[0].untrained else one.model


def _outcomes(one: Series) -> dict[tuple[int, str], Outcome]:
    """Return the model's predictions, or scores of images, on each split, by seed and digest."""
    return {
        (run.seed, run.split.digest): read_images(run)
        if run.task == "segmentation"
        else read_predictions(run)
        for run in one.runs
    }


def _gaps(
    outcomes: Mapping[str, Mapping[tuple[int, str], Outcome]], metric: str
) -> dict[tuple[str, str], Difference]:
    """Compare every two models on the splits that both have."""
    found: dict[tuple[str, str], Difference] = {}
    alike: dict[frozenset[tuple[int, str]], list[str]] = {}
    for model, had in outcomes.items():
        alike.setdefault(frozenset(had), []).append(model)
    # Models with the same splits are resampled together, which is much faster.
    groups = [(splits, models) for splits, models in alike.items() if len(models) > 1]
    groups += [
        (frozenset(outcomes[a].keys() & outcomes[b].keys()), [a, b])
        for a, b in combinations(outcomes, 2)
        if outcomes[a].keys() != outcomes[b].keys()
    ]
    for splits, models in groups:
        if splits:
            several = {model: [outcomes[model][s] for s in sorted(splits)] for model in models}
            found |= paired_differences(several, metric)
    return found
