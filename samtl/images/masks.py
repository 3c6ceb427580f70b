"""Whether a mask can be the target of an image, and what tells it from others."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samtl.images.codecs import BadImage
from samtl.images.transforms import IGNORE


def mask_sha256(mask: NDArray[np.uint8]) -> str:
    """Hash the shape and the values of a mask, (H, W) uint8, to 64 hexadecimal digits."""
    head = f"{mask.dtype} {mask.shape} ".encode()
    return hashlib.sha256(head + np.ascontiguousarray(mask).tobytes()).hexdigest()


def check_mask(mask: NDArray[Any], size: tuple[int, int], n_classes: int) -> None:
    """Raise BadImage unless a mask can be the target of an image of this height and width."""
    if mask.ndim != 2 or mask.dtype != np.uint8:
        told = f"a mask must be (height, width) uint8, this one is {mask.shape} {mask.dtype}"
        raise BadImage("mask_unreadable", told)
    if mask.shape != size:
        raise BadImage(
            "mask_size",
            f"a mask of the image's size, {size[1]} x {size[0]}, was expected, this one is "
            f"{mask.shape[1]} x {mask.shape[0]}; bring both to one size",
        )
    known = mask[mask != IGNORE]
    if known.max(initial=0) >= n_classes:
        told = f"class indices below {n_classes}, or {IGNORE} to be ignored, this one holds {known.max()}"
        raise BadImage("mask_values", f"a mask must hold {told}")
    if not known.size:
        raise BadImage(
            "mask_values",
            "a mask must have a pixel of a known class, all of this one are to be ignored; leave the image out",
        )
