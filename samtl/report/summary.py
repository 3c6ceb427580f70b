"""What a sweep came to, in a table and a few sentences, before any figure is drawn."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from samtl.errors import SamtlError
from samtl.experiment.run import read_run
from samtl.metrics.bootstrap import Spread, over_seeds
from samtl.report.compare import differences
from samtl.report.figures.groups import (
    FIGURES,
    FLOOR,
    STANDARD_SHARE,
    TITLES,
)
from samtl.report.load import gather
from samtl.sweep.api import SweepResult, labelled
from samtl.sweep.results import DONE, Row


@dataclass(frozen=True)
class Line:
    """One model.

    Attributes
    ----------
    model : str
    floor : bool
        Whether it is what the others are held against.
    scores : mapping of str to Spread
        By split, over seeds.
    """

    model: str
    floor: bool
    scores: Mapping[str, Spread]


@dataclass(frozen=True)
class Summary:
    """What the finished cells of a sweep on one dataset came to.

    Attributes
    ----------
    dataset : str
    title : str
        Of the score: `accuracy` or `IoU`.
    splits : tuple of str
        In the order in which they were asked for.
    lines : tuple of Line
        The floor last: the one that was in the sweep, else the one that stands beside each head.
    floor_missing : str
        Why there is no floor, or "".
    words : tuple of str
        On the splits nearest to 80-20, each model against the next better one.
    weights : tuple of str
        Those that are not trained.
    """

    dataset: str
    title: str
    splits: tuple[str, ...]
    lines: tuple[Line, ...]
    floor_missing: str
    words: tuple[str, ...]
    weights: tuple[str, ...]


def summarise(result: SweepResult) -> list[Summary]:
    """Put the scores of a sweep together: a summary for each dataset and task of which a cell is done."""
    splits = tuple(dict.fromkeys(row["split"] for row in result.rows))
    of_data: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in result.rows:
        if row["status"] == DONE and row["metric_name"] == FIGURES[row["task"]][0]:
            of_data[row["dataset"], row["task"]].append(row)
    return [
        _summary(result.out, dataset, task, splits, rows)
        for (dataset, task), rows in of_data.items()
    ]


def _summary(
    out: Path, dataset: str, task: str, splits: tuple[str, ...], rows: Sequence[Row]
) -> Summary:
    by_model: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in rows:
        by_model[row["method"], row["features"], row["store"]].append(row)
    names = labelled(by_model)
    lines = [
        Line(
            names[model],
            model[0].partition("/")[0] == FLOOR,
            _spreads((row["split"], row["metric_value"]) for row in some),
        )
        for model, some in by_model.items()
    ]
    missing = ""
    if not any(line.floor for line in lines):
        beside, missing = _beside(out, FIGURES[task][0], rows)
        lines += [Line(FLOOR, True, beside)] if beside else []
    return Summary(
        dataset,
        TITLES[FIGURES[task][0]],
        splits,
        tuple(sorted(lines, key=lambda line: line.floor)),
        missing,
        _words(out, rows),
        tuple(dict.fromkeys(row["weights"] for row in rows if row["untrained"])),
    )


def _spreads(scores: Iterable[tuple[str, float]]) -> dict[str, Spread]:
    values: dict[str, list[float]] = defaultdict(list)
    for split, value in scores:
        values[split].append(value)
    return {split: over_seeds(found) for split, found in values.items()}


def _beside(out: Path, metric: str, rows: Sequence[Row]) -> tuple[dict[str, Spread], str]:
    """Give the floor that was fitted on each split, once; and why there is none where there is none at all."""
    found: dict[tuple[str, str], float] = {}
    missing = ""
    for row in rows:
        place = row["split"], row["split_digest"]
        if place in found:
            continue
        try:
            run = read_run(out / row["run"])
        except SamtlError as error:
            missing = str(error)
            continue
        if run.floor:
            found[place] = run.floor[metric].value
        else:
            missing = run.floor_missing
    return _spreads((split, value) for (split, _), value in found.items()), missing


def _words(out: Path, rows: Sequence[Row]) -> tuple[str, ...]:
    """Compare the models on the splits whose training part is nearest to that of the study's own comparison."""
    learnt: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        seen = row["n_train"] + row["n_val"]
        learnt[row["split"]].append(seen / (seen + row["n_test"]))
    off = {
        split: round(abs(float(np.mean(x)) - 1 + STANDARD_SHARE), 2) for split, x in learnt.items()
    }
    nearest = {split for split, distance in off.items() if distance == min(off.values())}
    runs = dict.fromkeys(out / row["run"] for row in rows if row["split"] in nearest)
    try:
        studies = gather(list(runs))
        found = [(study, differences(study)[1]) for study in studies]
    except SamtlError:  # runs that were taken away or altered since; the report tells of them
        return ()
    several = len(studies) > 1
    return tuple(
        f"{next(filter(None, (trial.store for trial in study.trials)), study.dataset)}: {line}"
        if several
        else line
        for study, lines in found
        for line in lines
    )
