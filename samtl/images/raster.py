"""TIFF and JPEG 2000 to pixels with rasterio: bands in its order, missing tiles as nodata or 0."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.io import DatasetReader, MemoryFile

from samtl.images.codecs import check_pixels, no_mask, unsupported

_DRIVERS = {"TIFF": "GTiff", "JPEG 2000": "JP2OpenJPEG"}


class _Reader(DatasetReader):  # type: ignore[misc]
    def read_transform(self) -> tuple[float, ...]:
        """Leave the georeference alone: rasterio warns if there is none."""
        return 0.0, 1.0, 0.0, 0.0, 0.0, 1.0


def read_rgb(data: bytes, form: str) -> NDArray[np.uint8]:
    """Read an image as (H, W, 3) uint8."""
    with _opened(data, form) as source:
        _names(source)
        return _arranged(source)


def bands_of(data: bytes, form: str) -> str:
    """Describe the bands of an image; see `codecs.bands_of`."""
    with _opened(data, form) as source:
        names = _names(source)
        colours = [name for name in names if name != "alpha"]
        told = "grey" if colours == ["gray"] else colours[0] if len(colours) == 1 else ""
        told = told or ("RGB" if colours == ["red", "green", "blue"] else "3 bands, taken for RGB")
        return f"{told} and alpha, which is dropped" if len(colours) < len(names) else told


def read_mask(data: bytes, lookup: bool) -> NDArray[Any]:
    """Read a mask as (H, W, bands), alpha last; see `codecs.decode_mask`."""
    with _opened(data, "TIFF") as source:
        alpha = [band.name for band in source.colorinterp].count("alpha")
        if source.count - alpha not in (1, 3) or "complex" in source.dtypes[0]:
            raise no_mask(f"a TIFF of {source.count} bands of {source.dtypes[0]}")
        if lookup and source.dtypes[0] == "uint8" and not alpha:
            return _arranged(source)
        values: NDArray[Any] = source.read()
        return (values * np.uint8(255) if _bits(source) == 1 else values).transpose(1, 2, 0)


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


def _names(source: DatasetReader) -> list[str]:
    """Return the names of an image's bands, if it can be shown as RGB."""
    names = [band.name for band in source.colorinterp]
    if set(source.dtypes) != {"uint8"} or source.count - names.count("alpha") not in (1, 3):
        raise unsupported(f"{source.count} bands of {source.dtypes[0]} ({', '.join(names)})")
    return names


def _arranged(source: DatasetReader) -> NDArray[np.uint8]:
    """Read the bands as (H, W, 3), fewer than 8 bits scaled to 0..255; alpha comes last."""
    bands: NDArray[np.uint8] = source.read()
    if source.colorinterp[0].name == "palette":
        table = np.zeros((256, 3), dtype=np.uint8)
        for value, colour in source.colormap(1).items():
            table[value] = colour[:3]
        return np.asarray(table[bands[0]])
    most = 2 ** _bits(source) - 1
    levels = ((np.arange(256) * 255 + most // 2) // most).astype(np.uint8)
    shown = levels[bands[:1].repeat(3, axis=0) if len(bands) < 3 else bands[:3]]
    return np.ascontiguousarray(shown.transpose(1, 2, 0))


def _bits(source: DatasetReader) -> int:
    return int(source.get_tag_item("NBITS", "IMAGE_STRUCTURE", bidx=1) or 8)
