"""`python -m recipes.pretrain`: train `tiny` on images without labels, and write it as a checkpoint."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from recipes.pretrain.export import export
from recipes.pretrain.images import read_images
from recipes.pretrain.recipe import (
    ROUND,
    ROUNDS,
    STAGES,
    Recipe,
    Stage,
)
from recipes.pretrain.training import Progress, Training, remaining
from samtl._runtime import StopNow, polite_stop, probe, size, stop_at_once
from samtl.encoders.device import resolve_device
from samtl.errors import InputError, SamtlError

_log = logging.getLogger("recipes.pretrain")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Parameters
    ----------
    arguments : sequence of str, optional
        Instead of the process's own.

    Returns
    -------
    int
        The exit code: 0 if the run ended, or stopped after `--minutes`; that of the signal that stopped it; or that
        of the error.
    """
    options = _parser().parse_args(arguments)
    told = logging.StreamHandler()
    loggers = [logging.getLogger(name) for name in ("samtl", "recipes")]
    for logger in loggers:
        logger.addHandler(told)
        logger.setLevel(logging.INFO)
    try:
        with stop_at_once():
            return _run(options)
    except SamtlError as error:
        _log.error("%s", error)
        return error.exit_code
    except StopNow as stop:
        return stop.exit_code
    finally:
        for logger in loggers:
            logger.removeHandler(told)


def _run(options: argparse.Namespace) -> int:
    until = time.monotonic() + 60 * (options.minutes or float("inf"))
    device = resolve_device(options.device)
    dtype = options.dtype
    if (
        dtype == "auto"
    ):  # by its flags: a run goes on in what it was begun in, whatever is measured by then
        native = "bfloat16" in probe.possible_dtypes(device)
        dtype = probe.told_dtype() or ("bfloat16" if native else "float32")
    if dtype not in probe.MIXED:
        raise InputError("--dtype must be auto, float32 or bfloat16: float16's gradients vanish")
    stages = tuple(Stage.parse(text) for text in options.stage or ()) or STAGES
    for option, value, least in (
        ("--pixels", options.pixels, 8),
        ("--limit", options.limit, 2),
        ("--wide", options.wide, 1),
        ("--seed", options.seed, 0),
    ):
        if value is not None and value < least:
            raise InputError(f"{option} must be at least {least}, got {value}")
    if options.minutes is not None and not options.minutes > 0:
        raise InputError(f"--minutes must be more than 0, got {options.minutes}")
    if not 0 < options.learning_rate < 1:
        raise InputError(f"--learning-rate must be between 0 and 1, got {options.learning_rate}")
    recipe = Recipe(
        stages=stages,
        pixels=options.pixels,
        seed=options.seed,
        learning_rate=options.learning_rate,
        wide=options.wide,
        dtype=dtype,
    )
    images, digest, left_out = read_images(
        options.dataset, options.root, options.limit, recipe.pixels
    )
    told = f"; {left_out} cannot be decoded and are left out" if left_out else ""
    _log.info("%d images on %s%s; %s", len(images), device, told, recipe.describe())
    with polite_stop("stopping after this step; once more to stop at once") as stop:
        training = Training(images, digest, recipe, options.out, device)
        ended = training.run(
            lambda: stop() or time.monotonic() > until, _Teller(recipe, training.step)
        )
    made = export(training, options.dataset, options.limit)
    _log.info("%s: %s, sha256 %s; %s", made.weights, size(made.bytes), made.sha256, made.card)
    if not ended:
        _log.info(
            "stopped after step %d of %d, kept in %s: the same command goes on",
            training.step, recipe.steps, options.out,
        )  # fmt: skip
        return stop.exit_code
    _log.info(
        "samtl embed --dataset %s --encoder %s --checkpoint %s",
        options.dataset, recipe.encoder, made.weights,
    )  # fmt: skip
    return 0


class _Teller:
    """Reports each step that is logged.

    Parameters
    ----------
    recipe : Recipe
    first : int
        Steps that were done before this session.
    """

    def __init__(self, recipe: Recipe, first: int) -> None:
        self.recipe, self.first = recipe, first
        self.began = time.monotonic()

    def __call__(self, progress: Progress) -> None:
        rest = remaining(progress, self.recipe, self.first, time.monotonic() - self.began)
        _log.info(
            "step %d of %d: loss %.3f (whole %.3f %.3f %.3f, places %.3f %.3f %.3f), rank %.1f; %s to go",
            progress.step, self.recipe.steps, progress.loss, progress.global_invariance, progress.global_variance,
            progress.global_covariance, progress.dense_invariance, progress.dense_variance, progress.dense_covariance,
            progress.rank, rest,
        )  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m recipes.pretrain",
        description="Train the small encoder on images without labels (VICReg on the pooled output and on the tokens), "
        "and write it as a checkpoint for samtl embed --encoder tiny --checkpoint FILE. Stopped, the same command "
        "goes on.",
        allow_abbrev=False,
    )
    option = parser.add_argument
    option("--dataset", required=True, help="NAME or NAME:ARGUMENT, such as eurosat or folder:PATH")
    option("--root", type=Path, help="where the dataset lies")
    option("--limit", type=int, help="at most so many images")
    option(
        "--out",
        type=Path,
        required=True,
        help="folder for the run: state, log, weights, model card",
    )
    option("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    option(
        "--dtype", default="auto", help="what products are computed in: auto, float32 or bfloat16"
    )
    option("--seed", type=int, default=0, help="default: 0")
    option(
        "--stage", action="append", metavar="TOKENS:BATCH:STEPS[:SMALLEST-LARGEST]",
        help="views of so many tokens a side, images in a step, steps, and sides of crops as parts of the image's; "
        "may be repeated; default: "
        + ", ".join(f"{s.tokens}:{s.batch_size}:{s.steps}:{s.smallest}-{s.largest}" for s in ROUND)
        + f", and so on {ROUNDS} times",
    )  # fmt: skip
    option(
        "--pixels", type=int, default=64, help="side that images are brought to first; default: 64"
    )
    option("--learning-rate", type=float, default=1e-3, help="default: 0.001")
    option(
        "--wide",
        type=int,
        default=1024,
        help="channels that the loss is computed on; default: 1024",
    )
    option(
        "--minutes",
        type=float,
        help="stop after this many, counted from the start; the same command resumes",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
