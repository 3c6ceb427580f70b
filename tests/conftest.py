"""What every test stands on: a clean environment, its own folder, and stand-ins for slow things."""

import json
import logging
import os
import shutil
import signal
import sys
import tempfile
from datetime import timedelta
from importlib.metadata import entry_points
from pathlib import Path

# Before anything imports torch: OpenMP threads that spin at barriers starve whatever else runs.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault(
    "HYPOTHESIS_STORAGE_DIRECTORY", str(Path(tempfile.gettempdir()) / "samtl-hypothesis")
)
# So that results do not depend on what is measured; the tests of the measurement take it away.
os.environ["SAMTL_DTYPE"] = "float32"

import pytest
from hypothesis import settings

# As in a terminal, also if the tests were started by nohup.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

pytest.register_assert_rewrite("chaos", "fuzzing", "power", "toys")  # to see what differs
# The machines that run these tests are shared, so time per example says nothing.
settings.register_profile("samtl", deadline=None, derandomize=True)
settings.load_profile("samtl")


@pytest.fixture(autouse=True)
def _isolated(monkeypatch, tmp_path):
    """Take the user's settings away and work in an empty folder, so that nothing lands in the tree."""
    for name in ("CACHE", "RUNS", "WEIGHTS", "DATA_CACHE", "ROW_CACHE"):
        monkeypatch.delenv(f"SAMTL_{name}", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(
        "XDG_CACHE_HOME", str(tmp_path / ".cache")
    )  # of what is known of the machine
    # The command line gives this logger a handler, which must not outlive the test.
    monkeypatch.setattr(logging.getLogger("samtl"), "handlers", [])
    # What must be on disk before what is tested by the order of the calls; to wait for a disk proves nothing.
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="module")
def one_thread():
    """Let torch compute in one thread: toy networks are too small to share, and the cores are not ours alone."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def warm_starts():
    """Let warm starts shorten trainings on few samples, too: many cells of a sweep then start from one another."""
    from samtl.heads.training import trainer
    from samtl.sweep import plan

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "WARM_SAMPLES", 30)
        patch.setattr(plan, "MOST_KNOWN", 1.0)
        yield


@pytest.fixture
def forked_workers(monkeypatch):
    """Let worker processes be forked by a server that has imported what they need, which they do in less time."""
    import forking

    from samtl import _runtime

    monkeypatch.setattr(_runtime, "_SPAWN", forking.server())


@pytest.fixture
def encoders(monkeypatch):
    """A stub in place of every encoder, with small outputs; other kinds of plugins load as ever."""
    import stubs  # loads torch, which most tests can do without

    return stubs.install(stubs.StubEncoders(), monkeypatch.setattr)


@pytest.fixture(scope="session")
def _small_store(tmp_path_factory):
    """Make a store of 37 rows once: two full blocks and one of five rows, two of the rows quarantined."""
    import stubs

    from samtl.embed.api import embed
    from samtl.store.format import TIERS

    with pytest.MonkeyPatch.context() as patch:
        stubs.install(stubs.StubEncoders(), patch.setattr)
        out = tmp_path_factory.mktemp("made") / "small.zarr"
        options = {"device": "cpu", "dtype": "float32", "tiers": TIERS}
        return embed(stubs.small_dataset(), "stub", out=out, **options)


@pytest.fixture
def small(_small_store, tmp_path):
    """A fresh copy of the small store, to read or to damage."""
    return shutil.copytree(_small_store.store, tmp_path / "small.zarr")


@pytest.fixture(scope="session")
def ram():
    """A folder in memory, if this machine has one, for what does not depend on how slow a disk is."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def _bucket_server():
    pytest.importorskip("obstore")
    pytest.importorskip("moto")
    import bucket

    server = bucket.Server()
    yield server
    server.stop()


@pytest.fixture
def bucket_server(_bucket_server, monkeypatch, tmp_path):
    """Start an object store, once for all tests; settings point there, and nothing is waited for long."""
    from samtl.store.storage import object_store

    _bucket_server.reset()
    for name in list(os.environ):
        if name.startswith("AWS_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "us-east-1"}
    places = {"AWS_ENDPOINT_URL": _bucket_server.url, "SAMTL_ROW_CACHE": str(tmp_path / "kept")}
    for name, value in (keys | places).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(object_store, "FIRST_PAUSE", 0.01)
    pauses = {"init_backoff": timedelta(milliseconds=5), "max_backoff": timedelta(milliseconds=50)}
    monkeypatch.setattr(object_store, "RETRY", {**object_store.RETRY, "backoff": pauses})
    object_store.client.cache_clear()
    return _bucket_server


@pytest.fixture
def bucket(bucket_server):
    """The URL of an empty bucket."""
    return bucket_server.make_bucket()


@pytest.fixture
def run(monkeypatch, capsys):
    """Run `samtl ARGS` in this process; returns (exit code, standard output, standard error)."""
    main = next(e for e in entry_points(group="console_scripts") if e.name == "samtl").load()

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["samtl", *map(str, args)])
        monkeypatch.setenv("COLUMNS", "200")
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        output, errors = capsys.readouterr()
        assert "Traceback" not in errors
        return code, output, errors

    return run


@pytest.fixture
def told(run, tmp_path):
    """Run `samtl ARGS --json FILE`; returns (exit code, what the file says, standard output)."""

    def told(*args):
        file = tmp_path / "told.json"
        file.unlink(missing_ok=True)
        code, output, errors = run(*args, "--json", file)
        assert file.exists(), errors
        return code, json.loads(file.read_text()), output

    return told


@pytest.fixture
def folder(tmp_path):
    """A folder of 24 images in two classes."""
    import stubs

    return stubs.image_folder(tmp_path / "images")


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """A folder with 24 images in two classes, and with a store of them where it is by default; not to be changed."""
    import stubs

    from samtl.embed.api import embed

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("place"))
        stubs.install(stubs.StubEncoders(), patch.setattr)
        stubs.image_folder(Path("images"))
        embed("folder:images", "tiny", out="cache/folder-images.tiny.64.zarr")
        return Path.cwd()


@pytest.fixture
def embedded(place, encoders, folder):
    """A store of 24 images in two classes in the default place."""
    shutil.copytree(place / "cache", "cache")


def pytest_terminal_summary(terminalreporter):
    """Say at how many points a fault struck, where tests count them."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if name == "points":
                terminalreporter.write_line(f"{report.nodeid}: {value} points")
