"""Fewer labels to learn from: a fraction of the training part of a split, or some samples of each class.

Training and validation part are thinned each for itself, and both along one ranking: what fewer labels train on,
more labels train on too, what validates goes on validating, and the held-out part is the very same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from samtl.errors import InputError
from samtl.splits.draw import closest
from samtl.splits.split import (
    VALIDATION_SHARE,
    Rows,
    Split,
    checked,
    exact,
    grouping,
    made,
    rank_of,
    rounded,
    sizes_by_class,
)

_DRAWN = (
    "label"  # what ranks are drawn for: few shots are the first of a fraction's, class by class
)


def fewer(
    split: Split,
    inner: Split,
    sample_ids: Sequence[str],
    labels: ArrayLike | None,
    share: float,
    seed: int,
    *,
    groups: Sequence[str] | None = None,
) -> tuple[Split, Split]:
    """Keep a share of the samples that are not held out, the same of every class, or whole groups.

    Parameters
    ----------
    split, inner : Split
        Who is held out, and who of the others validates.
    sample_ids, labels, groups
        As for `holdout`, with the rows that the splits were made of.
    share : float
        Part of both the training and the validation samples that is kept, in (0, 1]; raised where a class would have
        none.
    seed : int

    Returns
    -------
    split, inner : Split
        The samples that are not kept are in no part. Called as `split` is, then `-label`; `label` of a `holdout`.

    Raises
    ------
    InputError
        Where `share` is out of range.
    """
    require_part(share)
    ids, truth, _ = checked(sample_ids, labels, None)

    def kept(rows: Rows) -> list[int]:
        if groups is None:
            queue = _queue(ids, truth, rows, seed)
            return queue[: max(rounded(share, len(rows)), len(np.unique(truth[rows])))]
        together = grouping(groups, rows, len(ids))
        sizes = Counter(together.values())
        ranked = sorted(sizes, key=lambda group: rank_of(_DRAWN, seed, group))
        place = {group: i for i, group in enumerate(ranked)}
        n = closest([sizes[group] for group in ranked], exact(share) * len(rows))
        first = {int(c): len(ranked) for c in np.unique(truth[rows])}  # where each class comes in
        for i in rows.tolist():
            first[truth[i]] = min(first[truth[i]], place[together[i]])
        n = max(n, 1 + max(first.values()))
        return [i for i in rows.tolist() if place[together[i]] < n]

    return _thinned(split, inner, ids, kept(inner.train), kept(inner.test), "label", seed)


def shots(
    split: Split,
    inner: Split,
    sample_ids: Sequence[str],
    labels: ArrayLike | None,
    count: int,
    seed: int,
    classes: Sequence[str] | None = None,
) -> tuple[Split, Split]:
    """Keep a number of samples of each class: a fifth of them, at least one, validates.

    Parameters
    ----------
    split, inner, sample_ids, labels, seed
        As for `fewer`. Without labels the number is that of all samples.
    count : int
        Samples of each class, from 2: one trains, one validates.
    classes : sequence of str, optional
        Class names, for messages.

    Returns
    -------
    split, inner : Split
        As of `fewer`, called `shots`.

    Raises
    ------
    InputError
        Where `count` is below 2, or a part has too few samples of a class.
    """
    require_shots(count)
    ids, truth, classes = checked(sample_ids, labels, classes)
    validating = max(rounded(VALIDATION_SHARE, count), 1)

    def kept(rows: Rows, n: int, why: str) -> list[int]:
        for name, size in sizes_by_class(truth[rows], classes).items():
            if size < n:
                what = "samples" if labels is None else f"samples of class {name!r}"
                raise InputError(
                    f"--split shots:{count} needs {n} {what} to {why}, and {size} of those that are not held out are "
                    "there for it: ask for fewer, hold out less, or embed more images"
                )
        ranked = sorted(rows.tolist(), key=lambda i: rank_of(_DRAWN, seed, ids[i]))
        return [i for c in np.unique(truth[rows]) for i in [i for i in ranked if truth[i] == c][:n]]

    train = kept(inner.train, count - validating, "train on")
    held = kept(inner.test, validating, "validate")
    return _thinned(split, inner, ids, train, held, "shots", seed)


def require_part(share: float) -> None:
    """Raise InputError where a part of the labels is none."""
    if not 0 < share <= 1:
        raise InputError(
            f"--split label:F@SHARE needs a part F of the labels above 0 and up to 1, got {share}"
        )


def require_shots(count: int) -> None:
    """Raise InputError where so many of each class cannot be cut."""
    if count < 2:
        raise InputError(
            "--split shots:K@SHARE needs K from 2 (of each class one to train on, one to validate: early stopping and "
            f"hyper-parameters need it), got {count}"
        )


def _queue(ids: Sequence[str], truth: Rows, rows: Rows, seed: int) -> list[int]:
    """Line the rows up so that the first n of them, whatever n, have the classes in the same shares.

    The first of each class come first of all. Then the one at place j of the n ranked ones of its class stands at
    (j + 1/2) / n of the line, so that each class is rounded at its halves.
    """
    ranked = sorted(rows.tolist(), key=lambda i: rank_of(_DRAWN, seed, ids[i]))
    sizes, seen = Counter(truth[rows].tolist()), Counter[int]()
    where = {}
    for i in ranked:
        c = int(truth[i])
        # Division rounds equal fractions to equal floats, and ties go by rank.
        where[i] = (2 * seen[c] + 1) / (2 * sizes[c]) if seen[c] else 0.0
        seen[c] += 1
    return sorted(ranked, key=where.__getitem__)


def _thinned(
    split: Split,
    inner: Split,
    ids: list[str],
    train: Sequence[int],
    held: Sequence[int],
    kind: str,
    seed: int,
) -> tuple[Split, Split]:
    training, validation = (np.sort(np.array(part, dtype=np.int64)) for part in (train, held))
    name = kind if split.name == "holdout" else f"{split.name}-{kind}"
    both = np.union1d(training, validation)
    return (
        made(ids, both, split.test, name, split.share, seed),
        made(ids, training, validation, inner.name, inner.share, seed),
    )
