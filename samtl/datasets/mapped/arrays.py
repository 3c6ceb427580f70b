"""Pixels and masks of samples that are tensors, arrays or Pillow images: what their values mean, and as bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from samtl.errors import InputError
from samtl.images.codecs import BadImage
from samtl.images.transforms import IGNORE

_PILLOW = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")  # up to 8 bits
_BRIGHT = 64  # floats of 0 to 255 exceed this in some image


@dataclass(frozen=True)
class Scale:
    """Which values become 0 and 255; values beyond are refused if this was guessed, else clipped."""

    low: float
    high: float
    guessed: bool

    def __str__(self) -> str:
        how = "taken for" if self.guessed else "scaled from"
        return f"values are {how} {self.low:g} to {self.high:g}, and kept as 8 bits"


def array_of(value: Any) -> NDArray[Any]:
    """Return a tensor, array, number or Pillow image as an array, with its axes as they are."""
    if hasattr(value, "detach"):  # a tensor, perhaps of another device
        value = value.detach().cpu().numpy()
    return np.asarray(value)


def by_rows(image: Any, bands: Sequence[int] | None) -> NDArray[Any]:
    """Return an image as (height, width, 3): Pillow's, an array (height, width[, bands]) or a tensor (bands, ...).

    `bands` are the positions of red, green and blue. Raises BadImage.
    """
    if isinstance(image, Image.Image):
        if image.mode not in _PILLOW:
            raise _unsupported(f"a Pillow image in mode {image.mode!r}")
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    pixels = array_of(image)
    if pixels.ndim == 3 and hasattr(image, "detach"):
        pixels = pixels.transpose(1, 2, 0)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.ndim != 3 or 0 in pixels.shape or pixels.dtype.kind not in "iuf":
        raise _unsupported(f"shape {np.shape(image)} of {pixels.dtype}")
    if bands is None:
        bands = {1: (0, 0, 0), 3: (0, 1, 2)}.get(pixels.shape[2])
    if bands is None or max(bands) >= pixels.shape[2]:
        raise _unsupported(f"{pixels.shape[2]} bands")
    return pixels[..., list(bands)]


def guessed_scale(images: Sequence[NDArray[Any]]) -> Scale | None:
    """Guess what the values of some images mean: None if all have 8 bits; InputError if it is ambiguous."""
    others = [image for image in images if image.dtype != np.uint8]
    if not others:
        return None
    low, high = min(float(i.min()) for i in others), max(float(i.max()) for i in others)
    remedy = (
        "name the values that black and white have: "
        "samtl.from_torch(dataset, value_range=(0, 255)), or (0, 1), or (0, 3000)"
    )
    kind = others[0].dtype
    if kind.kind == "f" and low >= 0:
        if _BRIGHT < high <= 255:
            return Scale(0, 255, guessed=True)
        if 1 / 255 < high <= 1 and any((image % 1 != 0).any() for image in others):
            return Scale(0, 1, guessed=True)
    hint = ", as after a normalisation, which is to be left out" if low < 0 else ""
    raise InputError(
        f"images have values from {low:g} to {high:g} of {kind}{hint}, and it is not certain what they mean: {remedy}"
    )


def eight_bits(pixels: NDArray[Any], scale: Scale | None) -> NDArray[np.uint8]:
    """Scale the values of an image to 0..255 and round them; BadImage if they are not what they were taken for."""
    if scale is None or (scale.guessed and pixels.dtype == np.uint8):
        if pixels.dtype != np.uint8:
            raise _unsupported(f"values of {pixels.dtype} beside others of 8 bits")
        return pixels.astype(np.uint8, copy=False)
    if not np.isfinite(pixels).all():
        raise _unsupported("values that are NaN or infinite")
    low, high = float(pixels.min()), float(pixels.max())
    if scale.guessed and not scale.low <= low <= high <= scale.high:
        raise _unsupported(
            f"values from {low:g} to {high:g}, and others have {scale.low:g} to {scale.high:g}"
        )
    shares = (pixels.astype(np.float64) - scale.low) / (scale.high - scale.low)
    whole: NDArray[np.uint8] = np.rint(shares.clip(0, 1) * 255).astype(np.uint8)
    return whole


def mask_of(value: Any) -> NDArray[np.uint8]:
    """Return a mask, (height, width) or (1, height, width) whole numbers, as uint8; BadImage if it is none."""
    mask = array_of(value)
    if mask.ndim == 3 and 1 in (mask.shape[0], mask.shape[-1]):
        mask = mask[0] if mask.shape[0] == 1 else mask[..., 0]
    if mask.ndim != 2 or mask.dtype.kind not in "biuf" or not mask.size:
        raise BadImage(
            "mask_unreadable",
            f"a mask of shape (height, width) was expected, this one has {np.shape(value)} of {mask.dtype}",
        )
    if (mask.dtype.kind == "f" and (mask % 1 != 0).any()) or mask.min() < 0 or mask.max() > IGNORE:
        raise BadImage(
            "mask_values",
            f"a mask of class indices was expected, {IGNORE} to be ignored, this one has values from {mask.min()} to "
            f"{mask.max()}; map them in the data set",
        )
    return mask.astype(np.uint8)


def _unsupported(came: str) -> BadImage:
    return BadImage(
        "unsupported_mode",
        f"an image of 8 bits was expected, or one whose values are those of the others, with red, green and blue: this "
        f"one has {came}; see value_range and bands of samtl.from_torch",
    )
