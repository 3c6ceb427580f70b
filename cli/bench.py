"""`samtl bench`: this machine's figures, each beside what one would otherwise do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import _render as render
from ._options import Jobs, Json

if TYPE_CHECKING:
    from samtl.bench._paired import Row

app = typer.Typer(
    no_args_is_help=True,
    help="Measure this machine, each figure beside what one would otherwise do.",
)


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


@app.command("sweep")
def sweep(
    only: Annotated[
        str, typer.Option(help="Which of pooled, grid16 and dense, separated by commas.")
    ] = "pooled,grid16,dense",
    cache: Annotated[
        Path | None,
        typer.Option(
            help="A store with pooled and grid16 to measure on.", show_default="made-up features"
        ),
    ] = None,
    rows: Annotated[int, typer.Option(help="Rows of made-up features.", min=160)] = 27_000,
    dense_rows: Annotated[int, typer.Option(help="Rows of made-up embeddings.", min=48)] = 2_400,
    splits: Annotated[str, typer.Option(help="As for samtl sweep.")] = "0.1,0.2,...,0.9",
    seeds: Annotated[
        int | None, typer.Option(help="How many.", min=1, show_default="5, and 3 of grid16")
    ] = None,
    jobs: Jobs = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="A new folder that keeps all of it, made-up stores too.",
            show_default="nothing is kept",
        ),
    ] = None,
    json: Json = None,
) -> None:
    """Measure how long sweeps take, against a loop of one training after the other, and how often they read a store."""
    from samtl import crew
    from samtl.bench import _paired
    from samtl.bench.sweep import CASES, bench_sweep
    from samtl.errors import UnknownName

    cases = [name.strip() for name in only.split(",")]
    for name in cases:
        if name not in (*CASES, "dense"):
            raise UnknownName("case of the bench", name, (*CASES, "dense"))
    with render.err.status("measuring") as status:
        found = bench_sweep(
            cases,
            cache,
            rows,
            dense_rows,
            splits,
            seeds,
            jobs or crew.cores(),
            out,
            on_row=lambda row: render.err.print(f"{row.name}: {row.value:,.1f} {row.unit}"),
            on_event=status.update,
        )
    draw(found)
    render.say(
        "naive is a loop of samtl fit-head; some of its splits are run, the others follow by their size",
        "dim",
    )
    machine = _paired.machine()
    render.say(", ".join(f"{name} {value}" for name, value in machine.items()), "dim")
    render.write_json(json, _paired.to_json(found))


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
