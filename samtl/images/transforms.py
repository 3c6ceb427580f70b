"""SAM's preprocessing: resize to the longest side, normalise, pad; and which tokens an image reaches.

The resize is that of `segment_anything.utils.transforms.ResizeLongestSide.apply_image` (Pillow's antialiased
bilinear filter on uint8), pixel for pixel. The encoder normalises and pads on its own device.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from samtl.errors import InputError

IMAGE_SIZE = 1024  # side of an encoder's input in pixels, unless another is named
PATCH = 16  # pixels of the resized image per token, in both directions
Pixels = NDArray[np.uint8] | NDArray[np.float32]
IGNORE = 255  # in a mask: unknown, or beyond the image
LARGEST = 2048  # side of an encoder's input in pixels; attention costs 16 times as much as at 1024
PIXEL_MEAN = (123.675, 116.28, 103.53)  # R, G, B on the 0 to 255 scale
PIXEL_STD = (58.395, 57.12, 57.375)


def check_image_size(image_size: int, patch: int = PATCH) -> None:
    """Raise InputError unless `image_size` is a multiple of `patch` up to 2048."""
    if not patch <= image_size <= LARGEST or image_size % patch:
        such = ", ".join(
            str(tokens * patch) for tokens in (16, 32, 64) if tokens * patch <= LARGEST
        )
        raise InputError(
            f"--image-size must be a multiple of {patch} from {patch} to {LARGEST}, such as {such}, got {image_size}"
        )


def resized_shape(height: int, width: int, image_size: int = IMAGE_SIZE) -> tuple[int, int]:
    """Compute (height, width) of an image whose longest side is resized to `image_size`.

    Rounded half up as in SAM, but at least 1: SAM fails on images so thin that a side rounds to 0.
    """
    scale = image_size * 1.0 / max(height, width)
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def resize_longest_side(
    pixels: NDArray[np.uint8] | Image.Image, image_size: int = IMAGE_SIZE
) -> NDArray[np.uint8]:
    """Resize an image to (h, w, 3) uint8 with (h, w) from `resized_shape`.

    `pixels` is (height, width, 3) uint8 or a Pillow image in mode RGB.
    """
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    height, width = resized_shape(image.height, image.width, image_size)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image)


def resize_bands(bands: NDArray[np.float32], image_size: int) -> NDArray[np.float32]:
    """Resize an image as `resize_longest_side` does, (height, width, bands) float32, band by band."""
    height, width = resized_shape(bands.shape[0], bands.shape[1], image_size)
    if bands.shape[:2] == (height, width):
        return bands
    resized = [
        Image.fromarray(band).resize((width, height), Image.Resampling.BILINEAR)
        for band in bands.transpose(2, 0, 1)
    ]
    return np.stack([np.asarray(band) for band in resized], axis=2)


def mask_square(mask: NDArray[np.uint8], image_size: int = IMAGE_SIZE) -> NDArray[np.uint8]:
    """Place a mask on the encoder's padded square, where the pixels of its image are.

    Parameters
    ----------
    mask : ndarray of uint8, (height, width)
        Class indices in the image's original size, 255 to be ignored.
    image_size : int

    Returns
    -------
    ndarray of uint8, (image_size, image_size)
        Resized to the nearest pixel, so that no class is made up; 255 right of the image and below.
    """
    height, width = resized_shape(mask.shape[0], mask.shape[1], image_size)
    square = np.full((image_size, image_size), IGNORE, dtype=np.uint8)
    resized = Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST)
    square[:height, :width] = np.asarray(resized)
    return square


def grid_cells(side: int) -> int:
    """Return the cells along a side of `grid` for `side` tokens: 16, or one for each token if there are fewer."""
    return min(16, side)
