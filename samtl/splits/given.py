"""Splits that are given: by the part that each sample is in, or by lists of ids."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from samtl.errors import InputError
from samtl.splits.record import SplitRecord
from samtl.splits.split import (
    Split,
    checked,
    every_class,
    made,
    repeated,
)

PARTS = ("train", "validation", "test")  # of a split that a dataset ships


def shipped(
    sample_ids: Sequence[str],
    parts: Sequence[str],
    labels: ArrayLike | None = None,
    usable: ArrayLike | None = None,
    classes: Sequence[str] | None = None,
    name: str = "shipped",
) -> tuple[Split, Split]:
    """Take the split that a dataset comes with, or another that names the part of each sample.

    Parameters
    ----------
    sample_ids, labels, usable, classes
        As for `holdout`.
    parts : sequence of (N,) str
        The part of each row, of `PARTS`.
    name : str
        What the split is called.

    Returns
    -------
    split : Split
        Held out is the part `test`, to train on are both others.
    inner : Split
        Cut from the training part is the part `validation`.

    Raises
    ------
    InputError
        Where a part is unknown or has no samples, or a class is not in every part.
    """
    ids, truth, classes = checked(sample_ids, labels, classes, usable)
    if len(parts) != len(ids):
        raise InputError(
            f"expected the shipped part of each of {len(ids)} samples, got {len(parts)}"
        )
    for part in parts:
        if part not in PARTS:
            raise InputError(f"a shipped part must be one of {', '.join(PARTS)}, got {part!r}")
    which = np.array([PARTS.index(part) for part in parts], dtype=np.int64)
    members = {part: np.flatnonzero((truth >= 0) & (which == i)) for i, part in enumerate(PARTS)}
    if not all(map(len, members.values())):
        have = ", ".join(f"{len(rows)} in {part}" for part, rows in members.items())
        raise InputError(
            f"the {name} split needs samples in each of {', '.join(PARTS)}, got {have}: give the held-out share "
            "with --split instead"
        )
    every_class(truth, members, classes, given=name)
    train, validation, test = members.values()
    both = np.union1d(train, validation)
    return (
        made(ids, both, test, name, len(test) / (len(both) + len(test)), 0),
        made(ids, train, validation, "validation", len(validation) / len(both), 0),
    )


def from_record(sample_ids: Sequence[str], record: SplitRecord) -> tuple[Split, Split]:
    """Restore a split, and its validation part, from the ids that a run or a file recorded.

    Parameters
    ----------
    sample_ids : sequence of (N,) str
        Unique ids of the store's rows.
    record : SplitRecord

    Returns
    -------
    split, inner : Split
        Equal to those that were recorded.

    Raises
    ------
    InputError
        Where an id is not among `sample_ids` or in two of the lists, a part is empty, or the samples that are left
        to train on are not those of the digest.
    """
    ids, _, _ = checked(sample_ids, None, None)
    row = {sample: i for i, sample in enumerate(ids)}
    listed = [*record.held_out, *record.validation, *record.left_out]
    absent = [sample for sample in listed if sample not in row]
    if absent:
        raise InputError(
            f"it was made of other samples: {len(absent)} of the {len(listed)} that are held out, for validation or "
            f"left out there are not here, the first is {absent[0]!r}; choose the store that it was made with"
        )
    twice = repeated(listed)
    if twice is not None:
        raise InputError(
            f"a sample is held out, for validation, or left out, once, but {twice!r} is listed more than once"
        )
    test, held, without = (
        np.array(sorted(row[sample] for sample in part), dtype=np.int64)
        for part in (record.held_out, record.validation, record.left_out)
    )
    both = np.setdiff1d(np.arange(len(ids)), np.concatenate([test, without]))
    split = made(ids, both, test, record.name, record.share, record.seed)
    if split.digest != record.digest:
        raise InputError(
            f"it was made of other samples: all of those held out there are here, but the {len(both)} left to "
            "train and validate on are not those there (there are more, fewer, or others); choose the store "
            "that it was made with"
        )
    if not (len(test) and len(held) and len(both) > len(held)):
        raise InputError(
            f"samples are needed to train on, for validation and held out, got {len(both) - len(held)}, {len(held)} "
            f"and {len(test)}"
        )
    train = np.setdiff1d(both, held)
    return split, made(ids, train, held, "validation", record.validation_share, record.seed)
