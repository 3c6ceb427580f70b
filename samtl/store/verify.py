"""A store's files held against its commit log: everything that is wrong with them, not only what is met first.

What cannot be trusted is taken as if it were not there: of a block whose record is damaged, neither that record nor a
later one says anything.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from samtl._runtime import prefetch, without_collecting
from samtl.errors import DamageError, InputError
from samtl.images.transforms import PATCH
from samtl.store import durable, folders, rows
from samtl.store.agreement import (
    foreign,
    older_list,
    other_images,
    other_labels,
    other_samples,
    strangers,
)
from samtl.store.documents import canonical
from samtl.store.fingerprint import FILE, read_fingerprint
from samtl.store.layout import (
    INDEX_BYTES,
    METADATA_BYTES,
    MISSING,
    ROOT,
    ArraySpec,
    array_specs,
    crc32c,
    root_metadata,
    shard_index,
)
from samtl.store.log import (
    LOG,
    OK,
    CommittedFile,
    Record,
    committed,
    place_in_log,
    read_record,
    required,
)
from samtl.store.rows import Rows, read_rows

LISTS = ("identity", "rows")  # findings about what everything else refers to
LEVELS = ("quick", "rows", "deep")
_READERS = 2  # shards that are read and summed at a time


@dataclass(frozen=True)
class Finding:
    """Something that is not as it was committed.

    Attributes
    ----------
    what : {"identity", "rows", "metadata", "record", "file", "size", "row", "index", "sha256"}
        What does not hold.
    path : str
        Of the file, relative to the store.
    told : str
        What was expected and what is there.
    array : str
        Which one is damaged; "" where it is no array.
    block : int or None
    damaged_rows : tuple of int
        Places in the array, those of rows that no longer count among them, whose bytes are not what was committed,
        where that is known.
    """

    what: str
    path: str
    told: str
    array: str = ""
    block: int | None = None
    damaged_rows: tuple[int, ...] = ()


@dataclass
class Checked:
    """What a check came to.

    Attributes
    ----------
    findings : list of Finding
        Empty where everything is as it was committed.
    rows, ok, quarantined, missing : int
        Those that count; of them, those that hold an embedding in every array; those whose image could not be used;
        those that are not committed in every array.
    superseded : int
        Rows that no longer count: their images were taken out of the dataset, or changed.
    relabelled : int
        Rows that count whose committed label is that of an earlier list: the pass that was to write the others was
        killed. They, and the others of their blocks, are missing.
    begun : bool
        False where a pass was stopped before it wrote which images the rows are: then nothing else is known.
    blocks, files, bytes : int
        Committed blocks; the shards that were looked at, and their bytes.
    leftovers : list of str
        Files that nothing commits, of an interrupted pass or of a damaged record; the next pass replaces them.
    records : dict
        Block to its records that can be trusted.
    """

    findings: list[Finding] = field(default_factory=list)
    rows: int = 0
    ok: int = 0
    quarantined: int = 0
    missing: int = 0
    superseded: int = 0
    relabelled: int = 0
    begun: bool = True
    blocks: int = 0
    files: int = 0
    bytes: int = 0
    leftovers: list[str] = field(default_factory=list)
    records: dict[int, list[Record]] = field(default_factory=dict)


def check(
    store: Path, level: str = "rows", on_progress: Callable[[int, int], None] | None = None
) -> Checked:
    """Hold every file of a store against what is committed.

    Parameters
    ----------
    store : Path
    level : {"quick", "rows", "deep"}
        `quick` reads the lists and records and compares the shards' sizes; `rows` reads every shard and compares every
        row's checksum; `deep` the sha256 of every shard, too.
    on_progress : callable, optional
        Called with the bytes that were read of the shards, and those that are to be read.

    Raises
    ------
    InputError
        Where there is no store, or one of another format.
    OSError
        Where the disk does not give what is there.
    """
    if level not in LEVELS:
        raise InputError(f"a check is one of {', '.join(LEVELS)}, got {level!r}")
    if not (store / FILE).exists() and not (store / LOG).exists():
        raise InputError(f"{store} is no samtl store; expected a folder NAME.zarr")
    progress = on_progress or (lambda done, all_of: None)
    before = _state(store)
    found = _check(store, level, progress)
    # A pass wrote to it meanwhile.
    if (found.findings or found.relabelled) and _state(store) != before:
        now = _check(store, "quick", progress)
        now.findings += [
            one
            for one in found.findings
            if one.what in ("row", "index", "sha256")
            and one.block is not None
            and len(now.records.get(one.block, ())) == len(found.records[one.block])
        ]
        return now
    return found


def _state(store: Path) -> tuple[object, ...]:
    """Give what every write to a store changes, and its being replaced."""
    newest, about = rows.newest(store), None
    with contextlib.suppress(OSError):
        found = (store / newest).stat()
        about = found.st_ino, found.st_mtime_ns
    return newest, about, folders.names(store / LOG)


def _check(store: Path, level: str, on_progress: Callable[[int, int], None]) -> Checked:
    found = Checked()
    try:
        identity = read_fingerprint(store)
        specs = array_specs(
            int(identity["fingerprint"]["image_size"]) // PATCH, identity["columns"]
        )
    except FileNotFoundError:
        found.findings.append(Finding("identity", FILE, "it is not there"))
        return found
    except (DamageError, KeyError, TypeError, ValueError) as error:
        found.findings.append(Finding("identity", FILE, f"{error}"))
        return found
    try:
        found.begun = rows.has_rows(store)
        if not found.begun:
            return found
        listed = read_rows(store)
    except DamageError as error:
        gone = not rows.generations(store)
        where = rows.FOLDER if gone else rows.newest(store)
        told = "it holds no list of rows any more" if gone else str(error)
        found.findings.append(Finding("rows", where, told))
        return found
    found.rows = len(listed.current)
    found.superseded = len(listed.superseded)
    with without_collecting():
        found.findings += _log(store, str(identity["sha256"]), listed, specs, found.records)
    state = _committed(found)
    others = other_samples(listed, specs["sample_id"], state.get("sample_id", {}))
    if others:
        found.findings.append(Finding("rows", rows.newest(store), strangers(listed, others)))
    older = older_list(store, listed)
    if older:
        found.findings.append(Finding("rows", rows.newest(store), older))
    for name, record, of_rows in other_images(state):
        told = (
            "its rows were made from other images than those of the arrays that were there before"
        )
        path = record.files[name].path
        found.findings.append(Finding("row", path, told, name, record.block, tuple(of_rows)))
    found.findings += wrong_metadata(store, identity, listed, specs, set(state))
    _shards(store, found, specs, level, on_progress)
    _count(found, listed, specs)
    return found


def wrong_metadata(
    store: Path,
    identity: Mapping[str, Any],
    listed: Rows,
    specs: Mapping[str, ArraySpec],
    in_use: set[str],
) -> Iterator[Finding]:
    """Compare what plain Zarr readers read with what it must be, field by field.

    Parameters
    ----------
    store : Path
    identity : mapping
        Content of `fingerprint.json`.
    listed : Rows
    specs : mapping
        Every array that a store may have.
    in_use : set of str
        Arrays with a committed block. Of others, a pass may not have written the metadata yet.
    """
    known = {name: spec.metadata(len(listed)) for name, spec in specs.items()}
    # Where a pass was killed that had begun to add rows, some of it may be that of the store before.
    before = {
        name: [spec.metadata(stop) for _, stop in listed.extents[:-1]]
        for name, spec in specs.items()
    }
    there = set(in_use)
    for name in specs:
        path = f"{name}/{ROOT}"
        content = _json(store / path)
        if any(_same(content, right) for right in (known[name], *before[name])):
            there.add(name)
        elif name in in_use or (store / path).exists():
            yield Finding("metadata", path, "it is not the metadata of this array", name)
    root = _json(store / ROOT)
    if root is None and not in_use and not (store / ROOT).exists():
        return
    # Of those that are there, it may lack the last that were made.
    told = _inlined(root)
    arrays = {
        name: known[name] for name in specs if name in there and (name in in_use or name in told)
    }
    expected = root_metadata(identity, listed.attributes(), arrays)
    if not _same(_as_now(root, expected, before), expected):
        yield Finding("metadata", ROOT, "it is not the metadata of this store")


def _same(content: object, expected: dict[str, object]) -> bool:
    """Compare JSON as it is written: in Python 1, 1.0 and true are equal."""
    try:
        return isinstance(content, dict) and canonical(content) == canonical(expected)
    except (ValueError, RecursionError):
        return False


def _as_now(
    root: object, expected: dict[str, Any], before: Mapping[str, Sequence[object]]
) -> object:
    """Give a group's metadata with what changes of a dataset change in it brought up to date, where it is older."""
    try:
        content: Any = json.loads(json.dumps(root))
        told, now = content["attributes"]["samtl"], expected["attributes"]["samtl"]
        if int(told.get("generation", 0)) < int(now.get("generation", 0)):
            told |= {name: now[name] for name in ("generation", "superseded", "classes")}
        inlined = content["consolidated_metadata"]["metadata"]
        for name, metadata in inlined.items():
            if any(_same(metadata, one) for one in before.get(name, ())):  # type: ignore[arg-type]
                inlined[name] = expected["consolidated_metadata"]["metadata"][name]
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return root
    return content


