"""A sheet of pictures: rows of images with text around them, and masks in colours."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from samtl.experiment.tables import PALETTE
from samtl.images.transforms import IGNORE
from samtl.report.style import new_figure

_WIDTH = 10.0  # inches of a row of pictures; lengths within are in widths of one place
_GAP = 0.05
_TEXT = 14.0
_TALLEST = 1.3  # height / width of a place
_LETTERS = 72  # that fit across the pictures
_LABEL = 20  # letters of a row's label in a line

# Okabe and Ito's colours, which colour-blind readers can distinguish; these differ in lightness, too.
HIT, MISSED, FALSE_ALARM, MIXED_UP = "#56b4e9", "#d55e00", "#f0e442", "#cc79a7"
UNCOUNTED = "#000000"
_DIM = 0.55  # of a photograph's brightness: the place is recognisable and colours stand out
_STRENGTH = 0.85

Pixels = NDArray[np.uint8]


class Picture(NamedTuple):
    """An image of a sheet, (height, width, 3) uint8 or None if it could not be read, and the text beneath it."""

    pixels: Pixels | None
    under: str = ""


class Row(NamedTuple):
    """A row of pictures with a label at its left."""

    label: str
    pictures: Sequence[Picture]


def sheet(
    rows: Sequence[Row],
    across: int,
    columns: Sequence[str] = (),
    legend: Mapping[str, str] | None = None,
    note: str = "",
) -> Figure:
    """Lay out pictures in rows.

    Parameters
    ----------
    rows : sequence of Row
        At least one.
    across : int
        Places in a row.
    columns : sequence of str
        Titles of the places.
    legend : mapping of str to str, optional
        Names and the colours that they explain.
    note : str
        A line above everything.
    """
    line = 1.25 * _TEXT / 72 * across / _WIDTH
    tall = [max(map(_tallness, row.pictures), default=1.0) for row in rows]
    under = [max((_lines(p.under) for p in row.pictures), default=0) * line for row in rows]
    bottoms = np.cumsum([high + low + _GAP for high, low in zip(tall, under, strict=True)])
    small: Any = {"fontsize": _TEXT - 2, "ha": "center"}
    with new_figure(2 + _WIDTH * bottoms[-1] / across, _WIDTH) as figure:
        axes = figure.subplots()
        for row, high, bottom, low in zip(rows, tall, bottoms, under, strict=True):
            foot = bottom - low - _GAP
            middle: Any = {"fontsize": _TEXT, "ha": "right", "va": "center"}
            axes.text(-_GAP, foot - high / 2, textwrap.fill(row.label, _LABEL), **middle)
            for place, (pixels, text) in enumerate(row.pictures):
                axes.text(place + 0.5, foot, _fitted(text, across), va="top", **small)
                if pixels is None:
                    axes.text(place + 0.5, foot - high / 2, "not available", va="center", **small)
                    continue
                scale = min((1 - _GAP) / pixels.shape[1], high / pixels.shape[0])
                wide, height = scale * pixels.shape[1], scale * pixels.shape[0]
                left, top = place + (1 - wide) / 2, foot - high
                axes.imshow(pixels, extent=(left, left + wide, top + height, top))
        for place, title in enumerate(columns):
            at: Any = {"fontsize": _TEXT, "ha": "center", "va": "bottom"}
            axes.text(place + 0.5, -_GAP, _fitted(title, across), **at)
        axes.set(xlim=(0, across), ylim=(bottoms[-1], 0), aspect="equal")
        axes.set_axis_off()
        if legend:
            patches = [Patch(color=c, label=shortened(name, 26)) for name, c in legend.items()]
            below: Any = {"fontsize": _TEXT - 2, "loc": "upper left", "bbox_to_anchor": (0, 0)}
            axes.legend(handles=patches, ncols=3, **below)
        if note:
            axes.set_title(note, fontsize=_TEXT - 2, fontweight="normal", style="italic")
    return figure


def _tallness(picture: Picture) -> float:
    if picture.pixels is None:
        return 1.0
    height, width, _ = picture.pixels.shape
    return min(float(height / width), _TALLEST)


def _lines(text: str) -> int:
    return text.count("\n") + 1 if text else 0


def shortened(text: str, most: int) -> str:
    """Replace the middle of a text by an ellipsis, so that at most so many letters are left."""
    kept = max(most - 1, 2)
    return text if len(text) <= most else f"{text[: kept // 2]}…{text[kept // 2 - kept :]}"


def _fitted(text: str, across: int) -> str:
    return "\n".join(shortened(line, _LETTERS // across) for line in text.split("\n"))


def of_classes(classes: Sequence[str]) -> dict[str, str]:
    """Return the colour of each class except the background; a single one has the colour of hits."""
    if len(classes) == 2:
        return {classes[1]: HIT}
    return {name: "#" + PALETTE[3 * i : 3 * i + 3].hex() for i, name in enumerate(classes) if i}


def of_errors(classes: Sequence[str]) -> dict[str, str]:
    """Name what `judged` shows, with its colours; of several classes also those of the truth in `mapped`."""
    if len(classes) == 2:
        return {f"found ({classes[1]})": HIT, "missed": MISSED, "false alarm": FALSE_ALARM}
    errors = {"found": HIT, "missed": MISSED, "false alarm": FALSE_ALARM}
    truth = {f"truth: {name}": colour for name, colour in of_classes(classes).items()}
    return {**errors, "taken for another class": MIXED_UP, **truth}


def mapped(pixels: Pixels | None, mask: Pixels, classes: Sequence[str]) -> Pixels:
    """Show a mask in the colours of its classes.

    Parameters
    ----------
    pixels : (height, width, 3) uint8 or None
        The photograph beneath; None for black.
    mask : (height, width) uint8
        Class indices, 255 if unknown.
    classes : sequence of str

    Returns
    -------
    (height, width, 3) uint8
    """
    colours = [*of_classes(classes).values(), UNCOUNTED]
    return _tinted(pixels, np.where(mask == IGNORE, len(colours), mask), colours)


def judged(pixels: Pixels, truth: Pixels, guess: Pixels) -> Pixels:
    """Show where a predicted mask is right and where it is wrong, over the dimmed photograph.

    Parameters
    ----------
    pixels : (height, width, 3) uint8
    truth, guess : (height, width) uint8
        Class indices, 0 is the background; 255 in `truth` if unknown.

    Returns
    -------
    (height, width, 3) uint8
    """
    there, claimed = truth > 0, guess > 0
    cases = [truth == IGNORE, ~there & ~claimed, ~there, ~claimed, truth == guess]
    codes = np.select(cases, [5, 0, 3, 2, 1], 4)
    return _tinted(pixels, codes, [HIT, MISSED, FALSE_ALARM, MIXED_UP, UNCOUNTED])


def _tinted(pixels: Pixels | None, codes: NDArray[Any], colours: Sequence[str]) -> Pixels:
    """Colour pixels by their code, counted from 1; those of code 0 show the dimmed photograph."""
    tints: NDArray[np.float64] = (
        np.array([to_rgb(colour) for colour in ("black", *colours)])[codes] * 255
    )
    if pixels is not None:
        strength = np.where(codes > 0, _STRENGTH, 0.0)[..., None]
        tints = strength * tints + (1 - strength) * _DIM * pixels.mean(axis=2, keepdims=True)
    return tints.round().astype(np.uint8)
