"""What each score is called, what it is measured in, and which direction is better."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

SHARE = "%"


class Metric(NamedTuple):
    """A score as it is shown: `factor * value` in `unit`."""

    name: str
    title: str
    unit: str = SHARE  #: "" if it has none
    higher_is_better: bool = True
    curve: bool = False  #: whether reports draw it against the training share
    decimals: int | None = 1  #: None: three digits, for numbers that may be tiny or huge
    listed: bool = True  #: whether reports list it; that of single images are shown by themselves

    @property
    def factor(self) -> int:
        """What a value is multiplied by: shares are shown in percent."""
        return 100 if self.unit == SHARE else 1

    def written(self, value: float) -> str:
        """Write a value in the unit, without it."""
        shown = self.factor * value
        decimals = self.decimals
        if decimals is None:
            known = shown and math.isfinite(shown)
            decimals = max(0, 2 - math.floor(math.log10(abs(shown)))) if known else 0
        return f"{shown:.{decimals}f}"

    def shown(self, score: Any) -> str:
        """Write a `Score` with its unit and interval."""
        value, low, high = map(self.written, (score.value, score.low, score.high))
        return f"{value}{SHARE * (self.unit == SHARE)} [{low}, {high}]"

    def better(self, value: float) -> float:
        """Return a number that is larger for a better value."""
        return value if self.higher_is_better else -value


def _shares(listed: bool = True, **titles: str) -> list[Metric]:
    return [Metric(name, title, listed=listed) for name, title in titles.items()]


#: The scores of each task; models are ranked and compared by the first.
METRICS: dict[str, tuple[Metric, ...]] = {
    "classification": (
        Metric("accuracy", "accuracy", curve=True),
        Metric("balanced_accuracy", "balanced accuracy"),
        Metric("macro_f1", "macro F1", curve=True),
        Metric("ece", "calibration error", higher_is_better=False),
        Metric("log_loss", "log loss", "nats", higher_is_better=False, decimals=3),
    ),
    "multilabel": (
        Metric("macro_ap", "macro average precision", curve=True),
        Metric("micro_ap", "micro average precision"),
        Metric("macro_f1", "macro F1", curve=True),
        Metric("micro_f1", "micro F1"),
    ),
    "regression": (
        Metric("r2", "R²", "", curve=True, decimals=3),
        # In the unit of the numbers.
        Metric("mae", "mean absolute error", "", higher_is_better=False, curve=True, decimals=None),
        Metric("rmse", "root mean squared error", "", higher_is_better=False, decimals=None),
    ),
    # Over all held-out pixels first: a mean over images scores an image without foreground 0 or 1.
    "segmentation": (
        Metric("pooled_iou", "pooled IoU", curve=True),
        *_shares(
            pooled_dice="pooled Dice",
            pooled_f1="pooled F1",
            pooled_accuracy="pooled accuracy",
            pooled_precision="pooled precision",
            pooled_recall="pooled recall",
        ),
        *_shares(
            listed=False,
            iou="image IoU",
            dice="image Dice",
            f1="image F1",
            accuracy="image accuracy",
            precision="image precision",
            recall="image recall",
        ),
    ),
}


def metrics_of(task: str) -> tuple[Metric, ...]:
    """Return the scores of a task, the one that models are ranked by first."""
    return METRICS[task]


def ranked_by(task: str) -> Metric:
    """Return the score that models of a task are ranked and compared by."""
    return METRICS[task][0]


def metric_of(task: str, name: str) -> Metric:
    """Return a score by name; one that is not declared is shown as it is."""
    declared = {metric.name: metric for metric in METRICS[task]}
    return declared.get(name, Metric(name, name.replace("_", " "), "", decimals=3))
