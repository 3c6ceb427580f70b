"""What is told while work goes on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Note:
    """Something that the user must know, in a line."""

    text: str

    def __str__(self) -> str:
        return self.text
