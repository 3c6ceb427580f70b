"""Encoders whose weights come from the images: they are made once, before the pass, and kept in the store."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from samtl import registry
from samtl.embed.decode import decoded_ahead
from samtl.embed.plan import Job
from samtl.errors import DamageError, InputError, MismatchError
from samtl.images.transforms import Pixels
from samtl.store.format import ENCODER
from samtl.store.storage import open_storage

_IMAGES = 1000  # that weights are made from


def takes_from_images(encoder: str) -> bool:
    """Whether an encoder has no weights of its own."""
    return hasattr(registry.load("encoders", encoder), "fit")


def with_weights(job: Job) -> Job:
    """Return a pass with the weights that come from its images, if its encoder has none of its own; keeps nothing.

    They are those of the store, else those of the store, run or file that `checkpoint` names, else new ones. Raises
    InputError if there are none, MismatchError if the store has those of another seed, and DamageError if it lost them.
    """
    encoder, asked = job.plan.encoder, job.config.source
    if not takes_from_images(encoder):
        return job
    module = registry.load("encoders", encoder)
    default = str(module.spec(encoder).default_checkpoint)
    if asked is not None and not re.fullmatch(rf"{default.partition(':')[0]}:\d+", asked):
        return replace(job, weights=read_weights(asked))
    held = None
    with suppress(FileNotFoundError):
        held = job.storage.read(ENCODER)
    if held is None:
        if job.state is not None:
            raise DamageError(
                f"{job.storage.url}/{ENCODER} is missing, and no image can be encoded like the others without it: take "
                "it from a copy of the store, or embed again under another name"
            )
        content = module.fit(_images(job), asked or default, job.dataset.name)
    elif asked in (None, (made := module.told(held)["checkpoint"])):
        content = held
    else:
        raise MismatchError(f"{job.storage.url} has others", [("checkpoint", made, asked)])
    return replace(job, weights=content)


def keep_weights(job: Job) -> None:
    """Write the weights of a pass into a store that is about to be begun; MismatchError if it has others."""
    if job.weights is None or job.state is not None:
        return
    try:
        job.storage.create(ENCODER, [job.weights])
    except FileExistsError as error:
        theirs, mine = (sha256(one).hexdigest() for one in (job.storage.read(ENCODER), job.weights))
        if theirs != mine:
            raise MismatchError(
                f"another pass put its weights into {job.storage.url}; run it again to go on with these, or name "
                "another store with --out:",
                [(ENCODER, theirs, mine)],
            ) from error


def read_weights(source: str) -> bytes:
    """Read the file of weights that a store or a run keeps, or that is named; InputError if there is none."""
    path = Path(source)
    place, name = (path.parent, path.name) if path.is_file() else (source, ENCODER)
    try:
        return open_storage(place).read(name)
    except FileNotFoundError as error:
        raise InputError(
            f"--checkpoint {source}: expected a store or a run with {ENCODER}, or such a file"
        ) from error


def _images(job: Job) -> Iterator[Pixels]:
    """Yield the first images of the dataset that can be used, in the store's order, which mixes them.

    Raises InputError if there are none.
    """
    rows = range(min(_IMAGES, len(job.dataset)))
    ahead = decoded_ahead(
        job.dataset, rows, job.plan.image_size, 16, "cpu", untrusted=job.config.untrusted
    )
    why, any_used = "", False
    with closing(ahead):
        for item in ahead:
            if item.pixels is not None:
                any_used = True
                yield item.pixels
            why = why or f"{job.dataset.sample_ids[item.row]}: {item.reason}"
    if not any_used:
        raise InputError(
            f"{job.plan.encoder} takes its weights from the images, and none of the {len(rows)} that were read can be "
            f"used, such as {why}"
        )
