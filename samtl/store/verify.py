"""Every file of a store compared with what is committed.

What cannot be trusted is treated as if it were missing: of a block with a damaged record, neither that record nor a
later one says anything. A check changes nothing, and can go on beside writers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from samtl._io import TEMPORARY
from samtl._runtime import prefetch
from samtl.errors import DamageError, InputError
from samtl.store import log, samples
from samtl.store.coordinates import compare_derived
from samtl.store.format import KEY_BYTES, ROOT, ArraySpec, check_shard
from samtl.store.state import StoreState, load_state
from samtl.store.storage import FOLDER, Storage, open_storage

LISTS = ("identity", "rows", "encoder")  # findings about what everything else refers to
LEVELS = ("quick", "rows", "deep")
_SHARDS = ("row", "index", "key", "sha256")
_READERS = 2  # shards that are read and summed at a time

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class Finding:
    """Something that is not as it was committed.

    `what` is `identity`, `encoder` (its weights), `rows` (the newest sample table), `table` (an older one), `metadata`,
    `record`, `pack`; of shards `file`, `size`, `row`, `index`, `key`, `sha256`.
    """

    what: str
    path: str  # relative to the store
    told: str  # what was expected and what is there
    array: str = ""  # which one is damaged, if it is one
    block: int | None = None
    damaged_rows: tuple[int, ...] = ()  # of the arrays, if that is known


@dataclass
class Checked:
    """Result of a check."""

    findings: list[Finding] = field(default_factory=list)
    rows: int = 0  # that the newest table lists
    ok: int = 0  # of these, with an embedding in every array
    quarantined: int = 0  # with an image that could not be used
    missing: int = 0  # not committed in every array
    superseded: int = 0  # committed rows that the newest table does not list
    begun: bool = True  # False if a pass was stopped before it wrote which images the rows are
    blocks: int = 0  # that are committed
    files: int = 0  # shards of these
    bytes: int = 0
    #: Files of an interrupted pass that nothing commits; the next pass uses or replaces them, a repair deletes them.
    leftovers: list[str] = field(default_factory=list)
    state: StoreState | None = None  # what can be trusted of the store

    def to_json(self) -> dict[str, object]:
        """Return the result as JSON values."""
        content = {name: value for name, value in vars(self).items() if name != "state"}
        return {**content, "findings": [asdict(one) for one in self.findings]}


def check(
    place: str | Path | Storage, level: str = "rows", on_progress: OnProgress | None = None
) -> Checked:
    """Compare every file of a store with what is committed; InputError if there is none, or one of another format.

    The level `quick` reads the lists and records, and compares the sizes of shards; `rows` reads every shard and
    verifies every row, index and key; `deep` also the sha256 of every shard. `on_progress` is called with the bytes of
    shards read, and those to be read.
    """
    if level not in LEVELS:
        raise InputError(f"a check is one of {', '.join(LEVELS)}, got {level!r}")
    storage = open_storage(place) if isinstance(place, (str, Path)) else place
    before = _listed(storage)
    found = _Check(storage, level, on_progress).run()
    if found.state is None and not found.findings:
        raise InputError(f"{storage.url} is no samtl store; expected a folder NAME.zarr")
    if found.findings and _listed(storage) != before:
        # A pass wrote meanwhile, and may have replaced what was compared. What it committed never changes.
        now = _Check(storage, "quick").run()
        stores = {one.state.identity.store_id for one in (now, found) if one.state}
        if len(stores) == 1:  # else it was compacted
            now.findings += [one for one in found.findings if one.what in _SHARDS]
        return now
    return found


def _listed(storage: Storage) -> tuple[object, ...]:
    """What every pass changes."""
    return tuple(storage.list(folder) for folder in ("", log.LOG, samples.FOLDER))


class _Check:
    """One check: what it has found and what it trusts so far."""

    def __init__(self, storage: Storage, level: str, on_progress: OnProgress | None = None) -> None:
        self.storage, self.level, self.on_progress = storage, level, on_progress
        self.found = Checked()
        self.keys: dict[tuple[str, int], bytes] = {}  # of the shards, by array and block

    def tell(self, what: str, path: str, told: object, *where: Any) -> None:
        text = str(told).removeprefix(f"{self.storage.url}/{path}").lstrip(": ")
        self.found.findings.append(Finding(what, path, text, *where))

    def seen(self, record: log.Record) -> None:
        for name in record.arrays:
            self.keys[name, record.block] = log.block_key(record, name)

    def run(self) -> Checked:
        storage, found = self.storage, self.found
        found.state = state = load_state(storage, self.tell, self.seen)
        if state is None:
            return found
        found.begun = state.table.about.number >= 0
        if not found.begun:
            return found
        if self.level != "quick":
            self._older_tables(state)
        if not any(one.what == "rows" for one in found.findings):
            damaged, stale = compare_derived(state)
            found.leftovers += [ROOT] * stale
            for name, told in damaged.items():
                self.tell("metadata", name, told)
        self._files(state)
        self._pack(state)
        self._shards(state)
        committed, ok = state.marked("committed"), state.marked("ok")
        found.rows, found.ok, found.missing = len(ok), int(ok.sum()), int((~committed).sum())
        found.quarantined = found.rows - found.missing - found.ok
        found.blocks = len({block for block, _ in state.log.records})
        found.superseded = state.superseded
        folders = {name for name, size in storage.list().items() if size == FOLDER}
        for folder in ("", *sorted(folders - state.identity.arrays.keys())):
            left = sorted(name for name in storage.list(folder) if name.startswith(TEMPORARY))
            found.leftovers += [f"{folder}/{name}".lstrip("/") for name in left]
        return found

    def _files(self, state: StoreState) -> None:
        """Compare the files that the identity names with their sha256."""
        for name, expected in state.identity.files.items():
            try:
                if hashlib.sha256(self.storage.read(name)).hexdigest() != expected:
                    raise DamageError("it is not the file that the store was begun with")
            except FileNotFoundError:
                self.tell("encoder", name, "it is missing")
            except DamageError as error:
                self.tell("encoder", name, error)

    def _older_tables(self, state: StoreState) -> None:
        after = state.table.about
        for number in reversed(samples.table_numbers(self.storage)):
            if number >= state.table.about.number:
                continue
            try:
                about = samples.read_table(self.storage, state.identity, number).about
                # A table between them may be damaged, or was set aside.
                if number == after.number - 1 and about.digest != after.follows:
                    raise DamageError("it is not the one before the next one")
            except DamageError as error:
                self.tell("table", samples.table_name(number), error)
            else:
                after = about

    def _pack(self, state: StoreState) -> None:
        """Compare the pack with the records that it holds."""
        try:
            pack = log.LogState.unpack(self.storage.read(log.PACK), state.identity)
            again = log.LogState(state.identity.block_rows, pack.rows)
            for place in sorted(pack.records):
                again.add(log.read_record(self.storage, state.identity, *place), self.storage.url)
            if not again.same(pack):
                raise DamageError("it does not say what the records say")
        except (DamageError, FileNotFoundError) as error:
            if isinstance(error, DamageError) or self.storage.size(log.PACK) is not None:
                self.tell("pack", log.PACK, error)

    def _shards(self, state: StoreState) -> None:
        """Compare the shards with their records."""
        committed: list[tuple[ArraySpec, int, int]] = []
        for name, spec in state.identity.arrays.items():
            there = self.storage.list(name)
            there.pop(ROOT, None)
            array = state.log.arrays.get(name)
            blocks = np.flatnonzero(array.sequence >= 0).tolist() if array else []
            for block in blocks:
                path, expected = spec.shard_path(block), int(state.log.arrays[name].size[block])
                size = there.pop(path.rpartition("/")[2], None)
                what, told = "size", f"it has {size} bytes, and {expected} were committed"
                if size is None:
                    what, told = "file", "it is missing"
                elif size == FOLDER:
                    what, told = "file", "a folder is in its place"
                elif size == expected:
                    committed.append((spec, block, size))
                    continue
                self.tell(what, path, told, name, block, _rows(state, name, block))
            self.found.files += len(blocks)
            self.found.leftovers += [f"{name}/{rest}" for rest in sorted(there)]
        self.found.bytes = total = sum(size for *_, size in committed)
        if self.level == "quick":
            return
        done = 0
        work = prefetch(lambda one: self._shard(state, *one), committed, _READERS, _READERS + 1)
        for (spec, block, size), (what, told, damaged) in zip(committed, work, strict=True):
            if what:
                self.tell(what, spec.shard_path(block), told, spec.name, block, damaged)
            done += size
            if self.on_progress:
                self.on_progress(done, total)

    def _shard(
        self, state: StoreState, spec: ArraySpec, block: int, size: int
    ) -> tuple[str, str, tuple[int, ...]]:
        """Verify every byte of a shard; return what does not hold, or "", in words, and the damaged rows."""
        array, rows = state.log.arrays[spec.name], _rows(state, spec.name, block)
        try:
            data = memoryview(self.storage.read(spec.shard_path(block), size))
        except (FileNotFoundError, DamageError) as error:  # since its size was asked for
            return "file", str(error), rows
        sums, wrong, whole = check_shard(spec, data, len(rows), state.identity.block_rows)
        damaged = [r for at, r in enumerate(rows) if at in wrong or sums[at] != array.crc32c[r]]
        if damaged:
            told = f"{len(damaged)} of its {len(rows)} rows fail their checksums"
            return "row", told, tuple(damaged)
        if not whole:
            return "index", "its index is damaged", ()
        if data[:KEY_BYTES] != self.keys[spec.name, block]:
            return "key", "its key is not that of the rows that were committed", ()
        if self.level == "deep" and hashlib.sha256(data).digest() != bytes(array.sha256[block]):
            return "sha256", "its sha256 is not the committed one", ()
        return "", "", ()


def _rows(state: StoreState, name: str, block: int) -> tuple[int, ...]:
    """Rows that a record commits for a block of an array."""
    first, size = block * state.identity.block_rows, state.identity.block_rows
    committed = state.log.arrays[name].committed[first : first + size]
    return tuple((first + np.flatnonzero(committed)).tolist())
