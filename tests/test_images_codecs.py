"""Image files: what decodes is exact, what does not is refused with the right code."""

import pickle
import struct
import warnings
import zlib
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
from samtl.images import codecs
from samtl.images.codecs import BadImage, decode, decode_mask, prepare, statistics
from samtl.images.transforms import resize_longest_side

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


def geotiff(bands, alpha=False, **options):
    """A TIFF by rasterio of (bands, H, W)."""
    profile = {"driver": "GTiff", "count": len(bands), "dtype": bands.dtype, **options}
    shape = {"height": bands.shape[1], "width": bands.shape[2]}
    with warnings.catch_warnings(), MemoryFile() as file:
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with file.open(**profile, **shape) as made:
            made.write(bands)
            if alpha:
                made.colorinterp = [*made.colorinterp[:-1], ColorInterp.alpha]
        return file.read()


def code_of(data, read=decode):
    with pytest.raises(BadImage) as caught:
        read(data)
    assert caught.value.reason
    return caught.value.code


def outcome(data):
    try:
        return decode(data)
    except BadImage as bad:
        return bad.code


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
LOSSLESS = ["png", "lossless webp", "tiff", "lzw tiff", "deflated tiff", "jpeg 2000", "bmp"]


def same(data, expected, read=decode, **options):
    np.testing.assert_array_equal(read(data, **options), expected)


def grey(values):
    return np.repeat(values[..., None], 3, axis=2)


class TestDecode:
    @pytest.mark.parametrize("seed", LOSSLESS)
    def test_lossless_formats_are_exact(self, seed):
        same(SEEDS[seed], RGB)
        pixels = decode(SEEDS[seed])
        assert (pixels.dtype, pixels.flags.writeable, pixels.flags.c_contiguous) == (
            np.uint8,
            True,
            True,
        )

    @pytest.mark.parametrize("form", ["PNG", "TIFF", "BMP"])
    def test_grey_is_repeated_and_one_bit_is_black_and_white(self, form):
        same(encoded(GREY, form), grey(GREY))
        same(encoded(Image.fromarray(GREY > 127), form), grey((GREY > 127) * np.uint8(255)))

    @pytest.mark.parametrize("depth", range(1, 8))
    def test_few_bits_are_scaled_to_the_whole_range(self, depth):
        most = 2**depth - 1
        values = np.random.default_rng(depth).integers(0, most + 1, (3, 4, 5), np.uint8)
        values[:, 0, 0], values[:, 0, 1] = 0, most
        expected = np.round(values * (255 / most)).astype(np.uint8)
        same(geotiff(values, nbits=depth), expected.transpose(1, 2, 0))
        same(geotiff(values[:1], nbits=depth), grey(expected[0]))

    @pytest.mark.parametrize("form", ["PNG", "TIFF"])
    def test_alpha_is_dropped_not_blended(self, form):
        clear = np.zeros(GREY.shape, np.uint8)
        same(encoded(np.dstack([RGB, clear]), form), RGB)
        same(encoded(np.dstack([GREY, clear]), form), grey(GREY))

    @pytest.mark.parametrize(
        ("form", "options"),
        [
            ("TIFF", {}),
            ("PNG", {}),
            ("PNG", {"transparency": 3}),
            ("PNG", {"transparency": bytes(16)}),
        ],
    )
    def test_palettes_are_looked_up(self, form, options):
        paletted = Image.fromarray(RGB).quantize(16)
        same(encoded(paletted, form, **options), np.asarray(paletted.convert("RGB")))

    @pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
    def test_pixels_stay_as_stored_whatever_the_orientation_tag(self, form):
        same(encoded(RGB, form, exif=TURNED), decode(encoded(RGB, form)))

    @pytest.mark.parametrize(("form", "options"), [("PNG", {}), ("WEBP", {"lossless": True})])
    def test_the_first_image_of_an_animation_is_used(self, form, options):
        later = [Image.fromarray(255 - RGB)]
        same(encoded(RGB, form, save_all=True, append_images=later, **options), RGB)

    def test_prepared_images_are_those_pixels_resized_and_measured(self):
        for data in SEEDS.values():
            prepared, pixels = prepare(data, 16), decode(data)
            np.testing.assert_array_equal(prepared.pixels, resize_longest_side(pixels, 16))
            np.testing.assert_array_equal(prepared.statistics, statistics(pixels))
            assert prepared.size == RGB.shape[:2]


