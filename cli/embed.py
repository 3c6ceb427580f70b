"""`samtl embed`: a dataset through a frozen encoder into a store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from samtl._runtime import polite_stop
from samtl.errors import EXIT_QUARANTINED

from . import _render as render
from ._options import DatasetSpec, GroupBy, ImageSize, Json, Limit, PerClass, Root

if TYPE_CHECKING:
    from collections.abc import Callable

    from samtl.embed.api import EmbedResult, Event
    from samtl.embed.plan import Plan

STOPPING = "stopping after the block in flight; press Ctrl-C again to stop at once"
LISTED = 20  # bad images printed one by one; all of them are in the store and in --json


def embed(
    dataset: DatasetSpec = "eurosat",
    encoder: Annotated[str, typer.Option(help="See samtl ls encoders.")] = "sam_vit_b",
    root: Root = None,
    group_by: GroupBy = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            help="official, a FILE of the same architecture, or random:SEED for untrained weights. ",
            show_default="official, and random:0 for tiny",
        ),
    ] = None,
    device: Annotated[
        str,
        typer.Option(
            help="auto, cpu, cuda, cuda:N or mps. Several GPUs, as cuda:0,cuda:1 or cuda:all, share the work."
        ),
    ] = "auto",
    dtype: Annotated[
        str,
        typer.Option(
            help="What to compute in: auto, float32, bfloat16 or float16. auto is what the store was begun with, else "
            "bfloat16 where the hardware multiplies it natively, else float32."
        ),
    ] = "auto",
    image_size: ImageSize = None,
    tiers: Annotated[
        str, typer.Option(help="What to keep: any of pooled, grid, dense, separated by commas.")
    ] = "pooled,grid,dense",
    limit: Limit = None,
    per_class: PerClass = None,
    batch_size: Annotated[
        str, typer.Option(help="Images per encoder call: auto or a number.")
    ] = "auto",
    out: Annotated[
        Path | None,
        typer.Option(
            help="The store (NAME.zarr), or the folder it goes into; or s3://BUCKET/PREFIX.",
            show_default="$SAMTL_CACHE or ./cache",
        ),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            help="fast, or reference: segment_anything's own forward pass, to compare with."
        ),
    ] = "fast",
    check_images: Annotated[
        bool,
        typer.Option(
            "--check-images/--no-check-images",
            help="Read the images and masks of rows that are done already, to see whether they changed.",
        ),
    ] = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and stop there.")
    ] = False,
    json: Json = None,
) -> None:
    """Push every image through the frozen encoder, once, into a store; goes on where it was interrupted.

    If the dataset has changed, the same command brings the store up to date: new and changed images are embedded, rows
    of images that are gone or changed are not listed any more, labels are those of now. --dry-run shows the plan.
    """
    options: dict[str, Any] = {
        "root": root,
        "group_by": group_by,
        "checkpoint": checkpoint,
        "device": device,
        "dtype": dtype,
        "image_size": image_size,
        "tiers": [name.strip() for name in tiers.split(",")],
        "limit": limit,
        "per_class": per_class,
        "batch_size": batch_size,
        "engine": engine,
        "out": out,
        "check_images": check_images,
    }
    if dry_run:
        from samtl.embed.plan import plan as plan_of

        with render.EmbedBar("reading images") as bar:
            plan = plan_of(dataset, encoder, **options, on_read=bar.count)
        draw_plan(plan)
        render.write_json(json, plan.to_json())
        return
    result, stopped_by = run(dataset, encoder, options)
    draw_result(result)
    render.write_json(json, result.to_json())
    if stopped_by:
        raise typer.Exit(stopped_by)
    if result.quarantined:
        raise typer.Exit(EXIT_QUARANTINED)


def run(dataset: str, encoder: str, options: dict[str, Any]) -> tuple[EmbedResult, int]:
    """Embed with a progress bar; gives the result, and the exit code of the signal that ended it early or 0."""
    from samtl.embed import api as embedding

    bar = render.EmbedBar()
    with polite_stop(STOPPING) as stop, bar:
        result = embedding.embed(
            dataset, encoder, **options, on_event=shown_on(bar), should_stop=stop
        )
    return result, stop.exit_code if result.interrupted else 0


def shown_on(bar: render.EmbedBar) -> Callable[[Event], None]:
    """Give what draws the events of a pass: its plan, its progress, and the first bad images."""
    from samtl._runtime import Note
    from samtl.embed.api import Reading
    from samtl.embed.pipeline import Progress
    from samtl.embed.plan import Plan

    told = 0

    def show(event: Event) -> None:
        nonlocal told
        if isinstance(event, Plan):
            draw_plan(event)
        elif isinstance(event, Progress):
            bar.update(
                event.encoded,
                event.pending_rows,
                event.images_per_second,
                event.seconds_left,
                event.bytes_written,
                event.quarantined,
            )
        elif isinstance(event, Reading):
            bar.count(event.done, event.images)
        elif isinstance(event, Note):
            bar.line(str(event), "yellow")
        else:
            told += 1
            if told <= LISTED:
                bar.line(f"quarantined {event.sample_id}: {event.code}: {event.reason}", "yellow")

    return show


def draw_plan(plan: Plan) -> None:
    """Print what a pass will do."""
    todo = f"{plan.rows} rows"
    if plan.resumes:
        todo += (
            f", {plan.pending_rows} of them still to do"
            if plan.pending_rows
            else ", nothing left to do"
        )
    changes = ", ".join(
        f"{n} {what}"
        for n, what in (
            (plan.added, "images new"),
            (plan.changed, "changed, so their old rows are not listed any more"),
            (plan.removed, "gone or left out, so their rows are not listed any more"),
            (plan.returned, "embedded before, whose rows are listed again"),
            (plan.relabelled, "with another class, or another number or name of it"),
            (plan.regrouped, "in another group or part"),
        )
        if n
    )
    kept = "  ".join(f"{tier} {render.size(count)}" for tier, count in plan.bytes_by_tier.items())
    render.facts(
        {
            "store": str(plan.store),
            "dataset": f"{plan.dataset}, {todo}",
            **({"changes": changes} if changes else {}),
            "encoder": f"{plan.encoder} at {plan.image_size} pixels, weights {plan.weights}, "
            f"{plan.compute_dtype} on {plan.device}, batches of {plan.batch_size or 'the size that is fastest'}",
            "size": kept,
            "disk": f"{render.size(plan.bytes_to_write)} to write"
            + ("" if plan.bytes_free is None else f", {render.size(plan.bytes_free)} free"),
            "time": "known after the first batches" if plan.pending_rows else "none",
            **({"note": plan.note} if plan.note else {}),
        }
    )


def draw_result(result: EmbedResult) -> None:
    """Print what a pass did."""
    if result.encoded:
        render.say(
            f"{result.encoded} images in {render.duration(result.seconds)}: {result.images_per_second:.2f} img/s, "
            f"{render.size(result.bytes_written)} written, peak memory {render.size(result.peak_memory)}"
        )
    if result.quarantined:
        render.say(f"{len(result.quarantined)} of {result.rows} rows are quarantined:", "yellow")
        for bad in result.quarantined[:LISTED]:
            render.say(f"  {bad.sample_id}: {bad.code}: {bad.reason}", "yellow")
        if len(result.quarantined) > LISTED:
            render.say(
                f"  and {len(result.quarantined) - LISTED} more; --json FILE lists all", "yellow"
            )
    if result.untrained:
        render.warn_untrained(result.weights)
    if result.interrupted:
        done = result.rows - result.missing
        render.say(
            f"stopped with {done} of {result.rows} rows in {result.store}; the same command goes on from there",
            "yellow",
        )
    else:
        render.say(f"{result.rows} rows are in {result.store}")
        head, tier = ("conv", "dense") if result.plan.task == "segmentation" else ("mlp", "pooled")
        if tier in result.plan.tiers:
            render.say(f"next: samtl fit-head --head {head} --cache {result.store}", "dim")
