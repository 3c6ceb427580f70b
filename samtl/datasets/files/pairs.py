"""Images with masks: which mask belongs to which image, and what its values mean."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from samtl.datasets.base import IGNORE, Dataset, Reader
from samtl.datasets.files.archive import Tree, named
from samtl.errors import InputError
from samtl.images.codecs import BadImage, decode, decode_mask

SAMPLED = 16  # pairs that are decoded when a dataset is listed, before hours are spent on encoding
LISTED = 3  # files that a message names
# Masks of so few values hold classes, not the soft edges of a resampled mask.
_FEW, _MIDDLE = 4, range(64, 192)


@dataclass(frozen=True)
class Coding:
    """What the values of a mask file mean.

    `classes` begins with the background. `table` holds the class of each value from 0 to 255: 255 if it is to be
    ignored, -1 if it must not occur. `light` masks are light where the foreground is, whatever number a file stores.
    """

    classes: tuple[str, ...]
    table: tuple[int, ...]
    light: bool = False

    def read(self, data: bytes) -> NDArray[np.uint8]:
        """Decode a mask file to class indices, (height, width) uint8; raises BadImage."""
        if not self.light:
            return self.decode(decode_mask(data))
        try:
            shown = decode_mask(data, lookup=True)
            if not self._holds_classes(shown):
                return self.decode(shown)
        except BadImage as bad:
            if bad.code != "unsupported_mode":  # a palette of colours holds numbers of classes, too
                raise
        values = np.unique(decode_mask(data)).tolist()
        option = f"classes={','.join(f'class{i}:{value}' for i, value in enumerate(values[:8]))}"
        if len(values) == 2 and values[0] == 0:
            option = f"foreground={values[1]}"
        raise BadImage(
            "mask_values",
            f"a mask of 0 (background) and 255 (foreground) was expected, this one holds {_some(values)}; name the "
            f"values as in masks:PATH?{option}",
        )

    def decode(self, values: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Turn the values of a mask file into class indices, of the same shape and dtype."""
        # Bytes, not numpy: an index of 8 bytes for each pixel would hold a large mask nine times.
        raw = values.tobytes()
        known = [value for value, meaning in enumerate(self.table) if meaning >= 0]
        unknown = sorted(set(raw.translate(None, bytes(known))))
        if unknown:
            raise BadImage(
                "mask_values",
                f"a mask with no values but {_some(known)} was expected, this one has {_some(unknown)} too; name every "
                "class with its value, and the values to be ignored",
            )
        indices = raw.translate(bytes(max(meaning, 0) for meaning in self.table))
        return np.frombuffer(indices, np.uint8).reshape(values.shape)

    def _holds_classes(self, shown: NDArray[np.uint8]) -> bool:
        """Return whether the greys of a mask are numbers of classes, not background and foreground."""
        values = [v for v in np.unique(shown).tolist() if self.table[v] != IGNORE]
        if values in ([], [0]):
            return False
        return values[-1] <= 127 or (len(values) <= _FEW and any(v in _MIDDLE for v in values))


def coded(
    classes: Iterable[str], meaning: Callable[[int], int], ignore: Sequence[int] = ()
) -> Coding:
    """Make a coding from the class that each value from 0 to 255 means, -1 if it must not occur."""
    table = (IGNORE if value in ignore else meaning(value) for value in range(256))
    return Coding(tuple(classes), tuple(table))


def light(foreground: str, ignore: Sequence[int] = ()) -> Coding:
    """Make the coding of masks that are light where the foreground is: above 127 of 255."""
    coding = coded(("background", foreground), lambda value: int(value > 127), ignore)
    return replace(coding, light=True)


def located(tree: Tree, layout: str, *kinds: frozenset[str], below: str = "") -> list[str]:
    """Find one folder of each kind beside each other, in the folder `below` or in the only folder in it.

    A kind is the set of the names, in lower case, that its folder may have. Returns the path of each folder; raises
    InputError, which describes the expected `layout`, if a kind has no folder or several.
    """
    names, here = tree.folders(below), below
    if len(names) == 1 and not any(names[0].lower() in kind for kind in kinds):
        here = f"{below}/{names[0]}".strip("/")
        names = tree.folders(here)
    found = []
    for kind in kinds:
        fitting = [name for name in names if name.lower() in kind]
        if len(fitting) != 1:
            came = f"the folders {', '.join(map(repr, names[:8]))}" if names else "no folder"
            raise InputError(
                f"{str(tree.path)!r} has {came}{f' in {here!r}' if here else ''}, and exactly one called "
                f"{' or '.join(sorted(kind))} was expected; {layout}"
            )
        found.append(f"{here}/{fitting[0]}".strip("/"))
    return found


