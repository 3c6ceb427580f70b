"""The zip reader: whole archives come back byte for byte, hostile ones are refused before any use."""

import contextlib
import io
import os
import pickle
import re
import stat
import struct
import threading
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samtl.datasets import archive as _archive
from samtl.datasets.archive import Archive, Caps
from samtl.errors import InputError

TEXT = b"to be or not to be, " * 50


@dataclass
class Part:
    """One member of an archive that need not be honest."""

    name: str | bytes
    data: bytes = TEXT
    deflate: bool = True
    mode: int = 0o100644
    flags: int = 0
    method: int | None = None
    size: int | None = None
    packed_size: int | None = None
    crc: int | None = None
    local_name: bytes | None = None
    offset: int | None = None
    payload: bytes | None = None
    extra: bytes = b""
    comment: bytes = b""


def packed(parts, before=b"", between=b"", comment=b"", count=None, disk=0):
    out, entries = bytearray(before), b""
    for part in parts:
        name = part.name.encode() if isinstance(part.name, str) else part.name
        payload = part.payload
        if payload is None:
            squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
            payload = squeeze.compress(part.data) + squeeze.flush() if part.deflate else part.data
        method = part.method if part.method is not None else 8 * part.deflate
        size = len(part.data) if part.size is None else part.size
        length = len(payload) if part.packed_size is None else part.packed_size
        crc = zlib.crc32(part.data) if part.crc is None else part.crc
        offset = len(out) if part.offset is None else part.offset
        local = name if part.local_name is None else part.local_name
        fields = (part.flags, method, 0, 0, crc, length, size)
        out += struct.pack("<4s5H3L2H", b"PK\3\4", 20, *fields, len(local), 0) + local + payload
        entries += struct.pack(
            "<4s6H3L5H2L", b"PK\1\2", 0x0314, 20, *fields, len(name), len(part.extra),
            len(part.comment), 0, 0, part.mode << 16, offset,
        )  # fmt: skip
        entries += name + part.extra + part.comment
    count = len(parts) if count is None else count
    start = len(out) + len(between)
    end = (b"PK\5\6", disk, 0, count, count, len(entries), start, len(comment))
    return bytes(out) + between + entries + struct.pack("<4s4H2LH", *end) + comment


@pytest.fixture
def write(tmp_path):
    def write(parts, **options):
        path = tmp_path / "a.zip"
        path.write_bytes(parts if isinstance(parts, bytes) else packed(parts, **options))
        return path

    return write


def refused(path, match, caps=None):
    with pytest.raises(InputError) as caught:
        Archive(path, caps)
    said = str(caught.value)
    assert str(path) in said
    # Without the path, which holds the test's own name.
    assert re.search(match, said.replace(str(path), "")), said


class Watched:
    """A decompressor that notes how much it gave."""

    def __init__(self, make, taken, *args):
        self._inner, self._taken = make(*args), taken

    def decompress(self, *args):
        data = self._inner.decompress(*args)
        self._taken.append(len(data))
        return data

    def __getattr__(self, name):
        return getattr(self._inner, name)


class Unseekable(io.BytesIO):
    def seek(self, *args):
        raise io.UnsupportedOperation

    tell = seek


