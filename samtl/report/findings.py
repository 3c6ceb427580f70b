"""Which model is best, and which differences between models the held-out samples show."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any, NamedTuple

from samtl.experiment.run import Run
from samtl.experiment.tables import READERS
from samtl.metrics.declared import SHARE, Metric
from samtl.metrics.paired import FEWEST, Difference, ImageScores, Outcome, paired_differences
from samtl.report.compare import Comparison, Series


class Pair(NamedTuple):
    """Two models on the same held-out samples."""

    better: Series  #: the one with the higher mean; that need not be shown
    other: Series
    gap: Difference  #: how much better the first is, whichever direction of the score is better

    def amount(self, metric: Metric) -> str:
        """Write the difference with its unit and interval; differences of shares are in hundredths ("points")."""
        value, _, interval = self.figures(metric).partition(" ")
        few = "" if self.gap.n_samples >= FEWEST else f", of {self.gap.n_samples} samples only"
        return f"{value}{f' {points(metric)}'.rstrip()} {interval}{few}"

    def figures(self, metric: Metric) -> str:
        """Write the difference with its interval."""
        figures = [metric.factor * x for x in (self.gap.value, self.gap.low, self.gap.high)]
        digits = metric.decimals or 0
        if self.gap.shown:  # enough that the interval does not seem to hold 0
            digits = max(digits, math.ceil(-math.log10(min(map(abs, figures[1:])))))
        value, low, high = (f"{round(x, digits) + 0.0:.{digits}f}" for x in figures)
        return f"{value} [{low}, {high}]"

    def words(self, metric: Metric) -> str:
        """Describe the difference, such as "vit beats mlp by 1.2 points [0.4, 2.0]"."""
        better, other = self.better.model, self.other.model
        if self.gap.shown:
            return f"{better} beats {other} by {self.amount(metric)}"
        return f"no difference shown between {better} and {other} ({self.amount(metric)})"


def points(metric: Metric) -> str:
    """Name the unit of a difference."""
    return "points" if metric.unit == SHARE else metric.unit


def compared(comparison: Comparison) -> list[Pair]:
    """Compare every two models on each kind of split on the samples that both were scored on.

    Segmentations are compared by all pixels of their images together.
    """
    metric, pairs = comparison.metric, []
    for some in comparison.by_kind.values():
        ranked = comparison.ranked(some)
        outcomes = {
            one.model: {
                (run.seed, run.split.digest): outcome
                for run in one.runs
                if (outcome := _outcome(run)) is not None
            }
            for one in ranked
        }
        found = _differences(outcomes, metric)
        for a, b in combinations(ranked, 2):
            gap = found.get((a.model, b.model))
            if gap is not None and not metric.higher_is_better:
                gap = replace(gap, value=-gap.value, low=-gap.high, high=-gap.low)
            if gap is not None:
                pairs.append(Pair(a, b, gap))
    return pairs


def headline(comparison: Comparison) -> list[str]:
    """Say how good the best head, the best baseline and the floor are, on the standard split."""
    leading, beside = comparison.leading, comparison.beside(comparison.standard)
    floors = comparison.ranked([*(one for one in leading if one.is_floor), *beside])
    named = comparison.ranked([*(one for one in leading if not one.is_floor), *floors[:1]])
    lines = [
        f"Best {'floor' if one.is_floor else one.runs[0].kind}: `{one.model}`, "
        f"{_absolute(comparison.metric, one)}."
        for one in named
    ]
    if len(named) > 1 and named[0].is_floor:
        lines.append("No model is above the floor.")
    constant = {one.model: one.only_class for one in comparison.standard if one.only_class}
    lines += [
        f"`{model}` predicts one class everywhere, `{name}`." for model, name in constant.items()
    ]
    return lines


def _absolute(metric: Metric, one: Series) -> str:
    spread = one.spread(metric.name)
    value, low, high = map(metric.written, (spread.mean, spread.low, spread.high))
    if spread.deviation is not None:
        value += f" ± {metric.written(spread.deviation)}"
    unit = f" {metric.unit}" if metric.unit else ""
    counts = sorted({run.n_test for run in one.runs})
    sizes = " to ".join(f"{count:,}" for count in dict.fromkeys((counts[0], counts[-1])))
    # As the intervals count: groups of samples, if there are any.
    groups = min(run.n_groups for run in one.runs)
    of_groups = f" in {groups} group{'s' * (groups > 1)}" if groups else ""
    return f"{metric.title} {value}{unit} [{low}, {high}], {sizes} images held out{of_groups}"


def findings(comparison: Comparison, pairs: Sequence[Pair]) -> list[str]:
    """Say what each model is shown to beat, and from what the best one does not differ, on the standard split."""
    metric, kind, lines = comparison.metric, comparison.standard[0].kind, []
    for place, one in enumerate(comparison.ranked(comparison.standard)):
        mine = [
            pair for pair in pairs if pair.better.kind == kind and pair.better.model == one.model
        ]
        beaten = [f"`{p.other.model}` by {p.amount(metric)}" for p in mine if p.gap.shown]
        others = [f"`{p.other.model}` ({p.amount(metric)})" for p in mine if not p.gap.shown]
        if beaten:
            lines.append(f"`{one.model}` beats {listed(beaten)}.")
        if others and not place:
            lines.append(f"No difference is shown between `{one.model}` and {listed(others)}.")
    return lines


def listed(names: Sequence[str]) -> str:
    """Join names by commas and "and"."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _outcome(run: Run) -> Outcome | None:
    """Read what a model said of each held-out sample; None if that was not kept."""
    found = READERS[run.task](run)
    return None if isinstance(found, ImageScores) and found.counts is None else found


def _differences(
    outcomes: Mapping[str, Mapping[tuple[int, str], Outcome]], metric: Metric
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
            found |= paired_differences(several, metric.name)
    return found
