"""`samtl demo`: the whole way on generated images, offline, in under a minute."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import _render as render
from . import embed as embed_command
from . import fit as fit_command
from ._options import Json

IMAGES_PER_CLASS = 25
IMAGE_SIZE = 512  # far quicker than 1024


def demo(
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the store.", show_default="demo in $SAMTL_CACHE or ./cache"),
    ] = None,
    runs: Annotated[
        Path | None,
        typer.Option(help="Folder for the runs.", show_default="$SAMTL_RUNS or ./runs"),
    ] = None,
    json: Json = None,
) -> None:
    """Generate land-cover images, embed them with the encoder that needs no download, and fit two heads."""
    from samtl.store.storage import below, cache_folder

    dataset = f"synthetic:{IMAGES_PER_CLASS}"
    render.say(f"samtl embed --dataset {dataset} --encoder tiny --image-size {IMAGE_SIZE}", "bold")
    # In a folder of its own, so that the demo's store is not taken for, or in the way of, the user's.
    options = {"image_size": IMAGE_SIZE, "out": out or below(cache_folder(), "demo")}
    result, stopped_by = embed_command.run(dataset, "tiny", options)
    embed_command.draw_result(result)
    if stopped_by:
        raise typer.Exit(stopped_by)
    fits = []
    for head in ("logreg", "mlp"):
        render.say("")
        render.say(f"samtl fit-head --head {head} --split 0.2 --cache {result.store}", "bold")
        fits.append(fit_command.run_head(result.store, head, split=0.2, seed=0, out=runs))
        fit_command.draw(fits[-1])
    render.write_json(
        json, {"embed": result.to_json(), "fits": [fitted.to_json() for fitted in fits]}
    )
