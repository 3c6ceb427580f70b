"""Fewer labels to learn from: a fraction of the training part of a split, or some samples of each class.

Training and validation part are thinned separately along one ranking: the samples kept of fewer labels are among those
kept of more, in each part, and the held-out part is the same for all.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from samtl.errors import InputError
from samtl.splits.draw import closest
from samtl.splits.split import (
    VALIDATION_SHARE,
    Rows,
    Samples,
    Split,
    exact,
    made,
    rank_of,
    rounded,
)


def fewer(
    samples: Samples, split: Split, inner: Split, share: float, seed: int
) -> tuple[Split, Split]:
    """Keep a share of the samples that are not held out, the same of every class, or whole groups.

    The share is raised if a class would have no training or validation sample. Samples that are not kept are in no part
    of the returned split and its validation split.
    """

    def kept(rows: Rows) -> list[int]:
        if not samples.groups:
            line = _line(samples, rows, seed)
            return line[: max(rounded(share, len(rows)), len(np.unique(samples.truth[rows])))]
        sizes = samples.group_sizes(rows)
        ranked = sorted(sizes, key=lambda group: _rank(group, seed))
        place = {group: i for i, group in enumerate(ranked)}
        n = closest([sizes[group] for group in ranked], exact(share) * len(rows))
        for members in samples.by_class(rows).values():  # go on until each class has a sample
            n = max(n, 1 + min((place[samples.groups[i]] for i in members), default=0))
        return [i for i in rows.tolist() if place[samples.groups[i]] < n]

    return _thinned(samples, split, inner, kept(inner.train), kept(inner.test), "label", seed)


def shots(
    samples: Samples, split: Split, inner: Split, count: int, seed: int
) -> tuple[Split, Split]:
    """Keep a number of samples of each class; a fifth of them, at least one, is for validation.

    For segmentation the number is that of all samples.

    Raises
    ------
    InputError
        If a part has too few samples of a class.
    """
    validating = max(rounded(VALIDATION_SHARE, count), 1)

    def kept(rows: Rows, n: int, purpose: str) -> list[int]:
        chosen: list[int] = []
        for name, members in samples.by_class(rows).items():
            if len(members) < n:
                of = "" if samples.task == "segmentation" else f" of class {name!r}"
                raise InputError(
                    f"--split shots:{count} needs {n} samples{of} {purpose}, got {len(members)}: ask for fewer, hold "
                    "out less, or embed more images"
                )
            chosen += sorted(members.tolist(), key=lambda i: _rank(samples.ids[i], seed))[:n]
        return chosen

    train = kept(inner.train, count - validating, "to train on")
    held = kept(inner.test, validating, "for validation")
    return _thinned(samples, split, inner, train, held, "shots", seed)


def _rank(what: str, seed: int) -> bytes:
    # One ranking for both ways: few shots are the first samples of a fraction, class by class.
    return rank_of("label", seed, what)


def _line(samples: Samples, rows: Rows, seed: int) -> list[int]:
    """Order rows so that the first n, for any n, have the classes in the same shares.

    The first of each class come first. The ranked sample j of the n of a class then stands at (j + 1/2) / n of the
    line, so that each class is rounded at its halves.
    """
    ranked = sorted(rows.tolist(), key=lambda i: _rank(samples.ids[i], seed))
    sizes, seen = Counter(samples.truth[rows].tolist()), Counter[int]()
    place = {}
    for i in ranked:
        c = int(samples.truth[i])
        # Division rounds equal fractions to equal floats, and ties go by rank.
        place[i] = (2 * seen[c] + 1) / (2 * sizes[c]) if seen[c] else 0.0
        seen[c] += 1
    return sorted(ranked, key=place.__getitem__)


def _thinned(
    samples: Samples,
    split: Split,
    inner: Split,
    train: list[int],
    held: list[int],
    kind: str,
    seed: int,
) -> tuple[Split, Split]:
    training, validation = (np.sort(np.array(part, dtype=np.int64)) for part in (train, held))
    name = kind if split.name == "holdout" else f"{split.name}-{kind}"
    both = np.union1d(training, validation)
    return (
        made(samples, both, split.test, name, split.share, seed),
        made(samples, training, validation, inner.name, inner.share, seed),
    )
