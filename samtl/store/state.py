"""What a store is at a moment: its fingerprint, its newest sample table and its log, read once and shared.

The log is folded into arrays over the rows. A large store keeps such arrays in a pack, so that it opens quickly.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from samtl.errors import DamageError
from samtl.store import log, samples
from samtl.store.fingerprint import Identity, read_identity
from samtl.store.format import ROOT
from samtl.store.log import LogState, OnDamage, Place, Record
from samtl.store.samples import SampleTable
from samtl.store.storage import IDENTITY, Storage


@dataclass
class StoreState:
    """What a store is at a moment: read once, and kept up to date by the writer that holds it."""

    storage: Storage
    identity: Identity
    table: SampleTable
    log: LogState
    unpacked: int = 0  # records that no pack has

    @property
    def snapshot(self) -> str:
        """Name what is committed: the sha256 over the records' sorted checksums and the table's digest."""
        text = "".join(sorted(self.log.records.values()))
        return hashlib.sha256(f"{text}{self.table.about.digest}".encode()).hexdigest()

    @property
    def required(self) -> tuple[str, ...]:
        """Arrays that every row must be in: those with a record, and the masks of a segmentation."""
        found = [name for name in self.identity.arrays if name in self.log.arrays]
        if found and self.table.about.task == "segmentation" and "mask" not in found:
            found.append("mask")
        return tuple(found)

    @property
    def superseded(self) -> int:
        """Number of rows with a record that the table lists no longer."""
        found = np.zeros(self.log.rows, bool)
        for state in self.log.arrays.values():
            found |= state.committed
        found[self.table.rows] = False
        return int(found.sum())

    def marked(self, field: str, arrays: Iterable[str] = ()) -> NDArray[np.bool_]:
        """Mark the listed rows that are `committed` or `ok` in each of some arrays, by default the required ones."""
        rows, names = self.table.rows, tuple(arrays) or self.required
        found = np.full(len(rows), bool(names))
        for name in names:
            state = self.log.arrays.get(name)
            found &= False if state is None else getattr(state, field)[rows]
        return found


def begun(storage: Storage, identity: Identity) -> StoreState:
    """Return the state of a store without a table: its writer has yet to create one, or was killed before."""
    return StoreState(storage, identity, samples.NO_TABLE, LogState(identity.block_rows, 0))


def load_state(
    storage: Storage,
    tell: OnDamage = log.refuse,
    on_record: Callable[[Record], None] | None = None,
) -> StoreState | None:
    """Read what a store is; None if there is none.

    DamageError if the fingerprint, the newest table or a record is damaged, missing, or another store's; or else `tell`
    is called for each, and the state is what can be trusted: of a block, the records before the first damaged one; None
    without fingerprint or table. `on_record` is called with each record, none of which comes from the pack then.
    """
    try:
        identity = read_identity(storage)
        if identity is None and (storage.list(log.LOG) or storage.list(samples.FOLDER)):
            identity = read_identity(storage)  # another writer may be creating it
            if identity is None:
                where = f"{storage.url}/{IDENTITY}"
                raise DamageError(f"{where} is missing: take it from a copy of the store")
    except DamageError as error:
        tell("identity", IDENTITY, error)
        return None
    if identity is None:
        return None
    # Others may write meanwhile. The metadata and the pack come first: no table is older than those that they follow
    # from, and no record is younger than a pack that has it. The table comes last, and knows the rows of all records.
    told = read_root(storage).table
    pack = LogState(identity.block_rows, 0)
    if on_record is None:
        with suppress(FileNotFoundError, DamageError):  # a damaged one says nothing
            pack = LogState.unpack(storage.read(log.PACK), identity)
    places = log.record_places(storage, tell)
    numbers = samples.table_numbers(storage)
    if not numbers and not places:
        return begun(storage, identity)
    number = max(numbers, default=0)
    try:
        table = samples.read_table(storage, identity, number)
    except DamageError as error:
        tell("rows", samples.table_name(number), error)
        return None
    if not pack.records.keys() <= set(places):
        pack = LogState(identity.block_rows, 0)
    rest = [place for place in places if place not in pack.records]
    state = StoreState(storage, identity, table, pack.grown(table.about.rows_end), len(rest))
    _fold(state, rest, tell, on_record or (lambda record: None))
    try:
        check_table(state, told)
    except DamageError as error:
        tell("rows", table.path, error)
    return state


def _fold(
    state: StoreState, places: list[Place], tell: OnDamage, on_record: Callable[[Record], None]
) -> None:
    """Fold the records of each block up to the first that cannot be trusted."""
    bad = None

    def read(place: Place) -> Record | DamageError | FileNotFoundError:
        try:
            return log.read_record(state.storage, state.identity, *place)
        except (DamageError, FileNotFoundError) as error:
            return error

    for place, record in zip(places, state.storage.each(read, places), strict=True):
        if place[0] == bad:
            continue
        try:
            if not isinstance(record, Record):
                raise record
            state.log.add(record, state.storage.url)
        except (DamageError, FileNotFoundError) as error:
            bad = place[0] if place[0] < state.log.blocks else None
            tell("record", log.record_name(*place), error, "", bad)
        else:
            on_record(record)


class Root(NamedTuple):
    """What the root's `zarr.json` says of the table and log that it was derived from, and of the arrays there."""

    table: int = 0
    snapshot: str = ""
    arrays: frozenset[str] = frozenset()


