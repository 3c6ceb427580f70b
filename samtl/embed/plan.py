"""What an encoder pass will do, known before weights are loaded or a byte is written."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from samtl import registry
from samtl.datasets import (
    IGNORE,
    PARTS,
    Dataset,
    groups_by,
    resolve,
    shuffled,
    subset,
)
from samtl.embed.changes import Changes, find_changes
from samtl.encoders.checkpoints import check_source
from samtl.encoders.device import resolve_devices, resolve_dtype
from samtl.encoders.engines import check_engine
from samtl.errors import InputError
from samtl.images.codecs import STATISTICS
from samtl.images.transforms import (
    PATCH,
    Preprocessing,
    check_image_size,
    grid_cells,
)
from samtl.store.agreement import other_labels, require_newest, require_own
from samtl.store.find import cache_folder
from samtl.store.fingerprint import FILE, Fingerprint, read_fingerprint
from samtl.store.layout import (
    BLOCK_ROWS,
    INDEX_BYTES,
    TIER_ARRAYS,
    ArraySpec,
    array_specs,
)
from samtl.store.log import committed, read_log
from samtl.store.remote import RemotePath, as_path
from samtl.store.rows import Rows, has_rows, read_rows
from samtl.store.writer import (
    check_identity,
    lacking,
    refuse_foreign,
    require_unlocked,
)

TIERS = tuple(TIER_ARRAYS)
ALWAYS = ("image_stats", "original_size", "label", "sample_id")
STORED_DTYPES = {"pooled": "float32", "grid": "float16", "dense": "float16"}


@dataclass(frozen=True)
class Plan:
    """What a pass will do, known before it starts.

    Attributes
    ----------
    store : Path
    dataset, encoder, weights, device, compute_dtype : str
        `weights` is what was asked for; what they are is known once they are loaded.
    tiers : tuple of str
    rows : int
        Rows of the store that count.
    pending_rows : int
        Rows that remain to be encoded.
    bytes_by_tier : dict
        Size on disk of each tier, and of `labels` (everything else), for the whole store.
    bytes_to_write : int
    bytes_free : int, optional
        On the store's disk; None in a bucket.
    image_size : int
        Side of the encoder's input in pixels.
    batch_size : int
        0 where the device is tried first.
    engine : str
    resumes : bool
        True where the store is there already.
    added, changed, removed, returned, relabelled, regrouped, remasked : int
        How the dataset differs from what the store was made from: see `samtl.embed.changes.Changes`.
    note : str
        What is to be known about the dataset, or "".
    task : str
        `classification` or `segmentation`.
    """

    store: Path
    dataset: str
    encoder: str
    weights: str
    device: str
    compute_dtype: str
    tiers: tuple[str, ...]
    rows: int
    pending_rows: int
    bytes_by_tier: dict[str, int]
    bytes_to_write: int
    bytes_free: int | None
    image_size: int
    batch_size: int
    engine: str
    resumes: bool
    note: str
    task: str
    added: int = 0
    changed: int = 0
    removed: int = 0
    returned: int = 0
    relabelled: int = 0
    regrouped: int = 0
    remasked: int = 0

    def to_json(self) -> dict[str, object]:
        """Give the plan as JSON values."""
        return {**asdict(self), "store": str(self.store)}


def plan(dataset: str | Dataset = "eurosat", encoder: str = "sam_vit_b", **options: Any) -> Plan:
    """Tell what `embed` would do with the same arguments, without downloading or writing anything.

    Raises
    ------
    InputError, MismatchError
        As `embed` does; a difference in weights alone is found only once they are loaded.
    """
    return prepare(dataset, encoder, **options, download=False).plan


@dataclass(frozen=True)
class Job:
    """Everything about a pass but the loaded encoder; the dataset's images are in the order of the store's rows."""

    plan: Plan
    dataset: Dataset
    rows: Rows
    columns: Mapping[str, Sequence[str]]
    arrays: tuple[str, ...]
    dtype: str
    other_masks: frozenset[int] = (
        frozenset()
    )  # blocks whose masks are not those of the dataset any more


def prepare(
    dataset: str | Dataset,
    encoder: str,
    *,
    root: str | Path | None = None,
    group_by: str | None = None,
    checkpoint: str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    image_size: int | None = None,
    tiers: Sequence[str] = TIERS,
    limit: int | None = None,
    per_class: int | None = None,
    batch_size: int | str = "auto",
    engine: str = "fast",
    out: str | Path | None = None,
    check_images: bool = True,
    download: bool = True,
    on_read: Callable[[int, int], None] = lambda done, all_of: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Job:
    """Check every argument of a pass and say what is left to do; writes nothing to the store.

    Arguments are those of `samtl.embed`; `download` says whether a dataset may be fetched, and `on_read` is called with
    the number of images that were read to see whether they changed, and of those that are to be read; `should_stop` is
    asked after each.

    Raises
    ------
    InputError, MismatchError, ResourceError
        As `samtl.embed` does.
    """
    tiers = _parse_tiers(tiers)
    checkpoint = None if checkpoint is None else str(checkpoint)
    if checkpoint is not None:
        check_source(checkpoint)
    module = registry.load("encoders", encoder)
    check_engine(engine)
    columns = {"pooled": module.spec(encoder).features, "image_stats": STATISTICS}
    if image_size is not None:
        check_image_size(image_size)
    devices = resolve_devices(device)

    listed = resolve(dataset, root, download=download)
    if group_by is not None:
        listed = replace(listed, groups=groups_by(listed.sample_ids, group_by))
    require_usable(listed)
    source = subset(shuffled(listed), limit=limit, per_class=per_class)
    if image_size is not None:
        _require_even(image_size, tiers, source.task)
    rows = Rows(
        source.name,
        source.classes,
        source.sample_ids,
        source.labels,
        source.note,
        source.task,
        source.groups,
        source.parts,
    )

    default = module.spec(encoder).default_checkpoint
    wanted = checkpoint or default
    suffix = "" if wanted == default else f"-{_weights_slug(wanted)}"
    name = f"{encoder}{suffix}.{image_size or module.spec(encoder).image_size}"
    path = _store_path(out, source.name, name, limit, per_class)
    refuse_foreign(path)
    resumes = (path / FILE).exists()
    weights_sha256 = ""
    if resumes:
        stored = read_fingerprint(path)["fingerprint"]
        weights_sha256 = str(stored["encoder"]["weights_sha256"])  # compared once they are loaded
        if dtype == "auto":
            dtype = str(stored["compute_dtype"])
        image_size = image_size or int(stored["image_size"])
    preprocessing = Preprocessing(image_size or module.spec(encoder).image_size)
    compute_dtype = str(resolve_dtype(dtype, devices[0])).removeprefix("torch.")
    fingerprint = Fingerprint(
        encoder,
        weights_sha256,
        preprocessing.to_dict(),
        preprocessing.image_size,
        compute_dtype,
        STORED_DTYPES,
    )
    if resumes:  # else another process may be making it just now, and the weights to compare with are not known
        check_identity(path, fingerprint)
        if download and path.is_dir():
            require_unlocked(path)  # before images are read for nothing
    specs = array_specs(preprocessing.image_size // PATCH, columns)
    records = read_log(path) if resumes else []
    done = committed(records)
    found = Changes(rows)
    if resumes and has_rows(path):
        stored_rows = read_rows(path)
        require_newest(path, stored_rows)
        require_own(path, records, str(read_fingerprint(path)["sha256"]), stored_rows, specs)
        left_out = frozenset(listed.sample_ids) - frozenset(source.sample_ids)
        found = find_changes(path, rows, source, done, check_images, on_read, should_stop, left_out)
        rows = found.rows
        source = _in_order_of(rows, source)

    # Of a change that was not seen to its end, too.
    waiting = other_labels(rows, specs["label"], done.get("label", {}))
    relabelled = max(found.relabelled, sum(map(len, waiting.values())))
    always = ALWAYS if source.read_mask is None else (*ALWAYS, "mask")
    arrays = (*always, *(TIER_ARRAYS[tier] for tier in tiers))
    for row in found.remasked:
        done["mask"].pop(row // BLOCK_ROWS, None)
    blocks = [
        [rows.sample_ids[row] for row in rows.block_rows(block)] for block in range(rows.blocks)
    ]
    todo = [lacking(rows, block, arrays, done) for block in range(rows.blocks)]
    sizes = {name: [_shard_bytes(specs[name], ids) for ids in blocks] for name in arrays}
    by_tier = {tier: sum(sizes[TIER_ARRAYS[tier]]) for tier in tiers}
    by_tier["labels"] = sum(sum(sizes[name]) for name in always)
    return Job(
        plan=Plan(
            store=path,
            dataset=source.name,
            encoder=encoder,
            weights=f"untrained ({wanted})" if wanted.startswith("random:") else wanted,
            device=",".join(map(str, devices)),
            compute_dtype=compute_dtype,
            tiers=tiers,
            rows=len(rows.current),
            pending_rows=sum(len(ids) for ids, names in zip(blocks, todo, strict=True) if names),
            bytes_by_tier=by_tier,
            bytes_to_write=sum(sizes[name][b] for b, names in enumerate(todo) for name in names),
            bytes_free=_free_bytes(path),
            image_size=preprocessing.image_size,
            batch_size=images_per_call(batch_size, devices[0].type, untold=0),
            engine=engine,
            resumes=resumes,
            note=source.note,
            task=source.task,
            added=found.added,
            changed=found.changed,
            removed=found.removed,
            returned=found.returned,
            relabelled=relabelled,
            regrouped=found.regrouped,
            remasked=len(found.remasked),
        ),
        dataset=source,
        rows=rows,
        columns=columns,
        arrays=arrays,
        dtype=compute_dtype,
        other_masks=frozenset(row // BLOCK_ROWS for row in found.remasked),
    )


def _in_order_of(rows: Rows, source: Dataset) -> Dataset:
    """Put a dataset's images where their rows are; at rows that do not count is none that will be asked for."""
    return replace(
        source,
        sample_ids=rows.sample_ids,
        labels=rows.labels,
        groups=rows.groups,
        parts=rows.parts,
    )


