"""Trials put together for figures: one model on one kind of split, over its seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from samtl.metrics.bootstrap import over_seeds
from samtl.metrics.classification import Score
from samtl.report.content import Study, Trial

STANDARD_SHARE = 0.2  # "80-20"
FLOOR = "floor"
FIGURES = {
    "classification": ("accuracy", "macro_f1"),
    "segmentation": ("iou", "dice", "f1", "pooled_iou"),
}
TITLES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "iou": "IoU",
    "dice": "Dice",
    "f1": "F1",
    "pooled_iou": "pooled IoU",
}
_FLOOR_RUNS = {
    "classification": "logistic regression on the statistics of the pixels' colours",
    "segmentation": "each pixel by the nearest mean colour",
}
BAND = (
    "means over the seeds of the bounds of each seed's 95 % bootstrap interval: they say how much a score hangs on "
    "which samples were held out"
)

Kind = tuple[str, float, float]


@dataclass(frozen=True)
class Summary:
    """One score over seeds.

    Attributes
    ----------
    mean : float
    deviation : float or None
        Standard deviation over seeds; None of a single one.
    low, high : float
        Means of the bounds of each seed's interval.
    values : tuple of float
        Of each seed.
    """

    mean: float
    deviation: float | None
    low: float
    high: float
    values: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Cell:
    """One model on one kind of split.

    Attributes
    ----------
    model : str
    kind : tuple
        What tells this kind of split from others, whatever the seed.
    trials : tuple of Trial
        One for each seed (or fold).
    scores : tuple of dict of str to Score
        Of each of them.
    """

    model: str
    kind: Kind
    trials: tuple[Trial, ...]
    scores: tuple[Mapping[str, Score], ...]

    @property
    def share(self) -> float:
        """Part of all samples that training saw, in (0, 1)."""
        return float(np.mean([trial.share for trial in self.trials]))

    @property
    def repeats(self) -> int:
        """Number of seeds, or of folds."""
        return len(self.trials)

    @property
    def run(self) -> bool:
        """Whether the model was run, and is not the floor that stands beside others."""
        return self.trials[0].model == self.model

    def summary(self, metric: str) -> Summary | None:
        """Put a score together over seeds; None where it was not taken."""
        found = [scores[metric] for scores in self.scores if metric in scores]
        if not found:
            return None
        spread = over_seeds(score.value for score in found)
        low, high = (float(np.mean([getattr(s, end) for s in found])) for end in ("low", "high"))
        return Summary(spread.mean, spread.deviation, low, high, tuple(s.value for s in found))


def kind_of(trial: Trial) -> Kind:
    """Give what the splits of different seeds share: how made, the share asked for, the part that labels are left."""
    split = trial.split
    # Whole groups do not come out the same with every seed, hence two digits.
    part = float(f"{trial.share:.2g}") if trial.n_left_out else 1.0
    return str(split["name"]), float(split["share"]), part


def cells(study: Study) -> list[Cell]:
    """Put the trials of each model and kind of split together, in the order of models and training shares.

    Where no floor was run, the one that stands beside the trials takes its place, as the last model.
    """
    trials: dict[tuple[str, Kind], list[Trial]] = {}
    for trial in study.trials:
        trials.setdefault((trial.model, kind_of(trial)), []).append(trial)
    made = [
        Cell(model, kind, tuple(some), tuple(trial.metrics for trial in some))
        for (model, kind), some in trials.items()
    ]
    if not any(trial.name == FLOOR for trial in study.trials):
        made += _beside(study)
    order = list(dict.fromkeys(cell.model for cell in made))
    return sorted(made, key=lambda cell: (order.index(cell.model), cell.kind[0], cell.share))


def _beside(study: Study) -> list[Cell]:
    """Make cells of the floors beside the trials, each split's once."""
    floors: dict[Kind, dict[str, Trial]] = {}
    for trial in study.trials:
        if trial.floor is not None:
            floors.setdefault(kind_of(trial), {}).setdefault(trial.split["digest"], trial)
    return [
        Cell(FLOOR, kind, tuple(some.values()), tuple(trial.floor or {} for trial in some.values()))
        for kind, some in floors.items()
    ]


