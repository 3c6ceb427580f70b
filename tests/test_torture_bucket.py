"""Passes into a bucket whose server fails in every way that it can, and writers that meet there."""

import os
import threading
import time

import pytest

pytest.importorskip("obstore")
import stubs

from samtl.embed.api import embed
from samtl.embed.verify import verify
from samtl.errors import LockedError, ResourceError
from samtl.store import lease, remote
from samtl.store.log import read_log
from samtl.store.reader import open_store
from samtl.store.remote import as_path

pytestmark = pytest.mark.slow
ALL = bool(os.environ.get("SAMTL_TORTURE"))
STRUCK = 500 if ALL else 60  # faults
ROUNDS = 200 if ALL else 2
ROWS = 40
DATASET = stubs.toy_dataset(ROWS)


def into(url, **options):
    return embed(DATASET, "stub", out=url, device="cpu", batch_size=8, **options)


@pytest.fixture
def whole(encoders, tmp_path):
    """Give the rows of a pass that nothing disturbed."""
    return stubs.everything(open_store(into(tmp_path / "whole.zarr").store))


def test_faults_of_the_server(bucket_server, encoders, whole, monkeypatch, record_property):
    """After each pass that ended, well or not, every row that counts is right; at the end none is lost or doubled."""
    monkeypatch.setattr(remote, "_CLIENT", {**remote._CLIENT, "timeout": "400ms"})
    struck, passes, failed, seed = 0, 0, 0, 0
    kinds = set()
    while struck < STRUCK or kinds != {"500", "503", "409", "slow", "reset", "lost"}:
        seed += 1
        # Every other time so impatient that passes end with the faults.
        monkeypatch.setattr(remote, "ATTEMPTS", 2 if seed % 2 else 5)
        retries = {**remote._RETRY, "max_retries": 0 if seed % 2 else 5}
        monkeypatch.setattr(remote, "_RETRY", retries)
        url = f"{bucket_server.make_bucket()}/a.zarr"
        bucket_server.reset(seed)
        encoders.images = 0
        for rate in (0.3, 0.2, 0.1, 0.05, 0.0):
            bucket_server.rate = rate
            passes += 1
            try:
                result = into(url)
            except ResourceError:
                failed += 1
                result = None
            bucket_server.rate = 0.0
            (as_path(url) / lease.NAME).unlink()
            if (as_path(url) / "fingerprint.json").exists() and (
                as_path(url) / "rows" / "0.json"
            ).exists():
                store = open_store(url)
                for array in store.arrays:
                    rows = store.valid(array).nonzero()[0]
                    kept = store.read(array, rows)
                    row_bytes = len(whole[array]) // ROWS
                    for row, value in zip(rows, kept, strict=True):
                        good = whole[array][row * row_bytes : (row + 1) * row_bytes]
                        assert (
                            value == whole[array][row]
                            if array == "sample_id"
                            else value.tobytes() == good
                        )
            if result is not None:
                break
        assert stubs.everything(open_store(url)) == whole
        records = read_log(as_path(url))
        assert [(one.block, one.sequence) for one in records] == [(0, 0), (1, 0), (2, 0)]
        assert verify(url, level="deep").checked.findings == []
        struck += sum(bucket_server.struck.values())
        kinds |= {kind for kind, count in bucket_server.struck.items() if count}
    record_property(
        "points", f"{struck} faults in {passes} passes, {failed} of which ended with them,"
    )


def test_writers_that_begin_together(bucket_server, encoders, whole):
    """One wins, the other is told, and no row is lost."""
    for _ in range(ROUNDS):
        url = f"{bucket_server.make_bucket()}/a.zarr"
        start, ended = threading.Barrier(2), []

        def begin(start=start, ended=ended, url=url):
            start.wait()
            try:
                ended.append(into(url).missing)
            except LockedError as error:
                ended.append(str(error))

        threads = [threading.Thread(target=begin) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert ended.count(0) >= 1  # both, where the second came when the first was done
        assert len(ended) == 2
        assert stubs.everything(open_store(url)) == whole
        assert verify(url).checked.findings == []


def test_a_writer_that_sleeps_through_another(bucket_server, encoders, whole, monkeypatch):
    """It wakes after its hold has ended, wherever it was, and the other's rows stay as they are."""
    monkeypatch.setattr(lease, "SECONDS", 0.5)
    monkeypatch.setattr(lease, "RENEWALS", 1_000_000)  # no thread renews what is stopped
    real = lease.Lease._renew
    monkeypatch.setattr(lease.Lease, "_renew", lambda self: None)
    points = range(0, 40, 1 if ALL else 9)
    woken = 0
    for point in points:
        url = f"{bucket_server.make_bucket()}/a.zarr"
        count, slept = 0, []
        swap = remote.RemotePath.swap

        def sleep_there(self, content, version, url=url, swap=swap, point=point, slept=slept):
            nonlocal count
            count += 1
            if count == point + 6 and not slept:  # after the hold was taken
                slept.append(str(self))
                monkeypatch.setattr(remote.RemotePath, "swap", swap)
                mine = remote.holds.pop(url, None)
                (as_path(url) / lease.NAME).unlink()  # as when its time is over
                with monkeypatch.context() as other:
                    other.setattr(lease, "SECONDS", 60.0)
                    other.setattr(lease, "RENEWALS", 4)
                    other.setattr(lease.Lease, "_renew", real)
                    assert into(url).missing == 0
                if mine is not None:
                    remote.holds[url] = mine
                time.sleep(0.5)
            return swap(self, content, version)

        monkeypatch.setattr(remote.RemotePath, "swap", sleep_there)
        try:
            into(url)
        except LockedError:
            woken += 1
        monkeypatch.setattr(remote.RemotePath, "swap", swap)
        if not slept:
            continue
        assert stubs.everything(open_store(url)) == whole
        assert verify(url).checked.findings == []
    assert woken >= len(points) // 3
