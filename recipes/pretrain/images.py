"""A dataset's images as one array, so that no step of a training run waits for a file."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from samtl import registry
from samtl._runtime import hash_order
from samtl.errors import InputError
from samtl.images.codecs import BadImage, prepare


def read_images(
    spec: str, root: Path | None = None, limit: int | None = None, pixels: int = 64
) -> tuple[Tensor, str, int]:
    """Read a dataset without its labels.

    Parameters
    ----------
    spec : str
        `NAME` or `NAME:ARGUMENT`, as `samtl embed --dataset` takes it.
    root : Path, optional
        Folder of the data.
    limit : int, optional
        At most so many images; a sample of all classes, the same every time.
    pixels : int
        Side that images are brought to: the longest side is resized, and what is no square is squeezed to one.

    Returns
    -------
    images : Tensor of uint8, (n, 3, pixels, pixels)
    digest : str
        sha256 over the array.
    left_out : int
        Images that cannot be decoded.

    Raises
    ------
    InputError
        If there are fewer than two.
    """
    name, colon, argument = spec.partition(":")
    # By its name: datasets and encoders do not know each other.
    source: Any = registry.load("datasets", name)
    dataset = source.open_dataset(argument if colon else None, root, True)
    order = hash_order(dataset.sample_ids)[:limit]

    def one(row: int) -> Tensor | None:
        try:
            found = prepare(dataset.read(dataset.sample_ids[row]), pixels).pixels
        except BadImage:
            return None
        image = torch.from_numpy(np.array(found)).permute(2, 0, 1)
        if image.shape[1:] != (pixels, pixels):
            squeezed = interpolate(
                image[None].float(), (pixels, pixels), mode="bilinear", antialias=True
            )
            image = squeezed[0].round().clamp(0, 255).to(torch.uint8)
        return image

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        every = list(pool.map(one, order))
    there = [image for image in every if image is not None]
    if len(there) < 2:
        raise InputError(
            f"{spec} has {len(there)} images that can be used; a training run needs more"
        )
    images = torch.stack(there)
    return images, hashlib.sha256(images.numpy().data).hexdigest(), len(every) - len(there)
