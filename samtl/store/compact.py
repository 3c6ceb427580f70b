"""A store written anew without the rows that no longer count."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from samtl._runtime import hash_order
from samtl.errors import InputError, ResourceError
from samtl.store import durable
from samtl.store.find import locate
from samtl.store.fingerprint import Fingerprint, read_fingerprint
from samtl.store.layout import BLOCK_ROWS
from samtl.store.log import Record, committed, read_log
from samtl.store.reader import Store, open_store
from samtl.store.remote import RemotePath
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
    rewritten : bool
        Whether the store was written anew: not where the dataset never changed.
    """

    store: Path
    rows: int
    dropped: int
    bytes_before: int
    bytes_after: int
    snapshot: str
    rewritten: bool

    def to_json(self) -> dict[str, object]:
        """Give the result as JSON values."""
        return {**asdict(self), "store": str(self.store)}


def compact(
    store: str | Path | None = None,
    on_progress: Callable[[int, int], None] = lambda done, all_of: None,
) -> Compacted:
    """Write a store anew without superseded rows, and put it in the place of the old one.

    The old one stays until the new one is whole and durable. Every row's checksum is compared on the way. Rows come
    into the order that they have in a store made from nothing, which mixes the classes, and keep their embeddings to
    the bit. Programs that have the store open must open it again.

    Parameters
    ----------
    store : path, optional
        By default the only one in the cache folder.
    on_progress : callable, optional
        Called with the rows that are written, and those that are to be.

    Returns
    -------
    Compacted
        Where the dataset never changed nothing is done.

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
    path = locate(store).resolve()
    if isinstance(path, RemotePath):
        raise InputError(
            f"{path} is in a bucket, where no store takes the place of another in one step: copy it to a disk, compact "
            "it there, and copy it back under another name"
        )
    with locked(path):
        new = durable.clear_beside(path)
        opened, listed = open_store(path), read_rows(path)
        before = opened.summary().bytes
        if not listed.generation:
            return Compacted(path, len(opened), 0, before, before, opened.snapshot, False)
        if opened.missing:
            raise InputError(
                f"{path} is not complete, {opened.missing} of its rows are not in every array: run samtl embed with "
                f"--tiers {','.join(opened.wanted_tiers)} first"
            )
        free = shutil.disk_usage(path).free
        if before * SPARE > free:
            raise ResourceError(
                f"a second store of {before / 2**30:.2f} GiB is needed beside {path} for a while, and its disk has "
                f"{free / 2**30:.2f} GiB free"
            )
        try:
            _copy(opened, listed, new, on_progress)
        except OSError as error:
            shutil.rmtree(new, ignore_errors=True)
            if error.errno not in durable.DISK_ERRORS:
                raise
            raise ResourceError(
                f"the disk of {path} gave out: {error.strerror}. The store is as it was; make room or mend the disk, "
                "then compact again"
            ) from error
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
        durable.replace_folder(new, path)
        after = open_store(path)
        return Compacted(
            path,
            len(after),
            len(listed.superseded),
            before,
            after.summary().bytes,
            after.snapshot,
            rewritten=True,
        )


def _copy(source: Store, listed: Rows, new: Path, on_progress: Callable[[int, int], None]) -> None:
    identity = read_fingerprint(source.path)
    labels = source.labels.tolist()
    order = hash_order(source.sample_ids)
    rows = Rows(
        listed.dataset,
        listed.classes,
        tuple(source.sample_ids[row] for row in order),
        tuple(labels[row] for row in order),
        listed.note,
        listed.task,
        tuple(source.groups[row] for row in order) if source.groups else (),
        tuple(source.parts[row] for row in order) if source.parts else (),
    )
    state = committed(read_log(source.path))
    fingerprint = Fingerprint.from_dict(identity["fingerprint"])
    with open_writer(
        new, fingerprint, identity["about"], rows, identity["columns"], source.arrays
    ) as writer:
        for block in range(writer.blocks):
            here = writer.block_rows(block)
            taken = [order[row] for row in here]
            _copy_block(source, taken, [listed.current[row] for row in taken], here, state, writer)
            on_progress(here.stop, len(rows))


def _copy_block(
    source: Store,
    rows: Sequence[int],
    places: Sequence[int],
    here: range,
    state: Mapping[str, Mapping[int, Record]],
    writer: StoreWriter,
) -> None:
    """Write a block: a record for the arrays that have one status in each of its rows."""
    together: dict[tuple[str, ...], list[str]] = {}
    for name in source.arrays:
        # What is known of masks is in the records that commit them.
        statuses = (str(name == "mask"), *(_of(state, name, place)[0] for place in places))
        together.setdefault(statuses, []).append(name)
    for (_, *found), names in together.items():
        statuses = tuple(found)
        reasons, images, masks = {}, [], []
        for row, place in zip(here, places, strict=True):
            _, record = _of(state, names[0], place)
            if "mask" in names and record.mask_sha256:
                masks.append(record.mask_sha256[place % BLOCK_ROWS])
            images.append(record.image_sha256[place % BLOCK_ROWS])
            if str(place) in record.reasons:
                reasons[row] = record.reasons[str(place)]
        if len(masks) < len(here):  # not known of some
            masks = []
        told = {key: record.writer[key] for key in _TOLD if key in record.writer}
        arrays = {name: [source.row(name, row) for row in rows] for name in names}
        writer.write_block(here.start // BLOCK_ROWS, arrays, statuses, reasons, images, told, masks)


def _of(state: Mapping[str, Mapping[int, Record]], array: str, place: int) -> tuple[str, Record]:
    """Give the status of a row in an array, and the record that says so."""
    block, position = divmod(place, BLOCK_ROWS)
    record = state[array][block]
    return record.status[position], record
