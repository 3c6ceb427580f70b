"""Files of a store on a disk and in a bucket: one contract, and what each alone must do."""

import errno
import os
import pickle
import re
from pathlib import Path, PurePosixPath

import pytest
from made import make

from samtl import _io
from samtl.errors import DamageError, InputError, ResourceError
from samtl.store import storage as places
from samtl.store.storage import FOLDER, IDENTITY, DiskStorage, open_storage


@pytest.fixture(params=["disk", "bucket"])
def storage(request, tmp_path):
    if request.param == "disk":
        return open_storage(tmp_path / "a.zarr")
    return open_storage(f"{request.getfixturevalue('bucket')}/x/a.zarr")


def test_one_contract(storage):
    storage.probe()
    assert (storage.list(), storage.size("log/0.json")) == ({}, None)
    storage.create("log/0.json", [b"0123", memoryview(b"456789")])
    with pytest.raises(FileExistsError):
        storage.create("log/0.json", [b"other"])
    assert storage.read("log/0.json") == storage.read("log/0.json", 10) == b"0123456789"
    assert storage.size("log/0.json") == 10
    with pytest.raises(DamageError, match="10 bytes, at most 9"):
        storage.read("log/0.json", 9)
    for anew in (False, True):
        found = storage.read_ranges("log/0.json", [(8, 10), (0, 2)], 10, "f" * 64, anew)
        assert [bytes(one) for one in found] == [b"89", b"01"]
    for content in (b"first", b"second"):
        storage.replace("a.json", content)
        assert storage.read("a.json") == content
    storage.create("two/deep/er", [b"1"])
    storage.create("two/.hidden", [b"12"])
    assert storage.list() == {"log": FOLDER, "a.json": 6, "two": FOLDER}
    assert storage.list("two") == {"deep": FOLDER, ".hidden": 2}
    assert storage.list("nothing") == {}
    assert list(storage.each(storage.read, ["two/deep/er", "two/.hidden"])) == [b"1", b"12"]
    copy = pickle.loads(pickle.dumps(storage))  # as it travels to other processes
    assert (copy.read("a.json"), copy.url) == (b"second", storage.url)
    for _ in range(2):
        storage.delete("a.json")
        with pytest.raises(FileNotFoundError):
            storage.read("a.json")


def test_plain_zarr_reads_there(storage):
    import zarr

    storage.create("zarr.json", [b'{"zarr_format":3,"node_type":"group","attributes":{"x":1}}'])
    assert zarr.open_group(storage.zarr_store(), mode="r").attrs["x"] == 1


# On a disk


def test_a_folder_in_the_place_of_a_file_is_nobodys_to_remove(tmp_path):
    storage = DiskStorage(tmp_path)
    (tmp_path / "log" / "0.json").mkdir(parents=True)
    assert storage.list("log") == {"0.json": FOLDER}
    assert storage.size("log/0.json") is None
    for act in (storage.read, storage.delete, lambda name: storage.replace(name, b"1")):
        with pytest.raises((DamageError, ResourceError), match=r"0\.json"):
            act("log/0.json")
    os.mkfifo(tmp_path / "pipe")  # which nobody writes to
    with pytest.raises(DamageError, match="pipe"):
        storage.read("pipe")
    (tmp_path / "samples").write_bytes(b"")
    with pytest.raises(DamageError, match="samples is not a folder"):
        storage.list("samples")
    with pytest.raises(FileNotFoundError):
        storage.read("samples/0")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
def test_a_disk_that_gives_out_is_one_message(tmp_path, monkeypatch, code):
    storage = DiskStorage(tmp_path)
    storage.create("a", [b"1"])

    def fail(*args, **options):
        raise OSError(code, os.strerror(code))

    for name in ("os.open", "builtins.open"):
        monkeypatch.setattr(name, fail)
    for act in (lambda: storage.read("a"), lambda: storage.create("b", [b"2"])):
        with pytest.raises(ResourceError, match=rf"cannot be .*: {os.strerror(code)}"):
            act()


def test_where_names_cannot_be_taken_once(tmp_path, monkeypatch):
    def link(*args):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(ResourceError, match="no hard links"):
        DiskStorage(tmp_path).probe()
    monkeypatch.setattr(_io, "publish", lambda path, pieces: path.write_bytes(b"".join(pieces)))
    with pytest.raises(ResourceError, match="overwritten"):
        DiskStorage(tmp_path).probe()
    assert list(tmp_path.iterdir()) == []


