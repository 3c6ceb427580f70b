"""Image files to pixels: JPEG, PNG, WebP and BMP with Pillow; TIFF and JPEG 2000 with rasterio (`raster`).

Pixels come out as they are stored. Orientation tags are not applied, because labels and masks are aligned with the
stored rows and columns. Alpha is dropped, not blended. If a PNG or WebP file is animated, its first image is used.
A file that decodes can still be damaged (a JPEG with a flipped bit usually decodes): integrity needs a hash.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from samtl.errors import InputError
from samtl.images.bands import PICTURES, Reading
from samtl.images.transforms import Pixels, resize_bands, resize_longest_side

MAX_BYTES = 512 * 2**20
MAX_PIXELS = 89_478_485
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".jp2", ".j2k"}
)

Code = Literal[
    "empty", "not_an_image", "truncated", "too_large", "unsupported_mode", "undecodable",
    "mask_unreadable", "mask_size", "mask_values",
]  # fmt: skip

# Memory of earlier images is kept for the next ones (64 MB at most): fetching it anew takes as long as decoding.
Image.core.set_blocks_max(4)  # type: ignore[attr-defined]

_DROPPED = " and alpha, which is dropped"
# Pillow's modes that are read, and what they are called.
_BANDS = {
    "1": "1-bit grey", "L": "grey", "LA": f"grey{_DROPPED}", "La": f"grey{_DROPPED}", "P": "palette",
    "PA": f"palette{_DROPPED}", "RGB": "RGB", "RGBA": f"RGB{_DROPPED}", "CMYK": "CMYK", "YCbCr": "YCbCr",
}  # fmt: skip
_COLOURS = "one grey, palette, RGB or CMYK image with up to 8 bits a sample, with or without alpha"
_WIDE = frozenset({"I", "I;16", "I;16B"})  # grey of 16 bits
_MASKS = _WIDE | {"1", "L", "LA", "P", "RGB", "RGBA"}
_BEGINNINGS = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "WebP": rb"RIFF.{4}WEBP",
    "BMP": rb"BM.{13}\0{3}",  # a text may begin with "BM", too
    "TIFF": rb"II[*+]\0|MM\0[*+]",
    "JPEG 2000": rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51",
}
_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND", "JPEG 2000": b"\xff\xd9"}


class BadImage(InputError):
    """An image that cannot become 8-bit RGB pixels, or whose mask cannot be its target.

    Parameters
    ----------
    code : str
        One of `empty`, `not_an_image`, `truncated`, `too_large`, `unsupported_mode`, `undecodable`; for the mask
        of an image, `mask_unreadable`, `mask_size`, `mask_values`.
    reason : str
        What was expected, what came, what to do.
    """

    def __init__(self, code: Code, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


@dataclass(frozen=True)
class Prepared:
    """An image resized for an encoder, (h, w, bands), and (height, width) and `statistics` before resizing.

    Pixels are uint8 if the image is RGB of 8 bits, else float32.
    """

    pixels: Pixels
    size: tuple[int, int]
    statistics: NDArray[np.float32]


def prepare(data: bytes, image_size: int, reading: Reading = PICTURES) -> Prepared:
    """Decode, measure and resize an image file to a longest side of `image_size` pixels; see `decode`."""
    if reading.count:
        bands = decode_bands(data, reading)
        values = bands.reshape(-1, bands.shape[2]).astype(np.float64)
        measured = [f(values, axis=0) for f in (np.mean, np.std, np.min, np.max)]
        described = np.concatenate(measured).astype(np.float32)
        height, width, _ = bands.shape
        return Prepared(resize_bands(bands, image_size), (height, width), described)
    image = _rgb(data)
    pixels, described = resize_longest_side(image, image_size), statistics(image)
    if reading.taken != PICTURES.taken:
        columns = list(reading.taken)
        pixels, described = pixels[..., columns], described.reshape(4, 3)[:, columns].ravel()
    return Prepared(pixels, (image.height, image.width), described)


def decode(data: bytes) -> NDArray[np.uint8]:
    """Decode an image file held in memory. Thread-safe.

    Parameters
    ----------
    data : bytes
        At most `MAX_BYTES` bytes and `MAX_PIXELS` pixels: grey, palette, RGB, CMYK or YCbCr with up to 8 bits a
        sample, with or without alpha.

    Returns
    -------
    ndarray, (H, W, 3) uint8

    Raises
    ------
    BadImage
        Whatever is wrong with the file; no other error is raised for any bytes.
    """
    return np.array(_rgb(data))


def decode_bands(data: bytes, reading: Reading) -> NDArray[np.float32]:
    """Decode the bands that are wanted of a TIFF or JPEG 2000 file, (H, W, bands); raises BadImage."""
    form = _format(data)
    if form in _PLUGINS:
        raise unsupported(f"a {form}", f"a TIFF or JPEG 2000 of {reading.count} bands")
    with _raster(data, form) as raster:
        return raster.read_bands(data, form, reading)  # type: ignore[no-any-return]


def bands_of(data: bytes) -> str:
    """Describe the bands of an image file from its header, such as `RGB` or `RGB and alpha, which is dropped`.

    Raises BadImage as `decode` does, if the header tells what is wrong.
    """
    form = _format(data)
    if form not in _PLUGINS:
        with _raster(data, form) as raster:
            return str(raster.bands_of(data, form))
    with _opened(data, form) as image:
        return _BANDS[image.mode]


def decode_mask(data: bytes, *, lookup: bool = False) -> NDArray[np.uint8]:
    """Decode a mask held in memory. Thread-safe.

    Parameters
    ----------
    data : bytes
        A PNG, TIFF or BMP file of one channel, or of three equal ones, with or without an opaque alpha channel. Its
        values are whole numbers from 0 to 255, whatever their type; those of 1-bit files are 0 and 255.
    lookup : bool
        Whether to return the greys that are shown (palettes looked up, 2 and 4 bits scaled to 0..255) instead of
        the stored values.

    Returns
    -------
    ndarray, (H, W) uint8

    Raises
    ------
    BadImage
        Of code `unsupported_mode` if the file is an image but no such mask.
    """
    return _one_channel(_opaque(_mask_values(data, lookup)))


def decode_colours(data: bytes) -> NDArray[np.uint8]:
    """Decode a mask whose classes are colours to those that are shown, (H, W, 3); as `decode_mask` otherwise."""
    shown = _opaque(_mask_values(data, lookup=True))
    if shown.dtype != np.uint8:
        raise no_mask(f"of {shown.dtype}, where colours were expected")
    return shown if shown.shape[2] == 3 else shown.repeat(3, axis=2)


def _mask_values(data: bytes, lookup: bool) -> NDArray[Any]:
    form = _format(data)
    values: NDArray[Any]
    if form == "TIFF":
        with _raster(data, form) as raster:
            values = raster.read_mask(data, lookup)
    elif form in ("PNG", "BMP"):
        with _opened(data, form, _MASKS) as image:
            image.load()
            image.info.pop("transparency", None)
            if image.mode == "1" or (image.mode == "P" and lookup):
                values = np.asarray(image.convert("RGB"))
            elif image.mode == "L" and not lookup:  # Pillow scales 2 and 4 bits of grey
                values = np.asarray(image) // (255 // (2 ** min(8, _depth(data, form)) - 1))
            else:
                values = np.asarray(image)
    else:
        raise no_mask(f"a {form}, which changes values")
    return values


def _opaque(values: NDArray[Any]) -> NDArray[Any]:
    """Return a mask, (H, W) or (H, W, bands) with alpha last, as (H, W, 1 or 3) if alpha hides nothing."""
    values = values[..., None] if values.ndim == 2 else values
    if values.shape[2] in (1, 3):
        return values
    if (values[..., -1] != 255).any():
        raise no_mask("partly transparent")
    return values[..., :-1]


def _one_channel(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Reduce a mask, (H, W, bands), to one channel of bytes that says the same."""
    if (values[..., 1:] != values[..., :1]).any():
        raise no_mask("coded in colours")
    values = values[..., 0]
    if values.dtype != np.uint8:
        with np.errstate(invalid="ignore"):
            whole = values.astype(np.uint8)
        if (odd := values[whole != values]).size:
            raise no_mask(f"of {values.dtype} with values such as {odd[0]}")
        values = whole
    return np.ascontiguousarray(values)


