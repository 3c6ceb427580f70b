"""Images with masks of your own, `masks:PATH`: a folder of images beside a folder of masks, or a zip of both."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path

from samtl.datasets.base import IGNORE, Dataset, groups_by
from samtl.datasets.files.archive import left_out, open_tree
from samtl.datasets.files.coding import Coding, coded, light
from samtl.datasets.files.layouts import find_places
from samtl.datasets.files.listing import (
    BANDS,
    PART_NAMES,
    PUBLISHED,
    bands_in,
    one_place,
    options_of,
    own_name,
    published,
)
from samtl.datasets.files.pairs import paired, with_masks
from samtl.errors import InputError

_LAYOUT = (
    "expected is a folder, or a zip of one, with images in PATH/images (or image, img, sat, input) and masks of the "
    "same names, but for the suffix and ends such as _mask, in PATH/masks (or mask, labels, label, map, gt, output); "
    "or PATH/train, PATH/val and PATH/test of these, or with PATH/train_labels beside PATH/train; or files side by "
    "side as a_sat.jpg, a_mask.png"
)
_VALUES = ("ignore", "foreground", "classes")  # options that name values
_OPTIONS = BANDS | {
    "stem": "REGEX that finds in an image's name what its mask's name has too",
    "foreground": "VALUE[,VALUE...] of the foreground; all other values are background",
    "classes": "NAME[:VALUE],NAME[:VALUE]... with the value of each class, 0, 1 ... by default, or its colour, #rrggbb",
    "ignore": "VALUE[,VALUE...] or colours of pixels to be left out",
    "group": "REGEX that finds in an image's name what it was cut from",
}


def open_dataset(argument: str | None, root: Path | None, download: bool = True) -> Dataset:
    """List images and their masks.

    `argument` is `PATH`, `PATH?OPTIONS` or `?OPTIONS`, with options as in a URL: `stem=REGEX&classes=sea:0,land:7`; `%`
    and `&` are escaped, `+` is not. Without `foreground` and `classes`, masks are 0 in the background and 255 in the
    foreground. `root` is the folder or zip, if `argument` has no path; else a folder that the path is in, and to which
    links may lead. The dataset is named `masks-` and the folder's or the zip's own name, and after the coding if it is
    not the default. Ids are the images' paths below the folder of images. Raises InputError.
    """
    text, _, query = (argument or "").partition("?")
    path, bound = one_place("masks", text, root)
    options = options_of("masks", query, _OPTIONS)
    coding, suffix = _coding(options)
    tree, regex = open_tree(path, _LAYOUT, bound), options.get("stem")
    places = find_places(tree, _LAYOUT)
    pairs, parts = dict[str, tuple[str, str]](), list[str]()
    for place in places:
        found = paired(
            tree,
            _LAYOUT,
            place,
            place.keys if regex is None else [lambda name: groups_by((name,), regex)[0]],
            "an image and its mask must have the same name but for the suffix and ends such as _sat and _mask, or the "
            "same in what stem=REGEX finds in both, as in masks:PATH?stem=^(\\d+)_",
        )
        pairs |= {f"{place.prefix}{name}": pair for name, pair in found.items()}
        parts += [place.part or PART_NAMES.get(n.partition("/")[0].lower(), "") for n in found]
    return with_masks(
        f"masks-{own_name(path)}{suffix}",
        tree,
        pairs,
        coding,
        groups=groups_by(tuple(pairs), options["group"]) if "group" in options else (),
        parts=published(parts),
        left_out=left_out(
            tree, sorted({f for place in places for f in (place.images, place.masks)})
        ),
        readings=[PUBLISHED] if published(parts) else [],
        **bands_in(options),
    )


def _coding(options: dict[str, str]) -> tuple[Coding, str]:
    """Return the coding, and a suffix of the dataset's name if it is not the default."""
    if "foreground" in options and "classes" in options:
        raise InputError("masks take foreground= (two classes) or classes= (any number), not both")
    texts = {option: options[option].split(",") for option in _VALUES if option in options}
    named = [part.partition(":") for part in texts.get("classes", ())]
    names = [name.strip() for name, _, _ in named]
    texts["classes"] = [value if colon else f"{i}" for i, (_, colon, value) in enumerate(named)]
    values = {option: [_value(text) for text in texts.get(option, ())] for option in _VALUES}
    meant = [*values["classes"], *values["foreground"]]
    if named and not 2 <= len({*names} - {""}) == len({*meant}) == len(names) <= IGNORE:
        raise InputError(
            f"classes= names 2 to {IGNORE} classes, the background first, each name and each value once, as in "
            f"classes=background:0,road:255; got {options['classes']!r}"
        )
    if both := [value for value in meant if value in values["ignore"]]:
        raise InputError(f"a mask's value is a class or ignored, but {both[0]} is given for both")
    every = {*meant, *values["ignore"]}
    colours = tuple(sorted(value for value in every if isinstance(value, str)))
    if colours and not (named and len(colours) == len(every) <= 256):
        raise InputError(
            "masks have values or colours, not both: name each colour, up to 256, in classes= or ignore="
        )
    number = {value: i for i, value in enumerate(colours or range(256))}
    ignore = [number[value] for value in values["ignore"]]
    index = {number[value]: i for i, value in enumerate(values["classes"])}
    coding = light("foreground", ignore)
    if named:
        coding = replace(coded(names, lambda i: index.get(i, -1), ignore), colours=colours)
    elif "foreground" in options:
        coding = coded(coding.classes, lambda i: int(i in values["foreground"]), ignore)
    if coding == light("foreground"):
        return coding, ""
    # Masks that are read in another way make another dataset, and so another store.
    written = repr(coding) + "".join(colours)
    return coding, f"-coding-{hashlib.sha256(written.encode()).hexdigest()[:8]}"


def _value(text: str) -> int | str:
    """Read a value of masks, or a colour."""
    value = text.strip().lower()
    if re.fullmatch("#[0-9a-f]{6}", value):
        return value
    if re.fullmatch("[0-9]{1,3}", value) and int(value) < 256:
        return int(value)
    raise InputError(
        f"foreground=, classes= and ignore= take values from 0 to 255, or colours as #ff0000, separated by commas, got "
        f"{text!r}"
    )
