"""Any data set that gives samples by their number: dicts as TorchGeo's, or pairs as torchvision's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samtl.datasets.base import Dataset
from samtl.datasets.files.listing import PART_NAMES, some
from samtl.datasets.mapped import attributes
from samtl.datasets.mapped.arrays import Scale, by_rows, guessed_scale, mask_of
from samtl.datasets.mapped.labels import Label, dataset_labels, label_of
from samtl.datasets.mapped.samples import MapStyle, Samples
from samtl.errors import InputError
from samtl.images.transforms import IGNORE


def from_torch(
    dataset: MapStyle | Mapping[str, MapStyle],
    *,
    name: str | None = None,
    classes: Sequence[str] | None = None,
    value_range: tuple[float, float] | None = None,
    bands: Sequence[int] | None = None,
    target: str | None = None,
) -> Dataset:
    """List the samples of a map-style data set, such as TorchGeo's and torchvision's.

    Samples are dicts with `image` and `label` or `mask`, or pairs of an image and one of these. Images are tensors
    (bands, height, width), arrays (height, width[, bands]) or Pillow images. Labels are numbers or names of classes,
    0 or 1 for each of several classes, or measurements. Some samples are read, twice each, and
    what they are taken for is in `readings`; if that is ambiguous, it is refused. All are read if only they tell the
    labels. Images are kept as 8 bits, and a pass is resumed by the sha256 of these pixels.

    Parameters
    ----------
    dataset : map-style data set, or mapping
        With `len()`, and samples by their number. Or several, by the name of their part: train, val and test.
    name : str, optional
        Of the dataset, which names its stores. By default "torch-", the name of its class and its split.
    classes : sequence of str, optional
        Names of the labels, or of the values of masks, 0, 1, ...; by default the attribute `classes`. Without it,
        labels are named by their number, and masks of 0 and 1 have a background and a foreground. Of measurements, one
        name, by default "label".
    value_range : (low, high), optional
        The values that become 0 and 255; others are clipped. By default, what has 8 bits is left alone, and floats are
        of 0 to 1 or of 0 to 255.
    bands : sequence of 3 int, optional
        Positions of red, green and blue. By default those of `rgb_bands` among `bands`, attributes of TorchGeo's data
        sets, or the only three, or grey.
    target : {"label", "mask"}, optional
        Which one if samples have both.

    Returns
    -------
    Dataset
        Ids are the paths of files if `samples`, `files` or `images` of the data set lists them, else numbers. In
        masks, 255 is ignored.

    Raises
    ------
    InputError
        If it is no such data set, or values, bands, labels or masks are ambiguous.
    """
    parts = _parts(dataset)
    leaves = [leaf for _, one in parts for leaf in attributes.leaves(one, range(len(one)))]
    sources = [*{id(source): source for source, _ in leaves}.values()]
    samples = Samples([one for _, one in parts], attributes.paths(leaves), target)
    samples.bands, told_of_bands = _chosen_bands(bands, sources)
    low, high = (0, 1) if value_range is None else value_range
    if not -np.inf < low < high < np.inf:
        raise InputError(f"value_range is a lower and a higher value, got {(low, high)}")
    looked = dict(_look(samples))
    samples.scale = (
        guessed_scale([pixels for pixels, _, _ in looked.values()])
        if value_range is None
        else Scale(float(low), float(high), guessed=False)
    )
    kinds = sorted({kind for _, kind, _ in looked.values()})
    if len(kinds) > 1:
        raise InputError(f"some samples have a {kinds[1]}, others {kinds[0] or 'none'}")
    names = attributes.class_names(sources) if classes is None else list(classes)
    targets = {sample_id: found for sample_id, (_, _, found) in looked.items()}
    labels: list[Any] = [-1] * len(samples)
    told = "samples have no label and no mask"
    if kinds == ["label"]:
        names, labels, told = dataset_labels(_all_labels(samples, leaves, targets), names)
    elif kinds == ["mask"]:
        names, told = _mask_classes(list(targets.values()), names)
    return Dataset(
        name=name or attributes.usual_name(sources[0]),
        classes=tuple(names),
        sample_ids=tuple(samples.index),
        labels=tuple(labels),
        read=samples.read,
        read_mask=samples.read_mask if kinds == ["mask"] else None,
        parts=tuple(part for part, one in parts for _ in range(len(one)) if part),
        readings=tuple(
            filter(None, (told_of_bands, str(samples.scale or "images have 8 bits"), told))
        ),
    )


def _chosen_bands(
    given: Sequence[int] | None, sources: Sequence[Any]
) -> tuple[list[int] | None, str]:
    """Return the positions of red, green and blue, None for the only ones, and say so."""
    if given is None:
        found, told = attributes.rgb_bands(sources)
        return found, told or "three bands are red, green and blue, one is grey"
    if len(given) != 3 or min(given) < 0:
        raise InputError(f"bands are three positions, counted from 0, got {tuple(given)}")
    return [*map(int, given)], f"bands {', '.join(map(str, given))} are red, green and blue"


def _look(samples: Samples) -> Iterator[tuple[str, tuple[NDArray[Any], str, Any]]]:
    """Read some samples, twice each: by id, the image as rows, the kind of the target, and the target."""
    bad: list[Exception] = []
    for sample_id in samples.some:
        try:
            pairs = [samples.sample(sample_id, anew=True) for _ in range(2)]
            one, other = (by_rows(image, samples.bands) for image, _, _ in pairs)
            _, kind, target = pairs[0]
            found = mask_of(target) if kind == "mask" else target
        except (OSError, InputError) as error:
            bad.append(error)
            continue
        if not np.array_equal(one, other, equal_nan=one.dtype.kind == "f"):
            raise InputError(
                f"the sample {sample_id} is another one each time it is read: leave random transforms out"
            )
        yield sample_id, (one, kind, found)
    if len(bad) == len(samples.some):
        raise InputError(f"none of {len(bad)} samples can be used, the first because: {bad[0]}")


def _all_labels(
    samples: Samples, leaves: Sequence[attributes.Leaf], seen: Mapping[str, Any]
) -> list[Label]:
    """Return the label of each sample, None if it cannot be read."""
    listed = attributes.targets(leaves)
    if listed is not None:
        found = dict(zip(samples.index, map(label_of, listed), strict=True))
        # Else targets are transformed when samples are read.
        if all(found[sample_id] == label_of(label) for sample_id, label in seen.items()):
            return [*found.values()]
    labels = list[Label]()
    for sample_id in samples.index:
        try:
            target = samples.sample(sample_id)[2]
        except (OSError, InputError):
            labels.append(None)
        else:
            labels.append(label_of(target))
    return labels


def _mask_classes(masks: Sequence[NDArray[np.uint8]], names: list[str]) -> tuple[list[str], str]:
    """Return the classes of masks, and say what their values were taken for; InputError if that is ambiguous."""
    values = sorted({int(value) for mask in masks for value in np.unique(mask)})
    inside = [value for value in values if value != IGNORE]
    told = some(values, 8)
    if not names and set(inside) <= {0, 1} and 1 in inside:
        names = ["background", "foreground"]
    elif not names:
        raise InputError(
            f"masks have the values {told}, and the data set has no classes: name one for each value from 0 with "
            "samtl.from_torch(dataset, classes=[...])"
        )
    if max(inside, default=0) >= len(names) or (IGNORE in values and not any(inside)):
        raise InputError(
            f"masks of {len(names)} classes must have values from 0 to {len(names) - 1}, and {IGNORE} only where they "
            f"are to be ignored; some of these have {told}: map them in the data set"
        )
    pairs = some([f"{i} {name}" for i, name in enumerate(names)], 8)
    return names, f"values of masks are classes: {pairs}; {IGNORE} is ignored"


def _parts(dataset: Any) -> list[tuple[str, Any]]:
    """Return data sets with the names of their parts, "" for none."""
    if isinstance(dataset, Mapping):
        if odd := [key for key in dataset if str(key).lower() not in PART_NAMES]:
            raise InputError(f"data sets are given by train, val and test, got {odd[0]!r}")
        parts = [(PART_NAMES[str(key).lower()], one) for key, one in dataset.items()]
    else:
        parts = [("", dataset)]
    for _, one in parts:
        if not (hasattr(one, "__len__") and hasattr(one, "__getitem__")):
            raise InputError(
                f"a data set must have len() and give samples by their number, and {type(one).__name__} does not: make "
                "a list of it, or wrap it"
            )
    if not any(len(one) for _, one in parts):
        raise InputError("the data set has no samples")
    return parts