def stem(name: str) -> str:
    """Return a file's path without its suffix."""
    return str(PurePosixPath(name).with_suffix(""))


def paired(
    tree: Tree,
    layout: str,
    kinds: Sequence[frozenset[str]],
    key: Callable[[str], str],
    remedy: str,
    below: str = "",
) -> dict[str, tuple[str, str]]:
    """Find images and their masks, which have the same key, in two folders beside each other.

    `kinds` are the names that the folders may have, see `located`; `key` is computed from a file's path in its folder;
    `layout` and `remedy` say in messages what is expected, and what makes images and masks fit. Returns the names of
    each image and its mask in the tree, by the path of the image in its folder and in natural order. Raises InputError
    if there are no images or masks, or they are not one to one.
    """
    folders = located(tree, layout, *kinds, below=below)
    where = f"{below!r} of {str(tree.path)!r}" if below else repr(str(tree.path))
    by_key: list[dict[str, str]] = []
    for what, folder in zip(("images", "masks"), folders, strict=True):
        by_key.append({})
        for name in tree.images(folder):
            own = key(name)
            if own in by_key[-1]:
                raise InputError(
                    f"in {where} two {what} are both known as {own!r}, {by_key[-1][own]!r} and {name!r}, but an image "
                    "has one mask; rename or remove one"
                )
            by_key[-1][own] = name
        if not by_key[-1]:
            raise InputError(f"{where} has no {what} in {folder!r}; {layout}")
    images, masks = by_key
    bare = [name for key, name in images.items() if key not in masks]
    lone = [name for key, name in masks.items() if key not in images]
    if bare or lone:
        raise InputError(
            f"in {where} {len(bare)} of {len(images)} images have no mask ({_some(bare)}) and {len(lone)} of "
            f"{len(masks)} masks have no image ({_some(lone)}); {remedy}"
        )
    return {
        name: (f"{folders[0]}/{name}", f"{folders[1]}/{masks[key]}") for key, name in images.items()
    }


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
    """Make a dataset of pairs, after decoding 16 of them.

    `pairs` maps sample ids to the names in the tree of an image and its mask; `note`, `groups` and `parts` are those of
    `Dataset`. Raises InputError if most of the sampled masks do not have their image's size, or one has another coding
    than expected. A file that is damaged is no reason: the pass quarantines its row.
    """
    _check(tree, list(pairs.values())[:: -(-len(pairs) // SAMPLED)], coding)
    images, masks = ({name: pair[i] for name, pair in pairs.items()} for i in (0, 1))
    return Dataset(
        name=name,
        classes=coding.classes,
        sample_ids=tuple(pairs),
        labels=(-1,) * len(pairs),
        read=functools.partial(named, tree, images),
        note=note,
        read_mask=functools.partial(_read_mask, functools.partial(named, tree, masks), coding),
        groups=groups,
        parts=parts,
    )


def _read_mask(read: Reader, coding: Coding, sample_id: str) -> NDArray[np.uint8]:
    return coding.read(read(sample_id))


def _check(tree: Tree, pairs: Sequence[tuple[str, str]], coding: Coding) -> None:
    """Refuse masks that were made for other images, or coded in another way."""
    odd, found, values = list[str](), False, set[int]()
    for image, mask in pairs:
        try:
            classes = coding.read(tree.read(mask))
            values.update(np.unique(decode_mask(tree.read(mask))).tolist())
            found = found or bool(((classes > 0) & (classes != IGNORE)).any())
            size = decode(tree.read(image)).shape[:2]
        except (OSError, InputError) as error:
            if getattr(error, "code", "") in ("mask_values", "unsupported_mode"):
                raise InputError(
                    f"the mask {mask} in {tree.path} cannot be used: {error}"
                ) from error
            continue  # other codes are of damaged files
        if size != classes.shape:
            (height, width), (h, w) = size, classes.shape
            odd.append(f"{image} is {width} x {height}, its mask {w} x {h}")
    if 2 * len(odd) > len(pairs):
        raise InputError(
            f"in {tree.path} {len(odd)} of {len(pairs)} sampled masks do not have their image's size: {_some(odd)}. "
            "Bring both to one size, or name the masks of these images"
        )
    # Values that the user named occur nowhere, while others than one do: a slip, not empty scenes.
    if not found and not coding.light and len(values) > 1:
        raise InputError(
            f"none of {len(pairs)} sampled masks in {tree.path} has a pixel of the foreground: they hold the values "
            f"{_some(sorted(values))}; name other values with foreground= or classes="
        )


def _some(things: Sequence[object]) -> str:
    return ", ".join(map(str, things[:LISTED])) + ", ..." * (len(things) > LISTED)
