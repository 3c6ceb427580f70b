"""One writer at a time where there are no file locks: an object that its holder renews.

A lock file is freed by the kernel when its holder dies; in a bucket nobody does that. So a lease ends by itself some
time after the holder last renewed it, and until then nobody else writes. A holder that could not renew it in time, such
as one that slept, writes nothing more: it asks before everything that it publishes. What it had under way just then
still meets write-once publication, so that the worst it can leave is a shard without a record.

Only the server is asked what time it is, so clocks need not agree.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING

from samtl.errors import LockedError, ResourceError, SamtlError
from samtl.store.remote import RemotePath, client, holds

if TYPE_CHECKING:
    from obstore import UpdateVersion
    from obstore.store import ObjectStore

NAME = ".lock"
PROBE = ".probe-"
RELEASED = "released"
SECONDS = 60.0  # after which a lease that was not renewed ends
RENEWALS = 4  # in that time


class _Lock(RemotePath):
    """The object that is the lease; a request that hangs must not take the time of the next."""

    attempts = 1

    @property
    def bucket(self) -> ObjectStore:
        """A client that does not wait for long."""
        return client(self.parts[0], self.parts[1], os.getpid(), patient=False)


class Lease:
    """A lease that is held, and renewed by a thread.

    Parameters
    ----------
    store : RemotePath
    who : mapping
        What others are told of the holder: `pid`, `host`, `since`.

    Raises
    ------
    LockedError
        Where another writer holds it.
    ResourceError
        Where the server would let a second writer overwrite what the first one wrote, or does not answer.
    """

    def __init__(self, store: RemotePath, who: Mapping[str, object]) -> None:
        self._store, self._who = store, dict(who)
        self._object = _Lock(*(store / NAME).parts)
        self._lost = False
        self._ended = threading.Event()
        found = _left_over(store, _probe(store))
        begun = _now()
        try:
            self._version = (store / NAME).swap(self._content(), found)
        except (FileExistsError, FileNotFoundError):
            raise _locked(store) from None
        self._until = begun + SECONDS
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()
        holds[str(store)] = self.require

    def end(self) -> None:
        """Give it back."""
        holds.pop(str(self._store), None)
        self._ended.set()
        self._thread.join(20)
        if not self._over() and not self._thread.is_alive():
            with contextlib.suppress(SamtlError, OSError):
                # Not removed: that could not be made to depend on whose it is by then.
                self._object.swap(self._content(**{RELEASED: True}), self._version)

    def require(self) -> None:
        """Raise LockedError where it may be another's by now."""
        if self._over():
            raise LockedError(
                f"{self._store}: this process could not renew its hold for {SECONDS:.0f} s, and another may write by "
                "now; what was committed is kept, start it again to go on from there"
            )

    def _over(self) -> bool:
        return self._lost or _now() >= self._until

    def _renew(self) -> None:
        pause = SECONDS / RENEWALS
        while not self._ended.wait(pause):
            begun = _now()
            try:
                self._version = self._object.swap(self._content(), self._version)
            except (FileExistsError, FileNotFoundError):
                self._lost = True
                return
            except SamtlError:  # the server may answer again before the time is over
                pause = min(1.0, SECONDS / RENEWALS)
                continue
            self._until, pause = begun + SECONDS, SECONDS / RENEWALS

    def _content(self, **more: object) -> bytes:
        # Each time another, since equal contents have equal versions.
        return json.dumps({**self._who, **more, "token": uuid.uuid4().hex}).encode()


def require_free(store: RemotePath) -> None:
    """Raise LockedError where a writer seems to hold a store, by this machine's clock; nothing is written."""
    _left_over(store, time.time())


def _now() -> float:
    """Give the seconds of a clock that goes on while the machine sleeps."""
    # Python's own monotonic clock stands still then, on Linux and on macOS.
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _probe(store: RemotePath) -> float:
    """Give the server's time, having seen that it overwrites nothing that it was asked not to."""
    probe = store / f"{PROBE}{uuid.uuid4().hex}"
    try:
        first = probe.swap(b"1", None)
        if _overwrites(probe, None):
            raise _unfit(store, "If-None-Match")
        probe.swap(b"2", first)
        if _overwrites(probe, first):
            raise _unfit(store, "If-Match")
        return probe.version()[1]
    except FileNotFoundError:  # a writer that holds the store took it for a leftover
        raise _locked(store) from None
    finally:
        with contextlib.suppress(SamtlError, OSError):
            probe.unlink()


def _overwrites(probe: RemotePath, version: UpdateVersion | None) -> bool:
    try:
        probe.swap(b"3", version)
    except FileExistsError:
        return False
    return True


def _unfit(store: RemotePath, condition: str) -> ResourceError:
    return ResourceError(
        f"{store}: this server overwrites what it was asked not to (it ignores {condition}), so that two writers could "
        "destroy each other's rows; keep stores on a server that honours it, or on a disk"
    )


def _left_over(store: RemotePath, now: float) -> UpdateVersion | None:
    """Give the version of a lease that ended or was given back, None where there is none; refuse one that is held."""
    try:
        version, renewed = (store / NAME).version()
        content = _read(store)  # a newer one has another version, so that nobody takes its place
    except FileNotFoundError:
        return None
    # Servers give times in whole seconds.
    if not content.get(RELEASED) and abs(now - renewed) <= SECONDS + 1:
        raise _locked(store, now - renewed)
    return version


def _read(store: RemotePath) -> dict[str, object]:
    try:
        raw = (store / NAME).read_bytes()
        if not raw:  # of a store that was copied from a disk
            return {RELEASED: True}
        content = json.loads(raw)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _locked(store: RemotePath, since: float = 0.0) -> LockedError:
    holder = "another process"
    with contextlib.suppress(SamtlError, OSError, KeyError):
        who = _read(store)
        holder = f"process {who['pid']} on {who['host']} since {who['since']}"
    return LockedError(
        f"{store} is being written by {holder}; wait for it to end, or stop it. If it was killed, its hold ends by "
        f"itself in {max(SECONDS + 2 - since, 1):.0f} s"
    )
