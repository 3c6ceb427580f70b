"""Paired measurements: alternating rounds, medians over the rounds, and a description of the machine."""

from __future__ import annotations

import logging
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import msgspec
import torch

from samtl._runtime import probe
from samtl.encoders.torch_encoder import DTYPES

_log = logging.getLogger("samtl.bench")

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
    """Measure several sides in turn, in reverse order in every other round; the first round is a warm-up.

    A warning tells of rounds that other processes disturbed.
    """
    found: dict[str, list[float]] = {name: [] for name in sides}
    for round_ in range(rounds + 1):
        others = probe.busy_elsewhere()
        for name in list(sides)[:: -1 if round_ % 2 else 1]:
            value = sides[name]()
            if round_:
                found[name].append(value)
        if round_ and (busy := others()) > probe.LOAD:
            _log.warning(
                "round %d of %d: other processes kept %.1f cores busy", round_, rounds, busy
            )
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
    here = probe.machine()
    return {
        "processor": here["processor"],
        "cores": os.cpu_count(),
        "threads": here["threads"],
        "limits": here["limits"],
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": here["torch"],
    }


@torch.inference_mode()
def peaks() -> list[Row]:
    """Measure large products of the dtypes that a CPU has, in TFLOP/s: the best of three."""
    n, rows = 2048, []
    x = torch.randn(n, n)
    sides = {name: x.to(DTYPES[name]) for name in probe.possible_dtypes(torch.device("cpu"))}
    if probe.has_int8():
        sides["int8"] = (20 * x).to(torch.int8)
    for name, square in sides.items():
        multiply = torch._int_mm if name == "int8" else torch.mm
        times = []
        for _ in range(4):
            began = time.perf_counter()
            multiply(square, square)
            times.append(time.perf_counter() - began)
            if times[0] > 1:  # emulated
                break
        rows.append(Row(f"matmul-peak/{name}", 2 * n**3 / min(times) / 1e12, "TFLOP/s"))
    return rows


def to_json(rows: list[Row]) -> dict[str, object]:
    """Return the figures and the machine as JSON values, with how fast it is in each dtype."""
    speeds = msgspec.to_builtins(probe.known())
    return {"rows": [asdict(row) for row in rows], "machine": machine(), "speeds": speeds}
