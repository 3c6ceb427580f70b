"""Images with masks: which mask belongs to which image, and what its values mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from samtl.datasets.base import IGNORE, Dataset
from samtl.datasets.tree import Files, Tree
from samtl.errors import InputError
from samtl.images.codecs import BadImage, size
from samtl.images.decoder_process import decode_mask

# Masks whose values are looked at when a dataset is listed, before hours are spent on encoding.
SAMPLED = 16
LISTED = 3  # files that a message names
_UNKNOWN = -1


@dataclass(frozen=True)
class Coding:
    """What the values of a mask file mean.

    Attributes
    ----------
    classes : tuple of str
        The background first.
    table : tuple of int
        For each value from 0 to 255 its class, 255 where it is to be ignored, -1 where it must not occur.
    lookup : bool
        Whether the colours of a palette count, not its indices.
    """

    classes: tuple[str, ...]
    table: tuple[int, ...]
    lookup: bool = False

    def decode(self, values: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Turn the values of a mask file into class indices, of the same shape and dtype.

        Raises
        ------
        BadImage
            Of code `mask_values`, where a value has no meaning.
        """
        # Bytes, not numpy: an index of 8 bytes for each pixel would hold a large mask nine times.
        raw = values.tobytes()
        known = [v for v, meaning in enumerate(self.table) if meaning != _UNKNOWN]
        unknown = sorted(set(raw.translate(None, bytes(known))))
        if unknown:
            raise BadImage(
                "mask_values",
                f"a mask with no values but {_some(known)} was expected, this one has {_some(unknown)} too; name every "
                "class with its value, and the values to be ignored",
            )
        indices = raw.translate(bytes(max(meaning, 0) for meaning in self.table))
        return np.frombuffer(indices, np.uint8).reshape(values.shape)


def light(foreground: str, ignore: Sequence[int] = ()) -> Coding:
    """Make the coding of masks that are light where the foreground is: above 127 of 255."""
    table = [int(value > 127) for value in range(256)]
    return Coding(("background", foreground), _ignoring(table, ignore), lookup=True)


def valued(foreground: str, values: Sequence[int], ignore: Sequence[int] = ()) -> Coding:
    """Make the coding of masks with these values in the foreground and any others around it."""
    table = [int(value in values) for value in range(256)]
    return Coding(("background", foreground), _ignoring(table, ignore))


def indexed(classes: Mapping[str, int], ignore: Sequence[int] = ()) -> Coding:
    """Make the coding of masks with one value for each class and no others."""
    table = [_UNKNOWN] * 256
    for index, value in enumerate(classes.values()):
        table[value] = index
    return Coding(tuple(classes), _ignoring(table, ignore))


def _ignoring(table: list[int], ignore: Sequence[int]) -> tuple[int, ...]:
    for value in ignore:
        table[value] = IGNORE
    return tuple(table)


@dataclass(frozen=True)
class Masks:
    """Reads masks by the ids of their images; see `samtl.datasets.MaskReader`."""

    files: Files
    coding: Coding

    def __call__(self, sample_id: str) -> NDArray[np.uint8]:
        """Read one mask."""
        try:
            values = decode_mask(self.files(sample_id), lookup=self.coding.lookup)
        except BadImage as bad:
            raise BadImage("mask_unreadable", f"the image's mask cannot be used: {bad}") from bad
        return self.coding.decode(values)


def stem(name: str) -> str:
    """Give a file's path without its suffix."""
    return str(PurePosixPath(name).with_suffix(""))


def matched(
    images: Sequence[str],
    masks: Sequence[str],
    image_key: Callable[[str], str] = stem,
    mask_key: Callable[[str], str] = stem,
    *,
    where: str,
    remedy: str,
) -> dict[str, str]:
    """Find the mask of each image: the one with the same key.

    Parameters
    ----------
    images, masks : sequence of str
        Paths, relative to the folder of each.
    image_key, mask_key : callable
        What a path is known by.
    where, remedy : str
        For messages: what holds the files, and how images and masks are told to fit.

    Returns
    -------
    dict
        Each image with its mask, in the order of the images.

    Raises
    ------
    InputError
        Where images and masks are not one to one.
    """
    by_key = _keyed("masks", masks, mask_key, where)
    images_by_key = _keyed("images", images, image_key, where)
    alone = [
        f"{len(names)} of {len(of)} {what} ({_some(names)})"
        for what, names, of in (
            (
                "images have no mask",
                [n for k, n in images_by_key.items() if k not in by_key],
                images,
            ),
            (
                "masks have no image",
                [n for k, n in by_key.items() if k not in images_by_key],
                masks,
            ),
        )
        if names
    ]
    if alone:
        raise InputError(f"in {where} {' and '.join(alone)}; {remedy}")
    return {name: by_key[key] for key, name in images_by_key.items()}


