"""Every two models of a study against each other, on the samples that both were scored on."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, pairwise

from samtl.metrics.bootstrap import (
    Difference,
    Outcome,
    describe,
    paired_difference,
    paired_differences,
)
from samtl.report.content import Cell as Value
from samtl.report.content import Study, Table
from samtl.report.figures.groups import (
    FIGURES,
    STANDARD_SHARE,
    TITLES,
    Cell,
    Kind,
    at_share,
    cells,
    sentences,
    untrained_words,
)

_HEADER = (
    "in words",
    "training share",
    "split",
    "model",
    "other model",
    "difference",
    "95 % interval",
    "shown",
    "seeds",
    "held-out samples",
)


def differences(study: Study) -> tuple[Table | None, tuple[str, ...]]:
    """Compare every two models at each training share.

    Of classifications the accuracy is compared, of segmentations the mean IoU of the images.

    Returns
    -------
    table : Table or None
        A row for each two models and kind of split; None where no two models share a split.
    lines : tuple of str
        At the share of the study's own comparison: each model against the next better one, in plain words.
    """
    metric = FIGURES[study.task][0]
    kinds: dict[Kind, list[Cell]] = {}
    for cell in cells(study):
        if cell.run:
            kinds.setdefault(cell.kind, []).append(cell)
    rows: list[tuple[Value, ...]] = []
    words: dict[tuple[Kind, str, str], str] = {}
    for kind, some in sorted(kinds.items(), key=lambda item: _share(item[1])):
        # The better one first, so that the signs can be read.
        ranked = sorted(some, key=lambda cell: -_mean(cell, metric))
        found = _compared(ranked, metric)
        for a, b in combinations(ranked, 2):
            if (gap := found.get((a.model, b.model))) is not None:
                words[kind, a.model, b.model] = said = describe(_name(a), _name(b), gap)
                rows.append(_row(a, b, gap, said))
    if not rows:
        return None, ()
    standard = [cell for cell in at_share(study, STANDARD_SHARE) if cell.run]
    standard.sort(key=lambda cell: -_mean(cell, metric))
    pairs = [(a.kind, a.model, b.model) for a, b in pairwise(standard)]
    table = Table(
        "differences",
        f"Differences in {TITLES[metric]} between every two models",
        sentences(
            "Points are hundredths of the score. Intervals are of a paired bootstrap over the samples that both "
            "models were scored on, and say what other samples would have changed.",
            "Each stands for itself: of twenty comparisons of equal models one is expected to show a difference, and "
            f"here are {len(rows)}.",
            untrained_words(study.trials),
        ),
        _HEADER,
        tuple(rows),
    )
    return table, tuple(words[pair] for pair in pairs if pair in words)


def _share(cells: Sequence[Cell]) -> tuple[str, float]:
    return cells[0].kind[0], cells[0].share


def _mean(cell: Cell, metric: str) -> float:
    summary = cell.summary(metric)
    return summary.mean if summary is not None else -1.0


def _name(cell: Cell) -> str:
    return f"{cell.model} (untrained)" if cell.trials[0].untrained else cell.model


def _compared(some: Sequence[Cell], metric: str) -> dict[tuple[str, str], Difference]:
    """Compare every two models on the splits that both have."""
    outcomes = {cell.model: _outcomes(cell) for cell in some}
    alike: dict[frozenset[tuple[int, str]], list[str]] = {}
    for model, had in outcomes.items():
        alike.setdefault(frozenset(had), []).append(model)
    found: dict[tuple[str, str], Difference] = {}
    for splits, models in alike.items():  # those that have the same at once, which is quicker
        if splits and len(models) > 1:
            found |= paired_differences(
                {model: [outcomes[model][split] for split in sorted(splits)] for model in models},
                metric,
            )
    for a, b in combinations(outcomes, 2):
        shared = sorted(outcomes[a].keys() & outcomes[b].keys())
        if shared and (a, b) not in found:
            first, second = ([outcomes[model][split] for split in shared] for model in (a, b))
            found[a, b] = paired_difference(first, second, metric)
    return found


def _outcomes(cell: Cell) -> dict[tuple[int, str], Outcome]:
    """Give what a model came to on each split, by seed and digest."""
    found: dict[tuple[int, str], Outcome] = {}
    for trial in cell.trials:
        outcome = trial.predictions or trial.images
        if outcome is not None:
            found[trial.seed, str(trial.split["digest"])] = outcome
    return found


def _row(a: Cell, b: Cell, found: Difference, said: str) -> tuple[Value, ...]:
    return (
        said,
        round(a.share, 4),
        a.kind[0],
        a.model,
        b.model,
        round(100 * found.value, 2),
        f"{100 * found.low:.2f} to {100 * found.high:.2f}",
        "yes" if found.shown else "no",
        found.n_seeds,
        found.n_samples,
    )
