"""samtl.images: what decodes is exact, what does not is refused with the right code."""

import io
import pickle
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageFile

from samtl.errors import InputError
from samtl.images import codecs as images
from samtl.images.codecs import (
    BadImage,
    decode,
    decode_mask,
    statistics,
)

RGB = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
TURNED = Image.Exif()
TURNED[0x0112] = 6  # "rotate by 90 degrees to show"


def encoded(pixels, form, **options):
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def png(width, height, depth, colour, rows=b""):
    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = chunk(b"IHDR", struct.pack(">2I5B", width, height, depth, colour, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + body


def tiff(samples, bits, photometric, sample_format=1, data=None, extra=None):
    """A little-endian TIFF of 4 x 3 pixels in one strip, as no Pillow would write it."""
    size = 4 * 3 * samples * bits // 8
    tags = [(256, 3, [4]), (257, 3, [3]), (258, 3, [bits] * samples), (259, 3, [1])]
    tags += [(262, 3, [photometric]), (273, 4, [8]), (277, 3, [samples]), (278, 3, [3])]
    tags += [
        (279, 4, [size]),
        *([(338, 3, extra)] if extra else []),
        (339, 3, [sample_format] * samples),
    ]
    body = bytes(range(1, 256))[:size].ljust(size, b"\7") if data is None else data
    after = 8 + size + 2 + 12 * len(tags) + 4
    entries, spill = b"", b""
    for tag, kind, values in tags:
        packed = struct.pack(f"<{len(values)}{'H' if kind == 3 else 'I'}", *values)
        if len(packed) > 4:
            packed, spill = struct.pack("<I", after + len(spill)), spill + packed
        entries += struct.pack("<HHI", tag, kind, len(values)) + packed.ljust(4, b"\0")
    head = b"II*\0" + struct.pack("<I", 8 + size)
    return head + body + struct.pack("<H", len(tags)) + entries + bytes(4) + spill


def code_of(data):
    with pytest.raises(BadImage) as caught:
        decode(data)
    assert str(caught.value)
    return caught.value.code


def outcome(data):
    """The pixels, or the code of the refusal."""
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
    "bmp": encoded(RGB, "BMP"),
}
LOSSLESS = ["png", "lossless webp", "tiff", "lzw tiff", "deflated tiff", "bmp"]


class TestDecode:
    @pytest.mark.parametrize("seed", LOSSLESS)
    def test_lossless_formats_are_exact(self, seed):
        pixels = decode(SEEDS[seed])
        np.testing.assert_array_equal(pixels, RGB)
        assert pixels.dtype == np.uint8
        assert pixels.flags.writeable
        assert pixels.flags.c_contiguous

    def test_jpeg_is_what_pillow_gives(self):
        expected = np.asarray(Image.open(io.BytesIO(SEEDS["jpeg"])))
        np.testing.assert_array_equal(decode(SEEDS["jpeg"]), expected)

    def test_grey_is_repeated(self):
        pixels = decode(encoded(RGB[..., 0], "PNG"))
        np.testing.assert_array_equal(pixels, np.repeat(RGB[..., :1], 3, axis=2))

    def test_one_bit_becomes_black_and_white(self):
        bits = RGB[..., 0] > 127
        pixels = decode(encoded(Image.fromarray(bits), "PNG"))
        np.testing.assert_array_equal(pixels, np.repeat(bits[..., None] * np.uint8(255), 3, axis=2))

    @pytest.mark.parametrize("form", ["PNG", "TIFF"])
    def test_alpha_is_dropped_not_blended(self, form):
        clear = np.dstack([RGB, np.zeros(RGB.shape[:2], np.uint8)])
        np.testing.assert_array_equal(decode(encoded(clear, form)), RGB)

    @pytest.mark.parametrize("transparency", [None, 3, bytes(range(16))])
    def test_palettes_are_looked_up(self, transparency):
        paletted = Image.fromarray(RGB).quantize(16)
        options = {} if transparency is None else {"transparency": transparency}
        pixels = decode(encoded(paletted, "PNG", **options))
        np.testing.assert_array_equal(pixels, np.asarray(paletted.convert("RGB")))

    def test_cmyk_is_converted(self):
        pixels = decode(encoded(Image.new("CMYK", (5, 4), (255, 0, 0, 0)), "TIFF"))
        np.testing.assert_array_equal(pixels, np.broadcast_to([0, 255, 255], (4, 5, 3)))

    @pytest.mark.parametrize("form", ["PNG", "TIFF"])
    def test_pixels_stay_as_stored_whatever_the_orientation_tag(self, form):
        np.testing.assert_array_equal(decode(encoded(RGB, form, exif=TURNED)), RGB)

    @pytest.mark.parametrize("form", ["JPEG", "WEBP"])
    def test_orientation_does_not_turn_lossy_formats_either(self, form):
        tagged, plain = encoded(RGB, form, exif=TURNED), encoded(RGB, form)
        np.testing.assert_array_equal(decode(tagged), decode(plain))

    def test_orientation_does_not_turn_a_compressed_tiff(self):
        turned = encoded(RGB, "TIFF", exif=TURNED, compression="tiff_lzw")
        np.testing.assert_array_equal(decode(turned), RGB)

    @pytest.mark.parametrize(
        ("form", "options"), [("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})]
    )
    def test_the_first_of_several_images_counts(self, form, options):
        later = [Image.fromarray(255 - RGB), Image.fromarray(RGB[::-1].copy())]
        data = encoded(RGB, form, save_all=True, append_images=later, **options)
        assert Image.open(io.BytesIO(data)).n_frames == 3
        np.testing.assert_array_equal(decode(data), RGB)

    def test_a_fourth_band_of_tiff_is_dropped(self):
        bands = np.arange(1, 49, dtype=np.uint8).reshape(3, 4, 4)
        pixels = decode(tiff(4, 8, photometric=2, data=bands.tobytes(), extra=[0]))
        np.testing.assert_array_equal(pixels, bands[..., :3])

    def test_large_images_come_in_strips_without_a_seam(self, monkeypatch):
        monkeypatch.setattr(images, "_STRIP_PIXELS", 7 * RGB.shape[1])
        np.testing.assert_array_equal(decode(SEEDS["png"]), RGB)

    def test_threads_may_share_it(self):
        work = list(SEEDS.values()) * 8
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(decode, work))
        for data, pixels in zip(work, together, strict=True):
            np.testing.assert_array_equal(pixels, decode(data))


class TestRefusals:
    def test_empty(self):
        assert code_of(b"") == "empty"

    @pytest.mark.parametrize(
        "data",
        [
            b"once upon a time",
            b"BMW is a maker of cars, and this is a text",
            b"\0" * 100,
            b"GIF89a\1\0\1\0\0\0\0;",
            b"RIFF\x24\0\0\0WAVEfmt ",
            b"%!PS-Adobe-3.0 EPSF-3.0\n",
        ],
    )
    def test_not_an_image(self, data):
        assert code_of(data) == "not_an_image"

    def test_formats_off_the_list_are_refused_though_pillow_reads_them(self):
        for form in ("GIF", "PPM", "TGA", "ICO", "JPEG2000"):
            data = encoded(RGB, form)
            Image.open(io.BytesIO(data)).close()
            assert code_of(data) == "not_an_image"

    @pytest.mark.parametrize("side", [9460, 14_000, 2**31 - 1])
    def test_too_many_pixels_are_refused_by_the_header_alone(self, side):
        # Were pixels touched first, the missing ones would make it "truncated".
        assert code_of(png(side, side, 8, 2)) == "too_large"

    def test_the_largest_allowed_size_passes_the_header(self):
        assert code_of(png(9459, 9459, 8, 2)) == "truncated"

    @pytest.mark.parametrize("form", ["WEBP", "TIFF", "BMP", "JPEG"])
    def test_too_many_pixels_in_other_formats(self, form, monkeypatch):
        monkeypatch.setattr(images, "MAX_PIXELS", RGB.shape[0] * RGB.shape[1] - 1)
        assert code_of(encoded(RGB, form)) == "too_large"
        monkeypatch.setattr(images, "MAX_PIXELS", RGB.shape[0] * RGB.shape[1])
        assert decode(encoded(RGB, form)).shape == RGB.shape

    def test_a_canvas_of_terapixels_in_webp(self):
        huge = bytearray(encoded(RGB, "WEBP", exif=TURNED))
        assert huge[12:16] == b"VP8X"
        huge[24:30] = b"\xff\xff\x0f\xff\xff\x0f"
        assert code_of(bytes(huge)) == "too_large"

    def test_too_many_bytes(self, monkeypatch):
        monkeypatch.setattr(images, "MAX_BYTES", len(SEEDS["png"]) - 1)
        assert code_of(SEEDS["png"]) == "too_large"

    @pytest.mark.parametrize("side", [9460, 14_000])
    def test_no_warning_of_large_images_leaks(self, side):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            code_of(png(side, side, 8, 2))
            code_of(encoded(Image.new("1", (9460, 9460)), "TIFF", compression="group4"))
        assert seen == []

    @pytest.mark.parametrize(
        "data",
        [
            pytest.param(png(2, 2, 16, 2, bytes(26)), id="16-bit rgb png"),
            pytest.param(png(2, 2, 16, 6, bytes(34)), id="16-bit rgba png"),
            pytest.param(png(2, 2, 16, 0, bytes(10)), id="16-bit grey png"),
            pytest.param(tiff(3, 16, 2), id="16-bit rgb tiff"),
            pytest.param(tiff(1, 16, 1), id="16-bit grey tiff"),
            pytest.param(tiff(1, 32, 1, sample_format=3), id="float tiff"),
            pytest.param(tiff(1, 8, 1, sample_format=2), id="signed tiff"),
            pytest.param(tiff(5, 8, 2, extra=[0, 0]), id="5 bands"),
            pytest.param(tiff(4, 8, 1, extra=[0, 0, 0]), id="4 bands, none of them colours"),
            pytest.param(tiff(13, 8, 1, extra=[0] * 12), id="13 bands"),
            pytest.param(encoded(Image.new("LAB", (4, 4)), "TIFF"), id="lab"),
            pytest.param(encoded(Image.new("F", (4, 4)), "TIFF"), id="float by pillow"),
        ],
    )
    def test_unsupported_modes_say_what_to_do(self, data):
        with pytest.raises(BadImage, match="convert it to 8-bit RGB") as caught:
            decode(data)
        assert caught.value.code == "unsupported_mode"

    def test_the_refused_png_would_decode_with_8_bits(self):
        assert decode(png(2, 2, 8, 2, bytes(14))).shape == (2, 2, 3)

    @pytest.mark.parametrize("seed", SEEDS)
    @pytest.mark.filterwarnings("ignore::UserWarning:PIL")
    def test_every_beginning_of_a_file_is_refused_or_whole(self, seed):
        data = SEEDS[seed]
        whole = decode(data)
        outcomes = {size: outcome(data[:size]) for size in range(0, len(data), 7)}
        codes = {size: o for size, o in outcomes.items() if isinstance(o, str)}
        for size in outcomes.keys() - codes.keys():
            np.testing.assert_array_equal(outcomes[size], whole)
        # Some bytes of header must be there to tell a cut from another kind of damage.
        late = {code for size, code in codes.items() if size >= 54}
        assert late == {"truncated"}

    def test_a_tiff_with_its_pixels_after_its_tags_is_truncated_too(self):
        # As in cloud-optimised GeoTIFF: the tags survive the cut.
        data = bytearray(tiff(3, 8, 2))
        count = struct.unpack_from("<H", data, 8 + 36)[0]
        for i in range(count):
            at = 8 + 36 + 2 + 12 * i
            if struct.unpack_from("<H", data, at)[0] == 273:
                struct.pack_into("<I", data, at + 8, len(data) - 4)
            if struct.unpack_from("<H", data, at)[0] == 259:
                struct.pack_into("<H", data, at + 8, 5)  # LZW, so that libtiff reads it
        assert code_of(bytes(data)) == "truncated"

    def test_zero_width(self):
        assert code_of(png(0, 5, 8, 2)) == "undecodable"

    @pytest.mark.parametrize(
        "error", [MemoryError(), struct.error("x"), OSError("x"), SyntaxError("x"), EOFError(),
                  ValueError("x"), IndexError(), RecursionError(), OverflowError(), KeyError(1)],
        ids=lambda e: type(e).__name__,
    )  # fmt: skip
    def test_whatever_a_plugin_raises_is_one_error(self, error, monkeypatch):
        def explode(file):
            raise error

        monkeypatch.setitem(images._OPENERS, "PNG", explode)
        assert code_of(SEEDS["png"]) in {"undecodable", "truncated"}

    def test_an_interrupt_is_no_bad_image(self, monkeypatch):
        def interrupt(file):
            raise KeyboardInterrupt

        monkeypatch.setitem(images._OPENERS, "PNG", interrupt)
        with pytest.raises(KeyboardInterrupt):
            decode(SEEDS["png"])

    @given(st.data())
    @settings(max_examples=500)
    @pytest.mark.filterwarnings("ignore::UserWarning:PIL")
    def test_damaged_files_decode_or_are_refused(self, data):
        damaged = bytearray(SEEDS[data.draw(st.sampled_from(sorted(SEEDS)))])
        for _ in range(data.draw(st.integers(1, 5))):
            at = data.draw(st.integers(0, len(damaged) - 1))
            damaged[at] = data.draw(st.integers(0, 255))
        result = outcome(bytes(damaged))
        if isinstance(result, str):
            assert result in get_args(images.Code)
        else:
            assert result.dtype == np.uint8
            assert result.ndim == 3
            assert result.shape[2] == 3

    @given(st.binary(max_size=200), st.sampled_from([SEEDS[s][:40] for s in SEEDS]))
    @pytest.mark.filterwarnings("ignore::UserWarning:PIL")
    def test_garbage_behind_a_true_beginning_is_refused(self, garbage, head):
        with pytest.raises(BadImage):
            decode(head + garbage)

    def test_a_warning_made_an_error_refuses_the_image(self):
        odd = bytearray(
            encoded(RGB, "PNG", save_all=True, append_images=[Image.fromarray(255 - RGB)])
        )
        at = odd.index(b"acTL")
        odd[at + 4 : at + 8] = bytes(4)
        odd[at + 12 : at + 16] = struct.pack(">I", zlib.crc32(odd[at : at + 12]))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert code_of(bytes(odd)) == "undecodable"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            np.testing.assert_array_equal(decode(bytes(odd)), RGB)

    def test_it_survives_pickling(self):
        bad = pickle.loads(pickle.dumps(BadImage("truncated", "cut short")))
        assert (bad.code, str(bad)) == ("truncated", "cut short")
        assert isinstance(bad, InputError)

    def test_pillow_and_the_filters_are_left_as_they_were(self):
        before = (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS, list(warnings.filters))
        for data in (*SEEDS.values(), png(9460, 9460, 8, 2), SEEDS["jpeg"][:-20], b""):
            outcome(data)
        after = (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS, list(warnings.filters))
        assert after == before


GREY = RGB[..., 0]


class TestMasks:
    @pytest.mark.parametrize("form", ["PNG", "TIFF", "BMP"])
    @pytest.mark.parametrize("channels", [1, 3])
    def test_one_channel_or_three_equal_ones(self, form, channels):
        pixels = GREY if channels == 1 else np.repeat(GREY[..., None], 3, axis=2)
        for lookup in (False, True):
            found = decode_mask(encoded(pixels, form), lookup=lookup)
            assert found.dtype == np.uint8
            assert found.flags.c_contiguous
            np.testing.assert_array_equal(found, GREY)

    @pytest.mark.parametrize("form", ["PNG", "TIFF"])
    def test_palettes_give_their_indices_or_their_greys(self, form):
        indices = Image.new("P", GREY.shape[::-1])
        indices.putdata((GREY % 3).ravel().tolist())
        indices.putpalette([0, 0, 0, 255, 255, 255, 7, 7, 7])
        data = encoded(indices, form)
        np.testing.assert_array_equal(decode_mask(data), GREY % 3)
        greys = np.array([0, 255, 7], np.uint8)[GREY % 3]
        np.testing.assert_array_equal(decode_mask(data, lookup=True), greys)

    def test_one_bit_is_0_and_255(self):
        bits = GREY > 127
        for form in ("PNG", "TIFF", "BMP"):
            found = decode_mask(encoded(Image.fromarray(bits), form))
            np.testing.assert_array_equal(found, bits * np.uint8(255))

    @pytest.mark.parametrize(
        "data",
        [
            encoded(RGB, "PNG"),
            encoded(GREY, "JPEG"),
            encoded(RGB, "WEBP", lossless=True),
            encoded(np.dstack([GREY, GREY]), "PNG"),
            encoded(np.dstack([GREY] * 4), "PNG"),
            encoded(GREY.astype(np.uint16), "PNG"),
            tiff(1, 16, 1),
        ],
        ids=["colours", "jpeg", "webp", "grey and alpha", "rgb and alpha", "16-bit png", "16-bit tiff"],
    )  # fmt: skip
    def test_other_files_are_refused_with_what_to_do(self, data):
        with pytest.raises(BadImage, match=r"expected.*; (write|convert)") as caught:
            decode_mask(data)
        assert caught.value.code == "unsupported_mode"

    def test_a_palette_of_colours_has_no_greys(self):
        data = encoded(Image.fromarray(RGB).quantize(4), "PNG")
        assert decode_mask(data).max() == 3
        with pytest.raises(BadImage, match="coded in colours"):
            decode_mask(data, lookup=True)

    def test_as_stored_whatever_the_orientation_tag(self):
        indices = Image.fromarray(GREY).quantize(5)
        for image in (Image.fromarray(GREY), indices):
            data = encoded(image, "TIFF", exif=TURNED)
            np.testing.assert_array_equal(decode_mask(data), np.asarray(image))

    @pytest.mark.parametrize(
        "data", [b"", b"text", png(99_999, 99_999, 8, 0), encoded(GREY, "PNG")[:60]]
    )
    def test_what_is_no_image_is_no_mask(self, data):
        with pytest.raises(BadImage) as caught:
            decode_mask(data)
        assert caught.value.code == code_of(data)


class TestSize:
    @pytest.mark.parametrize("seed", SEEDS)
    def test_is_that_of_the_pixels(self, seed):
        assert images.size(io.BytesIO(SEEDS[seed])) == RGB.shape[:2]

    @pytest.mark.parametrize("form", ["PNG", "TIFF", "JPEG"])
    def test_is_that_of_the_pixels_whatever_the_orientation_tag(self, form):
        assert images.size(io.BytesIO(encoded(RGB, form, exif=TURNED))) == RGB.shape[:2]

    def test_needs_the_header_only(self):
        assert images.size(io.BytesIO(png(4321, 1234, 8, 2))) == (1234, 4321)

    @pytest.mark.parametrize(
        "data", [b"", b"text", png(99_999, 99_999, 8, 0), png(2, 2, 16, 2), b"\x89PNG\r\n\x1a\n"]
    )
    def test_what_the_header_shows_is_refused(self, data):
        with pytest.raises(BadImage) as caught:
            images.size(io.BytesIO(data))
        assert caught.value.code == code_of(data)

    def test_a_file_on_disk_stays_open_for_its_owner(self, tmp_path):
        (tmp_path / "a.png").write_bytes(SEEDS["png"])
        with (tmp_path / "a.png").open("rb") as file:
            assert images.size(file) == RGB.shape[:2]
            assert not file.closed


class TestStatistics:
    @given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3))))
    def test_agrees_with_numpy(self, pixels):
        flat = pixels.reshape(-1, 3).astype(np.float64)
        expected = np.concatenate([flat.mean(0), flat.std(0), flat.min(0), flat.max(0)])
        got = statistics(pixels)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-5)

    def test_large_images_are_counted_in_strips(self, monkeypatch):
        whole = statistics(RGB)
        monkeypatch.setattr(images, "_STRIP_PIXELS", 7)
        np.testing.assert_array_equal(statistics(RGB), whole)

    def test_columns_are_named_in_order(self):
        pixels = np.zeros((2, 1, 3), np.uint8)
        pixels[0, 0] = (10, 20, 30)
        table = dict(zip(images.STATISTICS, statistics(pixels).tolist(), strict=True))
        assert table["mean_g"] == 10
        assert table["std_b"] == 15
        assert table["min_r"] == 0
        assert table["max_r"] == 10
        assert len(table) == 12

    def test_a_flat_image_has_no_deviation_at_all(self):
        assert statistics(np.full((300, 301, 3), 251, np.uint8))[3:6].tolist() == [0, 0, 0]

    def test_rows_need_not_lie_together(self):
        np.testing.assert_array_equal(statistics(RGB[::2, ::3]), statistics(RGB[::2, ::3].copy()))

    @pytest.mark.parametrize(
        "pixels",
        [RGB[..., 0], RGB.astype(np.float32), RGB[:0], np.zeros((3, 4, 4), np.uint8)],
    )
    def test_other_arrays_are_refused(self, pixels):
        with pytest.raises(InputError, match="uint8"):
            statistics(pixels)
