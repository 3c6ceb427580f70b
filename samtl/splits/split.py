"""Samples, splits of them, and what every way to split needs."""

from __future__ import annotations

import functools
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from samtl.errors import InputError
from samtl.splits.labels import strata_of

Rows = NDArray[np.int64]

PARTS = ("train", "validation", "test")  # of a split that comes with a dataset
VALIDATION_SHARE = 0.2  # of the training part, for early stopping and hyper-parameters


@dataclass(frozen=True)
class Samples:
    """The samples of a store or a dataset, as far as splits need them."""

    where: str  #: name of the store or dataset, for messages
    #: `classification`, `multilabel`, `regression` or `segmentation`. All but the first are split as if all samples had
    #: one class; `multilabel` keeps the shares of each sample's rarest class in the parts, as far as it can.
    task: str
    ids: tuple[str, ...]  #: unique
    classes: tuple[str, ...]  #: if there are any, each must be in every part of a split
    labels: NDArray[Any]  #: (N, ...), as `samtl.splits.labels.label_array` makes them
    usable: NDArray[np.bool_]  #: samples that can take part: embedded, and labelled if need be
    groups: tuple[str, ...] = ()  #: what must not be divided, such as a scene; or empty
    parts: tuple[str, ...] = ()  #: of `PARTS`, or "" for no part; or empty
    #: sha256 of each image file, "" if it is not known; or empty. No drawn split divides identical images.
    images: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(set(self.ids)) < len(self.ids):
            twice = max(self.ids, key=Counter(self.ids).__getitem__)
            raise InputError(f"{self.where} has the sample {twice!r} more than once")

    @functools.cached_property
    def truth(self) -> Rows:
        """Class index of each sample that takes part (0 unless there is one class for each), else -1."""
        return np.where(self.usable, self.labels if self.task == "classification" else 0, -1)

    @functools.cached_property
    def strata(self) -> Rows:
        """What is to have the same share in each part: the class or, of several, the rarest; for usable samples."""
        if self.task != "multilabel":
            return self.truth
        found = self.truth.copy()
        found[self.usable] = strata_of(self.labels[self.usable])
        return found

    @property
    def rows(self) -> Rows:
        """The samples that take part."""
        return np.flatnonzero(self.truth >= 0)

    @functools.cached_property
    def image(self) -> Rows:
        """Number of each sample's image, (N,), the same for samples whose image files are identical."""
        first: dict[str, int] = {}
        named = enumerate(self.images or [""] * len(self.ids))
        return np.array([first.setdefault(name, i) if name else i for i, name in named], np.int64)

    def distinct(self, rows: Rows) -> Rows:
        """Keep one of the rows of each image: the one whose id comes first."""
        if len(np.unique(self.image[rows])) == len(rows):
            return rows
        ordered = np.array(sorted(rows.tolist(), key=self.ids.__getitem__))
        _, first = np.unique(self.image[ordered], return_index=True)
        return np.sort(ordered[first])

    def by_class(self, rows: Rows) -> dict[str, Rows]:
        """Divide rows by class; a class without a name is called by its index."""
        found = divided(rows, self.truth[rows])
        if self.task == "classification" and self.classes:
            return {name: found.get(c, rows[:0]) for c, name in enumerate(self.classes)}
        return {str(c): members for c, members in found.items()}

    def group_sizes(self, rows: Rows) -> Counter[str]:
        """Count the rows of each group."""
        return Counter(self.groups[row] for row in rows.tolist())


