"""Splits that are drawn: a share of each class or whole groups, one fold of several, the validation part."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate

import numpy as np

from samtl.errors import InputError
from samtl.splits.split import (
    VALIDATION_SHARE,
    Rows,
    Samples,
    Split,
    exact,
    made,
    rank_of,
    require_every_class,
    rounded,
)


def holdout(samples: Samples, share: float, seed: int = 0) -> Split:
    """Hold out a share of the samples: the same share of every class, or whole groups.

    The total is the share of all samples, rounded; counts of classes follow by largest remainder, at least one in both
    parts. If there are groups, as many of the ranked groups are held out as bring the number of held-out samples
    closest to the share; classes are then not balanced, only checked to be in both parts.

    Raises
    ------
    InputError
        If the share leaves a part empty or without a class, there are fewer than 2 samples (of a class) or groups,
        or whole groups leave a part without a class.
    """
    rows = samples.rows
    _require(samples, rows, 2, "a split")
    if samples.groups:
        return _cut(samples, rows, share, seed, "grouped")
    total, classes = rounded(share, len(rows)), len(samples.by_class(rows))
    if not classes <= total <= len(rows) - classes:
        lacks = f"without some of the {classes} classes" if classes > 1 else "empty"
        low = classes / len(rows)
        raise InputError(
            f"--split {share} of {len(rows)} samples holds out {total}, which leaves one part {lacks}: choose a "
            f"share from {low:.3g} to {1 - low:.3g}, or embed more images"
        )
    return _cut(samples, rows, share, seed, "holdout")


def fold(samples: Samples, which: int, folds: int, seed: int = 0) -> Split:
    """Hold out one of several folds; each sample is in exactly one of them.

    The ranked samples of one class after another are dealt to the folds in turn, so that neither folds nor a class in
    them differ by more than one sample. Each ranked group goes to the fold with the fewest samples so far.

    Folds are counted from 1.

    Raises
    ------
    InputError
        If there are fewer samples (of a class) or groups than folds, or whole groups leave a part without a class.
    """
    rows = samples.rows
    _require(samples, rows, folds, f"a split into {folds} folds")
    if not samples.groups:
        dealt = sorted(
            rows, key=lambda i: (samples.truth[i], rank_of("fold", seed, samples.ids[i]))
        )
        test = np.sort(dealt[which - 1 :: folds]).astype(np.int64)
        return made(samples, np.setdiff1d(rows, test), test, "fold", 1 / folds, seed)
    filled, chosen = [0] * folds, set()
    sizes = samples.group_sizes(rows)
    for group in sorted(sizes, key=lambda group: rank_of("grouped-fold", seed, group)):
        to = int(np.argmin(filled))
        filled[to] += sizes[group]
        if to == which - 1:
            chosen.add(group)
    return _whole(samples, rows, chosen, 1 / folds, seed, "grouped-fold")


def inner(samples: Samples, split: Split, share: float = VALIDATION_SHARE) -> Split:
    """Cut a validation part from the training part of a split.

    Both parts of the result lie within `split.train`; its `test` is the validation part. Without groups, the share is
    raised if a class would have no validation sample.

    Raises
    ------
    InputError
        If there are fewer than 2 training samples (of a class) or groups, or whole groups leave a part without a
        class.
    """
    _require(samples, split.train, 2, "a training part, some of which is for validation,")
    return _cut(samples, split.train, share, split.seed, "validation")


def closest(sizes: Sequence[int], wanted: Fraction) -> int:
    """Number of groups, counted from the first and at least one, whose total size is nearest to `wanted`."""
    held = list(accumulate(sizes))
    return 1 + min(range(len(held)), key=lambda i: abs(held[i] - wanted))


def _require(samples: Samples, rows: Rows, n: int, purpose: str) -> None:
    """Raise InputError if rows cannot be divided into n parts that each have every class, or a group."""
    sizes = {"samples that can be used": len(rows)}
    if samples.groups:
        sizes["groups"] = len(samples.group_sizes(rows))
    elif samples.task == "classification":
        found = samples.by_class(rows).items()
        sizes |= {f"samples of class {name!r}": len(members) for name, members in found}
    for what, size in sizes.items():
        if size < n:
            remedy = "group the images more finely" if what == "groups" else "embed more images"
            raise InputError(
                f"{purpose} needs at least {n} {what}, got {size}: {remedy}, or choose another --split"
            )


def _cut(samples: Samples, rows: Rows, share: float, seed: int, name: str) -> Split:
    if samples.groups:
        sizes = samples.group_sizes(rows)
        ranked = sorted(sizes, key=lambda group: rank_of(name, seed, group))
        n = closest([sizes[group] for group in ranked[:-1]], exact(share) * len(rows))
        return _whole(samples, rows, set(ranked[:n]), share, seed, name)
    members = list(samples.by_class(rows).values())
    total = min(max(rounded(share, len(rows)), len(members)), len(rows) - len(members))
    taken: list[int] = []
    for some, n in zip(members, _counts([len(m) for m in members], share, total), strict=True):
        taken += sorted(some, key=lambda i: rank_of(name, seed, samples.ids[i]))[:n]
    test = np.sort(taken).astype(np.int64)
    return made(samples, np.setdiff1d(rows, test), test, name, share, seed)


def _whole(
    samples: Samples, rows: Rows, chosen: set[str], share: float, seed: int, name: str
) -> Split:
    out = np.array([samples.groups[i] in chosen for i in rows.tolist()])
    split = made(samples, rows[~out], rows[out], name, share, seed)
    held = "validation" if name == "validation" else "held-out"
    require_every_class(samples, {held: split.test, "training": split.train})
    return split


def _counts(sizes: Sequence[int], share: float, total: int) -> list[int]:
    """Divide `total` among the classes: largest remainder, at least 1 and at most size - 1 each."""
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