def statistics(pixels: NDArray[np.uint8] | Image.Image) -> NDArray[np.float32]:
    """Compute the moments and the range of each channel of an image, (H, W, 3) uint8 or Pillow's in mode RGB.

    This is the cheapest description that classifies remote-sensing images at all, and so the floor that other
    results are compared with ("image statistics" in Corley et al., arXiv 2305.13456).

    Returns
    -------
    ndarray, (12,) float32
        Mean, population standard deviation, minimum and maximum of each channel, in this order.
    """
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    counts = np.array(image.histogram()).reshape(3, 256)
    n, levels = image.width * image.height, np.arange(256)
    # Python integers, so that nothing overflows or is rounded before the last step.
    sums, squares = (counts @ levels).astype(object), (counts @ levels**2).astype(object)
    deviations = ((n * squares - sums**2) / n**2) ** 0.5
    present = counts > 0
    lowest, highest = present.argmax(axis=1), 255 - present[:, ::-1].argmax(axis=1)
    return np.array([*(sums / n), *deviations, *lowest, *highest], dtype=np.float32)


def check_pixels(width: int, height: int) -> None:
    """Raise BadImage if an image of this size must not be decoded."""
    if width * height > MAX_PIXELS:
        raise BadImage(
            "too_large",
            f"an image may have at most {MAX_PIXELS:,} pixels, this one has {width} x {height}; cut it into tiles",
        )


