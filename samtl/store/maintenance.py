"""What deletes files of a store: repair and compaction. Nobody may write to the store meanwhile."""

from __future__ import annotations

import functools
import itertools
import shutil
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from samtl._io import AtomicFolder
from samtl._runtime import hash_order
from samtl.errors import DamageError, InputError, ResourceError
from samtl.store.coordinates import derived
from samtl.store.fingerprint import FILE
from samtl.store.format import COORDINATES, ROOT
from samtl.store.log import LOG, Record, read_record, record_name, record_place
from samtl.store.reader import Store, open_store
from samtl.store.samples import FOLDER, SampleTable
from samtl.store.state import StoreState, load_state, pack_name, pack_numbers
from samtl.store.storage import FOLDER as IS_FOLDER
from samtl.store.storage import TEMPORARY, DiskStorage, Storage, folder_in_place, locate
from samtl.store.verify import LISTS, Checked, Finding, OnProgress
from samtl.store.writer import Writer, open_writer

ASIDE = ".damaged"
_SPARE = 1.02  # of the bytes to be written, for folders and records
_TOLD = (
    "versions",
    "device",
    "engine",
    "batch_size",
)  # what records go on saying of how rows were made


@dataclass
class Repaired:
    """What a repair did.

    Attributes
    ----------
    rewritten : list of str
        Files of metadata.
    set_aside : list of str
        Records and tables that were moved to `.damaged/`.
    removed : list of str
        Shards that are to be written again, leftovers and packs.
    withdrawn : dict
        Block to the arrays that the next pass has to write again.
    """

    rewritten: list[str] = field(default_factory=list)
    set_aside: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    withdrawn: dict[int, list[str]] = field(default_factory=dict)

    @property
    def blocks(self) -> int:
        """How many blocks the next pass has to redo at least a part of."""
        return len(self.withdrawn)


def repair(storage: Storage, checked: Checked) -> Repaired:
    """Fix what needs no encoder, and remove the rest, so that the next pass writes exactly that again.

    Parameters
    ----------
    storage : Storage
        Nobody may write to the store meanwhile.
    checked : Checked

    Raises
    ------
    DamageError
        If the lists that everything refers to are damaged: only a copy of the store has them. If a folder is in the
        place of a file: what it holds belongs to somebody. Nothing is changed then.
    """
    for finding in checked.findings:
        if finding.what in LISTS:
            raise DamageError(
                f"{storage.url}/{finding.path} cannot be repaired ({finding.told}), since nothing else says what the "
                "rows are: take it from a copy of the store, or embed again under another name"
            )
        folder, _, name = finding.path.rpartition("/")
        if storage.list(folder).get(name) == IS_FOLDER:
            raise folder_in_place(f"{storage.url}/{finding.path}")
    done = Repaired()
    state = checked.state
    if state is None:
        return done
    _remove(
        storage,
        [pack_name(number) for number in pack_numbers(storage)] if checked.findings else [],
        done,
    )
    for block, sequence in _first_to_redo(state, checked.findings).items():
        known = block < state.log.blocks
        lost = [
            name
            for name, array in state.log.arrays.items()
            if known and array.sequence[block] >= sequence
        ]
        places = (record_place(name) for name in storage.list(LOG))
        later = sorted(
            place[1] for place in places if place and place[0] == block and place[1] >= sequence
        )
        # The last first, so that no record is ever without the ones before it.
        _set_aside(storage, [record_name(block, number) for number in reversed(later)], done)
        _remove(storage, [state.identity.arrays[name].shard_path(block) for name in lost], done)
        if known:
            done.withdrawn[block] = lost
    _set_aside(
        storage, [one.path for one in checked.findings if one.what in ("record", "table")], done
    )
    _remove(storage, [name for name in checked.leftovers if name != ROOT], done)
    metadata = [one.path for one in checked.findings if one.what == "metadata"]
    now = load_state(storage)
    if now is not None and (checked.findings or ROOT in checked.leftovers):
        arrays = [
            name
            for name in state.identity.arrays
            if name in now.log.arrays or storage.size(f"{name}/{ROOT}") is not None
        ]
        for name, content in derived(now, arrays).items():
            storage.replace(name, content)
        done.rewritten = metadata
    return done


