"""What a server of buckets may answer, and what is kept of it on this disk."""

import multiprocessing
import os

import numpy as np
import pytest

pytest.importorskip("obstore")

from made import make

from samtl.errors import DamageError, InputError, ResourceError
from samtl.store.reader import open_store
from samtl.store.storage import object_store, open_storage
from samtl.store.storage.object_store import RowCache, client, row_cache


@pytest.fixture
def storage(bucket):
    return open_storage(f"{bucket}/x")


# Writing on a condition


@pytest.mark.parametrize("fault", ["500", "503", "409", "reset", "lost"])
def test_one_fault_does_not_show(storage, bucket_server, fault):
    struck = 0
    for seed in range(8):
        bucket_server.reset(seed)
        bucket_server.rate, bucket_server.faults = 0.4, [fault]
        storage.create(f"{fault}-{seed}", [b"content"])
        bucket_server.rate = 0
        assert storage.read(f"{fault}-{seed}") == b"content"
        with pytest.raises(FileExistsError):
            storage.create(f"{fault}-{seed}", [b"other"])
        struck += bucket_server.struck[fault]
    assert struck >= 3


# What an answer means


ARGUMENTS = {"list": (), "create": ("b", [b"1"]), "replace": ("a", b"1")}


@pytest.mark.parametrize(
    ("status", "text", "kinds", "told"),
    [
        (400, "<Code>ExpiredToken</Code>", "read replace create list", "have expired; set new ones, AWS_"),
        (400, "<Code>AuthorizationHeaderMalformed</Code><Region>eu-west-1</Region>", "read replace list",
         r"another region \(eu-west-1\); set AWS_REGION"),
        (301, "<Code>PermanentRedirect</Code>", "size read replace list", "another region .* set AWS_REGION"),
        (400, "", "size", "400 and no reason.* expired .* another region .AWS_REGION"),
        (403, "<Code>AccessDenied</Code>", "size read replace list", "refuses access; .* may list, .* clock is right"),
        (403, "<Code>RequestTimeTooSkewed</Code>", "read replace list", "set this machine's clock"),
        (400, "<Code>ExpiredFish</Code>", "read", "does not answer as it should .*400 Bad Request"),
    ],
)  # fmt: skip
def test_an_answer_is_explained_and_nobody_asks_again(
    storage, bucket_server, status, text, kinds, told
):
    bucket_server.answer = (status, text)
    for kind in kinds.split():
        bucket_server.requests.clear()
        with pytest.raises(ResourceError, match=told) as caught:
            getattr(storage, kind)(*ARGUMENTS.get(kind, ("a",)))
        assert "\n" not in str(caught.value)
        assert len(bucket_server.requests) == 1


def test_a_server_that_never_answers_ends_in_one_message(storage, bucket_server):
    bucket_server.rate, bucket_server.faults = 1.0, ["503"]
    with pytest.raises(ResourceError, match="does not answer as it should") as caught:
        storage.create("a", [b"1"])
    assert "\n" not in str(caught.value)
    attempts, retries = object_store.ATTEMPTS, object_store.RETRY["max_retries"]
    assert attempts <= bucket_server.requests.count("PUT") <= attempts * (1 + retries)


def test_without_credentials(storage, monkeypatch):
    # The service that gives a cloud machine its own, where nobody listens.
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9/169.254.169.254")
    for lacking in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):  # one of them, then both
        monkeypatch.delenv(lacking)
        client.cache_clear()
        with pytest.raises(ResourceError, match="no credentials; set AWS_ACCESS_KEY_ID and"):
            storage.list()


def test_an_endpoint_that_is_none(storage, monkeypatch):
    for value in ("", "localhost:9000", "nonsense", "http://", "ftp://host"):
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", value)
        client.cache_clear()
        with pytest.raises(InputError, match=rf"AWS_ENDPOINT_URL_S3 must be .* got '{value}'"):
            storage.list()
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    monkeypatch.setenv("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "true")
    client.cache_clear()
    with pytest.raises(InputError, match=f"AWS_ENDPOINT_URL must be http://{storage.bucket}.HOST"):
        storage.list()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{storage.bucket}.localhost:1")
    assert client("s3", storage.bucket, "") is not None


@pytest.mark.parametrize("name", ["a%41", "a#b", "a?b=c", "a%2Fb", "a b+\u00fc", "%61"])
def test_a_prefix_is_not_decoded(bucket, bucket_server, name):
    open_storage(f"{bucket}/{name}").create("log/0", [b"1"])
    found = bucket_server.client.list_objects_v2(Bucket=bucket.removeprefix("s3://"))
    assert [one["Key"] for one in found["Contents"]] == [f"{name}/log/0"]
    assert open_storage(f"{bucket}/{name}").list("log") == {"0": 1}


def test_names_are_all_listed_and_marks_of_folders_are_none(storage, bucket_server, monkeypatch):
    """Some tools write an empty object `NAME/` for a folder."""
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "3")  # at once
    for name in ("x/", "x/a/", "x/empty/"):
        bucket_server.client.put_object(Bucket=storage.bucket, Key=name, Body=b"")
    for i in range(10):
        storage.replace(f"a/{i}", b"1")
    assert set(storage.list()) == {"a", "empty"}
    assert (len(storage.list("a")), storage.list("empty")) == (10, {})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_forked_processes_are_refused_at_once_and_spawned_ones_read(storage):
    storage.create("a", [b"1"])
    with multiprocessing.get_context("fork").Pool(1) as pool:
        pool.apply(os.getpid)
        with pytest.raises(InputError, match="spawn or forkserver"):
            pool.apply_async(storage.list).get(timeout=1)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply_async(storage.list).get(timeout=60) == {"a": 1}


