"""Images with masks: which mask belongs to which image, and the dataset of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samtl.datasets.base import IGNORE, Dataset, Reader
from samtl.datasets.files.archive import LISTED, Tree, named
from samtl.datasets.files.coding import FEW, Coding, some, values_of
from samtl.datasets.files.layouts import Place
from samtl.errors import InputError
from samtl.images.codecs import BadImage, decode, decode_mask

SAMPLED = 16  # pairs that are decoded when a dataset is listed, before hours are spent on encoding


def paired(
    tree: Tree,
    layout: str,
    place: Place,
    key: Callable[[str], str],
    remedy: str,
) -> dict[str, tuple[str, str]]:
    """Match the images and masks of a place, which have the same key.

    `key` is computed from a file's path in its folder; `layout` and `remedy` say in messages what is expected, and what
    makes images and masks fit. Returns the names of each image and its mask in the tree, by the path of the image in
    its folder and in natural order. Raises InputError if there are no images or masks, or they are not one to one.
    """
    where = (
        f"{place.prefix.strip('/')!r} of {str(tree.path)!r}"
        if place.prefix
        else repr(str(tree.path))
    )
    by_key: list[dict[str, str]] = []
    folders = place.images, place.masks
    for what, folder, files in zip(("images", "masks"), folders, place.files(tree), strict=True):
        by_key.append({})
        for name in files:
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
            f"in {where} {len(bare)} of {len(images)} images have no mask ({some(bare, LISTED)}) and {len(lone)} of "
            f"{len(masks)} masks have no image ({some(lone, LISTED)}); {remedy}"
        )
    return {
        name: (f"{folders[0]}/{name}".strip("/"), f"{folders[1]}/{masks[key]}".strip("/"))
        for key, name in images.items()
    }


def with_masks(
    name: str,
    tree: Tree,
    pairs: Mapping[str, tuple[str, str]],
    coding: Coding,
    **fields: Any,
) -> Dataset:
    """Make a dataset of pairs, after decoding 16 of them.

    `pairs` maps sample ids to the names in the tree of an image and its mask; `fields` are others of `Dataset`. Raises
    InputError if most of the sampled masks do not have their image's size, or one has another coding than expected. A
    file that is damaged is no reason: the pass quarantines its row.
    """
    values = _check(tree, list(pairs.values())[:: -(-len(pairs) // SAMPLED)], coding)
    images, masks = ({name: pair[i] for name, pair in pairs.items()} for i in (0, 1))
    return Dataset(
        name=name,
        classes=coding.classes,
        sample_ids=tuple(pairs),
        labels=(-1,) * len(pairs),
        read=functools.partial(named, tree, images),
        read_mask=functools.partial(_read_mask, functools.partial(named, tree, masks), coding),
        readings=(*fields.pop("readings", ()), coding.reading(values)),
        **fields,
    )


def _read_mask(read: Reader, coding: Coding, sample_id: str) -> NDArray[np.uint8]:
    return coding.read(read(sample_id))


@dataclass(frozen=True)
class _Looked:
    """A mask that was decoded to see what it is."""

    mask: str
    values: set[int]  #: in the file; 0 and 255 if it is black and white with soft edges
    fits: bool  #: whether the coding reads it
    found: bool = False  #: whether there is foreground
    odd: str = ""  #: how its size differs from its image's


def _check(tree: Tree, pairs: Sequence[tuple[str, str]], coding: Coding) -> set[int]:
    """Refuse masks that were made for other images, or coded in another way; return the values in them."""
    looked = [one for pair in pairs if (one := _look(tree, *pair, coding))]
    sampled = f"{len(looked)} sampled masks in {tree.path}"
    if wrong := [one for one in looked if not one.fits]:
        raise InputError(
            f"{len(wrong)} of {sampled} have other values than {coding.expected}, such as {wrong[0].mask} with "
            f"{some(sorted(wrong[0].values))}; {coding.remedy([one.values for one in looked])}"
        )
    odd = [one.odd for one in looked if one.odd]
    if 2 * len(odd) > len(looked):
        raise InputError(
            f"{len(odd)} of {sampled} do not have their image's size: {some(odd, LISTED)}. "
            "Bring both to one size, or name the masks of these images"
        )
    values = set[int]().union(*(one.values for one in looked))
    # Values that the user named occur nowhere, while others than one do: a slip, not empty scenes.
    if not coding.light and len(values) > 1 and not any(one.found for one in looked):
        raise InputError(
            f"none of {sampled} has a pixel of the foreground: they hold the values {some(sorted(values))}; name other "
            "values with foreground= or classes="
        )
    return values


def _look(tree: Tree, image: str, mask: str, coding: Coding) -> _Looked | None:
    """Decode a mask; None if it or its image is damaged. Raises InputError if it is no mask at all."""
    try:
        data = tree.read(mask)
        try:
            classes = coding.read(data)
        except BadImage as bad:
            if bad.code != "mask_values":
                raise
            return _Looked(mask, {*values_of(decode_mask(data))}, fits=False)
        present = {*values_of(classes)}
        values = {*values_of(decode_mask(data))}
        if coding.light and len(values) > FEW:  # soft edges
            values = {0, 255}
        (height, width), (h, w) = decode(tree.read(image)).shape[:2], classes.shape
    except (OSError, InputError) as error:
        if getattr(error, "code", "") == "unsupported_mode":
            raise InputError(f"the mask {mask} in {tree.path} cannot be used: {error}") from error
        return None
    odd = f"{image} is {width} x {height}, its mask {w} x {h}"
    same = (height, width) == (h, w)
    return _Looked(mask, values, True, bool(present - {0, IGNORE}), "" if same else odd)
