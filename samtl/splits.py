"""Which samples are held out: index arithmetic with a digest, nothing else.

Who goes where depends on sample ids, labels and the seed, never on the order of rows: within each class, samples
are ranked by sha256 of (seed, id) and the first of them are held out. So the same dataset embedded in another
order gives the same split, and a larger share holds out the same samples and more, but for what rounding shifts.

Images cut from one scene look alike, and a head that has seen one of them knows the others: where samples have
groups, it is the groups that are ranked, and none is ever torn. Where a dataset ships a split, `shipped` takes it.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import accumulate

import numpy as np
from numpy.typing import ArrayLike, NDArray

from samtl.errors import InputError

Rows = NDArray[np.int64]

PARTS = ("train", "validation", "test")  # of a split that a dataset ships
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
        How it was made: `holdout`, `grouped`, `shipped`, or `validation` for one cut from a training part.
    share : float
        Part of the samples asked for in `test`, in (0, 1); of a shipped split, the part that is there.
    seed : int
        What the choice was drawn with; 0 where nothing was drawn.
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
    if not 0 < share < 1:
        raise InputError(f"--split must lie between 0 and 1 (the held-out share), got {share}")
    ids, truth, classes = _checked(sample_ids, labels, classes, usable)
    rows = np.flatnonzero(truth >= 0)
    if not len(rows) or (labels is None and len(rows) < 2):
        raise InputError(
            "a split needs at least 2 samples that can be used (one to train on, one held out), got "
            f"{len(rows)} of {len(ids)}: embed more images"
        )
    sizes = _sizes(truth[rows], classes)
    for name, size in sizes.items():
        if size < 2:
            raise InputError(
                f"class {name!r} has {size} labelled sample{'' if size == 1 else 's'}, and a split needs at "
                "least 2 of each class (one to train on, one held out): embed more images of it, or leave the "
                "class out of the dataset"
            )
    if groups is not None:
        together = _grouping(groups, rows, len(ids))
        if len(set(together.values())) < 2:
            raise InputError(
                "a split by groups needs at least 2 groups (one to train on, one held out), got 1, "
                f"{together[rows[0]]!r}: group the images more finely, or split without groups"
            )
        split = _cut_groups(ids, together, rows, share, seed, "grouped")
        _every_class(truth, {"held-out": split.test, "training": split.train}, classes, together)
        return split
    total = _rounded(share, len(rows))
    if not len(sizes) <= total <= len(rows) - len(sizes):
        low, high = len(sizes) / len(rows), 1 - len(sizes) / len(rows)
        lacks = "empty" if labels is None else f"without some of the {len(sizes)} classes"
        raise InputError(
            f"--split {share} of {len(rows)} samples holds out {total}, which leaves one part {lacks}: choose a "
            f"share from {low:.3g} to {high:.3g}, or embed more images"
        )
    return _cut(ids, truth, rows, share, total, seed, "holdout")


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
    ids, truth, classes = _checked(sample_ids, labels, classes)
    rows = split.train
    if not len(rows) or (labels is None and len(rows) < 2):
        raise InputError(
            "the training part needs at least 2 samples (one of them for validation), got "
            f"{len(rows)}: lower --split, or embed more images"
        )
    sizes = _sizes(truth[rows], classes)
    for name, size in sizes.items():
        if size < 2:
            raise InputError(
                f"class {name!r} has {size} training sample{'' if size == 1 else 's'} beside the held-out ones, "
                "and at least 2 are needed (one of them for validation): lower --split, or embed more images of it"
            )
    if groups is not None:
        together = _grouping(groups, rows, len(ids))
        if len(set(together.values())) < 2:
            raise InputError(
                "at least 3 groups are needed in all (held out, for validation, to train on), and the training "
                f"part has 1, {together[rows[0]]!r}: lower --split, or group the images more finely"
            )
        part = _cut_groups(ids, together, rows, share, split.seed, "validation")
        _every_class(truth, {"validation": part.test, "training": part.train}, classes, together)
        return part
    total = min(max(_rounded(share, len(rows)), len(sizes)), len(rows) - len(sizes))
    return _cut(ids, truth, rows, share, total, split.seed, "validation")


def shipped(
    sample_ids: Sequence[str],
    parts: Sequence[str],
    labels: ArrayLike | None = None,
    usable: ArrayLike | None = None,
    classes: Sequence[str] | None = None,
) -> tuple[Split, Split]:
    """Take the split that a dataset comes with.

    Parameters
    ----------
    sample_ids, labels, usable, classes
        As for `holdout`.
    parts : sequence of (N,) str
        The part of each row, of `PARTS`.

    Returns
    -------
    split : Split
        `shipped`: held out is the part `test`, to train on are both others.
    inner : Split
        `validation`: cut from the training part is the part `validation`.

    Raises
    ------
    InputError
        Where a part is unknown or has no samples, or a class is not in every part.
    """
    ids, truth, classes = _checked(sample_ids, labels, classes, usable)
    if len(parts) != len(ids):
        raise InputError(
            f"expected the shipped part of each of {len(ids)} samples, got {len(parts)}"
        )
    for name in parts:
        if name not in PARTS:
            raise InputError(f"a shipped part must be one of {', '.join(PARTS)}, got {name!r}")
    which = np.array([PARTS.index(name) for name in parts], dtype=np.int64)
    members = {name: np.flatnonzero((truth >= 0) & (which == i)) for i, name in enumerate(PARTS)}
    if not all(map(len, members.values())):
        have = ", ".join(f"{len(rows)} in {name}" for name, rows in members.items())
        raise InputError(
            f"a shipped split needs samples in each of {', '.join(PARTS)}, got {have}: give the held-out share "
            "with --split instead"
        )
    _every_class(truth, members, classes)
    train, validation, test = members.values()
    both = np.union1d(train, validation)
    return (
        _made(ids, both, test, "shipped", len(test) / (len(both) + len(test)), 0),
        _made(ids, train, validation, "validation", len(validation) / len(both), 0),
    )


def from_ids(
    sample_ids: Sequence[str],
    held_out: Sequence[str],
    validation: Sequence[str],
    left_out: Sequence[str] = (),
    *,
    name: str,
    share: float,
    seed: int,
    digest: str,
    validation_share: float = VALIDATION_SHARE,
) -> tuple[Split, Split]:
    """Make the split of an earlier run anew, from the ids that it wrote down.

    Parameters
    ----------
    sample_ids : sequence of (N,) str
        Unique ids, one for each row of the store at hand.
    held_out, validation, left_out : sequence of str
        Who was held out, who was in the validation part, and who took no part; all others were trained on.
    name, share, seed, digest
        Of the split, as recorded.
    validation_share : float
        As recorded; only carried over.

    Returns
    -------
    split, inner : Split
        Equal to those of the run.

    Raises
    ------
    InputError
        Where an id is not among `sample_ids` or in two of the lists, or the samples that are left to train on are
        not those of the run.
    """
    ids, _, _ = _checked(sample_ids, None, None)
    row = {sample: i for i, sample in enumerate(ids)}
    listed = [*held_out, *validation, *left_out]
    absent = [sample for sample in listed if sample not in row]
    if absent:
        raise InputError(
            f"the run was made of other samples: {len(absent)} of the {len(listed)} that it held out, validated on "
            f"or left out are not here, the first is {absent[0]!r}; choose the store that the run was made with"
        )
    twice = _repeated(listed)
    if twice is not None:
        raise InputError(
            f"a sample is held out, for validation, or left out, once, but {twice!r} is listed more than once"
        )
    test, held, without = (
        np.array(sorted(row[sample] for sample in part), dtype=np.int64)
        for part in (held_out, validation, left_out)
    )
    both = np.setdiff1d(np.arange(len(ids)), np.concatenate([test, without]))
    split = _made(ids, both, test, name, share, seed)
    if split.digest != digest:
        raise InputError(
            f"the run was made of other samples: all of those that it held out are here, but the {len(both)} left to "
            "train and validate on are not those of the run (there are more, fewer, or others); choose the store "
            "that the run was made with"
        )
    return split, _made(ids, np.setdiff1d(both, held), held, "validation", validation_share, seed)


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


def _checked(
    sample_ids: Sequence[str],
    labels: ArrayLike | None,
    classes: Sequence[str] | None,
    usable: ArrayLike | None = None,
) -> tuple[list[str], Rows, Sequence[str] | None]:
    """Give ids, labels that are -1 in rows that take no part, and class names.

    Without labels all samples are of one class, which has no name: the names are those of pixels.
    """
    ids = [str(i) for i in sample_ids]
    if labels is None:
        labels, classes = np.zeros(len(ids), dtype=np.int64), None
    truth = np.asarray(labels)
    if truth.shape != (len(ids),) or (truth.size and truth.dtype.kind not in "iu"):
        raise InputError(
            f"labels must be {len(ids)} integers, one for each sample id, got shape {truth.shape} of {truth.dtype}"
        )
    if classes is not None and truth.size and truth.max() >= len(classes):
        raise InputError(
            f"labels must be below the number of classes, {len(classes)}, got {truth.max()}"
        )
    may = np.ones(len(ids), dtype=np.bool_) if usable is None else np.asarray(usable)
    if may.shape != (len(ids),) or may.dtype != np.bool_:
        raise InputError(
            f"usable must be {len(ids)} booleans, one for each sample id, got shape {may.shape} of {may.dtype}"
        )
    twice = _repeated(ids)
    if twice is not None:
        raise InputError(f"sample ids must be unique, but {twice!r} occurs more than once")
    return ids, np.where(may, truth, -1).astype(np.int64), classes


def _repeated(ids: Sequence[str]) -> str | None:
    """Give the first id that was there before."""
    seen: set[str] = set()
    for i in ids:
        if i in seen:
            return i
        seen.add(i)
    return None


def _grouping(groups: Sequence[str], rows: Rows, n: int) -> dict[int, str]:
    """Give the group of each of the rows."""
    if len(groups) != n:
        raise InputError(f"expected the group of each of {n} samples, got {len(groups)}")
    return {i: str(groups[i]) for i in rows.tolist()}


def _sizes(labels: Rows, classes: Sequence[str] | None) -> dict[str, int]:
    """Count the samples of each class, by name where there are names."""
    if classes is None:
        found, counts = np.unique(labels, return_counts=True)
        return {str(label): int(n) for label, n in zip(found, counts, strict=True)}
    return dict(zip(classes, np.bincount(labels, minlength=len(classes)).tolist(), strict=True))


def _every_class(
    truth: Rows,
    parts: Mapping[str, Rows],
    classes: Sequence[str] | None,
    together: Mapping[int, str] | None = None,
) -> None:
    """See that each part has samples of every class."""
    rows = np.concatenate(list(parts.values()))
    labels = np.unique(truth[rows]).tolist() if classes is None else range(len(classes))
    for label in labels:
        lacking = [part for part, members in parts.items() if label not in truth[members]]
        if lacking:
            name = str(label) if classes is None else classes[label]
            why = "in the shipped split: give the held-out share with --split instead"
            if together is not None:
                found = {together[i] for i in rows[truth[rows] == label].tolist()}
                why = (
                    f"where groups stay whole (it is in {len(found)} of {len(set(together.values()))} groups): try "
                    "another --seed or another --split, or group the images more finely"
                )
            raise InputError(f"class {name!r} has no {lacking[0]} samples {why}")


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
    rank = {i: _rank(name, seed, ids[i]) for i in rows}
    members = [rows[truth[rows] == c] for c in np.unique(truth[rows])]
    counts = _counts([len(m) for m in members], share, total)
    taken = [sorted(m, key=rank.__getitem__)[:n] for m, n in zip(members, counts, strict=True)]
    test = np.sort(np.concatenate(taken)).astype(np.int64)
    return _made(ids, np.setdiff1d(rows, test), test, name, share, seed)


def _cut_groups(
    ids: list[str], together: Mapping[int, str], rows: Rows, share: float, seed: int, name: str
) -> Split:
    sizes = Counter(together.values())
    ranked = sorted(sizes, key=lambda group: _rank(name, seed, group))
    wanted = _exact(share) * len(rows)
    held = list(accumulate(sizes[group] for group in ranked[:-1]))  # in the first 1, 2, ... groups
    n = 1 + min(range(len(held)), key=lambda i: abs(held[i] - wanted))
    chosen = set(ranked[:n])
    out = np.array([together[i] in chosen for i in rows.tolist()])
    return _made(ids, rows[~out], rows[out], name, share, seed)


def _rank(name: str, seed: int, what: str) -> bytes:
    # The purpose is part of the key: the validation part must not be the runners-up of the held-out one.
    return hashlib.sha256(f"samtl {name} {seed}\n{what}".encode()).digest()


def _made(ids: list[str], train: Rows, test: Rows, name: str, share: float, seed: int) -> Split:
    for part in (train, test):
        part.flags.writeable = False
    return Split(train, test, name, float(share), int(seed), digest_of(ids, train, test))