# What is kept on this disk

CONTENT = bytes(range(100))
KEY = "a" * 64


def read(storage, *ranges, anew=False):
    return list(storage.read_ranges("shard", ranges, len(CONTENT), KEY, anew))


def kept(tmp_path):
    return sorted(path.suffix[1:] for path in (tmp_path / "kept").glob("*"))


@pytest.fixture(params=["whole", "ranges"])
def shard(storage, monkeypatch, request):
    """A shard that is fetched whole, or row by row."""
    monkeypatch.setattr(object_store, "WHOLE", 1000 if request.param == "whole" else 0)
    storage.create("shard", [CONTENT])
    storage.names = ["0-100"] if request.param == "whole" else ["0-10", "50-60"]
    return storage


def test_rows_come_with_one_request_and_then_from_the_disk(shard, bucket_server, tmp_path):
    most = 1 if shard.names == ["0-100"] else 2  # of ranges, the size is asked for first
    for requests in (most, 0):
        bucket_server.requests.clear()
        assert read(shard, (0, 10), (50, 60)) == [CONTENT[:10], CONTENT[50:60]]
        assert len(bucket_server.requests) == requests
    assert kept(tmp_path) == shard.names
    # What is kept wrongly is asked for anew.
    for content in (bytes(100), b"short", b""):
        for path in (tmp_path / "kept").rglob("*-*"):
            path.write_bytes(content[: path.stat().st_size])
        assert read(shard, (0, 10), anew=True) == [CONTENT[:10]]
        assert read(shard, (0, 10)) == [CONTENT[:10]]


def test_without_room_nothing_is_kept_and_rows_come_all_the_same(shard, monkeypatch, tmp_path):
    monkeypatch.setenv("SAMTL_ROW_CACHE_GIB", "0")
    assert read(shard, (0, 10)) == [CONTENT[:10]]
    monkeypatch.delenv("SAMTL_ROW_CACHE_GIB")
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("SAMTL_ROW_CACHE", str(tmp_path / "file"))
    assert read(shard, (0, 10)) == [CONTENT[:10]]
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize("there", [CONTENT[:20], b"", CONTENT + b"more", None])
def test_an_object_of_another_size_gives_other_bytes_and_is_not_kept_whole(
    shard, bucket_server, there, tmp_path
):
    if there is None:
        shard.delete("shard")
        with pytest.raises(FileNotFoundError):
            read(shard, (0, 10))
    else:
        shard.replace("shard", there)
        assert read(shard, (0, 10), (50, 60), anew=True)[1] in (b"", CONTENT[50:60])
    assert "0-100" not in kept(tmp_path)
    bucket_server.rate, bucket_server.faults = 1.0, ["500"]
    with pytest.raises(ResourceError, match="does not answer"):  # which is no damage
        read(shard, (20, 30))


@pytest.mark.parametrize("whole", [object_store.WHOLE, 0])
def test_a_store_is_read_rightly_or_is_damaged(bucket, monkeypatch, tmp_path, whole):
    monkeypatch.setattr(object_store, "WHOLE", whole)
    place = make(f"{bucket}/a.zarr")
    good = open_store(place).read("pooled")
    for path in (tmp_path / "kept").rglob("*-*"):
        path.write_bytes(bytes(path.stat().st_size))
    np.testing.assert_array_equal(open_store(place).read("pooled"), good)
    for path in (tmp_path / "kept").rglob("*-*"):
        path.unlink()
    open_storage(place).delete("pooled/c.1.0")
    with pytest.raises(DamageError, match=r"pooled/c\.1\.0"):
        open_store(place).row("pooled", 20)


def test_the_oldest_go_first(tmp_path):
    cache, part = RowCache(tmp_path / "kept", 1_600), (0, 100)
    for i in range(40):
        cache.put(f"{i:064}", part, bytes([i]) * 100)
        os.utime(cache.path(f"{i:064}", part), (i, i))
        cache.get(f"{0:064}", part)  # in use all the time
    there = [i for i in range(40) if cache.get(f"{i:064}", part)]
    assert there[0] == 0
    assert there[1:] == list(range(41 - len(there), 40))
    assert 10 <= len(there) <= 17
    assert len(list(cache.folder.iterdir())) == len(there)
    cache.put("f" * 64, (0, 2_000), bytes(2_000))  # more than there may be
    assert not cache.get("f" * 64, (0, 2_000))


def test_where_it_is_and_how_large(monkeypatch):
    monkeypatch.setenv("SAMTL_ROW_CACHE_GIB", "2.5")
    assert row_cache().most == 2.5 * 2**30
    monkeypatch.setenv("SAMTL_ROW_CACHE", "s3://b/rows")
    with pytest.raises(InputError, match="s3://b/rows is in a bucket"):
        row_cache()
    monkeypatch.setenv("SAMTL_ROW_CACHE_GIB", "much")
    with pytest.raises(InputError, match="SAMTL_ROW_CACHE_GIB must be a number"):
        row_cache()
