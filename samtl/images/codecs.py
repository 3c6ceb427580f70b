"""Image files as pixels: JPEG, PNG, WebP, TIFF or BMP bytes, from anyone, to 8-bit RGB or to a mask's values.

What comes out is the pixels as they are stored. Orientation tags are not applied: a tile's labels
and masks are aligned with its stored rows and columns. Alpha is dropped, not blended; of animations
and multi-page files the first image counts. A file that decodes is not thereby undamaged (a JPEG
with a flipped bit usually decodes), so whoever needs integrity hashes the bytes.

Pillow's plugins are opened directly, not through `PIL.Image.open`: that warns about large images
before its caller can look at their size, and the filters that would silence it belong to the whole
process, not to one thread. The few other warnings that Pillow has, for odd TIFF and APNG metadata,
follow the process's filters; where these make them errors, the image is refused. Of a damaged
compressed TIFF, libtiff itself writes a line to standard error.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from samtl.errors import InputError

MAX_BYTES = 512 * 2**20
MAX_PIXELS = 89_478_485
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp"})
STATISTICS = tuple(f"{name}_{band}" for name in ("mean", "std", "min", "max") for band in "rgb")

Code = Literal[
    "empty", "not_an_image", "truncated", "too_large", "unsupported_mode", "undecodable",
    "mask_unreadable", "mask_size", "mask_values",
]  # fmt: skip

_TO_RGB = "convert it to 8-bit RGB first"
_MODES = frozenset({"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"})
# JPEG and WebP blur values that stand for classes.
_MASK_FORMATS, _MASK_MODES = frozenset({"PNG", "TIFF", "BMP"}), frozenset({"1", "L", "P", "RGB"})
_HEAD_BYTES = 32  # what tells the format, and a PNG's depth
_STRIP_PIXELS = 2**22
_IMAGE_WIDTH, _IMAGE_LENGTH = 256, 257
_BITS_PER_SAMPLE, _SAMPLES_PER_PIXEL, _SAMPLE_FORMAT = 258, 277, 339
_TIFF_TYPE_SIZES = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    10: 8,
    11: 4,
    12: 8,
    16: 8,
}
_TIFF_UNSIGNED = {3: "u2", 4: "u4", 16: "u8"}
_TIFF_SPANS = frozenset({273, 279, 324, 325})  # offsets and sizes of strips, of tiles
_BMP_HEADER_SIZES = frozenset({12, 40, 52, 56, 64, 108, 124})


class BadImage(InputError):
    """An image that cannot become 8-bit RGB pixels, or one whose mask cannot be its target.

    Parameters
    ----------
    code : str
        One of `empty`, `not_an_image`, `truncated`, `too_large`, `unsupported_mode`, `undecodable`;
        for a mask that is no use to its image, `mask_unreadable`, `mask_size`, `mask_values`.
    reason : str
        What was expected, what came, what to do.
    """

    def __init__(self, code: Code, reason: str) -> None:
        super().__init__(code, reason)  # both, so that it survives pickling between processes
        self.code = code
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class _Jpeg(JpegImageFile):
    def _read_dpi_from_exif(self) -> None:
        """Leave EXIF alone: nothing here needs it, and damaged EXIF makes Pillow warn."""


class _Tiff(TiffImageFile):
    def load_end(self) -> None:
        """Leave the pixels as stored: for TIFF, Pillow would apply the orientation tag here."""


_OPENERS: dict[str, Callable[[IO[bytes]], ImageFile]] = {
    "JPEG": _Jpeg,
    "PNG": PngImageFile,
    "WebP": WebPImageFile,
    "TIFF": _Tiff,
    "BMP": BmpImageFile,
}


def decode(data: bytes) -> npt.NDArray[np.uint8]:
    """Decode an image file held in memory.

    Safe to call from several threads at once.

    Parameters
    ----------
    data : bytes
        A JPEG, PNG, WebP, TIFF or BMP file of at most `MAX_BYTES` bytes and `MAX_PIXELS` pixels;
        grey, palette, RGB, CMYK or YCbCr with up to 8 bits a sample, with or without alpha.

    Returns
    -------
    ndarray, (H, W, 3) uint8
        Red, green, blue in [0, 255].

    Raises
    ------
    BadImage
        Whatever is wrong with the file; nothing else is raised for any bytes.
    """
    with _opened(io.BytesIO(data)) as image:
        return _to_array(image)


@contextlib.contextmanager
def opened_rgb(data: bytes) -> Iterator[Image.Image]:
    """Open an image file held in memory as an image in mode RGB, for as long as a `with` block lasts.

    The pixels are those of `decode`, which would hold them twice.

    Raises
    ------
    BadImage
        As `decode` does.
    """
    with _opened(io.BytesIO(data)) as image:
        whole = _loaded(image).im.size
        straight = image if image.size == whole else image.crop((0, 0, *whole))
        yield straight if straight.mode == "RGB" else straight.convert("RGB")


def decode_mask(data: bytes, *, lookup: bool = False) -> npt.NDArray[np.uint8]:
    """Decode a mask held in memory to the values that are stored in it.

    Safe to call from several threads at once. Of 1-bit files the values are 0 and 255, and grey of
    2 or 4 bits is spread over the same range.

    Parameters
    ----------
    data : bytes
        A PNG, TIFF or BMP file, as small as `decode` takes them: grey or palette with up to 8 bits,
        or RGB whose three channels are equal.
    lookup : bool
        Whether a palette's colours count, which must be greys then, instead of its indices.

    Returns
    -------
    ndarray, (H, W) uint8

    Raises
    ------
    BadImage
        Whatever is wrong with the file; `unsupported_mode` where it is no mask of this kind.
    """
    with _opened(io.BytesIO(data)) as image:
        if image.format not in _MASK_FORMATS or image.mode not in _MASK_MODES:
            raise _no_mask(f"this is a {image.format} in mode {image.mode!r}")
        if image.mode == "P" and not lookup:
            # `image.size` is turned where a TIFF's orientation tag says so, pixels are not.
            return np.array(image.crop((0, 0, *_loaded(image).im.size)))
        pixels = _to_array(image)
    if (pixels[..., 1:] != pixels[..., :1]).any():
        raise _no_mask("this one is coded in colours")
    return np.ascontiguousarray(pixels[..., 0])


def mask_sha256(mask: npt.NDArray[np.uint8]) -> str:
    """Name a mask by its shape and values: (H, W) uint8 to 64 hexadecimal digits, whatever file it came from."""
    head = f"{mask.dtype} {mask.shape} ".encode()
    return hashlib.sha256(head + np.ascontiguousarray(mask).tobytes()).hexdigest()


def size(file: IO[bytes]) -> tuple[int, int]:
    """Read an image's height and width in pixels from its header; no pixel is decoded.

    Parameters
    ----------
    file : binary file
        Open for reading, at its start, and seekable.

    Raises
    ------
    BadImage
        Where the header alone shows that `decode` would refuse the file.
    """
    with _opened(file) as image:
        if isinstance(image, TiffImageFile):  # as stored, before its orientation tag
            return int(image.tag_v2[_IMAGE_LENGTH]), int(image.tag_v2[_IMAGE_WIDTH])
        width, height = image.size
        return height, width


def statistics(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Describe an image by the moments and the range of its colours, and by nothing else.

    This is the cheapest description that classifies remote-sensing images at all, and so the floor
    that other results are compared with ("image statistics" in Corley et al., arXiv 2305.13456).

    Parameters
    ----------
    pixels : ndarray, (H, W, 3) uint8

    Returns
    -------
    ndarray, (12,) float32
        Mean, population standard deviation, minimum and maximum of each channel, in [0, 255]; the
        order is that of `STATISTICS`.

    Raises
    ------
    InputError
        Where `pixels` is of another shape or type, or empty.
    """
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or not pixels.size:
        raise InputError(
            "pixels must be (H, W, 3) uint8 with H and W at least 1, got "
            f"{pixels.shape} {pixels.dtype}; samtl.images.decode gives such an array"
        )
    rows = pixels.reshape(-1, 3)
    strips = (rows[start : start + _STRIP_PIXELS] for start in range(0, len(rows), _STRIP_PIXELS))
    return _moments(strips)


