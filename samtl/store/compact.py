"""A store written anew without the rows that no longer count."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from samtl.errors import InputError, ResourceError
from samtl.store import durable
from samtl.store.find import locate
from samtl.store.fingerprint import Fingerprint, read_fingerprint
from samtl.store.layout import BLOCK_ROWS
from samtl.store.log import Record, committed, read_log
from samtl.store.reader import Store, open_store
from samtl.store.rows import Rows, read_rows
from samtl.store.writer import StoreWriter, locked, open_writer

SPARE = 1.02  # of the bytes to be written, for folders and records
_TOLD = (
    "versions",
    "device",
    "engine",
    "batch_size",
)  # what records go on saying of how rows were made


@dataclass(frozen=True)
class Compacted:
    """What was done.

    Attributes
    ----------
    store : Path
    rows : int
        That the store has.
    dropped : int
        That it does not have any more.
    bytes_before, bytes_after : int
        Of all its shards.
    snapshot : str
        What is committed now.
    """

    store: Path
    rows: int
    dropped: int
    bytes_before: int
    bytes_after: int
    snapshot: str

    def to_json(self) -> dict[str, object]:
        """Give the result as JSON values."""
        return {**asdict(self), "store": str(self.store)}


def compact(
    store: str | Path | None = None,
    on_progress: Callable[[int, int], None] = lambda done, all_of: None,
) -> Compacted:
    """Write a store anew without superseded rows, and put it in the place of the old one.

    The old one stays until the new one is whole and durable; a process that is killed leaves one of them in the store's
    place, or between the two renames neither, and the next call that names the store puts that right. Every row's
    checksum is compared on the way. Rows keep their order, and their embeddings to the bit. Programs that have the
    store open must open it again: they would find its files to be others.

    Parameters
    ----------
    store : path, optional
        By default the only one in the cache folder.
    on_progress : callable, optional
        Called with the rows that are written, and those that are to be.

    Returns
    -------
    Compacted
        Where every row counts nothing is done.

    Raises
    ------
    InputError
        Where there is no store, or it has rows that are not embedded yet.
    LockedError
        Where another process writes to it.
    DamageError
        Where a row is not what was committed.
    ResourceError
        Where the disk has no room for both.
    """
    if store is not None:
        _recover(Path(store).absolute())
    path = locate(store).resolve()
    with locked(path):
        new = _beside(path)
        for left in (new, _old(new)):  # of a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        opened, listed = open_store(path), read_rows(path)
        before = opened.summary().bytes
        if len(listed.current) == len(listed):
            return Compacted(path, len(opened), 0, before, before, opened.snapshot)
        if opened.missing:
            raise InputError(
                f"{path} is not complete, {opened.missing} of its rows are not embedded yet: run samtl embed first"
            )
        free = shutil.disk_usage(path).free
        wanted = (
            before * len(listed.current) // max(len(listed.current) + len(listed.superseded), 1)
        )
        if wanted * SPARE > free:
            raise ResourceError(
                f"a second store of {wanted / 2**30:.2f} GiB is needed beside {path} for a while, and its disk has "
                f"{free / 2**30:.2f} GiB free"
            )
        _copy(opened, listed, new, on_progress)
        durable.replace_folder(new, path)
        durable.sync_folder(path.parent)
        after = open_store(path)
        return Compacted(
            path, len(after), len(listed.superseded), before, after.summary().bytes, after.snapshot
        )


def _beside(path: Path) -> Path:
    return path.with_name(f"{durable.TEMPORARY}{path.name}")


def _old(new: Path) -> Path:
    """Where `durable.replace_folder` keeps the old store until the new one is in its place."""
    return new.with_name(f"{new.name}-old")


def _recover(path: Path) -> None:
    """Put a store in its place that a killed process left beside it."""
    if path.exists():
        return
    new = _beside(path)
    old = _old(new)
    if old.is_dir() and new.is_dir():  # the new one was whole before the old one was moved
        new.rename(path)
        durable.sync_folder(path.parent)
        shutil.rmtree(old, ignore_errors=True)


def _copy(source: Store, listed: Rows, new: Path, on_progress: Callable[[int, int], None]) -> None:
    identity = read_fingerprint(source.path)
    rows = Rows(
        listed.dataset,
        listed.classes,
        source.sample_ids,
        tuple(source.labels.tolist()),
        listed.note,
        listed.task,
        source.groups,
        source.parts,
    )
    state = committed(read_log(source.path))
    fingerprint = Fingerprint.from_dict(identity["fingerprint"])
    with open_writer(
        new, fingerprint, identity["about"], rows, identity["columns"], source.arrays
    ) as writer:
        for block in range(writer.blocks):
            here = writer.block_rows(block)
            _copy_block(source, [listed.current[row] for row in here], here, state, writer)
            on_progress(here.stop, len(rows))


def _copy_block(
    source: Store,
    places: Sequence[int],
    here: range,
    state: Mapping[str, Mapping[int, Record]],
    writer: StoreWriter,
) -> None:
    """Write a block: a record for the arrays that have one status in each of its rows."""
    together: dict[tuple[str, ...], list[str]] = {}
    for name in source.arrays:
        statuses = tuple(_of(state, name, place)[0] for place in places)
        together.setdefault(statuses, []).append(name)
    for statuses, names in together.items():
        reasons, images, masks = {}, [], []
        for row, place in zip(here, places, strict=True):
            _, record = _of(state, names[0], place)
            if "mask" in names:
                known = state["mask"][place // BLOCK_ROWS].mask_sha256
                masks.append(known[place % BLOCK_ROWS] if known else "")
            images.append(source.image_sha256(row))
            if str(place) in record.reasons:
                reasons[row] = record.reasons[str(place)]
        told = {key: record.writer[key] for key in _TOLD if key in record.writer}
        arrays = {name: [source.row(name, row) for row in here] for name in names}
        writer.write_block(here.start // BLOCK_ROWS, arrays, statuses, reasons, images, told, masks)


def _of(state: Mapping[str, Mapping[int, Record]], array: str, place: int) -> tuple[str, Record]:
    """Give the status of a row in an array, and the record that says so."""
    block, position = divmod(place, BLOCK_ROWS)
    record = state[array][block]
    return record.status[position], record
