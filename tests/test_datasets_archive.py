"""Zip archives: whole ones come back byte for byte, hostile ones are refused before any use."""

import contextlib
import multiprocessing
import os
import pickle
import stat
import struct
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from zips import TEXT, Part, packed

from samtl.datasets.files import archive as module
from samtl.datasets.files.archive import Archive
from samtl.errors import InputError


def write(folder, *parts, **options):
    path = folder / "a.zip"
    path.write_bytes(parts[0] if isinstance(parts[0], bytes) else packed(parts, **options))
    return path


def test_files_come_back(tmp_path):
    parts = [Part("a/b.txt"), Part("c", b"", deflate=False), Part("d/", b"", mode=0o40755)]
    parts += [Part("ß/1", flags=0x800), Part("Ä/1")]  # names are UTF-8 with or without the flag
    archive = Archive(write(tmp_path, *parts, comment=b"a comment"))
    assert archive.names == ("a/b.txt", "c", "ß/1", "Ä/1")
    assert [archive.read(name) for name in archive.names] == [TEXT, b"", TEXT, TEXT]
    with pytest.raises(InputError, match="no file"):
        archive.read("../a")


def test_threads_forks_and_pickles_share_it(tmp_path):
    data = {f"{i}.bin": os.urandom(2000 + i) for i in range(50)}
    archive = Archive(write(tmp_path, *(Part(name, value) for name, value in data.items())))
    names = list(data) * 4
    with ThreadPoolExecutor(8) as pool:
        for one in (archive, pickle.loads(pickle.dumps(archive))):
            assert list(pool.map(one.read, names)) == [data[name] for name in names]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(archive.read, names) == [data[name] for name in names]


NAMES = [
    "../x", "a/../../x", "..", "./x", "/x", "//x", "a//x", "a/..", "C:x", "..\\x", "a\\b", "", "/",
    "a\nb", "a\0b", "a\x7fb", "a\u202eb", "a\u2028b", b"caf\xe9.jpg", "n" * 256, "/".join(["n" * 99] * 11),
]  # fmt: skip
BEYOND = len(TEXT) + 9
KERNEL = packed([Part("b", b"0" * 60, deflate=False)])[: 30 + 1 + 60]


@pytest.mark.parametrize(
    ("parts", "named"),
    [
        *(([Part("fine"), Part(name, b"evil" if name not in ("", "/") else b"")], "") for name in NAMES),
        *(([Part("a", mode=kind | 0o644)], "'a'") for kind in (stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR)),
        *(([Part("a", flags=flag)], "'a'") for flag in (1, 1 << 6, 1 << 13)),
        *(([Part("a", method=method)], "'a'") for method in (1, 12, 99)),
        ([Part("a", b"", payload=b"\0\0\0\xff\xff" * 10_000 + b"\1\0\0\xff\xff")], "'a'"),
        ([Part("a", size=2**30, packed_size=2**26)], "'a'"),
        ([Part("a", size=2**28, payload=bytes(2**10))], "'a' unpacks"),
        ([Part("a/x"), Part("between"), Part("a/x")], "twice"),
        ([Part("a", TEXT * 99), Part("b", offset=0, local_name=b"a")], "overlap"),
        # Each member's data begin with the next member's header (the "better zip bomb").
        ([Part("a", KERNEL, False), Part("b", b"0" * 60, False, payload=b"", offset=31, packed_size=60, crc=0)],
         "overlap"),
        ([Part("a", deflate=False, packed_size=BEYOND, size=BEYOND)], "overlap"),
        *(([data], "") for data in (b"", b"PK", b"\x1f\x8b\x08" + bytes(99), packed([Part("a")])[:-1])),
        ([packed([Part("a"), Part("b")], count=1)[:40]], ""),
        ([struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 60000, 60000, 2**30, 100, 0)], ""),
    ],
)  # fmt: skip
def test_hostile_and_broken_archives_are_refused(tmp_path, parts, named):
    path = write(tmp_path, *parts)
    with pytest.raises(InputError) as caught:
        Archive(path)
    said = str(caught.value)
    assert str(path) in said
    assert named in said.replace(str(path), "")
    assert said.isprintable()


@pytest.mark.parametrize(
    ("limit", "least"),
    [("MAX_MEMBERS", 4), ("MAX_TOTAL_BYTES", 4 * len(TEXT)), ("MAX_MEMBER_BYTES", len(TEXT))],
)
def test_limits(tmp_path, monkeypatch, limit, least):
    path = write(tmp_path, *(Part(str(i)) for i in range(4)))
    monkeypatch.setattr(module, limit, least)
    assert len(Archive(path).names) == 4
    monkeypatch.setattr(module, limit, least - 1)
    with pytest.raises(InputError):
        Archive(path)


@pytest.mark.parametrize(
    "change",
    [
        *({"crc": 0}, {"deflate": False, "crc": 1}, {"local_name": b"evil!"}, {"offset": 3}),
        *({"payload": payload} for payload in (b"\xff" * 40, b"\1\0\0\xff\xff")),
        *({"size": size} for size in (len(TEXT) - 1, len(TEXT) + 1, 10 * len(TEXT))),
    ],
)
def test_what_is_not_as_the_directory_says(tmp_path, change):
    archive = Archive(write(tmp_path, Part("fine!", **change)))
    with pytest.raises(InputError, match="fine!"):
        archive.read("fine!")


def test_a_bomb_with_a_modest_header_inflates_no_further_than_that(tmp_path):
    archive = Archive(
        write(tmp_path, Part("a", bytes(2**26), size=100_000, crc=zlib.crc32(bytes(100_000))))
    )
    tracemalloc.start()
    with contextlib.suppress(InputError):
        assert archive.read("a") == bytes(100_000)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2**21


@given(data=st.data())
@settings(max_examples=200)
def test_damage_anywhere_is_harmless(data, tmp_path_factory):
    contents = {"a/x.txt": TEXT, "a/y.bin": bytes(range(256)), "b": b""}
    whole = bytearray(packed([Part(n, d, deflate=n != "b") for n, d in contents.items()]))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.sampled_from([len(whole), len(whole) - 1, len(whole) // 2]))
    path = tmp_path_factory.getbasetemp() / "damaged.zip"
    path.write_bytes(whole[:cut])
    with contextlib.suppress(InputError):
        archive = Archive(path)
        for name in archive.names:
            # A changed name or checksum field may pass, changed contents never.
            assert archive.read(name) in contents.values()
