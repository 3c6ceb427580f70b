"""Tables: differences between models, failed fits, and where the figures come from."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from samtl.experiment.run import Run
from samtl.report.compare import Comparison, share_of, untrained, unused, weights_of
from samtl.report.findings import Pair, points
from samtl.report.page import Cell, Part, Row, caption


def differences(comparison: Comparison, pairs: Sequence[Pair]) -> list[Part]:
    """Return how much better the best model is than each other, and every comparison of two models."""
    if not pairs:
        return []
    metric, kind = comparison.metric, comparison.standard[0].kind
    best = comparison.ranked(comparison.standard)[0].model
    unit = points(metric)
    rows = [
        {
            "model": pair.better.model,
            "other model": pair.other.model,
            "training share, %": 100 * pair.better.share,
            "split": pair.better.kind.split,
            f"difference{f', {unit}' if unit else ''}": metric.factor * pair.gap.value,
            "low": metric.factor * pair.gap.low,
            "high": metric.factor * pair.gap.high,
            "shown": "yes" if pair.gap.shown else "no",
            "seeds": pair.gap.n_seeds,
            "held-out samples": pair.gap.n_samples,
            "in words": pair.words(metric),
        }
        for pair in pairs
    ]
    first = [p for p in pairs if p.better.kind == kind and p.better.model == best]
    shown = [
        {
            "other model": pair.other.model,
            f"better by{f', {unit}' if unit else ''}": Cell(pair.gap.value, pair.figures(metric)),
            "shown": "yes" if pair.gap.shown else "no",
            "seeds": pair.gap.n_seeds,
            "held-out samples": pair.gap.n_samples,
        }
        for pair in first
    ]
    title = f"By how much {best} is better in {metric.title} than each other model"
    text = caption("differences", one=comparison.standard[0], unit=unit)
    return [Part("differences", title, text, rows, untrained(comparison.pairs), shown=shown)]


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
        "held-out share, %": 100 * run.split.share,
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
        "training share, %": 100 * share_of(run),
        "seed": run.seed,
        "run": run.path.name,
        "configuration": run.digest,
        "warm": run.warm_start,
    }
