"""An encoder loaded again, from what a store or a run says about the one that made its features."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samtl import registry
from samtl.embed.plan import STORED_DTYPES
from samtl.errors import InputError, MismatchError
from samtl.images.transforms import Preprocessing
from samtl.store.fingerprint import Fingerprint, differences

if TYPE_CHECKING:
    from samtl.encoders.sam import Encoder


def reload_encoder(
    identity: Mapping[str, Any],
    weights: str,
    owner: Path,
    which: str,
    checkpoint: str | None = None,
    device: str = "auto",
) -> Encoder:
    """Load the encoder of a fingerprint.

    Parameters
    ----------
    identity : mapping
        The fields of the fingerprint.
    weights : str
        What they are, as a store or a run says.
    owner : Path
        Of the store or the run.
    which : str
        Which encoder it has to be, in words that follow "the encoder is not".
    checkpoint : str, optional
        By default what `weights` names.
    device : str

    Raises
    ------
    InputError
        Where the weights are those of a file, and none is named.
    MismatchError
        Where the encoder is another one.
    """
    name = str(identity["encoder"]["name"])
    encoder: Encoder = registry.load("encoders", name).Encoder(
        name,
        checkpoint or _named(weights, owner),
        device,
        str(identity["compute_dtype"]),
        int(identity["image_size"]),
    )
    loaded = Fingerprint(
        encoder.spec.name,
        encoder.weights.sha256,
        Preprocessing(encoder.spec.image_size).to_dict(),
        encoder.spec.image_size,
        encoder.compute_dtype,
        STORED_DTYPES,
    )
    found = differences(identity, loaded.to_dict())
    if found:
        raise MismatchError(
            f"the encoder is not {which}; name its weights with --checkpoint:", found
        )
    return encoder


def _named(weights: str, owner: Path) -> str:
    at_random = re.fullmatch(r"untrained \((random:\d+)\)", weights)
    if at_random:
        return at_random[1]
    if weights.startswith("official "):
        return "official"
    raise InputError(
        f"the encoder of {owner} had weights of a file ({weights.removeprefix('file ')}): name it with --checkpoint"
    )
