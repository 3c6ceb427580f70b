"""What the attributes of data sets say: files, classes, labels and bands, as TorchGeo and torchvision name them."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from samtl.errors import InputError


def _leaves(dataset: Any, numbers: Sequence[int]) -> Iterator[tuple[Any, int]]:
    """Follow torch's subsets and concatenations to the data sets that have attributes."""
    if hasattr(dataset, "indices") and hasattr(dataset, "dataset"):
        yield from _leaves(dataset.dataset, [int(dataset.indices[i]) for i in numbers])
    elif hasattr(dataset, "cumulative_sizes") and hasattr(dataset, "datasets"):
        for i in numbers:
            which = int(np.searchsorted(dataset.cumulative_sizes, i, side="right"))
            before = dataset.cumulative_sizes[which - 1] if which else 0
            yield from _leaves(dataset.datasets[which], [i - before])
    else:
        yield from ((dataset, i) for i in numbers)


def paths(sources: Sequence[Any]) -> list[str]:
    """List the paths of all files below the folder that all are in; [] if they are not known."""
    found = list[Path]()
    for leaf, number in itertools.chain.from_iterable(
        _leaves(one, range(len(one))) for one in sources
    ):
        lists = (getattr(leaf, name, None) for name in ("samples", "files", "images"))
        entry = next(
            (
                listed[number]
                for listed in lists
                if isinstance(listed, (list, tuple)) and len(listed) == len(leaf)
            ),
            None,
        )
        entry = entry.get("image") if isinstance(entry, Mapping) else entry
        entry = entry[0] if isinstance(entry, (tuple, list)) and entry else entry
        if not isinstance(entry, (str, PurePath)):
            return []
        found.append(Path(entry).absolute())
    top = os.path.commonpath([path.parent for path in found])
    return [PurePath(os.path.relpath(path, top)).as_posix() for path in found]


def _ends(dataset: Any) -> Iterator[Any]:
    """Yield each data set that has attributes."""
    if hasattr(dataset, "indices") and hasattr(dataset, "dataset"):
        yield from _ends(dataset.dataset)
    elif hasattr(dataset, "cumulative_sizes") and hasattr(dataset, "datasets"):
        for one in dataset.datasets:
            yield from _ends(one)
    else:
        yield dataset


def _attribute(sources: Sequence[Any], name: str) -> list[str]:
    """Return an attribute that is a list of texts, which all data sets must have alike; [] if there is none."""
    found = [_texts(getattr(end, name, None)) for one in sources for end in _ends(one)]
    if any(texts != found[0] for texts in found):
        raise InputError(f"data sets that are put together must have the same {name}")
    return found[0]


def _texts(value: Any) -> list[str]:
    """Return a list of texts, or [] if it is none."""
    fits = isinstance(value, (list, tuple)) and value and all(isinstance(v, str) for v in value)
    return list(value) if fits else []


def class_names(sources: Sequence[Any]) -> list[str]:
    """Return the names of classes: `classes` of TorchGeo and torchvision, or Hugging Face's `features`, or []."""
    features = getattr(next(_ends(sources[0])), "features", None)
    label = features.get("label") if isinstance(features, Mapping) else None
    return _attribute(sources, "classes") or _texts(getattr(label, "names", None))


def usual_name(dataset: Any) -> str:
    """Name a data set after its class and its split."""
    end = next(_ends(dataset))
    split = getattr(end, "split", "")
    text = f"torch-{type(end).__name__}" + (f"-{split}" if isinstance(split, str) and split else "")
    return re.sub(r"[^\w.-]+", "-", text)


def rgb_bands(sources: Sequence[Any]) -> tuple[list[int] | None, str]:
    """Find red, green and blue among the bands that data sets name, and say so; None if they name none."""
    names, rgb = _attribute(sources, "bands"), _attribute(sources, "rgb_bands")
    if not names or len(rgb) != 3:
        return None, ""
    if not set(rgb) <= set(names):
        raise InputError(
            f"encoders take red, green and blue, {', '.join(rgb)} of this data set, and its bands are "
            f"{', '.join(names)}: name the positions of three with samtl.from_torch(dataset, bands=(0, 1, 2))"
        )
    return [names.index(band) for band in rgb], f"bands {', '.join(rgb)} are red, green, blue"


def targets(sources: Sequence[Any]) -> list[Any] | None:
    """Return the attribute `targets`, which torchvision's data sets have, for each sample; None if there is none."""
    found = []
    for one in sources:
        for leaf, number in _leaves(one, range(len(one))):
            listed = getattr(leaf, "targets", None)
            if listed is None or len(listed) != len(leaf):
                return None
            found.append(listed[number])
    return found
