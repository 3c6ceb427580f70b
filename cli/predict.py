"""`samtl predict`: a trained head on new images, or on the rows of a store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from samtl._runtime import polite_stop
from samtl.errors import EXIT_QUARANTINED, InputError

from . import _render as render
from ._options import Cache, Device, Json
from .embed import LISTED

if TYPE_CHECKING:
    from samtl.experiment.predict import PredictResult


def predict(
    run: Annotated[Path, typer.Option(help="The run folder of a head or a baseline.")],
    images: Annotated[
        Path | None,
        typer.Option(help="A folder, with every image below it, or one image.", show_default=False),
    ] = None,
    from_store: Annotated[
        bool,
        typer.Option(
            "--from-store", help="Predict the rows of a store instead; no image is needed."
        ),
    ] = False,
    cache: Cache = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The CSV file, or the folder for masks.",
            show_default="predictions.csv, or masks",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier prediction there.")
    ] = False,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            help="The weights of the run's encoder, where they came from a file.",
            show_default="those that the run names",
        ),
    ] = None,
    device: Device = "auto",
    batch_size: Annotated[
        str, typer.Option(help="Images per encoder call: auto or a number.")
    ] = "auto",
    json: Json = None,
) -> None:
    """Predict the classes of new images as a table, or their masks, with the run's own encoder."""
    if cache is not None and not from_store:
        raise InputError("--cache names the store for --from-store: add that, or leave it out")
    result, stopped_by = _run(
        run,
        images,
        from_store=(cache or True) if from_store else None,
        out=out,
        overwrite=overwrite,
        checkpoint=checkpoint,
        device=device,
        batch_size=batch_size,
    )
    draw(result)
    render.write_json(json, result.to_json())
    if stopped_by:
        raise typer.Exit(stopped_by)
    if result.skipped:
        raise typer.Exit(EXIT_QUARANTINED)


def _run(run: Path, images: Path | None, **options: Any) -> tuple[PredictResult, int]:
    """Predict with a line that tells how far it is; gives the exit code of the signal that ended it, too, or 0."""
    from samtl.experiment import predict as predicting

    announcement = "stopping after the images in flight; press Ctrl-C again to stop at once"
    with polite_stop(announcement) as stop, render.err.status("loading") as status:

        def show(event: object) -> None:
            if isinstance(event, predicting.Predicted):
                status.update(str(event))

        result = predicting.predict(run, images, **options, on_event=show, should_stop=stop)
    return result, stop.exit_code if result.interrupted else 0


def draw(result: PredictResult) -> None:
    """Print how often each class was predicted, what was skipped, and where the predictions are."""
    masks = result.task == "segmentation"
    render.grid(
        ("class", "images", "mean share of pixels" if masks else "mean probability"),
        [(name, str(count), f"{result.means[name]:.1%}") for name, count in result.counts.items()],
        right=(1, 2),
    )
    render.say(
        f"{result.rows} images of {result.source} by {result.name} in {render.duration(result.seconds)}",
        "dim",
    )
    if result.skipped:
        total = result.rows + len(result.skipped)
        render.say(f"{len(result.skipped)} of {total} images were skipped:", "yellow")
        for bad in result.skipped[:LISTED]:
            render.say(f"  {bad.image}: {bad.code}: {bad.reason}", "yellow")
        if len(result.skipped) > LISTED:
            render.say(
                f"  and {len(result.skipped) - LISTED} more; --json FILE lists all", "yellow"
            )
    if result.note:
        render.say(result.note, "yellow")
    if result.untrained:
        render.warn_untrained(result.weights)
    if result.interrupted:
        render.say("stopped before all images were predicted; nothing was written", "yellow")
    elif result.masks:
        render.say(f"masks: {result.masks}, with shares of the pixels in {result.table}")
    else:
        render.say(f"table: {result.table}")