def test_old_temporary_files_are_swept_wherever_they_are_written(tmp_path):
    place = make(tmp_path / "a.zarr", 3)
    for folder in ("", "log", "samples", "grid", "valid", "label_name", ".damaged"):
        (place / folder).mkdir(exist_ok=True)
        for name, age in ((".tmp-old", 0), (".tmp-new", 2**32), ("kept", 0)):
            (place / folder / name).touch()
            os.utime(place / folder / name, (age, age))
    DiskStorage(place).sweep()
    left = [path.name for path in place.rglob("*")]
    assert [left.count(name) for name in (".tmp-old", ".tmp-new", "kept")] == [0, 7, 7]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="descriptors have no names here")
def test_what_was_written_is_durable(tmp_path, monkeypatch):
    """First the bytes, then the name in its folder; and the names of new folders in theirs."""
    storage, synced = DiskStorage(tmp_path), []

    def fsync(descriptor):
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        there = [name for name in ("0.json", "1.json") if (tmp_path / "a/b" / name).exists()]
        synced.append((str(path.relative_to(tmp_path)).partition("/.tmp-")[0], there))

    monkeypatch.setattr(os, "fsync", fsync)
    storage.create("a/b/0.json", [b"1"])
    assert synced == [(".", []), ("a", []), ("a/b", []), ("a/b", ["0.json"])]
    storage.replace("a/b/1.json", b"1")
    both = ["0.json", "1.json"]
    assert synced[4:] == [("a/b", ["0.json"]), ("a/b", both)]
    # The name that another writer gave, too, who may have been killed before syncing it.
    with pytest.raises(FileExistsError):
        storage.create("a/b/0.json", [b"2"])
    assert synced[6:] == [("a/b", both)] * 2
    storage.sweep()
    assert synced[8:] == [(".", both), ("a", both), ("a/b", both)]


# Names


def test_a_url_stays_one_whoever_took_it_for_a_path_and_a_path_stays_one():
    for given in ("s3://b/x/a.zarr", "s3://b//x/a.zarr/", "S3://b/x/a.zarr"):
        for url in (given, Path(given)):
            assert places.as_place(url) == "s3://b/x/a.zarr"
            with pytest.raises(InputError, match="only stores can be"):
                places.as_folder(url)
    for given in ("a/b", "", "a:b", "C:/x", PurePosixPath("eurosat.zarr")):
        assert places.as_place(given) == places.as_folder(given) == Path(given)


def test_other_urls_are_refused():
    for url in ("ftp://b/x", "s3://", "gs:", "s3://b/../x", "s3://b/a\nb"):
        with pytest.raises(InputError, match="s3://BUCKET/PREFIX"):
            places.as_place(url)
    # By these a URL would be taken apart, and the rest name another bucket.
    for bucket in ("b#x", "b?x", "user@b", "b:80", "b%61", "b b", "[b]", "\u00fc"):
        with pytest.raises(InputError, match=re.escape(repr(bucket))):
            places.as_place(f"s3://{bucket}/a")


# Which store is meant


def begun(place):
    open_storage(place).create(IDENTITY, [b""])
    return place


def test_the_only_store_in_the_cache_is_meant(monkeypatch, tmp_path):
    store = begun(Path("cache/one.zarr"))
    begun(Path("cache/.tmp-1"))
    Path("cache/README.md").touch()
    Path("cache/other").mkdir()
    assert places.locate() == places.locate(store) == places.locate(str(store)) == store
    monkeypatch.setenv("SAMTL_CACHE", str(tmp_path / "elsewhere"))
    assert places.cache_folder() == tmp_path / "elsewhere"
    with pytest.raises(InputError, match=r"no store in .*elsewhere"):
        places.locate()


def test_of_several_stores_one_must_be_chosen(tmp_path, bucket):
    for place in (tmp_path / "x", bucket):
        stores = [begun(places.as_place(f"{place}/{name}")) for name in ("b.zarr", "a.zarr")]
        assert places.stores_in(place) == stores[::-1]
        with pytest.raises(InputError, match="several stores") as caught:
            places.locate(place)
        for store in stores:
            assert f"--cache {store}" in str(caught.value)
            assert places.locate(store) == store
