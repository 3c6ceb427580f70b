"""Images of a dataset that are the same file, byte for byte."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

from samtl.datasets import Dataset
from samtl.embed.changes import look

SECONDS = 3.0  # that a plan takes to compare images that no store knows yet


@dataclass(frozen=True)
class Copies:
    """How many images are copies of others; splits keep these together."""

    compared: int  #: images whose bytes were compared
    copies: int  #: of these, images that are the same as an earlier one
    relabelled: int  #: of the copies, those that have another label


def count_copies(labels: Sequence[Any], images: Sequence[str]) -> Copies:
    """Count copies, given the label and the sha256 of each image, "" if it is not known."""
    first: dict[str, Any] = {}
    known = [(label, image) for label, image in zip(labels, images, strict=True) if image]
    changed = sum(first.setdefault(image, label) != label for label, image in known)
    return Copies(len(known), len(known) - len(first), changed)


def find_copies(dataset: Dataset, known: Mapping[str, str], read: bool = True) -> Copies:
    """Count copies among the images whose sha256 is `known`, and others, as many as can be read in a few seconds."""
    hashes = {name: image for name, image in known.items() if image}
    unknown = [name for name in dataset.sample_ids if read and name not in hashes]
    until = time.monotonic() + SECONDS
    found = look(replace(dataset, read_mask=None), unknown)
    with closing(found):
        for name, seen in found:
            hashes[name] = seen.image or ""
            if time.monotonic() > until:
                break
    return count_copies(dataset.labels, [hashes.get(name, "") for name in dataset.sample_ids])
