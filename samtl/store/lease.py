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
import threading
import time
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING

from samtl.errors import LockedError, ResourceError, SamtlError
from samtl.store.remote import RemotePath

if TYPE_CHECKING:
    from obstore import UpdateVersion

NAME = ".lock"
SECONDS = 60.0  # after which a lease that was not renewed ends
RENEWALS = 4  # in that time

_held: dict[str, Lease] = {}  # of this process, by the store's URL


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
        self._object = store / NAME
        self._lost = False
        self._ended = threading.Event()
        found = _held_by(store, _probe(store))
        begun = time.monotonic()
        try:
            self._version = self._object.swap(self._content(), found)
        except (FileExistsError, FileNotFoundError):
            raise _locked(store) from None
        self._until = begun + SECONDS
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()
        _held[str(store)] = self

    def end(self) -> None:
        """Give it back."""
        _held.pop(str(self._store), None)
        self._ended.set()
        self._thread.join(10)  # it may wait for a server that is gone
        if not self._over():
            with contextlib.suppress(SamtlError, OSError):
                self._object.unlink()

    def require(self) -> None:
        """Raise LockedError where it may be another's by now."""
        if self._over():
            raise LockedError(
                f"{self._store}: this process could not renew its hold for {SECONDS:.0f} s, and another may write by "
                "now; what was committed is kept, start it again to go on from there"
            )

    def _over(self) -> bool:
        return self._lost or time.monotonic() >= self._until

    def _renew(self) -> None:
        while not self._ended.wait(SECONDS / RENEWALS):
            begun = time.monotonic()
            try:
                self._version = self._object.swap(self._content(), self._version)
            except (FileExistsError, FileNotFoundError):
                self._lost = True
                return
            except SamtlError:
                continue  # the server may answer again before the time is over
            self._until = begun + SECONDS

    def _content(self) -> bytes:
        # Each time another, since equal contents have equal versions.
        return json.dumps({**self._who, "token": uuid.uuid4().hex}).encode()


def require_held(path: RemotePath) -> None:
    """Raise LockedError where this process held the lease of the store that a path is in, and may not any more."""
    for parent in path.parents:
        lease = _held.get(str(parent))
        if lease is not None:
            lease.require()


def require_free(store: RemotePath) -> None:
    """Raise LockedError where a writer holds the lease of a store."""
    if (store / NAME).is_file():
        _held_by(store, _probe(store))


def _probe(store: RemotePath) -> float:
    """Give the server's time, having seen that it overwrites nothing that it was asked not to."""
    probe = store / f".probe-{uuid.uuid4().hex}"
    try:
        probe.create(b"1")
        try:
            probe.create(b"2")
        except FileExistsError:
            return probe.version()[1]
        raise ResourceError(
            f"{store}: this server overwrites what it was asked not to (it ignores If-None-Match), so that two writers "
            "could destroy each other's rows; keep stores on a server that honours it, or on a disk"
        )
    finally:
        with contextlib.suppress(SamtlError, OSError):
            probe.unlink()


def _held_by(store: RemotePath, now: float) -> UpdateVersion | None:
    """Give the version of a lease that has ended by itself, None where there is none; refuse one that has not."""
    try:
        version, renewed = (store / NAME).version()
    except FileNotFoundError:
        return None
    # Servers give times in whole seconds.
    if now - renewed <= SECONDS + 1:
        raise _locked(store, now - renewed)
    return version


def _locked(store: RemotePath, since: float = 0.0) -> LockedError:
    try:
        who = json.loads((store / NAME).read_bytes())
        holder = f"process {who['pid']} on {who['host']} since {who['since']}"
    except (OSError, SamtlError, ValueError, KeyError, TypeError):
        holder = "another process"
    return LockedError(
        f"{store} is being written by {holder}; wait for it to end, or stop it. If it was killed, its hold ends by "
        f"itself in {max(SECONDS + 2 - since, 1):.0f} s"
    )
