"""TIFF and JPEG 2000 to pixels with rasterio: bands in its order, missing tiles as nodata or 0."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from PIL import Image
from rasterio.io import DatasetReader, MemoryFile

from samtl.images.codecs import check_pixels, no_mask, unsupported

_RGB = ["red", "green", "blue"]
_SYCC = b"colr\1\0\0\0\0\0\x12"  # the box that says that bands are luma and chroma, which GDAL passes on
_DRIVERS = {"TIFF": "GTiff", "JPEG 2000": "JP2OpenJPEG"}


class _Reader(DatasetReader):  # type: ignore[misc]
    def read_transform(self) -> tuple[float, ...]:
        """Leave the georeference alone: rasterio warns if there is none."""
        return 0.0, 1.0, 0.0, 0.0, 0.0, 1.0


def read_rgb(data: bytes, form: str) -> NDArray[np.uint8]:
    """Read an image as (H, W, 3) uint8."""
    with _opened(data, form) as source:
        pixels = _arranged(source, _colours(source))
    if form == "JPEG 2000" and _SYCC in data[:4096]:
        bands = [Image.fromarray(band) for band in pixels.transpose(2, 0, 1)]
        pixels = np.array(Image.merge("YCbCr", bands).convert("RGB"))
    return pixels


def bands_of(data: bytes, form: str) -> str:
    """Describe the bands of an image; see `codecs.bands_of`."""
    with _opened(data, form) as source:
        names = [source.colorinterp[number - 1].name for number in _colours(source)]
        told = names[0] if len(names) == 1 else "3 bands, taken for RGB"
        told = {"gray": "grey", "undefined": "grey"}.get(told, told) if names != _RGB else "RGB"
        return f"{told} and alpha, which is dropped" if len(names) < source.count else told


def read_mask(data: bytes, lookup: bool) -> NDArray[Any]:
    """Read a mask as (H, W, bands), alpha last; see `codecs.decode_mask`."""
    with _opened(data, "TIFF") as source:
        alpha = [band.name for band in source.colorinterp].count("alpha")
        if source.count - alpha not in (1, 3) or "complex" in source.dtypes[0]:
            raise no_mask(f"a TIFF of {source.count} bands of {source.dtypes[0]}")
        if lookup and source.dtypes[0] == "uint8" and not alpha:
            return _arranged(source, source.indexes)
        values: NDArray[Any] = source.read()
        if _bits(source) == 1:
            values = ((values != 0) != _zero_is_white(source)) * np.uint8(255)
        return values.transpose(1, 2, 0)


@contextmanager
def _opened(data: bytes, form: str) -> Iterator[DatasetReader]:
    """Open a file that is one image of a size that may be decoded."""
    with (
        rasterio.Env(),
        MemoryFile(data) as file,
        _Reader(file.name, driver=_DRIVERS[form]) as source,
    ):
        check_pixels(source.width, source.height)
        if len(source.subdatasets) > 1:
            raise unsupported(f"{len(source.subdatasets)} pages")
        yield source


def _colours(source: DatasetReader) -> list[int]:
    """Return the numbers of an image's bands without alpha, in the order of RGB if they have these names."""
    names = [band.name for band in source.colorinterp]
    found = [number for number, name in enumerate(names, 1) if name != "alpha"]
    if set(source.dtypes) != {"uint8"} or len(found) not in (1, 3):
        raise unsupported(f"{source.count} bands of {source.dtypes[0]} ({', '.join(names)})")
    return [names.index(name) + 1 for name in _RGB] if {*_RGB} <= {*names} else found


def _arranged(source: DatasetReader, numbers: Sequence[int]) -> NDArray[np.uint8]:
    """Read one or three bands as (H, W, 3), fewer than 8 bits scaled to 0..255."""
    bands: NDArray[np.uint8] = source.read(numbers)
    if source.colorinterp[0].name == "palette":
        table = np.zeros((256, 3), dtype=np.uint8)
        for value, colour in source.colormap(1).items():
            table[value] = colour[:3]
        return np.asarray(table[bands[0]])
    most = 2 ** _bits(source) - 1
    levels = ((np.arange(256) * 255 + most // 2) // most).astype(np.uint8)
    if _zero_is_white(source):
        levels = ~levels
    shown = np.broadcast_to(levels[bands], (3, *bands.shape[1:]))
    return np.ascontiguousarray(shown.transpose(1, 2, 0))


def _bits(source: DatasetReader) -> int:
    return int(source.get_tag_item("NBITS", "IMAGE_STRUCTURE", bidx=1) or 8)


def _zero_is_white(source: DatasetReader) -> bool:
    """Whether a TIFF says so of its greys, which GDAL passes on as they are stored."""
    return "MINISWHITE" in source.tags(ns="IMAGE_STRUCTURE")
