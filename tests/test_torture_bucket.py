"""Passes into a bucket whose server fails in every way that it can, and writers that meet there or on a disk."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

pytest.importorskip("obstore")
import stubs
from bucket import FAULTS
from chaos import ALL, committed_rows, require_whole

from samtl.embed.api import embed
from samtl.errors import ResourceError
from samtl.store.reader import open_store
from samtl.store.storage import DiskStorage, object_store

pytestmark = pytest.mark.slow
STRUCK, ROUNDS = (500, 200) if ALL else (40, 1)
DATASET = stubs.toy_dataset(40)


def into(url):
    return embed(DATASET, "stub", out=url, device="cpu", batch_size=8)


@pytest.fixture
def whole(encoders, tmp_path):
    """What a pass gives that nothing disturbed."""
    return open_store(into(tmp_path / "whole.zarr").store)


def test_faults_of_the_server(bucket_server, whole, monkeypatch, record_property):
    """After each pass that ended, well or not, every row that counts is right; at the end none is lost or doubled."""
    struck, passes, failed, seed, kinds = 0, 0, 0, 0, set()
    while struck < STRUCK or kinds != {*FAULTS}:
        seed += 1
        url = f"{bucket_server.make_bucket()}/a.zarr"
        bucket_server.reset(seed)
        for rate in (0.3, 0.2, 0.1, 0.05):
            passes += 1
            with monkeypatch.context() as patch, suppress(ResourceError):
                # Every other time so impatient that passes end with the faults.
                patch.setattr(object_store, "ATTEMPTS", 2 if seed % 2 else 5)
                retries = {**object_store.RETRY, "max_retries": 0 if seed % 2 else 5}
                patch.setattr(object_store, "RETRY", retries)
                patch.setattr(object_store, "CLIENT", {**object_store.CLIENT, "timeout": "400ms"})
                object_store.client.cache_clear()
                bucket_server.rate = rate
                into(url)
                break
            failed += 1
            bucket_server.rate = 0.0
            object_store.client.cache_clear()
            committed_rows(url, whole)
        bucket_server.rate = 0.0
        object_store.client.cache_clear()
        into(url)
        require_whole(url, whole)
        struck += sum(bucket_server.struck.values())
        kinds |= {kind for kind, count in bucket_server.struck.items() if count}
    record_property("points", f"{struck} faults in {passes} passes, {failed} of which ended,")


def test_writers_that_begin_together(bucket_server, encoders, whole):
    """They share the work, none is refused, and every block is committed once."""
    encoders.seconds = 0.002
    for _ in range(ROUNDS):
        url = f"{bucket_server.make_bucket()}/a.zarr"
        with ThreadPoolExecutor(3, initializer=threading.Barrier(3).wait) as pool:
            assert [done.missing for done in pool.map(into, [url] * 3)] == [0, 0, 0]
        require_whole(url, whole)


@pytest.mark.parametrize("kind", [DiskStorage, object_store.BucketStorage])
def test_a_writer_that_sleeps_through_another(bucket_server, ram, whole, monkeypatch, kind):
    """Before anything that it creates, another pass comes to the end; that one's files stay as they are."""
    create, woken = kind.create, 0
    for point in range(0, 40, 1 if ALL else 7):
        place = ram / f"slept-{point}" if kind is DiskStorage else bucket_server.make_bucket()
        place, left = f"{place}/a.zarr", [point]

        def sleep_there(self, name, pieces, left=left, place=place):
            left[0] -= 1
            if left[0] == -1:
                assert into(place).missing == 0
            return create(self, name, pieces)

        with monkeypatch.context() as patch:
            patch.setattr(kind, "create", sleep_there)
            assert into(place).missing == 0
        woken += left[0] < 0
        require_whole(place, whole)
    assert woken >= 3
