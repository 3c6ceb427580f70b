"""`samtl bench`: this machine's figures, each beside what one would otherwise do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from . import _render as render
from ._options import Json

if TYPE_CHECKING:
    from samtl.bench._paired import Row

app = typer.Typer(
    no_args_is_help=True,
    help="Measure this machine, each figure beside what one would otherwise do.",
)


@app.callback()
def _root() -> None:
    """Keep `heads` a command of its own while it is the only one."""


@app.command("heads")
def heads(
    rounds: Annotated[int, typer.Option(help="Rounds of each pair.", min=1)] = 5,
    json: Json = None,
) -> None:
    """Measure how fast heads train, against the layers that one would write first, and whether they wait for data."""
    from samtl.bench import _paired
    from samtl.bench.heads import bench_heads

    with render.err.status("measuring") as status:
        rows = bench_heads(rounds, on_row=lambda row: status.update(f"measured {row.name}"))
    draw(rows)
    machine = _paired.machine()
    render.say(", ".join(f"{name} {value}" for name, value in machine.items()), "dim")
    render.write_json(json, _paired.to_json(rows))


def draw(rows: list[Row]) -> None:
    """Print figures and ratios."""
    render.grid(
        ("what", "value", "unit", "ratio", "against"),
        [
            (
                row.name,
                f"{row.value:.1%}" if row.unit == "share" else f"{row.value:,.1f}",
                "" if row.unit == "share" else row.unit,
                "" if row.ratio is None else f"{row.ratio:.1f} x",
                row.vs,
            )
            for row in rows
        ],
        right=(1, 3),
    )
