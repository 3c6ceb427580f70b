"""Phrases that captions, alternative texts and tables share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from samtl.experiment.run import Run

if TYPE_CHECKING:
    from samtl.report.compare import Comparison, Series

FLOOR = "floor"
TITLES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "iou": "IoU",
    "dice": "Dice",
    "f1": "F1",
    "pooled_iou": "pooled IoU",
}
BAND = (
    "means over seeds of the bounds of each seed's 95 % bootstrap interval, which show how much a score depends on "
    "which samples were held out"
)
_FLOOR_RUNS = {
    "classification": "logistic regression on the statistics of the pixels' colours",
    "segmentation": "each pixel by the nearest mean colour",
}
_SPLITS = {"grouped": "whole groups held out", "shipped": "the dataset's own split"}


def sentences(*parts: str) -> str:
    """Join sentences, capitalising each; empty ones are skipped."""
    return " ".join(part[0].upper() + part[1:] for part in parts if part)


def listed(names: Iterable[str]) -> str:
    """Write names as "a, b and c"."""
    *most, last = list(names) or [""]
    return f"{', '.join(most)} and {last}" if most else last


def counted(count: int, noun: str) -> str:
    """Write a count with its noun: "1 run", "2 runs"."""
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{count:,} {noun if count == 1 else plural}"


def weights_of(run: Run) -> str:
    """Name a run's encoder and weights; untrained weights are called untrained."""
    said = "untrained" in run.weights or not run.untrained
    weights = run.weights if said else f"untrained {run.weights}".strip()
    return ", ".join(filter(None, (run.encoder, weights)))


def untrained(models: Iterable[tuple[str, Run]]) -> str:
    """Name the models that depend on untrained weights, as a note; "" if there are none."""
    found: dict[str, dict[str, None]] = {}
    for model, run in models:
        if run.untrained:
            kind = "encoder " if run.encoder else ""
            found.setdefault(f"{kind}{weights_of(run)}", {})[model] = None
    return "; ".join(f"{weights}: {listed(names)}" for weights, names in found.items())


def untrained_words(models: Iterable[tuple[str, Run]]) -> str:
    """Return the note of `untrained` as a sentence."""
    note = untrained(models)
    return f"Untrained weights say nothing about trained ones: {note}." if note else ""


def split_words(series: Series) -> str:
    """Describe what a series was trained on."""
    how = _SPLITS.get(series.kind.split, series.kind.split)
    return f"trained on {series.share * 100:.3g} % of the samples ({how})"


def repeats_words(some: Iterable[Series]) -> str:
    """Count the seeds, or folds, of several series."""
    found = list(some)
    numbers = sorted({len(series.runs) for series in found})
    noun = "fold" if all("fold" in series.kind.split for series in found) else "seed"
    span = f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
    return f"{span} {noun}{'' if numbers == [1] else 's'}"


def floor_words(comparison: Comparison) -> str:
    """Describe the floor in a comparison's figures as a sentence; "" if there is none."""
    if any(run.name == FLOOR for run in comparison.runs):
        return f"floor: {_FLOOR_RUNS[comparison.task]}."
    names = {run.floor_model for run in comparison.runs if run.floor is not None} - {""}
    return f"floor: {listed(sorted(names))}." if names else ""