def read_root(storage: Storage) -> Root:
    """Read the root's metadata; a `Root` without content if it is missing or damaged."""
    try:
        found = msgspec.json.decode(storage.read(ROOT))
        told, arrays = found["attributes"], found["consolidated_metadata"]["metadata"]
        content = (told["samtl_table"], told["samtl_snapshot"], frozenset(arrays))
        return msgspec.convert(content, Root)
    except (FileNotFoundError, DamageError, ValueError, LookupError, TypeError, RecursionError):
        return Root()  # derived: the next writer writes it again


def check_table(state: StoreState, told: int = 0) -> None:
    """Raise DamageError if the table contradicts the log, or is older than table `told` of the metadata."""
    table = state.table
    where = f"{state.storage.url}/{table.path}"
    rows, digests = table.rows, table.digests()
    # As numbers of 64 bits, since comparing a million digests by bytes is slow.
    other = (state.log.images.view(np.uint64)[rows] != digests.view(np.uint64)).any(axis=1)
    wrong = np.flatnonzero(other)
    wrong = wrong[digests[wrong].any(axis=1) & state.log.good(rows[wrong])]
    if len(wrong):
        raise DamageError(
            f"{where}: row {rows[wrong[0]]} was made from another image than the table names; take the right table "
            "from a copy of the store"
        )
    for name, array in state.log.arrays.items():
        lost = (array.sequence[rows // state.log.block_rows] >= 0) & ~array.committed[rows]
        if lost.any():
            raise DamageError(
                f"{where} lists row {rows[lost][0]}, which the record of its block in {name} does not have"
            )
    if told > table.about.number:
        raise DamageError(
            f"{where} is older than the table {told} that {ROOT} was written for: the store was not copied whole; take "
            "the newest table from a copy"
        )


@dataclass(frozen=True)
class Quarantined:
    """A row that holds nothing because its image could not be used."""

    row: int
    sample_id: str
    code: str
    reason: str

    def __str__(self) -> str:
        return f"quarantined {self.sample_id}: {self.code}: {self.reason}"


@dataclass(frozen=True)
class ArraySummary:
    """One array: its shape over the listed rows, its committed rows, and the bytes of its shards."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    rows: int
    bytes: int


@dataclass(frozen=True)
class Summary:
    """What `samtl info` shows."""

    rows: int  # that are listed
    ok: int  # that hold an embedding in every array
    missing: int  # that are not yet committed in every array
    superseded: int  # that are not listed any more: their images were removed or changed
    per_class: dict[str, int]
    arrays: tuple[ArraySummary, ...]
    quarantined: tuple[Quarantined, ...]
    bytes: int  # of all committed shards
    about: dict[str, Any]  # names and digests: store, dataset, encoder, weights and so on

    def to_json(self) -> dict[str, object]:
        """Return the summary as JSON values."""
        content = asdict(self)
        return {**content.pop("about"), **content}


def quarantined(state: StoreState) -> tuple[Quarantined, ...]:
    """List the listed rows whose images could not be used, numbered as in the table."""
    table, found = state.table, []
    for place, codes in sorted(state.log.codes.items()):
        row = int(table.position[place]) if place < len(table.position) else -1
        if row >= 0:
            code = next((code for code in reversed(codes) if code != log.UNLISTED), log.UNLISTED)
            found.append(Quarantined(row, table.samples[row], code, codes[code]))
    return tuple(found)
