"""What a dataset is to the rest of samtl: ids, labels, and the bytes of each image."""

from __future__ import annotations

import functools
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samtl._runtime import hash_order
from samtl.errors import InputError
from samtl.images.bands import BYTES, RGB, UNITS, Reading, common_names, require_units, told_range
from samtl.images.codecs import bands_of, decode, decode_bands, prepare
from samtl.images.transforms import IGNORE as IGNORE
from samtl.splits import PARTS as PARTS
from samtl.splits.labels import class_counts, known, label_array

Reader = Callable[[str], bytes]  # from a sample's id to the bytes of its image file
MaskReader = Callable[[str], NDArray[np.uint8]]  # to the classes of its pixels, (height, width)

_COLUMNS = ("sample_ids", "labels", "groups", "parts")  # of a dataset, for each image
# Control characters, line separators and halves of surrogate pairs: no table, log or terminal keeps them.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


@dataclass(frozen=True)
class LeftOut:
    """Files in a dataset's folder or archive that are no images of it."""

    what: str  #: what they are, such as ".gif files"
    count: int
    examples: tuple[str, ...]  #: names of the first few, relative to the root

    def __str__(self) -> str:
        return f"{self.count} {self.what}"


@dataclass(frozen=True)
class Understood:
    """What the files of a dataset were taken for: counts of all, and a look at a few images and masks."""

    images: int
    #: Images of each class, in the order of the classes; {} if every pixel has a class.
    classes: dict[str, int]
    unlabelled: int  #: images without a label; 0 if there are masks
    groups: int  #: 0 if images have no group
    parts: dict[str, int]  #: images of each part of the published split; {} if there is none
    #: Files that are no images of it, largest number first.
    left_out: tuple[LeftOut, ...]
    readings: tuple[str, ...]  #: what the layout and the names were taken for, a sentence each
    looked_at: int  #: images that were read to learn what follows, evenly spaced in the order of the dataset
    bands: dict[str, int]  #: how many of these have bands of a kind, such as "RGB": 15
    values: str  #: the range of values in these; "" if they are RGB of 8 bits
    unusable: int  #: how many of these, or their masks, cannot be used
    trouble: str  #: what is wrong with the first of these, or ""
    #: Share of the pixels of each class in the masks looked at, from 0 to 1, without ignored ones; {} without masks.
    pixels: dict[str, float]
    ignored: float  #: share of their pixels that are ignored
    empty: int  #: how many of these masks have no pixel of the foreground