def _require_even(image_size: int, tiers: Sequence[str], task: str) -> None:
    """Refuse a pass whose grids no head could read: they take tokens, or cells, in pairs."""
    read = "dense" if task == "segmentation" else "grid"
    side = image_size // PATCH
    cells = side if read == "dense" else grid_cells(side)
    if read in tiers and cells % 2:
        raise InputError(
            f"--image-size {image_size} gives {read} {cells} x {cells} cells, and heads take them in pairs: choose a "
            f"multiple of {2 * PATCH}, or leave {read} out of --tiers"
        )


def require_usable(source: Dataset) -> None:
    """Refuse a dataset that cannot become a store; those that samtl lists itself always can.

    Raises
    ------
    InputError
    """
    if not len(source):
        raise InputError(f"the dataset {source.name} has no images")
    if not re.fullmatch(r"[\w][\w.-]*", source.name):
        raise InputError(
            "a dataset's name names its stores, so it must be of letters, digits, '.', '_' and '-', "
            f"got {source.name!r}"
        )
    if len(set(source.sample_ids)) != len(source) or len(source.labels) != len(source):
        raise InputError(
            f"the dataset {source.name} must have one unique id and one label for each image, got "
            f"{len(source)} ids, {len(set(source.sample_ids))} of them different, and {len(source.labels)} labels"
        )
    if not all(-1 <= label < len(source.classes) for label in source.labels):
        raise InputError(
            f"labels of the dataset {source.name} must be -1 or below {len(source.classes)}, "
            "the number of its classes"
        )
    if source.read_mask is not None:
        # Above that a class would have the number that says "ignore".
        if not 2 <= len(source.classes) <= IGNORE:
            raise InputError(
                f"a dataset with masks must have 2 to {IGNORE} classes, the background the first, {source.name} has "
                f"{len(source.classes)}"
            )
        if any(label != -1 for label in source.labels):
            raise InputError(
                f"in the dataset {source.name} the masks are the target, so every label must be -1, got "
                f"{next(label for label in source.labels if label != -1)}"
            )
    for what, entries in (("groups", source.groups), ("parts", source.parts)):
        if entries and len(entries) != len(source):
            raise InputError(
                f"the dataset {source.name} must have {what} for all of its {len(source)} images or for none, got "
                f"{len(entries)}"
            )
    unknown = sorted(set(source.parts) - set(PARTS))
    if unknown:
        raise InputError(
            f"parts of the dataset {source.name} must be of {', '.join(PARTS)}, got {', '.join(map(repr, unknown[:5]))}"
        )


