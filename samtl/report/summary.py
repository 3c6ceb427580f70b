"""The scores of a sweep as a table and a few sentences, without any figure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from samtl.errors import SamtlError
from samtl.metrics.bootstrap import Spread, over_seeds
from samtl.report.compare import SCORES, TITLES, Comparison, compared, findings
from samtl.report.load import read_comparisons
from samtl.sweep.results import SweepResult


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
    ]  #: floors last: those in the sweep, else the one fitted beside each head
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
    lines: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    floors = {}
    for one in comparison.series:
        for run, scores in zip(one.runs, one.scores, strict=True):
            named = {one.model: scores}
            if one.is_floor and not one.beside:
                named |= {f"{one.model}/{name}": also for name, also in run.also.items()}
            for name, some in named.items():
                lines[name][str(run.given.get("split"))].append(some[metric].value)
                floors[name] = one.is_floor
    return Summary(
        comparison.dataset,
        TITLES[metric],
        splits,
        tuple(
            Line(name, floors[name], {split: over_seeds(v) for split, v in lines[name].items()})
            for name in sorted(lines, key=floors.__getitem__)
        ),
        "" if any(floors.values()) else comparison.runs[0].floor_missing,
        findings(comparison, compared(comparison)),
        tuple(dict.fromkeys(run.weights for run in comparison.runs if run.untrained)),
    )
