"""How figures look: sizes, text, a fixed look for each model; figures as SVG and PNG.

Everything that is not data has one of three neutral colours, which the page replaces in dark mode.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any, Literal

from numpy.typing import NDArray

from samtl.errors import require_extra

matplotlib = require_extra("matplotlib", "report")

from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.layout_engine import ConstrainedLayoutEngine  # noqa: E402
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter  # noqa: E402

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
NOTE = "note"  # id of the note in an SVG; a page says once what it says
NOTE_HEIGHT = 16.0  # points
_STYLE = resources.files(__package__).joinpath("report.mplstyle")
_RC = matplotlib.rc_params_from_file(str(_STYLE), use_default_template=False)
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
_WIDE = 300  # largest / smallest value from which only powers of ten fit on a logarithmic axis


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
        own = LOOKS.get(re.split(r"[ \[]", name)[0])
        if own is not None and own not in found.values():
            found[name] = own
    known = [look for name, look in LOOKS.items() if name != "floor"]
    markers = itertools.chain("<>hp*d", (f"${i}$" for i in itertools.count()))
    more = (replace(look, marker=m) for look, m in zip(itertools.cycle(known), markers))
    spare = (look for look in itertools.chain(known, more) if look not in found.values())
    return {name: found[name] if name in found else next(spare) for name in names}


@contextmanager
def new_figure(height: float, width: float = WIDTH, note: str = "") -> Iterator[Figure]:
    """Make a figure, sizes in inches, to be drawn in a `with` block, after which its layout is fixed.

    The background is transparent. The note stands above everything, in small type.
    """
    with matplotlib.rc_context(_RC):
        figure = Figure(figsize=(width, height))
        yield figure
        if note:
            text = figure.suptitle(capital(note), x=0.01, ha="left", style="italic")
            text.set_gid(NOTE)
        # Once, so that it is the same in every format: an engine that stays lets each file draw the figure twice.
        ConstrainedLayoutEngine().execute(figure)


@contextmanager
def panels(
    count: int, across: int, height: float, more: float, note: str = "", shared: bool = False
) -> Iterator[tuple[Figure, NDArray[Any]]]:
    """Make a figure of panels, `across` in a row, and return it with its axes, (count,).

    A row has `height` inches, and all together have some `more`. Panels may have `shared` axes.
    """
    across = min(across, count)
    down = -(-count // across)
    with new_figure(more + down * height, note=note) as figure:
        every = figure.subplots(down, across, sharex=shared, sharey=shared, squeeze=False).ravel()
        for axes in every[count:]:
            axes.remove()
        for axes in every[max(0, count - across) : count]:  # also those above a place that is empty
            axes.tick_params(labelbottom=True)
        yield figure, every[:count]


def capital(text: str) -> str:
    """Begin a text with a capital letter."""
    return f"{text[0].upper()}{text[1:]}"


def rows_of_names(axes: Axes, names: Sequence[str], values: Sequence[str]) -> None:
    """Label the rows 0, 1, ... of a horizontal chart: names at the left, values at the right."""
    for place, value in enumerate(values):
        at = axes.get_yaxis_transform()
        axes.text(1.02, place, value, transform=at, va="center", fontsize=SMALL)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def shortened(text: str, most: int) -> str:
    """Replace the middle of a text by an ellipsis, so that at most so many letters are left."""
    kept = max(most - 1, 2)
    return text if len(text) <= most else f"{text[: kept // 2]}…{text[kept // 2 - kept :]}"


def log_scale(axes: Axes, which: Literal["x", "y"]) -> None:
    """Make an axis logarithmic, with plain numbers; call it after plotting."""
    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = axis.get_data_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < _WIDE * low else (1,)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_locator(NullLocator())


def svg(figure: Figure) -> str:
    """Return a figure as an `<svg>` element with a transparent background, the same bytes each time."""
    file = io.StringIO()
    with matplotlib.rc_context(_RC):
        figure.savefig(file, format="svg", dpi=DPI, transparent=True, metadata=_NO_METADATA)
    text = file.getvalue()
    return text[text.index("<svg") :]


def png(figure: Figure, dpi: int = DPI, tight: bool = False) -> bytes:
    """Return a figure as a PNG file on white, the same bytes each time; `tight` crops it to its content."""
    file = io.BytesIO()
    box, metadata = "tight" if tight else None, {"Software": None}
    with matplotlib.rc_context(_RC):
        figure.savefig(file, dpi=dpi, facecolor=PAPER, metadata=metadata, bbox_inches=box)
    return file.getvalue()
