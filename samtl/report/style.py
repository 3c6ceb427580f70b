"""How figures look: sizes, text, a fixed look for each model; figures as SVG and PNG.

Everything that is not data has one of three neutral colours, which the page replaces in dark mode.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from samtl.errors import require_extra

matplotlib = require_extra("matplotlib", "report")

from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

INK = "#1f2428"  # text and axes
GRID = "#c9ced4"
PAPER = "#ffffff"
DARK = "#15181c"  # the background of a dark page: colours must be visible on it, too
ON_COLOUR = (
    "#fefefe"  # text on a strong colour; differs from PAPER, so the page does not replace it
)

WIDTH = 5.6  # inches: on a phone of 340 pixels, text of 10 points is still larger than 8
DPI = 160  # of PNG files
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
    # matplotlib ships the first; a browser without it takes one of the others, none of which is wider
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "sans-serif"],
    "font.size": LABEL,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.fontsize": SMALL,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.6,
    "lines.markersize": 5.5,
    "svg.fonttype": "none",  # text stays text: searchable, readable aloud, small
    "svg.hashsalt": "samtl",
    "text.color": INK,
    "text.parse_math": False,  # a class may be called "$"
    "xtick.color": INK,
    "xtick.labelsize": SMALL,
    "ytick.color": INK,
    "ytick.labelsize": SMALL,
}
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


@dataclass(frozen=True)
class Look:
    """How a model is drawn: colour, marker and dashes, each of which suffices to recognise it."""

    colour: str
    marker: str
    dashes: str | tuple[float, tuple[float, ...]]


# Every two colours differ by at least 19 in CIE L*a*b*, for colour-blind readers, too, and each has a contrast of 3 on
# white and on the dark background; tests/test_report_style.py measures both.
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
_MORE_MARKERS = "<>hp*d"


def looks(models: Iterable[str]) -> dict[str, Look]:
    """Assign a different look to each model: its name's own if that is free, else one that is left.

    Parameters
    ----------
    models : iterable of str
        Names, or names followed by features or parameters.
    """
    names = list(dict.fromkeys(models))
    found: dict[str, Look] = {}
    for name in names:
        own = LOOKS.get(name.split(maxsplit=1)[0].partition("[")[0]) if name else None
        if own is not None and own not in found.values():
            found[name] = own
    spare = (look for look in _spare() if look not in found.values())
    return {name: found[name] if name in found else next(spare) for name in names}


def _spare() -> Iterator[Look]:
    """Yield looks for further models without end: the known ones, then their colours with other markers."""
    known = [look for name, look in LOOKS.items() if name != "floor"]
    yield from known
    for i in itertools.count():
        marker = _MORE_MARKERS[i] if i < len(_MORE_MARKERS) else f"${i}$"
        yield Look(known[i % len(known)].colour, marker, known[i % len(known)].dashes)


def styled() -> AbstractContextManager[None]:
    """Return the context in which figures are made and drawn."""
    context: AbstractContextManager[None] = matplotlib.rc_context(_RC)
    return context


def figure(height: float, width: float = WIDTH) -> Figure:
    """Make an empty figure, sizes in inches, with a transparent background; only within `styled`."""
    return Figure(figsize=(width, height), layout="constrained")


def settled(drawn: Figure, note: str = "") -> Figure:
    """Put a note in small type above a figure and fix its layout, so that it is the same in every format."""
    if note:
        drawn.suptitle(note[0].upper() + note[1:], x=0.01, ha="left", style="italic")
    drawn.draw_without_rendering()
    drawn.set_layout_engine("none")
    return drawn


def rows_of_names(axes: Axes, names: list[str], values: list[str]) -> None:
    """Label the rows 0, 1, ... of a horizontal chart: names at the left, values at the right."""
    for place, value in enumerate(values):
        at = axes.get_yaxis_transform()
        axes.text(1.02, place, value, transform=at, va="center", fontsize=SMALL)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def svg(drawn: Figure) -> str:
    """Return a figure as an `<svg>` element with a transparent background, the same bytes each time."""
    file = io.StringIO()
    with styled():
        drawn.savefig(file, format="svg", transparent=True, metadata=_NO_METADATA)
    text = file.getvalue()
    return text[text.index("<svg") :]


def png(drawn: Figure, dpi: int = DPI, tight: bool = False) -> bytes:
    """Return a figure as a PNG file on white, the same bytes each time; `tight` crops it to its content."""
    file = io.BytesIO()
    with styled():
        box = "tight" if tight else None
        metadata = {"Software": None}
        drawn.savefig(
            file, format="png", dpi=dpi, facecolor=PAPER, metadata=metadata, bbox_inches=box
        )
    return file.getvalue()
