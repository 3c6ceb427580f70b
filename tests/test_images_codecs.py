"""Image files: what decodes is exact, the rest is refused with the right code; pixels are resized as SAM does."""

import importlib.util
import io
import struct
import sys
import types
import warnings
import zlib
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageFile
from rasterio.enums import ColorInterp
from rasterio.io import MemoryFile
from zips import encoded

from samtl.errors import InputError
from samtl.images import codecs, transforms
from samtl.images.codecs import BadImage, bands_of, decode, decode_mask, prepare, statistics
from samtl.images.transforms import resize_longest_side, resized_shape

RGB = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
GREY = RGB[..., 0]
TURNED = Image.Exif()
TURNED[0x0112] = 6  # "rotate by 90 degrees to show"


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, depth, colour, rows=b""):
    header = chunk(b"IHDR", struct.pack(">2I5B", width, height, depth, colour, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + body


def geotiff(bands, named=(), **options):
    """Make a TIFF of (bands, H, W) with rasterio."""
    shape = dict(zip(("count", "height", "width"), bands.shape, strict=True))
    with warnings.catch_warnings(), MemoryFile() as file:
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with file.open(**{"driver": "GTiff", "dtype": bands.dtype, **shape, **options}) as made:
            made.write(bands)
            if named:
                made.colorinterp = [ColorInterp[name] for name in named]
        return file.read()


def outcome(data):
    try:
        return decode(data)
    except BadImage as bad:
        return bad.code


def grey(values):
    return np.repeat(values[..., None], 3, axis=2)


SEEDS = {
    "jpeg": encoded(RGB, "JPEG", exif=TURNED),
    "progressive jpeg": encoded(RGB, "JPEG", progressive=True),
    "png": encoded(RGB, "PNG"),
    "webp": encoded(RGB, "WEBP"),
    "lossless webp": encoded(RGB, "WEBP", lossless=True),
    "tiff": encoded(RGB, "TIFF"),
    "lzw tiff": encoded(RGB, "TIFF", compression="tiff_lzw"),
    "deflated tiff": encoded(RGB, "TIFF", compression="tiff_adobe_deflate"),
    "jpeg tiff": encoded(RGB, "TIFF", compression="jpeg"),
    "jpeg 2000": encoded(RGB, "JPEG2000"),
    "bmp": encoded(RGB, "BMP"),
}
FEW = {bits: (np.arange(384).reshape(3, 8, 16) % 2**bits).astype(np.uint8) for bits in range(1, 8)}
SHOWN = {bits: np.round(bands * (255 / (2**bits - 1))) for bits, bands in FEW.items()}
LOSSY = ("jpeg", "progressive jpeg", "webp", "jpeg tiff")
BANDS = RGB.transpose(2, 0, 1)
BITS, BLACK_WHITE = Image.fromarray(GREY > 127), (GREY > 127) * np.uint8(255)
CLEAR = np.zeros(GREY.shape, np.uint8)
OPAQUE = CLEAR + np.uint8(255)
PALETTED = Image.fromarray(RGB).quantize(16)
LATER = {"save_all": True, "append_images": [Image.fromarray(255 - RGB)]}
HALF = np.random.default_rng(0).integers(1, 256, (256, 256, 3), np.uint8)
HALF[:, 128:] = 0
YCC = encoded(Image.fromarray(RGB).convert("YCbCr"), "JPEG2000")
TILES = {"tiled": True, "blockxsize": 64, "blockysize": 64, "SPARSE_OK": "TRUE", "nodata": 0}

# Files, and the pixels that they must have.
EXACT = {
    "lossless formats": [(data, RGB) for name, data in SEEDS.items() if name not in LOSSY],
    "grey is repeated, one bit is black and white": [
        (encoded(pixels, form), grey(shown))
        for form in ("PNG", "TIFF", "BMP")
        for pixels, shown in ((GREY, GREY), (BITS, BLACK_WHITE))
    ],
    "alpha is dropped, not blended": [
        *((encoded(np.dstack([RGB, CLEAR]), form), RGB) for form in ("PNG", "TIFF")),
        *((encoded(np.dstack([GREY, CLEAR]), form), grey(GREY)) for form in ("PNG", "TIFF")),
        (geotiff(np.stack([*BANDS, GREY]), photometric="RGB", ALPHA="YES"), RGB),
    ],
    "bands that are called red, green and blue, in any order, and alpha at any place": [
        (geotiff(np.stack([*BANDS[::-1], GREY]), named=("blue", "green", "red", "alpha")), RGB),
        (geotiff(np.stack([GREY, *BANDS]), named=("alpha", "red", "green", "blue")), RGB),
        (geotiff(np.stack([OPAQUE, GREY]), named=("alpha", "gray")), grey(GREY)),
    ],
    "palettes are looked up": [
        (encoded(PALETTED, "TIFF"), PALETTED.convert("RGB")),
        (encoded(PALETTED, "PNG"), PALETTED.convert("RGB")),
        (encoded(PALETTED, "PNG", transparency=3), PALETTED.convert("RGB")),
        (encoded(PALETTED, "PNG", transparency=bytes(16)), PALETTED.convert("RGB")),
    ],
    "pixels stay as stored, whatever the orientation tag": [
        (encoded(RGB, form, exif=TURNED), decode(encoded(RGB, form)))
        for form in ("JPEG", "PNG", "TIFF", "WEBP")
    ],
    "the first image of an animation": [
        (encoded(RGB, "PNG", **LATER), RGB),
        (encoded(RGB, "WEBP", lossless=True, **LATER), RGB),
    ],
    # Fault: they were read from the file's start.
    "missing tiles are nodata or 0": [
        (geotiff(HALF.transpose(2, 0, 1), compress=name, **TILES), HALF)
        for name in (None, "deflate", "lzw")
    ],
    # Fault: band 1 came three times, or an IndexError.
    "three bands are RGB, whatever they are called": [
        (geotiff(BANDS, interleave=order, compress=name, **called), RGB)
        for order in ("pixel", "band")
        for name in (None, "deflate")
        for called in ({}, {"photometric": "MINISBLACK"}, {"photometric": "RGB"})
    ],
    # Fault: luma and chroma were taken for RGB.
    "luma and chroma in JPEG 2000": [(YCC, Image.open(io.BytesIO(YCC)).convert("RGB"))],
    # Fault: they were negatives.
    "greys of which 0 is white": [
        (geotiff(bands[:1], nbits=bits, photometric="MINISWHITE"), 255 - grey(SHOWN[bits][0]))
        for bits, bands in FEW.items()
    ]
    + [(geotiff(GREY[None], photometric="MINISWHITE"), grey(255 - GREY))],
    "overviews are no pages": [
        (geotiff(HALF.transpose(2, 0, 1), driver="COG", blocksize=128), HALF)
    ],
    "few bits are scaled to the whole range": [
        (geotiff(bands[:n], nbits=bits), SHOWN[bits][[0, n // 2, n - 1]].transpose(1, 2, 0))
        for bits, bands in FEW.items()
        for n in (1, 3)
    ],
}


@pytest.mark.parametrize("what", EXACT)
def test_pixels_are_exact(what):
    for data, expected in EXACT[what]:
        pixels, prepared = decode(data), prepare(data, 16)
        np.testing.assert_array_equal(pixels, expected)
        assert (pixels.dtype, pixels.shape[2:]) == (np.uint8, (3,))
        assert pixels.flags.writeable
        assert pixels.flags.c_contiguous
        np.testing.assert_array_equal(prepared.pixels, resize_longest_side(pixels, 16))
        np.testing.assert_array_equal(prepared.statistics, statistics(pixels))
        assert prepared.size == pixels.shape[:2]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        *((SEEDS[name], "RGB") for name in ("jpeg", "tiff", "jpeg 2000", "bmp")),
        *((encoded(GREY, form), "grey") for form in ("PNG", "TIFF", "JPEG2000")),
        *((encoded(np.dstack([RGB, CLEAR]), f), "RGB and alpha, which is dropped") for f in ("PNG", "TIFF")),
        *((encoded(PALETTED, form), "palette") for form in ("PNG", "TIFF")),
        (geotiff(BANDS, photometric="MINISBLACK"), "3 bands, taken for RGB"),
        (geotiff(GREY[None], photometric="MINISWHITE"), "grey"),
    ],
)  # fmt: skip
def test_bands_are_told_from_the_header(data, told):
    assert bands_of(data) == told


@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3))))
def test_statistics_agree_with_numpy(pixels):
    flat = pixels.reshape(-1, 3).astype(np.float64)
    expected = np.concatenate([flat.mean(0), flat.std(0), flat.min(0), flat.max(0)])
    assert statistics(pixels).dtype == np.float32
    np.testing.assert_allclose(statistics(pixels), expected, rtol=1e-6, atol=1e-5)


