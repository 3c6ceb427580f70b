"""What every test stands on: a clean environment, its own folder, and stand-ins for slow things."""

import logging
import os
import shutil
import tempfile
from pathlib import Path

# Before anything imports torch: OpenMP threads that spin at barriers starve whatever else runs.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault(
    "HYPOTHESIS_STORAGE_DIRECTORY", str(Path(tempfile.gettempdir()) / "samtl-hypothesis")
)

import pytest
from hypothesis import settings

# The machines that run these tests are shared, so time per example says nothing.
settings.register_profile("samtl", deadline=None, derandomize=True)
settings.load_profile("samtl")


@pytest.fixture(autouse=True)
def _isolated(monkeypatch, tmp_path):
    """Take the user's settings away and work in an empty folder, so that nothing lands in the tree."""
    for name in ("SAMTL_CACHE", "SAMTL_RUNS", "SAMTL_WEIGHTS", "SAMTL_DATA_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
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


@pytest.fixture
def encoders(monkeypatch):
    """Give a stub in place of every encoder, with small outputs; other kinds of plugins load as ever."""
    import stubs  # loads torch, which most tests can do without

    return stubs.install(stubs.StubEncoders(), monkeypatch.setattr)


@pytest.fixture(scope="session")
def _small_store(tmp_path_factory):
    """Make a store of 37 rows once: two full blocks and one of five rows, two of the rows quarantined."""
    import stubs

    from samtl.embedding import embed

    with pytest.MonkeyPatch.context() as patch:
        stubs.install(stubs.StubEncoders(), patch.setattr)
        out = tmp_path_factory.mktemp("made") / "small.zarr"
        return embed(stubs.small_dataset(), "stub", out=out, device="cpu", dtype="float32")


@pytest.fixture
def small(_small_store, tmp_path):
    """Give a fresh copy of the small store, to read or to damage."""
    return shutil.copytree(_small_store.store, tmp_path / "small.zarr")
