"""Image files that are wrong in every way are refused with the right code, soon, with little memory, or by a worker."""

import os
import random
import struct
import time
import zlib

import numpy as np
import pytest
import workers
from test_images_codecs import RGB, SEEDS, chunk, encoded, geotiff, png

from samtl._runtime import peak_memory
from samtl.errors import ResourceError
from samtl.images import safe_decoder
from samtl.images.codecs import BadImage, prepare
from samtl.images.safe_decoder import SafeDecoder

pytestmark = pytest.mark.slow

MOST_MEMORY, MOST_SECONDS = 300 * 2**20, 10
PNG, JPEG, WEBP, BMP = (SEEDS[form] for form in ("png", "jpeg", "webp", "bmp"))


def patched(data, at, new):
    return data[:at] + new + data[at + len(new) :]


def of_tiff(tag, value):
    """A TIFF, one of its values another; tag 0 makes its directory its own successor."""
    data = bytearray(geotiff(np.ones((3, 3, 4), np.uint8), photometric="RGB"))
    directory = struct.unpack_from("<I", data, 4)[0]
    count = struct.unpack_from("<H", data, directory)[0]
    if tag == 0:
        struct.pack_into("<I", data, directory + 2 + 12 * count, directory)
    for i in range(count):
        at = directory + 2 + 12 * i
        if struct.unpack_from("<H", data, at)[0] == tag:
            struct.pack_into("<HII", data, at + 2, 4, 1, value)
    return bytes(data)


def bombed(kind):
    """A PNG with a chunk that inflates to 64 MiB."""
    return PNG[:33] + chunk(kind, b"k\0\0" + zlib.compress(bytes(2**26))) + PNG[33:]


NO_IMAGE = [
    b"once upon a time", b"BMW is a maker of cars, and this is a text", b"\0" * 100, b"GIF89a\1\0\1\0\0\0\0;",
    b"RIFF\x24\0\0\0WAVEfmt ", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"<!DOCTYPE html><html>404 Not Found</html>",
    b"PK\3\4" + bytes(60), b"%PDF-1.7\n" + bytes(60), b"\x93NUMPY\1\0" + bytes(80), b"\x7fELF" + bytes(60),
    b"\x1f\x8b\x08" + bytes(40), b"\xff", b"\x89PNG\r\n", b"<?xml version='1.0'?><svg/>",
    random.Random(5).randbytes(500),
    *(encoded(RGB, form) for form in ("GIF", "PPM", "TGA", "ICO")),
]  # fmt: skip
ANY = {"truncated", "undecodable"}
BY_HAND = [
    (b"", {"empty"}),
    *((data, {"not_an_image"}) for data in NO_IMAGE),
    *((data, {""}) for data in SEEDS.values()),
    *(
        (d[: int(len(d) * part)], ANY if d[:2] in (b"II", b"MM") else {"truncated"})
        for d in SEEDS.values()
        for part in (0.3, 0.9)
    ),
    (png(0, 5, 8, 2), {"undecodable"}),
    (png(2, 2, 3, 0, bytes(10)), ANY | {"unsupported_mode"}),
    (patched(PNG, 29, b"\0\0\0\0"), {"undecodable"}),
    (patched(PNG, 60, bytes(200)), ANY),
    (bombed(b"zTXt"), {"undecodable"}),
    (bombed(b"iCCP"), {"", "undecodable"}),
    (of_tiff(259, 65_000), ANY),
    (of_tiff(256, 2**31 - 1), {"too_large", *ANY}),
    (of_tiff(257, 0), ANY),
    (of_tiff(273, 2**31), ANY),
    (of_tiff(0, 0), {"", "unsupported_mode"}),
    (b"\xff\xd8\xff\xe0\0\x10JFIF\0" + bytes(9) + b"\xff\xd9", ANY),
    (JPEG[:20] + random.Random(6).randbytes(900) + b"\xff\xd9", ANY),
    (WEBP[:20] + random.Random(7).randbytes(900), ANY),
    (patched(BMP, 18, struct.pack("<i", 2**30)), {"too_large"}),
    (patched(BMP, 28, struct.pack("<H", 17)), ANY | {"unsupported_mode"}),
]


def code(data):
    begun = time.monotonic()
    try:
        prepared = prepare(data, 64)
    except BadImage as bad:
        return bad.code if bad.reason else "no reason"
    finally:
        assert time.monotonic() - begun < MOST_SECONDS
    assert prepared.pixels.dtype == np.uint8
    assert max(prepared.pixels.shape[:2]) == 64
    assert np.isfinite(prepared.statistics).all()
    return ""


def test_sixty_made_by_hand():
    assert len(BY_HAND) >= 60
    for data in SEEDS.values():  # what decoders take once is not counted
        code(data)
    before = peak_memory()
    wrong = [(data[:40], code(data), right) for data, right in BY_HAND if code(data) not in right]
    assert wrong == []
    assert peak_memory() - before <= MOST_MEMORY


# Decoding in worker processes


@pytest.fixture
def decoder():
    made = SafeDecoder(seconds=1)
    yield made
    made.close()


def test_results_and_refusals_are_those_of_this_process(decoder):
    for data in SEEDS.values():
        ours, theirs = prepare(data, 16), decoder.prepare(data, 16)
        np.testing.assert_array_equal(ours.pixels, theirs.pixels)
        np.testing.assert_array_equal(ours.statistics, theirs.statistics)
        assert ours.size == theirs.size
    for data in (b"", SEEDS["png"][:99], png(2, 2, 16, 2)):
        with pytest.raises(BadImage) as ours:
            prepare(data, 16)
        with pytest.raises(BadImage) as theirs:
            decoder.prepare(data, 16)
        assert (theirs.value.code, str(theirs.value)) == (ours.value.code, str(ours.value))


@pytest.mark.parametrize("data", [b"die", b"sleep", b"spin", b"once"])
def test_an_image_that_ends_its_worker_costs_itself_only(decoder, monkeypatch, tmp_path, data):
    """A worker that dies once is replaced, and the image is decoded."""
    monkeypatch.setenv("MARK", str(tmp_path / "mark"))
    monkeypatch.setattr(safe_decoder, "_prepare", workers.prepare)
    monkeypatch.setattr(safe_decoder, "_PATIENCE", 8)
    if data != b"once":
        with pytest.raises(BadImage) as caught:
            decoder.prepare(data, 16)
        assert caught.value.code == "undecodable"
    assert decoder.prepare(b"once" if data == b"once" else b"fine", 16).size == (1, 1)


def test_memory_is_limited(decoder):
    decoder.memory = 2**26
    with pytest.raises(BadImage) as caught:
        decoder.prepare(encoded(np.zeros((6000, 6000, 3), np.uint8)), 64)
    assert caught.value.code in ("too_large", "undecodable")


def test_a_worker_that_cannot_start_is_no_fault_of_the_image(decoder, monkeypatch):
    monkeypatch.setattr(safe_decoder, "_start", os._exit)
    with pytest.raises(ResourceError):
        decoder.prepare(SEEDS["png"], 16)
