"""What a report page is made of: sections of text, tables and drawings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from samtl.report.style import png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Value = str | int | float | None


@dataclass(frozen=True, eq=False)
class Table:
    """Rows of text and numbers."""

    name: str  #: of its files and its anchor: lower-case letters, digits and hyphens
    title: str
    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]  #: one value for each name of the header


@dataclass(frozen=True, eq=False)
class Drawing(Table):
    """A figure, with the numbers in it as a table."""

    figure: Figure
    picture: bool = (
        False  #: whether it consists of photographs, which are embedded as pixels instead of SVG
    )

    def _repr_png_(self) -> bytes:
        """Show the figure in a notebook."""
        return png(self.figure, tight=self.picture)


@dataclass(frozen=True)
class Section:
    """A part of a page: warnings, paragraphs, bullet points, then tables and drawings."""

    name: str
    title: str
    parts: tuple[Table, ...] = ()
    paragraphs: tuple[str, ...] = ()
    bullets: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
