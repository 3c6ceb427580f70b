"""A sheet of pictures: rows of images with text around them, and masks in colours."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from numpy.typing import NDArray

from samtl.experiment.tables import PALETTE
from samtl.images.transforms import IGNORE
from samtl.report.style import capital, new_figure, shortened

_WIDTH = 10.0  # inches of a row of pictures; lengths within are in widths of one place
_GAP = 0.04
_FRAME = 4.0  # points
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
    record: dict[str, Any] | None = None  #: its row in the table beside the sheet
    frame: str = ""  #: its colour


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
    """Lay out pictures in rows of `across` places, under titles of the columns and above a legend of colours."""
    line = 1.25 * _TEXT / 72 * across / _WIDTH
    shapes = [
        [p.pixels.shape if p.pixels is not None else (1, 1) for p in row.pictures] for row in rows
    ]
    tall = [max((min(s[0] / s[1], _TALLEST) for s in some), default=1.0) for some in shapes]
    lines = [max((len(p.under.splitlines()) for p in row.pictures), default=0) for row in rows]
    bottoms = np.cumsum([high + n * line + _GAP for high, n in zip(tall, lines, strict=True)])
    small: Any = {"fontsize": _TEXT - 2, "ha": "center", "va": "top"}
    with new_figure(2 + _WIDTH * bottoms[-1] / across, _WIDTH) as figure:
        axes = figure.subplots()
        for row, high, bottom, n in zip(rows, tall, bottoms, lines, strict=True):
            foot = bottom - n * line - _GAP
            label: Any = {"fontsize": _TEXT, "ha": "right", "va": "center"}
            axes.text(-_GAP, foot - high / 2, textwrap.fill(row.label, _LABEL), **label)
            for place, (pixels, text, _, frame) in enumerate(row.pictures):
                axes.text(place + 0.5, foot, _fitted(text, across), **small)
                if pixels is None:
                    axes.text(place + 0.5, foot - high / 2, "not available", **small)
                    continue
                scale = min((1 - _GAP) / pixels.shape[1], high / pixels.shape[0])
                half, top = scale * pixels.shape[1] / 2, foot - high
                sides = (place + 0.5 - half, place + 0.5 + half)
                base = top + scale * pixels.shape[0]
                axes.imshow(pixels, extent=(*sides, base, top))
                if frame:
                    corner, wide = (sides[0], top), 2 * half
                    box = Rectangle(corner, wide, base - top, fill=False, ec=frame, lw=_FRAME)
                    axes.add_patch(box)
        for place, title in enumerate(columns):
            above: Any = {"fontsize": _TEXT, "ha": "center", "va": "bottom"}
            axes.text(place + 0.5, -_GAP, _fitted(title, across), **above)
        if note:
            lines_above = max((title.count("\n") + 1 for title in columns), default=0)
            said: Any = {"fontsize": _TEXT - 4, "style": "italic", "va": "bottom"}
            # In points: labels at the left make the places narrower, but not the letters.
            above = {"xytext": (0, 1.4 * _TEXT * lines_above), "textcoords": "offset points"}
            axes.annotate(capital(note), (0, -_GAP), **above, **said)
        axes.set(xlim=(0, across), ylim=(bottoms[-1], 0), aspect="equal")
        axes.set_axis_off()
        if legend:
            patches = [Patch(color=c, label=shortened(name, 26)) for name, c in legend.items()]
            below: Any = {"fontsize": _TEXT - 2, "loc": "upper left", "bbox_to_anchor": (0, 0)}
            axes.legend(handles=patches, ncols=3, **below)
    return figure


def _fitted(text: str, across: int) -> str:
    return "\n".join(shortened(line, _LETTERS // across) for line in text.split("\n"))


def of_classes(classes: Sequence[str]) -> dict[str, str]:
    """Return the colour of each class except the background; a single one has the colour of hits."""
    if len(classes) == 2:
        return {classes[1]: HIT}
    return {name: "#" + PALETTE[3 * i : 3 * i + 3].hex() for i, name in enumerate(classes) if i}


def of_errors(classes: Sequence[str]) -> dict[str, str]:
    """Name what `judged` shows, with its colours; of several classes also those of the truth in `mapped`."""
    several = len(classes) > 2
    found = "found" if several else f"found ({classes[1]})"
    errors = {found: HIT, "missed": MISSED, "false alarm": FALSE_ALARM}
    truth = {f"truth: {name}": colour for name, colour in of_classes(classes).items()}
    return {**errors, "taken for another class": MIXED_UP, **truth} if several else errors


def mapped(pixels: Pixels | None, mask: Pixels, classes: Sequence[str]) -> Pixels:
    """Show a mask, (height, width), in the colours of its classes, over the photograph or on black."""
    colours = [*of_classes(classes).values(), UNCOUNTED]
    return _tinted(pixels, np.where(mask == IGNORE, len(colours), mask), colours)


def judged(pixels: Pixels, truth: Pixels, guess: Pixels) -> Pixels:
    """Show where a predicted mask is right and where it is wrong, over the dimmed photograph."""
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
