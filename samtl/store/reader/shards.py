"""Committed rows as they are read from their shards, mapped into memory or fetched, each with its checksum verified."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samtl._io import crc32c
from samtl._runtime import prefetch
from samtl.errors import DamageError
from samtl.store.state import StoreState
from samtl.store.writer import open_shard

# Mapped shards that are kept for each array: each has a file descriptor, and what was read of it counts as memory.
OPEN_SHARDS = 32
OPEN_BYTES = 512 * 2**20
_FETCHERS = 4  # blocks that are read at a time from a bucket


class Shards:
    """The shards of some arrays of a store."""

    def __init__(self, state: StoreState, arrays: Sequence[str]) -> None:
        self.state = state
        self.mapped = state.storage.path("") is not None  #: not in a bucket
        self._open = {
            name: functools.lru_cache(
                max(2, min(OPEN_SHARDS, OPEN_BYTES // int(state.log.arrays[name].size.max())))
            )(functools.partial(open_shard, state.storage))
            for name in arrays
        }

    def read(self, array: str, places: NDArray[np.int64]) -> NDArray[Any]:
        """Copy rows, in any order, by their places in the arrays; raises as `rows`."""
        spec = self.state.identity.arrays[array]
        out = np.empty((len(places), *spec.row_shape), np.dtype(spec.dtype))
        # In the order of the file, so that a shard is opened once however the rows are shuffled.
        order = np.argsort(places, kind="stable")
        ends = np.flatnonzero(np.diff(places[order] // self.state.log.block_rows)) + 1
        groups = np.split(order, ends) if len(order) else []

        def read(group: NDArray[np.int64]) -> list[NDArray[Any]]:
            return self.rows(array, places[group].tolist())

        blocks = (
            map(read, groups) if self.mapped else prefetch(read, groups, _FETCHERS, _FETCHERS + 1)
        )
        for group, values in zip(groups, blocks, strict=True):
            for position, value in zip(group, values, strict=True):
                out[position] = value
        return out

    def rows(self, array: str, places: Sequence[int]) -> list[NDArray[Any]]:
        """Return rows of one block by their places in the arrays; DamageError if one fails its checksum."""
        store, spec = self.state, self.state.identity.arrays[array]
        state, storage = store.log.arrays[array], store.storage
        block = places[0] // store.log.block_rows
        name, inside = spec.shard_path(block), [place % store.log.block_rows for place in places]
        extents = [spec.extent(position) for position in inside]
        size, sha256 = int(state.size[block]), bytes(state.sha256[block]).hex()
        for anew in (False, True):  # what is kept of a bucket on this machine may have rotted
            if self.mapped:
                shard = self._open[array](name)
                if len(shard) != size:
                    raise DamageError(
                        f"{storage.url}/{name} has {len(shard)} bytes, but {size} were committed: the store is damaged"
                    )
                pieces: Sequence[bytes | memoryview] = [
                    shard[start:stop] for start, stop in extents
                ]
            else:
                try:
                    pieces = storage.read_ranges(name, extents, size, sha256, anew=anew)
                except FileNotFoundError as error:
                    raise DamageError(
                        f"{storage.url}/{name} is missing: the store is damaged"
                    ) from error
            sums = [crc32c(piece) for piece in pieces]
            if np.array_equal(sums, state.crc32c[places]):
                return [spec.decode_row(piece) for piece in pieces]
        wrong = places[int(np.argmax(sums != state.crc32c[places]))]
        raise DamageError(
            f"{storage.url}/{name}: row {store.table.position[wrong]} fails its checksum; the store is damaged there "
            "(or was repaired since it was opened)"
        )
