"""A sheet of pictures: rows of images with text around them, as one figure of a fixed width."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from PIL import Image

from samtl.report.style import (
    GRID,
    INK,
    figure,
    styled,
)

Pixels = NDArray[np.uint8]

WIDE = 10.0  # inches, 1,600 pixels as they are saved; sizes of text go with that
DPI = 160
TEXT = 16.0
SMALL = 14.0
_SIDE = 2.1  # inches for labels at the left
_GAP = 0.08
_BOX = 0.2  # of a legend
_TALLEST = 1.6  # of a cell, in its width: what is longer is shown narrower
_LINE = 1.25  # of the size of the text
_EM = 0.62  # mean width of a letter, in its size


@dataclass(frozen=True, eq=False)
class Cell:
    """One picture of a sheet.

    Attributes
    ----------
    pixels : (height, width, 3) uint8, or None
        None where it could not be had; its place then says so.
    under : str
        Lines of small text beneath it; each is shortened to its width.
    """

    pixels: Pixels | None
    under: str = ""


@dataclass(frozen=True, eq=False)
class Row:
    """A row of pictures, with a label above, or at the left: see `sheet`."""

    label: str
    cells: tuple[Cell, ...]


def sheet(
    rows: Sequence[Row],
    across: int,
    columns: Sequence[str] = (),
    legend: Mapping[str, str] | None = None,
    side: bool = False,
    note: str = "",
) -> Figure:
    """Lay pictures out in rows.

    Parameters
    ----------
    rows : sequence of Row
        At least one.
    across : int
        Places in a row, at least as many as any has pictures.
    columns : sequence of str
        Text above each place of the first row.
    legend : mapping of str to str, optional
        Things that are explained below the last row, and the colour of each.
    side : bool
        Whether labels stand at the left of their rows, broken into lines.
    note : str
        A line above everything.

    Returns
    -------
    Figure
        `WIDE` inches wide; images are held no finer than `DPI` shows them.
    """
    left = _SIDE if side else 0.0
    width = (WIDE - left - (across - 1) * _GAP) / across
    tall = [width * max(map(_tallness, row.cells), default=1.0) for row in rows]
    above = [0.0 if side or not row.label else _lines(1, TEXT) for row in rows]
    under = [
        _lines(max((_count(cell.under) for cell in row.cells), default=0), SMALL) for row in rows
    ]
    noted = _lines(_count(note), SMALL)
    heads = noted + _lines(max(map(_count, columns), default=0), TEXT)
    legend = legend or {}
    places = _flowing(legend)
    foot = _lines(1, SMALL) * (places[-1][1] + 1) if places else 0.0
    height = heads + sum(tall) + sum(above) + sum(under) + len(rows) * 2 * _GAP + foot
    with styled():
        drawn = figure(height, WIDE)
        drawn.set_layout_engine("none")

        def write(x: float, y: float, text: str, size: float, align: str, weight: str) -> None:
            for number, line in enumerate(text.split("\n") if text else ()):
                base = y + (0.95 + number * _LINE) * size / 72  # whatever letters hang below it
                # Names of classes and files may hold anything: a dollar sign begins no formula.
                drawn.text(
                    x / WIDE, 1 - base / height, line, size=size, ha=align, va="baseline",
                    weight=weight, color=INK, parse_math=False,
                )  # fmt: skip

        def middle(place: int) -> float:
            return left + place * (width + _GAP) + width / 2

        write(0, 0, _fitted(note, WIDE, SMALL), SMALL, "left", "normal")
        for place, text in enumerate(columns):
            write(middle(place), noted, _fitted(text, width, TEXT), TEXT, "center", "bold")
        top = heads
        for row, label, h, below in zip(rows, above, tall, under, strict=True):
            if side:
                write(0, top + _GAP, _wrapped(row.label, _SIDE, TEXT), TEXT, "left", "normal")
            elif label:
                write(0, top, _fitted(row.label, WIDE, TEXT), TEXT, "left", "bold")
            top += label
            for place, cell in enumerate(row.cells):
                axes = drawn.add_axes(
                    (
                        (middle(place) - width / 2) / WIDE,
                        1 - (top + h) / height,
                        width / WIDE,
                        h / height,
                    )
                )
                axes.set_anchor("N")
                axes.set_axis_off()
                if cell.pixels is None:
                    axes.set_facecolor(GRID)
                    axes.set_axis_on()
                    axes.set(xticks=[], yticks=[])
                    axes.text(0.5, 0.5, "not there", size=SMALL, ha="center", va="center")
                else:
                    axes.imshow(_no_finer(cell.pixels, width, h))
                write(
                    middle(place), top + h + _GAP / 2, _fitted(cell.under, width, SMALL), SMALL,
                    "center", "normal",
                )  # fmt: skip
            top += h + below + 2 * _GAP
        for x, line, name in places:
            y = height - foot + line * _lines(1, SMALL)
            box = (x / WIDE, 1 - (y + _BOX) / height), _BOX / WIDE, _BOX / height
            drawn.add_artist(
                Rectangle(*box, color=legend[name], transform=drawn.transFigure, linewidth=0)
            )
            write(x + _BOX + _GAP, y, _entry(name), SMALL, "left", "normal")
    return drawn


def shortened(text: str, most: int) -> str:
    """Take letters out of the middle of a text, so that at most so many are left."""
    if len(text) <= most:
        return text
    kept = max(most - 1, 2)
    return f"{text[: kept // 2]}…{text[len(text) - (kept - kept // 2) :]}"


def _flowing(names: Iterable[str]) -> list[tuple[float, int, str]]:
    """Give each entry of a legend its x in inches and its line, as words are set."""
    places, x, line = [], 0.0, 0
    for name in names:
        width = _BOX + len(_entry(name)) * SMALL * _EM / 72 + 3 * _GAP
        if x and x + width > WIDE:
            x, line = 0.0, line + 1
        places.append((x, line, name))
        x += width
    return places


def _entry(name: str) -> str:
    return shortened(name, _letters(WIDE / 2, SMALL))


def _fitted(text: str, width: float, size: float) -> str:
    return "\n".join(shortened(line, _letters(width, size)) for line in text.split("\n"))


def _wrapped(text: str, width: float, size: float) -> str:
    """Break a name where its words meet, CamelCase and snake_case too, into at most three lines."""
    most = _letters(width, size)
    lines = [""]
    for part in re.findall(r"\S[^\sA-Z_/-]*[\s_/-]*", text):
        if lines[-1] and len(lines[-1] + part.rstrip()) > most and len(lines) < 3:
            lines.append("")
        lines[-1] += part
    return "\n".join(shortened(line.strip(), most) for line in lines)


def _letters(width: float, size: float) -> int:
    return int(width * 72 / (size * _EM))


def _lines(count: int, size: float) -> float:
    """Give the height of some lines of text in inches, a little room included."""
    return count * size * _LINE / 72 + (_GAP if count else 0.0)


def _count(text: str) -> int:
    return text.count("\n") + 1 if text else 0


def _tallness(cell: Cell) -> float:
    if cell.pixels is None:
        return 1.0
    height, width, _ = cell.pixels.shape
    return min(float(height / width), _TALLEST)


def _no_finer(pixels: Pixels, width: float, height: float) -> Pixels:
    """Shrink what has more pixels than its place, so that a figure does not hold whole photographs."""
    image = Image.fromarray(pixels)
    image.thumbnail((round(width * DPI), round(height * DPI)), Image.Resampling.LANCZOS)
    return np.asarray(image)
