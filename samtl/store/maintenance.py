"""What deletes files of a store: repair and compaction. Nobody may write to the store meanwhile."""

from __future__ import annotations

import itertools
import re
import shutil
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa

from samtl._io import TEMPORARY, AtomicFolder
from samtl._runtime import hash_order
from samtl.errors import DamageError, InputError, ResourceError, writing
from samtl.store import log, samples
from samtl.store.format import COORDINATES, ROOT
from samtl.store.reader import Store, open_store
from samtl.store.samples import SampleTable
from samtl.store.state import StoreState, load_state
from samtl.store.storage import FOLDER, IDENTITY, DiskStorage, Storage, folder_in_place, locate
from samtl.store.verify import LISTS, Checked, OnProgress
from samtl.store.writer import Writer, open_writer

ASIDE = ".damaged"
_TEMPORARY = re.compile(rf"{re.escape(TEMPORARY)}(probe-)?[0-9a-f]{{32}}")
_SPARE = 1.02  # of the bytes to be written, for folders and records
# What records go on saying of the rows.
_TOLD = ("versions", "device", "engine", "closeness", "batch_size")


@dataclass
class Repaired:
    """What a repair did.

    `set_aside` are records and tables that are in `.damaged/` now; `removed` are shards that are to be written again,
    leftovers and the pack; `withdrawn` are the arrays of each block that the next pass has to write again.
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

    Nobody may write to the store meanwhile. Raises DamageError, and changes nothing, if the lists that everything
    refers to are damaged, since only a copy of the store has them; or if a folder is in the place of a file, since what
    it holds belongs to somebody.
    """
    done, state, findings = Repaired(), checked.state, checked.findings
    for one in findings:
        if one.what in LISTS:
            raise DamageError(
                f"{storage.url}/{one.path} cannot be repaired ({one.told}), since nothing else says what the rows are: "
                "take it from a copy of the store, or embed again under another name"
            )
        folder, _, name = one.path.rpartition("/")
        if storage.list(folder).get(name) == FOLDER:
            raise folder_in_place(f"{storage.url}/{one.path}")
    if state is None:
        return done
    first: dict[int, int] = {}  # damaged block to the sequence of the first record that has to go
    for one in findings:
        if one.block is not None:
            array = state.log.arrays.get(one.array)
            sequence = int(array.sequence[one.block]) if array else state.log.next(one.block)
            first[one.block] = min(sequence, first.get(one.block, sequence))
    # The last first, so that no record is ever without the ones before it.
    places = reversed(log.record_places(storage, lambda *damage: None))
    aside = [log.record_name(*one) for one in places if one[1] >= first.get(one[0], one[1] + 1)]
    aside += [one.path for one in findings if one.what in ("record", "table")]
    removed = [log.PACK] if findings else []
    for block, sequence in first.items():
        done.withdrawn[block] = lost = [
            name for name, one in state.log.arrays.items() if one.sequence[block] >= sequence
        ]
        removed += [state.identity.arrays[name].shard_path(block) for name in lost]
    for name in aside:
        with suppress(FileNotFoundError):
            _set_aside(storage, name)
            done.set_aside.append(name)
    # What is no file of a store's is somebody's.
    left = (name for name in checked.leftovers if name != ROOT and _is_own(name, state))
    for name in [*removed, *left]:
        if storage.size(name) is not None:
            storage.delete(name)
            done.removed.append(name)
    now = load_state(storage)
    if now is not None and (findings or ROOT in checked.leftovers):
        # It says that what else is derived is up to date; there is none without a table.
        storage.delete(ROOT)
        Writer(now, tuple(now.log.arrays)).derive()
        done.rewritten = [one.path for one in findings if one.what == "metadata"]
    return done


def _set_aside(storage: Storage, name: str) -> None:
    """Move a file to `.damaged/`, under a name that is free."""
    content = storage.read(name)
    for number in itertools.count():
        with suppress(FileExistsError):
            storage.create(f"{ASIDE}/{name.rpartition('/')[2]}.{number}", [content])
            break
    storage.delete(name)


