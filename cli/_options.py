"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Cache = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        help="A store, or a folder with one. [default: the only store in $SAMTL_CACHE or ./cache]",
        show_default=False,
    ),
]
Json = Annotated[
    Path | None,
    typer.Option(
        "--json", help="Write what is printed to this file as one JSON object.", show_default=False
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of the split and of the training.", min=0)]
