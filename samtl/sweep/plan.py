"""The plan of a sweep: its cells, from which cell each starts, and what shares a process."""

from __future__ import annotations

import functools
import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from samtl import registry
from samtl.datasets import Dataset, groups_by, only, resolve, shuffled
from samtl.embed.changes import look
from samtl.errors import InputError, MismatchError
from samtl.experiment.fit import configured
from samtl.experiment.run import Config
from samtl.experiment.sources import Data, Images, array_for, state_of
from samtl.experiment.trial import Trial
from samtl.images.transforms import IMAGE_SIZE
from samtl.splits import Samples, Split, parse_many, select
from samtl.splits.labels import label_texts
from samtl.store.reader import Store, open_store

DEFAULT_HEADS = {
    "classification": ("logreg", "mlp", "conv", "vit"),
    "multilabel": ("logreg", "mlp", "conv", "vit"),
    "regression": ("ridge", "mlp"),
    "segmentation": ("conv", "vit"),
}
MOST_KNOWN = 0.05  # part of a validation part that a warm start may have learnt from
_LANES = 12  # heads on grids at a time in one process: each holds some of its rows
# Time that training takes for one sample, roughly and relative to each other: long cells begin first.
_COSTS = {
    "floor": 0.5, "logreg": 1.0, "mlp": 0.5, "conv": 6.0, "vit": 9.0, "cnn": 10.0, "unet": 60.0
}  # fmt: skip


@dataclass(frozen=True)
class Given:
    """What was asked for; the fields are parameters of `samtl.sweep`, except the last."""

    out: Path
    stores: tuple[str, ...] = ()
    heads: Sequence[str] | None = None
    splits: str = "0.2"
    seeds: Sequence[int] = (0,)
    baselines: Sequence[str] = ()
    features: Sequence[str] = ()
    params: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    dataset: str | Dataset | None = None
    root: str | Path | None = None
    group_by: str | None = None
    warm_start: bool = False
    allow_partial: bool = False
    room: int = 0
    state: str = ""  #: digest of the samples that baselines read
    listed: str = ""  #: digest of their ids and labels alone, which is quickly made again
    images: dict[str, str] = field(default_factory=dict)  #: sha256 of each of these, by id


@dataclass(frozen=True, eq=False)
class Cell:
    """One fit of a sweep."""

    name: str  #: of the head or baseline
    store: str  #: path of the store that it learns from or, of a baseline, is compared with; or ""
    array: str  #: that a head reads; "" for a baseline
    features: str | None  #: patterns of columns of `pooled`
    split: str  #: as it was asked for
    seed: int
    rows: Split
    streamed: bool = False  #: whether it shares its passes over the store with others
    number: int = 0  #: in the order of the plan
    start: str = ""  #: run folder of the cell that training starts from, or ""
    config: Config | None = None  #: decides the outcome

    @property
    def run(self) -> str:
        """Name of the run folder."""
        return self.config.run_name if self.config else ""

    def __str__(self) -> str:
        inputs = f" on {self.config.inputs}" if self.config and self.array else ""
        return f"{self.name}{inputs}, split {self.split}, seed {self.seed}"


#: Cells of a lane may start from one another, each after its start.
Lane = Sequence[Cell]
#: What one process trains. Lanes of streamed cells share their passes over the store, others what a baseline caches.
Unit = Sequence[Lane]


class Sources:
    """The stores and images of a sweep, opened once, and the trials of its cells."""

    def __init__(self, given: Given) -> None:
        self.given = given
        self.store = functools.cache(open_store)
        self.data = functools.cache(self._data)
        self.images = functools.cache(self._images)
        self._cached: dict[tuple[str, str], dict[Any, Any]] = defaultdict(dict)

    def trial(self, cell: Cell) -> Trial:
        """Make the trial of a cell; nothing is read or trained."""
        given, kind = self.given, "heads" if cell.array else "baselines"
        model = configured(kind, cell.name, given.params.get(cell.name, {}), cell.seed)
        asked = {"sweep": given.out.name, "split": cell.split, "group_by": given.group_by}
        common = (cell.name, model, cell.rows, cell.seed, asked, cell.start)
        if cell.array:
            data = self.data(cell.store, cell.array, cell.features)
            return Trial(data, *common)
        if model.caches:
            model.use_cache(self._cached[cell.store, cell.name])
        size = self.store(cell.store).image_size if cell.store else IMAGE_SIZE
        images = self.images(cell.store)
        hashes = tuple(given.images.get(name, "") for name in images.sample_ids)
        return Trial(Images(images, size, given.state, hashes), *common)

    def _data(self, store: str, array: str, features: str | None) -> Data:
        given, own = self.given, self.store(store)
        data = Data(own, array, features, given.group_by, given.allow_partial)
        others = [self.store(other) for other in given.stores if other != store]
        data.keep_ids(
            "not_in_every_store",
            [
                {name for name, ok in zip(other.sample_ids, other.valid(), strict=True) if ok}
                for other in others
                if other.dataset == own.dataset
            ],
        )
        return data

    def _images(self, store: str) -> Dataset:
        """Open the images of a store's rows, in their order, or all images without a store."""
        assert self.given.dataset is not None
        found = resolve(self.given.dataset, self.given.root)
        found.require_outside(self.given.out)
        data = only(found, self.store(store).sample_ids) if store else shuffled(found)
        if self.given.group_by is not None:
            data = replace(data, groups=groups_by(data.sample_ids, self.given.group_by))
        if self.given.listed not in ("", state_of(data, data.truth)):
            raise MismatchError(f"{data.name} changed while the sweep ran: run it again", [])
        return data


