"""Images of a dataset that are the same file, byte for byte."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace

from samtl.datasets import Dataset
from samtl.embed.changes import look
from samtl.splits.labels import label_texts

SECONDS = 3.0  # that a plan takes to compare images that no store knows yet


@dataclass(frozen=True)
class Copies:
    """How many images are copies of others; splits keep these together."""

    compared: int  #: images whose bytes were compared
    copies: int  #: of these, images that are the same as an earlier one
    relabelled: int  #: of the copies, those that have another label


def count_copies(labels: Iterable[str], images: Iterable[str]) -> Copies:
    """Count copies, given the label of each image as text, and its sha256, "" if that is not known."""
    first: dict[str, str] = {}
    known = [(label, image) for label, image in zip(labels, images, strict=True) if image]
    changed = sum(first.setdefault(image, label) != label for label, image in known)
    return Copies(len(known), len(known) - len(first), changed)


def find_copies(
    dataset: Dataset, known: Mapping[str, str], read: bool, should_stop: Callable[[], bool]
) -> Copies:
    """Count copies among the images whose sha256 is `known`, and, to `read`, others for a few seconds."""
    hashes = dict(known)
    unknown = [name for name in dataset.sample_ids if read and name not in hashes]
    until = time.monotonic() + SECONDS
    with closing(look(replace(dataset, read_mask=None), unknown)) as found:
        for name, seen in found:
            hashes[name] = seen.image or ""
            if time.monotonic() > until or should_stop():
                break
    labels = label_texts(dataset.truth, dataset.classes)
    return count_copies(labels, (hashes.get(name, "") for name in dataset.sample_ids))
