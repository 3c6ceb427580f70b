"""`samtl bench`: measurements of this machine, each beside an alternative. They run in a checkout only."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import typer

from samtl.errors import InputError

from . import render
from .options import Outcome, Verbs, verb

_CHECKOUT = Path(__file__).resolve().parent.parent
_WHAT = {
    "encoder": "The encoder beside segment_anything as shipped and beside transformers, and how exact it is.",
    "coverage": "How often 95 % intervals cover the truth, beside those of a plain bootstrap.",
    "embed": "A whole encoder pass for several choices of tiers, beside the encoder alone.",
    "images": "How fast images are decoded, beside plain Pillow.",
    "heads": "How fast heads train, beside plain layers, and whether they wait for the store.",
    "store": "How fast rows are read and committed, beside other readers, and how long a large store opens.",
    "sweep": "How long sweeps take, beside a loop of single fits, and how often they read a store.",
    "verbs": "How long it takes to embed again, and to fit a head from the command line and from Python.",
}
_RENAME = {"dtypes": "dtype", "others": "against", "store": "cache", "cases": "only"}


class _Benchmarks(Verbs):
    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if not (_CHECKOUT / "benchmarks").is_dir():
            raise InputError("samtl bench needs a checkout: clone the repository and run it there")
        sys.path.insert(0, str(_CHECKOUT))
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=_Benchmarks, no_args_is_help=True, help="Measure this machine, beside alternatives."
)


def draw_speeds() -> dict[str, Any]:
    """Print how fast this machine is in each dtype, as far as that was measured, and return it."""
    from samtl._runtime import probe

    here, speeds = probe.machine(), probe.known()
    rows = []
    for work, one in sorted(speeds.items()):
        best = min(one.seconds, key=one.seconds.__getitem__)
        relative = one.relative_to("float32").items()
        other = ", ".join(f"{name} {ratio:.2f} x" for name, ratio in relative if name != "float32")
        busy = f"{one.load:.1f}" if one.disturbed else ""
        rows.append((work, f"{1000 * one.seconds['float32']:.0f} ms", other, best, busy))
    headers = ("work", "float32", "others, of its speed", "fastest", "busy elsewhere")
    render.grid(headers, rows)
    return {"machine": here, "speeds": msgspec.to_builtins(speeds)}


def _command(name: str) -> Callable[..., None]:
    def command(options: dict[str, Any]) -> Outcome:
        paired = importlib.import_module("benchmarks.paired")
        bench = getattr(importlib.import_module(f"benchmarks.{name}"), f"bench_{name}")
        with render.err.status("measuring") as status:
            rows = bench(**options, on_row=lambda row: status.update(f"measured {row.name}"))
        headers = ("what", "value", "unit", "ratio", "against", "rounds")
        peaks = paired.peaks()
        render.grid(headers, [row.written() for row in (*rows, *peaks)], right=(1, 3))
        content = paired.to_json([*rows, *peaks])
        draw_speeds()
        told = (f"{key} {value}" for key, value in paired.machine().items() if value != {})
        render.say(", ".join(told), "dim")
        return content, 0

    command.__doc__ = _WHAT[name]
    skip = () if name in ("coverage", "sweep") else ("cases",)
    return verb(f"benchmarks.{name}:bench_{name}", rename=_RENAME, skip=skip)(command)


for _name in _WHAT:
    app.command(_name)(_command(_name))
