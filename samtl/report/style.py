"""How figures look: size, text, a fixed look for each model, and figures as SVG and PNG.

Whatever is no data is of one of three neutral colours, so that a page can exchange them in the dark; nothing else is.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import count
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK = "#1f2428"  # text, axes
GRID = "#c9ced4"
PAPER = "#ffffff"
DARK = "#15181c"  # the paper of a dark page, which colours must show on too
ON_COLOUR = "#fefefe"  # text on a strong colour: light on both papers, so no shade of PAPER

WIDTH = 5.6  # inches: shrunk to a phone's 340 pixels, text of 10 points still has more than 8
SMALL = 9.0
LABEL = 10.0

_RC: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": INK,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.labelsize": LABEL,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": LABEL,
    "axes.titleweight": "bold",
    "figure.facecolor": "none",
    "figure.titlesize": SMALL,
    "font.family": "sans-serif",
    # matplotlib ships the first; a page that lacks it takes the next, none of which runs wider.
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "sans-serif"],
    "font.size": LABEL,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.fontsize": SMALL,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.6,
    "lines.markersize": 5.5,
    "svg.fonttype": "none",  # text stays text: it can be searched and read out, and is small
    "svg.hashsalt": "samtl",
    "text.color": INK,
    "xtick.color": INK,
    "xtick.labelsize": SMALL,
    "ytick.color": INK,
    "ytick.labelsize": SMALL,
}
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


@dataclass(frozen=True)
class Look:
    """How a model is drawn: colour, marker and dashes, each of which is enough to know it by."""

    colour: str
    marker: str
    dashes: str | tuple[float, tuple[float, ...]]


# Chosen so that every two differ by at least 19 in CIE L*a*b*, for colour-blind readers too, and each has a contrast
# of 3 on white and on the dark paper; tests/test_report_style.py measures it.
LOOKS = {
    "logreg": Look("#1062ce", "o", "-"),
    "mlp": Look("#1e97ec", "s", (0, (6, 2))),
    "conv": Look("#20a65c", "^", (0, (4, 1.5, 1, 1.5))),
    "vit": Look("#dc7800", "D", "-"),
    "cnn": Look("#ca74ba", "v", (0, (2.5, 1.2))),
    "vgg19": Look("#504cf0", "P", (0, (6, 1.5, 1, 1.5, 1, 1.5))),
    "unet": Look("#be3220", "X", (0, (5, 1.5))),
    "floor": Look("#808080", "_", (0, (1, 1.2))),
}
_MORE = "<>hp*d"


def looks(models: Iterable[str]) -> dict[str, Look]:
    """Give each model of a study its look: its name's own where that is free, else one that is left.

    Parameters
    ----------
    models : iterable of str
        Names, or names followed by the features; the order decides only between those without a look of their own.

    Returns
    -------
    dict of str to Look
        All differ; the colours do as far as they reach.
    """
    names = list(dict.fromkeys(models))
    given: dict[str, Look] = {}
    for name in sorted(names, key=lambda name: (name not in LOOKS, names.index(name))):
        own = LOOKS.get(name.split(maxsplit=1)[0].partition("[")[0]) if name else None
        if own is not None and own not in given.values():
            given[name] = own
            continue
        spare = [look for look in LOOKS.values() if look not in given.values()]
        given[name] = next((look for look in spare if look is not LOOKS["floor"]), None) or _mixed(
            given.values()
        )
    return {name: given[name] for name in names}


def _mixed(taken: Iterable[Look]) -> Look:
    """Give a look made of a known colour and another marker."""
    have = set(taken)
    known = [look for name, look in LOOKS.items() if name != "floor"]
    for i in count():
        base = known[i % len(known)]
        look = Look(base.colour, f"${i}$" if i >= len(_MORE) else _MORE[i], base.dashes)
        if look not in have:
            return look
    raise AssertionError  # the count has no end


def styled() -> AbstractContextManager[None]:
    """Give the context in which figures are made and drawn."""
    return matplotlib.rc_context(_RC)


def figure(height: float, width: float = WIDTH) -> Figure:
    """Make an empty figure, in inches, with a transparent ground; within `styled` only."""
    return Figure(figsize=(width, height), layout="constrained")


def settled(drawn: Figure, note: str = "") -> Figure:
    """Lay a figure out for good, under a note in small type, so that it is the same in every format."""
    if note:
        drawn.suptitle(note[0].upper() + note[1:], x=0.01, ha="left", style="italic")
    drawn.draw_without_rendering()
    drawn.set_layout_engine("none")
    return drawn


def bare(axes: Axes, grid: str = "x") -> None:
    """Take the frame and the tick marks of one axis away, as for rows with names."""
    other = "y" if grid == "x" else "x"
    axes.grid(visible=False, axis=other)  # type: ignore[arg-type]
    axes.tick_params(axis=other, length=0)  # type: ignore[arg-type]
    axes.spines["left" if other == "y" else "bottom"].set_visible(False)


def svg(drawn: Figure) -> str:
    """Draw a figure as an `<svg>` element with a transparent ground, the same bytes each time."""
    file = io.StringIO()
    with styled():
        drawn.savefig(file, format="svg", transparent=True, metadata=_NO_METADATA)
    text = file.getvalue()
    return text[text.index("<svg") :]


def png(drawn: Figure, dpi: int = 160) -> bytes:
    """Draw a figure as a PNG file on white paper, the same bytes each time."""
    file = io.BytesIO()
    with styled():
        drawn.savefig(file, format="png", dpi=dpi, facecolor=PAPER, metadata={"Software": None})
    return file.getvalue()
