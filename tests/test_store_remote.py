"""Paths of objects: what a store asks of them, and what a server answers."""

import multiprocessing
import os
import pickle
import sys
import time
from pathlib import Path, PurePosixPath

import pytest

pytest.importorskip("obstore")

from samtl.errors import DamageError, InputError, ResourceError
from samtl.store import durable, remote
from samtl.store.remote import RemotePath, as_folder, as_path

# Names


def test_a_url_stays_one_whoever_took_it_for_a_path():
    for given in (
        "s3://b/x/a.zarr",
        "s3://b//x/a.zarr/",
        "S3://b/x/a.zarr",
        Path("s3://b/x/a.zarr"),
        Path("S3://b/x/a.zarr"),
    ):
        path = as_path(given)
        assert isinstance(path, RemotePath)
        assert str(path) == f"{path}" == "s3://b/x/a.zarr"
        assert repr(path) == "RemotePath('s3://b/x/a.zarr')"
        assert path == as_path("s3://b/x/a.zarr")
        assert hash(path) == hash(as_path("s3://b/x/a.zarr"))


def test_parts_of_names_are_those_of_paths():
    path = as_path("s3://b/x/a.zarr")
    assert (path.name, path.suffix, path.stem, path.key) == ("a.zarr", ".zarr", "a", "x/a.zarr")
    assert str(path.parent) == "s3://b/x"
    assert str(path / "log" / "0.json") == "s3://b/x/a.zarr/log/0.json"
    assert str(path.with_name("b.zarr")) == "s3://b/x/b.zarr"
    assert str((path / "log").relative_to(path)) == "log"
    assert isinstance(path.parent / "y", RemotePath)
    assert path.resolve() is path.absolute() is path
    assert pickle.loads(pickle.dumps(path)) == path


def test_paths_on_a_disk_stay_what_they_are(tmp_path):
    for given in ("a/b", tmp_path, "", "a:b", "C:/x", "eurosat.zarr"):
        assert type(as_path(given)) is type(Path("a"))
        assert as_path(given) == Path(given)
    assert as_path(PurePosixPath("x")) == Path("x")
    assert as_folder("a/b") == Path("a/b")
    with pytest.raises(InputError, match="only stores can be"):
        as_folder("s3://b/x")


@pytest.mark.parametrize(
    "url",
    [
        "ftp://b/x",
        "s3://",
        "s3:",
        "gs:",
        "http://host/a.zarr",
        "S3:",
        "s3://b/../x",
        "s3://b/a\nb",
    ],
)
def test_other_urls_are_refused(url):
    with pytest.raises(InputError, match="expected a folder, or s3://BUCKET/PREFIX"):
        as_path(url)


@pytest.mark.parametrize("scheme", ["s3", "gs", "az"])
def test_what_a_url_would_be_taken_apart_by_is_no_part_of_a_buckets_name(scheme):
    for bucket in (
        "b#x",
        "b?x",
        "user@b",
        "b:80",
        "b%61",
        "b b",
        "b\\c",
        "[b]",
        "\u00fc",
        "*",
        "@",
    ):
        for end in ("", "/a.zarr"):
            with pytest.raises(InputError, match="a bucket's name has letters") as caught:
                as_path(f"{scheme}://{bucket}{end}")
            assert repr(bucket) in str(caught.value)
    for bucket in ("b", "Old_Bucket", "a.b-c", "0"):
        assert as_path(f"{scheme}://{bucket}/x").parts[1] == bucket


def test_it_is_never_a_name_on_this_disk(tmp_path):
    path = as_path("s3://b/x")
    for wrong in (
        lambda: open(path), lambda: os.listdir(path), lambda: os.stat(path), lambda: path.touch(),  # noqa: PTH116, PTH123, PTH208, SIM115
        lambda: os.fspath(path), lambda: path.mkdir(),
    ):  # fmt: skip
        with pytest.raises(TypeError, match="in a bucket"):
            wrong()
    with pytest.raises(ValueError, match="'rb'"):
        path.write_bytes(b"")
    assert list(tmp_path.iterdir()) == []


# Objects


@pytest.fixture
def base(bucket):
    return as_path(bucket) / "x"


