"""Where images and their masks are: folders beside each other, in parts or not, or files side by side."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from samtl.datasets.base import PARTS
from samtl.datasets.files.listing import PART_NAMES, Tree, some
from samtl.errors import InputError

IMAGES = frozenset({"images", "image", "img", "sat"})
MASKS = frozenset({"masks", "mask", "labels", "label", "map", "gt"})
# The second pair is only looked for if the first is not there.
_KINDS = (IMAGES, MASKS), (frozenset({"input"}), frozenset({"output"}))
_KNOWN = {*PART_NAMES}.union(*(names for pair in _KINDS for names in pair))
# Ends of the names of images and masks, and of folders beside those of parts.
_IMAGE_END = re.compile(r"[_-](sat|images?|img|rgb)$", re.IGNORECASE)
_MASK_END = re.compile(r"[_-](masks?|labels?|map|gt)$", re.IGNORECASE)


@dataclass(frozen=True)
class Place:
    """A folder of images and one of their masks, the same if they are side by side."""

    images: str
    masks: str
    prefix: str = ""  #: what ids begin with
    part: str = ""  #: of the published split, or ""

    def files(self, tree: Tree) -> tuple[list[str], list[str]]:
        """List images and masks, relative to their folders."""
        images = tree.images(self.images)
        if self.images != self.masks:
            return images, tree.images(self.masks)
        masks = dict.fromkeys(name for name in images if _MASK_END.search(stem(name)))
        return [name for name in images if name not in masks], [*masks]

    @property
    def keys(self) -> list[Callable[[str], str]]:
        """What the names of an image and of its mask have in common, the next if the first does not fit."""
        return [stem, _without_end] if self.images != self.masks else [_without_end]


def find_places(tree: Tree, layout: str) -> list[Place]:
    """Find the images and masks in a tree, or in the only folder in it.

    Raises InputError, which describes the expected `layout`, if it is none that is known.
    """
    here, names = "", tree.folders()
    if len(names) == 1 and names[0].lower() not in _KNOWN:
        here, names = names[0], tree.folders(names[0])
    if kinds := _beside(names):
        return [Place(*_one_of_each(tree, layout, here, names, kinds))]
    parts = {name: PART_NAMES.get(_IMAGE_END.sub("", name).lower(), "") for name in names}
    if not any(parts.values()):
        if any(_MASK_END.search(stem(name)) for name in tree.images(here, deep=False)):
            return [Place(here, here)]
        _one_of_each(tree, layout, here, names, _KINDS[0])
    found = []
    for name in sorted(filter(parts.get, names), key=lambda name: PARTS.index(parts[name])):
        folder = _join(here, name)
        inner = tree.folders(folder)
        images, masks = folder, folder
        if kinds := _beside(inner):
            images, masks = _one_of_each(tree, layout, folder, inner, kinds)
        else:
            own = _IMAGE_END.sub("", name)
            of_masks = [other for other in names if _MASK_END.sub("", other) == own != other]
            masks = _join(here, of_masks[0]) if of_masks else folder
        found.append(Place(images, masks, f"{name}/", parts[name]))
    return found


def stem(name: str) -> str:
    """Return a file's path without its suffix."""
    return str(PurePosixPath(name).with_suffix(""))


def _without_end(name: str) -> str:
    return _IMAGE_END.sub("", _MASK_END.sub("", stem(name)))


def _beside(names: Sequence[str]) -> tuple[frozenset[str], frozenset[str]] | None:
    """Return the kinds of folders of images and masks of which there are some."""
    lower = {name.lower() for name in names}
    return next((pair for pair in _KINDS if pair[0] & lower and pair[1] & lower), None)


def _one_of_each(
    tree: Tree, layout: str, here: str, names: Sequence[str], kinds: Sequence[frozenset[str]]
) -> list[str]:
    found = []
    for kind in kinds:
        fitting = [name for name in names if name.lower() in kind]
        if len(fitting) != 1:
            came = f"the folders {some(names)}" if names else "no folder"
            raise InputError(
                f"{str(tree.path)!r} has {came}{f' in {here!r}' if here else ''}, and exactly one called "
                f"{' or '.join(sorted(kind))} was expected; {layout}"
            )
        found.append(_join(here, fitting[0]))
    return found


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}".strip("/")
