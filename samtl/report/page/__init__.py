"""A report as one HTML file: no network, light and dark, readable on a phone and on paper."""

from __future__ import annotations

import base64
import hashlib
import io
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from PIL import Image

from samtl.errors import require_extra
from samtl.report.content import Drawing, Section, Table, Value
from samtl.report.style import DPI, GRID, INK, PAPER

jinja2 = require_extra("jinja2", "report")

from markupsafe import Markup, escape  # noqa: E402

MOST_ROWS = 2000  # of one table; more are slow on a phone, and the CSV file has them all
_CSS_PIXELS = 4 / 3  # in a point, the unit of matplotlib's SVG
# How far a figure is scaled with the screen; on a narrower one it scrolls in its frame.
_NARROWEST, _WIDEST = 0.5, 1.3
# A number as tables have it, alone or followed by its deviation, interval or share.
_NUMBER = re.compile(
    r"([+\-\u2212]?(?:\d[\d,]*\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*(?:(?:[%±[(]|to\b).*)?", re.S
)


def render(
    title: str,
    subtitle: str,
    sections: Sequence[Section],
    images: Mapping[str, bytes],
    *,
    files: str | None = "figures",
    made: str = "",
) -> str:
    """Write a report as one HTML file.

    Parameters
    ----------
    title, subtitle : str
    sections : sequence of Section
        Names of sections must differ, and those of drawings and tables.
    images : mapping of str to bytes
        By the drawings' names: SVG by matplotlib, or a WebP, PNG or JPEG file.
    files : str or None
        The folder beside the page with NAME.png, NAME.svg and NAME.csv, which the page links to; None for no links.
    made : str
        The footer.
    """
    names = Counter(part.name for section in sections for part in section.parts)
    names.update(f"section-{section.name}" for section in sections)
    if twice := [name for name, times in names.items() if times > 1]:
        raise ValueError(f"names that occur twice on a page: {', '.join(twice)}")
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"prose": _prose, "written": written, "sort_value": sort_value}
    environment.tests["drawing"] = lambda part: isinstance(part, Drawing)
    script = _asset("page.js")
    text: str = environment.get_template("page.html").render(
        title=title,
        subtitle=subtitle,
        sections=sections,
        shown={
            part.name: _shown(images[part.name], part)
            for section in sections
            for part in section.parts
            if isinstance(part, Drawing)
        },
        numeric=_numeric_columns,
        most_rows=MOST_ROWS,
        files=files,
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


def _shown(image: bytes, drawing: Drawing) -> dict[str, Any]:
    """Return what the template needs to embed an image: an SVG's content or the URI of a picture, and sizes."""
    if image.startswith(b"<"):
        svg = image.decode()
        found = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
        width, height = (float(size) for size in found.groups()) if found else (1.0, 1.0)
        return {
            "svg": Markup(_inlined(svg, drawing.name)),
            **_sized(width * _CSS_PIXELS, width, height),
        }
    with Image.open(io.BytesIO(image)) as opened:
        kind, (width, height) = opened.get_format_mimetype(), opened.size
    data = base64.b64encode(image).decode()
    return {"uri": f"data:{kind};base64,{data}", **_sized(96 * width / DPI, width, height)}


def _sized(pixels: float, width: float, height: float) -> dict[str, Any]:
    style = (
        f"min-width:{_NARROWEST * pixels:.0f}px;max-width:{_WIDEST * pixels:.0f}px;"
        f"aspect-ratio:{width:g}/{height:g}"
    )
    return {"width": width, "height": height, "style": style}


def _inlined(svg: str, name: str) -> str:
    """Return the content of matplotlib's SVG with ids of its own and in the page's colours.

    The ids of all figures share the page, so they get a prefix; a style sheet would apply to the whole page, so
    page.css has its rules instead. Text, axes and grid take the page's colours, light or dark.
    """
    svg = re.sub(r"<!--.*?-->|<metadata.*?</metadata>|<style.*?</style>", "", svg, flags=re.S)
    content = svg[svg.index(">") + 1 : svg.rindex("</svg>")]
    content = re.sub(r'( id="| xlink:href="#|url\(#)', rf"\g<1>{name}--", content)
    for colour, variable in ((INK, "--ink"), (GRID, "--grid"), (PAPER, "--paper")):
        content = re.sub(rf": {colour}\b", f": var({variable})", content, flags=re.I)
    return content


def _numeric_columns(table: Table) -> list[bool]:
    """Tell for each column whether most of its values are numbers; others, such as `never`, are sorted last."""
    numeric = []
    for column in range(len(table.header)):
        held = [row[column] for row in table.rows[:MOST_ROWS] if row[column] not in (None, "")]
        numeric.append(2 * sum(sort_value(value) is not None for value in held) > len(held))
    return numeric


def sort_value(value: Value) -> float | None:
    """Return the number that a cell is sorted by: itself, or the one that its interval or deviation belongs to."""
    if isinstance(value, int | float):
        return float(value) if math.isfinite(value) else None
    if value is None or not (found := _NUMBER.fullmatch(value.strip())):
        return None
    return float(found[1].replace(",", "").replace("\u2212", "-"))


def written(value: Value) -> str:
    """Write a cell for reading: numbers to four digits."""
    if value is None or value != value:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and abs(value) >= 10_000 else str(value)