def at_share(study: Study, share: float) -> list[Cell]:
    """Give the cells of the kind of split whose training part is nearest to 1 - share, most models first."""
    made = cells(study)
    kinds: dict[Kind, list[Cell]] = {}
    for cell in made:
        kinds.setdefault(cell.kind, []).append(cell)
    if not kinds:
        return []

    def distance(kind: Kind) -> tuple[float, int]:
        off = float(np.mean([cell.share for cell in kinds[kind]])) - (1 - share)
        return round(abs(off), 2), -len(kinds[kind])

    return kinds[min(kinds, key=distance)]


def first_seed(cells: Sequence[Cell]) -> list[Trial]:
    """Give one trial of each model, all on the split that most models ran on, the lowest seed's of those."""
    splits: dict[str, dict[str, Trial]] = {}
    for cell in cells:
        if cell.run:
            for trial in cell.trials:
                splits.setdefault(trial.split["digest"], {}).setdefault(cell.model, trial)
    if not splits:
        return []
    chosen = min(splits.values(), key=lambda some: (-len(some), min(t.seed for t in some.values())))
    return list(chosen.values())


def split_words(cell: Cell) -> str:
    """Say what a cell was trained and tested on."""
    total = cell.share * 100
    how = {"grouped": "whole groups held out", "shipped": "the dataset's own split"}
    name = cell.kind[0]
    return f"trained on {total:.3g} % of the samples ({how.get(name, name)})"


def floor_words(study: Study) -> str:
    """Say what the floor in figures is, as a sentence, or "" where there is none."""
    if any(trial.name == FLOOR for trial in study.trials):
        return f"floor: {_FLOOR_RUNS.get(study.task, 'what colours alone give')}."
    told = {
        str(trial.config.get("floor", "")) for trial in study.trials if trial.floor is not None
    } - {""}
    words = {"majority": "the most frequent class everywhere"}
    return f"floor: {listed(words.get(name, name) for name in sorted(told))}." if told else ""


def untrained(trials: Iterable[Trial]) -> str:
    """Say which models stand on weights that are not trained, or ""."""
    found: dict[str, dict[str, None]] = {}
    for trial in trials:
        if trial.untrained:
            which = "encoder " if trial.encoder else ""
            found.setdefault(f"{which}{weights_of(trial)}", {})[trial.model] = None
    return "; ".join(f"{weights}: {listed(models)}" for weights, models in found.items())


def weights_of(trial: Trial) -> str:
    """Name a trial's encoder and weights, those that are untrained as such."""
    said = "untrained" in trial.weights or not trial.untrained
    weights = trial.weights if said else f"untrained {trial.weights}".strip()
    return ", ".join(filter(None, (trial.encoder, weights)))


def untrained_words(trials: Iterable[Trial]) -> str:
    """Say the same as a sentence."""
    note = untrained(trials)
    return f"Untrained weights say nothing about trained ones: {note}." if note else ""


def sentences(*parts: str) -> str:
    """Join what there is to say."""
    return " ".join(part[0].upper() + part[1:] for part in parts if part)


def listed(names: Iterable[str]) -> str:
    """Write names as a list in words."""
    *most, last = list(names) or [""]
    return f"{', '.join(most)} and {last}" if most else last


def repeats_words(cells: Iterable[Cell]) -> str:
    """Count seeds, or folds, in words."""
    some = list(cells)
    numbers = sorted({cell.repeats for cell in some})
    what = "fold" if all("fold" in cell.kind[0] for cell in some) else "seed"
    span = f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
    return f"{span} {what}{'' if numbers == [1] else 's'}"