def _first_to_redo(state: StoreState, findings: Iterable[Finding]) -> dict[int, int]:
    """Map each damaged block to the sequence of the first record that has to go."""
    first: dict[int, int] = {}
    for one in findings:
        if one.block is None:
            continue
        if one.array:
            sequence = int(state.log.arrays[one.array].sequence[one.block])
        else:
            sequence = state.log.next(one.block) if one.block < state.log.blocks else 0
        first[one.block] = min(sequence, first.get(one.block, sequence))
    return first


def _set_aside(storage: Storage, names: Iterable[str], done: Repaired) -> None:
    """Move files to `.damaged/`, under names that are free."""
    for name in names:
        try:
            content = storage.read(name)
        except FileNotFoundError:
            continue
        for number in itertools.count():
            with suppress(FileExistsError):
                storage.create(f"{ASIDE}/{name.rpartition('/')[2]}.{number}", [content])
                break
        storage.delete(name)
        done.set_aside.append(name)


def _remove(storage: Storage, names: Iterable[str], done: Repaired) -> None:
    for name in names:
        if storage.size(name) is not None:
            storage.delete(name)
            done.removed.append(name)


@dataclass(frozen=True)
class Compacted:
    """What `compact` did.

    Attributes
    ----------
    store : Path
    rows : int
        Rows of the store.
    dropped : int
        Rows that are not there any more.
    bytes_before, bytes_after : int
        Of all shards.
    snapshot : str
        What is committed now.
    rewritten : bool
        False if there was nothing to drop, and every row was in its place.
    """

    store: Path
    rows: int
    dropped: int
    bytes_before: int
    bytes_after: int
    snapshot: str
    rewritten: bool

    def to_json(self) -> dict[str, object]:
        """Return the result as JSON values."""
        return {**asdict(self), "store": str(self.store)}


def compact(store: str | Path | None = None, on_progress: OnProgress | None = None) -> Compacted:
    """Write a store again without the rows that its sample table does not list, and exchange the two.

    The old one stays until the new one is complete and durable. Every row's checksum is verified on the way. Rows come
    into the order that they have in a new store, which mixes the classes, and keep their embeddings to the bit.
    Programs that have the store open must open it again, and nobody may write to it meanwhile.

    Parameters
    ----------
    store : path, optional
        By default the only one in the cache folder.
    on_progress : callable, optional
        Called with the rows that are written, and those that are to be.

    Raises
    ------
    InputError
        If there is no store, it has rows that are not embedded yet, or somebody else's files are in its folder.
    DamageError
        If a row is not what was committed.
    ResourceError
        If the disk has no room for both.
    """
    path = locate(store)
    if not isinstance(path, Path):
        raise InputError(
            f"{path} is in a bucket, where no store can take the place of another in one step: copy it to a disk, "
            "compact it there, and copy it back under another name"
        )
    path = path.resolve()
    source = open_store(path)
    state, table = source.state, source.state.table
    assert table is not None
    before, dropped = _shard_bytes(state), state.superseded
    order = hash_order(table.samples)
    in_place = np.array_equal(table.rows, np.arange(len(table))) and order == [*range(len(table))]
    if in_place and not dropped:
        return Compacted(path, len(table), 0, before, before, state.snapshot, rewritten=False)
    if source.missing:
        raise InputError(
            f"{path} is not complete, {source.missing} of its rows are not in every array: run samtl embed first"
        )
    known = {FILE, LOG, FOLDER, ROOT, ASIDE, *state.identity.arrays, *COORDINATES}
    foreign = sorted(
        name
        for name in DiskStorage(path).list()
        if name not in known and not name.startswith(TEMPORARY)
    )
    if foreign:
        raise InputError(
            f"{path / foreign[0]} does not belong to the store: move it elsewhere first"
        )
    free = shutil.disk_usage(path).free
    if before * _SPARE > free:
        raise ResourceError(
            f"a second store of {before / 2**30:.2f} GiB is needed beside {path} for a while, and its disk has "
            f"{free / 2**30:.2f} GiB free"
        )
    try:
        with AtomicFolder(path.parent) as folder:
            after = _copy(source, order, folder.path, on_progress or (lambda done, all_of: None))
            if (path / ASIDE).is_dir():
                shutil.copytree(path / ASIDE, folder.path / ASIDE)
            folder.publish(path.name, replace=True)
    except OSError as error:
        raise ResourceError(
            f"{path.parent} cannot be written: {error.strerror}. The store is as it was"
        ) from error
    return Compacted(
        path, len(table), dropped, before, _shard_bytes(after), after.snapshot, rewritten=True
    )


