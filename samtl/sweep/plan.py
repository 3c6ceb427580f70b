"""The plan of a sweep: its cells, who is in which part, from which cell each starts, and what shares a process."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samtl import registry
from samtl._io import digest
from samtl.datasets import Dataset, groups_by, only, resolve, shuffled
from samtl.embed.changes import look
from samtl.errors import InputError, MismatchError
from samtl.experiment.fit import configured
from samtl.experiment.held_out import Parts
from samtl.experiment.run import Config
from samtl.experiment.sources import Data, Images, array_for, samples_of
from samtl.experiment.trial import Trial
from samtl.images.transforms import IMAGE_SIZE
from samtl.splits import Samples, SplitSpec, select
from samtl.store.reader import Store, open_store

DEFAULT_HEADS = {
    "classification": ("logreg", "mlp", "conv", "vit"),
    "segmentation": ("conv", "vit"),
}
MOST_KNOWN = 0.05  # part of a validation part that a warm start may have learnt from
_LANES = 12  # heads on grids at a time in one process: each holds some of its rows
# Time that training takes for one sample, roughly and relative to each other: long cells begin first.
_COSTS = {
    "floor": 0.5, "logreg": 1.0, "mlp": 0.5, "conv": 6.0, "vit": 9.0, "cnn": 10.0, "unet": 60.0
}  # fmt: skip

Rows = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Cell:
    """One fit of a sweep."""

    number: int  #: in the order of the plan
    kind: str  #: `heads` or `baselines`
    name: str
    store: str  #: path of the store that it learns from or, of a baseline, is compared with; or ""
    features: str | None  #: patterns of columns of `pooled`
    split: str  #: as it was asked for
    seed: int
    parts: Parts
    start: str = ""  #: run folder of the cell that training starts from, or ""
    streamed: bool = False  #: whether it shares its passes over the store with others
    config: Config | None = None  #: decides the outcome

    @property
    def digest(self) -> str:
        """Digest of the configuration."""
        return self.config.digest if self.config else ""

    @property
    def run(self) -> str:
        """Name of the run folder."""
        return self.config.run_name if self.config else ""

    def __str__(self) -> str:
        inputs = f" on {self.config.inputs}" if self.config and self.kind == "heads" else ""
        return f"{self.name}{inputs}, split {self.split}, seed {self.seed}"


@dataclass(frozen=True, eq=False)
class Unit:
    """Cells that one process trains.

    In a lane, a cell may start from an earlier one. Lanes of streamed cells share their passes over the store; other
    lanes follow one another and share what a baseline caches.
    """

    lanes: tuple[tuple[Cell, ...], ...]

    @property
    def cells(self) -> list[Cell]:
        """Return the cells of all lanes."""
        return [cell for lane in self.lanes for cell in lane]


@dataclass(frozen=True)
class Given:
    """What all cells of a sweep have in common; the fields are parameters of `samtl.sweep`, except the last."""

    out: Path
    params: Mapping[str, Mapping[str, Any]]
    dataset: str | Dataset | None = None
    root: str | None = None
    group_by: str | None = None
    allow_partial: bool = False
    pixels: str = ""  #: digest of the images and masks that baselines read


class Sources:
    """The stores and images of a sweep, opened once, and the trials of its cells."""

    def __init__(self, given: Given) -> None:
        self.given = given
        self.store = functools.cache(open_store)
        self.data = functools.cache(self._data)
        self.images = functools.cache(self._images)
        self._cached: dict[tuple[str, str], dict[Any, Any]] = {}

    def trial(self, cell: Cell) -> Trial:
        """Make the trial of a cell; nothing is read or trained."""
        model = configured(cell.kind, cell.name, self.given.params.get(cell.name, {}), cell.seed)
        given = {"sweep": self.given.out.name, "split": cell.split, "group_by": self.given.group_by}
        common = (cell.name, model, cell.parts, cell.seed, given, cell.start)
        if cell.kind == "heads":
            data = self.data(cell.store, self.array(cell), cell.features)
            return Trial(data, *common, cell.streamed)
        if model.caches:
            model.use_cache(self._cached.setdefault((cell.store, cell.name), {}))
        size = int(self.store(cell.store).identity["image_size"]) if cell.store else IMAGE_SIZE
        images, samples = self.images(cell.store)
        return Trial(Images(images, samples, size, self.given.pixels), *common)

    def array(self, cell: Cell) -> str:
        """Return the array that a head reads."""
        return array_of(self.store(cell.store), cell.name)

    def _data(self, store: str, array: str, features: str | None) -> Data:
        given = self.given
        return Data(self.store(store), array, features, given.group_by, given.allow_partial)

    def _images(self, store: str) -> tuple[Dataset, Samples]:
        """Open the images of a store's rows, in their order, or all images without a store."""
        assert self.given.dataset is not None
        found = resolve(self.given.dataset, self.given.root)
        data = only(found, self.store(store).sample_ids) if store else shuffled(found)
        if self.given.group_by is not None:
            data = replace(data, groups=groups_by(data.sample_ids, self.given.group_by))
        return data, samples_of(data)


