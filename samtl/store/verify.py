"""Every file of a store compared with what is committed.

What cannot be trusted is treated as if it were missing: of a block with a damaged record, neither that record nor a
later one says anything. A check changes nothing, and can go on beside writers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from samtl._io import crc32c
from samtl._runtime import prefetch
from samtl.errors import DamageError, InputError
from samtl.store.coordinates import compare_derived
from samtl.store.fingerprint import FILE, Identity, read_identity
from samtl.store.format import KEY_BYTES, ROOT, ArraySpec
from samtl.store.log import (
    LOG,
    PACKS,
    LogState,
    Record,
    block_key,
    read_record,
    record_name,
    record_place,
)
from samtl.store.samples import FOLDER, read_table, table_name, table_numbers
from samtl.store.state import StoreState, check_table, pack_name, pack_numbers, read_root
from samtl.store.storage import FOLDER as IS_FOLDER
from samtl.store.storage import TEMPORARY, Storage, open_storage

LISTS = ("identity", "rows")  # findings about what everything else refers to
LEVELS = ("quick", "rows", "deep")
_READERS = 2  # shards that are read and summed at a time
_REQUESTS = 32  # records that are read from a bucket at a time

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class Finding:
    """Something that is not as it was committed.

    Attributes
    ----------
    what : {"identity", "rows", "table", "metadata", "record", "pack", "file", "size", "row", "index", "key", "sha256"}
        What does not hold. `rows` is the newest sample table, `table` an older one.
    path : str
        Of the file, relative to the store.
    told : str
        What was expected and what is there.
    array : str
        Which one is damaged; "" if it is none.
    block : int or None
    damaged_rows : tuple of int
        Rows of the arrays whose bytes are not the committed ones, if that is known.
    """

    what: str
    path: str
    told: str
    array: str = ""
    block: int | None = None
    damaged_rows: tuple[int, ...] = ()


@dataclass
class Checked:
    """Result of a check.

    Attributes
    ----------
    findings : list of Finding
        Empty if everything is as it was committed.
    rows, ok, quarantined, missing : int
        Listed rows; of these, the ones with an embedding in every array, the ones whose image could not be used, and
        the ones that are not committed in every array.
    superseded : int
        Committed rows that the newest table does not list: their images are gone or were changed.
    begun : bool
        False if a pass was stopped before it wrote which images the rows are: then nothing else is known.
    blocks, files, bytes : int
        Committed blocks; their shards, and the bytes of these.
    leftovers : list of str
        Files of an interrupted pass that nothing commits; the next pass uses or replaces them, a repair deletes them.
    state : StoreState or None
        What can be trusted of the store.
    """

    findings: list[Finding] = field(default_factory=list)
    rows: int = 0
    ok: int = 0
    quarantined: int = 0
    missing: int = 0
    superseded: int = 0
    begun: bool = True
    blocks: int = 0
    files: int = 0
    bytes: int = 0
    leftovers: list[str] = field(default_factory=list)
    state: StoreState | None = None

    def to_json(self) -> dict[str, object]:
        """Return the result as JSON values."""
        content = {name: value for name, value in vars(self).items() if name != "state"}
        return {**content, "findings": [asdict(one) for one in self.findings]}


def check(
    place: str | Path | Storage, level: str = "rows", on_progress: OnProgress | None = None
) -> Checked:
    """Compare every file of a store with what is committed.

    Parameters
    ----------
    place : path, URL or Storage
    level : {"quick", "rows", "deep"}
        `quick` reads the lists and records, and compares the sizes of shards; `rows` reads every shard and verifies
        every row, index and key; `deep` also the sha256 of every shard.
    on_progress : callable, optional
        Called with the bytes of shards read, and those to be read.

    Raises
    ------
    InputError
        If there is no store, or one of another format.
    ResourceError
        If the disk or the network gives out.
    """
    if level not in LEVELS:
        raise InputError(f"a check is one of {', '.join(LEVELS)}, got {level!r}")
    storage = open_storage(place) if isinstance(place, (str, Path)) else place
    if not {FILE, LOG, FOLDER} & storage.list().keys():
        raise InputError(f"{storage.url} is no samtl store; expected a folder NAME.zarr")
    before = _listed(storage)
    found = _Check(storage, level, on_progress or (lambda done, all_of: None)).run()
    if found.findings and _listed(storage) != before:
        # A pass wrote meanwhile, and may have replaced what was compared. What it committed never changes.
        shards = {"row", "index", "key", "sha256"}
        now = _Check(storage, "quick", lambda done, all_of: None).run()
        if _store_id(now) == _store_id(found):  # else it was compacted
            now.findings += [one for one in found.findings if one.what in shards]
        return now
    return found


def _store_id(found: Checked) -> str:
    return found.state.identity.store_id if found.state else ""


def _listed(storage: Storage) -> tuple[object, ...]:
    """What every pass changes."""
    return tuple(storage.list(folder) for folder in ("", LOG, FOLDER))


class _Check:
    """One check: what it has found and what it trusts so far."""

    def __init__(self, storage: Storage, level: str, on_progress: OnProgress) -> None:
        self.storage, self.level, self.on_progress = storage, level, on_progress
        self.found = Checked()
        self.keys: dict[tuple[str, int], bytes] = {}  # of the shards, by array and block

    def tell(self, what: str, path: str, told: object, *where: Any) -> None:
        text = str(told).removeprefix(f"{self.storage.url}/{path}").lstrip(": ")
        self.found.findings.append(Finding(what, path, text, *where))

    def run(self) -> Checked:
        try:
            identity = read_identity(self.storage)
            if identity is None:
                raise DamageError("it is missing")
        except DamageError as error:
            self.tell("identity", FILE, error)
            return self.found
        # In the order of `load_state`, since others may write meanwhile.
        metadata = read_root(self.storage).attributes.samtl_table
        names = self.storage.list(LOG)
        state = self._tables(identity, names)
        if state is None or state.table is None:
            return self.found
        self.found.state = state
        self._log(state, names)
        try:
            check_table(state, metadata)
        except DamageError as error:
            self.tell("rows", state.table.path, error)
        else:
            damaged, stale = compare_derived(state)
            self.found.leftovers += [ROOT] * stale
            for name, told in damaged.items():
                self.tell("metadata", name, told)
        self._packs(state)
        self._shards(state)
        self._count(state)
        for folder in ("", LOG, FOLDER, PACKS):
            temporary = (name for name in self.storage.list(folder) if name.startswith(TEMPORARY))
            self.found.leftovers += [f"{folder}/{name}".lstrip("/") for name in sorted(temporary)]
        return self.found

    def _tables(self, identity: Identity, names: dict[str, int]) -> StoreState | None:
        """Read the newest table; at the other levels than `quick`, the older ones too."""
        numbers = table_numbers(self.storage)
        if not numbers:
            self.found.begun = any(record_place(name) for name in names)
            if self.found.begun:
                self.tell("rows", FOLDER, "it holds no sample table")
            return None
        try:
            table = read_table(self.storage, identity)
        except DamageError as error:
            self.tell("rows", table_name(numbers[-1]), error)
            return None
        after = table.about
        for number in reversed(numbers[:-1]) if self.level != "quick" else ():
            try:
                older = read_table(self.storage, identity, number)
            except DamageError as error:
                self.tell("table", table_name(number), error)
                continue
            # A table between them may be damaged, or was set aside.
            if number == after.number - 1 and older.about.digest != after.follows:
                self.tell("table", table_name(number), "it is not the one before the next one")
            after = older.about
        log = LogState(identity.block_rows, table.about.rows_end)
        return StoreState(self.storage, identity, table, log)

    def _log(self, state: StoreState, names: dict[str, int]) -> None:
        """Fold the records of each block up to the first that cannot be trusted."""
        places = []
        for name in sorted(names):
            place = record_place(name)
            if place is not None:
                places.append(place)
            elif not name.startswith(".") and f"{LOG}/{name}" != PACKS:
                self.tell("record", f"{LOG}/{name}", "it does not belong into a log")
        bad = -1
        for (block, sequence), record in self._records(state.identity, sorted(places)):
            if block == bad:
                continue
            try:
                if isinstance(record, DamageError):
                    raise record
                state.log.add(record, self.storage.url)
            except DamageError as error:
                bad = block
                self.tell("record", record_name(block, sequence), error, "", block)
                continue
            for name in record.arrays:
                self.keys[name, block] = block_key(record, name)

    def _records(
        self, identity: Identity, places: list[tuple[int, int]]
    ) -> Iterator[tuple[tuple[int, int], Record | DamageError]]:
        def read(place: tuple[int, int]) -> Record | DamageError:
            try:
                return read_record(self.storage, identity, *place)
            except DamageError as error:
                return error
            except FileNotFoundError:
                return DamageError("it is gone")

        if self.storage.path("") is None:
            yield from zip(places, prefetch(read, places, _REQUESTS, 2 * _REQUESTS), strict=True)
        else:
            yield from ((place, read(place)) for place in places)

    def _packs(self, state: StoreState) -> None:
        """Compare each pack with the records that it holds."""
        for number in pack_numbers(self.storage):
            name = pack_name(number)
            try:
                pack = LogState.unpack(self.storage.read(name), state.identity)
                again = LogState(state.identity.block_rows, pack.rows)
                for place in sorted(pack.records):
                    again.add(read_record(self.storage, state.identity, *place), self.storage.url)
                if not again.same(pack):
                    self.tell("pack", name, "it does not say what the records say")
            except DamageError as error:
                self.tell("pack", name, error)
            except FileNotFoundError as error:
                if self.storage.size(name) is not None:  # else another writer has replaced it
                    self.tell("pack", name, error)

    def _shards(self, state: StoreState) -> None:
        """Compare the shards with their records."""
        committed: list[tuple[ArraySpec, int, str, int]] = []
        for name, spec in state.identity.arrays.items():
            there = self.storage.list(name)
            there.pop(ROOT, None)
            array = state.log.arrays.get(name)
            blocks = np.flatnonzero(array.sequence >= 0).tolist() if array else []
            for block in blocks:
                assert array is not None
                path = spec.shard_path(block)
                size = there.pop(path.partition("/")[2], None)
                expected = int(array.size[block])
                if size == expected:
                    committed.append((spec, block, path, size))
                    continue
                what, told = "size", f"it has {size} bytes, and {expected} were committed"
                if size in (None, IS_FOLDER):
                    what = "file"
                    told = "it is missing" if size is None else "a folder is in its place"
                self.tell(what, path, told, name, block, self._rows_of(state, name, block))
            self.found.files += len(blocks)
            self.found.leftovers += [f"{name}/{rest}" for rest in sorted(there)]
        self.found.bytes = total = sum(size for *_, size in committed)
        if self.level == "quick":
            return
        done = 0
        work = prefetch(lambda one: self._shard(state, *one), committed, _READERS, _READERS + 1)
        for (*_, size), finding in zip(committed, work, strict=True):
            self.found.findings += [finding] if finding else []
            done += size
            self.on_progress(done, total)

    def _shard(
        self, state: StoreState, spec: ArraySpec, block: int, path: str, size: int
    ) -> Finding | None:
        """Verify every byte of a shard."""
        array, name = state.log.arrays[spec.name], spec.name
        rows = self._rows_of(state, name, block)

        def finding(what: str, told: str, damaged: Iterable[int] = ()) -> Finding:
            return Finding(what, path, told, name, block, tuple(damaged))

        try:
            data = memoryview(self.storage.read(path, size))
            if len(data) < size:
                raise DamageError(f"it has {len(data)} bytes by now")
        except (FileNotFoundError, DamageError) as error:  # since its size was asked for
            return finding("file", str(error), rows)
        damaged = []
        for position, row in enumerate(rows):
            start, stop = spec.extent(position)
            crc = int(array.crc32c[row])
            if crc32c(data[start:stop]) != crc or data[stop : stop + 4] != _packed(crc):
                damaged.append(row)
        index = spec.index(len(rows), state.identity.block_rows)
        if damaged:
            told = f"{len(damaged)} of its {len(rows)} rows fail their checksums"
            return finding("row", told, damaged)
        if data[len(data) - len(index) - 4 :] != index + _packed(crc32c(index)):
            return finding("index", "its index is damaged")
        if data[:KEY_BYTES] != self.keys[name, block]:
            return finding("key", "its key is not that of the rows that were committed")
        if self.level == "deep" and hashlib.sha256(data).digest() != bytes(array.sha256[block]):
            return finding("sha256", "its sha256 is not the committed one")
        return None

    @staticmethod
    def _rows_of(state: StoreState, name: str, block: int) -> tuple[int, ...]:
        first, size = block * state.identity.block_rows, state.identity.block_rows
        listed = state.log.arrays[name].committed[first : first + size]
        return tuple((first + np.flatnonzero(listed)).tolist())

    def _count(self, state: StoreState) -> None:
        assert state.table is not None
        found, arrays = self.found, state.log.arrays.values()
        committed, ok = state.marked("committed"), state.marked("ok")
        found.rows = len(state.table)
        found.missing, found.ok = int((~committed).sum()), int((committed & ok).sum())
        found.quarantined = found.rows - found.missing - found.ok
        if arrays:
            there = np.logical_or.reduce([array.sequence >= 0 for array in arrays])
            found.blocks, found.superseded = int(there.sum()), state.superseded


def _packed(crc: int) -> bytes:
    return crc.to_bytes(4, "little")
