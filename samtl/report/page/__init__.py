"""A report as one HTML file: no network, light and dark, readable on a phone and on paper."""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image

from samtl.errors import require_extra
from samtl.report.style import DPI, GRID, INK, NOTE, NOTE_HEIGHT, PAPER, png

jinja2 = require_extra("jinja2", "report")

from markupsafe import Markup, escape  # noqa: E402

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CSS_PIXELS = 4 / 3  # in a point, the unit of matplotlib's SVG

Row = Mapping[str, Any]  # texts, numbers, cells and None by the names of the columns


class Cell(NamedTuple):
    """A number that a table shows as a text, such as with its interval."""

    value: float
    text: str
    best: bool = False  #: whether it is the best of its column


@dataclass(frozen=True, eq=False)
class Part:
    """A table, or a figure and the table of the numbers in it."""

    name: str  #: of its files and its anchor: see `slug`
    title: str
    caption: str
    rows: Sequence[Row]  #: of the CSV file, all with the same columns
    note: str = ""  #: the untrained weights that it depends on, and whose they are
    figure: Figure | None = None
    picture: bool = False  #: whether it consists of photographs: pixels are embedded, not SVG
    shown: Sequence[Row] | None = None  #: what the page shows instead of `rows`

    @property
    def header(self) -> list[str]:
        """Names of the columns of the CSV file."""
        return list(self.rows[0]) if self.rows else []

    @property
    def table(self) -> Sequence[Row]:
        """The rows that the page shows."""
        return self.rows if self.shown is None else self.shown

    @property
    def columns(self) -> list[str]:
        """Names of the columns that the page shows."""
        return list(self.table[0]) if self.table else []

    def _repr_png_(self) -> bytes | None:
        """Show the figure in a notebook."""
        return None if self.figure is None else png(self.figure, tight=self.picture)

    def written(self, name: str, value: Any) -> str:
        """Write a value of a column; the numbers of a column have as many decimals."""
        if value is None or value != value:  # NaN
            return ""
        if isinstance(value, Cell):
            return value.text
        if isinstance(value, int) and not isinstance(value, bool):
            return f"{value:,}" if abs(value) >= 10_000 else str(value)
        if not isinstance(value, float):
            return str(value)
        text = f"{value:,.{self._decimals[name]}f}"
        return f"{value:.2g}" if value and not text.strip("-0.") else text

    @functools.cached_property
    def _decimals(self) -> dict[str, int]:
        """Four digits of the largest number of each column, and at most three decimals."""
        found: dict[str, int] = {}
        for name in self.columns:
            values = [row[name] for row in self.table if isinstance(row[name], float)]
            largest = max((abs(v) for v in values if math.isfinite(v)), default=0.0)
            places = 3 - math.floor(math.log10(largest)) if largest else 0
            whole = all(v == round(v) for v in values if math.isfinite(v))
            found[name] = 0 if whole else min(3, max(0, places))
        return found

    @functools.cached_property
    def numeric(self) -> set[str]:
        """Names of the columns with numbers; words in them, such as `never`, are sorted last."""
        numbers = int | float | Cell
        return {name for row in self.table for name, v in row.items() if isinstance(v, numbers)}


@dataclass(frozen=True)
class Section:
    """A section of a page."""

    title: str
    parts: Sequence[Part] = ()
    texts: Sequence[str] = ()  #: paragraphs
    bullets: Sequence[str] = ()
    warnings: Sequence[str] = ()

    @property
    def name(self) -> str:
        """What its anchor is called."""
        return slug(self.title)


def slug(text: str) -> str:
    """Write a text in lower-case letters, digits and hyphens."""
    return "-".join(re.findall("[a-z0-9]+", text.lower()))


def caption(name: str, **facts: Any) -> str:
    """Fill in one of the texts of `captions.j2`."""
    macro = getattr(_environment().get_template("captions.j2").module, name)
    return " ".join(macro(**facts).split())


def render(
    title: str, subtitle: str, sections: Sequence[Section], images: Mapping[str, bytes], made: str
) -> str:
    """Write a report as one HTML file.

    Parameters
    ----------
    title, subtitle : str
    sections : sequence of Section
        The names of all parts must differ.
    images : mapping of str to bytes
        The figures by the names of their parts: SVG by matplotlib, or a WebP or PNG file.
    made : str
        The footer.
    """
    jinja = _environment(autoescape=True)
    jinja.filters["prose"] = _prose
    script = _asset("page.js")
    text: str = jinja.get_template("page.html").render(
        title=title,
        subtitle=subtitle,
        sections=sections,
        shown={name: _shown(image, name) for name, image in images.items()},
        made=made,
        css=Markup(_asset("page.css")),
        script=Markup(script),
        # Charts carry their colours in style attributes, so inline styles are allowed; other scripts are not.
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    return text


@functools.cache
def _environment(**options: Any) -> Any:
    return jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        **options,
    )


def _asset(name: str) -> str:
    return resources.files(__name__).joinpath(name).read_text(encoding="utf-8")


def _prose(text: str) -> Markup:
    """Escape text; parts between backticks become code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _shown(image: bytes, name: str) -> dict[str, Any]:
    """Return what the template needs to embed an image: an SVG's content or the URI of a picture, and its size."""
    if not image.startswith(b"<"):
        with Image.open(io.BytesIO(image)) as opened:
            kind, (width, height) = opened.get_format_mimetype(), opened.size
        data = base64.b64encode(image).decode()
        uri = f"data:{kind};base64,{data}"
        return {"uri": uri, "width": width, "height": height, "pixels": 96 * width / DPI}
    svg = image.decode()
    # A style sheet would apply to the whole page; page.css has its rules instead.
    svg = re.sub(r"<!--.*?-->|<style.*?</style>", "", svg, flags=re.S)
    head, _, content = svg.removesuffix("</svg>\n").partition(">")
    wide, high = map(float, re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', head)[0])
    # The page says at its top which weights are untrained; a file, which leaves the page, says it itself.
    content, notes = re.subn(rf'<g id="{NOTE}">.*?</g>', "", content, flags=re.S)
    top = notes * NOTE_HEIGHT
    # The ids of all figures share the page, so they get a prefix.
    content = re.sub(r'( id="| xlink:href="#|url\(#)', rf"\g<1>{name}--", content)
    for colour, variable in ((INK, "--ink"), (GRID, "--grid"), (PAPER, "--paper")):
        content = re.sub(rf": {colour}\b", f": var({variable})", content, flags=re.I)
    shown = {"svg": Markup(content), "width": wide, "height": high - top, "top": top}
    return {**shown, "pixels": wide * _CSS_PIXELS}