def array_of(store: Store, name: str) -> str:
    """Return the array of a store that a head reads."""
    return array_for(store, name, configured("heads", name, {}, 0))


def plan(
    sources: Sources,
    paths: Sequence[str],
    heads: Sequence[str] | None,
    specs: Sequence[SplitSpec],
    seeds: Sequence[int],
    baselines: Sequence[str],
    features: Sequence[str],
    warm_start: bool,
    room: int,
) -> list[Cell]:
    """List the cells; parameters as for `samtl.sweep`.

    Raises
    ------
    InputError
        If there is nothing to train, or the same twice, or an argument does not fit the stores.
    MismatchError
        If baselines would read other images, labels or masks than the store was made from.
    """
    counter = itertools.count()
    cells: list[Cell] = []

    def parts_of(samples: Samples) -> dict[tuple[str, int], Parts]:
        pairs = itertools.product(specs, seeds)
        return {(spec.text, seed): Parts(*select(samples, spec, seed)) for spec, seed in pairs}

    def add(
        kind: str,
        name: str,
        store: str,
        columns: str | None,
        parts: Mapping[tuple[str, int], Parts],
        streamed: bool = False,
    ) -> None:
        found = [
            Cell(next(counter), kind, name, store, columns, split, seed, some, streamed=streamed)
            for (split, seed), some in parts.items()
        ]
        for one in seeds:
            cells.extend(
                _chained(sources, [cell for cell in found if cell.seed == one], warm_start)
            )

    for path in paths:
        store: Store = sources.store(path)
        parts: dict[
            str, dict[tuple[str, int], Parts]
        ] = {}  # by array, which decides the usable rows
        for name in DEFAULT_HEADS[store.task] if heads is None else heads:
            array = array_of(store, name)
            if array not in parts:
                parts[array] = parts_of(sources.data(path, array, None).samples)
            streamed = array != "pooled" and store.bytes_of(array) > room
            for columns in (features or (None,)) if array == "pooled" else (None,):
                add("heads", name, path, columns, parts[array], streamed)
    if baselines:
        samples = _pixel_samples(sources, paths)
        found = parts_of(samples)
        for name in baselines:
            add("baselines", name, paths[0] if paths else "", None, found)
    if features and not any(cell.features for cell in cells):
        raise InputError(
            "--features chooses columns of pooled, and no head of this sweep reads these: leave it out"
        )
    if not cells:
        raise InputError("there is nothing to sweep: name --heads or --baselines")
    seen: dict[str, Cell] = {}
    for cell in cells:
        other = seen.setdefault(cell.digest, cell)
        if other is not cell:
            raise InputError(
                f"{cell.name} with seed {cell.seed} would be trained twice in the same way, on the split {other.split} "
                f"and on {cell.split}: a head, baseline, store, split or choice of features is given twice; leave one "
                "out"
            )
    return cells


def _chained(sources: Sources, cells: Sequence[Cell], warm_start: bool) -> list[Cell]:
    """Let each cell start from the one with the largest training part within its own."""
    first = cells[0]
    model = configured(first.kind, first.name, sources.given.params.get(first.name, {}), 0)
    convex = getattr(model, "convex", False)
    heads = first.kind == "heads"
    task = sources.store(first.store).task if heads else sources.images(first.store)[0].task
    # By run: the rows that were learnt from, starts included.
    known: dict[str, Rows] = {"": np.zeros(0, dtype=np.int64)}
    chained: list[Cell] = []
    for cell in sorted(cells, key=lambda cell: len(cell.parts.split.train)):
        train, inner = cell.parts.split.train, cell.parts.inner
        warm = warm_start and hasattr(model, "start_from") and model.gains(len(inner.train), task)
        within = [
            other
            for other in chained
            if warm
            and len(other.parts.split.train) < len(train)
            and np.isin(other.parts.split.train, train, assume_unique=True).all()
            and (convex or np.isin(inner.test, known[other.run]).mean() <= MOST_KNOWN)
        ]
        cell = configure(sources, replace(cell, start=within[-1].run if within else ""))
        known[cell.run] = np.union1d(known[cell.start], inner.train)
        chained.append(cell)
    return chained


def configure(sources: Sources, cell: Cell) -> Cell:
    """Add its configuration to a cell."""
    return replace(cell, config=sources.trial(cell).config)


