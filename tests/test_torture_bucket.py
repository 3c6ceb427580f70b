"""Passes into a bucket whose server fails in every way that it can, and writers that meet there."""

import threading

import pytest

pytest.importorskip("obstore")
import stubs
from bucket import FAULTS
from chaos import ALL

from samtl.embed.api import embed
from samtl.errors import ResourceError
from samtl.store import object_store
from samtl.store.reader import open_store
from samtl.store.storage import IDENTITY, open_storage
from samtl.store.verify import check

pytestmark = pytest.mark.slow
STRUCK = 500 if ALL else 40  # faults
ROUNDS = 200 if ALL else 1
ROWS = 40
DATASET = stubs.toy_dataset(ROWS)


def into(url):
    return embed(DATASET, "stub", out=url, device="cpu", batch_size=8)


@pytest.fixture
def whole(encoders, tmp_path):
    """Give the rows of a pass that nothing disturbed."""
    return stubs.everything(open_store(into(tmp_path / "whole.zarr").store))


def require_whole(url, whole):
    assert stubs.everything(open_store(url)) == whole
    assert check(url, "deep").findings == []
    records = [name for name in open_storage(url).list("log") if name.endswith(".json")]
    assert sorted(records) == ["0.0.json", "1.0.json", "2.0.json"]


def test_faults_of_the_server(bucket_server, encoders, whole, monkeypatch, record_property):
    """After each pass that ended, well or not, every row that counts is right; at the end none is lost or doubled."""
    struck, passes, failed, seed, kinds = 0, 0, 0, 0, set()
    while struck < STRUCK or kinds != {*FAULTS}:
        seed += 1
        url = f"{bucket_server.make_bucket()}/a.zarr"
        bucket_server.reset(seed)
        with monkeypatch.context() as patch:
            # Every other time so impatient that passes end with the faults.
            patch.setattr(object_store, "ATTEMPTS", 2 if seed % 2 else 5)
            retries = {**object_store.RETRY, "max_retries": 0 if seed % 2 else 5}
            patch.setattr(object_store, "RETRY", retries)
            patch.setattr(object_store, "CLIENT", {**object_store.CLIENT, "timeout": "400ms"})
            object_store.client.cache_clear()
            for rate in (0.3, 0.2, 0.1, 0.05):
                bucket_server.rate = rate
                passes += 1
                try:
                    into(url)
                    break
                except ResourceError:
                    failed += 1
                finally:
                    bucket_server.rate = 0.0
                    object_store.client.cache_clear()
                if {IDENTITY, "samples"} <= open_storage(url).list().keys():
                    store = open_store(url)
                    for array in store.arrays:
                        size = len(whole[array]) // ROWS
                        for row in store.valid(array).nonzero()[0].tolist():
                            good = whole[array][row * size : (row + 1) * size]
                            assert store.row(array, row).tobytes() == good
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
        start, ended = threading.Barrier(3), []

        def begin(start=start, ended=ended, url=url):
            start.wait()
            try:
                ended.append(into(url).missing)
            except BaseException as error:
                ended.append(error)

        threads = [threading.Thread(target=begin) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert ended == [0, 0, 0]
        require_whole(url, whole)


def test_a_writer_that_sleeps_through_another(bucket_server, encoders, whole, monkeypatch):
    """Before anything that it creates, another pass comes to the end; that one's objects stay as they are."""
    create, woken = object_store.BucketStorage.create, 0
    for point in range(0, 40, 1 if ALL else 7):
        url, left = f"{bucket_server.make_bucket()}/a.zarr", [point]

        def sleep_there(self, name, pieces, left=left, url=url):
            left[0] -= 1
            if left[0] == -1:
                assert into(url).missing == 0
            return create(self, name, pieces)

        with monkeypatch.context() as patch:
            patch.setattr(object_store.BucketStorage, "create", sleep_there)
            assert into(url).missing == 0
        woken += left[0] < 0
        require_whole(url, whole)
    assert woken >= 3
