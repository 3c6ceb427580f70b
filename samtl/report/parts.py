"""What a report page is made of: sections of text, tables and drawings, and their texts from `captions.j2`."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from samtl.errors import require_extra
from samtl.report.style import png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

jinja2 = require_extra("jinja2", "report")

Row = Mapping[str, Any]  # texts, numbers and None by the names of the columns


@dataclass(frozen=True, eq=False, kw_only=True)
class Table:
    """Rows of text and numbers, each with the same columns."""

    name: str  #: of its files and its anchor: lower-case letters, digits and hyphens
    title: str
    rows: Sequence[Row]
    caption: str = ""
    note: str = ""  #: the untrained weights that it depends on, and whose they are

    @property
    def header(self) -> list[str]:
        """Names of the columns."""
        return list(self.rows[0]) if self.rows else []


@dataclass(frozen=True, eq=False, kw_only=True)
class Drawing(Table):
    """A figure, with the numbers in it as a table."""

    figure: Figure
    picture: bool = (
        False  #: whether it consists of photographs, which are embedded as pixels, not SVG
    )

    def _repr_png_(self) -> bytes:
        """Show the figure in a notebook."""
        return png(self.figure, tight=self.picture)


@dataclass(frozen=True)
class Section:
    """A part of a page: warnings, a paragraph, bullet points, then tables and drawings."""

    title: str
    parts: Sequence[Table] = ()
    text: str = ""
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
    """Fill in one of the texts of `page/captions.j2`."""
    macro = getattr(environment().get_template("captions.j2").module, name)
    return " ".join(macro(**facts).split())


@functools.cache
def environment(**options: Any) -> Any:
    """Return the jinja2 environment of the report's templates."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("samtl.report", "page"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        **options,
    )