def _pixel_samples(sources: Sources, paths: Sequence[str]) -> Samples:
    """Return the samples of baselines, if there is a store those that its heads use, and add their digest."""
    images, samples = sources.images(paths[0] if paths else "")
    stores: list[Store] = [sources.store(path) for path in paths]
    if stores:
        store = stores[0]
        sizes = sorted({int(other.identity["image_size"]) for other in stores})
        if len(sizes) > 1 and store.task == "segmentation":
            raise InputError(
                "masks of baselines are scored at the resolution of the heads that they are compared with, and these "
                f"stores have images of {' and '.join(map(str, sizes))} pixels: sweep each by itself"
            )
        usable = next((one for one in ("pooled", "grid", "dense") if one in store.arrays), None)
        if usable is None:
            raise InputError(f"{store.path} holds no features yet; run samtl embed first")
        stored = sources.data(paths[0], usable, None).samples
        if images.task != stored.task:
            raise InputError(
                f"{store.path} is for {stored.task}, and {images.name} for {images.task}: name the --dataset that the "
                "store was made from"
            )
        samples = replace(samples, usable=stored.usable, groups=stored.groups)
    seen, differences = _compared(images, samples, stores[0] if stores else None)
    if differences:
        raise MismatchError(
            f"{stores[0].path} was made from other images or labels than {images.name} has now, and heads cannot be "
            "compared with baselines of these: run samtl embed to bring the store up to date, or name the --dataset "
            "that it was made from:",
            differences,
        )
    sources.given = replace(sources.given, pixels=digest({"samples": sorted(seen)}))
    return samples


def _compared(
    images: Dataset, samples: Samples, store: Store | None
) -> tuple[list[list[Any]], list[tuple[str, str, str]]]:
    """Hash the usable images and masks, and return the first difference from a store, if any."""
    rows = np.flatnonzero(samples.usable)
    if store is not None:
        if images.classes != store.classes:
            return [], [("classes", ", ".join(store.classes), ", ".join(images.classes))]
        names = (*store.classes, "none")  # of -1
        for row in rows[store.labels[rows] != np.array(images.labels)[rows]]:
            labels = names[store.labels[row]], names[images.labels[row]]
            return [], [(f"label of {samples.ids[row]!r}", *labels)]
    seen: list[list[Any]] = []
    looked = look(images, [samples.ids[row] for row in rows])
    for row, (name, found) in zip(rows.tolist(), looked, strict=True):
        seen.append([name, found.image, found.mask])
        if store is None:
            continue
        for what, have, now in (
            ("image", store.image_sha256(row), found.image),
            ("mask", store.mask_sha256(row), found.mask),
        ):
            # The cells that need a file report if it cannot be read.
            if have and now is not None and have != now:
                told = f"sha256 {now[:16]}" if now else "none that can be used"
                return [], [(f"{what} of {name!r}", f"sha256 {have[:16]}", told)]
    return seen, []


def units_of(sources: Sources, cells: Iterable[Cell]) -> list[Unit]:
    """Divide cells among processes: the floor before what is held against it, then long units first."""
    streamed: dict[tuple[str, str], list[Cell]] = {}
    cached: dict[tuple[str, str], list[Cell]] = {}
    rest: list[Cell] = []
    for cell in cells:
        if cell.streamed:
            streamed.setdefault((cell.store, sources.array(cell)), []).append(cell)
        elif cell.kind == "baselines" and registry.load("baselines", cell.name).Baseline.caches:
            cached.setdefault((cell.store, cell.name), []).append(cell)
        else:
            rest.append(cell)
    units = [Unit(tuple((cell,) for cell in some)) for some in cached.values()]
    units += [Unit((tuple(lane),)) for lane in lanes_of(rest)]
    for some in streamed.values():
        lanes = lanes_of(some)
        hands: list[list[list[Cell]]] = [[] for _ in range(-(-len(lanes) // _LANES))]
        for lane in sorted(lanes, key=cost, reverse=True):
            min(hands, key=lambda hand: sum(map(cost, hand))).append(lane)
        units += [Unit(tuple(map(tuple, hand))) for hand in hands]
    return sorted(units, key=lambda unit: (unit.cells[0].name != "floor", -cost(unit.cells)))


def lanes_of(cells: Iterable[Cell]) -> list[list[Cell]]:
    """Group cells that start from one another, each after its start."""
    lane: dict[str, list[Cell]] = {}
    lanes: list[list[Cell]] = []
    for cell in sorted(cells, key=lambda cell: (len(cell.parts.split.train), cell.number)):
        if cell.start not in lane:
            lanes.append([])
        lane[cell.run] = lane.get(cell.start, lanes[-1])
        lane[cell.run].append(cell)
    return lanes


def cost(cells: Sequence[Cell]) -> float:
    """Estimate how long cells take to train, relative to others."""
    return sum(len(cell.parts.split.train) * _COSTS.get(cell.name, 5.0) for cell in cells)


def labelled(models: Iterable[tuple[str, str, str]]) -> dict[tuple[str, str, str], str]:
    """Name models (name, features, store): with features and store only if models of one name differ in them."""
    found = list(models)
    names = {}
    for model in found:
        name, features, store = model
        by_features, by_store = (
            len({other[i] for other in found if other[0] == name}) > 1 for i in (1, 2)
        )
        on = f" on {features or 'all'}" if by_features else ""
        names[model] = f"{name}{on}{f' @ {store}' if by_store and store else ''}"
    return names
