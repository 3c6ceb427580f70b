"""Splits that are given: by the part of each sample, or by a record of an earlier split."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from samtl.errors import InputError
from samtl.splits.record import SplitRecord
from samtl.splits.split import (
    PARTS,
    Samples,
    Split,
    made,
    require_every_class,
    require_usable,
)


def shipped(samples: Samples, name: str = "shipped") -> tuple[Split, Split]:
    """Split samples by their `parts`, for instance those that a dataset comes with.

    Returns
    -------
    split : Split
        The part `test` is held out, both others are for training.
    inner : Split
        The part `validation` is cut from the training part.

    Raises
    ------
    InputError
        If a part is unknown or has no samples, or a class is not in every part.
    """
    unknown = set(samples.parts) - {*PARTS, ""}
    if unknown or not samples.parts:
        raise InputError(
            f"each sample must be in one of the parts {', '.join(PARTS)}, got {min(unknown, default=None)!r}"
        )
    of = np.array(samples.parts)
    members = {part: np.flatnonzero((samples.truth >= 0) & (of == part)) for part in PARTS}
    if not all(map(len, members.values())):
        found = ", ".join(f"{len(rows)} in {part}" for part, rows in members.items())
        raise InputError(
            f"the {name} split needs samples in each part, got {found}: choose a held-out share, such as --split 0.2"
        )
    why = f"in the {name} split: choose a held-out share, such as --split 0.2"
    require_every_class(samples, members, why)
    train, validation, test = members.values()
    both = np.union1d(train, validation)
    return (
        made(samples, both, test, name, len(test) / (len(both) + len(test)), 0),
        made(samples, train, validation, "validation", len(validation) / len(both), 0),
    )


def reuse(samples: Samples, record: SplitRecord, source: str | Path) -> tuple[Split, Split]:
    """Restore a recorded split and its validation part.

    Parameters
    ----------
    source : str or path
        Where the record is from, for messages.

    Returns
    -------
    split, inner : Split
        Equal to those that were recorded.

    Raises
    ------
    InputError
        If the record is of other samples, or contains samples that cannot be used.
    """
    other = f"the split of {source} was made for other samples than those of {samples.where}"
    row = {sample: i for i, sample in enumerate(samples.ids)}
    listed = [*record.held_out, *record.validation, *record.left_out]
    absent = [sample for sample in listed if sample not in row]
    if absent:
        raise InputError(
            f"{other}: {len(absent)} of the {len(listed)} that it lists are not here, such as {absent[0]!r}"
        )
    test, held, without = (
        np.array(sorted(row[sample] for sample in part), dtype=np.int64)
        for part in (record.held_out, record.validation, record.left_out)
    )
    both = np.setdiff1d(np.arange(len(row)), np.concatenate([test, without]))
    split = made(samples, both, test, record.name, record.share, record.seed)
    if split.digest != record.digest:
        raise InputError(
            f"{other}: the held-out ones are here, but the {len(both)} to train and validate on differ"
        )
    if not (len(test) and len(held) and len(both) > len(held)):
        raise InputError(
            f"the split of {source} needs samples to train on, for validation and held out, got "
            f"{len(both) - len(held)}, {len(held)} and {len(test)}"
        )
    require_usable(samples, split)
    train = np.setdiff1d(both, held)
    return split, made(samples, train, held, "validation", record.validation_share, record.seed)
