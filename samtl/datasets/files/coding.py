"""What the values of mask files mean: light and dark, or numbers of classes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from samtl.datasets.base import IGNORE
from samtl.datasets.files.listing import some
from samtl.images.codecs import BadImage, decode_colours, decode_mask

_NEAR = 31  # how far from 0 and 255 the values of a black and white mask may be
FEW = 4  # masks of so few values have no soft edges
_AREAS = 0.01  # share of pixels amid others of the same grey; those of soft edges are not
MANY = 40  # values of a mask that can be classes


@dataclass(frozen=True)
class Coding:
    """What the values of a mask file mean.

    `classes` begins with the background. `table` holds the class of each value from 0 to 255: 255 if it is to be
    ignored, -1 if it must not occur. `light` masks are light where the foreground is, whatever number a file stores.
    If there are `colours`, such as `#ffffff`, a mask shows them, and their numbers are the values.
    """

    classes: tuple[str, ...]
    table: tuple[int, ...]
    light: bool = False
    colours: tuple[str, ...] = field(default=(), repr=False)  # the repr without them names stores

    def read(self, data: bytes) -> NDArray[np.uint8]:
        """Decode a mask file to class indices, (height, width) uint8; raises BadImage."""
        return self.decode(self.values(data))

    def values(self, data: bytes) -> NDArray[np.uint8]:
        """Decode a mask file to its values, (height, width): greys that are shown if `light`, numbers of colours."""
        if self.colours:
            packed = _packed(data)
            values, unknown = np.zeros(packed.shape, np.uint8), np.ones(packed.shape, bool)
            for number, colour in enumerate(self.colours):
                found = packed == int(colour[1:], 16)
                values[found] = number
                unknown &= ~found
            if unknown.any():
                raise self._refused(colours_in(data))
            return values
        if not self.light:
            return decode_mask(data)
        try:
            shown = decode_mask(data, lookup=True)
            if self._is_black_and_white(shown):
                return shown
        except BadImage as bad:
            if bad.code != "unsupported_mode":  # a palette of colours holds numbers of classes, too
                raise
        raise self._refused(values_of(decode_mask(data)))

    def told(self, data: bytes, values: NDArray[np.uint8] | None = None) -> set[Any]:
        """Return the stored values in a mask file, or its colours, for messages; `values` are those that were read."""
        if values is None or self.light:
            return {*(colours_in(data) if self.colours else values_of(decode_mask(data)))}
        return {self.colours[value] if self.colours else value for value in values_of(values)}

    def decode(self, values: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Turn the values of a mask file into class indices, of the same shape and dtype."""
        # Bytes, not numpy: an index of 8 bytes for each pixel would hold a large mask nine times.
        raw = values.tobytes()
        if raw.translate(None, bytes(self._known)):
            raise self._refused(values_of(values))
        indices = raw.translate(bytes(max(meaning, 0) for meaning in self.table))
        return np.frombuffer(indices, np.uint8).reshape(values.shape)

    @property
    def expected(self) -> str:
        """The values that a mask must have, for messages."""
        if self.light:
            return "0 (background) and 255 (foreground)"
        return some(self.colours or self._known)

    @property
    def _known(self) -> list[int]:
        return [value for value, meaning in enumerate(self.table) if meaning >= 0]

    def _refused(self, values: Iterable[Any]) -> BadImage:
        found = list(values)
        return BadImage(
            "mask_values",
            f"a mask of {self.expected} was expected, this one holds {some(found)}; {self.remedy([found])}",
        )

    def remedy(self, masks: Sequence[Iterable[Any]]) -> str:
        """Say which option reads masks that this coding does not; each mask is given as its values."""
        if not self.light:
            unknown = sorted({*itertools.chain(*masks)}.difference(self.colours or self._known))
            return f"name {some(unknown)}, too, in classes= or ignore="
        ignored = {value for value, meaning in enumerate(self.table) if meaning == IGNORE}
        kinds = [{*mask} - ignored for mask in masks]
        values = {*itertools.chain(*kinds)}
        others = sorted(values - {0, 255})
        if len(values) > MANY:
            return f"these are more than {MANY} classes: write a mask of 0 and 255, or a number for each class"
        if 255 in values and len(others) == 1 and not any({255, *others} <= kind for kind in kinds):
            option = f"foreground={others[0]},255"  # files of two codings
        else:
            if 255 in values and others and others[-1] <= _NEAR:  # 255 says "unlabelled"
                values, ignored = values - {255}, ignored | {255}
            ordered = sorted(values if len(values) > 1 else values | {0})
            names = ["foreground"] if len(ordered) == 2 else [f"class{v}" for v in ordered[1:]]
            named = zip(["background", *names], ordered, strict=True)
            option = f"classes={','.join(f'{name}:{value}' for name, value in named)}"
        option += f"&ignore={','.join(map(str, sorted(ignored)))}" if ignored else ""
        return f"say what the values mean, as in masks:PATH?{option}"

    def reading(self, values: Iterable[Any]) -> str:
        """Say what these values of masks were taken for."""
        if self.light:
            return "values in masks: up to 127 background, others foreground"
        names = (*self.classes, "ignored")
        meaning: dict[str, list[Any]] = {name: [] for name in names}
        for value in sorted(values):
            number = self.colours.index(value) if self.colours else value
            meaning[names[min(self.table[number], len(self.classes))]].append(value)
        told = (f"{some(found)} {name}" for name, found in meaning.items() if found)
        return f"{'colours' if self.colours else 'values'} in masks: {'; '.join(told)}"

    def _is_black_and_white(self, shown: NDArray[np.uint8]) -> bool:
        """Return whether the greys of a mask are background and foreground, not numbers of classes.

        Edges may be soft, and compression may have blurred both ends.
        """
        values = [value for value in values_of(shown) if self.table[value] != IGNORE]
        between = [value for value in values if 0 < value < 255]
        if not between:
            return True
        both = any(value >= 255 - _NEAR for value in between)
        near = {v for v in between if both and (v <= _NEAR or v >= 255 - _NEAR)}
        if values[-1] <= 127 or len(values) <= FEW:
            return near.issuperset(between)
        inside = shown[1:-1, 1:-1]
        sides = shown[:-2, 1:-1], shown[2:, 1:-1], shown[1:-1, :-2], shown[1:-1, 2:]
        flat = np.logical_and.reduce([inside == side for side in sides])
        areas = sum(
            count
            for value, count in values_of(inside[flat]).items()
            if value in between and value not in near
        )
        return areas <= _AREAS * shown.size


def values_of(pixels: NDArray[np.uint8]) -> dict[int, int]:
    """Count the pixels of each value that occurs, in ascending order."""
    counts = Image.fromarray(pixels.reshape(1, -1)).histogram() if pixels.size else []
    return {value: count for value, count in enumerate(counts) if count}


def colours_in(data: bytes) -> list[str]:
    """List the colours in a mask, ascending."""
    return [f"#{colour:06x}" for colour in np.unique(_packed(data)).tolist()]


def _packed(data: bytes) -> NDArray[np.uint32]:
    """Return the colours of a mask as numbers, 0xrrggbb, (height, width)."""
    packed: NDArray[np.uint32] = np.zeros((), np.uint32)
    for band in np.moveaxis(decode_colours(data), 2, 0):
        packed = (packed << 8) | band
    return packed


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
