"""Paired measurements: alternating rounds, medians over the rounds, and a description of the machine."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from samtl._runtime import native_bfloat16

#: Rows name the tier `grid` by its first name, so that programs can compare rows of different versions.
TIER_IN_ROWS = {"grid": "grid16"}


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
        Name of the side that the ratio is taken against, or "".
    ratio : float or None
        Median over the rounds of value / value of the other side.
    spread : (float, float) or None
        Smallest and largest value of a round, or ratio if there is one.
    """

    name: str
    value: float
    unit: str
    vs: str = ""
    ratio: float | None = None
    spread: tuple[float, float] | None = None

    def written(self) -> tuple[str, ...]:
        """Return the name, value, unit, ratio, other side and spread as text."""
        spread = ""
        if self.spread is not None and self.ratio is not None:
            spread = "{:.2f} to {:.2f} x".format(*self.spread)
        elif self.spread is not None:
            spread = " to ".join(self._figure(value) for value in self.spread)
        unit = "" if self.unit == "share" else self.unit
        ratio = "" if self.ratio is None else f"{self.ratio:.2f} x"
        return self.name, self._figure(self.value), unit, ratio, self.vs, spread

    def _figure(self, value: float) -> str:
        if self.unit == "share":
            return f"{value:.1%}"
        return f"{value:,.1f}" if value >= 10 else f"{value:.3g}"


def paired(
    name: str,
    unit: str,
    ours: Callable[[], float],
    vs: str,
    theirs: Callable[[], float],
    rounds: int,
) -> Row:
    """Measure two sides in turn, as `alternating` does."""
    rounds_of = alternating({"ours": ours, "theirs": theirs}, rounds)
    return against(name, unit, rounds_of["ours"], vs, rounds_of["theirs"])


def alternating(sides: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Measure several sides in turn, in reverse order in every other round; the first round is a warm-up."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for round_ in range(rounds + 1):
        for name in list(sides)[:: -1 if round_ % 2 else 1]:
            value = sides[name]()
            if round_:
                found[name].append(value)
    return found


def alone(name: str, unit: str, values: list[float]) -> Row:
    """Return the median of one side's rounds."""
    return Row(name, statistics.median(values), unit, spread=(min(values), max(values)))


def against(name: str, unit: str, ours: list[float], vs: str, theirs: list[float]) -> Row:
    """Return the median of one side's rounds, and that of the ratios to another side in the same rounds."""
    ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    spread = min(ratios), max(ratios)
    return Row(name, statistics.median(ours), unit, vs, statistics.median(ratios), spread)


def machine() -> dict[str, object]:
    """Describe the machine that figures were measured on."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "bfloat16": native_bfloat16(torch.device("cpu")),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def to_json(rows: list[Row]) -> dict[str, object]:
    """Return the figures and the machine as JSON values."""
    return {"rows": [asdict(row) for row in rows], "machine": machine()}


def _processor() -> str:
    """Return the model of the processor on Linux, elsewhere the architecture."""
    for line in _lines(Path("/proc/cpuinfo")):
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def _lines(path: Path) -> Iterator[str]:
    if path.exists():
        with path.open() as file:
            yield from file
