"""The command line on stores in a bucket."""

import json
import sys

import pytest

pytest.importorskip("obstore")

from samtl.store.storage import open_storage


@pytest.fixture
def embed(run, encoders, folder):
    """Run `samtl embed` into a place; gives what `run` does."""
    command = ("embed", "--dataset", f"folder:{folder}", "--encoder", "tiny", "--out")
    return lambda out: run(*command, out)


@pytest.fixture
def made(embed, bucket):
    assert embed(bucket)[0] == 0
    return f"{bucket}/folder-images.tiny.64.zarr"


def test_it_is_shown_checked_and_learnt_from(run, made, bucket, monkeypatch, tmp_path):
    assert "log" in open_storage(made).list()
    for command, told in (
        (["info", bucket], ["24 embedded", made]),
        (["ls", "stores", "--cache", bucket], ["24/24", made]),
        (["verify", made], []),
    ):
        code, output, _ = run(*command)
        assert code == 0
        assert all(one in output for one in told)
    monkeypatch.setenv("SAMTL_CACHE", bucket)
    assert run("info")[0] == 0
    assert made in run("ls", "stores")[1]
    fit = ("fit-head", "--head", "logreg", "--split", "0.5", "--json", tmp_path / "fit.json")
    assert run(*fit)[0] == 0
    assert json.loads((tmp_path / "fit.json").read_text())["store"] == "folder-images.tiny.64"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fit.json", "images", "kept", "runs"]


def test_images_come_and_go_and_nobody_is_sent_to_compact_it(run, made, embed, folder):
    (folder / "town" / "more.png").write_bytes((folder / "field" / "0.png").read_bytes())
    (folder / "town" / "0.png").unlink()
    code, output, _ = embed(made)
    assert (code, "free" in output) == (0, False)  # there is no disk to be full
    output = run("info", made)[1]
    assert all(one in output for one in ("24 embedded", "1 more are not listed"))
    assert "compact" not in output


def test_servers_that_are_away_refuse_or_overwrite(run, made, embed, bucket, bucket_server):
    bucket_server.answer = (400, "<Code>ExpiredToken</Code>")
    code, _, errors = run("info", made)
    assert (code, "have expired" in errors) == (5, True)
    bucket_server.answer = None
    bucket_server.rate, bucket_server.faults = 1.0, ["503"]
    assert run("info", made)[0] == 5
    bucket_server.rate = 0
    bucket_server.ignores = ("if-none-match",)
    code, _, errors = embed(f"{bucket}/other")
    assert (code, "overwritten" in errors) == (5, True)
    bucket_server.ignores = ()
    assert open_storage(f"{bucket}/other").list() == {}


@pytest.mark.parametrize(
    ("url", "told", "requests"),
    [
        ("s3://no-such-bucket/a.zarr", "no-such-bucket", True),
        *((f"s3://{name}/a.zarr", f"got '{name}'", False) for name in ("b#x", "b:80")),
        ("ftp://host/a.zarr", "expected a folder, or s3://BUCKET/PREFIX", False),
    ],
)  # fmt: skip
def test_places_that_are_not_there(run, embed, bucket_server, url, told, requests):
    """No other bucket is asked."""
    for code, _, errors in (run("info", url), run("ls", "stores", "--cache", url), embed(url)):
        assert (code, told in errors) == (2, True)
    assert bool(bucket_server.requests) == requests


def test_without_the_package(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "obstore", None)
    code, _, errors = run("info", "s3://some-bucket/a.zarr")
    assert (code, "pip install 'samtl[cloud]'" in errors) == (2, True)


def test_only_stores_are_in_buckets(run, embedded, tmp_path):
    """And nothing lands in a folder of this disk that is called like a URL."""
    for command in (
        ("sweep", "--heads", "logreg"),
        ("fit-head", "--head", "logreg"),
        ("report", "runs"),
        ("reproduce", "eurosat", "--quick"),
        ("predict", "--run", "runs/a", "--images", "images"),
    ):
        assert run(*command, "--out", "s3://some-bucket/x")[0] == 2
    assert "s3:" not in [path.name for path in tmp_path.iterdir()]
