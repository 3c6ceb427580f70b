"""One writer at a time in a bucket."""

import json
import threading
import time

import pytest

pytest.importorskip("obstore")

from samtl.errors import LockedError, ResourceError
from samtl.store import durable, lease, remote
from samtl.store.lease import Lease
from samtl.store.remote import as_path
from samtl.store.writer import locked, require_unlocked, whoami

WHO = {"pid": 7, "host": "there", "since": "2026-01-01T00:00:00+00:00"}


@pytest.fixture
def store(bucket):
    return as_path(bucket) / "a.zarr"


def dies(held):
    """Let a holder end as when it is killed: nothing is renewed any more, and nothing given back."""
    held._ended.set()
    held._thread.join()
    remote.holds.clear()


def test_one_holds_it_and_others_are_told_who(store):
    held = Lease(store, WHO)
    for ask in (lambda: Lease(store, WHO), lambda: require_unlocked(store)):
        with pytest.raises(LockedError, match=r"process 7 on there since 2026.*ends by itself in"):
            ask()
    held.end()
    assert store.names() == [lease.NAME]  # what was tried at the start does not stay
    require_unlocked(store)
    Lease(store, WHO).end()


def test_writers_lock_a_bucket_by_it(store):
    with locked(store):
        content = json.loads((store / lease.NAME).read_bytes())
        assert {"pid", "host", "since", "token"} == set(content)
        with pytest.raises(LockedError), locked(store):
            pass
    with pytest.raises(RuntimeError), locked(store):
        raise RuntimeError
    with locked(store):
        pass
    assert json.loads((store / lease.NAME).read_bytes())[lease.RELEASED]


def test_of_several_that_begin_together_one_gets_it(store):
    for _ in range(5):
        start, won, lost = threading.Barrier(4), [], []

        def begin(start=start, won=won, lost=lost):
            start.wait()
            try:
                won.append(Lease(store, WHO))
            except LockedError as error:
                lost.append(error)

        threads = [threading.Thread(target=begin) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(won), len(lost)) == (1, 3)
        won[0].end()


def test_it_is_renewed_while_it_is_held(store, monkeypatch):
    monkeypatch.setattr(lease, "SECONDS", 0.8)
    held = Lease(store, WHO)
    first = (store / lease.NAME).version()[0]
    time.sleep(1.2)
    assert (store / lease.NAME).version()[0] != first
    held.require()
    held.end()
    require_unlocked(store)


def test_that_of_a_dead_holder_ends_by_itself(store, monkeypatch):
    monkeypatch.setattr(lease, "SECONDS", 1.0)
    dies(Lease(store, WHO))
    with pytest.raises(LockedError):
        Lease(store, WHO)
    time.sleep(3.1)  # servers tell whole seconds
    require_unlocked(store)
    Lease(store, WHO).end()


def test_a_holder_that_slept_publishes_nothing_more(store, monkeypatch):
    monkeypatch.setattr(lease, "SECONDS", 1.0)
    sleeper = Lease(store, WHO)
    sleeper._ended.set()  # nothing runs in a process that is stopped
    sleeper._thread.join()
    time.sleep(3.1)
    remote.holds.clear()
    other = Lease(store, {**WHO, "pid": 8})
    remote.holds[str(store)] = sleeper.require  # as in its own process
    there = store / "log" / "0.json"
    for write in (
        lambda: durable.publish(there, [b"1"]), lambda: durable.replace(there, b"1"), there.unlink,
        lambda: there.rename(store / "x"), lambda: there.swap(b"1", None),
    ):  # fmt: skip
        with pytest.raises(LockedError, match="could not renew its hold for 1 s"):
            write()
    sleeper.end()
    assert store.names() == [lease.NAME]  # the other's, and nothing else
    with pytest.raises(LockedError):
        Lease(store, WHO)
    remote.holds[str(store)] = other.require
    durable.publish(there, [b"1"])
    other.end()
    assert sorted(store.names()) == [lease.NAME, "log"]


def test_one_that_was_taken_over_is_noticed_when_it_is_renewed(store, monkeypatch):
    monkeypatch.setattr(lease, "SECONDS", 2.0)
    held = Lease(store, WHO)
    (store / lease.NAME).replace_with(b"{}")
    time.sleep(1.0)
    with pytest.raises(LockedError, match="could not renew"):
        held.require()
    held.end()
    assert (store / lease.NAME).read_bytes() == b"{}"


def test_a_server_that_is_away_for_a_moment_costs_nothing(store, monkeypatch, bucket_server):
    monkeypatch.setattr(lease, "SECONDS", 4.0)
    held = Lease(store, WHO)
    bucket_server.rate, bucket_server.faults = 1.0, ["503"]
    time.sleep(1.5)
    bucket_server.rate = 0.0
    time.sleep(1.5)
    assert bucket_server.struck["503"] > 0
    held.require()
    time.sleep(1.5)  # by now the first four seconds are over
    held.require()
    held.end()


@pytest.mark.parametrize("header", ["If-None-Match", "If-Match"])
def test_a_server_that_overwrites_is_refused(store, bucket_server, header):
    bucket_server.ignores = (header.lower(),)
    with pytest.raises(ResourceError, match=f"ignores {header}"):
        Lease(store, WHO)
    assert store.names() == []


def test_a_hold_that_says_nothing_is_one_all_the_same(store):
    (store / lease.NAME).create(b"torn")
    with pytest.raises(LockedError, match="written by another process"):
        Lease(store, WHO)


def test_the_empty_lock_of_a_disk_that_was_copied_holds_nothing(store):
    (store / lease.NAME).replace_with(b"")
    with locked(store):
        assert json.loads((store / lease.NAME).read_bytes())["pid"] == whoami()["pid"]


def test_time_goes_on_while_the_machine_sleeps(store, monkeypatch):
    now = lease._now()
    held = Lease(store, WHO)
    monkeypatch.setattr(
        lease, "_now", lambda: now + 600
    )  # the clock of the process's own life stood still
    with pytest.raises(LockedError, match="could not renew"):
        held.require()
    held.end()
    assert not json.loads((store / lease.NAME).read_bytes()).get(lease.RELEASED)


def test_asking_whether_it_is_free_writes_nothing(store, bucket_server):
    held = Lease(store, WHO)
    bucket_server.requests.clear()
    with pytest.raises(LockedError):
        require_unlocked(store)
    assert {method for method, _, _ in bucket_server.requests} <= {"GET", "HEAD"}
    held.end()


def test_what_a_probe_left_is_swept(bucket, encoders):
    from stubs import toy_dataset

    from samtl.embed.api import embed

    left = as_path(bucket) / "a.zarr" / f"{lease.PROBE}of-one-that-was-killed"
    left.create(b"1")
    embed(toy_dataset(4), "stub", out=f"{bucket}/a.zarr", device="cpu")
    assert not left.exists()


def test_a_probe_that_another_took_away(store, monkeypatch):
    swap = remote.RemotePath.swap

    def swap_and_lose(self, content, version):
        done = swap(self, content, version)
        if content == b"2":
            self.unlink()
        return done

    monkeypatch.setattr(remote.RemotePath, "swap", swap_and_lose)
    with pytest.raises(LockedError, match="another process"):
        Lease(store, WHO)
