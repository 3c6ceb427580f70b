"""Bands by their common names, and what their values are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samtl.errors import InputError

RGB = ("red", "green", "blue")
BYTES = "0 to 255"
# Names of Sentinel-2's bands, and the common name of each.
SENTINEL_2 = {
    "B01": "coastal", "B02": "blue", "B03": "green", "B04": "red", "B05": "rededge1", "B06": "rededge2",
    "B07": "rededge3", "B08": "nir", "B8A": "nir_narrow", "B09": "water_vapour", "B10": "cirrus", "B11": "swir1",
    "B12": "swir2",
}  # fmt: skip
# Units, and what one of them is as a step of 8 bits. Pictures of 8 bits are usually stretched; that of EuroSAT is taken
# for all: 255 is a reflectance of 0.275 (Helber et al., arXiv 1709.00029, whose script scales 0..2750 to 1..255).
REFLECTANCE, FRACTION = "reflectance x 10000", "reflectance"
UNITS = {BYTES: 1.0, REFLECTANCE: 2750 / 255, FRACTION: 0.275 / 255}
# Of each unit the lowest value, what the highest of some images exceeds, and the highest value.
_USUAL = {BYTES: (0, 1, 255), REFLECTANCE: (-2000, 255, 40_000), FRACTION: (-0.2, 0.01, 4)}


@dataclass(frozen=True)
class Bands:
    """Bands in an order, and what their values are."""

    names: tuple[str, ...] = RGB
    units: str = BYTES  #: of `UNITS`


@dataclass(frozen=True)
class Reading:
    """How the bands that an encoder takes come out of a file."""

    count: int = 0  #: bands that a file must have; 0: any image that is RGB of 8 bits, or can be shown as such
    taken: tuple[int, ...] = (0, 1, 2)  #: positions among these, in the encoder's order


PICTURES = Reading()


def common_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return bands by their common names, such as `red` for `B04`, `b4` or `Red`; InputError if one occurs twice."""
    known = {name.replace("B0", "B").lower(): common for name, common in SENTINEL_2.items()}
    found = tuple(known.get(n.strip().lower().replace("b0", "b"), n.strip().lower()) for n in names)
    twice = [name for name, count in Counter(found).items() if count > 1 or not name]
    if twice or not found:
        raise InputError(
            f"bands must be named once each, got {', '.join(names)!r}: use common names such as red, nir or B08"
        )
    return found


def require_units(units: str) -> None:
    """Raise InputError for units that are not known."""
    if units not in UNITS:
        raise InputError(f"units of pixel values are one of {'; '.join(UNITS)}, got {units!r}")


def scaling(mean: Sequence[float], std: Sequence[float], own: str, given: str) -> dict[str, Any]:
    """Convert the mean and deviation of each band from an encoder's own units to those of the images it is given.

    Values beyond the 8 bits that an encoder was trained with are clipped to `clip`.
    """
    if own == given:
        return {"mean": list(mean), "std": list(std)}
    factor = UNITS[given] / UNITS[own]
    found: dict[str, Any] = {"mean": [m * factor for m in mean], "std": [s * factor for s in std]}
    return found | ({"clip": [0.0, 255 * UNITS[given]]} if own == BYTES else {})


def statistics_of(bands: Sequence[str] = RGB) -> tuple[str, ...]:
    """Name the columns of `samtl.images.codecs.statistics` of an image with these bands."""
    names = [name[0] for name in bands] if tuple(bands) == RGB else bands
    return tuple(f"{what}_{name}" for what in ("mean", "std", "min", "max") for name in names)


def told_range(values: NDArray[np.floating], units: str) -> str:
    """Tell the values that were seen, and if they do not look like their units, which they look like."""
    lowest, highest = float(values.min()), float(values.max())
    told = f"values from {lowest:g} to {highest:g}"
    likely = [
        u for u, (low, dark, high) in _USUAL.items() if low <= lowest and dark < highest <= high
    ]
    if units in likely:
        return told
    return f"{told}, which hardly are {units}{', rather ' if likely else ''}{' or '.join(likely)}"
