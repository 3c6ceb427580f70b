"""`samtl fit-head` and `samtl fit-baseline`: one head on one split of a store, or one baseline on the pixels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import _render as render
from ._options import Cache, DatasetSpec, GroupBy, Json, Limit, PerClass, Root, Seed

if TYPE_CHECKING:
    from collections.abc import Callable

    from samtl.experiment.run import FitResult

SHOWN = {
    "classification": {
        "accuracy": "accuracy",
        "balanced_accuracy": "balanced accuracy",
        "macro_f1": "macro F1",
        "ece": "calibration error",
        "log_loss": "log loss",
    },
    "segmentation": {
        "iou": "IoU",
        "dice": "Dice",
        "precision": "precision",
        "recall": "recall",
        "f1": "F1, background too",
        "accuracy": "accuracy of pixels",
        "pooled_iou": "IoU, pixels pooled",
        "pooled_dice": "Dice, pixels pooled",
    },
}
FLOORS = {
    "classification": "floor: logistic regression on means, deviations and extremes of the pixels",
    "segmentation": "floor: the most frequent class everywhere",
}

Split = Annotated[
    str | None,
    typer.Option(
        metavar="SPLIT",
        help="Who is held out for the final score: a share (0.2 is 80-20 in the study's words), shipped, fold:1/5, "
        "label:0.1@0.2 (of what 0.2 leaves, a tenth of the labels), shots:5@0.2 (5 of each class), torchgeo, "
        "torchgeo-spatial, or file:PATH.",
        show_default="shipped where the dataset comes with a split, else 0.2",
    ),
]
SameSplitAs = Annotated[
    Path | None,
    typer.Option(
        help="Take over the split of this run, and of masks the resolution at which they are scored.",
        show_default=False,
    ),
]
Runs = Annotated[
    Path | None,
    typer.Option(help="Folder for the run.", show_default="$SAMTL_RUNS or ./runs"),
]
Epochs = Annotated[int | None, typer.Option(help="Most passes over the training part.", min=1)]
Rate = Annotated[float | None, typer.Option("--lr", help="Learning rate after the warm-up.")]
BatchSize = Annotated[int | None, typer.Option(help="Samples in one step.", min=1)]
Patience = Annotated[
    int | None,
    typer.Option(help="Epochs without a better validation loss before training ends.", min=1),
]


def fit_head(
    head: Annotated[str, typer.Option(help="See samtl ls heads.")] = "mlp",
    split: Split = None,
    same_split_as: SameSplitAs = None,
    group_by: GroupBy = None,
    seed: Seed = 0,
    features: Annotated[
        str | None,
        typer.Option(
            help="Columns of pooled to learn from: patterns such as mean,std or block*.",
            show_default="all",
        ),
    ] = None,
    epochs: Epochs = None,
    lr: Rate = None,
    batch_size: BatchSize = None,
    patience: Patience = None,
    cache: Cache = None,
    out: Runs = None,
    allow_partial: Annotated[
        bool, typer.Option("--allow-partial", help="Use a store whose pass is not finished.")
    ] = False,
    json: Json = None,
) -> None:
    """Train a head on the embeddings of a store and score it on the images held out."""
    from samtl.store.storage import locate

    result = run_head(
        locate(cache),
        head,
        split=split,
        same_split_as=same_split_as,
        group_by=group_by,
        seed=seed,
        features=features,
        params=_given(epochs=epochs, lr=lr, batch_size=batch_size, patience=patience),
        out=out,
        allow_partial=allow_partial,
    )
    draw(result)
    render.write_json(json, result.to_json())


def fit_baseline(
    baseline: Annotated[str, typer.Option(help="See samtl ls baselines.")] = "cnn",
    dataset: DatasetSpec = "eurosat",
    root: Root = None,
    split: Split = None,
    same_split_as: SameSplitAs = None,
    group_by: GroupBy = None,
    seed: Seed = 0,
    limit: Limit = None,
    per_class: PerClass = None,
    epochs: Epochs = None,
    lr: Rate = None,
    batch_size: BatchSize = None,
    patience: Patience = None,
    image_size: Annotated[
        int | None, typer.Option(help="Longest side of the pixels that are learnt from.", min=32)
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(help="vgg19's weights: official, a FILE, or random:SEED for untrained ones."),
    ] = None,
    out: Runs = None,
    json: Json = None,
) -> None:
    """Train a baseline on the pixels of a dataset and score it on the images held out."""
    from samtl.experiment.fit import fit_baseline as fit

    result = _told(
        lambda tell: fit(
            dataset,
            baseline,
            split,
            seed,
            out,
            root=root,
            limit=limit,
            per_class=per_class,
            group_by=group_by,
            same_split_as=same_split_as,
            params=_given(
                epochs=epochs,
                lr=lr,
                batch_size=batch_size,
                patience=patience,
                image_size=image_size,
                checkpoint=checkpoint,
            ),
            on_event=tell,
        )
    )
    draw(result)
    render.write_json(json, result.to_json())


def run_head(store: Path | str, head: str, **options: Any) -> FitResult:
    """Fit with a line that tells the stage."""
    from samtl.experiment import fit

    return _told(lambda tell: fit.fit_head(store, head, on_event=tell, **options))


def _told(work: Callable[[Callable[[object], None]], FitResult]) -> FitResult:
    with render.err.status("reading") as status:
        return work(lambda event: status.update(str(event)))


def _given(**params: Any) -> dict[str, Any]:
    return {name: value for name, value in params.items() if value is not None}


def draw(result: FitResult) -> None:
    """Print the scores with their intervals beside those of the floor."""
    render.say(
        f"{result.name} on {result.store or result.dataset}: {result.n_train} images to train on, "
        f"{result.n_validation} to validate, {result.n_test} held out"
    )
    compared = {"floor": result.floor, **result.also} if result.floor else dict(result.also)
    rows = [
        (name, *(_cell(key, scores[key]) for scores in (result.metrics, *compared.values())))
        for key, name in SHOWN[result.task].items()
    ]
    headers = ("95 % interval", result.name, *compared)
    render.grid(headers, rows, right=range(1, len(headers)))
    if result.floor is None:
        render.say(f"no floor: {result.floor_missing}", "yellow")
    else:
        render.say(FLOORS[result.task], "dim")
    if absent := [
        name for name, n in zip(result.classes, result.per_class.support, strict=True) if not n
    ]:
        render.say(
            f"held out is nothing of {', '.join(absent)}: no figure says how well that is found",
            "yellow",
        )
    if result.training:
        facts = result.training
        speed = (
            f", {facts['samples_per_second']:.0f} samples a second" if "waiting" in facts else ""
        )
        waiting = f", {facts['waiting']:.1%} of it waiting for data" if "waiting" in facts else ""
        render.say(
            f"trained for {facts['epochs']} epochs, the best was {facts['best_epoch']}{speed}{waiting}",
            "dim",
        )
        if facts["stopped"].startswith("diverged"):
            render.say(
                f"training {facts['stopped']}: the loss was no number any more; kept are the weights of epoch "
                f"{facts['best_epoch']}. Lower --lr",
                "yellow",
            )
    render.say(
        f"{render.duration(result.seconds['total'])}, peak memory {render.size(result.peak_memory)}",
        "dim",
    )
    if result.left_out:
        why = ", ".join(f"{n} {what}" for what, n in result.left_out_because.items() if n)
        render.say(f"{result.left_out} rows were left out: {why}", "yellow")
    if result.note:
        render.say(result.note, "yellow")
    if result.untrained and result.kind == "baseline":
        render.say(
            f"The weights are {result.weights}: the figures say nothing about {result.name}.",
            "yellow",
        )
    elif result.untrained:
        render.warn_untrained(result.weights)
    render.say(f"run: {result.run}")


def _cell(key: str, score: Any) -> str:
    value, low, high = score.value, score.low, score.high
    if key == "log_loss":
        return f"{value:.3f} [{low:.3f}, {high:.3f}]"
    return f"{value:.1%} [{100 * low:.1f}, {100 * high:.1f}]"
