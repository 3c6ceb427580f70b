"""Rows from a bucket, and what is kept of them on this disk."""

import os
import threading
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("obstore")
import stubs

from samtl.embed.api import embed
from samtl.errors import DamageError, InputError, ResourceError
from samtl.store import fetched
from samtl.store.fetched import RowCache, row_cache
from samtl.store.reader import open_store
from samtl.store.remote import as_path

ROWS = 40


@pytest.fixture
def made(bucket, encoders):
    embed(stubs.toy_dataset(ROWS), "stub", out=f"{bucket}/a.zarr", device="cpu")
    return f"{bucket}/a.zarr"


@pytest.fixture
def local(encoders, tmp_path):
    return embed(stubs.toy_dataset(ROWS), "stub", out=tmp_path / "a.zarr", device="cpu").store


def gets(server):
    return [path for method, path, _ in server.requests if method == "GET"]


@pytest.mark.parametrize("whole", [0, fetched.WHOLE])
def test_rows_are_those_of_a_store_on_a_disk(made, local, monkeypatch, whole):
    monkeypatch.setattr(fetched, "WHOLE", whole)
    here, there = open_store(local), open_store(made)
    assert stubs.everything(there) == stubs.everything(here)
    order = np.random.default_rng(0).integers(0, ROWS, 100)
    for array in here.arrays:
        assert there.read(array, order).tolist() == here.read(array, order).tolist()
        assert there.read(array, []).shape == here.read(array, []).shape
        for row in (0, 15, 16, ROWS - 1):
            assert np.array_equal(there.row(array, row), here.row(array, row))
    assert there.fingerprint == here.fingerprint
    assert there.summary().arrays == here.summary().arrays
    assert len(there) == ROWS
    assert there.missing == 0


def test_wrong_rows_are_refused_as_ever(made):
    store = open_store(made)
    for rows in ([-1], [ROWS], [3, 400]):
        with pytest.raises(InputError, match="asked for"):
            store.read("pooled", rows)
    with pytest.raises(InputError, match="has no array"):
        store.read("nothing", [0])


def test_rows_of_a_block_come_with_two_requests_and_then_from_the_disk(
    made, monkeypatch, bucket_server
):
    monkeypatch.setattr(fetched, "WHOLE", 0)
    store = open_store(made)
    bucket_server.requests.clear()
    first = store.read("dense", range(16))
    assert len(gets(bucket_server)) == 2  # the index, and the rows
    again = open_store(made)
    bucket_server.requests.clear()
    assert np.array_equal(again.read("dense", range(16)), first)
    assert gets(bucket_server) == []


def test_small_shards_come_whole(made, bucket_server):
    store = open_store(made)
    bucket_server.requests.clear()
    store.row("pooled", 3)
    store.row("pooled", 4)
    store.read("pooled", range(16))
    assert len(gets(bucket_server)) == 1


@pytest.mark.parametrize("whole", [0, fetched.WHOLE])
def test_what_is_kept_wrongly_is_asked_for_again(made, monkeypatch, whole):
    monkeypatch.setattr(fetched, "WHOLE", whole)
    good = open_store(made).read("dense")
    kept = [path for path in Path(os.environ["SAMTL_ROW_CACHE"]).rglob("*") if path.is_file()]
    assert kept
    for path in kept:
        path.write_bytes(bytes(path.stat().st_size))
    assert np.array_equal(open_store(made).read("dense"), good)
    for path in kept:
        path.write_bytes(b"short")
    assert np.array_equal(open_store(made).read("dense"), good)


@pytest.mark.parametrize("whole", [0, fetched.WHOLE])
@pytest.mark.parametrize("refused", ["iterdir", "unlink"])
def test_what_is_kept_wrongly_for_good_is_passed_over(made, monkeypatch, whole, refused):
    """As another's files, which may be read and not removed."""
    monkeypatch.setattr(fetched, "WHOLE", whole)
    good = open_store(made).read("dense")
    kept = [path for path in Path(os.environ["SAMTL_ROW_CACHE"]).rglob("*") if path.is_file()]
    for path in kept:
        path.write_bytes(bytes(path.stat().st_size))

    def refuse(*arguments, **options):
        raise PermissionError(13, "made up")

    with monkeypatch.context() as patch:
        for name in (refused, "replace", "write_bytes"):
            patch.setattr(Path, name, refuse)
        store = open_store(made)
        for _ in range(2):
            assert np.array_equal(store.read("dense"), good)
        assert np.array_equal(store.row("dense", 3), good[3])
    assert all(path.read_bytes() == bytes(path.stat().st_size) for path in kept)


@pytest.mark.parametrize("whole", [0, fetched.WHOLE])
def test_what_another_thread_keeps_wrongly_is_not_damage(made, monkeypatch, whole):
    """One has read what is wrong on the disk, and keeps it in memory after the other has let go of it."""
    monkeypatch.setattr(fetched, "WHOLE", whole)
    good = open_store(made).row("dense", 3)
    store = open_store(made)
    store._shards["dense"](0)[0]._recent = {}  # its index is known
    for path in Path(os.environ["SAMTL_ROW_CACHE"]).rglob("*-*"):
        path.write_bytes(bytes(path.stat().st_size))
    has_read, has_let_go, keeps_it, is_done = (threading.Event() for _ in range(4))
    get, forget = fetched.RowCache.get, fetched.FetchedShard._forget

    def one_gets(*of):
        found = get(*of)
        if threading.current_thread() is one:
            has_read.set()
            assert has_let_go.wait(10)
        return found

    def both_let_go(of):
        if threading.current_thread() is one:
            keeps_it.set()
            assert is_done.wait(10)
        forget(of)
        if threading.current_thread() is not one:
            has_let_go.set()
            assert keeps_it.wait(10)

    monkeypatch.setattr(fetched.RowCache, "get", one_gets)
    monkeypatch.setattr(fetched.FetchedShard, "_forget", both_let_go)
    of_one = []
    one = threading.Thread(target=lambda: of_one.append(store.row("dense", 3)))
    one.start()
    assert has_read.wait(10)
    assert np.array_equal(store.row("dense", 3), good)
    is_done.set()
    one.join()
    assert np.array_equal(of_one[0], good)


