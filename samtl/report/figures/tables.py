"""The study's scores as a table, and where its figures come from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from samtl.report.content import Cell as Value
from samtl.report.content import Study, Table
from samtl.report.figures.groups import (
    BAND,
    FIGURES,
    FLOOR,
    TITLES,
    Cell,
    cells,
    floor_words,
    sentences,
    untrained_words,
    weights_of,
)


def scores_table(study: Study) -> Table:
    """Give the main figures of every model and kind of split, each with its interval and its floor.

    Returns
    -------
    Table
        A row for each model, kind of split and, of the floor, companion.
    """
    metrics = FIGURES[study.task]
    found = cells(study)
    rows = [_row(cell, cell.model, metrics, study) for cell in found]
    for cell in found:
        if cell.trials[0].name == FLOOR:
            for name in cell.trials[0].also:
                scores = tuple(trial.also[name] for trial in cell.trials if name in trial.also)
                other = Cell(cell.model, cell.kind, cell.trials, scores)
                rows.append(_row(other, f"{FLOOR}: {name}", metrics, study))
    return Table(
        name="scores",
        title="Scores",
        caption=sentences(
            f"means over seeds (or folds), ± their standard deviation, and an interval, whose bounds are {BAND}.",
            "the floor beside a score is that of the same held-out samples.",
            floor_words(study),
            untrained_words(study.trials),
        ),
        header=(
            "model",
            "reads",
            "encoder and weights",
            "split",
            "training share",
            "repeats",
            *(name for metric in metrics for name in _heads(metric)),
        ),
        rows=tuple(rows),
    )


def _heads(metric: str) -> tuple[str, ...]:
    title = TITLES[metric]
    return title, f"± {title}", f"{title}, 95 % interval", f"{title} of the floor"


def _row(cell: Cell, name: str, metrics: Iterable[str], study: Study) -> tuple[Value, ...]:
    trial = cell.trials[0]
    is_floor = cell.model == FLOOR or trial.name == FLOOR
    values: list[Value] = [
        name,
        "pixels" if is_floor else trial.features,
        "" if is_floor else weights_of(trial),
        cell.kind[0],
        round(cell.share, 4),
        cell.repeats,
    ]
    for metric in metrics:
        summary = cell.summary(metric)
        if summary is None:
            values += [None] * 4
            continue
        values += [
            round(summary.mean, 4),
            None if summary.deviation is None else round(summary.deviation, 4),
            f"{summary.low:.3f} to {summary.high:.3f}",
            None if is_floor else _floor(study, cell, metric),
        ]
    return tuple(values)


def _floor(study: Study, cell: Cell, metric: str) -> float | None:
    """Give the mean of the floors run on a cell's splits; where none was run at all, of those beside its trials."""
    run = {t.split["digest"]: t.metrics for t in study.trials if t.name == FLOOR}
    floors = [
        run.get(trial.split["digest"], {}) if run else trial.floor or {} for trial in cell.trials
    ]
    values = [floor[metric].value for floor in floors if metric in floor]
    return round(sum(values) / len(values), 4) if len(values) == len(cell.trials) else None


def provenance(study: Study) -> list[Table]:
    """Give what the figures hang on: sources, splits, runs and versions.

    Returns
    -------
    list of Table
        Those that have rows.
    """
    note = untrained_words(study.trials)
    tables = [
        Table(
            "sources",
            "What the models read",
            sentences(
                "the fingerprint stands for the encoder, its weights, the preprocessing and the number types of a "
                "store; the snapshot for what was in it.",
                note,
            ),
            (
                "models",
                "reads",
                "dataset",
                "store",
                "encoder and weights",
                "image size",
                "fingerprint",
                "snapshot",
                "note",
            ),
            _sources(study),
        ),
        Table(
            "splits",
            "Splits",
            "The digest stands for who was held out and who was not.",
            (
                "split",
                "held-out share",
                "seed",
                "train",
                "validation",
                "test",
                "left out",
                "digest",
            ),
            _unique(
                (
                    str(trial.split["name"]),
                    float(trial.split["share"]),
                    int(trial.split["seed"]),
                    trial.n_train,
                    trial.n_validation,
                    trial.n_test,
                    trial.n_left_out,
                    str(trial.split["digest"]),
                )
                for trial in study.trials
            ),
        ),
        Table(
            "runs",
            "Runs",
            sentences(
                "the configuration digest covers all that decides a run's outcome but the versions.",
                "Warm: the run whose weights were gone on from."
                if any(trial.warm_start for trial in study.trials)
                else "",
                note,
            ),
            (
                "model",
                "encoder and weights",
                "split",
                "training share",
                "seed",
                "run",
                "configuration",
                "warm",
            ),
            tuple(
                (
                    trial.model,
                    weights_of(trial),
                    str(trial.split["name"]),
                    round(trial.share, 4),
                    trial.seed,
                    trial.path.name,
                    str(trial.config.get("digest", "")),
                    trial.warm_start,
                )
                for trial in study.trials
            ),
        ),
        Table("versions", "Versions", "", ("library", "version", "runs"), _versions(study)),
    ]
    return [table for table in tables if table.rows]


def _sources(study: Study) -> tuple[tuple[Value, ...], ...]:
    models: dict[tuple[Value, ...], dict[str, None]] = {}
    for trial in study.trials:
        store: Any = trial.config.get("store") or {}
        source = (
            trial.features,
            trial.dataset,
            trial.store,
            weights_of(trial),
            store.get("identity", {}).get("image_size", ""),
            trial.fingerprint,
            str(store.get("snapshot", "")),
            trial.note,
        )
        models.setdefault(source, {})[trial.model] = None
    return tuple((", ".join(names), *source) for source, names in models.items())


def _versions(study: Study) -> tuple[tuple[Value, ...], ...]:
    """Count the runs of each library's version."""
    counts: dict[tuple[str, str], int] = {}
    for trial in study.trials:
        for library, version in trial.config.get("versions", {}).items():
            counts[library, version] = counts.get((library, version), 0) + 1
    return tuple((library, version, n) for (library, version), n in counts.items())


def _unique(rows: Iterable[tuple[Value, ...]]) -> tuple[tuple[Value, ...], ...]:
    return tuple(dict.fromkeys(rows))
