"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from samtl.errors import InputError


def _place_for_json(path: Path | None) -> Path | None:
    """Refuse a place that cannot take the file now, not after hours of work."""
    if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
        raise InputError(f"--json {path}: expected a file in a folder that exists")
    return path


Cache = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        help="A store, or a folder with one; or s3://BUCKET/PREFIX.",
        show_default="the only store in $SAMTL_CACHE or ./cache",
    ),
]
StoreArgument = Annotated[
    Path | None, typer.Argument(help="A store; the same as --cache.", show_default=False)
]
Json = Annotated[
    Path | None,
    typer.Option(
        "--json",
        help="Write what is printed to this file as one JSON object.",
        show_default=False,
        callback=_place_for_json,
    ),
]
GroupBy = Annotated[
    str | None,
    typer.Option(
        "--group-by",
        metavar="REGEX",
        help="What in an image's path says which scene it was cut from, so that no split tears one apart.",
        show_default=False,
    ),
]
DatasetSpec = Annotated[
    str,
    typer.Option(
        help="A name that samtl ls datasets shows; folder:PATH with one sub-folder per class; or masks:PATH with a "
        "folder of images and one of masks."
    ),
]
Root = Annotated[
    Path | None,
    typer.Option(
        help="Where the dataset's files are: a folder or zip; else they are downloaded.",
        show_default=False,
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
ImageSize = Annotated[
    int | None,
    typer.Option(
        help="Pixels that an image's longest side is resized to, a multiple of 16 up to 2048; the cost goes roughly "
        "with its square.",
        show_default="1024; of a store named by --out, its own",
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(help="At most so many images, a fixed random choice.", show_default=False),
]
PerClass = Annotated[
    int | None,
    typer.Option(help="So many images of each class, a fixed random choice.", show_default=False),
]
Jobs = Annotated[
    int | None,
    typer.Option(
        help="Processes that train at a time; they share the cores.",
        min=1,
        show_default="one for each core",
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of the split and of the training.", min=0)]
