"""The scores of a sweep as a table and a few sentences, without any figure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from samtl.errors import SamtlError
from samtl.metrics.bootstrap import Spread, over_seeds
from samtl.report.compare import SCORES, Comparison, Series, compared, findings
from samtl.report.load import read_comparisons
from samtl.report.words import FLOOR, TITLES
from samtl.sweep.api import SweepResult


@dataclass(frozen=True)
class Line:
    """A model, or a floor, and its scores over seeds by split."""

    model: str
    floor: bool
    scores: Mapping[str, Spread]


@dataclass(frozen=True)
class Summary:
    """The finished cells of a sweep that may be compared."""

    dataset: str
    title: str  #: of the score: `accuracy` or `IoU`
    splits: tuple[str, ...]  #: in the order in which they were asked for
    lines: tuple[
        Line, ...
    ]  #: the floor last: the one in the sweep, else the one fitted beside each head
    floor_missing: str  #: why there is no floor, or ""
    words: tuple[
        str, ...
    ]  #: on the splits nearest to 80-20, each model against the next better one
    weights: tuple[str, ...]  #: those that are untrained


def summarise(result: SweepResult) -> list[Summary]:
    """Summarise a sweep; runs that were removed or altered since are left to the report."""
    splits = tuple(dict.fromkeys(row["split"] for row in result.rows))
    runs = dict.fromkeys(result.out / row["run"] for row in result.rows if row["status"] == "done")
    try:
        found = read_comparisons([*runs]) if runs else []
    except SamtlError:
        return []
    return [_summary(comparison, splits) for comparison in found]


def _summary(comparison: Comparison, splits: tuple[str, ...]) -> Summary:
    metric = SCORES[comparison.task][0]
    by_model: dict[str, list[Series]] = defaultdict(list)
    for one in comparison.series:
        by_model[one.model].append(one)
        for name in dict.fromkeys(name for run in one.runs for name in run.also):
            also = tuple(run.also.get(name, {}) for run in one.runs)
            by_model[f"{one.model}/{name}"].append(Series(one.model, one.kind, one.runs, also))
    lines = [
        Line(model, model.partition("/")[0] == FLOOR, _spreads(some, metric))
        for model, some in by_model.items()
    ]
    lines.sort(key=lambda line: line.floor)
    floors = any(line.floor for line in lines)
    return Summary(
        comparison.dataset,
        TITLES[metric],
        splits,
        tuple(lines),
        "" if floors else next((run.floor_missing for run in comparison.runs), ""),
        findings(comparison, compared(comparison)),
        tuple(dict.fromkeys(run.weights for run in comparison.runs if run.untrained)),
    )


def _spreads(some: list[Series], metric: str) -> dict[str, Spread]:
    values: dict[str, list[float]] = defaultdict(list)
    for one in some:
        for run, scores in zip(one.runs, one.scores, strict=True):
            if metric in scores:
                values[str(run.given.get("split"))].append(scores[metric].value)
    return {split: over_seeds(found) for split, found in values.items()}