def _shard_bytes(state: StoreState) -> int:
    return sum(int(array.size.sum()) for array in state.log.arrays.values())


def _copy(source: Store, order: list[int], place: Path, on_progress: OnProgress) -> StoreState:
    state, old = source.state, source.state.table
    assert old is not None
    table = SampleTable.make(
        dataset=old.about.dataset,
        note=old.about.note,
        task=old.about.task,
        classes=old.about.classes,
        rows=range(len(old)),
        samples=_in_order(old.samples, order),
        labels=_in_order(old.labels.tolist(), order),
        groups=_in_order(old.groups, order),
        parts=_in_order(old.parts, order),
        images=_in_order(old.images, order),
    )
    identity = msgspec.structs.replace(state.identity, store_id=uuid.uuid4().hex)
    writer = open_writer(DiskStorage(place), identity, table, source.arrays)

    @functools.lru_cache(4096)
    def records(block: int) -> list[Record]:
        return [
            read_record(state.storage, identity, block, n) for n in range(state.log.next(block))
        ]

    for block in range(writer.blocks):
        here = writer.block_rows(block)
        _copy_block(source, order[here.start : here.stop], here, records, writer)
        on_progress(here.stop, len(old))
    return writer.finish()


def _in_order(values: Sequence[Any], order: list[int]) -> list[Any]:
    return [values[at] for at in order] if len(values) else []


def _copy_block(
    source: Store,
    positions: list[int],
    here: range,
    records: Callable[[int], list[Record]],
    writer: Writer,
) -> None:
    """Write a block, with a record for the arrays in which its rows have the same status."""
    size, table = source.state.identity.block_rows, source.state.table
    assert table is not None
    places = [divmod(int(table.rows[at]), size) for at in positions]
    together: dict[tuple[str, ...], dict[str, list[Record]]] = {}
    for name in source.arrays:
        of = [next(one for one in records(block) if name in one.arrays) for block, _ in places]
        found = tuple(one.status[at] for one, (_, at) in zip(of, places, strict=True))
        # What is known of masks is in the records that commit them.
        together.setdefault((str(name == "mask"), *found), {})[name] = of
    for (_, *status), arrays in together.items():
        reasons: dict[int, str] = {}
        images, masks = [], []
        for row, record, (block, at) in zip(here, next(iter(arrays.values())), places, strict=True):
            images.append(record.image_sha256[at])
            masks.append(record.mask_sha256[at] if "mask" in arrays else "")
            reason = record.reasons.get(str(block * size + at))
            if reason:
                reasons[row] = reason
            writer.about = {key: record.writer[key] for key in _TOLD if key in record.writer}
        rows = {name: [source.row(name, at) for at in positions] for name in arrays}
        block = here.start // size
        writer.write_block(block, rows, status, reasons, images, masks if "mask" in arrays else ())