def test_what_was_created_can_be_read(base):
    (base / "a").create(b"0123456789")
    path = base / "a"
    assert path.read_bytes() == b"0123456789"
    assert path.open("rb").read(3) == b"012"
    assert path.read_bytes(10) == b"0123456789"
    with pytest.raises(DamageError, match="has 10 bytes, but at most 9"):
        path.read_bytes(9)
    assert path.read_ranges([(0, 2), (8, 10)]) == [b"01", b"89"]
    assert path.read_end(3) == (b"789", 10)
    assert path.stat().st_size == 10
    assert abs(path.stat().st_mtime - time.time()) < 60
    assert (path.exists(), path.is_file(), path.is_dir()) == (True, True, False)
    assert (base.exists(), base.is_file(), base.is_dir()) == (True, False, True)
    with pytest.raises(ValueError, match="'rb'"):
        path.open("w")


def test_what_is_not_there_says_so(base):
    path = base / "no"
    assert not path.exists()
    assert base.names() == []
    for ask in (path.read_bytes, path.stat, lambda: path.read_end(3), path.version):
        with pytest.raises(FileNotFoundError, match="no"):
            ask()
    path.unlink(missing_ok=True)


def test_names_below(base):
    for name in ("a.json", "b.json", ".hidden", "one/zarr.json", "two/zarr.json", "two/deep/er"):
        (base / name).create(name.encode())
    (base.parent / "xylophone").create(b"")  # its name begins like the folder's
    assert sorted(base.names()) == [".hidden", "a.json", "b.json", "one", "two"]
    assert base.sizes() == {"a.json": 6, "b.json": 6, ".hidden": 7}
    assert sorted(p.name for p in base.iterdir()) == sorted(base.names())

    def found(pattern):
        return [str(p.relative_to(base)) for p in base.glob(pattern)]

    assert found("*/zarr.json") == ["one/zarr.json", "two/zarr.json"]
    assert found("[!.]*.json") == ["a.json", "b.json"]
    assert found("t*/*/er") == ["two/deep/er"]
    assert sorted(p.name for p in base.parent.iterdir()) == ["x", "xylophone"]


def test_more_names_than_a_server_gives_at_once(base, bucket_server):
    for i in range(1_003):
        (base / f"{i:04}").replace_with(b"")
    assert len(base.names()) == 1_003


def test_renaming_moves(base):
    (base / "a").create(b"1")
    assert (base / "a").rename(base / "b" / "c") == base / "b" / "c"
    assert base.names() == ["b"]
    assert (base / "b" / "c").read_bytes() == b"1"


def test_what_is_below_is_moved_with_its_name(base):
    for name in ("a/b", "a/c/d"):
        (base / name).create(name.encode())
    (base / "a").rename(base / "z" / "a.0")
    assert (base.names(), sorted((base / "z" / "a.0").names())) == (["z"], ["b", "c"])
    assert (base / "z" / "a.0" / "c" / "d").read_bytes() == b"a/c/d"
    with pytest.raises(FileNotFoundError):
        (base / "no").rename(base / "y")


def test_a_prefix_is_no_object(base):
    (base / "a" / "b").create(b"1")
    with pytest.raises(IsADirectoryError):
        (base / "a").read_bytes()
    with pytest.raises(DamageError, match="is a folder"):
        durable.require_no_folder(base / "a")
    durable.require_no_folder(base / "a" / "b")


