"""A pass over images that are wrong in every way: it goes on, says why, and stays small."""

import os
import random
import struct
import time
import zlib

import numpy as np
import pytest
import stubs
from PIL import Image
from test_images import RGB, SEEDS, encoded, png, tiff

from samtl.datasets import Dataset
from samtl.embed.api import embed
from samtl.images import decoder_process
from samtl.images.codecs import BadImage
from samtl.images.decoder_process import prepare, prepare_here
from samtl.store.reader import open_store

pytestmark = pytest.mark.slow
ALL = bool(os.environ.get("SAMTL_TORTURE"))
MUTATED = 5_000 if ALL else 600
CODES = {"empty", "not_an_image", "truncated", "too_large", "unsupported_mode", "undecodable"}
MOST_MEMORY, MOST_SECONDS = 300 * 2**20, 10


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def patched(data, at, new):
    return data[:at] + new + data[at + len(new) :]


def without(data, kind):
    """A PNG without the chunks of a kind."""
    kept, at = data[:8], 8
    while at < len(data):
        size = 12 + int.from_bytes(data[at : at + 4], "big")
        kept += b"" if data[at + 4 : at + 8] == kind else data[at : at + size]
        at += size
    return kept


def looping_tiff():
    """Its directory is its own successor, and one of its values reaches over itself."""
    data = bytearray(tiff(3, 8, 2))
    directory = struct.unpack_from("<I", data, 4)[0]
    count = struct.unpack_from("<H", data, directory)[0]
    struct.pack_into("<I", data, directory + 2 + 12 * count, directory)
    return bytes(data)


def of_tiff(tag, value):
    """A TIFF, one of its values another."""
    data = bytearray(tiff(3, 8, 2))
    directory = struct.unpack_from("<I", data, 4)[0]
    for i in range(struct.unpack_from("<H", data, directory)[0]):
        at = directory + 2 + 12 * i
        if struct.unpack_from("<H", data, at)[0] == tag:
            struct.pack_into("<HII", data, at + 2, 4, 1, value)
    return bytes(data)


LARGE = Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8))
FORMS = {form: encoded(LARGE, form) for form in ("PNG", "JPEG", "WEBP", "TIFF", "BMP")}
FORMS["LZW"] = encoded(LARGE, "TIFF", compression="tiff_lzw")
FORMS["DEFLATE"] = encoded(LARGE, "TIFF", compression="tiff_adobe_deflate")
FORMS["PROGRESSIVE"] = encoded(LARGE, "JPEG", progressive=True)

# Sixty by hand: what is wrong, the file, and the codes that are right for it.
NO_IMAGE = {
    "text": b"once upon a time", "a car": b"BMW is a maker of cars, and this is a text", "zeros": b"\0" * 100,
    "gif": b"GIF89a\1\0\1\0\0\0\0;", "wave": b"RIFF\x24\0\0\0WAVEfmt ", "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n",
    "html": b"<!DOCTYPE html><html>404 Not Found</html>", "zip": b"PK\3\4" + bytes(60),
    "pdf": b"%PDF-1.7\n" + bytes(60),
    "numpy": b"\x93NUMPY\1\0" + bytes(80), "pickle": b"\x80\4\x95" + bytes(40), "program": b"\x7fELF" + bytes(60),
    "gzip": b"\x1f\x8b\x08" + bytes(40), "jpeg 2000": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(40), "one byte": b"\xff",
    "half a signature": b"\x89PNG\r\n", "xml": b"<?xml version='1.0'?><svg/>", "noise": random.Random(5).randbytes(500),
}  # fmt: skip
CUT = {
    f"{form} cut at {part:.0%}": data[: int(len(data) * part)]
    for form, data in FORMS.items()
    for part in (0.3, 0.9)
}
WRONG = {
    "png of 2^31 pixels a side": (png(2**31 - 1, 2**31 - 1, 8, 2), {"too_large"}),
    "png just too large": (png(9460, 9460, 8, 2), {"too_large"}),
    "png just not too large, without pixels": (png(9459, 9459, 8, 2), {"truncated"}),
    "png of zero width": (png(0, 5, 8, 2), {"undecodable"}),
    "png of 16 bits": (png(2, 2, 16, 2, bytes(26)), {"unsupported_mode"}),
    "grey png of 16 bits": (png(2, 2, 16, 0, bytes(10)), {"unsupported_mode"}),
    "png of 3 bits": (png(2, 2, 3, 0, bytes(10)), {"undecodable", "unsupported_mode"}),
    "png without its pixels": (without(FORMS["PNG"], b"IDAT"), {"truncated", "undecodable"}),
    "png without its header": (without(FORMS["PNG"], b"IHDR"), {"undecodable", "truncated"}),
    "png with a wrong checksum": (patched(FORMS["PNG"], 29, b"\0\0\0\0"), {"undecodable"}),
    "png of another compression": (patched(FORMS["PNG"], 60, bytes(200)), {"undecodable", "truncated"}),
    "png with a bomb of text": (
        FORMS["PNG"][:33] + chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(2**26))) + FORMS["PNG"][33:], {"undecodable"},
    ),
    "png with a bomb of a profile": (
        FORMS["PNG"][:33] + chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(2**26))) + FORMS["PNG"][33:],
        {"", "undecodable"},
    ),
    "tiff of 16 bits": (tiff(3, 16, 2), {"unsupported_mode"}),
    "tiff of floats": (tiff(1, 32, 1, sample_format=3), {"unsupported_mode"}),
    "tiff of 13 bands": (tiff(13, 8, 1, extra=[0] * 12), {"unsupported_mode"}),
    "tiff of another compression": (of_tiff(259, 65_000), {"undecodable", "unsupported_mode"}),
    "tiff of 2^32 columns": (of_tiff(256, 2**32 - 1), {"too_large"}),
    "tiff of no rows": (of_tiff(257, 0), {"undecodable", "truncated"}),
    "tiff whose pixels are elsewhere": (of_tiff(273, 2**31), {"truncated"}),
    "tiff that goes in circles": (looping_tiff(), {""}),
    "jpeg without a frame": (b"\xff\xd8\xff\xe0\0\x10JFIF\0" + bytes(9) + b"\xff\xd9", {"undecodable", "truncated"}),
    "jpeg of noise": (FORMS["JPEG"][:20] + random.Random(6).randbytes(900) + b"\xff\xd9", {"undecodable", "truncated"}),
    "webp of noise": (FORMS["WEBP"][:20] + random.Random(7).randbytes(900), {"undecodable", "truncated"}),
    "bmp of 2^30 columns": (patched(FORMS["BMP"], 18, struct.pack("<i", 2**30)), {"too_large"}),
    "bmp of 17 bits": (patched(FORMS["BMP"], 28, struct.pack("<H", 17)), {"undecodable", "unsupported_mode"}),
}  # fmt: skip
BY_HAND = {
    **{name: (data, {"not_an_image"}) for name, data in NO_IMAGE.items()},
    **{name: (data, {"truncated"}) for name, data in CUT.items()},
    **WRONG,
}
SOUND = {f"sound {name}": data for name, data in FORMS.items()}


