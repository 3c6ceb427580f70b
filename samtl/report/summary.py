"""The scores of a sweep as a table and a few sentences, without any figure."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from samtl.errors import SamtlError
from samtl.metrics.classification import Score
from samtl.metrics.declared import Metric
from samtl.report.compare import Comparison, Spread
from samtl.report.findings import compared, findings
from samtl.report.load import read_comparisons
from samtl.sweep.results import SweepResult

_FOLD = re.compile(r"^fold:\d+/(\d+)$")


@dataclass(frozen=True)
class Summary:
    """The finished cells of a sweep that may be compared."""

    dataset: str
    metric: Metric  #: the score that models are ranked by
    splits: tuple[str, ...]  #: in the order in which they were asked for; all folds are one
    scores: dict[
        str, dict[str, Spread]
    ]  #: over seeds and folds, of each model, floors last, by split
    floor_missing: str  #: why there is no floor, or ""
    words: tuple[str, ...]  #: which model beats which, near the 80-20 split
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
    metric, kinds = comparison.metric, _together(splits)
    values: dict[str, dict[str, list[Score]]] = defaultdict(lambda: defaultdict(list))
    series = sorted(comparison.series, key=lambda one: one.is_floor)
    for one in series:
        for run, scores in zip(one.runs, one.scores, strict=True):
            asked = str(run.given.get("split"))
            values[one.model][kinds.get(asked, asked)].append(scores[metric.name])
    return Summary(
        comparison.dataset,
        metric,
        tuple(dict.fromkeys(kinds[split] for split in splits)),
        {model: {k: Spread.of(v) for k, v in some.items()} for model, some in values.items()},
        "" if series[-1].is_floor else comparison.runs[0].floor_missing,
        tuple(line.replace("`", "") for line in findings(comparison, compared(comparison))),
        tuple(dict.fromkeys(run.weights for run in comparison.runs if run.untrained)),
    )


def _together(splits: Sequence[str]) -> dict[str, str]:
    """Return what each split is shown as: folds as `kfold:K` if all K of them are there."""
    folds: dict[str, list[str]] = defaultdict(list)
    for split in splits:
        if found := _FOLD.match(split):
            folds[found[1]].append(split)
    whole = {
        split: f"kfold:{count}"
        for count, some in folds.items()
        if len(some) == int(count)
        for split in some
    }
    return {split: whole.get(split, split) for split in splits}