@dataclass(frozen=True)
class Compacted:
    """What `compact` did."""

    store: Path
    rows: int  #: of the store
    dropped: int  #: rows that are not there any more
    bytes_before: int  #: of all shards
    bytes_after: int
    snapshot: str  #: what is committed now
    rewritten: bool  #: False if there was nothing to drop, and every row was in its place

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
    state, before = source.state, _shard_bytes(source.state)
    order, rows = hash_order(source.sample_ids), state.table.rows.tolist()
    if order == rows == [*range(len(rows))] and not state.superseded:
        return Compacted(path, len(source), 0, before, before, state.snapshot, rewritten=False)
    if source.missing:
        raise InputError(
            f"{path} is not complete, {source.missing} of its rows are not in every array: run samtl embed first"
        )
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path).as_posix()
        if not (file.is_dir() and not file.is_symlink()) and not _is_own(name, state):
            raise InputError(f"{file} does not belong to the store: move it elsewhere first")
    free = shutil.disk_usage(path).free
    if before * _SPARE > free:
        raise ResourceError(
            f"a second store of {before / 2**30:.2f} GiB is needed beside {path} for a while, and its disk has "
            f"{free / 2**30:.2f} GiB free"
        )
    remedy = "make room; the store is as it was"
    with writing(f"into {path.parent}", remedy), AtomicFolder(path.parent) as folder:
        after = _copy(source, order, folder.path, on_progress)
        for name in state.identity.files:
            shutil.copyfile(path / name, folder.path / name)
        if (path / ASIDE).is_dir():
            shutil.copytree(path / ASIDE, folder.path / ASIDE)
        folder.publish(path.name, replace=True)
    return Compacted(
        path, len(source), state.superseded, before, _shard_bytes(after), after.snapshot, True
    )


def _is_own(name: str, state: StoreState) -> bool:
    """Whether a path in a store's folder is one that samtl gives to a file, so that no user's can be there."""
    folder, _, file = name.rpartition("/")
    if _TEMPORARY.fullmatch(file) or name in (IDENTITY, ROOT, log.PACK, *state.identity.files):
        return True
    forms = {
        log.LOG: r"\d+\.\d+\.json",
        samples.FOLDER: r"\d{6,}\.parquet",
        ASIDE: ".*",
        **dict.fromkeys((*state.identity.arrays, *COORDINATES), r"zarr\.json|c(\.\d+)+"),
    }
    return folder in forms and re.fullmatch(forms[folder], file) is not None


def _shard_bytes(state: StoreState) -> int:
    return sum(int(array.size.sum()) for array in state.log.arrays.values())


def _copy(
    source: Store, order: list[int], place: Path, on_progress: OnProgress | None
) -> StoreState:
    """Write the listed rows to a new store, with a record for the arrays in which the same rows of a block are ok."""
    old = source.state.table
    columns = old.columns.take(pa.array(order, pa.int64()))
    columns = columns.set_column(0, columns.schema.field("row"), pa.array(range(len(old))))
    table = SampleTable(msgspec.structs.replace(old.about, rows_end=len(old)), columns)
    identity = msgspec.structs.replace(source.state.identity, store_id=uuid.uuid4().hex)
    told = {key: value for one in source.writers() for key, value in one.items() if key in _TOLD}
    writer = open_writer(DiskStorage(place), identity, table, source.arrays, told)
    bad = {one.row: one for one in source.quarantined}
    good = {name: source.valid(name) for name in source.arrays}
    for block in range(writer.blocks):
        here = writer.block_rows(block)
        rows = order[here.start : here.stop]
        images = [source.image_sha256(row) for row in rows]
        masks = [source.mask_sha256(row) for row in rows]
        alike: dict[tuple[bool, ...], dict[str, list[np.ndarray]]] = {}
        for name in source.arrays:
            ok = tuple(good[name][rows].tolist())
            alike.setdefault(ok, {})[name] = [source.row(name, row) for row in rows]
        for ok, arrays in alike.items():
            pairs = list(zip(here, rows, ok, strict=True))
            writer.write_block(
                block,
                arrays,
                [log.OK if fine else f"{log.QUARANTINED}{bad[row].code}" for _, row, fine in pairs],
                {at: bad[row].reason for at, row, fine in pairs if not fine},
                images,
                masks if "mask" in arrays else (),
            )
        if on_progress:
            on_progress(here.stop, len(old))
    return writer.finish()
