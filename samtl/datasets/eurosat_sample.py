"""1,000 images of EuroSAT, 100 of each class, that come with samtl: the same as `eurosat` with `per_class=100`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from samtl.datasets import eurosat
from samtl.datasets.base import Dataset
from samtl.errors import InputError

NAMES = {"eurosat-sample": "1,000 images of EuroSAT, 100 of each class, that come with samtl"}

ARCHIVE = replace(eurosat.ARCHIVE, name="eurosat-sample")


def open_dataset(argument: str | None, root: Path | None, download: bool = True) -> Dataset:
    """List the images; there is nothing to name or to download."""
    if root is not None:
        raise InputError(
            "eurosat-sample comes with samtl: leave --root out, or use --dataset eurosat"
        )
    path = Path(__file__).with_name("eurosat-sample.zip")
    return replace(eurosat.listed(ARCHIVE, argument, path, download), note="")
