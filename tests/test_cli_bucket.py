"""The command line on stores in a bucket."""

import json
import sys

import pytest

pytest.importorskip("obstore")

from samtl.store.storage import open_storage


@pytest.fixture
def made(run, encoders, folder, bucket):
    code, _, errors = run(
        "embed", "--dataset", f"folder:{folder}", "--encoder", "tiny", "--out", bucket
    )
    assert code == 0, errors
    (name,) = open_storage(bucket).list()
    return f"{bucket}/{name}"


def test_a_store_lands_where_out_says(made, bucket):
    assert made == f"{bucket}/folder-images.tiny.64.zarr"
    assert "log" in open_storage(made).list()


def test_it_is_shown_checked_and_learnt_from(run, made, bucket, tmp_path):
    code, output, _ = run("info", bucket)
    assert code == 0
    assert made in output
    assert "24 embedded" in output
    code, output, _ = run("ls", "stores", "--cache", bucket)
    assert code == 0
    assert "24/24" in output
    code, output, _ = run("verify", made)
    assert code == 0, output
    code, output, errors = run(
        "fit-head",
        "--head",
        "logreg",
        "--cache",
        made,
        "--split",
        "0.5",
        "--json",
        tmp_path / "fit.json",
    )
    assert code == 0, errors
    assert json.loads((tmp_path / "fit.json").read_text())["store"] == "folder-images.tiny.64"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fit.json", "images", "kept", "runs"]


def test_the_cache_of_the_environment_may_be_a_bucket(run, made, bucket, monkeypatch):
    monkeypatch.setenv("SAMTL_CACHE", bucket)
    assert run("info")[0] == 0
    code, output, _ = run("ls", "stores")
    assert code == 0
    assert made in output


def test_damage_is_found_mended_and_redone(run, made, folder):
    storage = open_storage(made)
    content = storage.read("pooled/c.0.0")
    storage.replace("pooled/c.0.0", content[:40] + b"x" + content[41:])
    storage.replace("log/1.0.json", b"{}")
    assert run("verify", made)[0] == 2
    code, output, _ = run("verify", made, "--repair")
    assert code == 1  # rows are to be embedded again
    assert "log/1.0.json" in output
    assert storage.read(".damaged/1.0.json.0") == b"{}"
    embed = ("embed", "--dataset", f"folder:{folder}", "--encoder", "tiny", "--out", made)
    assert run(*embed)[0] == 0
    assert run("verify", made)[0] == 0


def test_images_that_come_later_are_added(run, made, folder):
    (folder / "town" / "more.png").write_bytes((folder / "field" / "0.png").read_bytes())
    code, output, _ = run(
        "embed", "--dataset", f"folder:{folder}", "--encoder", "tiny", "--out", made
    )
    assert code == 0
    assert "free" not in output  # there is no disk to be full
    assert "25: 25 embedded" in run("info", made)[1]


def test_nobody_is_sent_to_compact_it(run, made, folder):
    (folder / "town" / "0.png").unlink()
    assert run("embed", "--dataset", f"folder:{folder}", "--encoder", "tiny", "--out", made)[0] == 0
    output = run("info", made)[1]
    assert "1 more are not listed" in output
    assert "compact" not in output


def test_compacting_is_refused(run, made):
    code, _, errors = run("compact", made)
    assert code == 2
    assert "copy it to a disk" in errors


def test_a_bucket_that_is_not_there(run, bucket_server, folder, encoders):
    absent = "s3://no-such-bucket"
    embed = ("embed", "--dataset", f"folder:{folder}", "--encoder", "tiny", "--out", absent)
    for command in (("info", f"{absent}/a.zarr"), ("verify", f"{absent}/a.zarr"), embed):
        code, _, errors = run(*command)
        assert code == 2
        assert "no-such-bucket" in errors


def test_a_server_that_is_away(run, made, bucket_server):
    bucket_server.rate, bucket_server.faults = 1.0, ["503"]
    code, _, errors = run("info", made)
    assert code == 5
    assert "Traceback" not in errors


def test_credentials_that_have_expired(run, made, bucket_server):
    bucket_server.answer = (400, "<Code>ExpiredToken</Code>")
    code, _, errors = run("info", made)
    assert code == 5
    assert "have expired" in errors


@pytest.mark.parametrize("bucket", ["b#x", "b:80", "user@b", "b?x"])
def test_a_bucket_of_no_such_name(run, bucket_server, folder, encoders, bucket):
    """No other bucket is asked."""
    url = f"s3://{bucket}/a.zarr"
    embed = ("embed", "--dataset", f"folder:{folder}", "--encoder", "tiny", "--out", url)
    for command in (("info", url), ("ls", "stores", "--cache", url), embed):
        code, _, errors = run(*command)
        assert code == 2
        assert f"digits, '.', '_' and '-' alone, got '{bucket}'" in errors
    assert bucket_server.requests == []


def test_a_server_that_overwrites(run, bucket, bucket_server, folder, encoders):
    bucket_server.ignores = ("if-none-match",)
    code, _, errors = run(
        "embed", "--dataset", f"folder:{folder}", "--encoder", "tiny", "--out", bucket
    )
    assert code == 5
    assert "overwritten" in errors
    bucket_server.ignores = ()
    assert open_storage(bucket).list() == {}


def test_without_the_package(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "obstore", None)
    code, _, errors = run("info", "s3://some-bucket/a.zarr")
    assert code == 2
    assert "pip install 'samtl[cloud]'" in errors


def test_other_urls(run):
    code, _, errors = run("info", "ftp://host/a.zarr")
    assert code == 2
    assert "expected a folder, or s3://BUCKET/PREFIX" in errors


@pytest.mark.parametrize(
    "command",
    [
        ("sweep", "--heads", "logreg"),
        ("fit-head", "--head", "logreg"),
        ("report", "runs"),
        ("reproduce", "eurosat", "--quick"),
        ("predict", "--run", "runs/a", "--images", "images"),
    ],
)
def test_only_stores_are_in_buckets(run, embedded, command, tmp_path):
    """And nothing lands in a folder of this disk that is called like a URL."""
    code, _, _ = run(*command, "--out", "s3://some-bucket/x")
    assert code == 2
    assert "s3:" not in [path.name for path in tmp_path.iterdir()]