def test_too_many_pixels_are_refused_by_the_header_alone():
    # If pixels were touched first, the missing ones would make it "truncated".
    for side in (9460, 14_000, 2**31 - 1):
        assert outcome(png(side, side, 8, 2)) == "too_large"
    assert outcome(png(9459, 9459, 8, 2)) == "truncated"


@pytest.mark.parametrize("form", ["WEBP", "TIFF", "BMP", "JPEG", "JPEG2000"])
def test_too_many_pixels_or_bytes(form, monkeypatch):
    data = encoded(RGB, form)
    for limit, most in (("MAX_PIXELS", GREY.size), ("MAX_BYTES", len(data))):
        monkeypatch.setattr(codecs, limit, most)
        assert decode(data).shape == RGB.shape
        monkeypatch.setattr(codecs, limit, most - 1)
        assert outcome(data) == "too_large"
        monkeypatch.undo()


UNSUPPORTED = [
    *(png(2, 2, 16, colour, bytes(34)) for colour in (0, 2, 6)),
    *(geotiff(np.zeros((1, 4, 4), dtype)) for dtype in ("uint16", "float32", "int8")),
    encoded(RGB, "TIFF", **LATER),  # Fault: page 1 alone was read.
    # Fault: band 4 was dropped as alpha.
    geotiff(np.stack([*BANDS, GREY]), photometric="RGB", ALPHA="NO"),
]
NO_MASKS = [
    *(png(2, 2, 16, colour, bytes(34)) for colour in (2, 6)),
    *UNSUPPORTED[-2:],
    # Fault: the advice was to convert these to RGB.
    *(geotiff(np.full((1, 4, 4), odd)) for odd in (np.uint16(300), np.int16(-1), np.float32(0.5))),
    geotiff(np.full((1, 4, 4), np.nan)),
    geotiff(np.zeros((1, 4, 4), np.complex64)),
    png(2, 1, 16, 0, b"\0\0\1\1\0"),
    encoded(RGB, "PNG"),
    encoded(GREY, "JPEG"),
    encoded(RGB, "WEBP", lossless=True),
    *(encoded(np.dstack([GREY, CLEAR]), form) for form in ("PNG", "TIFF")),
    encoded(np.dstack([RGB, OPAQUE]), "PNG"),
    geotiff(np.stack([GREY, GREY])),
]


