"""One HTML file with everything in it: no network, light and dark, readable on a phone and on paper."""

from __future__ import annotations

import base64
import hashlib
import io
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from importlib import resources
from itertools import count, groupby
from xml.etree import ElementTree

from PIL import Image

from samtl.report.content import (
    Cell,
    Drawing,
    Page,
    Section,
    Table,
)
from samtl.report.style import GRID, INK, PAPER

MOST_ROWS = 2000  # of one table; a page with more is slow on a phone, and the CSV file has them all
_CSS_PIXELS = 4 / 3  # in a point, the unit of an SVG by matplotlib
_NARROWEST, _WIDEST = (
    0.5,
    1.3,
)  # how far a figure is scaled with the screen; a narrower one scrolls in its frame
# A number as tables have it, alone or followed by its deviation, interval or share.
_NUMBER = re.compile(
    r"([+\-\u2212]?(?:\d[\d,]*\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*(?:(?:[%±[(]|to\b).*)?", re.S
)


def render(
    page: Page, images: Mapping[str, bytes], *, files: str | None = "figures", made: str = ""
) -> str:
    """Write a report as one HTML file.

    Parameters
    ----------
    page : Page
        Names of sections must differ, and those of drawings and tables.
    images : dict of str to bytes
        By the drawings' names: SVG by matplotlib, or a JPEG, PNG or WebP file.
    files : str or None
        The folder beside the page with NAME.png, NAME.svg and NAME.csv, which is linked to; None for none. The page
        is complete without it.
    made : str
        By what and when, for its foot.

    Returns
    -------
    str
        What is not ASCII stays as it is: to be written as UTF-8.
    """
    names = Counter(name for section in page.sections for name in _ids(section))
    if twice := [name for name, times in names.items() if times > 1]:
        raise ValueError(f"names that occur twice on a page: {', '.join(twice)}")
    css, script = (_asset(name) for name in ("page.css", "page.js"))
    writer = _Writer(images, files)
    body = "\n".join(writer.section(section) for section in page.sections)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # Charts carry their colours in style attributes, which is why inline styles are allowed; scripts are not.
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
    contents = "\n".join(
        f'<li><a href="#section-{escape(section.name)}">{escape(section.title)}</a></li>'
        for section in page.sections
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<title>{escape(page.title)}</title>
<link rel="icon" href="data:,">
<style>
{css}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the report</a>
<header>
<button type="button" id="theme" aria-pressed="false" hidden>Dark</button>
<h1>{escape(page.title)}</h1>
<p class="subtitle">{_prose(page.subtitle)}</p>
</header>
<nav aria-labelledby="contents">
<h2 id="contents">Contents</h2>
<ol>
{contents}
</ol>
</nav>
<main id="main" tabindex="-1">
{body}
</main>
<footer>
<p>{_prose(made)}</p>
</footer>
<dialog id="large" aria-labelledby="large-title">
<div class="dialog-bar">
<p id="large-title"></p>
<button type="button" data-zoom="smaller" aria-label="Smaller">&minus;</button>
<button type="button" data-zoom="larger" aria-label="Larger">+</button>
<button type="button" data-zoom="close">Close</button>
</div>
<div class="stage" tabindex="0" role="group" aria-label="The figure; scrolls where it is larger than the screen"></div>
</dialog>
<script>{script}</script>
</body>
</html>
"""


def _ids(section: Section) -> Iterator[str]:
    yield f"section-{section.name}"
    yield from (part.name for part in section.parts)


def _asset(name: str) -> str:
    return resources.files("samtl.report").joinpath(name).read_text(encoding="utf-8")


def _paragraphs(texts: Iterable[str]) -> Iterator[str]:
    """Write paragraphs; those that begin with a hyphen are one list."""
    for listed, some in groupby(texts, lambda text: text.startswith("- ")):
        if listed:
            yield "<ul>" + "".join(f"<li>{_prose(text[2:])}</li>" for text in some) + "</ul>"
        else:
            yield from (f"<p>{_prose(text)}</p>" for text in some)


def _prose(text: str) -> str:
    """Escape text; what stands between backticks becomes code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


class _Writer:
    """Parts of the page, with the numbers of its figures and tables."""

    def __init__(self, images: Mapping[str, bytes], files: str | None) -> None:
        self.images, self.files = images, files
        self.figures, self.tables = count(1), count(1)

    def section(self, section: Section) -> str:
        name = f"section-{escape(section.name)}"
        lines = [
            f'<section id="{name}" aria-labelledby="{name}--title">',
            f'<h2 id="{name}--title">{escape(section.title)}</h2>',
        ]
        lines += [f'<p class="note" role="note">{_prose(text)}</p>' for text in section.warnings]
        lines += _paragraphs(section.paragraphs)
        lines += [
            self.drawing(part) if isinstance(part, Drawing) else self.table(part)
            for part in section.parts
        ]
        return "\n".join([*lines, "</section>"])

    def drawing(self, drawing: Drawing) -> str:
        name, image = escape(drawing.name), self.images[drawing.name]
        shown = inline_svg(image, drawing) if _is_svg(image) else _picture(image, drawing)
        links = self.links(
            drawing.name, ("png", "csv") if drawing.picture else ("png", "svg", "csv")
        )
        return f"""<div class="part" id="{name}">
<h3 id="{name}--title"><span class="number">Figure {next(self.figures)}.</span> {escape(drawing.title)}</h3>
<figure aria-labelledby="{name}--title">
<div class="frame" role="group" tabindex="0" aria-labelledby="{name}--title">{shown}</div>
<figcaption>{_prose(drawing.caption)}</figcaption>
</figure>
<p class="tools"><button type="button" class="open" hidden aria-haspopup="dialog" \
aria-label="Open large: {escape(drawing.title)}">Open large</button>{links}</p>
<details><summary>The numbers in this figure</summary>
<p class="caption">{_prose(drawing.table.caption)}</p>
{_grid(drawing.table, f"{name}--title")}
</details>
</div>"""

    def table(self, table: Table) -> str:
        name = escape(table.name)
        return f"""<div class="part" id="{name}">
<h3 id="{name}--title"><span class="number">Table {next(self.tables)}.</span> {escape(table.title)}</h3>
{_grid(table, f"{name}--title")}
<p class="caption">{_prose(table.caption)}</p>
<p class="tools">{self.links(table.name, ("csv",))}</p>
</div>"""

    def links(self, name: str, kinds: tuple[str, ...]) -> str:
        if self.files is None:
            return ""
        return "".join(
            f'<a href="{escape(f"{self.files}/{name}.{kind}")}" download>{kind.upper()}</a>'
            for kind in kinds
        )


def _is_svg(image: bytes) -> bool:
    return image.lstrip().startswith(b"<")


def inline_svg(image: bytes, drawing: Drawing) -> str:
    """Make an SVG file by matplotlib a part of the page, with the page's colours and with ids of its own.

    A document's ids are its pages' ids, and its style sheet would be the whole page's, so the first get a prefix and
    the second is left to `page.css`. Text, axes and grid take the colours of the page, light or dark.
    """
    root = ElementTree.fromstring(image)
    prefix = f"{drawing.name}--"
    for parent in list(root.iter()):
        for child in list(parent):
            if _local(child.tag) in ("metadata", "style", "script", "title"):
                parent.remove(child)
    for element in root.iter():
        element.tag = _local(element.tag)
        attributes = {_local(key): value for key, value in element.attrib.items()}
        if "id" in attributes:
            attributes["id"] = prefix + attributes["id"]
        for key, value in attributes.items():
            if key == "href" and value.startswith("#"):
                attributes[key] = f"#{prefix}{value[1:]}"
            elif "url(#" in value:
                attributes[key] = value.replace("url(#", f"url(#{prefix}")
        if "style" in attributes:
            attributes["style"] = _themed(attributes["style"])
        element.attrib.clear()
        element.attrib.update(attributes)
    width, height = (float(size) for size in root.attrib["viewBox"].split()[2:])
    for gone in ("width", "height", "version", "id"):
        root.attrib.pop(gone, None)
    root.attrib.update(
        {
            "class": "chart",
            "role": "img",
            "aria-label": drawing.alt,
            "style": _sized(width * _CSS_PIXELS, width, height),
        }
    )
    return ElementTree.tostring(root, encoding="unicode")


def _local(name: str) -> str:
    return name.rpartition("}")[2].rpartition(":")[2]


def _themed(style: str) -> str:
    """Let the colours of text, grid and background follow the page."""
    for colour, variable in ((INK, "--ink"), (GRID, "--grid"), (PAPER, "--paper")):
        style = re.sub(re.escape(colour), f"var({variable})", style, flags=re.I)
    return style


def _sized(pixels: float, width: float, height: float) -> str:
    return (
        f"min-width:{_NARROWEST * pixels:.0f}px;max-width:{_WIDEST * pixels:.0f}px;"
        f"aspect-ratio:{width:g}/{height:g}"
    )


def _picture(image: bytes, drawing: Drawing) -> str:
    with Image.open(io.BytesIO(image)) as opened:
        kind, (width, height) = opened.get_format_mimetype(), opened.size
    data = base64.b64encode(image).decode()
    natural = drawing.figure.get_figwidth() * 72 * _CSS_PIXELS
    return (
        f'<img class="picture" src="data:{kind};base64,{data}" alt="{escape(drawing.alt)}" width="{width}" '
        f'height="{height}" style="{_sized(natural, width, height)}">'
    )


def _grid(table: Table, title: str) -> str:
    """Write the table itself in a box of its own that scrolls."""
    if odd := [row for row in table.rows if len(row) != len(table.header)]:
        raise ValueError(f"table {table.name}: {len(odd[0])} cells under {len(table.header)} names")
    shown = table.rows[:MOST_ROWS]
    columns = list(zip(*shown, strict=True)) or [()] * len(table.header)
    numeric = [_is_numeric(column) for column in columns]
    heads = "".join(
        f'<th scope="col"{" class=n" if number else ""}><button type="button">{escape(name)}</button></th>'
        for name, number in zip(table.header, numeric, strict=True)
    )
    rows = "\n".join("<tr>" + "".join(map(_cell, row, numeric)) + "</tr>" for row in shown)
    cut = len(table.rows) - len(shown)
    more = f'<p class="caption">{cut:,} more rows are in the CSV file.</p>' if cut else ""
    return f"""<div class="scroll" tabindex="0" role="region" aria-labelledby="{title}">
<table aria-labelledby="{title}">
<thead><tr>{heads}</tr></thead>
<tbody>
{rows}
</tbody>
</table>
</div>{more}"""


def _cell(cell: Cell, numeric: bool) -> str:
    value = sort_value(cell) if numeric else None
    told = "" if value is None else f" data-value={value!r}"
    return f"<td{' class=n' if numeric else ''}{told}>{escape(written(cell))}</td>"


def _is_numeric(column: tuple[Cell, ...]) -> bool:
    """Tell whether most of what a column holds is numbers; what is not, such as `never`, is sorted last."""
    held = [cell for cell in column if cell not in (None, "")]
    return 2 * sum(sort_value(cell) is not None for cell in held) > len(held)


def sort_value(cell: Cell) -> float | None:
    """Give the number that a cell is sorted by: itself, or what an interval or a deviation belongs to."""
    if isinstance(cell, int | float):
        return float(cell) if math.isfinite(cell) else None
    if cell is None or not (found := _NUMBER.fullmatch(cell.strip())):
        return None
    return float(found[1].replace(",", "").replace("\u2212", "-"))


def written(cell: Cell) -> str:
    """Write a cell as it is read: numbers to four digits."""
    if cell is None or cell != cell:
        return ""
    if isinstance(cell, float):
        return f"{cell:,.0f}" if abs(cell) >= 1000 else f"{cell:.4g}"
    return f"{cell:,}" if isinstance(cell, int) and abs(cell) >= 10_000 else str(cell)
