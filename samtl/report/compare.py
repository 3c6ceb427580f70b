"""Runs that may be compared, put together as figures need them, and the differences between their models."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations, pairwise
from typing import Any, NamedTuple, Self

import numpy as np

from samtl.experiment.run import Run, Scores
from samtl.experiment.tables import read_images, read_predictions
from samtl.metrics.classification import Score
from samtl.metrics.paired import Difference, Outcome, describe, paired_differences

FLOOR = "floor"
STANDARD_SHARE = 0.2  # the held-out share of the comparison in words: "80-20"
SCORES = {
    "classification": ("accuracy", "macro_f1"),
    "segmentation": ("iou", "dice", "f1", "pooled_iou"),
}
TITLES = {
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "iou": "IoU",
    "dice": "Dice",
    "f1": "F1",
    "pooled_iou": "pooled IoU",
}


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

    `beside` marks the floor that was fitted with other models instead of being run itself.
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
        """Whether all runs saw the same state of the dataset."""
        return len({run.samples_digest for run in self.runs}) == 1

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

    @property
    def series(self) -> list[Series]:
        """Each model on each kind of split, ordered by model, way of splitting and training share.

        If no floor was run, the one that was fitted beside the heads comes last.
        """
        found = [one for some in self.by_kind.values() for one in some]
        found.sort(key=lambda one: list(self.models).index(one.model))
        if any(one.is_floor for one in found):
            return found
        for kind, some in self.by_kind.items():
            each = {run.split.digest: run for one in some for run in one.runs if run.floor}
            if each:  # one floor for each split
                scores = tuple(run.floor or {} for run in each.values())
                found.append(Series(FLOOR, kind, tuple(each.values()), scores, beside=True))
        return found

    @property
    def companions(self) -> list[Series]:
        """Further models that were scored with the floor, such as `floor/knn`."""
        return [
            replace(
                one, model=f"{one.model}/{name}", scores=tuple(run.also[name] for run in one.runs)
            )
            for one in self.series
            if one.is_floor and not one.beside
            for name in one.runs[0].also
        ]

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
        """Sort series from the best to the worst by the first score of the task."""
        return sorted(some, key=lambda one: -one.spread(SCORES[self.task][0]).mean)


def compared(comparison: Comparison) -> list[dict[str, Any]]:
    """Compare every two models on each kind of split on the samples that both were scored on.

    Classifications are compared by accuracy, segmentations by the mean IoU of the images. The better model comes
    first, and values are hundredths of the score.
    """
    metric = SCORES[comparison.task][0]
    read = read_images if comparison.task == "segmentation" else read_predictions
    rows = []
    for some in comparison.by_kind.values():
        ranked = comparison.ranked(some)
        outcomes = {
            one.model: {(run.seed, run.split.digest): read(run) for run in one.runs}
            for one in ranked
        }
        found = _differences(outcomes, metric)
        rows += [
            {
                "in words": describe(_name(a), _name(b), gap),
                "training share": a.share,
                "split": a.kind.split,
                "model": a.model,
                "other model": b.model,
                "difference": 100 * gap.value,
                "low": 100 * gap.low,
                "high": 100 * gap.high,
                "shown": "yes" if gap.shown else "no",
                "seeds": gap.n_seeds,
                "held-out samples": gap.n_samples,
            }
            for a, b in combinations(ranked, 2)
            if (gap := found.get((a.model, b.model)))
        ]
    return rows


def findings(comparison: Comparison, found: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the words on each model against the next better one, on the standard split."""
    words = {
        (row["split"], row["training share"], row["model"], row["other model"]): row["in words"]
        for row in found
    }
    pairs = pairwise(comparison.ranked(comparison.standard))
    wanted = ((a.kind.split, a.share, a.model, b.model) for a, b in pairs)
    return tuple(words[pair] for pair in wanted if pair in words)


def _name(one: Series) -> str:
    return f"{one.model} (untrained)" if one.runs[0].untrained else one.model


def _differences(
    outcomes: Mapping[str, Mapping[tuple[int, str], Outcome]], metric: str
) -> dict[tuple[str, str], Difference]:
    """Compare every two models on the splits, by seed and digest, that both have."""
    # Models with the same splits are resampled together, which is much faster.
    groups: dict[Any, dict[str, None]] = defaultdict(dict)
    for a, b in combinations(outcomes, 2):
        both = frozenset(outcomes[a].keys() & outcomes[b].keys())
        alike = outcomes[a].keys() == outcomes[b].keys()
        groups[both, () if alike else (a, b)] |= {a: None, b: None}
    found: dict[tuple[str, str], Difference] = {}
    for (splits, _), models in groups.items():
        if splits:
            several = {model: [outcomes[model][s] for s in sorted(splits)] for model in models}
            found |= paired_differences(several, metric)
    return found
