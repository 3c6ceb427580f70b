"""`samtl reproduce`: a whole case study, from the images to the report."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from samtl._runtime import StopRequest, polite_stop, stop_at_once
from samtl.errors import EXIT_FAILED_CELLS, EXIT_QUARANTINED

from . import _render as render
from . import embed as embed_command
from . import report as report_command
from . import sweep as sweep_command
from ._board import Board
from ._options import GroupBy, ImageSize, Jobs, Json, Root

if TYPE_CHECKING:
    from collections.abc import Callable

    from samtl._runtime import Note
    from samtl.study import Event, Step

NO_VGG19 = "none"


def reproduce(
    study: Annotated[str, typer.Argument(help="eurosat or roads.")],
    dataset: Annotated[
        str | None,
        typer.Option(
            help="Another dataset of the same task, as for embed, such as folder:PATH or masks:PATH.",
            show_default="the study's own",
        ),
    ] = None,
    root: Root = None,
    group_by: GroupBy = None,
    encoder: Annotated[
        str | None,
        typer.Option(help="See samtl ls encoders.", show_default="sam_vit_b, with --quick tiny"),
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            help="The encoder's weights: official, a FILE, or random:SEED for untrained ones.",
            show_default="official, and random:0 for tiny",
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(help="Of the encoder and of vgg19: auto, cpu, cuda, cuda:N or mps.")
    ] = "auto",
    image_size: ImageSize = None,
    vgg19: Annotated[
        str,
        typer.Option(
            help="Weights of the baseline vgg19: official, a FILE, random:SEED for untrained ones, or none to do "
            "without it. It is left out where the official ones cannot be had."
        ),
    ] = "official",
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Fewer images, splits and seeds, for a small machine."),
    ] = False,
    jobs: Jobs = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the store, the sweep and the report; one that is there goes on.",
            show_default="STUDY-study, with --quick STUDY-quick",
        ),
    ] = None,
    json: Json = None,
) -> None:
    """Do a whole case study: embed, train every head and baseline on every split, draw the report.

    Where it was interrupted, the same command goes on.
    """
    from samtl import study as reproducing
    from samtl.sweep.worker import cores

    view = _View()
    with view:
        result = reproducing.reproduce(
            study,
            dataset=dataset,
            root=root,
            group_by=group_by,
            encoder=encoder,
            checkpoint=checkpoint,
            device=device,
            image_size=image_size,
            vgg19=None if vgg19 == NO_VGG19 else vgg19,
            out=out,
            quick=quick,
            jobs=jobs or cores(),
            on_event=view.show,
            should_stop=view.should_stop,
        )
    render.write_json(json, result.to_json())
    if result.sweep is None:
        raise typer.Exit(view.stopped_by)
    if result.sweep.failed:
        raise typer.Exit(EXIT_FAILED_CELLS)
    if result.embed.quarantined:
        raise typer.Exit(EXIT_QUARANTINED)


class _View:
    """Draws each step under the command that does it alone, as that command does."""

    def __init__(self) -> None:
        self._drawing = ExitStack()  # what is on the screen now, and what signals mean
        self._tell: Callable[[Any], None] = _note  # of the step that is at work
        self._stop: StopRequest | None = None
        self._begun = False

    def __enter__(self) -> _View:
        return self

    def __exit__(self, *error: object) -> None:
        self._drawing.close()

    def should_stop(self) -> bool:
        """Tell whether the pass is to end."""
        return self._stop is not None and self._stop()

    @property
    def stopped_by(self) -> int:
        """The exit code of the signal that ended the pass early."""
        return self._stop.exit_code if self._stop else 0

    def show(self, event: Event) -> None:
        """Draw what happens."""
        from samtl.embed.api import EmbedResult
        from samtl.report.api import ReportResult
        from samtl.study import Step
        from samtl.sweep.api import SweepResult

        if isinstance(event, Step):
            self._begin(event)
        elif isinstance(event, EmbedResult | SweepResult | ReportResult):
            self._drawing.close()
            self._tell = _note
            if isinstance(event, EmbedResult):
                embed_command.draw_result(event)
            elif isinstance(event, SweepResult):
                sweep_command.draw(event)
            else:
                report_command.draw(event)
        else:
            self._tell(event)

    def _begin(self, step: Step) -> None:
        if self._begun:
            render.say("")
        self._begun = True
        render.say(step.command, "bold")
        if step.name == "embed":
            self._stop = self._drawing.enter_context(polite_stop(embed_command.STOPPING))
            bar = self._drawing.enter_context(render.EmbedBar())
            self._tell = embed_command.shown_on(bar)
        elif step.name == "sweep":
            self._drawing.enter_context(stop_at_once())
            self._tell = self._drawing.enter_context(Board()).tell
        else:
            self._tell = self._drawing.enter_context(render.err.status("loading")).update


def _note(note: Note) -> None:
    render.say(str(note), "yellow")
