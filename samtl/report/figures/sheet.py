"""A sheet of pictures: rows of images with text around them, and masks in colours."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from samtl.experiment.tables import PALETTE
from samtl.images.transforms import IGNORE
from samtl.report.style import figure, settled, styled

WIDE = 10.0  # inches
_PIXELS = 1600  # of a row of pictures
_GAP = 12
_TEXT = 14.0
_TALLEST = 1.3  # height / width of a cell
_LETTERS = 72  # that fit across the pictures
_LABEL = 20  # letters of a row's label in a line

# Okabe and Ito's colours, which colour-blind readers can distinguish; these differ in lightness, too.
HIT, MISSED, FALSE_ALARM, MIXED_UP = "#56b4e9", "#d55e00", "#f0e442", "#cc79a7"
UNCOUNTED = "#000000"
_DIM = 0.55  # of a photograph's brightness: the place is recognisable and colours stand out
_STRENGTH = 0.85

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Picture:
    """An image of a sheet, (height, width, 3) uint8 or None if it could not be read, and the text beneath it."""

    pixels: Pixels | None
    under: str = ""


@dataclass(frozen=True, eq=False)
class Row:
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
    tile = _PIXELS // across
    at: Any = {"fontsize": _TEXT - 2, "ha": "center"}
    below: Any = {"fontsize": _TEXT - 2, "loc": "upper left", "bbox_to_anchor": (0, 0), "ncols": 3}
    line = _PIXELS / WIDE * _TEXT / 60  # height of a line of text
    tall = [round(tile * max(map(_tallness, row.pictures), default=1.0)) for row in rows]
    under = [
        max((p.under.count("\n") + 1 for p in row.pictures if p.under), default=0) for row in rows
    ]
    deep = [round(count * line) for count in under]
    tops = np.cumsum(
        [0, *(high + low + _GAP for high, low in zip(tall, deep, strict=True))]
    ).tolist()
    canvas = Image.new("RGBA", (across * (tile + _GAP), tops[-1]))
    with styled():
        drawn = figure(2 + WIDE * canvas.height / canvas.width, WIDE)
        axes = drawn.subplots()
        for row, top, high in zip(rows, tops, tall, strict=False):
            label = textwrap.fill(row.label, _LABEL)
            axes.text(-_GAP, top + high / 2, label, fontsize=_TEXT, ha="right", va="center")
            for place, picture in enumerate(row.pictures):
                left = place * (tile + _GAP)
                middle = left + tile / 2
                axes.text(middle, top + high, _fitted(picture.under, across), va="top", **at)
                if picture.pixels is None:
                    axes.text(middle, top + high / 2, "not available", va="center", **at)
                else:
                    image = ImageOps.contain(Image.fromarray(picture.pixels), (tile, high))
                    canvas.paste(image, (left + (tile - image.width) // 2, top))
        for place, title in enumerate(columns):
            middle = place * (tile + _GAP) + tile / 2
            axes.text(
                middle, -_GAP, _fitted(title, across), fontsize=_TEXT, ha="center", va="bottom"
            )
        axes.imshow(canvas)
        axes.set_axis_off()
        if legend:
            patches = [Patch(color=c, label=shortened(name, 26)) for name, c in legend.items()]
            axes.legend(handles=patches, **below)
        if note:
            axes.set_title(note, fontsize=_TEXT - 2, fontweight="normal", style="italic")
        return settled(drawn)


def _tallness(picture: Picture) -> float:
    if picture.pixels is None:
        return 1.0
    height, width, _ = picture.pixels.shape
    return min(float(height / width), _TALLEST)


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
    marks = [(mask == i, colour) for i, colour in enumerate(of_classes(classes).values(), start=1)]
    return _tinted(pixels, mask.shape, [*marks, (mask == IGNORE, UNCOUNTED)])


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
    known = truth != IGNORE
    there, claimed = known & (truth > 0), known & (guess > 0)
    marks = [
        (there & (truth == guess), HIT),
        (there & ~claimed, MISSED),
        (claimed & ~there, FALSE_ALARM),
        (there & claimed & (truth != guess), MIXED_UP),
        (~known, UNCOUNTED),
    ]
    return _tinted(pixels, truth.shape, marks)


def _tinted(
    pixels: Pixels | None, shape: tuple[int, ...], marks: Sequence[tuple[NDArray[np.bool_], str]]
) -> Pixels:
    ground, strength = np.zeros((*shape, 3)), 1.0
    if pixels is not None:
        ground += _DIM * pixels.mean(axis=2, keepdims=True)
        strength = _STRENGTH
    for where, colour in marks:
        tint = np.array(list(bytes.fromhex(colour[1:])), dtype=np.float64)
        ground[where] = strength * tint + (1 - strength) * ground[where]
    return ground.round().astype(np.uint8)