class TestTiff:
    """What GDAL writes, in the order in which rasterio reads it."""

    @pytest.mark.parametrize("compress", [None, "deflate", "lzw"])
    def test_missing_tiles_are_nodata_or_zero(self, compress):
        """Fault: they were read from the file's start."""
        bands = np.zeros((3, 128, 128), np.uint8)
        bands[:, :, :64] = np.random.default_rng(0).integers(1, 255, (3, 128, 64))
        layout = {"tiled": True, "blockxsize": 64, "blockysize": 64, "SPARSE_OK": "TRUE"}
        same(geotiff(bands, nodata=0, compress=compress, **layout), bands.transpose(1, 2, 0))

    @pytest.mark.parametrize("interleave", ["pixel", "band"])
    @pytest.mark.parametrize("options", [{}, {"photometric": "MINISBLACK"}, {"photometric": "RGB"}])
    @pytest.mark.parametrize("compress", [None, "deflate"])
    def test_three_bands_are_rgb_whatever_they_are_called(self, interleave, options, compress):
        """Fault: band 1 came three times, or an IndexError."""
        bands = RGB.transpose(2, 0, 1)
        same(geotiff(bands, interleave=interleave, compress=compress, **options), RGB)

    def test_a_fourth_band_is_alpha_only_if_the_file_says_so(self):
        """Fault: band 4 was dropped as alpha."""
        bands = np.stack([*RGB.transpose(2, 0, 1), GREY])
        same(geotiff(bands, alpha=True), RGB)
        assert code_of(geotiff(bands, photometric="RGB", ALPHA="NO")) == "unsupported_mode"

    def test_several_pages_are_refused_but_overviews_are_none(self):
        """Fault: page 1 alone was read."""
        pages = encoded(RGB, "TIFF", save_all=True, append_images=[Image.fromarray(255 - RGB)])
        assert code_of(pages) == "unsupported_mode"
        bands = np.random.default_rng(0).integers(0, 256, (3, 256, 256), dtype=np.uint8)
        with MemoryFile(geotiff(bands, driver="COG", blocksize=128)) as file:
            same(file.read(), bands.transpose(1, 2, 0))


class TestRefusals:
    def test_too_many_pixels_are_refused_by_the_header_alone(self):
        # If pixels were touched first, the missing ones would make it "truncated".
        for side in (9460, 14_000, 2**31 - 1):
            assert code_of(png(side, side, 8, 2)) == "too_large"
        assert code_of(png(9459, 9459, 8, 2)) == "truncated"

    @pytest.mark.parametrize("form", ["WEBP", "TIFF", "BMP", "JPEG", "JPEG2000"])
    def test_too_many_pixels_in_other_formats(self, form, monkeypatch):
        monkeypatch.setattr(codecs, "MAX_PIXELS", GREY.size - 1)
        assert code_of(encoded(RGB, form)) == "too_large"
        monkeypatch.setattr(codecs, "MAX_PIXELS", GREY.size)
        assert decode(encoded(RGB, form)).shape == RGB.shape

    def test_too_many_bytes(self, monkeypatch):
        monkeypatch.setattr(codecs, "MAX_BYTES", len(SEEDS["png"]) - 1)
        assert code_of(SEEDS["png"]) == "too_large"

    @pytest.mark.parametrize(
        "data",
        [
            *(png(2, 2, 16, colour, bytes(34)) for colour in (0, 2, 6)),
            *(geotiff(np.zeros((1, 4, 4), dtype)) for dtype in (np.uint16, np.float32, np.int8)),
        ],
        ids=["grey png", "rgb png", "rgba png", "16-bit tiff", "float tiff", "signed tiff"],
    )
    def test_unsupported_modes_say_what_to_do(self, data):
        with pytest.raises(BadImage, match="convert it to 8-bit RGB") as caught:
            decode(data)
        assert caught.value.code == "unsupported_mode"

    @pytest.mark.parametrize("seed", SEEDS)
    @pytest.mark.filterwarnings("ignore::UserWarning:PIL")
    def test_every_beginning_of_a_file_is_refused_or_whole(self, seed):
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
    def test_damaged_files_decode_or_are_refused(self, data):
        damaged = bytearray(SEEDS[data.draw(st.sampled_from(sorted(SEEDS)))])
        for _ in range(data.draw(st.integers(1, 5))):
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
        result = outcome(bytes(damaged))
        if isinstance(result, str):
            assert result in get_args(codecs.Code)
        else:
            assert result.dtype == np.uint8
            assert result.shape[2:] == (3,)

    def test_it_survives_pickling(self):
        bad = pickle.loads(pickle.dumps(BadImage("truncated", "cut short")))
        assert (bad.code, str(bad)) == ("truncated", "cut short")
        assert isinstance(bad, InputError)

    def test_pillow_and_the_filters_are_left_as_they_were(self):
        before = (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS, list(warnings.filters))
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            for data in (*SEEDS.values(), png(9460, 9460, 8, 2), SEEDS["jpeg"][:-20], b""):
                outcome(data)
        after = (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS, list(warnings.filters))
        assert (seen, after) == ([], before)