def plan(sources: Sources) -> list[Cell]:
    """List the cells of a sweep.

    Raises
    ------
    InputError
        If there is nothing to train, or the same twice, or an argument does not fit the stores.
    MismatchError
        If baselines would read other images, labels or masks than the store was made from.
    """
    given = sources.given
    specs = parse_many(given.splits)
    cells: list[Cell] = []

    def parts_of(samples: Samples) -> list[tuple[str, int, Split]]:
        pairs = itertools.product(specs, given.seeds)
        return [(spec.text, seed, select(samples, spec, seed)) for spec, seed in pairs]

    for path in given.stores:
        store: Store = sources.store(path)
        parts: dict[bytes, list[tuple[str, int, Split]]] = {}  # by usable rows
        for name in DEFAULT_HEADS[store.task] if given.heads is None else given.heads:
            array = array_for(store, name, configured("heads", name, {}, 0))
            streamed = array != "pooled" and store.bytes_of(array) > given.room
            samples = sources.data(path, array, None).samples
            if (usable := samples.usable.tobytes()) not in parts:
                parts[usable] = parts_of(samples)
            for columns in given.features if array == "pooled" and given.features else (None,):
                cells += [Cell(name, path, array, columns, *one, streamed) for one in parts[usable]]
    if given.baselines:
        path = given.stores[0] if given.stores else ""
        pixels = parts_of(_pixel_samples(sources))
        cells += [Cell(name, path, "", None, *one) for name in given.baselines for one in pixels]
    cells = _chained(sources, cells)
    if given.features and not any(cell.features for cell in cells):
        raise InputError(
            "--features chooses columns of pooled, and no head of this sweep reads these: leave it out"
        )
    if not cells:
        raise InputError("there is nothing to sweep: name --heads or --baselines")
    for name, some in given.params.items():
        if name not in {cell.name for cell in cells}:
            raise InputError(
                f"parameters are given for {name}, which is not in this sweep: leave them out"
            )
        if "random_state" in some:
            raise InputError(
                f"random_state of {name} is what each seed of a sweep sets: name the --seeds instead"
            )
    seen: dict[str, Cell] = {}
    for cell in cells:
        assert cell.config is not None
        other = seen.setdefault(cell.config.digest, cell)
        if other is not cell:
            raise InputError(
                f"{cell} would be trained twice, as {other} is the same: a head, baseline, store, split or choice of "
                "features is given twice; leave one out"
            )
    return cells


def _chained(sources: Sources, cells: Sequence[Cell]) -> list[Cell]:
    """Number and configure cells; each starts from the one with the largest training part within its own."""
    chains: dict[tuple[str, str, str | None, int], list[Cell]] = defaultdict(list)
    known = {"": np.zeros(0, dtype=np.int64)}  # by run: rows that were learnt from, starts included
    for number, cell in sorted(enumerate(cells), key=lambda one: len(one[1].rows.seen)):
        chain = chains[cell.store, cell.name, cell.features, cell.seed]
        split, trial = cell.rows, sources.trial(cell)
        model = trial.model
        warm = (
            sources.given.warm_start
            and hasattr(model, "start_from")
            and model.gains(len(split.train), trial.samples.task)
        )
        within = [
            other.run
            for other in chain
            if warm
            and len(other.rows.seen) < len(split.seen)
            and np.isin(other.rows.seen, split.seen, assume_unique=True).all()
            and (
                getattr(model, "convex", False)
                or np.isin(split.validation, known[other.run]).mean() <= MOST_KNOWN
            )
        ]
        start = within[-1] if within else ""
        config = msgspec.structs.replace(trial.config, warm_start=start).with_digest()
        chain.append(replace(cell, number=number, start=start, config=config))
        known[chain[-1].run] = np.union1d(known[start], split.train)
    return sorted(itertools.chain(*chains.values()), key=lambda cell: cell.number)


