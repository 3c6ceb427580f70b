"""The split of a run as it is written down, `split.json`: names, digests, and sample ids."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from samtl._io import inside, read_object
from samtl.errors import DamageError, InputError
from samtl.splits.split import Split

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
    return SplitRecord(
        name=split.name,
        share=split.share,
        seed=split.seed,
        digest=split.digest,
        validation_digest=inner.digest,
        validation_share=inner.share,
        held_out=[sample_ids[row] for row in split.test],
        validation=[sample_ids[row] for row in inner.test],
        left_out=[sample_ids[row] for row in neither],
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
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise InputError(f"{file} is not there: expected a file like a run's split.json") from error
    if "file" in content:
        shared = file.parent / str(content["file"])
        try:
            whole = read_object(inside(file.parent, str(content["file"]), file.parent / SHARED))
        except FileNotFoundError as error:
            raise InputError(
                f"{file} names {shared}, which is not there: keep runs of a sweep with its splits"
            ) from error
        for field in ("digest", "validation_digest"):
            if content.get(field) != whole.get(field):
                raise InputError(
                    f"{shared} is not the split that {file} names: its {field} is {whole.get(field)!r}, expected "
                    f"{content.get(field)!r}"
                )
        content = {**whole, **content}
    try:
        return msgspec.convert(content, SplitRecord)
    except msgspec.ValidationError as error:
        raise DamageError(f"{file} is damaged: {error}") from error
