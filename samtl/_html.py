"""How notebooks show a store and a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


def table(title: str, rows: Iterable[Sequence[object]], head: Sequence[str] = ()) -> str:
    """Return a small HTML table with a title and, if there is a head, named columns; all texts are escaped."""
    parts = [f"<table><caption>{escape(title)}</caption>"]
    if head:
        parts.append("<tr>" + "".join(f"<th>{escape(name)}</th>" for name in head) + "</tr>")
    parts += (
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    return "".join([*parts, "</table>"])