class TestReading:
    def test_files_come_back(self, write):
        archive = Archive(
            write([Part("a/b.txt"), Part("c", b"", deflate=False), Part("d/", b"", mode=0o40755)])
        )
        assert archive.names == ("a/b.txt", "c")
        assert archive.read("a/b.txt") == TEXT
        assert archive.read("c") == b""
        assert archive.total_bytes == len(TEXT)

    @pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    @pytest.mark.parametrize("streamed", [False, True])
    @pytest.mark.parametrize("wide", [False, True])
    def test_archives_of_the_standard_library(self, tmp_path, method, streamed, wide):
        buffer = io.BytesIO()
        if streamed:
            buffer = Unseekable()  # makes zipfile write sizes behind the data
        with zipfile.ZipFile(buffer, "w", method) as made:
            made.mkdir("folder")
            for i in range(3):
                with made.open(f"folder/{i}.txt", "w", force_zip64=wide) as file:
                    file.write(TEXT * i)
        path = tmp_path / "a.zip"
        path.write_bytes(buffer.getvalue())
        archive = Archive(path)
        assert {name: archive.read(name) for name in archive.names} == {
            f"folder/{i}.txt": TEXT * i for i in range(3)
        }

    def test_the_64_bit_extension(self, write):
        # What does not fit is marked in the entry and follows in the extra field.
        wide = struct.pack("<HH2Q", 1, 16, len(TEXT), len(TEXT))
        part = Part("a", deflate=False, size=0xFFFFFFFF, packed_size=0xFFFFFFFF, extra=wide)
        assert Archive(write([part])).read("a") == TEXT

    def test_the_64_bit_end_record(self, write):
        plain = packed([Part("a")])
        end = struct.unpack("<4s4H2LH", plain[-22:])
        body, start = plain[:-22], end[6]
        record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, end[5], start)
        locator = struct.pack("<4sLQL", b"PK\6\7", 0, len(body), 1)
        last = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 2**32 - 1, 2**32 - 1, 0)
        assert Archive(write(body + record + locator + last)).read("a") == TEXT
        refused(write(body + record + b"x" + locator + last), "damaged")
        refused(write(body + locator + last), "damaged")
        refused(write(last), "damaged")

    def test_more_members_than_16_bits_count(self, tmp_path):
        path = tmp_path / "a.zip"
        with zipfile.ZipFile(path, "w") as made:
            for i in range(0x10001):
                made.writestr(str(i), b"")
        assert len(Archive(path).names) == 0x10001

    def test_names_are_utf8_with_or_without_the_flag(self, write):
        archive = Archive(write([Part("Wälder/ß.txt", flags=0x800), Part("Äcker/1.txt")]))
        assert archive.names == ("Wälder/ß.txt", "Äcker/1.txt")

    def test_comments_do_not_confuse_it(self, write):
        fake = packed([Part("evil")])
        archive = Archive(write([Part("good", comment=b"PK\5\6")], comment=fake + b"..."))
        assert archive.names == ("good",)

    def test_bytes_between_members_do_no_harm(self, write):
        assert Archive(write([Part("a")], between=b"padding")).read("a") == TEXT

    def test_threads_forks_and_pickles_share_it(self, write):
        data = {f"{i}.bin": os.urandom(2000 + i) for i in range(50)}
        archive = Archive(write([Part(name, value) for name, value in data.items()]))
        copy = pickle.loads(pickle.dumps(archive))
        with ThreadPoolExecutor(8) as pool:
            for one in (archive, copy):
                names = list(data) * 4
                assert list(pool.map(one.read, names)) == [data[name] for name in names]

    def test_no_descriptor_stays_open(self, write):
        before = len(list(Path("/proc/self/fd").iterdir()))
        archive = Archive(write([Part("a")]))
        archive.read("a")
        assert len(list(Path("/proc/self/fd").iterdir())) == before

    def test_unknown_names(self, write):
        with pytest.raises(InputError, match="no file"):
            Archive(write([Part("a")])).read("../a")

    def test_an_archive_that_changes_is_noticed(self, write):
        path = write([Part("a")])
        archive = Archive(path)
        path.write_bytes(packed([Part("b", b"other" * 99), Part("a")]))
        with pytest.raises(InputError, match="changed while"):
            archive.read("a")


class TestHostileNames:
    @pytest.mark.parametrize(
        "name",
        ["../x", "a/../../x", "..", ".", "./x", "/x", "//x", "a//x", "/etc/passwd", "a/..", "a/../x",
         "C:x", "c:/x", "..\\x", "a\\b", "\\\\host\\x", "", "/"],
    )  # fmt: skip
    def test_that_may_lead_elsewhere(self, write, tmp_path, name):
        path = write([Part("fine"), Part(name, b"" if name.endswith("/") else b"evil")])
        refused(path, "lead out")

    @pytest.mark.parametrize("name", ["a\nb", "a\0b", "a\x7fb", "a\x85b", "a\u202eb", "a\u2028b"])
    def test_that_cannot_be_printed(self, write, name):
        path = write([Part(name)])
        with pytest.raises(InputError, match="invisible") as caught:
            Archive(path)
        assert str(caught.value).isprintable()

    def test_that_are_not_utf8(self, write):
        refused(write([Part(b"caf\xe9.jpg")]), "not UTF-8")

    @pytest.mark.parametrize("name", ["n" * 256, "/".join(["n" * 99] * 11), "ä" * 128])
    def test_that_are_overlong(self, write, name):
        refused(write([Part(name)]), "bytes")

    @pytest.mark.parametrize(
        ("one", "other"), [("a/x", "a/x"), ("a/x", "A/X"), ("\u00e9", "e\u0301"), ("ß", "SS")]
    )
    def test_that_collide(self, write, one, other):
        refused(write([Part(one), Part("between"), Part(other)]), "twice")

    @pytest.mark.parametrize("order", [1, -1])
    def test_that_are_file_and_folder_at_once(self, write, order):
        refused(write([Part("a"), Part("A/b")][::order]), "both a file and a folder")

    def test_that_differ_in_the_local_header(self, write):
        refused(write([Part("safe", local_name=b"evil")]), "differs")
        refused(write([Part("safe", local_name=b"safer")]), "differs")


