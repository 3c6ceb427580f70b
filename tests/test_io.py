"""Files and folders appear whole or not at all; sealed documents notice every change."""

import errno
import fcntl
import os
import time

import msgspec
import pytest

from samtl import _io
from samtl.errors import DamageError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


class Document(msgspec.Struct):
    name: str
    values: list[float]
    checksum: str = ""


def test_publishing_is_exclusive_and_leaves_nothing_else(tmp_path, monkeypatch):
    _io.publish(tmp_path / "a", [b"one", memoryview(b"two")])
    with pytest.raises(FileExistsError):
        _io.publish(tmp_path / "a", [b"other"])
    assert (tmp_path / "a").read_bytes() == b"onetwo"
    _io.replace(tmp_path / "a", b"three")
    assert (tmp_path / "a").read_bytes() == b"three"
    assert names(tmp_path) == ["a"]

    def fail(*args, **options):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fsync", fail)
    for write, content in ((_io.publish, [b"x"]), (_io.replace, b"x")):
        with pytest.raises(OSError, match="full"):
            write(tmp_path / "b", content)
    assert names(tmp_path) == ["a"]


def test_a_sealed_document_notices_every_changed_byte():
    assert _io.canonical({"b": 0.1, "a": ["ü", None]}) == '{"a":["ü",null],"b":0.1}'.encode()
    with pytest.raises(ValueError, match="JSON"):
        _io.canonical({"a": float("nan")})
    raw = _io.seal({"name": "ü", "values": [0.1, 1e-7]})
    assert _io.unseal(raw, Document, "x").values == [0.1, 1e-7]
    assert _io.seal(msgspec.to_builtins(_io.unseal(raw, Document, "x"))) == raw
    for at in range(len(raw) - 1):
        flips = [raw[:at] + bytes([raw[at] ^ bit]) + raw[at + 1 :] for bit in (1, 32)]
        for torn in (*flips, raw[:at]):
            with pytest.raises(DamageError, match="x"):
                _io.unseal(torn, Document, "x")


def test_only_a_regular_file_of_a_bounded_size_that_fits_is_read_as_json(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # which nobody writes to
    (tmp_path / "endless").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    (tmp_path / "list").write_text("[1]")
    (tmp_path / "large").write_text("{}")
    os.truncate(tmp_path / "large", _io.MOST_JSON + 1)
    for name in ("pipe", "endless", "folder", "large", "list"):
        with pytest.raises(DamageError, match=name):
            _io.read_json(tmp_path / name, dict)
    (tmp_path / "a.json").write_text('{"name": 3, "values": []}')
    with pytest.raises(DamageError, match=r"a\.json.*name"):
        _io.read_json(tmp_path / "a.json", Document)


def test_a_name_leads_to_a_regular_file_in_the_folder_or_nowhere(tmp_path):
    folder = tmp_path / "run"
    (folder / "masks").mkdir(parents=True)
    (folder / "masks" / "a.png").write_text("")
    (tmp_path / "other").write_text("")
    (folder / "out").symlink_to(tmp_path / "other")
    (folder / "loop").symlink_to("loop")
    os.mkfifo(folder / "pipe")
    (tmp_path / "link").symlink_to(folder)
    for start in (folder, tmp_path / "link"):
        assert _io.inside(start, "masks/../masks/a.png") == folder / "masks" / "a.png"
    assert _io.inside(folder, "../other", tmp_path) == tmp_path / "other"
    absolute = ("/dev/zero", str(tmp_path / "other"))
    for name in (*absolute, "../other", "out", "loop", "pipe", "masks", "", "a\0", "a" * 300):
        with pytest.raises(DamageError):
            _io.inside(folder, name)
    with pytest.raises(FileNotFoundError):
        _io.inside(folder, "gone")


def test_checksums(tmp_path):
    assert _io.crc32c(b"123456789") == _io.crc32c(memoryview(b"123456789")) == 0xE3069283
    (tmp_path / "a").write_bytes(b"")
    assert _io.file_sha256(tmp_path / "a").startswith("e3b0c442")


@pytest.mark.parametrize("exchange", [True, False])
def test_a_folder_appears_when_it_is_published(tmp_path, monkeypatch, exchange):
    if not exchange:
        monkeypatch.setattr("ctypes.CDLL", lambda *args, **options: object())
    tmp_path /= "runs"
    with _io.AtomicFolder(tmp_path) as folder:
        (folder.path / "old").write_text("")
        assert [p.name for p in tmp_path.glob("[!.]*")] == []
        assert folder.publish("x") == tmp_path / "x"
    with _io.AtomicFolder(tmp_path) as folder:
        (folder.path / "never").write_text("")
    assert names(tmp_path) == ["x"]
    with _io.AtomicFolder(tmp_path) as folder:
        (folder.path / "new").write_text("")
        assert folder.publish("x").name == "x.2"
    with _io.AtomicFolder(tmp_path) as folder:
        (folder.path / "new").write_text("")
        folder.publish("x", replace=True)
    assert names(tmp_path) == ["x", "x.2"]
    assert names(tmp_path / "x") == ["new"]


def test_what_killed_processes_left_is_swept(tmp_path):
    with _io.AtomicFolder(tmp_path) as alive:
        prefix = alive.path.name.rpartition("-")[0]
        left = {
            f"{prefix}-dead": 100, f"{prefix}-young": 0, ".tmp-far-machine": 100,
            ".tmp-new-dead": 100, ".tmp-new-young": 0,
        }  # fmt: skip
        for name, age in left.items():
            (tmp_path / name / ("" if "-new-" in name else "a")).mkdir(parents=True)
            os.utime(tmp_path / name, (time.time() - age,) * 2)
        os.utime(alive.path, (time.time() - 100,) * 2)
        with _io.AtomicFolder(tmp_path):
            pass
        for name in (f"{prefix}-dead", f"{prefix}-young", ".tmp-new-dead"):
            del left[name]
        assert names(tmp_path) == sorted([alive.path.name, *left])
        descriptor = os.open(alive.path, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(descriptor)