def _parse_tiers(tiers: Sequence[str]) -> tuple[str, ...]:
    unknown = [tier for tier in tiers if tier not in TIERS]
    if unknown or not tiers:
        raise InputError(
            f"--tiers takes one or more of {','.join(TIERS)}, separated by commas, got {','.join(tiers)!r}"
        )
    return tuple(tier for tier in TIERS if tier in tiers)


def images_per_call(asked: int | str, device: str, untold: int) -> int:
    """Turn --batch-size into a number of images, for a type of device such as `cpu`; `untold` is a GPU's `auto`."""
    if asked == "auto":
        # On a CPU an image for each core, so that none waits for another; a GPU wants more in flight.
        return min(8, os.cpu_count() or 1) if device == "cpu" else untold
    if not str(asked).isdecimal() or int(asked) < 1:
        raise InputError(f"--batch-size must be auto or a whole number from 1, got {asked!r}")
    return int(asked)


def _store_path(
    out: str | Path | None,
    dataset: str,
    embedding: str,
    limit: int | None,
    per_class: int | None,
) -> Path:
    """Name the store after what decides its content, so that different passes do not meet."""
    if out is not None and Path(out).suffix == ".zarr":
        return as_path(out)
    parts = [
        dataset,
        f"per-class-{per_class}" if per_class else "",
        f"limit-{limit}" if limit else "",
        embedding,
    ]
    folder = as_path(out) if out is not None else cache_folder()
    return folder / (".".join(filter(None, parts)) + ".zarr")


def _weights_slug(checkpoint: str) -> str:
    stem = checkpoint if checkpoint.startswith("random:") else Path(checkpoint).stem
    return re.sub(r"[^\w-]+", "", stem) or "file"


def _shard_bytes(spec: ArraySpec, sample_ids: Sequence[str]) -> int:
    """Size of the shard of a block with these rows."""
    if spec.dtype == "string":  # each id beside its two lengths and its checksum
        return sum(len(i.encode()) + 12 for i in sample_ids) + INDEX_BYTES
    return spec.shard_bytes(len(sample_ids))


def _free_bytes(path: Path) -> int | None:
    if isinstance(path, RemotePath):
        return None
    existing = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    return shutil.disk_usage(existing).free
