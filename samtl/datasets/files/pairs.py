"""Images with masks: which mask belongs to which image, and the dataset of them."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samtl.datasets.base import IGNORE, Dataset
from samtl.datasets.files.archive import LISTED, named
from samtl.datasets.files.coding import FEW, MANY, Coding, colours_in, values_of
from samtl.datasets.files.layouts import Place
from samtl.datasets.files.listing import FolderTree, Tree, some
from samtl.errors import InputError
from samtl.images.bands import Reading
from samtl.images.codecs import prepare

SAMPLED = 16  # pairs that are decoded when a dataset is listed, before hours are spent on encoding


def paired(
    tree: Tree,
    layout: str,
    place: Place,
    keys: Sequence[Callable[[str], str]],
    remedy: str,
) -> dict[str, tuple[str, str]]:
    """Match the images and masks of a place, which have the same key.

    `keys` are computed from a file's path in its folder; the first counts that fits all images and masks one to one.
    `layout` and `remedy` say in messages what is expected, and what makes images and masks fit. Returns the names of
    each image and its mask in the tree, by the path of the image in its folder and in natural order. Raises InputError
    if there are no images or masks, or no key fits.
    """
    listed, folders = place.files(tree), (place.images, place.masks)
    key = next((key for key in keys if _fits(key, *listed)), keys[0])
    where = f"{place.prefix.strip('/')!r} of " * bool(place.prefix) + repr(str(tree.path))
    by_key: list[dict[str, str]] = []
    for what, folder, files in zip(("images", "masks"), folders, listed, strict=True):
        by_key.append({})
        for name in files:
            if (other := by_key[-1].setdefault(key(name), name)) != name:
                raise InputError(
                    f"in {where} two {what} are both known as {key(name)!r}, {other!r} and {name!r}, but an image has "
                    "one mask; rename or remove one"
                )
        if not files:
            raise InputError(f"{where} has no {what} in {folder!r}; {layout}")
    images, masks = by_key
    bare = [name for own, name in images.items() if own not in masks]
    lone = [name for own, name in masks.items() if own not in images]
    if bare or lone:
        raise InputError(
            f"in {where} {len(bare)} of {len(images)} images have no mask ({some(bare, LISTED)}) and {len(lone)} of "
            f"{len(masks)} masks have no image ({some(lone, LISTED)}); {remedy}"
        )
    return {
        name: (f"{folders[0]}/{name}".strip("/"), f"{folders[1]}/{masks[own]}".strip("/"))
        for own, name in images.items()
    }


def _fits(key: Callable[[str], str], images: Sequence[str], masks: Sequence[str]) -> bool:
    own = {*map(key, images)}
    return len(own) == len(images) == len(masks) and own == {*map(key, masks)}


def with_masks(
    name: str,
    tree: Tree,
    pairs: Mapping[str, tuple[str, str]],
    coding: Coding,
    readings: Sequence[str] = (),
    **fields: Any,
) -> Dataset:
    """Make a dataset of pairs, after decoding 16 of them.

    `pairs` maps sample ids to the names in the tree of an image and its mask; `fields` are others of `Dataset`. Raises
    InputError if most of the sampled masks do not have their image's size, or one has another coding than expected. A
    file that is damaged is no reason: the pass quarantines its row.
    """
    images, masks = ({name: pair[i] for name, pair in pairs.items()} for i in (0, 1))
    tops = {name.partition("/")[:2] for pair in pairs.values() for name in pair}
    # What is written beside `images` and `masks` is not listed.
    listed = len(tops) == 1 or any(not slash for _, slash in tops)
    dataset = Dataset(
        name=name,
        classes=coding.classes,
        sample_ids=tuple(pairs),
        labels=(-1,) * len(pairs),
        read=functools.partial(named, tree, images),
        read_mask=functools.partial(_read_mask, tree, masks, coding),
        readings=tuple(readings),
        root=tree.path if listed and isinstance(tree, FolderTree) else None,
        **fields,
    )
    sampled = list(pairs.values())[:: -(-len(pairs) // SAMPLED)]
    told = _check(tree, sampled, coding, dataset.reading)
    return replace(dataset, readings=(*readings, told))


def _read_mask(
    tree: Tree, masks: Mapping[str, str], coding: Coding, sample_id: str
) -> NDArray[np.uint8]:
    return coding.read(named(tree, masks, sample_id))


def _check(tree: Tree, pairs: Sequence[tuple[str, str]], coding: Coding, reading: Reading) -> str:
    """Refuse masks that were made for other images, or coded in another way; say what values in them were taken for."""
    stored, wrong, odd, found = dict[str, set[Any]](), list[str](), list[str](), False
    for image, mask in pairs:
        try:
            data = tree.read(mask)
            values = coding.values(data)
            classes, told = coding.decode(values), coding.told(data, values)
        except (OSError, InputError) as error:
            code = getattr(error, "code", "")
            if code == "unsupported_mode":
                raise InputError(
                    f"the mask {mask} in {tree.path} cannot be used: {error}{_remedy(tree, pairs)}"
                ) from error
            if code == "mask_values":
                wrong.append(mask)
                stored[mask] = coding.told(data)
            continue  # if it is damaged, the pass will say so
        stored[mask] = {0, 255} if coding.light and len(told) > FEW else told  # soft edges
        found = found or not {*values_of(classes)} <= {0, IGNORE}
        with contextlib.suppress(OSError, InputError):  # the image's own trouble
            (height, width), own = prepare(tree.read(image), 1, reading).size, classes.shape
            if (height, width) != own:
                odd.append(f"{image} is {width} x {height}, its mask {own[1]} x {own[0]}")
    sampled = f"{len(stored)} sampled masks in {tree.path}"
    if wrong:
        raise InputError(
            f"{len(wrong)} of {sampled} have other values than {coding.expected}, such as {wrong[0]} with "
            f"{some(sorted(stored[wrong[0]]))}; {coding.remedy([*stored.values()])}"
        )
    if 2 * len(odd) > len(stored):
        raise InputError(
            f"{len(odd)} of {sampled} do not have their image's size: {some(odd, LISTED)}. "
            "Bring both to one size, or name the masks of these images"
        )
    every = set[Any]().union(*stored.values())
    # Values that the user named occur nowhere, while others than one do: a slip, not empty scenes.
    if not coding.light and len(every) > 1 and not found:
        raise InputError(
            f"none of {sampled} has a pixel of the foreground: they hold the values {some(sorted(every))}; name other "
            "values with foreground= or classes="
        )
    return coding.reading(every)


def _remedy(tree: Tree, pairs: Sequence[tuple[str, str]]) -> str:
    """Say which option reads masks if they are coded in colours."""
    colours = set[str]()
    for _, mask in pairs:
        with contextlib.suppress(OSError, InputError):
            colours.update(colours_in(tree.read(mask)))
    if not 2 <= len(colours) <= MANY:
        return ""
    first, *others = sorted(colours)
    named = ",".join(f"class{i}:{colour}" for i, colour in enumerate(others, 1))
    return f"; or say what its colours mean, as in masks:PATH?classes=background:{first},{named}"
