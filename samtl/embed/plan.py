"""What an encoder pass will do, known before weights are loaded or a byte is written."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from samtl import registry
from samtl.datasets import Dataset, groups_by, only, resolve, shuffled, subset
from samtl.embed.changes import Changes, find_changes, first_table
from samtl.embed.config import EmbedConfig
from samtl.encoders.base import EncoderSpec
from samtl.encoders.checkpoints import check_source
from samtl.encoders.device import resolve_devices, resolve_dtype
from samtl.encoders.engines import check_engine
from samtl.errors import InputError
from samtl.images.codecs import STATISTICS
from samtl.images.transforms import check_image_size
from samtl.store.fingerprint import FILE, Identity, make_identity, require_same
from samtl.store.format import array_specs, rows_of_a_block
from samtl.store.log import LOG
from samtl.store.samples import FOLDER, SampleTable
from samtl.store.state import StoreState, load_state
from samtl.store.storage import Storage, as_place, below, cache_folder, open_storage

_ALWAYS = ("image_stats", "original_size")
_SPECIAL = re.compile(r"[^\w-]+")  # characters that the name of a store cannot have


@dataclass(frozen=True)
class Plan:
    """What a pass will do.

    Attributes
    ----------
    store : Path or str
        str in a bucket.
    dataset, encoder, weights, device, compute_dtype, engine, task, note
        `weights` is what was asked for, and `note` what the user should know about the dataset, or "".
    tiers : tuple of str
    rows, pending_rows : int
        Samples of the store, and those that remain to be encoded.
    bytes_by_tier : dict
        Size on disk of each tier, and of `others` (all other arrays), for the whole store.
    bytes_to_write : int
    bytes_free : int, optional
        On the store's disk; None in a bucket.
    image_size : int
        Side of the encoder's input in pixels.
    batch_size : int
        0 if the device is tried first.
    resumes : bool
        Whether the store exists.
    added, changed, removed, returned, relabelled, regrouped : int
        How the dataset differs from the store: see `samtl.embed.changes.Changes`.
    """

    store: Path | str
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

    def to_json(self) -> dict[str, object]:
        """Return the plan as JSON values."""
        return {**asdict(self), "store": str(self.store)}


def plan(dataset: str | Dataset = "eurosat", encoder: str = "sam_vit_b", **options: Any) -> Plan:
    """Return what `embed` would do with the same arguments, without downloading or writing anything.

    `on_read` is called with the number of images that were read, and that are to be read. Raises what `embed` raises;
    a difference in weights alone is found only once they are loaded.
    """
    on_read = options.pop("on_read", lambda done, total: None)
    return prepare(EmbedConfig(dataset, encoder, **options), download=False, on_read=on_read).plan


@dataclass(frozen=True)
class Job:
    """Everything about a pass but the loaded encoder; it can be sent to another process.

    Attributes
    ----------
    config, plan, spec, storage
    dataset : Dataset
        In the order of the table.
    table : SampleTable
        The store's, or the next one.
    arrays : tuple of str
        What every row must be in.
    block_rows : int
    state : StoreState or None
        The store as it was found; None if there was none, or in a worker process, which loads it itself.
    pending : tuple of int
        Blocks that lack an array.
    stopped : bool
        Whether it was stopped while images were compared: then nothing may be done.
    """

    config: EmbedConfig
    plan: Plan
    dataset: Dataset
    spec: EncoderSpec
    table: SampleTable
    arrays: tuple[str, ...]
    block_rows: int
    storage: Storage
    state: StoreState | None
    pending: tuple[int, ...]
    stopped: bool = False

    def identity(self, fingerprint: dict[str, Any], about: dict[str, object]) -> Identity:
        """Return the identity of the store, if it is new."""
        return make_identity(fingerprint, _array_specs(self.spec), about, self.block_rows)


def prepare(
    config: EmbedConfig,
    *,
    download: bool = True,
    on_read: Callable[[int, int], None] = lambda done, total: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Job:
    """Check every option of a pass and find what is left to do; writes nothing to the store.

    Parameters
    ----------
    config : EmbedConfig
    download : bool
        Whether the dataset may be fetched.
    on_read, should_stop : callable
        See `samtl.embed.changes.find_changes`.

    Raises
    ------
    InputError, MismatchError, DamageError, ResourceError
        As `samtl.embed` does.
    """
    tiers = config.ordered_tiers
    if config.source is not None:
        check_source(config.source)
    module = registry.load("encoders", config.encoder)
    check_engine(config.engine)
    if config.image_size is not None:
        check_image_size(config.image_size)
    devices = resolve_devices(config.device)
    batch_size = images_per_call(config.batch_size, devices[0].type, untold=0)

    listed = resolve(config.dataset, config.root, download=download)
    if config.group_by is not None:
        listed = replace(listed, groups=groups_by(listed.sample_ids, config.group_by))
    require_usable(listed)
    source = subset(shuffled(listed), limit=config.limit, per_class=config.per_class)
    spec: EncoderSpec = module.spec(config.encoder, config.image_size)
    if config.image_size is not None:
        _require_even(spec, tiers, source.task)

    wanted = config.source or spec.default_checkpoint
    place = _place(config, source.name, spec, wanted)
    storage = open_storage(place)
    _refuse_foreign(place, storage)
    state = load_state(storage)
    dtype = config.dtype
    if state is not None:
        fields = state.identity.fingerprint
        if dtype == "auto":
            dtype = str(fields["compute_dtype"])
        if config.image_size is None:
            spec = module.spec(config.encoder, state.identity.image_size)
    compute_dtype = str(resolve_dtype(dtype, devices[0])).removeprefix("torch.")
    if state is not None:  # weights are compared once they are loaded
        stored_weights = str(fields["encoder"].get("weights_sha256"))
        require_same(state.identity, spec.fingerprint(stored_weights, compute_dtype), storage.url)

    always = _ALWAYS if source.read_mask is None else (*_ALWAYS, "mask")
    arrays = (*always, *tiers)
    specs = _array_specs(spec)
    if state is None or state.table is None:
        block_rows = rows_of_a_block(len(source), [specs[name] for name in arrays])
        if state is not None:
            block_rows = state.identity.block_rows
        found = Changes(first_table(source))
    else:
        block_rows = state.identity.block_rows
        found = find_changes(
            state.table, source, state.log.facts, block_rows, storage.url,
            left_out=frozenset(listed.sample_ids) - frozenset(source.sample_ids),
            read_images=config.check_images, on_read=on_read, should_stop=should_stop,
        )  # fmt: skip
    table = found.table

    sizes = dict.fromkeys(arrays, 0)
    pending, pending_rows, to_write = [], 0, 0
    for block in sorted(set((table.rows // block_rows).tolist())):
        rows = table.block_rows(block, block_rows)
        lacking = [name for name in arrays if not _committed(state, name, block)]
        for name in arrays:
            size = specs[name].shard_bytes(len(rows), block_rows)
            sizes[name] += size
            to_write += size if name in lacking else 0
        if lacking:
            pending.append(block)
            pending_rows += int((table.position[rows.start : rows.stop] >= 0).sum())
    job_plan = Plan(
        store=place,
        dataset=source.name,
        encoder=config.encoder,
        weights=f"untrained ({wanted})" if wanted.startswith("random:") else wanted,
        device=",".join(map(str, devices)),
        compute_dtype=compute_dtype,
        tiers=tiers,
        rows=len(table),
        pending_rows=pending_rows,
        bytes_by_tier={**{tier: sizes[tier] for tier in tiers}, "others": sum(sizes[name] for name in always)},
        bytes_to_write=to_write,
        bytes_free=_free_bytes(place),
        image_size=spec.image_size,
        batch_size=batch_size,
        engine=config.engine,
        resumes=state is not None,
        note=source.note,
        task=source.task,
        **found.counts,
    )  # fmt: skip
    listed = source if found.stopped else only(source, table.samples)
    return Job(
        config, job_plan, listed, spec, table, arrays, block_rows, storage, state, tuple(pending), found.stopped
    )  # fmt: skip


def _committed(state: StoreState | None, array: str, block: int) -> bool:
    log = None if state is None else state.log.arrays.get(array)
    return log is not None and block < len(log.sequence) and bool(log.sequence[block] >= 0)


def _array_specs(spec: EncoderSpec) -> dict[str, Any]:
    return array_specs(
        channels=spec.channels,
        grid=spec.grid,
        cells=spec.cells,
        square=spec.image_size,
        features=spec.features,
        statistics=STATISTICS,
    )


def _require_even(spec: EncoderSpec, tiers: Sequence[str], task: str) -> None:
    """Refuse a size at which no head could read the grids: heads take tokens, or cells, in pairs."""
    tier, cells = ("dense", spec.grid[0]) if task == "segmentation" else ("grid", spec.cells)
    if tier in tiers and cells % 2:
        raise InputError(
            f"--image-size {spec.image_size} gives {tier} {cells} x {cells} cells, and heads take them in pairs: "
            f"choose a multiple of {2 * spec.patch}, or leave {tier} out of --tiers"
        )


def require_usable(source: Dataset) -> None:
    """Raise InputError if a dataset has no images."""
    if not len(source):
        raise InputError(f"the dataset {source.name} has no images")


def images_per_call(asked: int | str, device: str, untold: int) -> int:
    """Turn `batch_size` into a number of images for a type of device; `untold` is what `auto` means on a GPU."""
    if asked == "auto":
        # On a CPU one image for each core, so that none waits for another; a GPU wants more in flight.
        return min(8, os.cpu_count() or 1) if device == "cpu" else untold
    if not str(asked).isdecimal() or int(asked) < 1:
        raise InputError(f"--batch-size must be auto or a whole number from 1, got {asked!r}")
    return int(asked)


def _place(config: EmbedConfig, dataset: str, spec: EncoderSpec, weights: str) -> Path | str:
    """Name the store after what decides its content, so that different passes do not meet."""
    if config.out is not None and str(config.out).endswith(".zarr"):
        return as_place(config.out)
    embedding = config.encoder
    if weights != spec.default_checkpoint:
        name = weights if weights.startswith("random:") else Path(weights).stem
        embedding += f"-{_SPECIAL.sub('', name) or 'file'}"
    parts = [
        dataset,
        f"per-class-{config.per_class}" if config.per_class else "",
        f"limit-{config.limit}" if config.limit else "",
        f"{embedding}.{spec.image_size}.zarr",
    ]
    folder = as_place(config.out) if config.out is not None else cache_folder()
    return below(folder, ".".join(filter(None, parts)))


def _refuse_foreign(place: Path | str, storage: Storage) -> None:
    """Raise InputError if the place of a store is taken by something else."""
    if isinstance(place, Path):
        existing = next(p for p in (place, *place.absolute().parents) if p.exists())
        if not existing.is_dir():
            raise InputError(f"{existing} is a file; a store is a folder: name another with --out")
    names = storage.list()
    others = sorted(name for name in names if not name.startswith("."))
    if others and names.keys().isdisjoint((FILE, LOG, FOLDER)):
        raise InputError(
            f"{place} is a folder that holds something else ({others[0]}); name a new one with --out"
        )


def _free_bytes(place: Path | str) -> int | None:
    if not isinstance(place, Path):
        return None
    existing = next(p for p in (place.absolute(), *place.absolute().parents) if p.exists())
    return shutil.disk_usage(existing).free
