"""Segmentation scores by image and pooled over all pixels, and their bootstrap intervals.

Class 0 is the background, the others are the foreground. Only pixels with a known class count.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from samtl.errors import InputError
from samtl.images.transforms import IGNORE
from samtl.metrics.classification import (
    RESAMPLES,
    Counts,
    Draws,
    Floats,
    Score,
    ratio,
    resample,
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


def bootstrap(matrices: Counts, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Score]:
    """Score the masks of several images, with 95 % percentile bootstrap intervals over the images.

    Neighbouring pixels are alike, so whole images are drawn, never single pixels. Raises InputError if an image has no
    pixel of a known class.

    Parameters
    ----------
    matrices : (n, K, K) int64
        The confusion of each of at least one image.

    Returns
    -------
    dict of Score
        Means over the images of each of `scores`, under its name; and `pooled_accuracy`, `pooled_iou` and so on, of
        the pixels of all images together.
    """
    of_classes = class_counts(matrices)
    single = scores_of_counts(of_classes)
    n, k, _ = matrices.shape
    each = np.stack(list(single.values()), axis=1)
    counts = of_classes.reshape(n, -1).astype(np.float64)  # sums stay exact, far below 2**53

    def figures(draws: Draws) -> dict[str, Floats]:
        nth = np.arange(len(draws))[:, None]
        times = np.bincount((nth * n + draws).ravel(), minlength=draws.size).reshape(-1, n)
        drawn = times.astype(np.float64)
        means = drawn @ each / n
        pooled = scores_of_counts((drawn @ counts).astype(np.int64).reshape(-1, k, 3))
        return {
            **dict(zip(single, means.T, strict=True)),
            **{f"pooled_{name}": values for name, values in pooled.items()},
        }

    return resample(figures, n, 3 * k, resamples, seed)
