"""`samtl fit-head`: one head on one split of a store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import _render as render
from ._options import Cache, Json, Seed

if TYPE_CHECKING:
    from samtl.fit import FitResult

SHOWN = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "ece": "calibration error",
    "log_loss": "log loss",
}
SHARES = ("accuracy", "balanced_accuracy", "macro_f1", "ece")  # printed as percentages


def fit_head(
    head: Annotated[str, typer.Option(help="See samtl ls heads.")] = "mlp",
    split: Annotated[
        float,
        typer.Option(
            help="The share held out for the final score; 0.2 is 80-20 in the study's words."
        ),
    ] = 0.2,
    seed: Seed = 0,
    cache: Cache = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the run.", show_default="$SAMTL_RUNS or ./runs"),
    ] = None,
    allow_partial: Annotated[
        bool, typer.Option("--allow-partial", help="Use a store whose pass is not finished.")
    ] = False,
    json: Json = None,
) -> None:
    """Train a head on the embeddings of a store and score it on the images held out."""
    from samtl.store.find import locate

    result = run(locate(cache), head, split, seed, out, allow_partial)
    draw(result)
    render.write_json(json, result.to_json())


def run(
    store: Path, head: str, split: float, seed: int, out: Path | None, allow_partial: bool = False
) -> FitResult:
    """Fit with a line that tells the stage."""
    from samtl import fit

    with render.err.status("reading the store") as status:
        return fit.fit_head(
            store,
            head=head,
            split=split,
            seed=seed,
            out=out,
            allow_partial=allow_partial,
            on_event=lambda event: status.update(str(event)),
        )


def draw(result: FitResult) -> None:
    """Print the scores with their intervals beside those of the floor."""
    render.say(
        f"{result.head} on {result.store}: {result.n_train} images to train on, {result.n_validation} to validate, "
        f"{result.n_test} held out"
    )
    rows = []
    for key, name in SHOWN.items():
        floor = result.floor[key] if result.floor else None
        rows.append((name, *_cells(key, result.metrics[key]), *_cells(key, floor)))
    render.grid(
        ("", result.head, "95 % interval", "floor", "95 % interval"), rows, right=(1, 2, 3, 4)
    )
    if result.floor is None:
        render.say(f"no floor: {result.floor_missing}", "yellow")
    else:
        render.say(
            "floor: logistic regression on means, deviations and extremes of the pixels", "dim"
        )
    if result.left_out:
        render.say(
            f"{result.left_out} rows were left out: quarantined, missing or without a label",
            "yellow",
        )
    if result.note:
        render.say(result.note, "yellow")
    if result.untrained:
        render.warn_untrained(result.weights)
    render.say(f"run: {result.run}")


def _cells(key: str, score: object) -> tuple[str, str]:
    if score is None:
        return "", ""
    value, low, high = score.value, score.low, score.high  # type: ignore[attr-defined]
    if key in SHARES:
        return f"{value:.1%}", f"{low:.1%} to {high:.1%}"
    return f"{value:.3f}", f"{low:.3f} to {high:.3f}"