def with_masks(
    name: str,
    tree: Tree,
    pairs: Mapping[str, tuple[str, str]],
    coding: Coding,
    *,
    note: str = "",
    groups: tuple[str, ...] = (),
    parts: tuple[str, ...] = (),
) -> Dataset:
    """Make a dataset of pairs, after a look at the headers of all files and into the first 16 masks.

    A file that is damaged does not stop this: the pass sets its row aside, with the reason.

    Parameters
    ----------
    name : str
    tree : Tree
    pairs : mapping
        Sample id to the names in the tree of its image and its mask.
    coding : Coding
    note, groups, parts
        As in `samtl.datasets.Dataset`.

    Raises
    ------
    InputError
        Where most masks are not of their image's size, or one of the first masks is of another kind or coding than the
        one expected.
    """
    _check_sizes(tree, pairs)
    _check_values(tree, [mask for _, mask in pairs.values()][:SAMPLED], coding)
    return Dataset(
        name=name,
        classes=coding.classes,
        sample_ids=tuple(pairs),
        labels=(-1,) * len(pairs),
        read=Files(tree, {sample_id: image for sample_id, (image, _) in pairs.items()}),
        note=note,
        read_mask=Masks(Files(tree, {sample_id: m for sample_id, (_, m) in pairs.items()}), coding),
        groups=groups,
        parts=parts,
    )


def _keyed(
    what: str, names: Sequence[str], key: Callable[[str], str], where: str
) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in names:
        first = found.setdefault(key(name), name)
        if first != name:
            raise InputError(
                f"in {where} two {what} are both known as {key(name)!r}, {first!r} and {name!r}, but an image has one "
                "mask; rename or remove one"
            )
    return found


def _check_sizes(tree: Tree, pairs: Mapping[str, tuple[str, str]]) -> None:
    """Refuse masks that were made for other images; of a few that do not fit, the pass sets the rows aside."""
    odd = []
    for image, mask in pairs.values():
        try:
            with tree.open(image) as file:
                height, width = size(file)
            with tree.open(mask) as file:
                mask_height, mask_width = size(file)
        except (OSError, InputError):
            continue
        if (height, width) != (mask_height, mask_width):
            odd.append(f"{image} is {width} x {height}, its mask {mask_width} x {mask_height}")
    if 2 * len(odd) > len(pairs):
        raise InputError(
            f"in {tree.path} {len(odd)} of {len(pairs)} masks are not of their image's size: "
            f"{'; '.join(odd[:LISTED])}{'; ...' * (len(odd) > LISTED)}. Bring both to one size, or name the masks of "
            "these images"
        )


def _check_values(tree: Tree, names: Sequence[str], coding: Coding) -> None:
    found, values = False, set[int]()
    for name in names:
        try:
            mask = decode_mask(tree.read(name), lookup=coding.lookup)
            classes = coding.decode(mask)
            found = found or bool(((classes > 0) & (classes != IGNORE)).any())
            values.update(np.unique(mask).tolist())
        except BadImage as bad:
            # Other codes are of damaged files; these two are of a wrong idea of all the masks.
            if bad.code in ("mask_values", "unsupported_mode"):
                raise InputError(f"the mask {name} in {tree.path} cannot be used: {bad}") from bad
        except (OSError, InputError):
            continue
    # Values, named by the user, that are nowhere, while others than one are: a slip, not empty scenes.
    if not found and not coding.lookup and len(values) > 1:
        raise InputError(
            f"none of the first {len(names)} masks in {tree.path} has a pixel of the foreground: they hold the values "
            f"{_some(sorted(values))}; name other values with foreground= or classes="
        )


def _some(things: Sequence[object]) -> str:
    return ", ".join(map(str, things[:LISTED])) + ", ..." * (len(things) > LISTED)