def _inlined(root: object) -> set[str]:
    """Name the arrays that a group's metadata tells of; none where it is no such thing."""
    try:
        return set(root["consolidated_metadata"]["metadata"])  # type: ignore[index]
    except (KeyError, TypeError):
        return set()


def _json(path: Path) -> object:
    try:
        if path.stat().st_size > METADATA_BYTES:
            return None
        return json.loads(path.read_bytes())
    except (FileNotFoundError, IsADirectoryError, ValueError, RecursionError):
        return None


def _log(
    store: Path,
    fingerprint: str,
    listed: Rows,
    specs: Mapping[str, ArraySpec],
    trusted: dict[int, list[Record]],
) -> Iterator[Finding]:
    """Read the records; those of a block up to the first that cannot be trusted go to `trusted`."""
    by_block: dict[int, list[tuple[int, str]]] = {}
    for name in folders.names(store / LOG):
        place = place_in_log(name)
        if place is None:
            yield Finding("record", f"{LOG}/{name}", "it does not belong into a store's log")
        else:
            by_block.setdefault(place[0], []).append((place[1], name))
    for block, places in sorted(by_block.items()):
        for expected, (sequence, name) in enumerate(sorted(places)):
            path = f"{LOG}/{name}"
            if sequence != expected:
                told = f"the block's record {expected} is missing, so this one says nothing"
                yield Finding("record", path, told, block=block)
                break
            try:
                record = read_record(store / path)
            except DamageError as error:
                yield Finding("record", path, str(error), block=block)
                break
            told = foreign(record, fingerprint, listed, specs)
            if told:
                yield Finding("record", path, told, block=block)
                break
            trusted.setdefault(block, []).append(record)


