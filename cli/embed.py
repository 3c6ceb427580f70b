"""`samtl embed`: a dataset through a frozen encoder into a store."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import samtl
from samtl._runtime import Note, polite_stop
from samtl.errors import EXIT_QUARANTINED

from . import render
from .options import Outcome, verb
from .plan import copies_of, draw_plan

STOPPING = "stopping after the block in flight; press Ctrl-C again to stop at once"


@verb("samtl.embed.api:embed")
def embed(options: dict[str, Any], dry_run: bool = False) -> Outcome:
    """Run every image through the frozen encoder, once, into a store; resume if it was interrupted.

    If the dataset changed, the same command brings the store up to date: new and changed images are embedded, rows of
    images that are gone or changed are no longer listed, and labels are updated. The plan is printed first.

    Parameters
    ----------
    dry_run
        Print the plan and stop; a batch is encoded for it, and nothing is written.
    """
    if dry_run:
        from samtl.embed.api import plan as plan_of

        with render.EmbedBar() as bar:
            plan = plan_of(**options, on_read=bar.count)
        draw_plan(plan)
        return plan.to_json(), 0
    result, stopped_by = run(options)
    return result.to_json(), stopped_by or (EXIT_QUARANTINED if result.quarantined else 0)


def run(options: dict[str, Any]) -> tuple[samtl.EmbedResult, int]:
    """Embed with a progress bar; return the result, and the exit code of the signal that ended it early or 0."""
    with polite_stop(STOPPING) as stop, render.EmbedBar() as bar:
        result = samtl.embed(**options, on_event=shown_on(bar), should_stop=stop)
    draw_result(result)
    return result, stop.exit_code if result.interrupted else 0


def shown_on(bar: render.EmbedBar) -> Callable[[Any], None]:
    """Make the callback that draws the events of a pass: plan, progress, and the first bad images."""
    bad = itertools.count(1)

    def show(event: Any) -> None:
        kind = type(event).__name__  # the classes take long to import
        if kind == "Plan":
            with bar.hidden():
                draw_plan(event)
        elif kind == "Progress":
            bar.show(event)
        elif kind == "Reading":
            bar.count(event.done, event.images)
        elif isinstance(event, Note) or next(bad) <= render.LISTED:
            render.say(event, "yellow", render.err)

    return show


def draw_result(result: samtl.EmbedResult) -> None:
    """Print what a pass did."""
    if result.encoded:
        render.say(
            f"{result.encoded} images in {render.duration(result.seconds)}: {result.images_per_second:.2f} img/s, "
            f"{render.size(result.bytes_written)} written, peak memory {render.size(result.peak_memory)}"
        )
    bad = len(result.quarantined)
    render.listed(result.quarantined, f"{bad} of {result.rows} rows are quarantined:")
    if result.copies.copies and result.copies != result.plan.copies:
        render.say(f"identical images: {copies_of(result.copies, result.rows)}", "yellow")
    render.warn_untrained(result.weights, result.untrained)
    if result.interrupted:
        done = f"{result.rows - result.missing} of {result.rows} rows"
        render.say(f"stopped: {done} are in {result.store}; the same command resumes", "yellow")
        return
    render.say(f"{result.rows} rows are in {result.store}")
    head, tier = ("conv", "dense") if result.plan.task == "segmentation" else ("mlp", "pooled")
    if result.plan.understood.unlabelled == result.plan.understood.images:
        render.say(f"next: samtl predict --run RUN --from-store --cache {result.store}", "dim")
    elif tier in result.plan.tiers:
        render.say(f"next: samtl fit-head --head {head} --cache {result.store}", "dim")


@verb("samtl.embed.imported:import_features", arguments=("file",))
def import_features(options: dict[str, Any]) -> Outcome:
    """Make a store of features that another encoder computed, so that they stand in the same tables.

    Heads on them are trained, compared and reported as those of other stores.
    """
    with render.EmbedBar() as bar:
        result = samtl.import_features(**options, on_event=bar.show)
    bad = result.quarantined
    left_out = {
        "images without features": result.without_features,
        "ids that are no image of the dataset": result.not_in_dataset,
        "columns that are no features": ", ".join(result.columns_left_out),
    }
    render.facts(
        {
            "store": result.store,
            "encoder": f"{result.encoder}, {result.features} features",
            "rows": f"{result.rows}, {len(bad)} of them quarantined",
            "left out": "; ".join(f"{what}: {n}" for what, n in left_out.items() if n),
        }
    )
    render.listed(bad)
    return result.to_json(), EXIT_QUARANTINED if bad else 0