class TestHostileMembers:
    @pytest.mark.parametrize(
        "kind",
        [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK, stat.S_IFDIR],
    )
    def test_only_regular_files(self, write, kind):
        refused(write([Part("a", b"/etc/passwd", mode=kind | 0o644)]), "not a regular file")

    def test_a_folder_that_is_a_link(self, write):
        refused(write([Part("a/", b"", mode=stat.S_IFLNK | 0o644)]), "not a regular file")

    @pytest.mark.parametrize("flag", [1, 1 << 6, 1 << 13])
    def test_encrypted(self, write, flag):
        refused(write([Part("a", flags=flag)]), "encrypted")

    @pytest.mark.parametrize("method", [1, 9, 12, 14, 93, 99])
    def test_other_methods(self, write, method):
        refused(write([Part("a", method=method)]), f"method {method}")

    def test_members_may_not_share_bytes(self, write):
        refused(write([Part("a"), Part("b", offset=0, local_name=b"a")]), "differs|overlaps")
        refused(write([Part("a"), Part("a2", offset=0)]), "differs|overlaps")

    def test_quoted_overlap(self, write):
        # Each member's data begin with the next member's header (the "better zip bomb").
        kernel = packed([Part("b", b"0" * 60, deflate=False)])[: 30 + 1 + 60]
        quoting = Part("a", kernel, deflate=False)
        plain = packed([quoting])
        start = 30 + 1
        entries = b"".join(
            struct.pack("<4s6H3L5H2L", b"PK\1\2", 0x0314, 20, 0, 0, 0, 0, zlib.crc32(data), len(data),
                        len(data), 1, 0, 0, 0, 0, 0o100644 << 16, at) + name
            for name, data, at in ((b"a", kernel, 0), (b"b", b"0" * 60, start))
        )  # fmt: skip
        body = plain[: start + len(kernel)]
        end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 2, 2, len(entries), len(body), 0)
        refused(write(body + entries + end), "'a' overlaps 'b'")

    def test_data_may_not_reach_into_the_directory(self, write):
        refused(
            write([Part("a", deflate=False, packed_size=len(TEXT) + 9, size=len(TEXT) + 9)]),
            "overlaps",
        )

    @pytest.mark.parametrize("offset", [10**6, 2**32 - 2])
    def test_a_member_outside_the_archive(self, write, offset):
        refused(write([Part("a", offset=offset)]), "outside")

    def test_wide_offsets_outside_the_archive(self, write):
        wide = struct.pack("<HHQ", 1, 8, 2**64 - 1)
        refused(write([Part("a", offset=2**32 - 1, extra=wide)]), "outside")
        wide = struct.pack("<HH2Q", 1, 16, 2**63, 2**63)
        lying = Part("a", size=2**32 - 1, packed_size=2**32 - 1, extra=wide)
        refused(write([lying]), "over")

    def test_promised_wide_values_must_be_there(self, write):
        refused(write([Part("a", size=2**32 - 1)]), "damaged")

    @pytest.mark.parametrize("size", [0, 1, len(TEXT) - 1, len(TEXT) + 1, 10 * len(TEXT)])
    def test_lying_sizes(self, write, size):
        prefix_crc = zlib.crc32(TEXT[:size])  # so that only the size gives it away
        archive = Archive(write([Part("a", size=size, crc=prefix_crc)]))
        with pytest.raises(InputError, match="damaged"):
            archive.read("a")

    def test_a_bomb_with_a_modest_header_inflates_no_further_than_that(self, write, monkeypatch):
        taken = []
        bomb = Part("a", bytes(1_000_000), size=1000, crc=zlib.crc32(bytes(1000)))
        archive = Archive(write([bomb]), Caps())
        with monkeypatch.context() as patch:
            real = zlib.decompressobj
            patch.setattr(_archive.zlib, "decompressobj", lambda *a: Watched(real, taken, *a))
            with pytest.raises(InputError, match="damaged"):
                archive.read("a")
        assert taken == [1001]

    def test_a_tiny_file_in_endless_packing(self, write):
        # Empty deflate blocks pad without end.
        payload = b"\0\0\0\xff\xff" * 10_000 + b"\1\0\0\xff\xff"
        refused(write([Part("a", b"", payload=payload)]), "contradict")

    def test_stored_sizes_must_agree(self, write):
        refused(write([Part("a", deflate=False, size=5)]), "contradict")

    def test_folders_hold_no_bytes(self, write):
        refused(write([Part("a/", b"data", mode=0o40755)]), "contradict")

    @pytest.mark.parametrize(
        "change",
        [{"crc": 0}, {"payload": b"\xff" * 40}, {"payload": b""}, {"deflate": False, "crc": 1}],
    )
    def test_damage_is_noticed(self, write, change):
        archive = Archive(write([Part("a", **change)]))
        with pytest.raises(InputError, match="damaged, get it again"):
            archive.read("a")

    def test_bytes_behind_the_deflated_ones(self, write):
        squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
        payload = squeeze.compress(TEXT) + squeeze.flush() + b"more"
        with pytest.raises(InputError, match="damaged"):
            Archive(write([Part("a", payload=payload)])).read("a")


