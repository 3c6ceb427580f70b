"""A sheet of pictures: rows of images with text around them, and masks in colours."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from samtl.experiment.tables import PALETTE
from samtl.images.transforms import IGNORE
from samtl.report.style import GRID, figure, settled, styled

WIDE = 10.0  # inches
_TEXT = 14.0
_TALLEST = 1.6  # height / width of a cell
_LETTERS = 104  # that fit across the sheet
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
    tall = [max((_tallness(one) for one in row.pictures), default=1.0) for row in rows]
    with styled():
        drawn = figure(3 + 1.5 * sum(tall) * WIDE / across, WIDE, "compressed")
        grid = drawn.subplots(len(rows), across, squeeze=False, height_ratios=tall)
        for axes in grid.ravel():
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            axes.grid(visible=False)
        for axes, title in zip(grid[0], columns, strict=False):
            axes.set_title(_fitted(title, across), fontsize=_TEXT, loc="center")
        for row, line in zip(rows, grid, strict=True):
            label = textwrap.fill(row.label, _LABEL)
            line[0].set_ylabel(label, fontsize=_TEXT, rotation=0, ha="right", va="center")
            for picture, axes in zip(row.pictures, line, strict=False):
                axes.set_xlabel(_fitted(picture.under, across), fontsize=_TEXT - 2)
                if picture.pixels is None:
                    axes.imshow(np.full((1, 1), 0), cmap="gray", alpha=0)
                    axes.text(0, 0, "not available", ha="center", va="center", color=GRID)
                else:
                    axes.imshow(picture.pixels)
        if legend:
            patches = [Patch(color=c, label=shortened(name, 40)) for name, c in legend.items()]
            drawn.legend(handles=patches, loc="outside lower left", ncols=4, fontsize=_TEXT - 2)
        # Images keep their shapes, so how high they are is known once they are laid out.
        drawn.draw_without_rendering()
        high = Bbox.union([axes.get_tightbbox() for axes in grid.ravel()]).height / drawn.dpi
        drawn.set_figheight(high + 0.4 * bool(note) + 0.3 * -(-len(legend or ()) // 4) + 0.1)
        return settled(drawn, note)


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
