"""What the attributes of data sets say: files, classes, labels and bands, as TorchGeo and torchvision name them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from samtl.errors import InputError

Leaf = tuple[Any, int]  # a data set that has attributes, and the number of a sample in it


def leaves(dataset: Any, numbers: Sequence[int]) -> Iterator[Leaf]:
    """Follow torch's subsets and concatenations to the data sets that have attributes."""
    if hasattr(dataset, "indices") and hasattr(dataset, "dataset"):
        yield from leaves(dataset.dataset, [int(dataset.indices[i]) for i in numbers])
    elif hasattr(dataset, "cumulative_sizes") and hasattr(dataset, "datasets"):
        for i in numbers:
            which = int(np.searchsorted(dataset.cumulative_sizes, i, side="right"))
            before = dataset.cumulative_sizes[which - 1] if which else 0
            yield from leaves(dataset.datasets[which], [i - before])
    else:
        yield from ((dataset, i) for i in numbers)


def paths(found: Sequence[Leaf]) -> list[str]:
    """List the paths of all files below the folder that all are in; [] if they are not known."""
    files = list[Path]()
    for leaf, number in found:
        lists = (getattr(leaf, name, None) for name in ("samples", "files", "images"))
        fitting = (
            one[number] for one in lists if isinstance(one, (list, tuple)) and len(one) == len(leaf)
        )
        entry = next(fitting, None)
        entry = entry.get("image") if isinstance(entry, Mapping) else entry
        entry = entry[0] if isinstance(entry, (tuple, list)) and entry else entry
        if not isinstance(entry, (str, PurePath)):
            return []
        files.append(Path(entry).absolute())
    top = os.path.commonpath([path.parent for path in files])
    return [PurePath(os.path.relpath(path, top)).as_posix() for path in files]


def targets(found: Sequence[Leaf]) -> list[Any] | None:
    """Return the attribute `targets`, which torchvision's data sets have, for each sample; None if there is none."""
    labels = []
    for leaf, number in found:
        listed = getattr(leaf, "targets", None)
        if listed is None or len(listed) != len(leaf):
            return None
        labels.append(listed[number])
    return labels


def class_names(datasets: Sequence[Any]) -> list[str]:
    """Return the names of classes: `classes` of TorchGeo and torchvision, or Hugging Face's `features`, or []."""
    features = getattr(datasets[0], "features", None)
    label = features.get("label") if isinstance(features, Mapping) else None
    return _attribute(datasets, "classes") or _texts(getattr(label, "names", None))


def usual_name(dataset: Any) -> str:
    """Name a data set after its class and its split."""
    split = getattr(dataset, "split", "")
    kind = type(dataset).__name__
    text = f"torch-{kind}" + (f"-{split}" if isinstance(split, str) and split else "")
    return re.sub(r"[^\w.-]+", "-", text)


def rgb_bands(datasets: Sequence[Any]) -> tuple[list[int] | None, str]:
    """Find red, green and blue among the bands that data sets name, and say so; None if they name none."""
    names, rgb = _attribute(datasets, "bands"), _attribute(datasets, "rgb_bands")
    if not names or len(rgb) != 3:
        return None, ""
    if not set(rgb) <= set(names):
        raise InputError(
            f"encoders take red, green and blue, {', '.join(rgb)} of this data set, and its bands are "
            f"{', '.join(names)}: name the positions of three with samtl.from_torch(dataset, bands=(0, 1, 2))"
        )
    return [names.index(band) for band in rgb], f"bands {', '.join(rgb)} are red, green, blue"


def _attribute(datasets: Sequence[Any], name: str) -> list[str]:
    """Return an attribute that is a list of texts, which all data sets must have alike; [] if there is none."""
    found = [_texts(getattr(one, name, None)) for one in datasets]
    if any(texts != found[0] for texts in found):
        raise InputError(f"data sets that are put together must have the same {name}")
    return found[0]


def _texts(value: Any) -> list[str]:
    """Return a list of texts, or [] if it is none."""
    fits = isinstance(value, (list, tuple)) and value and all(isinstance(v, str) for v in value)
    return list(value) if fits else []