def _shards(
    store: Path,
    found: Checked,
    specs: Mapping[str, ArraySpec],
    level: str,
    on_progress: Callable[[int, int], None],
) -> None:
    """Compare the shards with their records."""
    state = _committed(found)
    sizes: list[tuple[ArraySpec, Record, CommittedFile]] = []
    for name, spec in specs.items():
        present = folders.sizes(store / name)
        present.pop(ROOT, None)
        for block, record in state.get(name, {}).items():
            file = record.files[name]
            size = present.pop(file.path.partition("/")[2], None)
            if size is None:
                in_place = (store / file.path).is_dir()
                told = "a folder is in its place" if in_place else "it is not there"
                found.findings.append(Finding("file", file.path, told, name, block, _of(record)))
            elif size != file.size:
                told = f"it has {size} bytes, and {file.size} were committed"
                found.findings.append(Finding("size", file.path, told, name, block, _of(record)))
            else:
                sizes.append((spec, record, file))
            found.files += 1
        found.leftovers += [f"{name}/{rest}" for rest in sorted(present)]
    found.leftovers += [
        f"{folder}/{name}"
        for folder in (LOG, rows.FOLDER)
        for name in folders.names(store / folder, hidden=True)
        if name.startswith(durable.TEMPORARY)
    ]
    found.leftovers += [f"{rows.FOLDER}/{n}.json" for n in rows.generations(store)[:-1]]
    total = sum(file.size for _, _, file in sizes)
    found.bytes, done = total, 0
    if level == "quick":
        return
    work = prefetch(
        lambda item: (item[2].size, _read(store, *item, level == "deep")),
        sizes,
        _READERS,
        _READERS + 1,
    )
    for size, findings in work:
        found.findings += findings
        done += size
        on_progress(done, total)


