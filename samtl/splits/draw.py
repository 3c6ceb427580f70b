"""Splits that are drawn: a share of each class or whole groups, one fold of several, the validation part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import accumulate

import numpy as np
from numpy.typing import ArrayLike

from samtl.errors import InputError
from samtl.splits.split import (
    VALIDATION_SHARE,
    Rows,
    Split,
    checked,
    every_class,
    exact,
    grouping,
    made,
    rank_of,
    require_share,
    rounded,
    sizes_by_class,
)


def holdout(
    sample_ids: Sequence[str],
    labels: ArrayLike | None,
    share: float,
    seed: int = 0,
    classes: Sequence[str] | None = None,
    *,
    groups: Sequence[str] | None = None,
    usable: ArrayLike | None = None,
) -> Split:
    """Hold out a share of the samples: the same share of every class, or whole groups.

    Counts for each class follow by largest remainder, so that the total is the share of the whole, rounded; every
    class has at least one sample in both parts. With groups, as many of the ranked groups are held out as bring the
    held-out samples closest to the share; classes are then not balanced, only checked to be in both parts.

    Parameters
    ----------
    sample_ids : sequence of (N,) str
        Unique ids, one for each row.
    labels : (N,) int, or None
        Class index; rows with -1 are left out of both parts. None where samples have no class, as in segmentation:
        then every row takes part.
    share : float
        Held-out part, in (0, 1): 0.2 is "80-20".
    seed : int
    classes : sequence of str, optional
        Class names, for messages; each must then have samples. Without it only the labels that occur count. Not
        used without labels.
    groups : sequence of (N,) str, optional
        What must stay together, such as the scene an image was cut from.
    usable : (N,) bool, optional
        Rows that may take part; by default all.

    Raises
    ------
    InputError
        Where `share` is out of range, ids repeat, there are fewer than 2 samples or groups, or a class is not in
        both parts.
    """
    require_share(share)
    ids, truth, classes = checked(sample_ids, labels, classes, usable)
    rows = np.flatnonzero(truth >= 0)
    if not len(rows) or (labels is None and len(rows) < 2):
        raise InputError(
            "a split needs at least 2 samples that can be used (one to train on, one held out), got "
            f"{len(rows)} of {len(ids)}: embed more images"
        )
    sizes = sizes_by_class(truth[rows], classes)
    for name, size in sizes.items():
        if size < 2:
            raise InputError(
                f"class {name!r} has {size} labelled sample{'' if size == 1 else 's'}, and a split needs at "
                "least 2 of each class (one to train on, one held out): embed more images of it, or leave the "
                "class out of the dataset"
            )
    if groups is not None:
        together = grouping(groups, rows, len(ids))
        if len(set(together.values())) < 2:
            raise InputError(
                "a split by groups needs at least 2 groups (one to train on, one held out), got 1, "
                f"{together[rows[0]]!r}: group the images more finely, or split without groups"
            )
        split = _cut_groups(ids, together, rows, share, seed, "grouped")
        every_class(truth, {"held-out": split.test, "training": split.train}, classes, together)
        return split
    total = rounded(share, len(rows))
    if not len(sizes) <= total <= len(rows) - len(sizes):
        low, high = len(sizes) / len(rows), 1 - len(sizes) / len(rows)
        lacks = "empty" if labels is None else f"without some of the {len(sizes)} classes"
        raise InputError(
            f"--split {share} of {len(rows)} samples holds out {total}, which leaves one part {lacks}: choose a "
            f"share from {low:.3g} to {high:.3g}, or embed more images"
        )
    return _cut(ids, truth, rows, share, total, seed, "holdout")


def fold(
    sample_ids: Sequence[str],
    labels: ArrayLike | None,
    which: int,
    folds: int,
    seed: int = 0,
    classes: Sequence[str] | None = None,
    *,
    groups: Sequence[str] | None = None,
    usable: ArrayLike | None = None,
) -> Split:
    """Hold out one of several folds; each sample is in exactly one of them.

    The ranked samples of one class after another are dealt out in turn, so that neither folds nor a class in them
    differ by more than one sample. With groups, each in turn goes to the fold that has the fewest samples yet.

    Parameters
    ----------
    sample_ids, labels, seed, classes, groups, usable
        As for `holdout`.
    which : int
        The fold, from 1.
    folds : int
        How many there are, from 2.

    Raises
    ------
    InputError
        Where there is no such fold, ids repeat, there are fewer samples (of a class) or groups than folds, or whole
        groups leave a class out of a part.
    """
    require_fold(which, folds)
    ids, truth, classes = checked(sample_ids, labels, classes, usable)
    rows = np.flatnonzero(truth >= 0)
    if len(rows) < folds:
        raise InputError(
            f"{folds} folds need at least {folds} samples that can be used, got {len(rows)} of {len(ids)}: ask for "
            "fewer folds, or embed more images"
        )
    if groups is not None:
        together = grouping(groups, rows, len(ids))
        sizes = Counter(together.values())
        if len(sizes) < folds:
            raise InputError(
                f"{folds} folds need at least {folds} groups, got {len(sizes)}: ask for fewer folds, or group the "
                "images more finely"
            )
        filled, fold_of = [0] * folds, {}
        for group in sorted(sizes, key=lambda group: rank_of("grouped-fold", seed, group)):
            fold_of[group] = int(np.argmin(filled))
            filled[fold_of[group]] += sizes[group]
        out = np.array([fold_of[together[i]] == which - 1 for i in rows.tolist()])
        split = made(ids, rows[~out], rows[out], "grouped-fold", 1 / folds, seed)
        every_class(truth, {"held-out": split.test, "training": split.train}, classes, together)
        return split
    for name, size in sizes_by_class(truth[rows], classes).items():
        if size < folds:
            raise InputError(
                f"{folds} folds need at least {folds} samples of each class, and class {name!r} has {size}: ask for "
                "fewer folds, or embed more images of it"
            )
    dealt = sorted(rows, key=lambda i: (truth[i], rank_of("fold", seed, ids[i])))
    test = np.sort(dealt[which - 1 :: folds]).astype(np.int64)
    return made(ids, np.setdiff1d(rows, test), test, "fold", 1 / folds, seed)


def inner(
    split: Split,
    sample_ids: Sequence[str],
    labels: ArrayLike | None,
    share: float = VALIDATION_SHARE,
    classes: Sequence[str] | None = None,
    *,
    groups: Sequence[str] | None = None,
) -> Split:
    """Cut a validation part from the training part of a split.

    Parameters
    ----------
    split : Split
        Only its `train` rows and its seed are used.
    sample_ids, labels, classes, groups
        As for `holdout`, with the rows that `split` was made of.
    share : float
        Part of the training part, in (0, 1); raised where it would leave a class without a validation sample (but
        not with groups).

    Returns
    -------
    Split
        Its `test` is the validation part; both parts lie within `split.train`.

    Raises
    ------
    InputError
        Where `share` is out of range, there are fewer than 2 training samples (of a class) or groups, or whole
        groups leave a class out of a part.
    """
    if not 0 < share < 1:
        raise InputError(f"the validation share must lie between 0 and 1, got {share}")
    ids, truth, classes = checked(sample_ids, labels, classes)
    rows = split.train
    if not len(rows) or (labels is None and len(rows) < 2):
        raise InputError(
            "the training part needs at least 2 samples (one of them for validation), got "
            f"{len(rows)}: lower --split, or embed more images"
        )
    sizes = sizes_by_class(truth[rows], classes)
    for name, size in sizes.items():
        if size < 2:
            raise InputError(
                f"class {name!r} has {size} training sample{'' if size == 1 else 's'} beside the held-out ones, "
                "and at least 2 are needed (one of them for validation): lower --split, or embed more images of it"
            )
    if groups is not None:
        together = grouping(groups, rows, len(ids))
        if len(set(together.values())) < 2:
            raise InputError(
                "at least 3 groups are needed in all (held out, for validation, to train on), and the training "
                f"part has 1, {together[rows[0]]!r}: lower --split, or group the images more finely"
            )
        part = _cut_groups(ids, together, rows, share, split.seed, "validation")
        every_class(truth, {"validation": part.test, "training": part.train}, classes, together)
        return part
    total = min(max(rounded(share, len(rows)), len(sizes)), len(rows) - len(sizes))
    return _cut(ids, truth, rows, share, total, split.seed, "validation")


def require_fold(which: int, folds: int) -> None:
    """Raise InputError where there is no such fold."""
    if not 1 <= which <= folds or folds < 2:
        raise InputError(
            f"--split fold:I/K needs K from 2 and I from 1 to K, got I = {which}, K = {folds}"
        )


def _counts(sizes: Sequence[int], share: float, total: int) -> list[int]:
    """Share `total` out over the classes: largest remainder, at least 1 and at most size - 1 each."""
    part = exact(share)
    top, bottom = part.numerator, part.denominator
    taken = [min(max(n * top // bottom, 1), n - 1) for n in sizes]

    def owed(c: int) -> int:
        return sizes[c] * top - taken[c] * bottom

    while sum(taken) < total:
        taken[max((c for c, n in enumerate(sizes) if taken[c] < n - 1), key=owed)] += 1
    while sum(taken) > total:
        taken[min((c for c in range(len(sizes)) if taken[c] > 1), key=owed)] -= 1
    return taken


def _cut(
    ids: list[str], truth: Rows, rows: Rows, share: float, total: int, seed: int, name: str
) -> Split:
    rank = {i: rank_of(name, seed, ids[i]) for i in rows}
    members = [rows[truth[rows] == c] for c in np.unique(truth[rows])]
    counts = _counts([len(m) for m in members], share, total)
    taken = [sorted(m, key=rank.__getitem__)[:n] for m, n in zip(members, counts, strict=True)]
    test = np.sort(np.concatenate(taken)).astype(np.int64)
    return made(ids, np.setdiff1d(rows, test), test, name, share, seed)


def closest(sizes: Sequence[int], wanted: Fraction) -> int:
    """Tell how many of the groups, from the first and at least one, have together nearest to `wanted` samples."""
    held = list(accumulate(sizes))
    return 1 + min(range(len(held)), key=lambda i: abs(held[i] - wanted))


def _cut_groups(
    ids: list[str], together: Mapping[int, str], rows: Rows, share: float, seed: int, name: str
) -> Split:
    sizes = Counter(together.values())
    ranked = sorted(sizes, key=lambda group: rank_of(name, seed, group))
    wanted = exact(share) * len(rows)
    chosen = set(ranked[: closest([sizes[group] for group in ranked[:-1]], wanted)])
    out = np.array([together[i] in chosen for i in rows.tolist()])
    return made(ids, rows[~out], rows[out], name, share, seed)
