"""Image files: what decodes is exact, what does not is refused with the right code."""

import io
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

from samtl.errors import InputError
from samtl.images import codecs
from samtl.images.codecs import BadImage, decode, decode_mask, prepare, statistics
from samtl.images.transforms import resize_longest_side

RGB = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
GREY = RGB[..., 0]
TURNED = Image.Exif()
TURNED[0x0112] = 6  # "rotate by 90 degrees to show"


def encoded(pixels, form, **options):
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


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


class TestDecode:
    @pytest.mark.parametrize("seed", LOSSLESS)
    def test_lossless_formats_are_exact(self, seed):
        pixels = decode(SEEDS[seed])
        np.testing.assert_array_equal(pixels, RGB)
        assert pixels.dtype == np.uint8
        assert pixels.flags.writeable
        assert pixels.flags.c_contiguous

    @pytest.mark.parametrize("form", ["PNG", "TIFF", "BMP"])
    def test_grey_is_repeated_and_one_bit_is_black_and_white(self, form):
        for values in (GREY, (GREY > 127) * np.uint8(255)):
            image = Image.fromarray(values)
            image = image if values is GREY else image.convert("1")
            expected = np.repeat(values[..., None], 3, axis=2)
            np.testing.assert_array_equal(decode(encoded(image, form)), expected)

    @pytest.mark.parametrize("depth", range(1, 8))
    def test_few_bits_are_scaled_to_the_whole_range(self, depth):
        most = 2**depth - 1
        values = np.random.default_rng(depth).integers(0, most + 1, (3, 4, 5), np.uint8)
        values[:, 0, 0], values[:, 0, 1] = 0, most
        expected = np.round(values * (255 / most)).astype(np.uint8)
        found = decode(geotiff(values, nbits=depth))
        np.testing.assert_array_equal(found, expected.transpose(1, 2, 0))
        grey = decode(geotiff(values[:1], nbits=depth))
        np.testing.assert_array_equal(grey, np.repeat(expected[0, :, :, None], 3, axis=2))

    @pytest.mark.parametrize("form", ["PNG", "TIFF"])
    def test_alpha_is_dropped_not_blended(self, form):
        clear = np.zeros(GREY.shape, np.uint8)
        np.testing.assert_array_equal(decode(encoded(np.dstack([RGB, clear]), form)), RGB)
        grey = decode(encoded(np.dstack([GREY, clear]), form))
        np.testing.assert_array_equal(grey, np.repeat(GREY[..., None], 3, axis=2))

    @pytest.mark.parametrize("form", ["PNG", "TIFF"])
    @pytest.mark.parametrize("transparency", [None, 3, bytes(range(16))])
    def test_palettes_are_looked_up(self, form, transparency):
        paletted = Image.fromarray(RGB).quantize(16)
        options = {"transparency": transparency} if transparency and form == "PNG" else {}
        pixels = decode(encoded(paletted, form, **options))
        np.testing.assert_array_equal(pixels, np.asarray(paletted.convert("RGB")))

    @pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
    def test_pixels_stay_as_stored_whatever_the_orientation_tag(self, form):
        np.testing.assert_array_equal(
            decode(encoded(RGB, form, exif=TURNED)), decode(encoded(RGB, form))
        )

    @pytest.mark.parametrize(("form", "options"), [("PNG", {}), ("WEBP", {"lossless": True})])
    def test_the_first_image_of_an_animation_is_used(self, form, options):
        later = [Image.fromarray(255 - RGB)]
        data = encoded(RGB, form, save_all=True, append_images=later, **options)
        np.testing.assert_array_equal(decode(data), RGB)

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
        pixels = decode(geotiff(bands, nodata=0, compress=compress, **layout))
        np.testing.assert_array_equal(pixels, bands.transpose(1, 2, 0))

    @pytest.mark.parametrize("interleave", ["pixel", "band"])
    @pytest.mark.parametrize("photometric", [None, "MINISBLACK", "RGB"])
    @pytest.mark.parametrize("compress", [None, "deflate"])
    def test_three_bands_are_rgb_whatever_they_are_called(self, interleave, photometric, compress):
        """Fault: band 1 came three times, or an IndexError."""
        options = {"photometric": photometric} if photometric else {}
        data = geotiff(RGB.transpose(2, 0, 1), interleave=interleave, compress=compress, **options)
        np.testing.assert_array_equal(decode(data), RGB)

    def test_a_fourth_band_is_alpha_only_if_the_file_says_so(self):
        """Fault: band 4 was dropped as alpha."""
        bands = np.stack([*RGB.transpose(2, 0, 1), GREY])
        np.testing.assert_array_equal(decode(geotiff(bands, alpha=True)), RGB)
        assert code_of(geotiff(bands, photometric="RGB", ALPHA="NO")) == "unsupported_mode"

    def test_several_pages_are_refused(self):
        """Fault: page 1 alone was read."""
        pages = encoded(RGB, "TIFF", save_all=True, append_images=[Image.fromarray(255 - RGB)])
        with pytest.raises(BadImage, match="2 pages") as caught:
            decode(pages)
        assert caught.value.code == "unsupported_mode"

    def test_overviews_are_no_pages(self):
        bands = np.random.default_rng(0).integers(0, 256, (3, 256, 256), dtype=np.uint8)
        with MemoryFile(geotiff(bands, driver="COG", blocksize=128)) as file:
            np.testing.assert_array_equal(decode(file.read()), bands.transpose(1, 2, 0))


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
            pytest.param(png(2, 2, 16, 2, bytes(26)), id="16-bit rgb png"),
            pytest.param(png(2, 2, 16, 6, bytes(34)), id="16-bit rgba png"),
            pytest.param(png(2, 2, 16, 0, bytes(10)), id="16-bit grey png"),
            pytest.param(geotiff(np.zeros((3, 4, 4), np.uint16)), id="16-bit rgb tiff"),
            pytest.param(geotiff(np.zeros((1, 4, 4), np.float32)), id="float tiff"),
            pytest.param(geotiff(np.zeros((1, 4, 4), np.int8)), id="signed tiff"),
        ],
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
        for pixels in (GREY, np.repeat(GREY[..., None], 3, axis=2)):
            found = decode_mask(encoded(pixels, form), lookup=lookup)
            assert found.dtype == np.uint8
            assert found.flags.c_contiguous
            np.testing.assert_array_equal(found, GREY)
        bits = GREY > 127
        found = decode_mask(encoded(Image.fromarray(bits), form), lookup=lookup)
        np.testing.assert_array_equal(found, bits * np.uint8(255))

    @pytest.mark.parametrize("form", ["PNG", "TIFF"])
    def test_palettes_give_their_indices_or_their_greys(self, form):
        indices = Image.new("P", GREY.shape[::-1])
        indices.putdata((GREY % 3).ravel().tolist())
        indices.putpalette([0, 0, 0, 255, 255, 255, 7, 7, 7])
        data = encoded(indices, form)
        np.testing.assert_array_equal(decode_mask(data), GREY % 3)
        greys = np.array([0, 255, 7], np.uint8)[GREY % 3]
        np.testing.assert_array_equal(decode_mask(data, lookup=True), greys)

    @pytest.mark.parametrize("depth", [2, 4])
    def test_few_bits_give_their_values_or_their_greys(self, depth):
        """Fault: the value 1 of a 4-bit file was read as 17."""
        data = png(8, 1, depth, 0, b"\0" + (b"\x1b" if depth == 2 else b"\x12") * depth)
        values = ([0, 1, 2, 3] if depth == 2 else [1, 2]) * 4
        assert decode_mask(data).ravel().tolist() == values[:8]
        scale = 255 // (2**depth - 1)
        assert decode_mask(data, lookup=True).ravel().tolist() == [v * scale for v in values[:8]]
        for bands in (1, 3):
            tiff = geotiff(np.array([[values[:8]]] * bands, np.uint8), nbits=depth)
            assert decode_mask(tiff).ravel().tolist() == values[:8]
            assert decode_mask(tiff, lookup=True).ravel().tolist() == [
                v * scale for v in values[:8]
            ]

    @pytest.mark.parametrize(
        "data",
        [
            encoded(RGB, "PNG"),
            encoded(GREY, "JPEG"),
            encoded(RGB, "WEBP", lossless=True),
            encoded(np.dstack([GREY, GREY]), "PNG"),
            encoded(np.dstack([GREY, GREY]), "TIFF"),
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


class TestStatistics:
    @given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3))))
    def test_agrees_with_numpy(self, pixels):
        flat = pixels.reshape(-1, 3).astype(np.float64)
        expected = np.concatenate([flat.mean(0), flat.std(0), flat.min(0), flat.max(0)])
        got = statistics(pixels)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-5)
