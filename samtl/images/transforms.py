"""SAM's preprocessing: longest side to the encoder's size, normalise, pad; and which tokens an image reaches.

The resize is the one of `segment_anything.utils.transforms.ResizeLongestSide.apply_image` (Pillow's antialiased
bilinear filter on uint8 pixels), so both give the same pixels. Normalising and padding happen on the encoder's
device, in its `encode`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from samtl.errors import InputError

PATCH = 16  # pixels of the resized image per token, in both directions
IGNORE = 255  # in a mask: nobody knows what is there, or it lies beyond the image
LARGEST = 2048  # side of an encoder's input in pixels: above it the attention's cost has grown by 16 and more
PIXEL_MEAN = (123.675, 116.28, 103.53)  # R, G, B on the 0 to 255 scale
PIXEL_STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class Preprocessing:
    """What is done to the pixels before the encoder sees them; part of a store's identity.

    Attributes
    ----------
    image_size : int
        Side of the encoder's square input in pixels, a multiple of 16.
    """

    image_size: int = 1024
    colour: str = "RGB, 8 bits, alpha dropped, EXIF orientation ignored"
    resize: str = "longest side, Pillow bilinear, antialiased, uint8"
    pixel_mean: tuple[float, float, float] = PIXEL_MEAN
    pixel_std: tuple[float, float, float] = PIXEL_STD
    pad: str = "zeros at the bottom and right, after normalising"

    def to_dict(self) -> dict[str, object]:
        """Give the fields as JSON values."""
        return {
            **asdict(self),
            "pixel_mean": list(self.pixel_mean),
            "pixel_std": list(self.pixel_std),
        }


def check_image_size(image_size: int) -> None:
    """Raise InputError for a side that no encoder takes: a multiple of 16 up to 2048."""
    if not PATCH <= image_size <= LARGEST or image_size % PATCH:
        raise InputError(
            f"--image-size must be a multiple of {PATCH} from {PATCH} to {LARGEST}, such as 256, 512 or 1024, got "
            f"{image_size}"
        )


def resized_shape(height: int, width: int, image_size: int = 1024) -> tuple[int, int]:
    """Size of an image after its longest side was brought to `image_size`.

    Returns
    -------
    (height, width) : tuple of int
        Rounded half up as SAM does. At least 1: SAM itself fails on images so thin that a side rounds to 0.
    """
    scale = image_size * 1.0 / max(height, width)
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def resize_longest_side(pixels: NDArray[np.uint8], image_size: int = 1024) -> NDArray[np.uint8]:
    """Resize an image so that its longest side is `image_size`.

    Parameters
    ----------
    pixels : ndarray of uint8, (height, width, 3)
    image_size : int

    Returns
    -------
    ndarray of uint8, (h, w, 3)
        With (h, w) from `resized_shape`.
    """
    return resize_image(Image.fromarray(pixels), image_size)


def resize_image(image: Image.Image, image_size: int = 1024) -> NDArray[np.uint8]:
    """Do the same to an image in mode RGB."""
    height, width = resized_shape(image.height, image.width, image_size)
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))


def mask_square(mask: NDArray[np.uint8], image_size: int = 1024) -> NDArray[np.uint8]:
    """Bring a mask onto the encoder's padded square, where its image's pixels come to lie.

    Parameters
    ----------
    mask : ndarray of uint8, (height, width)
        Class indices, 255 to be ignored, in the image's original size.
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
    """Cells along a side of `grid`, for so many tokens: 16, or as many as there are tokens where that is fewer."""
    return min(16, side)


def valid_tokens(height: int, width: int, image_size: int = 1024) -> tuple[int, int]:
    """Rows and columns of the token grid that cover at least one pixel of an image.

    Parameters
    ----------
    height, width : int
        The image's original size in pixels.

    Returns
    -------
    (rows, columns) : tuple of int
        1 to `image_size / 16` each; the longest side always reaches the last token.
    """
    h, w = resized_shape(height, width, image_size)
    return -(-h // PATCH), -(-w // PATCH)
