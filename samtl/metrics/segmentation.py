"""Segmentation scores by image and pooled over all pixels, and their intervals.

Class 0 is the background, the others are the foreground. Only pixels with a known class count.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from samtl.errors import InputError
from samtl.images.transforms import IGNORE
from samtl.metrics.classification import Counts, ratio
from samtl.metrics.intervals import (
    Floats,
    Rows,
    Score,
    by_unit,
    effective,
    jackknife,
    share_of_units,
    units_of,
    variance_between,
)


def confusion(truth: NDArray[np.uint8], predicted: NDArray[np.uint8], n_classes: int) -> Counts:
    """Count each pair of true and predicted class over the pixels of one image.

    Returns (K, K) int64; rows are the truth, columns the prediction. Raises InputError if these are not two masks of
    one shape, or a class is out of range.

    Parameters
    ----------
    truth, predicted : (height, width) uint8
        Class indices in [0, n_classes); pixels that are 255 in `truth` do not count.
    n_classes : int
        2 to 255, the background included.
    """
    if not 2 <= n_classes <= IGNORE:
        raise InputError(
            f"expected 2 to {IGNORE} classes, the background included, got {n_classes}"
        )
    if truth.shape != predicted.shape or {truth.dtype, predicted.dtype} != {np.dtype(np.uint8)}:
        raise InputError(
            "the true and the predicted mask must be uint8 of one shape (height, width), got "
            f"{truth.dtype} of {truth.shape} and {predicted.dtype} of {predicted.shape}"
        )
    # All pairs of bytes are counted, ignored ones too: faster than selecting the others first.
    pairs = np.left_shift(truth, 8, dtype=np.uint16)
    pairs |= predicted
    table = np.bincount(pairs.ravel(), minlength=1 << 16).reshape(256, 256)[:IGNORE]
    for counts, what in ((table.sum(1), "labels"), (table.sum(0), "predictions")):
        highest = int(np.flatnonzero(counts).max(initial=0))
        if highest >= n_classes:
            raise InputError(f"{what} must lie between 0 and {n_classes - 1}, got {highest}")
    return table[:n_classes, :n_classes].copy()


def class_counts(matrices: Counts) -> Counts:
    """Count the pixels of each class in the truth, the prediction and both: (..., K, K) to (..., K, 3) int64."""
    both = np.diagonal(matrices, axis1=-2, axis2=-1)
    return np.stack([matrices.sum(-1), matrices.sum(-2), both], axis=-1)


def scores(matrices: Counts) -> dict[str, Floats]:
    """Score confusion matrices, (..., K, K) to (...) float64 in [0, 1]; see `scores_of_counts`."""
    return scores_of_counts(class_counts(matrices))


def scores_of_counts(counts: Counts) -> dict[str, Floats]:
    """Score counts of pixels, (..., K, 3) of `class_counts` to (...); raises InputError if one counts no pixels.

    `accuracy` is the share of correct pixels. `iou`, `dice`, `precision` and `recall` are means over the foreground
    classes that occur in the truth or the prediction; a class that occurs in only one of them scores 0. If none
    occurs they are 1: there was nothing to find, and nothing was found.

    Dice and F1 are one formula, 2 TP / (2 TP + FP + FN): `dice` is its mean over the foreground classes, `f1` over all
    classes that occur, so `f1` is the higher one if the background is easy.
    """
    true, guessed, right = np.moveaxis(counts, -1, 0)
    empty = true.sum(-1) == 0
    if empty.any():
        first = ", ".join(map(str, np.argwhere(empty)[0]))
        raise InputError(
            f"image {first or 0} has no pixel of a known class, so it has no score: leave it out"
        )
    either = true + guessed
    f1 = ratio(ratio(2 * right, either).sum(-1), (either > 0).sum(-1))
    accuracy = ratio(right.sum(-1), true.sum(-1))
    true, guessed, right = true[..., 1:], guessed[..., 1:], right[..., 1:]
    occurs = (true + guessed > 0).sum(-1)

    def mean(of_each: Floats) -> Floats:
        return np.where(occurs > 0, ratio(of_each.sum(-1), occurs), 1.0)

    return {
        "accuracy": accuracy,
        "iou": mean(ratio(right, true + guessed - right)),
        "dice": mean(ratio(2 * right, true + guessed)),
        "f1": f1,
        "precision": mean(ratio(right, guessed)),
        "recall": mean(ratio(right, true)),
    }


def score(matrices: Counts, groups: Sequence[str] | None = None) -> dict[str, Score]:
    """Score the masks of several images, with 95 % intervals.

    Neighbouring pixels are alike, so whole images, or groups of them, are what varies: each is left out once (the
    jackknife). The intervals are those of a share of hits in the effective number of trials that this variance is
    equivalent to (Korn and Graubard 1998), with Student's quantile. Raises InputError if an image has no pixel of a
    known class.

    Parameters
    ----------
    matrices : (n, K, K) int64
        The confusion of each of at least one image.
    groups : (n,) str, optional
        What each image was cut from: intervals then say what other groups would change.

    Returns
    -------
    dict of Score
        Means over the images of each of `scores`, under its name; and `pooled_accuracy`, `pooled_iou` and so on, of
        the pixels of all images together.
    """
    counts = class_counts(matrices)
    units = units_of(groups, len(matrices))
    return {
        **{
            name: share_of_units(
                float(values.mean()),
                *variance_between((values - values.mean()) / len(values), units),
            )
            for name, values in scores_of_counts(counts).items()
        },
        **_pooled(counts, units),
    }


def _pooled(counts: Counts, units: Rows | None) -> dict[str, Score]:
    total, sums = counts.sum(0), by_unit(counts, units)
    without = scores_of_counts(total - sums if len(sums) > 1 else sums)
    # A class may have most of its pixels in few units.
    each = effective(_union(sums)[:, 1:])
    fewest = float(each[each > 0].min()) if each.any() else 0.0
    trials = {"accuracy": float(effective(sums[..., 0].sum(1)))}
    return {
        f"pooled_{name}": share_of_units(
            float(value), float(jackknife(without[name])), trials.get(name, fewest)
        )
        for name, value in scores_of_counts(total).items()
    }


def class_ious(counts: Counts, groups: Sequence[str] | None = None) -> list[Score | None]:
    """Score each class over the pixels of all images, from (n, K, 3) of `class_counts`; None if it does not occur.

    For intervals and `groups` see `score`.
    """
    sums = by_unit(counts, units_of(groups, len(counts)))
    union, both = _union(sums), sums[..., 2]
    iou = ratio(both.sum(0), union.sum(0))
    variance = jackknife(ratio(both.sum(0) - both, union.sum(0) - union))
    found = zip(iou, variance, effective(union), strict=True)
    return [share_of_units(*map(float, one)) if one[2] else None for one in found]


def _union(counts: Counts) -> Counts:
    return counts[..., 0] + counts[..., 1] - counts[..., 2]
