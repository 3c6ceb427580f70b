"""What a dataset is to the rest of samtl: ids, labels, and the bytes of each image."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from samtl._runtime import hash_order
from samtl.errors import InputError
from samtl.images.transforms import IGNORE as IGNORE
from samtl.splits import PARTS as PARTS


class Reader(Protocol):
    """Gives the encoded bytes of one image."""

    def __call__(self, sample_id: str) -> bytes: ...


class MaskReader(Protocol):
    """Gives the target of one image: class indices, (height, width) uint8 of the image's size, 255 to be ignored."""

    def __call__(self, sample_id: str) -> NDArray[np.uint8]: ...


@dataclass(frozen=True)
class Dataset:
    """Labelled images, or images with masks, listed but not yet read.

    Attributes
    ----------
    name : str
        What stores made from it are called and what they are checked against; never a path.
    classes : tuple of str
        Class names; a label is an index into them.
    sample_ids : tuple of str
        One for each image: its path relative to the dataset's root, with `/`, unique.
    labels : tuple of int
        Class index of each image, -1 where there is none.
    read : callable
        `read(sample_id)` gives the image file's bytes. Thread-safe. Raises `OSError` or
        `InputError` for an image that cannot be read; the caller quarantines it.
    note : str
        What a reader of figures made from it must know, or "".
    read_mask : callable, optional
        `read_mask(sample_id)` gives the target where every pixel has a class; `labels` are all -1 then, and class 0
        is the background. Thread-safe. Raises `BadImage`, `OSError` or `InputError` where there is no usable mask.
    groups : tuple of str
        What each image was cut from (its scene), so that no split tears a scene apart; or empty.
    parts : tuple of str
        The part of the shipped split that each image is in, of `PARTS`; or empty.
    """

    name: str
    classes: tuple[str, ...]
    sample_ids: tuple[str, ...]
    labels: tuple[int, ...]
    read: Reader
    note: str = ""
    read_mask: MaskReader | None = None
    groups: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()

    @property
    def task(self) -> str:
        """Tell what is to be predicted: `classification` of images, or `segmentation` of their pixels."""
        return "classification" if self.read_mask is None else "segmentation"

    def __len__(self) -> int:
        return len(self.sample_ids)


def shuffled(dataset: Dataset) -> Dataset:
    """Put the images in an order that mixes classes and depends on nothing but their ids.

    Rows of a store are in this order (sha256 of the id): neighbours are of different classes, an
    interrupted pass is a fair sample of the whole, and training can read blocks in sequence.
    Subsets taken from its start nest.
    """
    return _take(dataset, hash_order(dataset.sample_ids))


def only(dataset: Dataset, sample_ids: Sequence[str]) -> Dataset:
    """Take the images with these ids, in this order.

    Raises
    ------
    InputError
        Where an id is none of the dataset's.
    """
    place = {sample_id: i for i, sample_id in enumerate(dataset.sample_ids)}
    absent = [sample_id for sample_id in sample_ids if sample_id not in place]
    if absent:
        raise InputError(
            f"{dataset.name} has no image for {len(absent)} of {len(sample_ids)} ids, the first is {absent[0]!r}: "
            "give the --dataset and --root that these were made from"
        )
    return _take(dataset, [place[sample_id] for sample_id in sample_ids])


def subset(dataset: Dataset, limit: int | None = None, per_class: int | None = None) -> Dataset:
    """Take the first images: `per_class` of each class, then at most `limit` in all.

    Given a shuffled dataset, subsets of growing size nest. Classes keep their names and labels.

    Parameters
    ----------
    dataset : Dataset
    limit : int, optional
        At most this many images in all.
    per_class : int, optional
        Exactly this many images of each class. Images without a label are left out.

    Raises
    ------
    InputError
        Where a count is below 1, a class has fewer than `per_class` images, or `per_class` is asked of masks.
    """
    for option, count in (("--limit", limit), ("--per-class", per_class)):
        if count is not None and count < 1:
            raise InputError(f"{option} must be at least 1, got {count}")
    if per_class is not None and dataset.read_mask is not None:
        raise InputError(
            f"--per-class counts images by their class, but in {dataset.name} every pixel has one; use --limit"
        )
    rows = list(range(len(dataset)))
    if per_class is not None:
        seen = [0] * len(dataset.classes)
        kept = []
        for i in rows:
            label = dataset.labels[i]
            if label >= 0 and seen[label] < per_class:
                seen[label] += 1
                kept.append(i)
        short = {name: n for name, n in zip(dataset.classes, seen, strict=True) if n < per_class}
        if short:
            have = ", ".join(f"{name} has {n}" for name, n in short.items())
            least = min(short.values())
            remedy = f"use --per-class {least} or less" if least else "add images of it"
            raise InputError(
                f"--per-class {per_class} needs that many images of every class, but {have}; {remedy}"
            )
        rows = kept
    return _take(dataset, rows[:limit])


def groups_by(sample_ids: Sequence[str], regex: str) -> tuple[str, ...]:
    r"""Name the group of each image, such as its scene, by what a regular expression finds in its id.

    Parameters
    ----------
    sample_ids : sequence of str
    regex : str
        Searched anywhere in an id. Its first group names the image's group, or all that it finds
        where it has no group: `tile(\d+)_`.

    Returns
    -------
    tuple of str
        One for each id, not empty.

    Raises
    ------
    InputError
        Where it is no regular expression, or finds nothing in an id.
    """
    try:
        pattern = re.compile(regex)
    except re.error as error:
        raise InputError(f"{regex!r} is no regular expression: {error}") from error
    found = []
    for sample_id in sample_ids:
        match = pattern.search(sample_id)
        name = match[1 if pattern.groups else 0] if match else None
        if not name:
            raise InputError(
                f"the regular expression {regex!r} must find something in every file's name, but it finds nothing in "
                f"{sample_id!r}"
            )
        found.append(name)
    return tuple(found)


def _take(dataset: Dataset, rows: Sequence[int]) -> Dataset:
    return replace(
        dataset,
        sample_ids=tuple(dataset.sample_ids[i] for i in rows),
        labels=tuple(dataset.labels[i] for i in rows),
        groups=tuple(dataset.groups[i] for i in rows) if dataset.groups else (),
        parts=tuple(dataset.parts[i] for i in rows) if dataset.parts else (),
    )