def peak(process):
    """The most memory that a process ever had, in bytes."""
    with open(f"/proc/{process}/status", encoding="ascii") as file:  # noqa: PTH123
        (line,) = (line for line in file if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


@pytest.fixture
def fresh():
    """A process that has decoded but one small image; gives what it takes in memory."""
    decoder_process._end_all()
    prepare(stubs.png(0), 64)
    (decoder,) = decoder_process._idle
    yield peak(decoder._process.pid)
    decoder_process._end_all()


def test_sixty_made_by_hand(encoders, tmp_path, record_property, fresh):
    assert len(BY_HAND) >= 60
    files = {**SOUND, "empty": b"", **{name: data for name, (data, _) in BY_HAND.items()}}
    allowed = {
        **{name: {""} for name in SOUND},
        "empty": {"empty"},
        **{n: c for n, (_, c) in BY_HAND.items()},
    }
    names = tuple(files)
    dataset = Dataset(
        "bad", ("a", "b"), names, tuple(i % 2 for i in range(len(names))), files.__getitem__
    )
    before = peak("self")
    result = embed(dataset, "stub", out=tmp_path / "a.zarr", device="cpu")
    assert peak("self") - before <= MOST_MEMORY
    (decoder,) = decoder_process._idle
    assert peak(decoder._process.pid) - fresh <= MOST_MEMORY
    assert result.missing == 0
    store = open_store(result.store)
    codes = {bad.sample_id: bad.code for bad in store.quarantined}
    wrong = {
        name: codes.get(name, "") for name in names if codes.get(name, "") not in allowed[name]
    }
    assert wrong == {}
    assert all(bad.reason for bad in store.quarantined)
    record_property("points", f"{len(files)} files, {len(codes)} of which were put aside,")


def mutated(number):
    """A file that was sound, and the same for the same number."""
    draw = random.Random(number)
    data = bytearray(draw.choice([*FORMS.values(), *SEEDS.values()]))
    for _ in range(draw.choice([1, 1, 2, 5, 30])):
        at = draw.randrange(len(data))
        size = min(draw.choice([1, 2, 4, 40]), len(data) - at)
        how = draw.randrange(7)
        if how == 0:
            data[at] ^= 1 << draw.randrange(8)
        elif how == 1:
            data[at : at + size] = draw.randbytes(size)
        elif how == 2:
            data[at : at + size] = draw.choice([b"\0", b"\xff", b"\x7f"]) * size
        elif how == 3:
            del data[at : at + size]
        elif how == 4:
            data[at:at] = data[max(0, at - size) : at]
        elif how == 5:
            del data[at + 1 :]
        else:  # where headers say how large all is
            at = draw.randrange(min(len(data), 64))
            data[at : at + 4] = struct.pack(
                draw.choice("<>") + "I", draw.choice([0, 9_000, 2**16, 2**31, 2**32 - 1])
            )
        if not data:
            break
    return bytes(data)


def test_mutated(fresh, record_property):
    put_aside, slowest, most = 0, 0.0, 0
    for number in range(MUTATED):
        data = mutated(number)
        begun, refused = time.monotonic(), None
        try:
            prepared = prepare(data, 64)
        except BadImage as bad:
            refused = bad
        if refused is None:
            assert prepared.pixels.dtype == np.uint8
            assert max(prepared.pixels.shape[:2]) == 64
            assert np.isfinite(prepared.statistics).all()
        else:
            put_aside += 1
            assert refused.reason
            assert refused.code in CODES
        slowest = max(slowest, time.monotonic() - begun)
        assert slowest <= MOST_SECONDS, number
        (decoder,) = decoder_process._idle
        if number % 20 == 0 or number == MUTATED - 1:
            most = max(most, peak(decoder._process.pid) - fresh)
            assert most <= MOST_MEMORY, number
    assert put_aside > MUTATED // 4
    told = f"{MUTATED} files, {put_aside} of which were put aside, {most / 2**20:.0f} MiB and {slowest:.1f} s at most,"
    record_property("points", told)


def test_what_is_sound_stays_sound():
    for data in (*FORMS.values(), *SEEDS.values(), encoded(RGB, "PNG")):
        assert np.array_equal(prepare(data, 64).pixels, prepare_here(data, 64).pixels)
