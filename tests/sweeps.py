"""Sweeps of small models over toy stores, and what they come to."""

from samtl.experiment.run import read_run
from samtl.sweep.api import sweep

FAST = {
    "logreg": {"C": 1.0},
    "mlp": {"hidden": (8,), "epochs": 3, "lr": 1e-2},
    "conv": {"width": 4, "epochs": 2},
    "vit": {"width": 64, "epochs": 1},
    "cnn": {"image_size": 32, "epochs": 1},
}
FILES = ("head.safetensors", "curves.csv", "confusion.csv", "predictions.csv", "images.csv")


def run(store, out, heads=("logreg", "mlp"), splits="0.6,0.4,0.2", seeds=1, **options):
    """Sweep in this process, with small models if no parameters are given."""
    names = (*heads, *options.get("baselines", ()))
    small = {name: FAST[name] for name in names if name in FAST}
    return sweep(store, heads, splits, seeds, out, **{"params": small, "jobs": 1, **options})


def counts(result):
    """Cells that were trained, that were finished before, and that failed."""
    return result.done, result.skipped, len(result.failed)


def runs(out):
    """The runs of a sweep, in the order of their names."""
    return [read_run(folder) for folder in sorted((out / "cells").iterdir())]


def outcome(out):
    """What does not depend on when and where the cells of a sweep were trained, by run; files to the last bit."""
    return {
        one.path.name: (
            *(one.digest, one.metrics, one.floor, one.training.get("stopped")),
            [(one.path / file).read_bytes() for file in FILES if (one.path / file).exists()],
        )
        for one in runs(out)
    }


def trained(out):
    """What a fit comes to, in a sweep or alone, by run: scores, and weights and curves to the last bit."""
    return {
        one.path.name: (
            *(one.metrics, one.floor, one.training.get("stopped"), one.recipe),
            [(one.path / file).read_bytes() for file in FILES[:3]],
        )
        for one in runs(out)
    }
