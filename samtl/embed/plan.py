"""What an encoder pass will do, known before a byte is written."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from samtl import registry
from samtl._runtime.probe import DTYPE
from samtl.datasets import Dataset, MapStyle, groups_by, only, resolve, shuffled, subset
from samtl.datasets.base import Understood
from samtl.embed.changes import Changes, find_changes, table_of
from samtl.embed.copies import Copies, find_copies
from samtl.embed.decode import Decoded, own_size
from samtl.encoders.base import EncoderSpec
from samtl.encoders.compute import encoder_speeds, resolve_compute
from samtl.encoders.device import resolve_devices
from samtl.encoders.fast.engines import check_engine
from samtl.encoders.torch_encoder import INT8
from samtl.encoders.weights.checkpoints import check_source
from samtl.errors import InputError
from samtl.images.bands import BYTES, Bands, common_names, statistics_of
from samtl.store.fingerprint import require_encoder, require_same
from samtl.store.format import ENCODER, TIERS, ArraySpec, array_specs, rows_of_a_block
from samtl.store.log import LOG
from samtl.store.samples import FOLDER, SampleTable
from samtl.store.state import StoreState, load_state
from samtl.store.storage import (
    IDENTITY,
    Storage,
    as_place,
    below,
    cache_folder,
    existing,
    open_storage,
)


@dataclass(frozen=True)
class EmbedConfig:
    """The options of `samtl.embed`, which describes them."""

    dataset: str | Dataset | MapStyle = "eurosat"
    encoder: str = "sam_vit_b"
    root: str | Path | None = None
    group_by: str | None = None
    checkpoint: str | Path | None = None
    device: str = "auto"
    dtype: str = "auto"
    image_size: int | None = None
    bands: Sequence[str] | None = None
    tiers: Sequence[str] | None = None
    limit: int | None = None
    per_class: int | None = None
    batch_size: int | str = "auto"
    engine: str = "fast"
    out: str | Path | None = None
    check_images: bool = True
    untrusted: bool = False

    def __post_init__(self) -> None:
        """Take numbers of numpy, and one name for a list of them."""
        for name, value in vars(self).items():
            if isinstance(value, np.generic):
                object.__setattr__(self, name, value.item())
        for name in ("tiers", "bands"):
            if isinstance(value := getattr(self, name), str):
                object.__setattr__(self, name, value.split(","))
        if self.bands is not None:
            object.__setattr__(self, "bands", common_names(self.bands))

    @property
    def source(self) -> str | None:
        """Where the weights come from, as text."""
        return None if self.checkpoint is None else str(self.checkpoint)


@dataclass(frozen=True)
class Plan:
    """What a pass will do."""

    store: Path | str  #: str in a bucket
    dataset: str
    encoder: str
    weights: str  #: what they are, or what was asked for if they are not on this machine
    device: str  #: several are separated by commas
    compute_dtype: str
    tiers: tuple[str, ...]
    rows: int  #: samples of the store
    pending_rows: int  #: that remain to be encoded
    bytes_by_tier: dict[str, int]  #: on disk, for the whole store; `others` are all other arrays
    bytes_to_write: int
    bytes_free: int | None  #: on the store's disk; None in a bucket
    image_size: int  #: side of the encoder's input in pixels
    bands: tuple[str, ...]  #: that the encoder takes
    batch_size: int  #: 0 if the device is tried first
    engine: str
    resumes: bool  #: whether the store exists
    note: str  #: what the user should know about the dataset, or ""
    task: str
    understood: Understood  #: what the dataset was taken for
    copies: Copies  #: identical images among those that were compared
    changes: Changes  #: how the dataset differs from the store
    by_default: dict[str, str]  #: options that were not given, and what their values follow from
    #: Which file of weights is not on this machine, so that random ones were timed; or "".
    weights_missing: str = ""
    #: That the pass will take, from encoding a batch; None if it was not timed. Rows that are committed by another
    #: command meanwhile save time, a slow disk costs more.
    seconds: float | None = None
    memory: int = 0  #: bytes that the process held with the encoder and a batch; 0 if not timed
    device_memory: int = 0  #: the same on a CUDA device
    #: How fast an encoder is here in other compute dtypes, as multiples of this one; {} if that was not needed to know.
    speeds: dict[str, float] = field(default_factory=dict)
    load: float = 0.0  #: cores that other processes kept busy while these were measured

    def to_json(self) -> dict[str, object]:
        """Return the plan as JSON values, with the changes beside the rest."""
        content = asdict(self)
        changes = content.pop("changes")
        return {**content, **changes, "store": str(self.store)}


@dataclass(frozen=True)
class Job:
    """Everything about a pass but the loaded encoder; it can be sent to another process."""

    config: EmbedConfig
    plan: Plan
    dataset: Dataset  #: in the order of the table
    table: SampleTable  #: the store's, or the next one
    arrays: tuple[str, ...]  #: what every row must be in
    block_rows: int
    pending: NDArray[np.int64]  #: positions in the table that remain to be encoded
    storage: Storage
    #: The store as it was found; None if there was none, or in a worker process, which loads it itself.
    state: StoreState | None
    stopped: bool  #: whether it was stopped while images were compared: then nothing may be done
    #: How close the compute dtype is to a more exact one, see `samtl.embed.trial`; {} if that was not compared.
    closeness: dict[str, float] = field(default_factory=dict)
    #: Images that were encoded before the pass begins, by their positions in the table; a worker process has none.
    tried: Mapping[int, Decoded] = field(default_factory=dict)
    weights: bytes | None = field(default=None, repr=False)  #: that come from the images


def prepare(
    config: EmbedConfig,
    on_read: Callable[[int, int], None] = lambda done, total: None,
    should_stop: Callable[[], bool] = lambda: False,
    *,
    download: bool = True,
) -> Job:
    """Check every option of a pass and find what is left to do; writes nothing to the store.

    `on_read` and `should_stop` are those of `find_changes`; `download` says whether the dataset may be fetched. Raises
    what `samtl.embed` raises.
    """
    if config.tiers is not None:
        _in_order(config.tiers)
    if config.source is not None and not hasattr(registry.load("encoders", config.encoder), "fit"):
        check_source(config.source)
    check_engine(config.engine)
    described = _spec_of(config)
    devices = resolve_devices(config.device)
    kind = "" if described.keeps_size else devices[0].type
    batch_size = images_per_call(config.batch_size, kind, untold=0)

    listed = resolve(config.dataset, config.root, download=download)
    if config.group_by is not None:
        listed = replace(listed, groups=groups_by(listed.sample_ids, config.group_by))
    require_usable(listed)
    source = subset(shuffled(listed), limit=config.limit, per_class=config.per_class)
    place = place_of(config, source.name)
    storage = open_storage(place)
    refuse_foreign(place, storage)
    state, dtype, engine = load_state(storage), config.dtype, config.engine
    if state is not None:
        require_encoder(state.identity.encoder, storage.url)
        begun = str(state.identity.fingerprint["compute_dtype"])
        if engine == "reference":  # which has no 8-bit products
            begun = begun.removeprefix(INT8)
        elif engine == "int8" and not begun.startswith(INT8):
            engine = "fast"  # these were too far
        dtype = begun if dtype == "auto" else dtype
    held = () if state is None else [tier for tier in TIERS if tier in state.log.arrays]
    # A whole `dense` is large, and no head reads it of an image with one label.
    usual = TIERS if source.task == "segmentation" else ("pooled", "grid")
    tiers = _in_order(config.tiers or held or usual)
    spec = _spec_of(config, listed, state)
    source = source.taking(spec.bands, spec.units)
    if spec.keeps_size and not (config.image_size or state):
        spec = _spec_of(replace(config, image_size=own_size(source)), listed)
    wanted = config.source or spec.default_checkpoint
    if config.image_size is not None:
        _require_even(spec, tiers, source.task)
    if state is None:
        listed.require_outside(place)
    dtype = spec.usual_dtype if dtype == "auto" else dtype
    compute_dtype = resolve_compute(dtype, engine, devices[0])
    measured = encoder_speeds(devices[0]) if dtype == "auto" else None
    if compute_dtype.startswith(INT8):
        engine = "int8"
    if state is not None:  # weights are compared once they are loaded
        weights = str(state.identity.fingerprint["encoder"].get("weights_sha256"))
        require_same(state.identity, spec.fingerprint(weights, compute_dtype), storage.url)

    always = ["image_stats", "original_size", *(["mask"] if source.read_mask else [])]
    arrays, specs = (*always, *tiers), specs_of(spec)
    if state is not None:
        block_rows = state.identity.block_rows
    else:
        block_rows = rows_of_a_block(len(source), [specs[name] for name in arrays])
    table, changes, hashes, stopped = table_of(source), Changes(), dict[str, str](), False
    if state is not None and state.table.about.number >= 0:
        found = find_changes(state, source, listed, config.check_images, on_read, should_stop)
        table, changes, hashes = found or (state.table, changes, hashes)
        stopped = found is None
    hashes |= {
        name: image for name, image in zip(table.samples, table.images, strict=True) if image
    }
    read = not stopped and (state is None or config.check_images)

    committed = {} if state is None else state.log.arrays
    sizes, to_write = dict.fromkeys(arrays, 0), 0
    lacking, of_rows = set[int](), table.rows // block_rows
    for block in np.unique(of_rows).tolist():
        rows = len(table.block_rows(block, block_rows))
        for name in arrays:
            size = specs[name].shard_bytes(rows, block_rows)
            sizes[name] += size
            if (
                name not in committed
                or not (committed[name].sequence[block : block + 1] >= 0).any()
            ):
                to_write += size
                lacking.add(block)
    pending = np.flatnonzero(np.isin(of_rows, sorted(lacking)))
    job_plan = Plan(
        store=place,
        dataset=source.name,
        encoder=config.encoder,
        weights=f"untrained ({wanted})" if wanted.startswith("random:") else wanted,
        device=",".join(map(str, devices)),
        compute_dtype=compute_dtype,
        tiers=tiers,
        rows=len(table),
        pending_rows=len(pending),
        bytes_by_tier={
            **{tier: sizes[tier] for tier in tiers},
            "others": sum(sizes[name] for name in always),
        },
        bytes_to_write=to_write,
        bytes_free=shutil.disk_usage(existing(place)).free if isinstance(place, Path) else None,
        image_size=spec.image_size,
        bands=spec.bands,
        batch_size=batch_size,
        engine=engine,
        resumes=state is not None,
        note=source.note,
        task=source.task,
        understood=source.understood(),
        copies=find_copies(source, hashes, read, should_stop),
        changes=changes,
        by_default=_by_default(config, spec, state, bool(held), source.task),
        speeds=measured.relative_to(compute_dtype) if measured else {},
        load=measured.load if measured else 0.0,
    )
    dataset = source if stopped else only(source, table.samples)
    return Job(
        config, job_plan, dataset, table, arrays, block_rows, pending, storage, state, stopped
    )


def _spec_of(
    config: EmbedConfig, dataset: Dataset | None = None, state: StoreState | None = None
) -> EncoderSpec:
    """Describe the encoder of a pass over the dataset: as was asked for, else as the store was begun."""
    begun = {} if state is None else state.identity.fingerprint
    names = tuple(config.bands or begun.get("bands", ()))
    size = config.image_size
    if size is None and state is not None:
        size = state.identity.image_size
    units = BYTES if dataset is None else dataset.units
    describe = registry.load("encoders", config.encoder).spec
    spec: EncoderSpec = describe(config.encoder, size, Bands(names, units))
    if not spec.bands and dataset is not None:
        spec = describe(config.encoder, size, Bands(dataset.bands, units))
    return spec


def specs_of(spec: EncoderSpec) -> dict[str, ArraySpec]:
    """Describe the arrays of a store that an encoder makes."""
    return array_specs(
        channels=spec.channels,
        grid=spec.grid,
        cells=spec.cells,
        square=spec.image_size,
        features=spec.features,
        statistics=statistics_of(spec.bands),
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


def _by_default(
    config: EmbedConfig, spec: EncoderSpec, state: StoreState | None, held: bool, task: str
) -> dict[str, str]:
    """Say of each option that was not given what decides instead."""
    begun, own = "as the store was begun", "the encoder's own"
    told = f"${DTYPE}" if os.environ.get(DTYPE) else "the fastest here"
    reasons = {
        "checkpoint": own,
        "device": "what is there",
        "dtype": begun if state else told if spec.usual_dtype == "auto" else own,
        "image-size": begun if state else "the images' own" if spec.keeps_size else own,
        "tiers": "those of the store" if held else f"for {task}",
        "batch-size": "for the device",
        "engine": begun if state else "fast",
    }
    given = {option: getattr(config, option.replace("-", "_")) for option in reasons}
    return {
        option: why for option, why in reasons.items() if given[option] in (None, "auto", "fast")
    }


def _in_order(tiers: Sequence[str]) -> tuple[str, ...]:
    if not tiers or not set(tiers) <= set(TIERS):
        raise InputError(
            f"--tiers takes one or more of {','.join(TIERS)}, separated by commas, got {','.join(tiers)!r}"
        )
    return tuple(tier for tier in TIERS if tier in tiers)


def _require_even(spec: EncoderSpec, tiers: Sequence[str], task: str) -> None:
    """Refuse a size at which no head could read the grids: heads take tokens, or cells, in pairs."""
    tier, cells = ("dense", spec.grid[0]) if task == "segmentation" else ("grid", spec.cells)
    if tier in tiers and cells % 2:
        raise InputError(
            f"--image-size {spec.image_size} gives {tier} {cells} x {cells} cells, and heads take them in pairs: "
            f"choose a multiple of {2 * spec.patch}, or leave {tier} out of --tiers"
        )


def place_of(config: EmbedConfig, dataset: str) -> Path | str:
    """Name the store of a pass after what decides its content, so that different passes do not meet."""
    spec = _spec_of(config)
    kind, _, model = spec.name.partition(":")  # of a path, the end
    embedding = "-".join([kind, *re.findall(r"[\w-]+", "/".join(Path(model).parts[-2:]))])
    weights = config.source or spec.default_checkpoint
    if weights != spec.default_checkpoint:
        name = weights if weights.startswith("random:") else Path(weights).stem
        name = re.sub(r"[^\w-]+", "", name)
        embedding += f"-{name or 'file'}"
    if config.bands is not None:
        embedding += f"-{'-'.join(config.bands)}"
    parts = [
        dataset,
        f"per-class-{config.per_class}" if config.per_class else "",
        f"limit-{config.limit}" if config.limit else "",
        embedding
        if spec.keeps_size and not config.image_size
        else f"{embedding}.{spec.image_size}",
        "zarr",
    ]
    return place_in(config.out, ".".join(filter(None, parts)))


def place_in(out: str | Path | None, name: str) -> Path | str:
    """Return where a store is: `out` if it ends in .zarr, else the usual name in it or in the cache."""
    if out is not None and str(out).endswith(".zarr"):
        return as_place(out)
    return below(as_place(out) if out is not None else cache_folder(), name)


def refuse_foreign(place: Path | str, storage: Storage) -> None:
    """Raise InputError if the place of a store is taken by something else."""
    if isinstance(place, Path) and not (there := existing(place)).is_dir():
        raise InputError(f"{there} is a file; a store is a folder: name another with --out")
    names = storage.list()
    others = sorted(name for name in names if not name.startswith("."))
    if others and names.keys().isdisjoint((IDENTITY, LOG, FOLDER, ENCODER)):
        raise InputError(
            f"{place} is a folder that holds something else ({others[0]}); name a new one with --out"
        )
