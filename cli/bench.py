"""`samtl bench`: measurements of this machine, each beside an alternative. They run in a checkout only."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from samtl.errors import InputError

from . import render, stores
from .options import Outcome, Verbs, verb

_CHECKOUT = Path(__file__).resolve().parent.parent
_WHAT = {
    "encoder": "The encoder beside segment_anything as shipped and beside transformers, and how exact it is.",
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
        stores.draw_speeds()
        told = (f"{key} {value}" for key, value in paired.machine().items() if value != {})
        render.say(", ".join(told), "dim")
        return content, 0

    command.__doc__ = _WHAT[name]
    skip = ("choices",) if name == "sweep" else ("choices", "cases")
    return verb(f"benchmarks.{name}:bench_{name}", rename=_RENAME, skip=skip)(command)


for _name in _WHAT:
    app.command(_name)(_command(_name))
