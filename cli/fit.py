"""`samtl fit-head`, `fit-baseline` and `predict`: one model on one split, and what it says of new images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from samtl._runtime import polite_stop
from samtl.errors import EXIT_QUARANTINED, InputError

from . import render
from .options import Outcome, verb

if TYPE_CHECKING:
    from samtl.experiment.output import PredictResult
    from samtl.experiment.run import Run

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
        "accuracy": "pixel accuracy",
        "pooled_iou": "IoU, pixels pooled",
        "pooled_dice": "Dice, pixels pooled",
    },
}


TRAINING = {"epochs": int, "lr": float, "batch_size": int, "patience": int}


@verb("samtl.experiment.fit:fit_head", skip=("store",), params=TRAINING)
def fit_head(options: dict[str, Any], cache: Path | None = None) -> Outcome:
    """Train a head on the embeddings of a store and score it on the held-out images."""
    from samtl.store.storage import locate

    result = run({**options, "store": locate(cache)})
    draw(result)
    return result.to_json(), 0


@verb(
    "samtl.experiment.fit:fit_baseline",
    params={**TRAINING, "image_size": int, "checkpoint": str},
)
def fit_baseline(options: dict[str, Any]) -> Outcome:
    """Train a baseline on the pixels of a dataset and score it on the held-out images.

    Parameters
    ----------
    image_size
        Longest side of the images in pixels.
    checkpoint
        Weights of vgg19: official, a file, or random:SEED for untrained ones.
    """
    result = run(options, "fit_baseline")
    draw(result)
    return result.to_json(), 0


def run(options: dict[str, Any], verb: str = "fit_head") -> Run:
    """Fit with a status line."""
    from samtl.experiment import fit

    with render.err.status("reading") as status:
        result: Run = getattr(fit, verb)(
            **options, on_event=lambda event: status.update(str(event))
        )
    return result


def draw(result: Run) -> None:
    """Print the scores with their intervals beside those of the floor."""
    render.say(
        f"{result.name} on {result.store or result.dataset}: {result.n_train} images to train on, "
        f"{result.n_validation} to validate, {result.n_test} held out"
    )
    compared = {"floor": result.floor, **result.also} if result.floor else dict(result.also)
    headers = ("95 % interval", result.name, *compared)
    rows = [
        (name, *(_cell(key, scores[key]) for scores in (result.metrics, *compared.values())))
        for key, name in SHOWN[result.task].items()
    ]
    render.grid(headers, rows, right=range(1, len(headers)))
    if result.floor:
        render.say(f"floor: {result.floor_model}", "dim")
    warnings = [] if result.floor else [f"no floor: {result.floor_missing}"]
    support = zip(result.classes, result.per_class.support, strict=True)
    if absent := [name for name, count in support if not count]:
        warnings.append(f"no held-out sample has {', '.join(absent)}: it is not scored")
    took = (
        f"{render.duration(result.seconds['total'])}, peak memory {render.size(result.peak_memory)}"
    )
    if facts := result.training:
        took += f", {facts['epochs']} epochs, best {facts['best_epoch']}"
        if "waiting" in facts:
            rate = f"{facts['samples_per_second']:.0f} samples/s"
            took += f", {rate}, {facts['waiting']:.1%} of the time waiting for data"
        if facts["stopped"].startswith("diverged"):
            warnings.append(
                f"training {facts['stopped']}: the loss is not finite; the weights of epoch {facts['best_epoch']} are "
                "kept. Lower --lr"
            )
    render.say(took, "dim")
    if result.left_out:
        why = ", ".join(f"{n} {what}" for what, n in result.left_out_because.items() if n)
        warnings.append(f"{result.left_out} rows were left out: {why}")
    if result.untrained and result.kind == "baseline":
        warnings.append(
            f"The weights are {result.weights}: the scores say nothing about {result.name}."
        )
    for text in filter(None, (*warnings, result.note)):
        render.say(text, "yellow")
    if result.untrained and result.kind != "baseline":
        render.warn_untrained(result.weights)
    render.say(f"run: {result.run}")


def _cell(key: str, score: Any) -> str:
    value, low, high = score.value, score.low, score.high
    if key == "log_loss":
        return f"{value:.3f} [{low:.3f}, {high:.3f}]"
    return f"{value:.1%} [{100 * low:.1f}, {100 * high:.1f}]"


@verb("samtl.experiment.predict:predict", skip=("from_store",))
def predict(
    options: dict[str, Any],
    from_store: bool = False,
    cache: Path | None = None,
) -> Outcome:
    """Predict the classes of new images as a table, or their masks, with the encoder of the run.

    Parameters
    ----------
    from_store
        Predict the rows of a store; no image is needed.
    cache
        The store of --from-store; the only store in $SAMTL_CACHE or ./cache by default.
    """
    from samtl.experiment import predict as predicting
    from samtl.experiment.output import Predicted

    if cache is not None and not from_store:
        raise InputError("--cache names the store of --from-store: add it, or leave --cache out")
    announcement = "stopping after the images in flight; press Ctrl-C again to stop at once"
    options["from_store"] = (cache or True) if from_store else None
    with polite_stop(announcement) as stop, render.err.status("loading") as status:

        def show(event: object) -> None:
            if isinstance(event, Predicted):
                status.update(str(event))

        result = predicting.predict(**options, on_event=show, should_stop=stop)
    _draw_predictions(result)
    code = EXIT_QUARANTINED if result.skipped else 0
    return result.to_json(), stop.exit_code if result.interrupted else code


def _draw_predictions(result: PredictResult) -> None:
    share = "mean share of pixels" if result.task == "segmentation" else "mean probability"
    rows = [(name, str(n), f"{result.means[name]:.1%}") for name, n in result.counts.items()]
    render.grid(("class", "images", share), rows, right=(1, 2))
    took = render.duration(result.seconds)
    render.say(f"{result.rows} images of {result.source} by {result.name} in {took}", "dim")
    if result.skipped:
        total = result.rows + len(result.skipped)
        render.say(f"{len(result.skipped)} of {total} images were skipped:", "yellow")
        render.listed(f"{bad.image}: {bad.code}: {bad.reason}" for bad in result.skipped)
    if result.note:
        render.say(result.note, "yellow")
    if result.untrained:
        render.warn_untrained(result.weights)
    if result.interrupted:
        render.say("stopped before all images were predicted; nothing was written", "yellow")
    elif result.masks:
        render.say(f"masks: {result.masks}, with the shares of pixels in {result.table}")
    else:
        render.say(f"table: {result.table}")