def statistics_of(image: Image.Image) -> npt.NDArray[np.float32]:
    """Describe an image in mode RGB as `statistics` does its pixels."""
    return _moments(strip.reshape(-1, 3) for _, strip in _strips(image))


def _moments(strips: Iterable[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float32]:
    n, counts = 0, np.zeros((3, 256), dtype=np.int64)
    for strip in strips:
        n += len(strip)
        for band in range(3):
            counts[band] += np.bincount(strip[:, band], minlength=256)
    levels = np.arange(256)
    # Whole numbers, so that nothing is rounded before the last step.
    sums = [int(s) for s in counts @ levels]
    squares = [int(s) for s in counts @ levels**2]
    means = [s / n for s in sums]
    deviations = [((n * q - s * s) / n**2) ** 0.5 for s, q in zip(sums, squares, strict=True)]
    present = counts > 0
    lowest, highest = present.argmax(axis=1), 255 - present[:, ::-1].argmax(axis=1)
    return np.array([*means, *deviations, *lowest, *highest], dtype=np.float32)


@contextlib.contextmanager
def _opened(file: IO[bytes]) -> Iterator[ImageFile]:
    """Open an image whose header is in order; what goes wrong while it is in use is a `BadImage`."""
    head = file.read(_HEAD_BYTES)
    kind = _kind(head, file.seek(0, io.SEEK_END))
    file.seek(0)
    try:
        with _OPENERS[kind](file) as image:
            _check(image, head)
            yield image
    except BadImage:
        raise
    except Exception as error:  # plugins raise anything, MemoryError and struct.error included
        file.seek(0)
        raise _refusal(kind, file.read(), error) from error


def _loaded(image: ImageFile) -> ImageFile:
    image.load()
    image.info.pop("transparency", None)  # Pillow would warn of dropping it
    return image


def _to_array(image: ImageFile) -> npt.NDArray[np.uint8]:
    width, height = _loaded(image).im.size  # `image.size` is turned where a TIFF's tag says so
    pixels = np.empty((height, width, 3), dtype=np.uint8)
    for top, strip in _strips(image):
        pixels[top : top + len(strip)] = strip
    return pixels


def _strips(image: Image.Image) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
    """Give rows as pixels, and the first one's number: converted whole, a large image is held four times."""
    width, height = image.im.size
    step = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, step):
        strip = image.crop((0, top, width, min(top + step, height)))
        yield top, np.asarray(strip.convert("RGB"))


