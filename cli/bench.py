"""`samtl bench`: this machine's figures, each beside what one would otherwise do."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from samtl.errors import InputError

from . import _render as render
from ._options import DatasetSpec, Device, ImageSize, Jobs, Json, Limit, Root

if TYPE_CHECKING:
    from benchmarks.paired import Row

# The measurements lie beside the library in a checkout, and are not installed with it.
_CHECKOUT = Path(__file__).resolve().parent.parent

Rounds = Annotated[int, typer.Option(help="Rounds, in which all sides take turns.", min=1)]

app = typer.Typer(
    no_args_is_help=True,
    help="Measure this machine, each figure beside what one would otherwise do.",
)


@app.callback()
def find_benchmarks() -> None:
    """Make the measurements of a checkout importable."""
    if not (_CHECKOUT / "benchmarks").is_dir():
        raise InputError(
            "samtl bench runs in a checkout of the repository: git clone it, then pip install -e ."
        )
    if str(_CHECKOUT) not in sys.path:
        sys.path.insert(0, str(_CHECKOUT))


@app.command("heads")
def heads(
    rounds: Rounds = 5,
    json: Json = None,
) -> None:
    """Measure how fast heads train, against the layers that one would write first, and whether they wait for data."""
    from benchmarks import paired as _paired
    from benchmarks.heads import bench_heads

    with render.err.status("measuring") as status:
        rows = bench_heads(rounds, on_row=lambda row: status.update(f"measured {row.name}"))
    draw(rows)
    tell_machine()
    render.write_json(json, _paired.to_json(rows))


@app.command("encoder")
def encoder(
    encoder: Annotated[str, typer.Option(help="See samtl ls encoders.")] = "sam_vit_b",
    checkpoint: Annotated[str, typer.Option(help="No speed depends on it.")] = "random:0",
    device: Device = "auto",
    dtype: Annotated[
        str, typer.Option(help="What samtl computes in, separated by commas.")
    ] = "auto,float32",
    image_size: Annotated[int, typer.Option(help="Side of the input in pixels.", min=16)] = 1024,
    batch_size: Annotated[
        int | None,
        typer.Option(
            help="Images at a time, for every side.",
            min=1,
            show_default="the fastest; on a CPU one, and for samtl one for each core",
        ),
    ] = None,
    others: Annotated[
        str,
        typer.Option(
            "--against",
            help="What to compare with, separated by commas. transformers is left out where it is not installed.",
        ),
    ] = "shipped-float32,shipped-autocast,shipped-bfloat16,transformers-bfloat16",
    rounds: Rounds = 5,
    json: Json = None,
) -> None:
    """Measure the encoder beside segment_anything as it is shipped and beside transformers, and how exact it is."""
    from benchmarks import paired as _paired
    from benchmarks.encoder import bench_encoder

    with render.err.status("measuring") as status:
        rows = bench_encoder(
            encoder,
            checkpoint,
            device,
            [name.strip() for name in dtype.split(",")],
            image_size,
            batch_size,
            rounds,
            [name.strip() for name in others.split(",") if name.strip()],
            on_event=status.update,
        )
    draw(rows)
    tell_machine()
    render.write_json(json, _paired.to_json(rows))


@app.command("embed")
def embed(
    encoder: Annotated[str, typer.Option(help="See samtl ls encoders.")] = "tiny",
    checkpoint: Annotated[str, typer.Option(help="No speed depends on it.")] = "random:0",
    dataset: DatasetSpec = "synthetic:8",
    root: Root = None,
    device: Device = "auto",
    dtype: Annotated[str, typer.Option(help="What to compute in, as for samtl embed.")] = "auto",
    image_size: ImageSize = None,
    batch_size: Annotated[
        str, typer.Option(help="Images per encoder call: auto or a number.")
    ] = "auto",
    limit: Limit = None,
    rounds: Rounds = 3,
    out: Annotated[
        Path | None,
        typer.Option(
            help="A folder on the disk to measure with.", show_default="that of temporary files"
        ),
    ] = None,
    json: Json = None,
) -> None:
    """Measure a whole encoder pass for several choices of tiers, beside the encoder alone."""
    from benchmarks import paired as _paired
    from benchmarks.embed import bench_embed

    with render.err.status("measuring") as status:
        rows = bench_embed(
            encoder,
            checkpoint,
            dataset,
            root=root,
            device=device,
            dtype=dtype,
            image_size=image_size,
            batch_size=batch_size,
            limit=limit,
            rounds=rounds,
            out=out,
            on_event=status.update,
        )
    draw(rows)
    tell_machine()
    render.write_json(json, _paired.to_json(rows))


@app.command("store")
def store(
    rows: Annotated[int, typer.Option(help="Rows of 2 MiB, a multiple of 16.", min=16)] = 512,
    log_rows: Annotated[
        int, typer.Option(help="Rows of the store that is opened; 0 to leave it out.", min=0)
    ] = 1_000_000,
    rounds: Rounds = 5,
    out: Annotated[
        Path | None,
        typer.Option(
            help="A folder on the disk to measure.", show_default="that of temporary files"
        ),
    ] = None,
    json: Json = None,
) -> None:
    """Measure how fast rows are read, beside other readers, and committed, and how long a large store opens."""
    from benchmarks import paired as _paired
    from benchmarks.store import bench_store

    with render.err.status("measuring") as status:
        found = bench_store(rows, log_rows, rounds, out, on_event=status.update)
    draw(found)
    tell_machine()
    render.write_json(json, _paired.to_json(found))


@app.command("sweep")
def sweep(
    only: Annotated[
        str, typer.Option(help="Which of pooled, grid and dense, separated by commas.")
    ] = "pooled,grid,dense",
    cache: Annotated[
        Path | None,
        typer.Option(
            help="A store with pooled and grid to measure on.", show_default="made-up features"
        ),
    ] = None,
    rows: Annotated[int, typer.Option(help="Rows of made-up features.", min=160)] = 27_000,
    dense_rows: Annotated[int, typer.Option(help="Rows of made-up embeddings.", min=48)] = 2_400,
    splits: Annotated[str, typer.Option(help="As for samtl sweep.")] = "0.1,0.2,...,0.9",
    seeds: Annotated[
        int | None, typer.Option(help="How many.", min=1, show_default="5, and 3 of grid")
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
    from benchmarks import paired as _paired
    from benchmarks.sweep import CASES, bench_sweep
    from samtl.errors import UnknownName
    from samtl.sweep.worker import cores

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
            jobs or cores(),
            out,
            on_row=lambda row: render.err.print(f"{row.name}: {row.value:,.1f} {row.unit}"),
            on_event=status.update,
        )
    draw(found)
    render.say(
        "naive is a loop of samtl fit-head; some of its splits are run, the others follow by their size",
        "dim",
    )
    tell_machine()
    render.write_json(json, _paired.to_json(found))


def tell_machine() -> None:
    """Say what the figures were measured on."""
    from benchmarks import paired as _paired

    machine = _paired.machine()
    render.say(", ".join(f"{name} {value}" for name, value in machine.items()), "dim")


def draw(rows: list[Row]) -> None:
    """Print figures, ratios, and how far rounds lay apart."""
    render.grid(
        ("what", "value", "unit", "ratio", "against", "rounds"),
        [
            (
                row.name,
                _figure(row.value, row.unit),
                "" if row.unit == "share" else row.unit,
                "" if row.ratio is None else f"{row.ratio:.2f} x",
                row.vs,
                _spread(row),
            )
            for row in rows
        ],
        right=(1, 3),
    )


def _figure(value: float, unit: str) -> str:
    if unit == "share":
        return f"{value:.1%}"
    return f"{value:,.1f}" if value >= 10 else f"{value:.3g}"


def _spread(row: Row) -> str:
    if row.spread is None:
        return ""
    if row.ratio is not None:
        return "{:.2f} to {:.2f} x".format(*row.spread)
    return " to ".join(_figure(value, row.unit) for value in row.spread)