class TestCaps:
    def test_members(self, write):
        path = write([Part(str(i)) for i in range(4)])
        assert len(Archive(path, Caps(members=4)).names) == 4
        refused(path, "4 entries", Caps(members=3))

    def test_the_directory(self, write):
        refused(write([Part("a", comment=b"x" * 999)]), "at most", Caps(directory_bytes=999))

    def test_one_member(self, write):
        path = write([Part("a")])
        Archive(path, Caps(member_bytes=len(TEXT)))
        refused(path, "unpacks to 1,000 bytes", Caps(member_bytes=len(TEXT) - 1))

    def test_the_total(self, write):
        path = write([Part("a"), Part("b")])
        Archive(path, Caps(total_bytes=2 * len(TEXT)))
        refused(path, "it unpacks to 2,000", Caps(total_bytes=2 * len(TEXT) - 1))

    def test_the_ratio(self, write):
        path = write([Part("a", bytes(2**21))])
        refused(path, "200 times")
        assert Archive(path, Caps(ratio=1100)).read("a") == bytes(2**21)
        assert Archive(write([Part("a", bytes(2**20))])).read("a") == bytes(2**20)


class TestBrokenArchives:
    @pytest.mark.parametrize(
        ("data", "match"),
        [
            (b"", "no zip archive"),
            (b"PK", "no zip archive"),
            (b"\x1f\x8b\x08" + bytes(99), "no zip archive"),
            (packed([Part("a")])[:-1], "no zip archive"),
            (packed([Part("a")]) + b"x", "no zip archive"),
            (packed([Part("a")], count=2), "damaged"),
            (packed([Part("a"), Part("b")], count=1), "damaged"),
            (packed([Part("a")], disk=1), "several parts"),
            (b"#!/bin/sh\n" + packed([Part("a")]), "belong to no record"),
        ],
    )
    def test_are_refused(self, write, data, match):
        refused(write(data), match)

    def test_an_empty_archive_has_no_files(self, write):
        assert Archive(write([])).names == ()

    def test_no_such_file(self, tmp_path):
        refused(tmp_path / "none.zip", "No such file")

    def test_a_folder(self, tmp_path):
        refused(tmp_path, "not a regular file")

    def test_a_pipe_is_not_waited_for(self, tmp_path):
        os.mkfifo(tmp_path / "pipe.zip")
        done = threading.Event()

        def try_it():
            with pytest.raises(InputError, match="not a regular file"):
                Archive(tmp_path / "pipe.zip")
            done.set()

        threading.Thread(target=try_it, daemon=True).start()
        assert done.wait(10)

    @given(data=st.data())
    @settings(max_examples=300)
    def test_damage_anywhere_is_harmless(self, data, tmp_path_factory):
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


names = st.lists(
    st.text(st.characters(categories=("Ll", "Nd"), max_codepoint=0x17F), min_size=1, max_size=5),
    min_size=1, max_size=3,
).map("/".join)  # fmt: skip


@given(st.dictionaries(names, st.binary(max_size=300), max_size=8), st.booleans())
def test_what_went_in_comes_out(tmp_path_factory, files, deflate):
    path = tmp_path_factory.mktemp("x") / "a.zip"
    path.write_bytes(packed([Part(n, d, deflate=deflate) for n, d in files.items()]))
    try:
        archive = Archive(path)
    except InputError as error:
        assert "both a file and a folder" in str(error) or "twice" in str(error)  # noqa: PT017
        return
    assert {name: archive.read(name) for name in archive.names} == files
