"""`samtl fit-head`, `fit-baseline` and `predict`: one model on one split, and what it says of new images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import samtl
from samtl._runtime import polite_stop
from samtl.errors import EXIT_QUARANTINED, InputError

from . import render
from .options import Outcome, parsed, verb

TRAINING = {
    "epochs": int, "lr": float, "batch_size": int, "patience": int, "precision": str, "class_weights": str,
}  # fmt: skip
OF_PIXELS = {**TRAINING, "image_size": int, "checkpoint": str}


@verb(
    "samtl.experiment.fit:fit_head",
    skip=("store",),
    params={**TRAINING, "calibrate": bool},
    rename={"settings": "set"},
)
def fit_head(
    options: dict[str, Any], cache: Path | None = None, settings: list[str] | None = None
) -> Outcome:
    """Train a head on the embeddings of a store and score it on the held-out images.

    Parameters
    ----------
    calibrate
        Scale the probabilities by one temperature, chosen on the validation part (logreg, mlp, knn).
    settings
        A parameter of the head as NAME=VALUE, such as hidden=[64,64]; repeat it for several.
    """
    from samtl.store.storage import locate

    with_settings(options, options["head"], settings)
    return run({**options, "store": locate(cache)}), 0


@verb("samtl.experiment.fit:fit_baseline", params=OF_PIXELS, rename={"settings": "set"})
def fit_baseline(options: dict[str, Any], settings: list[str] | None = None) -> Outcome:
    """Train a baseline on the pixels of a dataset and score it on the held-out images.

    Parameters
    ----------
    image_size
        Longest side of the images in pixels.
    checkpoint
        Weights of vgg19: official, a file, or random:SEED for untrained ones.
    settings
        A parameter of the baseline as NAME=VALUE, such as C=0.1; repeat it for several.
    """
    with_settings(options, options["baseline"], settings)
    return run(options, "fit_baseline"), 0


def with_settings(options: dict[str, Any], model: str, settings: list[str] | None) -> None:
    """Add what `--set` gives to the parameters of a model, whose name may stand before a dot."""
    full = [one if one.startswith(f"{model}.") else f"{model}.{one}" for one in settings or []]
    given = parsed(full, "NAME=VALUE, such as lr=0.001").get(model, {})
    for name in given.keys() & options["params"].keys():
        raise InputError(
            f"--set {name} and --{name.replace('_', '-')} name one parameter: leave one out"
        )
    options["params"] |= given


def run(options: dict[str, Any], verb: str = "fit_head") -> dict[str, Any]:
    """Fit with a status line, print the scores and return the record as JSON values."""
    with render.err.status("reading") as status:
        fit = getattr(samtl, verb)
        result: samtl.FitResult = fit(**options, on_event=lambda event: status.update(str(event)))
    draw(result)
    return result.to_json()


def draw(result: samtl.FitResult) -> None:
    """Print the scores with their intervals beside those of the floor."""
    from samtl.experiment.held_out import FLOOR, floor_title
    from samtl.metrics.declared import metrics_of
    from samtl.metrics.intervals import few

    render.say(
        f"{result.name} on {result.store or result.dataset}: {result.n_train} images to train on, "
        f"{result.n_validation} to validate, {result.n_test} held out"
    )
    if result.weights and not result.untrained:
        render.say(f"weights: {result.weights}", "dim")
    compared = {floor_title(result.task, beside=True): result.floor} if result.floor else {}
    compared |= {floor_title(result.task, name): also for name, also in result.also.items()}
    own = floor_title(result.task) if result.name == FLOOR else result.name
    every = (result.metrics, *compared.values())
    headers = (
        ", ".join(filter(None, ("95 % interval", few(result.n_test, result.n_groups)))),
        own,
        *compared,
    )
    declared = [metric for metric in metrics_of(result.task) if metric.name in result.metrics]
    rows = [
        (metric.title, *(metric.shown(scores[metric.name]) for scores in every))
        for metric in declared
    ]
    render.grid(headers, rows, right=range(1, len(headers)))
    if result.floor:
        render.say(f"floor: {result.floor_model}", "dim")
    memory = render.size(result.peak_memory)
    took = f"{render.duration(result.seconds['total'])}, peak memory {memory}"
    support = zip(result.classes, result.per_class.support, strict=False)  # none of numbers
    absent = ", ".join(name for name, count in support if not count)
    left_out = ", ".join(f"{n} {what}" for what, n in result.left_out_because.items() if n)
    warnings = {
        f"no floor: {result.floor_missing}": not result.floor,
        f"no held-out sample has {absent}: it is not scored": absent,
        f"{result.left_out} rows were left out: {left_out}": left_out,
        f"{result.copies_held_out} held-out images are also, byte for byte, among those to train and validate on: the "
        "scores are too high": result.copies_held_out,
        result.note: result.note,
    }
    if facts := result.training:
        took += (
            f", {facts['epochs']} epochs, best {facts['best_epoch']}, {facts['samples_per_second']:.0f} samples/s, "
            f"{facts['waiting']:.1%} of the time waiting for data"
        )
        best = f"the weights of epoch {facts['best_epoch']} are kept. Lower --lr"
        told = f"training {facts['stopped']}: the loss is not finite; {best}"
        warnings[told] = facts["stopped"].startswith("diverged")
    render.say(took, "dim")
    for text, holds in warnings.items():
        if holds:
            render.say(text, "yellow")
    of_what = "the encoder" if result.store else result.name
    render.warn_untrained(result.weights, result.untrained, of_what)
    if result.path.name != result.run_name:
        render.say(f"{result.run_name} is there already; this run is beside it", "yellow")
    render.say(f"run: {result.path}")


_MEANS = {"segmentation": "mean share of pixels", "regression": "mean"}


@verb("samtl.experiment.predict:predict", skip=("from_store",))
def predict(
    options: dict[str, Any], from_store: bool = False, cache: Path | None = None
) -> Outcome:
    """Predict the classes of new images as a table, or their masks, with the encoder of the run.

    Parameters
    ----------
    from_store
        Predict the rows of a store; no image is needed.
    cache
        The store of --from-store; the only store in $SAMTL_CACHE or ./cache by default.
    """
    if cache is not None and not from_store:
        raise InputError("--cache names the store of --from-store: add it, or leave --cache out")
    announcement = "stopping after the images in flight; press Ctrl-C again to stop at once"
    options["from_store"] = (cache or True) if from_store else None
    with polite_stop(announcement) as stop, render.err.status("loading") as status:
        options["on_event"] = lambda event: status.update(str(event))
        result = samtl.predict(**options, should_stop=stop)
    _draw_predictions(result)
    code = EXIT_QUARANTINED if result.skipped else 0
    return result.to_json(), stop.exit_code if result.interrupted else code


def _draw_predictions(result: samtl.PredictResult) -> None:
    mean = _MEANS.get(result.task, "mean probability")
    form = "{:.6g}" if result.task == "regression" else "{:.1%}"
    rows = [(name, str(n), form.format(result.means[name])) for name, n in result.counts.items()]
    render.grid(("class", "images", mean), rows, right=(1, 2))
    took = render.duration(result.seconds)
    render.say(f"{result.rows} images of {result.source} by {result.name} in {took}", "dim")
    if result.values:
        render.say(f"pixels have {result.values}", "dim")
    render.listed(result.skipped, f"{len(result.skipped)} more images were skipped:")
    if result.note:
        render.say(result.note, "yellow")
    render.warn_untrained(result.weights, result.untrained)
    if result.interrupted:
        render.say("stopped before all images were predicted; nothing was written", "yellow")
    elif result.masks:
        render.say(f"masks: {result.masks}, with the shares of pixels in {result.table}")
    else:
        render.say(f"table: {result.table}")
    if result.beside and not result.interrupted:
        render.say(f"{result.beside} was there, and is kept; --overwrite replaces it", "yellow")
