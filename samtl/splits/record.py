"""The split of a run as it is written down, `split.json`: names, digests, and sample ids."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from samtl._io import inside, read_object
from samtl.errors import DamageError, InputError
from samtl.splits.split import Samples, Split, made, require_usable

SHARED = "../../splits"  # where runs of a sweep keep their lists, from a run folder


class SplitRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The content of `split.json`: attributes of a `Split` and its validation split, and sample ids.

    Samples in none of the lists were trained on; those of `left_out` are in no part.
    """

    name: str
    share: float
    seed: int
    digest: str
    validation_digest: str = ""
    validation_share: float
    held_out: list[str]
    validation: list[str]
    left_out: list[str]


def record_of(sample_ids: Sequence[str], split: Split, inner: Split) -> SplitRecord:
    """Describe a split and its validation part by sample id."""
    neither = np.setdiff1d(np.arange(len(sample_ids)), np.concatenate([split.train, split.test]))
    held_out, validation, left_out = (
        [sample_ids[row] for row in part] for part in (split.test, inner.test, neither)
    )
    return SplitRecord(
        name=split.name,
        share=split.share,
        seed=split.seed,
        digest=split.digest,
        validation_digest=inner.digest,
        validation_share=inner.share,
        held_out=held_out,
        validation=validation,
        left_out=left_out,
    )


def read_split(run: str | Path) -> SplitRecord:
    """Read the split of a run folder: see `read_split_file`."""
    file = Path(run, "split.json")
    if not file.is_file():
        raise InputError(
            f"{run} is not a run: expected a folder with split.json, as samtl fit-head and samtl fit-baseline write it"
        )
    return read_split_file(file)


def read_split_file(path: str | Path) -> SplitRecord:
    """Read a file like the `split.json` of a run.

    The `split.json` of a sweep's run names a `file` with the lists of ids, which the sweep's runs share.

    Raises
    ------
    InputError
        If the file, or the one that it names, is missing, damaged, or of another split.
    """
    file = Path(path)
    try:
        content = read_object(file)
        if "file" in content:
            shared = inside(file.parent, str(content["file"]), file.parent / SHARED)
            whole = read_object(shared)
            for field in ("digest", "validation_digest"):
                if content.get(field) != whole.get(field):
                    raise InputError(
                        f"{shared} is not the split that {file} names: its {field} is {whole.get(field)!r}, expected "
                        f"{content.get(field)!r}"
                    )
            content = {**whole, **content}
        return msgspec.convert(content, SplitRecord)
    except msgspec.ValidationError as error:
        raise DamageError(f"{file} is damaged: {error}") from error
    except OSError as error:
        raise InputError(
            f"{error.filename or file} is not there: expected a file like a run's split.json; keep runs of a sweep "
            "with its splits"
        ) from error


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
        {row[sample] for sample in part}
        for part in (record.held_out, record.validation, record.left_out)
    )
    both = set(row.values()) - test - without
    split = made(samples, both, test, record.name, record.share, record.seed)
    if split.digest != record.digest:
        raise InputError(
            f"{other}: the held-out ones are here, but the {len(both)} to train and validate on differ"
        )
    train = both - held
    if not (test and held and train):
        raise InputError(
            f"the split of {source} needs samples to train on, for validation and held out, got {len(train)}, "
            f"{len(held)} and {len(test)}"
        )
    require_usable(samples, split)
    return split, made(samples, train, held, "validation", record.validation_share, record.seed)