@dataclass(frozen=True)
class Dataset:
    """Labelled images, or images with masks, listed but not yet read.

    Attributes
    ----------
    name : str
        Names the stores made from it and is checked against them; of letters, digits, `.`, `_` and `-`.
    classes : tuple of str
        Class names, unique; a label is an index into them. If labels are numbers, what they are called.
    sample_ids : tuple of str
        One for each image, unique: its path relative to the dataset's root, with `/`.
    labels : tuple
        What is known of each image: a class index, -1 if it has none; or all class indices that apply, a tuple, None if
        that is not known; or a number, a float, NaN if there is none. They are of one kind.
    read : callable
        `read(sample_id)` returns the image file's bytes. Thread-safe. It raises `OSError` or `InputError` for an image
        that cannot be read; the caller quarantines it.
    note : str
        What a reader of figures made from it must know, or "".
    read_mask : callable, optional
        `read_mask(sample_id)` returns the target if every pixel has a class; then `labels` are all -1, and class 0 is
        the background. Thread-safe. It raises `BadImage`, `OSError` or `InputError` if there is no usable mask.
    groups : tuple of str
        What each image was cut from (its scene), so that no split divides a scene; or empty.
    parts : tuple of str
        The part of the published split that each image is in, of `PARTS`; or empty.
    left_out : tuple of LeftOut
        Files beside the images that are no images of the dataset.
    readings : tuple of str
        What the layout and the names were taken for, a sentence each, for whoever checks a plan.
    bands : tuple of str
        Bands of the images by their common names, such as `red`, `nir` or `B08`. Unless they are red, green and blue of
        8 bits, image files are TIFFs or JPEG 2000 with just these bands, of any dtype.
    units : str
        What their values are: `0 to 255`, `reflectance x 10000` or `reflectance`.
    taken : tuple of int
        Positions of the bands that an encoder takes; see `taking`. Empty if it takes all.
    root : Path, optional
        A folder whose sub-folders are listed, so that nothing may be written into it.

    Raises
    ------
    InputError
        If the fields do not fit each other, or a name cannot be printed.
    """

    name: str
    classes: tuple[str, ...]
    sample_ids: tuple[str, ...]
    labels: tuple[Any, ...]
    read: Reader
    note: str = ""
    read_mask: MaskReader | None = None
    groups: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    readings: tuple[str, ...] = ()
    root: Path | None = None
    bands: tuple[str, ...] = RGB
    units: str = BYTES
    taken: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("classes", *_COLUMNS):
            given = getattr(self, name)
            fixed = tuple(given.tolist() if isinstance(given, np.ndarray) else given)
            object.__setattr__(self, name, fixed)
        object.__setattr__(self, "bands", common_names(self.bands))
        require_units(self.units)
        n, count, masked = len(self.sample_ids), len(self.classes), self.read_mask is not None
        texts: tuple[Any, ...] = (*self.sample_ids, *self.classes, *self.groups)
        every = (self.name, self.note, *self.parts, *texts)
        if foreign := [text for text in every if not isinstance(text, str)]:
            raise InputError(f"the dataset must have names that are text, not {foreign[0]!r}")
        found = _UNPRINTABLE.search("".join(texts))
        unprintable = found and next(filter(_UNPRINTABLE.search, texts))
        # Names that look alike are one class that was written in two ways.
        looks: dict[str, list[str]] = {}
        for name in self.classes:
            looks.setdefault(unicodedata.normalize("NFC", name).strip().casefold(), []).append(name)
        alike = [names for names in looks.values() if len(names) > 1]
        bad = None  # an id that is there twice, or empty
        if len({*self.sample_ids, ""}) <= n:
            bad = Counter([*self.sample_ids, *[""] * ("" in self.sample_ids)]).most_common(1)[0][0]
        allowed, odd = _ALLOWED[self.task]
        strange = [label for label in dict.fromkeys(self.labels) if not allowed(label, count)]
        rules = {
            "a name of letters, digits, '.', '_' and '-'": re.fullmatch(r"\w[\w.-]*", self.name),
            f"one label for each of its {n} images, not {len(self.labels)}": len(self.labels) == n,
            f"no control characters in names: {unprintable!a}": unprintable is None,
            "a name for each class": "" not in looks,
            "classes that differ by more than upper and lower case and spaces around them, not "
            f"{', '.join(map(ascii, (*alike, ())[0]))}: make them one": not alike,
            f"each image once and named, not {bad!a}": bad is None,
            "a function that reads an image": callable(self.read),
            f"{odd.format(count - 1)}, not {strange[:3]}": not strange,
            f"one class, named like its numbers, not {count}": self.task != "regression"
            or count == 1,
            "no ';' in classes of which an image has several": self.task != "multilabel"
            or not any(";" in name for name in self.classes),
            # Above, a class would have the number that says "ignore".
            f"2 to {IGNORE} classes for its masks": not masked or 2 <= count <= IGNORE,
            f"groups for all {n} images or none": len(self.groups) in (0, n),
            f"parts for all {n} images or none": len(self.parts) in (0, n),
            f"no parts but {', '.join(PARTS)}": set(self.parts) <= set(PARTS),
        }
        for told, holds in rules.items():
            if not holds:
                raise InputError(f"the dataset {self.name!a} must have {told}")

    @functools.cached_property
    def task(self) -> str:
        """`classification`, `multilabel` or `regression` of images, or `segmentation` of their pixels."""
        first = self.labels[0] if self.labels else -1
        if self.read_mask is not None:
            return "segmentation"
        if isinstance(first, float):
            return "regression"
        return "multilabel" if first is None or isinstance(first, tuple) else "classification"

    @property
    def reading(self) -> Reading:
        """How the bands that are taken come out of an image file."""
        pictures = (self.bands, self.units) == (RGB, BYTES)
        return Reading(
            0 if pictures else len(self.bands), self.taken or tuple(range(len(self.bands)))
        )

    def taking(self, bands: Sequence[str], units: str) -> Dataset:
        """Let an encoder take these bands, in this order; InputError names what the images do not have."""
        absent = [name for name in bands if name not in self.bands]
        if absent:
            also = "" if self.reading.count else ", or say with ?bands= what they have"
            raise InputError(
                f"the encoder takes {', '.join(bands)}; images of {self.name} have {', '.join(self.bands)}, and so no "
                f"{', '.join(absent)}: choose bands that they have with --bands, or another encoder{also}"
            )
        if units != self.units:
            raise InputError(
                f"pixels in units of {units} were expected, those of {self.name} are {self.units}"
            )
        return replace(self, taken=tuple(self.bands.index(name) for name in bands))

    def picture(self, sample_id: str) -> NDArray[np.uint8]:
        """Decode an image as it is shown, (H, W, 3): red, green and blue of 8 bits, see `samtl.images.bands.UNITS`.

        Raises what `read` raises, BadImage, and InputError if the images have no such bands.
        """
        if not self.reading.count:
            return decode(self.read(sample_id))
        shown = self.taking(RGB, self.units).reading
        levels = decode_bands(self.read(sample_id), shown) / UNITS[self.units]
        return levels.round().clip(0, 255).astype(np.uint8)

    @property
    def truth(self) -> NDArray[Any]:
        """The labels as an array; see `samtl.splits.labels.label_array`."""
        return label_array(self.task, self.labels, len(self.classes))

    def __len__(self) -> int:
        return len(self.sample_ids)

    def require_outside(self, place: Path | str) -> None:
        """Raise InputError if what is written to a place, a str in a bucket, would be listed the next time."""
        root = self.root
        if root and isinstance(place, Path) and place.resolve().is_relative_to(root.resolve()):
            raise InputError(
                f"{place} would be in the dataset's folder {root}, and the dataset another one the next time; name a "
                "folder beside it with --out"
            )

    def understood(self, sample: int = 16) -> Understood:
        """Describe what the dataset was taken for; `sample` images and their masks are read.

        A file that cannot be read or used is counted, and raises nothing.
        """
        masked = self.read_mask is not None
        ids = self.sample_ids[:: max(1, -(-len(self) // sample))]
        bands, pixels, empty, trouble = Counter[str](), np.zeros(256, np.int64), 0, list[str]()
        ranges: list[NDArray[np.float32]] = []
        for sample_id in ids:
            try:
                data = self.read(sample_id)
                if self.reading.count:
                    found = prepare(data, 1, replace(self, taken=()).reading).statistics
                    bands[", ".join(self.bands)] += 1
                    ranges.append(found.reshape(4, -1)[2:])
                else:
                    bands[bands_of(data)] += 1
                if self.read_mask is not None:
                    counts = np.bincount(self.read_mask(sample_id).ravel(), minlength=256)
                    pixels += counts
                    empty += not counts[1:IGNORE].any()
            except (OSError, InputError) as error:
                trouble.append(f"{sample_id}: {error}")
        counted = pixels[:IGNORE].sum()
        return Understood(
            images=len(self),
            classes={} if masked else class_counts(self.truth, self.classes),
            unlabelled=0 if masked else int((~known(self.truth)).sum()),
            groups=len(set(self.groups)),
            parts=dict(Counter(self.parts)),
            left_out=self.left_out,
            readings=self.readings,
            looked_at=len(ids),
            bands=dict(bands.most_common()),
            values=told_range(np.array(ranges), self.units) if ranges else "",
            unusable=len(trouble),
            trouble=trouble[0] if trouble else "",
            pixels={
                name: float(pixels[i] / counted) if counted else 0.0
                for i, name in enumerate(self.classes if masked else ())
            },
            ignored=float(pixels[IGNORE] / max(1, pixels.sum())),
            empty=empty,
        )


#: For each task, whether something may be a label beside so many classes, and what it may be.
_ALLOWED: dict[str, tuple[Callable[[Any, int], bool], str]] = {
    "classification": (lambda label, k: label in range(-1, k), "labels from -1 to {}"),
    "segmentation": (lambda label, k: label == -1, "labels -1 beside masks"),
    "multilabel": (
        lambda label, k: (
            label is None or (isinstance(label, tuple) and set(label) <= set(range(k)))
        ),
        "labels that are tuples of numbers from 0 to {}, or None",
    ),
    "regression": (
        lambda label, k: isinstance(label, float) and not math.isinf(label),
        "labels that are finite numbers, or NaN",
    ),
}


def shuffled(dataset: Dataset) -> Dataset:
    """Order the images by the sha256 of their ids, which mixes classes.

    Rows of a store are in this order: an interrupted pass is a fair sample of the whole, and training can read
    blocks in sequence. Subsets taken from its start nest.
    """
    return _take(dataset, hash_order(dataset.sample_ids))


def only(dataset: Dataset, sample_ids: Sequence[str]) -> Dataset:
    """Take the images with these ids, in this order; raises InputError if an id is not in the dataset."""
    place = {sample_id: i for i, sample_id in enumerate(dataset.sample_ids)}
    absent = [sample_id for sample_id in sample_ids if sample_id not in place]
    if absent:
        raise InputError(
            f"{dataset.name} has no image for {len(absent)} of {len(sample_ids)} ids, the first is {absent[0]!r}: "
            "use the --dataset and --root that these were made from"
        )
    return _take(dataset, [place[sample_id] for sample_id in sample_ids])


def subset(dataset: Dataset, limit: int | None = None, per_class: int | None = None) -> Dataset:
    """Take the first `per_class` images of each class, then at most `limit` in all; subsets of growing size nest.

    With `per_class`, images without a label are left out. Raises InputError if a count is below 1, a class has fewer
    images, or the dataset has masks and `per_class` is set.
    """
    for option, count in (("--limit", limit), ("--per-class", per_class)):
        if count is not None and count < 1:
            raise InputError(f"{option} must be at least 1, got {count}")
    if per_class is not None and (dataset.task != "classification" or not dataset.classes):
        raise InputError(
            f"--per-class counts images by their class, but those of {dataset.name} do not have one each "
            f"({dataset.task}); use --limit"
        )
    if per_class is None:
        return _take(dataset, range(len(dataset))[:limit])
    labels = np.array(dataset.labels)
    chosen = [np.flatnonzero(labels == i)[:per_class] for i in range(len(dataset.classes))]
    least, name = min((len(rows), name) for rows, name in zip(chosen, dataset.classes, strict=True))
    if least < per_class:
        remedy = f"use --per-class {least} or less" if least else "add images of it"
        raise InputError(
            f"--per-class {per_class} needs that many images of every class, but {name} has {least}; {remedy}"
        )
    return _take(dataset, np.sort(np.concatenate(chosen)).tolist()[:limit])


def groups_by(sample_ids: Sequence[str], regex: str) -> tuple[str, ...]:
    r"""Derive the group of each image, such as its scene, from its id with a regular expression.

    It is searched anywhere in an id; its first group, or the whole match if it has none, is the image's group, as in
    `tile(\d+)_`. Raises InputError if it is no regular expression, or finds nothing in an id.
    """
    try:
        pattern = re.compile(regex)
    except re.error as error:
        raise InputError(f"{regex!r} is no regular expression: {error}") from error
    matches = map(pattern.search, sample_ids)
    found = tuple((match and match[min(pattern.groups, 1)]) or "" for match in matches)
    if "" in found:
        raise InputError(
            f"the regular expression {regex!r} must find something in every file's name, but it finds nothing in "
            f"{sample_ids[found.index('')]!r}"
        )
    return found


def _take(dataset: Dataset, rows: Sequence[int]) -> Dataset:
    columns: dict[str, Any] = {name: getattr(dataset, name) for name in _COLUMNS}
    taken: dict[str, Any] = {name: [of[i] for i in rows] for name, of in columns.items() if of}
    return replace(dataset, **taken)
