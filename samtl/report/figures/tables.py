"""Tables: scores, differences between models, failed fits, and where the figures come from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from samtl.experiment.run import Run
from samtl.metrics.classification import Score
from samtl.report.compare import SCORES, Compared, Comparison, Series, share_of, unused
from samtl.report.content import Table, Value
from samtl.report.words import (
    BAND,
    FLOOR,
    TITLES,
    floor_words,
    sentences,
    untrained_words,
    weights_of,
)


def scores_table(comparison: Comparison) -> Table:
    """Return the main scores of every model and kind of split, and of the floor's companions, with their intervals."""
    metrics = SCORES[comparison.task]
    floors: dict[str, Mapping[str, Score]] = {
        run.split.digest: run.metrics for run in comparison.runs if run.name == FLOOR
    }
    rows = [_row(one, one.model, metrics, floors) for one in comparison.series]
    for one in comparison.series:
        if one.runs[0].name == FLOOR:
            for name in one.runs[0].also:
                scores = tuple(run.also[name] for run in one.runs if name in run.also)
                other = Series(one.model, one.kind, one.runs, scores)
                rows.append(_row(other, f"{FLOOR}: {name}", metrics, floors))
    return Table(
        name="scores",
        title="Scores",
        caption=sentences(
            f"means over seeds (or folds), ± their standard deviation, and an interval, whose bounds are {BAND}.",
            "the floor beside a score is that of the same held-out samples.",
            floor_words(comparison),
            untrained_words(comparison.pairs),
        ),
        header=(
            *("model", "reads", "encoder and weights", "split", "training share", "repeats"),
            *(
                name
                for title in map(TITLES.__getitem__, metrics)
                for name in (
                    title,
                    f"± {title}",
                    f"{title}, 95 % interval",
                    f"{title} of the floor",
                )
            ),
        ),
        rows=tuple(rows),
    )


def _row(
    one: Series, name: str, metrics: Iterable[str], floors: Mapping[str, Mapping[str, Score]]
) -> tuple[Value, ...]:
    is_floor = one.beside or one.runs[0].name == FLOOR
    values: list[Value] = [
        name,
        "pixels" if is_floor else one.runs[0].inputs,
        "" if is_floor else weights_of(one.runs[0]),
        one.kind.split,
        round(one.share, 4),
        len(one.runs),
    ]
    for metric in metrics:
        summary = one.summary(metric)
        if summary is None:
            values += [None] * 4
            continue
        values += [
            round(summary.mean, 4),
            None if summary.deviation is None else round(summary.deviation, 4),
            f"{summary.low:.3f} to {summary.high:.3f}",
            None if is_floor else _floor(one, metric, floors),
        ]
    return tuple(values)


def _floor(one: Series, metric: str, floors: Mapping[str, Mapping[str, Score]]) -> float | None:
    """Return the mean score of the floors on the series' splits: of those that were run, else of those beside it."""
    of_runs = [floors.get(run.split.digest, {}) if floors else run.floor or {} for run in one.runs]
    values = [floor[metric].value for floor in of_runs if metric in floor]
    return round(sum(values) / len(values), 4) if len(values) == len(one.runs) else None


def differences(comparison: Comparison, found: Sequence[Compared]) -> Table:
    """Return every comparison of two models as a row, in words and in numbers."""
    return Table(
        "differences",
        f"Differences in {TITLES[SCORES[comparison.task][0]]} between every two models",
        sentences(
            "Points are hundredths of the score. Intervals come from a paired bootstrap over the samples that both "
            "models were scored on; they show how much other samples would have changed.",
            "They are not corrected for multiple comparisons: of twenty comparisons of equal models one is expected "
            f"to show a difference, and this table has {len(found)}.",
            untrained_words(comparison.pairs),
        ),
        (
            *("in words", "training share", "split", "model", "other model", "difference"),
            *("95 % interval", "shown", "seeds", "held-out samples"),
        ),
        tuple(
            (
                one.words,
                round(one.better.share, 4),
                one.better.kind.split,
                one.better.model,
                one.other.model,
                round(100 * one.difference.value, 2),
                f"{100 * one.difference.low:.2f} to {100 * one.difference.high:.2f}",
                "yes" if one.difference.shown else "no",
                one.difference.n_seeds,
                one.difference.n_samples,
            )
            for one in found
        ),
    )


def failures(comparison: Comparison) -> Table:
    """Return the failed cells of sweeps and their reasons."""
    return Table("failed", "Failed fits", "", ("fit", "reason"), comparison.failed)


def provenance(comparison: Comparison) -> list[Table]:
    """Return what the figures are based on: sources, splits, runs and versions; tables without rows are left out."""
    pairs, note = comparison.pairs, untrained_words(comparison.pairs)
    sources: dict[tuple[Value, ...], dict[str, None]] = {}
    for model, run in pairs:
        sources.setdefault(_values(_SOURCE, model, run), {})[model] = None
    versions = Counter(item for run in comparison.runs for item in run.versions.items())
    tables = [
        Table(
            "sources",
            "What the models read",
            sentences(
                "the fingerprint identifies the encoder, its weights, the preprocessing and the number types of a "
                "store; the snapshot identifies its content.",
                note,
            ),
            ("models", *_SOURCE),
            tuple((", ".join(models), *source) for source, models in sources.items()),
        ),
        Table(
            "splits",
            "Splits",
            "The digest identifies which samples were held out.",
            tuple(_SPLIT),
            tuple(dict.fromkeys(_values(_SPLIT, *pair) for pair in pairs)),
        ),
        Table(
            "runs",
            "Runs",
            sentences(
                "the configuration digest covers everything that determines a run's result except versions.",
                "Warm: the run whose weights training started from."
                if any(run.warm_start for run in comparison.runs)
                else "",
                note,
            ),
            tuple(_RUN),
            tuple(_values(_RUN, *pair) for pair in pairs),
        ),
        Table(
            "versions",
            "Versions",
            "",
            ("library", "version", "runs"),
            tuple((*item, n) for item, n in versions.items()),
        ),
    ]
    return [table for table in tables if table.rows]


Columns = Mapping[str, Callable[[str, Run], Value]]

_SOURCE: Columns = {
    "reads": lambda model, run: run.inputs,
    "dataset": lambda model, run: run.dataset,
    "store": lambda model, run: run.store,
    "encoder and weights": lambda model, run: weights_of(run),
    "image size": lambda model, run: str(run.identity.get("image_size", "")),
    "fingerprint": lambda model, run: run.fingerprint,
    "snapshot": lambda model, run: run.snapshot,
    "note": lambda model, run: run.note,
}
_SPLIT: Columns = {
    "split": lambda model, run: run.split.name,
    "held-out share": lambda model, run: run.split.share,
    "seed": lambda model, run: run.split.seed,
    "train": lambda model, run: run.n_train,
    "validation": lambda model, run: run.n_validation,
    "test": lambda model, run: run.n_test,
    "left out": lambda model, run: unused(run),
    "digest": lambda model, run: run.split.digest,
}
_RUN: Columns = {
    "model": lambda model, run: model,
    "encoder and weights": lambda model, run: weights_of(run),
    "split": lambda model, run: run.split.name,
    "training share": lambda model, run: round(share_of(run), 4),
    "seed": lambda model, run: run.seed,
    "run": lambda model, run: run.path.name,
    "configuration": lambda model, run: run.digest,
    "warm": lambda model, run: run.warm_start,
}


def _values(columns: Columns, model: str, run: Run) -> tuple[Value, ...]:
    return tuple(value(model, run) for value in columns.values())
