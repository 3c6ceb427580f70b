"""Paired measurements: both sides in turn, medians over the rounds, and what machine it was."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from samtl.machine import native_bfloat16


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes
    ----------
    name : str
    value : float
        Median over the rounds.
    unit : str
    vs : str
        What the ratio is against, or "".
    ratio : float or None
        Median over the rounds of value / the other side's value.
    """

    name: str
    value: float
    unit: str
    vs: str = ""
    ratio: float | None = None


def paired(
    name: str,
    unit: str,
    ours: Callable[[], float],
    vs: str,
    theirs: Callable[[], float],
    rounds: int,
) -> Row:
    """Measure two sides in turn; the first goes first in every other round, and one round is thrown away."""
    values, ratios = [], []
    for round_ in range(rounds + 1):
        if round_ % 2:
            other, mine = theirs(), ours()
        else:
            mine, other = ours(), theirs()
        if round_:  # the first one warms up
            values.append(mine)
            ratios.append(mine / other)
    return Row(name, statistics.median(values), unit, vs, statistics.median(ratios))


def machine() -> dict[str, object]:
    """Say what the figures were measured on."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "bfloat16": native_bfloat16(torch.device("cpu")),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def to_json(rows: list[Row]) -> dict[str, object]:
    """Give figures and machine as JSON values."""
    return {"rows": [asdict(row) for row in rows], "machine": machine()}


def _processor() -> str:
    """Linux has it in a file; elsewhere the platform's word for the architecture must do."""
    for line in _lines(Path("/proc/cpuinfo")):
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def _lines(path: Path) -> Iterator[str]:
    if path.exists():
        with path.open() as file:
            yield from file