@pytest.mark.parametrize("whole", [0, fetched.WHOLE])
def test_damage_in_the_bucket_is_damage(made, monkeypatch, whole):
    monkeypatch.setattr(fetched, "WHOLE", whole)
    store = open_store(made)
    spec = store._specs["dense"]
    for block, spoil in enumerate(
        (lambda b: b[:9] + b"x" + b[10:], lambda b: b[:-1], lambda b: None)
    ):
        path = as_path(made) / spec.shard_path(block)
        content = spoil(path.read_bytes())
        path.unlink()
        if content is not None:
            path.create(content)
        with pytest.raises(DamageError):
            store.read("dense", range(16 * block, min(16 * block + 16, ROWS)))
        with pytest.raises(DamageError):
            store.row("dense", 16 * block)


def test_without_room_nothing_is_kept_and_rows_come_all_the_same(made, monkeypatch, tmp_path):
    monkeypatch.setattr(fetched, "WHOLE", 0)
    good = open_store(made).read("dense")
    monkeypatch.setenv("SAMTL_ROW_CACHE", str(tmp_path / "none"))
    monkeypatch.setenv("SAMTL_ROW_CACHE_GIB", "0")
    assert np.array_equal(open_store(made).read("dense"), good)
    assert not (tmp_path / "none").exists()
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("SAMTL_ROW_CACHE", str(tmp_path / "file"))
    monkeypatch.delenv("SAMTL_ROW_CACHE_GIB")
    assert np.array_equal(open_store(made).read("dense"), good)


def test_the_oldest_go_first(tmp_path):
    cache = RowCache(tmp_path / "kept", 1_600)
    for i in range(40):
        cache.put(f"{i:064}", 0, 100, bytes([i]) * 100)
        os.utime(cache._path(f"{i:064}", 0, 100), (i, i))
        cache.get(f"{0:064}", 0, 100)  # in use all the time
    there = [i for i in range(40) if cache.get(f"{i:064}", 0, 100)]
    assert there[0] == 0
    assert there[1:] == list(range(41 - len(there), 40))
    assert 10 <= len(there) <= 17
    assert len(list(cache.folder.iterdir())) == len(there)
    cache.put("f" * 64, 0, 2_000, bytes(2_000))  # more than there may be
    assert cache.get("f" * 64, 0, 2_000) is None


def test_its_size_is_a_number(monkeypatch):
    monkeypatch.setenv("SAMTL_ROW_CACHE_GIB", "2.5")
    assert row_cache().most == 2.5 * 2**30
    for wrong in ("much", "-"):
        monkeypatch.setenv("SAMTL_ROW_CACHE_GIB", wrong)
        with pytest.raises(InputError, match="SAMTL_ROW_CACHE_GIB must be a number"):
            row_cache()


def test_a_server_that_is_away_is_no_damage(made, bucket_server):
    store = open_store(made)
    bucket_server.rate, bucket_server.faults = 1.0, ["500"]
    with pytest.raises(ResourceError, match="does not answer"):
        store.read("pooled")


def test_plain_zarr_reads_it(made, local):
    there, here = open_store(made).zarr(), open_store(local).zarr()
    for name in ("pooled", "dense", "label"):
        assert np.array_equal(there[name][:], here[name][:])


def test_plain_zarr_opens_no_other_store(made, bucket, bucket_server, local):
    """Where a URL of the name would be taken apart, or decoded, there is another store."""
    embed(stubs.toy_dataset(3), "stub", out=f"{bucket}/b.zarr", device="cpu")
    boto, where = bucket_server.client(), as_path(bucket).parts[1]

    def copy(store, name):
        for one in boto.list_objects_v2(Bucket=where, Prefix=f"{store}/")["Contents"]:
            key = f"x/{name}.zarr/{one['Key'].partition('/')[2]}"
            boto.copy_object(Bucket=where, Key=key, CopySource={"Bucket": where, "Key": one["Key"]})

    for other in ("aA", "a", "a/b"):
        copy("b.zarr", other)
    for name in ("a%41", "a#b", "a?b=c", "a%2Fb", "a b+\u00fc", "%61"):
        copy("a.zarr", name)
        there, here = open_store(f"{bucket}/x/{name}.zarr").zarr(), open_store(local).zarr()
        for array in ("pooled", "label"):
            assert np.array_equal(there[array][:], here[array][:])


def test_of_what_is_kept_a_row_alone_may_be_wrong(made, monkeypatch):
    monkeypatch.setattr(fetched, "WHOLE", 0)
    store = open_store(made)
    good = store.read("dense")
    sizes = {record.files["dense"].size for record in store._records["dense"].values()}
    kept = [path for path in Path(os.environ["SAMTL_ROW_CACHE"]).rglob("*-*") if path.is_file()]
    rows = [path for path in kept if int(path.name.partition("-")[2]) not in sizes]
    assert len(rows) == ROWS
    for path in rows:
        path.write_bytes(bytes(path.stat().st_size))
    assert np.array_equal(open_store(made).read("dense"), good)


def test_an_object_that_has_grown_is_damage(made):
    path = as_path(made) / "dense" / "c.0.0.0.0"
    path.replace_with(path.read_bytes() + b"more")
    with pytest.raises(DamageError, match="bytes, but"):
        open_store(made).read("dense", [0])
