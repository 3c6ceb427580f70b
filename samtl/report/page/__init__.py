"""A report as one HTML file: no network, light and dark, readable on a phone and on paper."""

from __future__ import annotations

import base64
import hashlib
import io
import math
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from markupsafe import Markup, escape
from PIL import Image

from samtl.report.parts import Drawing, Section, Table, environment
from samtl.report.style import DPI, GRID, INK, PAPER

MOST_ROWS = 2000  # of one table; more are slow on a phone, and the CSV file has them all
_CSS_PIXELS = 4 / 3  # in a point, the unit of matplotlib's SVG


def render(
    title: str,
    subtitle: str,
    sections: Sequence[Section],
    images: Mapping[str, bytes],
    made: str,
) -> str:
    """Write a report as one HTML file.

    Parameters
    ----------
    title, subtitle : str
    sections : sequence of Section
        The names of all tables and drawings must differ.
    images : mapping of str to bytes
        By the drawings' names: SVG by matplotlib, or a WebP or PNG file.
    made : str
        The footer.
    """
    jinja = environment(autoescape=True)
    jinja.filters |= {"prose": _prose, "written": written, "number": number}
    script = _asset("page.js")
    parts = [part for section in sections for part in section.parts]
    text: str = jinja.get_template("page.html").render(
        title=title,
        subtitle=subtitle,
        sections=sections,
        shown={
            part.name: _shown(images[part.name], part.name)
            for part in parts
            if isinstance(part, Drawing)
        },
        numeric=_numeric,
        most_rows=MOST_ROWS,
        made=made,
        css=Markup(_asset("page.css")),
        script=Markup(script),
        # Charts carry their colours in style attributes, so inline styles are allowed; other scripts are not.
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    return text


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
    svg = re.sub(r"<!--.*?-->|<metadata.*?</metadata>|<style.*?</style>", "", svg, flags=re.S)
    head, content = svg[: svg.index(">")], svg[svg.index(">") + 1 : svg.rindex("</svg>")]
    size = map(float, re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', head)[0])
    points = dict(zip(("width", "height"), size, strict=True))
    # The ids of all figures share the page, so they get a prefix.
    content = re.sub(r'( id="| xlink:href="#|url\(#)', rf"\g<1>{name}--", content)
    for colour, variable in ((INK, "--ink"), (GRID, "--grid"), (PAPER, "--paper")):
        content = re.sub(rf": {colour}\b", f": var({variable})", content, flags=re.I)
    return {"svg": Markup(content), **points, "pixels": points["width"] * _CSS_PIXELS}


def _numeric(table: Table) -> list[bool]:
    """Tell for each column whether it has numbers; words in it, such as `never`, are sorted last."""
    rows = table.rows[:MOST_ROWS]
    return [any(number(row[name]) is not None for row in rows) for name in table.header]


def number(value: object) -> float | None:
    """Return the number that a cell is sorted by; None for text."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def written(value: object) -> str:
    """Write a cell for reading: numbers to four digits."""
    if value is None or value != value:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and abs(value) >= 10_000 else str(value)
