"""Which samples are held out: index arithmetic with a digest, nothing else.

Who goes where depends on sample ids, labels and the seed, never on the order of rows: within each class, samples
are ranked by sha256 of (seed, id) and the first of them are held out. So the same dataset embedded in another
order gives the same split, and a larger share holds out the same samples and more, but for what rounding shifts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike, NDArray

from samtl.errors import InputError

Rows = NDArray[np.int64]

VALIDATION_SHARE = 0.2  # of the training part, for early stopping and hyper-parameters


@dataclass(frozen=True)
class Split:
    """Two disjoint sets of rows of one store.

    Two splits are equal where name, share, seed and digest are, whatever store the rows are counted in.

    Attributes
    ----------
    train, test : (n,) int64
        Row numbers, ascending, read-only.
    name : str
        How it was made: `holdout`, or `validation` for one cut from a training part.
    share : float
        Part of the samples asked for in `test`, in (0, 1).
    seed : int
        What the choice was drawn with.
    digest : str
        sha256 (hex) of who is in which part, by sample id: see `digest_of`.
    """

    train: Rows = field(compare=False, repr=False)
    test: Rows = field(compare=False, repr=False)
    name: str
    share: float
    seed: int
    digest: str


def holdout(
    sample_ids: Sequence[str],
    labels: ArrayLike,
    share: float,
    seed: int = 0,
    classes: Sequence[str] | None = None,
) -> Split:
    """Hold out a share of the labelled samples, the same share of every class.

    Counts for each class follow by largest remainder, so that the total is the share of the whole, rounded; every
    class has at least one sample in both parts.

    Parameters
    ----------
    sample_ids : sequence of (N,) str
        Unique ids, one for each row.
    labels : (N,) int
        Class index; rows with -1 are left out of both parts.
    share : float
        Held-out part, in (0, 1): 0.2 is "80-20".
    seed : int
    classes : sequence of str, optional
        Class names, for messages; each must then have samples. Without it only the labels that occur count.

    Raises
    ------
    InputError
        Where `share` is out of range, ids repeat, or a class is too small to be in both parts.
    """
    if not 0 < share < 1:
        raise InputError(f"--split must lie between 0 and 1 (the held-out share), got {share}")
    ids, truth = _checked(sample_ids, labels)
    rows = np.flatnonzero(truth >= 0)
    sizes = _sizes(truth[rows], classes)
    for name, size in sizes.items():
        if size < 2:
            raise InputError(
                f"class {name!r} has {size} labelled sample{'' if size == 1 else 's'}, and a split needs at "
                "least 2 of each class (one to train on, one held out): embed more images of it, or leave the "
                "class out of the dataset"
            )
    total = _rounded(share, len(rows))
    if not len(sizes) <= total <= len(rows) - len(sizes):
        low, high = len(sizes) / len(rows), 1 - len(sizes) / len(rows)
        raise InputError(
            f"--split {share} of {len(rows)} samples holds out {total}, which leaves one part without some of the "
            f"{len(sizes)} classes: choose a share from {low:.3g} to {high:.3g}, or embed more images"
        )
    return _cut(ids, truth, rows, share, total, seed, "holdout")


def inner(
    split: Split,
    sample_ids: Sequence[str],
    labels: ArrayLike,
    share: float = VALIDATION_SHARE,
    classes: Sequence[str] | None = None,
) -> Split:
    """Cut a validation part from the training part of a split.

    Parameters
    ----------
    split : Split
        Only its `train` rows and its seed are used.
    sample_ids, labels, classes
        As for `holdout`, with the rows that `split` was made of.
    share : float
        Part of the training part, in (0, 1); raised where it would leave a class without a validation sample.

    Returns
    -------
    Split
        Its `test` is the validation part; both parts lie within `split.train`.

    Raises
    ------
    InputError
        Where `share` is out of range or a class has fewer than 2 training samples.
    """
    if not 0 < share < 1:
        raise InputError(f"the validation share must lie between 0 and 1, got {share}")
    ids, truth = _checked(sample_ids, labels)
    rows = split.train
    sizes = _sizes(truth[rows], classes)
    for name, size in sizes.items():
        if size < 2:
            raise InputError(
                f"class {name!r} has {size} training sample{'' if size == 1 else 's'} beside the held-out ones, "
                "and at least 2 are needed (one of them for validation): lower --split, or embed more images of it"
            )
    total = min(max(_rounded(share, len(rows)), len(sizes)), len(rows) - len(sizes))
    return _cut(ids, truth, rows, share, total, split.seed, "validation")


def digest_of(sample_ids: Sequence[str], train: Rows, test: Rows) -> str:
    """Name a split by who is in it.

    sha256 (hex) of the JSON text `{"test":[...],"train":[...]}`, ids ascending, no spaces, ASCII only: the same in
    any store of the same samples, whatever the order of its rows.
    """
    parts = {
        "test": sorted(sample_ids[i] for i in test),
        "train": sorted(sample_ids[i] for i in train),
    }
    return hashlib.sha256(json.dumps(parts, separators=(",", ":")).encode()).hexdigest()


def _checked(sample_ids: Sequence[str], labels: ArrayLike) -> tuple[list[str], Rows]:
    ids = [str(i) for i in sample_ids]
    truth = np.asarray(labels)
    if truth.shape != (len(ids),) or (truth.size and truth.dtype.kind not in "iu"):
        raise InputError(
            f"labels must be {len(ids)} integers, one for each sample id, got shape {truth.shape} of {truth.dtype}"
        )
    if len(set(ids)) < len(ids):
        seen: set[str] = set()
        twice = next(i for i in ids if i in seen or seen.add(i))  # type: ignore[func-returns-value]
        raise InputError(f"sample ids must be unique, but {twice!r} occurs more than once")
    return ids, truth.astype(np.int64)


def _sizes(labels: Rows, classes: Sequence[str] | None) -> dict[str, int]:
    """Count the samples of each class, by name where there are names."""
    if classes is None:
        found, counts = np.unique(labels, return_counts=True)
        return {str(label): int(n) for label, n in zip(found, counts, strict=True)}
    if labels.size and labels.max() >= len(classes):
        raise InputError(
            f"labels must be below the number of classes, {len(classes)}, got {labels.max()}"
        )
    return dict(zip(classes, np.bincount(labels, minlength=len(classes)).tolist(), strict=True))


def _exact(share: float) -> Fraction:
    # 0.2 as typed, not its binary neighbour: ties between remainders must not hang on the last bit.
    return Fraction(str(float(share)))


def _rounded(share: float, n: int) -> int:
    return int(_exact(share) * n + Fraction(1, 2))


def _counts(sizes: Sequence[int], share: float, total: int) -> list[int]:
    """Share `total` out over the classes: largest remainder, at least 1 and at most size - 1 each."""
    exact = _exact(share)
    top, bottom = exact.numerator, exact.denominator
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
    # The purpose is part of the key: the validation part must not be the runners-up of the held-out one.
    rank = {i: hashlib.sha256(f"samtl {name} {seed}\n{ids[i]}".encode()).digest() for i in rows}
    members = [rows[truth[rows] == c] for c in np.unique(truth[rows])]
    counts = _counts([len(m) for m in members], share, total)
    taken = [sorted(m, key=rank.__getitem__)[:n] for m, n in zip(members, counts, strict=True)]
    test = np.sort(np.concatenate(taken)).astype(np.int64)
    train = np.setdiff1d(rows, test)
    for part in (train, test):
        part.flags.writeable = False
    return Split(train, test, name, float(share), int(seed), digest_of(ids, train, test))