def check_bytes(size: int) -> None:
    """Raise BadImage if a file of this size must not be read."""
    if size > MAX_BYTES:
        raise BadImage(
            "too_large",
            f"an image file may have at most {MAX_BYTES:,} bytes, this one has {size:,}; cut it into tiles",
        )


def unsupported(came: str, expected: str = _COLOURS) -> BadImage:
    """Make the error for an image of another kind than is expected."""
    remedy = "convert it to 8-bit RGB first" if expected == _COLOURS else "leave it out"
    reason = f"{expected}, was expected, this file has {came}; {remedy}"
    return BadImage("unsupported_mode", reason)


def no_mask(came: str) -> BadImage:
    """Make the error for an image of another kind than `decode_mask` takes."""
    expected = "a PNG, TIFF or BMP file of one channel, or of three equal ones, with a whole number from 0 to 255 for"
    reason = f"{expected} each class, was expected, this one is {came}; write the classes into one channel of 8 bits"
    return BadImage("unsupported_mode", reason)


@contextmanager
def _refusing(data: bytes, form: str) -> Iterator[None]:
    """Turn whatever a decoder raises into BadImage."""
    try:
        yield
    except BadImage:
        raise
    except (MemoryError, Image.DecompressionBombError) as error:
        reason = f"an image was expected that decodes in the memory there is ({error}); cut it into tiles"
        raise BadImage("too_large", reason) from error
    except Exception as error:  # plugins raise anything, struct.error and SyntaxError included
        said = f"{type(error).__name__}: {error.__cause__ or error}"
        code: Code = "truncated" if _cut_short(data, form, said) else "undecodable"
        reason = f"a whole and valid {form} file was expected, this one is {code} ({said}); copy it again"
        raise BadImage(code, reason) from error


@contextmanager
def _raster(data: bytes, form: str) -> Iterator[ModuleType]:
    """Import `samtl.images.raster` on first use, since rasterio is slow to import, and refuse as `_refusing` does."""
    from samtl.images import raster

    with _refusing(data, form):
        yield raster


def _cut_short(data: bytes, form: str, said: str) -> bool:
    if "truncated" in said.lower() or "TIFFReadDirectory" in said:
        return True
    if form == "WebP":
        return int.from_bytes(data[4:8], "little") + 8 > len(data)
    return form in _ENDS and _ENDS[form] not in data[-64:]


def _format(data: bytes) -> str:
    if not data:
        raise BadImage("empty", "an image file was expected, this one has no bytes; replace it")
    check_bytes(len(data))
    for form, beginning in _BEGINNINGS.items():
        if re.match(beginning, data, re.DOTALL):
            return form
    raise BadImage(
        "not_an_image",
        f"a JPEG, PNG, WebP, BMP, TIFF or JPEG 2000 file was expected, this one begins with {data[:8]!r}; "
        "convert or remove it",
    )


def _rgb(data: bytes) -> Image.Image:
    form = _format(data)
    if form not in _PLUGINS:
        with _raster(data, form) as raster:
            return Image.fromarray(raster.read_rgb(data, form))
    with _opened(data, form) as image:
        image.load()
        image.info.pop("transparency", None)  # Pillow warns when it drops this
        return image if image.mode == "RGB" else image.convert("RGB")


class _Jpeg(JpegImageFile):
    def _read_dpi_from_exif(self) -> None:
        """Leave EXIF alone: nothing here needs it, and Pillow warns if it is damaged."""


# The plugins are called directly: `Image.open` warns about large images before their size can be checked.
_PLUGINS: dict[str, Callable[[IO[bytes]], ImageFile]] = {
    "JPEG": _Jpeg,
    "PNG": PngImageFile,
    "WebP": WebPImageFile,
    "BMP": BmpImageFile,
}


@contextmanager
def _opened(data: bytes, form: str, of_mask: frozenset[str] | None = None) -> Iterator[ImageFile]:
    """Open an image or, with the modes that it may have, a mask with Pillow, if its header is in order."""
    with _refusing(data, form), _PLUGINS[form](io.BytesIO(data)) as image:
        check_pixels(image.width, image.height)
        depth = _depth(data, form)
        wide = depth > 8 and not (of_mask and image.mode in _WIDE)
        if wide or image.mode not in (of_mask or _BANDS):
            refused = no_mask if of_mask else unsupported
            raise refused(f"{depth} bits in mode {image.mode!r}")
        yield image


def _depth(data: bytes, form: str) -> int:
    """Return the bits of a sample: a PNG's mode does not tell 16-bit RGB from 8-bit RGB, but its header does."""
    return data[24] if form == "PNG" else 8
