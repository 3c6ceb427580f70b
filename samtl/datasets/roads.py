"""Roads of Cheng et al. (2017): 224 Google Earth images of 1.2 m a pixel with road masks, downloaded by hand.

The data of "Automatic Road Detection and Centerline Extraction via Cascaded End-to-End Convolutional Neural Network",
IEEE TGRS 55(6), 3322-3337, doi 10.1109/TGRS.2017.2669341, in its published parts. Centrelines are not read.
"""

from __future__ import annotations

import re
from pathlib import Path

from samtl.datasets.base import PARTS, Dataset
from samtl.datasets.files.archive import open_tree
from samtl.datasets.files.coding import light
from samtl.datasets.files.layouts import find_places, stem
from samtl.datasets.files.pairs import paired, with_masks
from samtl.errors import InputError

COUNTS = {"train": 160, "validation": 20, "test": 44}

_LAYOUT = (
    "expected is the folder or the zip with Train, Validation and Test, in each of them image/*.bmp and label/*.bmp "
    "(.png, .tif and, for images, .jpg will do)"
)
_NOTE = (
    'Google Earth imagery, licence "publicly available" only: research use, do not redistribute images '
    "or embeddings"
)
_PREFIX = re.compile(r"(^|/)image(?=[^/]*$)", re.IGNORECASE)  # of a name that its label's may lack


def open_dataset(argument: str | None, root: Path | None, download: bool = True) -> Dataset:
    """List the roads from `root`, a folder or a zip, which cannot be downloaded without a login.

    Ids are `<part>/<file>`; `note` says if it is not the whole set. Raises InputError.
    """
    if argument is not None:
        raise InputError(
            f"roads takes no argument, got {argument!r}; a copy of the data is named with --root"
        )
    if root is None:
        raise InputError(
            "roads cannot be downloaded without a login: get the dataset ipythonx/tgrs-road from Kaggle and name it "
            f"with --root; {_LAYOUT}"
        )
    tree = open_tree(root, _LAYOUT)
    places, pairs = find_places(tree, _LAYOUT), dict[str, tuple[str, str]]()
    if [place.part for place in places] != [*PARTS]:
        came = ", ".join(place.prefix for place in places)
        raise InputError(f"{root} has not one folder of each part, but {came!r}; {_LAYOUT}")
    for place in places:
        found = paired(
            tree,
            _LAYOUT,
            place,
            [lambda name: _PREFIX.sub(r"\1", stem(name))],
            "an image and its label must have the same name but for the suffix, or for 'image' at its start",
        )
        pairs |= {f"{place.part}/{name}": pair for name, pair in found.items()}
    parts = tuple(sample_id.partition("/")[0] for sample_id in pairs)
    return with_masks("roads", tree, pairs, light("road"), note=_note(parts), parts=parts)


def _note(parts: tuple[str, ...]) -> str:
    counts = {part: parts.count(part) for part in PARTS}
    if counts == COUNTS:
        return _NOTE
    whole = sum(COUNTS.values())
    came = ", ".join(f"{n} {part}" for part, n in counts.items())
    return f"{_NOTE}; not the published set: {whole} expected, got {len(parts)} ({came})"
