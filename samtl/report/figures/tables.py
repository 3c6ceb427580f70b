"""Tables: scores, differences between models, failed fits, and where the figures come from."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any

from samtl.experiment.run import Run, Scores
from samtl.report.compare import (
    FLOOR,
    SCORES,
    TITLES,
    Comparison,
    Series,
    share_of,
    untrained,
    unused,
    weights_of,
)
from samtl.report.parts import Table, caption

Row = dict[str, Any]


def scores_table(comparison: Comparison) -> Table:
    """Return the main scores of every model and kind of split, and of the floor's companions, with their intervals."""
    floors = {run.split.digest: run.metrics for run in comparison.runs if run.name == FLOOR}
    named = [(one.model, one) for one in comparison.series]
    for one in comparison.series:
        for name in one.runs[0].also if one.is_floor and not one.beside else ():
            scores = tuple(run.also[name] for run in one.runs)
            named.append((f"{FLOOR}: {name}", Series(one.model, one.kind, one.runs, scores)))
    return Table(
        name="scores",
        title="Scores",
        caption=caption("scores", comparison=comparison),
        rows=[_scores(name, one, SCORES[comparison.task], floors) for name, one in named],
        note=untrained(comparison.pairs),
    )


def _scores(name: str, one: Series, metrics: Sequence[str], floors: Mapping[str, Scores]) -> Row:
    row: Row = {
        "model": name,
        "reads": "pixels" if one.is_floor else one.runs[0].inputs,
        "encoder and weights": "" if one.is_floor else weights_of(one.runs[0]),
        "split": one.kind.split,
        "training share": one.share,
        "repeats": len(one.runs),
    }
    # Of the same samples: of the floors that were run, else of those beside the heads.
    beside = [floors.get(run.split.digest, {}) if floors else run.floor or {} for run in one.runs]
    for metric in metrics:
        found, title = one.summary(metric), TITLES[metric]
        row[title] = found.mean
        row[f"± {title}"] = found.deviation
        row[f"{title}, low"], row[f"{title}, high"] = found.low, found.high
        row[f"{title} of the floor"] = None
        if not one.is_floor and all(beside):
            values = [floor[metric].value for floor in beside]
            row[f"{title} of the floor"] = sum(values) / len(values)
    return row


def differences(comparison: Comparison, rows: Sequence[Row]) -> Table:
    """Return every comparison of two models, as `compared` returns them."""
    return Table(
        name="differences",
        title=f"Differences in {TITLES[SCORES[comparison.task][0]]} between every two models",
        caption=caption("differences", count=len(rows)),
        rows=rows,
        note=untrained(comparison.pairs),
    )


def failures(comparison: Comparison) -> list[Table]:
    """Return the failed cells of sweeps and their reasons, if there are any."""
    rows = [{"fit": what, "reason": why} for what, why in comparison.failed]
    return [Table(name="failed", title="Failed fits", rows=rows)] if rows else []


def provenance(comparison: Comparison) -> list[Table]:
    """Return what the figures are based on: sources, splits, runs and versions."""
    pairs, note = comparison.pairs, untrained(comparison.pairs)
    sources: dict[tuple[Any, ...], dict[str, None]] = defaultdict(dict)
    for model, run in pairs:
        sources[_values(run, _SOURCE)][model] = None
    splits = dict.fromkeys(_values(run, _SPLIT) for _, run in pairs)
    versions = Counter(item for _, run in pairs for item in run.versions.items())
    warm = any(run.warm_start for _, run in pairs)
    return [
        Table(
            name="sources",
            title="What the models read",
            caption=caption("sources"),
            rows=[{"models": ", ".join(names), **dict(s)} for s, names in sources.items()],
            note=note,
        ),
        Table(
            name="splits",
            title="Splits",
            caption=caption("splits"),
            rows=[dict(split) for split in splits],
        ),
        Table(
            name="runs",
            title="Runs",
            caption=caption("runs", warm=warm),
            rows=[{"model": model, **dict(_values(run, _RUN))} for model, run in pairs],
            note=note,
        ),
        Table(
            name="versions",
            title="Versions",
            rows=[{"library": a, "version": b, "runs": n} for (a, b), n in versions.items()],
        ),
    ]


Columns = Mapping[str, Callable[[Run], Any]]
_SOURCE: Columns = {
    "reads": attrgetter("inputs"),
    "dataset": attrgetter("dataset"),
    "store": attrgetter("store"),
    "encoder and weights": weights_of,
    "image size": lambda run: str(run.identity.get("image_size", "")),
    "fingerprint": attrgetter("fingerprint"),
    "snapshot": attrgetter("snapshot"),
    "note": attrgetter("note"),
}
_SPLIT: Columns = {
    "split": attrgetter("split.name"),
    "held-out share": attrgetter("split.share"),
    "seed": attrgetter("split.seed"),
    "train": attrgetter("n_train"),
    "validation": attrgetter("n_validation"),
    "test": attrgetter("n_test"),
    "left out": unused,
    "digest": attrgetter("split.digest"),
}
_RUN: Columns = {
    "encoder and weights": weights_of,
    "split": attrgetter("split.name"),
    "training share": share_of,
    "seed": attrgetter("seed"),
    "run": attrgetter("path.name"),
    "configuration": attrgetter("digest"),
    "warm": attrgetter("warm_start"),
}


def _values(run: Run, columns: Columns) -> tuple[tuple[str, Any], ...]:
    return tuple((name, value(run)) for name, value in columns.items())