def _pixel_samples(sources: Sources) -> Samples:
    """Return the samples of baselines, with a store those that its heads use, and keep their digest."""
    paths = sources.given.stores
    images = sources.images(paths[0] if paths else "")
    samples = Images(images).samples
    store: Store | None = None
    if paths:
        store = sources.store(paths[0])
        sizes = sorted({sources.store(path).image_size for path in paths})
        if len(sizes) > 1 and store.task == "segmentation":
            raise InputError(
                "masks of baselines are scored at the resolution of the heads that they are compared with, and these "
                f"stores have images of {' and '.join(map(str, sizes))} pixels: sweep each by itself"
            )
        if not store.tiers:
            raise InputError(f"{store.path} holds no features yet; run samtl embed first")
        data = sources.data(paths[0], store.tiers[0], None)
        samples = replace(samples, usable=data.samples.usable, groups=data.samples.groups)
    found = _compared(images, samples, store)
    hashes = tuple(found.get(name, "") for name in samples.ids)
    # With a store, the usable images and masks are the same as its own.
    state = data.digest if store else Images(images, IMAGE_SIZE, images=hashes).digest
    listed = state_of(images, images.truth)
    sources.given = replace(sources.given, state=state, listed=listed, images=found)
    return replace(samples, images=hashes)


def _compared(images: Dataset, samples: Samples, store: Store | None) -> dict[str, str]:
    """Hash the usable images by their ids; MismatchError names the first image or mask that is not the store's."""

    def compare(what: str, stored: str, now: str | None) -> None:
        # The cells that need a file report if it cannot be read.
        if store is not None and stored and now is not None and stored != now:
            raise MismatchError(
                f"{store.path} was made from other images or labels than {images.name} has now, and heads cannot be "
                "compared with baselines of these: run samtl embed to bring the store up to date, or name the "
                "--dataset that it was made from:",
                [(what, stored, now or "none")],
            )

    if store is not None:
        compare("task", store.task, images.task)
        compare("classes", ", ".join(store.classes), ", ".join(images.classes))
    seen: dict[str, str] = {}
    now, had = (
        label_texts(labels, images.classes)
        for labels in (images.truth, images.truth if store is None else store.labels)
    )
    rows = np.flatnonzero(samples.usable).tolist()
    looked = look(images, [samples.ids[row] for row in rows])
    for row, (name, found) in zip(rows, looked, strict=True):
        seen[name] = found.image or ""
        if store is not None:
            compare(f"label of {name!r}", had[row], now[row])
            compare(f"image of {name!r}", store.image_sha256(row), found.image)
            compare(f"mask of {name!r}", store.mask_sha256(row), found.mask)
    return seen


def units_of(cells: Iterable[Cell]) -> list[Unit]:
    """Divide cells among processes: the floor before what is held against it, then long units first."""
    shared: dict[tuple[bool, str, str], list[Lane]] = defaultdict(list)
    units: list[Unit] = []
    for lane in sorted(lanes_of(cells), key=cost, reverse=True):
        first = lane[0]
        if first.streamed or _caches(first):
            shared[first.streamed, first.store, first.array or first.name].append(lane)
        else:
            units.append([lane])
    for (streamed, *_), lanes in shared.items():
        n = -(-len(lanes) // _LANES) if streamed else 1
        units += [lanes[i::n] for i in range(n)]
    return sorted(units, key=lambda unit: (unit[0][0].name != "floor", -sum(map(cost, unit))))


def _caches(cell: Cell) -> bool:
    return not cell.array and bool(registry.load("baselines", cell.name).Baseline.caches)


def lanes_of(cells: Iterable[Cell]) -> list[Lane]:
    """Group cells that start from one another, each after its start."""
    by_run: dict[str, list[Cell]] = {}
    lanes: list[list[Cell]] = []
    for cell in sorted(cells, key=lambda cell: (len(cell.rows.seen), cell.number)):
        if cell.start not in by_run:
            lanes.append([])
        by_run[cell.run] = by_run.get(cell.start, lanes[-1])
        by_run[cell.run].append(cell)
    return [*lanes]


def cost(cells: Lane) -> float:
    """Estimate how long cells take to train, relative to others."""
    return sum(len(cell.rows.seen) * _COSTS.get(cell.name, 5.0) for cell in cells)