@pytest.mark.parametrize(("read", "files"), [(decode, UNSUPPORTED), (decode_mask, NO_MASKS)])
def test_unsupported_modes_say_what_to_do(read, files):
    for data in files:
        with pytest.raises(BadImage, match=r"expected.*; (write|convert)") as caught:
            read(data)
        assert caught.value.code == "unsupported_mode"


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_every_beginning_of_a_file_is_refused_or_whole(seed):
    data = SEEDS[seed]
    whole = decode(data)
    for length in range(0, len(data), 31):
        result = outcome(data[:length])
        if not isinstance(result, str):
            np.testing.assert_array_equal(result, whole)
        elif length >= 54:  # some bytes of header tell a cut from another kind of damage
            assert result == "truncated" or ("tiff" in seed and result == "undecodable")


@given(st.data())
@settings(max_examples=200)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_files_decode_or_are_refused(data):
    damaged = bytearray(SEEDS[data.draw(st.sampled_from(sorted(SEEDS)))])
    for _ in range(data.draw(st.integers(1, 5))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    result = outcome(bytes(damaged))
    if isinstance(result, str):
        assert result in get_args(codecs.Code)
    else:
        assert result.dtype == np.uint8
        assert result.shape[2:] == (3,)


def test_pillow_and_the_filters_are_left_as_they_were():
    before = (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS, list(warnings.filters))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for data in (*SEEDS.values(), png(9460, 9460, 8, 2), SEEDS["jpeg"][:-20], b""):
            outcome(data)
    after = (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS, list(warnings.filters))
    assert (seen, after) == ([], before)


INDICES = Image.fromarray(GREY % 3).convert("P")
INDICES.putpalette([0, 0, 0, 255, 255, 255, 7, 7, 7])

# Masks: files, the values that are stored, and the greys that are shown.
MASKS = {
    "one channel, three equal ones, one bit": [
        (encoded(pixels, form), expected, expected)
        for form in ("PNG", "TIFF", "BMP")
        for pixels, expected in ((GREY, GREY), (grey(GREY), GREY), (BITS, BLACK_WHITE))
    ],
    # Fault: black was 255 if greys were not to be looked up.
    "one bit of which 0 is white": [
        (
            geotiff(FEW[1][:1], nbits=1, photometric="MINISWHITE"),
            255 - SHOWN[1][0],
            255 - SHOWN[1][0],
        )
    ],
    # Fault: they were refused.
    "an opaque alpha": [
        (encoded(np.dstack([pixels, OPAQUE]), form), GREY, GREY)
        for form in ("PNG", "TIFF")
        for pixels in (GREY, grey(GREY))
    ],
    "types that hold more than bytes": [
        *(
            (geotiff(GREY[None].astype(t)), GREY, GREY)
            for t in ("uint16", "int32", "float32", "float64")
        ),
        (geotiff(np.array([[[0, 1, 127]]], np.int8)), [[0, 1, 127]], [[0, 1, 127]]),
        (png(2, 1, 16, 0, b"\0\0\1\0\x7f"), [[1, 127]], [[1, 127]]),
    ],
    "palettes": [
        (encoded(INDICES, form), GREY % 3, np.array([0, 255, 7])[GREY % 3])
        for form in ("PNG", "TIFF")
    ],
    # Fault: the value 1 of a 4-bit file was read as 17.
    "few bits": [
        (png(4, 1, 2, 0, b"\0\x1b"), [[0, 1, 2, 3]], [[0, 85, 170, 255]]),
        (png(4, 1, 4, 0, b"\0\x12\x0f"), [[1, 2, 0, 15]], [[17, 34, 0, 255]]),
        *(
            (geotiff(FEW[bits][[0] * n], nbits=bits), FEW[bits][0], SHOWN[bits][0])
            for bits in range(2, 8)
            for n in (1, 3)
        ),
    ],
}


@pytest.mark.parametrize("what", MASKS)
def test_masks_are_the_values_stored_or_the_greys_shown(what):
    for data, values, shown in MASKS[what]:
        for lookup, expected in ((False, values), (True, shown)):
            found = decode_mask(data, lookup=lookup)
            np.testing.assert_array_equal(found, expected)
            assert (found.dtype, found.flags.c_contiguous) == (np.uint8, True)


# Resizing and padding


def test_image_sizes_are_multiples_of_a_patch_up_to_2048():
    for size in (16, 256, 1024, 2048):
        transforms.check_image_size(size)
    for size in (0, -16, 8, 100, 1000, 2064):
        with pytest.raises(InputError, match=f"got {size}"):
            transforms.check_image_size(size)


def test_a_grid_has_sixteen_cells_or_its_tokens():
    assert [transforms.grid_cells(side) for side in (1, 15, 16, 17, 64)] == [1, 15, 16, 16, 16]


@pytest.fixture(scope="module")
def sam_transform():
    """segment_anything's own ResizeLongestSide, on the two torchvision functions that it calls.

    For a Pillow image, torchvision's `resize` is `Image.resize`, (width, height) swapped, bilinear.
    """
    package = importlib.util.find_spec("segment_anything").submodule_search_locations[0]
    functional, names = types.ModuleType("functional"), {}
    functional.to_pil_image = Image.fromarray
    functional.resize = lambda image, size: image.resize(size[::-1], Image.Resampling.BILINEAR)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional"):
            patch.setitem(sys.modules, name, functional)
        exec(Path(package, "utils", "transforms.py").read_text(), names)
    return names["ResizeLongestSide"](1024)


@pytest.mark.parametrize(
    ("height", "width"),
    [(64, 64), (1024, 1024), (600, 800), (911, 37), (2000, 1500), (1, 1), (1025, 7)],
)
def test_pixels_are_those_of_sam(sam_transform, height, width):
    pixels = np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)
    theirs = sam_transform.apply_image(pixels)
    ours = resize_longest_side(pixels)
    assert (ours.dtype, ours.shape) == (np.uint8, theirs.shape)
    np.testing.assert_array_equal(ours, theirs)


@given(st.integers(1, 5000), st.integers(1, 5000))
@settings(deadline=None)
def test_size_is_that_of_sam(sam_transform, height, width):
    theirs = sam_transform.get_preprocess_shape(height, width, 1024)
    assert resized_shape(height, width) == tuple(max(1, side) for side in theirs)


masks = st.tuples(st.integers(1, 90), st.integers(1, 90), st.integers(0, 2**32 - 1)).map(
    lambda drawn: np.random.default_rng(drawn[2]).integers(0, 6, drawn[:2], np.uint8)
)


@given(masks, st.sampled_from([16, 64, 80]))
def test_a_mask_fills_its_part_of_the_square_and_no_more(mask, size):
    square = transforms.mask_square(mask, size)
    assert (square.dtype, square.shape) == (np.uint8, (size, size))
    height, width = resized_shape(*mask.shape, size)
    inside = np.zeros((size, size), bool)
    inside[:height, :width] = True
    np.testing.assert_array_equal(square == transforms.IGNORE, ~inside)
    assert set(np.unique(square[inside])) <= set(np.unique(mask))