def _kind(data: bytes, length: int) -> str:
    """Tell the format from a file's first bytes, where it is not too long to be read."""
    if not data:
        raise BadImage("empty", "an image file was expected, this one has no bytes; replace it")
    if length > MAX_BYTES:
        raise BadImage(
            "too_large",
            f"an image file may have at most {MAX_BYTES // 2**20} MiB, this one has "
            f"{length / 2**20:,.1f} MiB; cut it into tiles",
        )
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WebP"
    if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "TIFF"
    # "BM" alone would also claim texts that begin so.
    if data.startswith(b"BM") and int.from_bytes(data[14:18], "little") in _BMP_HEADER_SIZES:
        return "BMP"
    raise BadImage(
        "not_an_image",
        f"a JPEG, PNG, WebP, TIFF or BMP file was expected, this one begins with {data[:8]!r}; "
        "convert or remove it",
    )


def _check(image: ImageFile, head: bytes) -> None:
    """Refuse, from the header alone, what must not or cannot be decoded."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise _too_many_pixels(f"{width} x {height}")
    bits, bands, signed = 8, len(image.getbands()), False
    if isinstance(image, PngImageFile):
        bits = head[24]  # IHDR; the mode does not tell 16-bit RGB from 8-bit RGB
    elif isinstance(image, TiffImageFile):
        bits = max(image.tag_v2.get(_BITS_PER_SAMPLE, (1,)))
        bands = max(bands, image.tag_v2.get(_SAMPLES_PER_PIXEL, 1))
        signed = any(f != 1 for f in image.tag_v2.get(_SAMPLE_FORMAT, (1,)))
    if image.mode not in _MODES or bits > 8 or signed or bands > 4:
        raise BadImage(
            "unsupported_mode",
            "grey, palette, RGB or CMYK with up to 8 bits a sample was expected, this image has "
            f"{bands} band{'s' * (bands > 1)} of {bits} bits in mode {image.mode!r}"
            f"{', not unsigned integers' * signed}; {_TO_RGB}",
        )


def _no_mask(came: str) -> BadImage:
    return BadImage(
        "unsupported_mode",
        "a mask was expected as a PNG, TIFF or BMP file of one channel, or of three equal ones, with a "
        f"value for each class, {came}; write the values of the classes into one channel of 8 bits",
    )


def _too_many_pixels(size: str) -> BadImage:
    return BadImage(
        "too_large",
        f"an image may have at most {MAX_PIXELS:,} pixels, this one says it has {size}; "
        "cut it into tiles",
    )


def _refusal(kind: str, data: bytes, error: Exception) -> BadImage:
    said = f"{type(error).__name__}: {error}"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return _too_many_pixels("far more")
    if _cut_short(kind, data, error):
        return BadImage(
            "truncated",
            f"a whole {kind} file was expected, this one is cut short ({said}); copy it again",
        )
    if kind == "TIFF" and isinstance(error, SyntaxError) and _odd_samples(str(error)):
        return BadImage(
            "unsupported_mode",
            "grey, palette, RGB or CMYK with up to 8 bits a sample was expected, this TIFF has "
            f"other bands ({said}); {_TO_RGB}",
        )
    return BadImage(
        "undecodable",
        f"a valid {kind} file was expected, Pillow cannot read this one ({said}); replace it",
    )


def _odd_samples(message: str) -> bool:
    return message in {
        "unknown pixel mode",
        "unknown data organization",
        "Invalid value for samples per pixel",
    }


def _cut_short(kind: str, data: bytes, error: Exception) -> bool:
    if isinstance(error, EOFError | struct.error) or "truncated" in str(error).lower():
        return True
    if kind == "JPEG":  # no end-of-image marker after the last start of scan
        return data.rfind(b"\xff\xd9") <= data.rfind(b"\xff\xda")
    if kind == "PNG":
        return b"IEND" not in data[-64:]
    if kind == "WebP":
        return int.from_bytes(data[4:8], "little") + 8 > len(data)
    return kind == "TIFF" and _tiff_reaches_beyond(data)


def _tiff_reaches_beyond(data: bytes) -> bool:
    """Whether a TIFF's first directory, a value in it, or pixels of it lie past the file's end."""
    order = "<" if data[:1] == b"I" else ">"
    big = b"+" in data[2:4]
    at, pointer, counter, entry = (8, "Q", "Q", "HHQ8s") if big else (4, "I", "H", "HHI4s")
    spans: dict[int, npt.NDArray[np.uint64]] = {}
    try:
        (directory,) = struct.unpack_from(order + pointer, data, at)
        (count,) = struct.unpack_from(order + counter, data, directory)
        first = directory + struct.calcsize(order + counter)
        for i in range(min(count, 4096)):
            tag, kind, n, value = struct.unpack_from(
                order + entry, data, first + i * struct.calcsize(order + entry)
            )
            size = n * _TIFF_TYPE_SIZES.get(kind, 0)
            start = 0
            if size > len(value):
                (start,) = struct.unpack(order + pointer, value)
                if start + size > len(data):
                    return True
            if tag in _TIFF_SPANS and kind in _TIFF_UNSIGNED:
                source = data if size > len(value) else value
                spans[tag] = np.frombuffer(source, order + _TIFF_UNSIGNED[kind], n, start).astype(
                    np.uint64
                )
    except (struct.error, OverflowError):
        return True
    for offsets, sizes in ((273, 279), (324, 325)):
        if offsets in spans and sizes in spans:
            n = min(len(spans[offsets]), len(spans[sizes]))
            if n and int((spans[offsets][:n] + spans[sizes][:n]).max()) > len(data):
                return True
    return False