class TestMasks:
    @pytest.mark.parametrize("form", ["PNG", "TIFF", "BMP"])
    @pytest.mark.parametrize("lookup", [False, True])
    def test_one_channel_or_three_equal_ones(self, form, lookup):
        for pixels in (GREY, grey(GREY)):
            found = decode_mask(encoded(pixels, form), lookup=lookup)
            assert (found.dtype, found.flags.c_contiguous) == (np.uint8, True)
            np.testing.assert_array_equal(found, GREY)
        bits = GREY > 127
        same(encoded(Image.fromarray(bits), form), bits * 255, decode_mask, lookup=lookup)

    @pytest.mark.parametrize("form", ["PNG", "TIFF"])
    def test_palettes_give_their_indices_or_their_greys(self, form):
        indices = Image.new("P", GREY.shape[::-1])
        indices.putdata((GREY % 3).ravel().tolist())
        indices.putpalette([0, 0, 0, 255, 255, 255, 7, 7, 7])
        data = encoded(indices, form)
        same(data, GREY % 3, decode_mask)
        same(data, np.array([0, 255, 7])[GREY % 3], decode_mask, lookup=True)

    @pytest.mark.parametrize("depth", [2, 4])
    def test_few_bits_give_their_values_or_their_greys(self, depth):
        """Fault: the value 1 of a 4-bit file was read as 17."""
        values = np.array([([0, 1, 2, 3] if depth == 2 else [1, 2] * 2) * 2], np.uint8)
        row = b"\0" + (b"\x1b" if depth == 2 else b"\x12") * depth
        for data in (
            png(8, 1, depth, 0, row),
            *(geotiff(np.stack([values] * n), nbits=depth) for n in (1, 3)),
        ):
            same(data, values, decode_mask)
            same(data, values * (255 // (2**depth - 1)), decode_mask, lookup=True)

    @pytest.mark.parametrize(
        "data",
        [
            encoded(RGB, "PNG"),
            encoded(GREY, "JPEG"),
            encoded(RGB, "WEBP", lossless=True),
            *(encoded(np.dstack([GREY, GREY]), form) for form in ("PNG", "TIFF")),
            encoded(np.dstack([GREY] * 4), "PNG"),
            encoded(GREY.astype(np.uint16), "PNG"),
            geotiff(GREY[None].astype(np.uint16)),
        ],
        ids=["colours", "jpeg", "webp", "la", "la tiff", "rgba", "16-bit png", "16-bit tiff"],
    )
    def test_other_files_are_refused_with_what_to_do(self, data):
        with pytest.raises(BadImage, match=r"expected.*; (write|convert)") as caught:
            decode_mask(data)
        assert caught.value.code == "unsupported_mode"


@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3))))
def test_statistics_agree_with_numpy(pixels):
    flat = pixels.reshape(-1, 3).astype(np.float64)
    expected = np.concatenate([flat.mean(0), flat.std(0), flat.min(0), flat.max(0)])
    assert statistics(pixels).dtype == np.float32
    np.testing.assert_allclose(statistics(pixels), expected, rtol=1e-6, atol=1e-5)