def _read(
    store: Path, spec: ArraySpec, record: Record, file: CommittedFile, deep: bool
) -> list[Finding]:
    """Compare every byte of a shard: rows by their checksums, the rest by the index's."""

    def finding(what: str, told: str, damaged: Sequence[int]) -> Finding:
        return Finding(what, file.path, told, spec.name, record.block, tuple(damaged))

    try:
        data = memoryview((store / file.path).read_bytes())
    except FileNotFoundError:  # between the look at its size and now
        return [finding("file", "it is not there", _of(record))]
    if len(data) != file.size:
        return [finding("size", f"it has {len(data)} bytes by now", _of(record))]
    try:
        index = shard_index(data, file.path)
    except DamageError as error:
        return [finding("index", str(error), _of(record))]
    damaged: list[int] = []
    for position, expected in enumerate(file.crc32c):
        offset, length = (int(n) for n in index[position])
        row = data[offset : offset + length - 4] if offset != MISSING and length >= 4 else b""
        trailer = data[offset + length - 4 : offset + length] if len(row) else b""
        if crc32c(row) != expected or trailer != expected.to_bytes(4, "little"):
            damaged.append(record.first_row + position)
    if damaged:
        told = f"{len(damaged)} of its {len(file.crc32c)} rows fail their checksums"
        return [finding("row", told, damaged)]
    ends = sorted(
        (int(offset), int(offset + length)) for offset, length in index[: len(file.crc32c)]
    )
    whole = [(0, 0), *ends, (file.size - INDEX_BYTES, file.size)]
    if any(one[1] != other[0] for one, other in itertools.pairwise(whole)):
        return [finding("index", "its rows do not fill it", _of(record))]
    if deep and hashlib.sha256(data).hexdigest() != file.sha256:
        return [finding("sha256", "its sha256 is not the committed one", ())]
    return []


def _count(found: Checked, listed: Rows, specs: Mapping[str, ArraySpec]) -> None:
    state = _committed(found)
    # Their rows wait for the labels of the list, as if none were there.
    labels = state.get("label", {})
    for block, of_block in other_labels(listed, specs["label"], labels).items():
        del labels[block]
        found.relabelled += sum(row in listed.counts for row in of_block)
    wanted = required((one for by in found.records.values() for one in by), listed.task)
    found.blocks = len({block for by_block in state.values() for block in by_block})
    current = listed.counts
    for block in range(listed.blocks):
        rows = listed.block_rows(block)
        records = [state[name][block] for name in wanted if block in state.get(name, ())]
        if not state or len(records) < len(wanted):
            found.missing += sum(row in current for row in rows)
            continue
        statuses = zip(*(record.status for record in records), strict=True)
        for row, of_row in zip(rows, statuses, strict=True):
            if row in current and all(status == OK for status in of_row):
                found.ok += 1
            elif row in current:
                found.quarantined += 1


def _committed(found: Checked) -> dict[str, dict[int, Record]]:
    """Fold the records that can be trusted; of arrays that were withdrawn altogether there is nothing."""
    state = committed([record for records in found.records.values() for record in records])
    return {name: by_block for name, by_block in state.items() if by_block}


def _of(record: Record) -> tuple[int, ...]:
    return tuple(range(record.first_row, record.first_row + len(record.status)))