def test_marks_of_folders_are_nothing(base, bucket_server):
    """Some tools write an empty object `NAME/` for a folder."""
    boto = bucket_server.client()
    bucket = base.parts[1]
    for name in ("x/", "x/a/", "x/a/b", "x/empty/"):
        boto.put_object(Bucket=bucket, Key=name, Body=b"1" if name == "x/a/b" else b"")
    assert sorted(base.names()) == ["a", "empty"]
    assert base.sizes() == {}
    assert (base / "a").sizes() == {"b": 1}
    assert (base / "empty").names() == []


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
@pytest.mark.parametrize("value", ["", "localhost:9000", "nonsense", "http://", "ftp://host"])
def test_an_endpoint_that_is_none(base, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    remote.client.cache_clear()
    with pytest.raises(InputError, match=rf"{name} must be .* got '{value}'"):
        base.exists()


@pytest.mark.parametrize(
    "value",
    ["http://localhost", "https://a-b.example.org:9000/", "http://127.0.0.1:1", "http://[::1]:5", "https://x/y"],
)  # fmt: skip
def test_an_endpoint_that_may_be_one(monkeypatch, value):
    monkeypatch.setenv("AWS_ENDPOINT_URL", value)
    remote.client.cache_clear()
    assert remote.client("s3:", "b", os.getpid()) is not None
    remote.client.cache_clear()


@pytest.mark.parametrize("style", ["true", "1", "Yes"])
def test_an_endpoint_that_begins_with_no_bucket(bucket, monkeypatch, style):
    """Where the host is to name the bucket, a key's first part would be taken for one."""
    monkeypatch.setenv("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", style)
    remote.client.cache_clear()
    told = r"AWS_ENDPOINT_URL must begin with the bucket's name, http\(s\)://bucket-\d+.HOST, where AWS_VIRTUAL_HO"
    with pytest.raises(InputError, match=told):
        as_path(f"{bucket}/a.zarr").exists()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{bucket.removeprefix('s3://')}.localhost:1")
    assert remote.client("s3:", bucket.removeprefix("s3://"), os.getpid()) is not None
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    assert remote.client("s3:", bucket.removeprefix("s3://"), os.getpid(), False) is not None
    remote.client.cache_clear()


def test_without_credentials(base, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    # The service that gives a machine of Amazon's its own, where nobody listens.
    monkeypatch.setattr(remote, "_MACHINES", ("127.0.0.1:9/",))
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(remote, "_RETRY", remote._NO_RETRY)
    remote.client.cache_clear()
    with pytest.raises(ResourceError, match=r"no credentials; set AWS_ACCESS_KEY_ID and"):
        base.names()
    remote.client.cache_clear()


@pytest.mark.parametrize("lacking", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_half_of_the_credentials(base, monkeypatch, lacking):
    monkeypatch.delenv(lacking)
    remote.client.cache_clear()
    with pytest.raises(ResourceError, match=r"no credentials; set AWS_ACCESS_KEY_ID and"):
        base.names()
    remote.client.cache_clear()


@pytest.mark.parametrize("scheme", ["s3:", "gs:", "az:"])
def test_a_prefix_is_not_decoded(monkeypatch, scheme):
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    monkeypatch.setenv("GOOGLE_SKIP_SIGNATURE", "true")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "a")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "a2V5")
    remote.client.cache_clear()
    for prefix in ("x/a%41", "x/a#b", "x/a?b=c", "x/%2e%2e", "x/a b\u00fc"):
        assert remote.client(scheme, "b", os.getpid(), prefix=prefix).prefix == prefix
    remote.client.cache_clear()


def test_rows_are_not_kept_in_a_bucket(monkeypatch):
    from samtl.store.fetched import row_cache

    monkeypatch.setenv("SAMTL_ROW_CACHE", "s3://b/rows")
    with pytest.raises(InputError, match=r"s3://b/rows is in a bucket.*name a folder"):
        row_cache()


# Writing on a condition


def test_what_is_there_stays(base):
    (base / "a").create(b"first")
    with pytest.raises(FileExistsError, match="s3://"):
        (base / "a").create(b"second")
    assert (base / "a").read_bytes() == b"first"
    (base / "a").create(b"first")  # as an answer that was lost
    (base / "a").replace_with(b"second")
    assert (base / "a").read_bytes() == b"second"


def test_swapping_takes_only_what_was_seen(base):
    path = base / "a"
    first = path.swap(b"1", None)
    assert path.version()[0] == first
    second = path.swap(b"2", first)
    with pytest.raises(FileExistsError):
        path.swap(b"3", first)
    assert path.read_bytes() == b"2"
    path.unlink()
    with pytest.raises(FileNotFoundError):
        path.swap(b"3", second)


def test_publishing_goes_to_the_bucket(base):
    durable.make_folder(base)
    durable.publish(base / "log" / "0.json", [b"ab", memoryview(b"cd")])
    assert (base / "log" / "0.json").read_bytes() == b"abcd"
    with pytest.raises(FileExistsError):
        durable.publish(base / "log" / "0.json", [b"other"])
    durable.replace(base / "zarr.json", b"1")
    durable.sync_folder(base)
    durable.recover_folder(base)
    assert (base / "zarr.json").read_bytes() == b"1"


@pytest.mark.parametrize("fault", ["500", "503", "409", "reset", "lost"])
def test_one_fault_does_not_show(base, bucket_server, fault):
    struck = 0
    for seed in range(8):
        bucket_server.reset(seed)
        bucket_server.rate, bucket_server.faults = 0.4, [fault]
        path = base / f"{fault}-{seed}"
        path.create(b"content")
        bucket_server.rate = 0
        assert path.read_bytes() == b"content"
        with pytest.raises(FileExistsError):
            path.create(b"other")
        struck += bucket_server.struck[fault]
    assert struck >= 3


def test_a_server_that_never_answers_ends_in_one_message(base, bucket_server):
    bucket_server.rate, bucket_server.faults = 1.0, ["503"]
    with pytest.raises(ResourceError, match="does not answer as it should") as caught:
        (base / "a").create(b"1")
    assert "\n" not in str(caught.value)
    writes = [one for one in bucket_server.requests if one[0] == "PUT"]
    assert remote.ATTEMPTS <= len(writes) <= remote.ATTEMPTS * (1 + remote._RETRY["max_retries"])


def test_nobody_there(base, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(ResourceError, match="does not answer"):
        as_path("s3://other-bucket/x").names()


def test_no_such_bucket(bucket_server):
    path = as_path("s3://no-such-bucket/x/a")
    for ask in (path.names, path.read_bytes, lambda: path.create(b"1")):
        with pytest.raises(InputError, match="there is no bucket 'no-such-bucket'"):
            ask()


def test_who_may_not_is_told(base, monkeypatch):
    import obstore
    from obstore.exceptions import PermissionDeniedError

    def refuse(*arguments, **options):
        raise PermissionDeniedError("403 Forbidden\nlong text")

    monkeypatch.setattr(obstore, "get", refuse)
    with pytest.raises(
        ResourceError, match=r"refuses access \(403 Forbidden\); set the credentials by AWS_"
    ):
        (base / "a").read_bytes()


def _asks(path):
    """Each kind of request, by its name."""
    return {
        "HEAD": path.stat,
        "GET": path.read_bytes,
        "PUT": lambda: path.replace_with(b"1"),
        "list": path.names,
    }


@pytest.mark.parametrize(
    ("status", "text", "kinds", "told"),
    [
        (400, "<Code>ExpiredToken</Code>", "GET PUT list", "have expired; set new ones by AWS_"),
        (403, "<Code>ExpiredToken</Code>", "GET PUT list", "have expired; set new ones by AWS_"),
        (
            400,
            "<Code>AuthorizationHeaderMalformed</Code><Region>eu-west-1</Region>",
            "GET PUT list",
            "the bucket is in the region eu-west-1; set AWS_REGION to that",
        ),
        (
            400,
            "<Code>IllegalLocationConstraintException</Code>",
            "GET PUT list",
            "the bucket is in another region; set AWS_REGION to that",
        ),
        (
            301,
            "<Code>PermanentRedirect</Code>",
            "HEAD GET PUT list",
            "the bucket is in another region; set AWS_REGION to that",
        ),
        (400, "", "HEAD", "400 and no reason.* expired or .* another region; .* or AWS_REGION"),
        (
            403,
            "<Code>AccessDenied</Code>",
            "list",
            r"refuses to list .*\(AccessDenied\).* may list",
        ),
        (403, "<Code>AccessDenied</Code>", "GET PUT", "refuses access .* see what they may do$"),
        (403, "<Code>AccessDenied</Code>", "HEAD", "refuses access .*; one whose clock is wrong"),
        (403, "<Code>RequestTimeTooSkewed</Code>", "GET PUT list", "set this machine's clock"),
    ],
)
def test_what_an_answer_means_is_told(base, bucket_server, status, text, kinds, told):
    bucket_server.answer = (status, text)
    for kind in kinds.split():
        bucket_server.requests.clear()
        with pytest.raises(ResourceError, match=told) as caught:
            _asks(base / "a")[kind]()
        assert "\n" not in str(caught.value)
        # To ask again would change nothing.
        assert len(bucket_server.requests) == 1


def test_an_answer_that_is_not_known_stays_as_it_came(base, bucket_server):
    bucket_server.answer = (400, "<Code>ExpiredFish</Code>")
    with pytest.raises(ResourceError, match=r"does not answer as it should .*400 Bad Request"):
        (base / "a").read_bytes()


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(InputError, match=r"pip install 'samtl\[cloud\]'"):
        as_path("s3://a-bucket-of-nobody/x")


def _names(url, answers):
    begun = time.monotonic()
    try:
        answers.put(as_path(url).names())
    except InputError as error:
        answers.put((str(error), time.monotonic() - begun))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_forked_processes_are_refused_at_once_and_spawned_ones_read(base):
    (base / "a").create(b"1")
    for method in ("fork", "spawn"):
        context = multiprocessing.get_context(method)
        answers = context.Queue()
        process = context.Process(target=_names, args=(str(base), answers))
        process.start()
        answer = answers.get(timeout=60)
        process.join(60)
        assert process.exitcode == 0
        if method == "fork":
            assert "spawn or forkserver" in answer[0]
            assert answer[1] < 1
        else:
            assert answer == ["a"]
