"""Splits that are given: by the part that each sample is in, or by lists of ids."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from samtl.errors import InputError
from samtl.splits.split import (
    VALIDATION_SHARE,
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
    """Make a split anew from the ids that were written down, by an earlier run or in a file.

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
        Equal to those that were written down.

    Raises
    ------
    InputError
        Where an id is not among `sample_ids` or in two of the lists, a part is empty, or the samples that are left
        to train on are not those of the digest.
    """
    ids, _, _ = checked(sample_ids, None, None)
    row = {sample: i for i, sample in enumerate(ids)}
    listed = [*held_out, *validation, *left_out]
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
        for part in (held_out, validation, left_out)
    )
    both = np.setdiff1d(np.arange(len(ids)), np.concatenate([test, without]))
    split = made(ids, both, test, name, share, seed)
    if split.digest != digest:
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
    return split, made(ids, np.setdiff1d(both, held), held, "validation", validation_share, seed)
