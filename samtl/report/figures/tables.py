"""Tables: scores, differences between models, failed fits, and where the figures come from."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
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
from samtl.report.page import Part, Row, caption


def scores_table(comparison: Comparison) -> Part:
    """Return the main scores of every model and kind of split, and of the floor's companions, with their intervals."""
    floors = {run.split.digest: run.metrics for run in comparison.runs if run.name == FLOOR}
    series = (*comparison.series, *comparison.companions)
    rows = [_scores(one, SCORES[comparison.task], floors) for one in series]
    text = caption("scores", comparison=comparison)
    return Part("scores", "Scores", text, rows, untrained(comparison.pairs))


def _scores(one: Series, metrics: Sequence[str], floors: Mapping[str, Scores]) -> Row:
    row: dict[str, Any] = {
        "model": one.model,
        "reads": "pixels" if one.is_floor else one.runs[0].inputs,
        "encoder and weights": "" if one.is_floor else weights_of(one.runs[0]),
        "split": one.kind.split,
        "training share": one.share,
        "repeats": len(one.runs),
    }
    # Of the same samples: of the floors that were run, else of those beside the heads.
    beside = [floors.get(run.split.digest, {}) if floors else run.floor or {} for run in one.runs]
    for metric in metrics:
        found, title = one.spread(metric), TITLES[metric]
        row |= {title: found.mean, f"± {title}": found.deviation}
        row |= {f"{title}, low": found.low, f"{title}, high": found.high}
        values = [floor[metric].value for floor in beside if floor and not one.is_floor]
        mean = sum(values) / len(values) if len(values) == len(beside) else None
        row[f"{title} of the floor"] = mean
    return row


def differences(comparison: Comparison, rows: Sequence[Row]) -> Part:
    """Return every comparison of two models, as `compared` returns them."""
    title = f"Differences in {TITLES[SCORES[comparison.task][0]]} between every two models"
    text = caption("differences", count=len(rows))
    return Part("differences", title, text, rows, untrained(comparison.pairs))


def failures(comparison: Comparison) -> list[Part]:
    """Return the failed cells of sweeps and their reasons, if there are any."""
    rows = [{"fit": what, "reason": why} for what, why in comparison.failed]
    return [Part("failed", "Failed fits", "", rows)] if rows else []


def provenance(comparison: Comparison) -> list[Part]:
    """Return what the figures are based on: sources, splits, runs and versions."""
    pairs, note = comparison.pairs, untrained(comparison.pairs)
    models: dict[tuple[Any, ...], dict[str, None]] = defaultdict(dict)
    for model, run in pairs:
        models[tuple(_source(run).items())][model] = None
    sources = [{"models": ", ".join(names), **dict(source)} for source, names in models.items()]
    splits = [dict(items) for items in dict.fromkeys(tuple(_split(r).items()) for _, r in pairs)]
    counts = Counter(item for _, run in pairs for item in run.versions.items())
    versions = [{"library": a, "version": b, "runs": n} for (a, b), n in counts.items()]
    warm = any(run.warm_start for _, run in pairs)
    runs = [{"model": model, **_run(run)} for model, run in pairs]
    return [
        Part("sources", "What the models read", caption("sources"), sources, note),
        Part("splits", "Splits", caption("splits"), splits),
        Part("runs", "Runs", caption("runs", warm=warm), runs, note),
        Part("versions", "Versions", "", versions),
    ]


def _source(run: Run) -> Row:
    return {
        "reads": run.inputs,
        "dataset": run.dataset,
        "store": run.store,
        "encoder and weights": weights_of(run),
        "image size": str(run.identity.get("image_size", "")),
        "fingerprint": run.fingerprint,
        "snapshot": run.snapshot,
        "note": run.note,
    }


def _split(run: Run) -> Row:
    return {
        "split": run.split.name,
        "held-out share": run.split.share,
        "seed": run.split.seed,
        "train": run.n_train,
        "validation": run.n_validation,
        "test": run.n_test,
        "left out": unused(run),
        "digest": run.split.digest,
    }


def _run(run: Run) -> Row:
    return {
        "encoder and weights": weights_of(run),
        "split": run.split.name,
        "training share": share_of(run),
        "seed": run.seed,
        "run": run.path.name,
        "configuration": run.digest,
        "warm": run.warm_start,
    }