@dataclass(frozen=True)
class Split:
    """Three disjoint sets of rows.

    Rows are (n,) int64, ascending, read-only. Splits are equal if everything else is, whatever store rows are counted
    in. Shares are requested ones, in (0, 1), or actual ones of a split that was given.
    """

    train: Rows = field(compare=False, repr=False)
    validation: Rows = field(compare=False, repr=False)
    test: Rows = field(compare=False, repr=False)  #: those that are held out
    #: `holdout` or `fold`; `grouped` or `grouped-fold` if groups stayed whole; `shipped` or another name of one that
    #: was given; with fewer labels the same with `-label` or `-shots` (only `label` or `shots` for `holdout`).
    name: str
    share: float  #: of `test`
    seed: int  #: 0 if nothing was drawn
    digest: str  #: `digest_of` the samples that are held out and the others
    validation_share: float  #: of `validation` among the others
    validation_digest: str  #: `digest_of` the samples for validation and for training

    @classmethod
    def of(
        cls,
        samples: Samples,
        parts: Iterable[Iterable[int]],
        name: str,
        share: float,
        seed: int,
        validation_share: float,
    ) -> Self:
        """Make a split of the rows of each of `PARTS`, in any order."""
        rows = [np.sort(np.array([*part], dtype=np.int64)) for part in parts]
        for part in rows:
            part.flags.writeable = False
        train, validation, test = rows
        return cls(
            train,
            validation,
            test,
            name,
            float(share),
            int(seed),
            digest_of(samples.ids, np.concatenate([train, validation]), test),
            float(validation_share),
            digest_of(samples.ids, train, validation),
        )

    @functools.cached_property
    def seen(self) -> Rows:
        """The rows that are not held out, of `train` and `validation`."""
        return np.union1d(self.train, self.validation)

    def copies_held_out(self, samples: Samples) -> int:
        """Count the held-out samples whose image is also that of a sample to train or validate on."""
        return int(np.isin(samples.image[self.test], samples.image[self.seen]).sum())

    def fits(self, samples: Samples) -> bool:
        """Return whether its rows are, among these samples, those that it was made for."""
        rows = np.concatenate([self.seen, self.test])
        inside = rows.min(initial=0) >= 0 and rows.max(initial=0) < len(samples.ids)
        about = (self.name, self.share, self.seed, self.validation_share)
        parts = (self.train, self.validation, self.test)
        return bool(inside) and Split.of(samples, parts, *about) == self


def divided(rows: Rows, by: Rows) -> dict[int, Rows]:
    """Divide rows by a number of each, ascending."""
    order = np.argsort(by, kind="stable")
    numbers, starts = np.unique(by[order], return_index=True)
    return dict(zip(numbers.tolist(), np.split(rows[order], starts[1:]), strict=False))


def digest_of(sample_ids: Sequence[str], train: Rows, test: Rows) -> str:
    """Identify the samples in two parts, whatever the order of rows.

    sha256 (hex) of the JSON text `{"test":[...],"train":[...]}`, ids ascending, no spaces, ASCII only.
    """
    parts = {
        name: sorted(sample_ids[i] for i in part)
        for name, part in (("test", test), ("train", train))
    }
    return hashlib.sha256(json.dumps(parts, separators=(",", ":")).encode()).hexdigest()


def require_every_class(samples: Samples, parts: Mapping[str, Rows], why: str = "") -> None:
    """Raise InputError if a part lacks a class; without `why`, because groups stay whole."""
    every = np.concatenate(list(parts.values()))
    in_parts = {part: samples.by_class(rows) for part, rows in parts.items()}
    for name, rows in samples.by_class(every).items():
        for part, classes in in_parts.items():
            if not len(classes.get(name, ())):
                if not why:
                    found, of = len(samples.group_sizes(rows)), len(samples.group_sizes(every))
                    why = (
                        f"if groups stay whole (it is in {found} of {of} groups): try another --seed or --split, or "
                        "group the images more finely"
                    )
                raise InputError(f"class {name!r} has no {part} samples {why}")


def require_usable(samples: Samples, split: Split) -> None:
    """Raise InputError if a split contains samples that cannot take part."""
    rows = np.concatenate([split.seen, split.test])
    unusable = rows[~samples.usable[rows]]
    if len(unusable):
        raise InputError(
            f"the split {split.name!r} has {len(unusable)} samples without a label or features in {samples.where}, "
            f"such as {samples.ids[unusable[0]]!r}"
        )
