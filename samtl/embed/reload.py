"""Loading the encoder again that made a store, or the features of a run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from samtl import registry
from samtl.embed.fitted import read_weights, takes_from_images
from samtl.encoders.base import Encoder
from samtl.errors import InputError, MismatchError
from samtl.images.bands import Bands
from samtl.store.fingerprint import differences, require_encoder
from samtl.store.format import FORMAT


def reload_encoder(
    identity: Mapping[str, Any],
    weights: str,
    owner: Path | str,
    checkpoint: str | None = None,
    device: str = "auto",
) -> Encoder:
    """Load the encoder of a fingerprint, given as its fields.

    `weights` is what a store or a run says of them, and names the checkpoint if none is given; `owner` is that store or
    run, for messages. Raises InputError if the weights are those of a file, and none is named; MismatchError if the
    encoder is another one.
    """
    name, content = str(identity["encoder"]["name"]), None
    require_encoder(name, owner)
    if takes_from_images(name):
        content = read_weights(checkpoint or str(owner))
    elif checkpoint is None:
        seed = re.fullmatch(r"untrained \((random:\d+)\)", weights)
        if seed is None and not weights.startswith(("official ", "folder ")):
            raise InputError(
                f"the encoder of {owner} had weights of a file ({weights.removeprefix('file ')}): name it with "
                "--checkpoint"
            )
        checkpoint = seed[1] if seed else "official"
    encoder: Encoder = registry.load("encoders", name).Encoder(
        name,
        content or checkpoint,
        device,
        str(identity["compute_dtype"]),
        int(identity["image_size"]),
        bands=Bands(tuple(identity["bands"]), str(identity["units"])),
    )
    if found := differences(identity, {**encoder.fingerprint(), "format": FORMAT}):
        raise MismatchError(
            f"the encoder is not that of {owner}; name its weights with --checkpoint:", found
        )
    return encoder
