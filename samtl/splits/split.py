"""What a split is, and what every way to make one needs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
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
        How it was made: `holdout`, `fold`; `grouped`, `grouped-fold` where groups stay whole; `shipped` or another
        name of a split that was given; `label`, `shots` where only some of the others are learnt from, after the
        name of what was held out first, as in `grouped-label`, unless that is `holdout`; `validation` for one cut
        from a training part.
    share : float
        Part of the samples asked for in `test`, in (0, 1); of a split that was given, the part that is there.
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


def made(ids: list[str], train: Rows, test: Rows, name: str, share: float, seed: int) -> Split:
    for part in (train, test):
        part.flags.writeable = False
    return Split(train, test, name, float(share), int(seed), digest_of(ids, train, test))


def rank_of(name: str, seed: int, what: str) -> bytes:
    # The purpose is part of the key: the validation part must not be the runners-up of the held-out one.
    return hashlib.sha256(f"samtl {name} {seed}\n{what}".encode()).digest()


def require_share(share: float) -> None:
    """Raise InputError where a held-out share is none."""
    if not 0 < share < 1:
        raise InputError(f"--split must lie between 0 and 1 (the held-out share), got {share}")


def exact(share: float) -> Fraction:
    # 0.2 as typed, not its binary neighbour: ties between remainders must not hang on the last bit.
    return Fraction(str(float(share)))


def rounded(share: float, n: int) -> int:
    return int(exact(share) * n + Fraction(1, 2))


def checked(
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
    twice = repeated(ids)
    if twice is not None:
        raise InputError(f"sample ids must be unique, but {twice!r} occurs more than once")
    return ids, np.where(may, truth, -1).astype(np.int64), classes


def repeated(ids: Sequence[str]) -> str | None:
    """Give the first id that was there before."""
    seen: set[str] = set()
    for i in ids:
        if i in seen:
            return i
        seen.add(i)
    return None


def grouping(groups: Sequence[str], rows: Rows, n: int) -> dict[int, str]:
    """Give the group of each of the rows."""
    if len(groups) != n:
        raise InputError(f"expected the group of each of {n} samples, got {len(groups)}")
    return {i: str(groups[i]) for i in rows.tolist()}


def sizes_by_class(labels: Rows, classes: Sequence[str] | None) -> dict[str, int]:
    """Count the samples of each class, by name where there are names."""
    if classes is None:
        found, counts = np.unique(labels, return_counts=True)
        return {str(label): int(n) for label, n in zip(found, counts, strict=True)}
    return dict(zip(classes, np.bincount(labels, minlength=len(classes)).tolist(), strict=True))


def every_class(
    truth: Rows,
    parts: Mapping[str, Rows],
    classes: Sequence[str] | None,
    together: Mapping[int, str] | None = None,
    given: str = "",
) -> None:
    """See that each part has samples of every class, of whole groups or of the split that was given."""
    rows = np.concatenate(list(parts.values()))
    labels = np.unique(truth[rows]).tolist() if classes is None else range(len(classes))
    for label in labels:
        lacking = [part for part, members in parts.items() if label not in truth[members]]
        if lacking:
            name = str(label) if classes is None else classes[label]
            why = f"in the {given} split: give the held-out share with --split instead"
            if together is not None:
                found = {together[i] for i in rows[truth[rows] == label].tolist()}
                why = (
                    f"where groups stay whole (it is in {len(found)} of {len(set(together.values()))} groups): try "
                    "another --seed or another --split, or group the images more finely"
                )
            raise InputError(f"class {name!r} has no {lacking[0]} samples {why}")
