"""What a model learns from: the usable rows of a store, or the pixels of a dataset's images."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import zip_longest
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from samtl import registry
from samtl._io import as_text, crc32c, digest
from samtl.baselines.base import LINEAR, PixelBaseline
from samtl.baselines.floor import Baseline as FloorBaseline
from samtl.baselines.pixels import read_image, read_mask
from samtl.datasets import Dataset, groups_by
from samtl.errors import InputError
from samtl.experiment.clock import Clock
from samtl.experiment.features import (
    AT_ONCE,
    Feed,
    Targets,
    held_in_memory,
    moments_of,
    read_features,
    require_finite,
)
from samtl.experiment.held_out import FLOOR, Answers, Mask
from samtl.heads.base import PooledHead, fewest_classes
from samtl.heads.grid import STATISTICS_ROWS, GridHead
from samtl.images.transforms import IMAGE_SIZE, mask_square, resized_shape
from samtl.splits import Samples, Split
from samtl.splits.labels import known
from samtl.splits.split import Rows
from samtl.store.reader import Store
from samtl.store.reader.views import choose_columns, samples_of

Head = PooledHead | GridHead

FLOOR_FEATURES = "image_stats"
_OF_STORE = (
    "dataset", "note", "fingerprint", "snapshot", "encoder", "identity", "weights", "untrained"
)  # fmt: skip


@dataclass(eq=False)
class Data:
    """The usable rows of a store, and their features in an array of it.

    Raises InputError if rows are missing, nothing is usable, or the patterns fit no column.
    """

    store: Store
    array: str
    features: str | None = None  #: patterns of columns of `pooled`, separated by commas
    group_by: str | None = None  #: a regular expression that finds the group in an id
    allow_partial: bool = False  #: whether rows may be missing

    def __post_init__(self) -> None:
        store, array = self.store, self.array
        self.masks = store.task == "segmentation"
        #: Columns of `pooled` that are learnt from; empty for other arrays.
        self.columns = store.columns(array) if array == "pooled" else ()
        self._groups: tuple[str, ...] = ()  # of the columns if they are not all
        self._chosen: Rows | None = None
        if self.features is not None:
            self._choose(self.features)
        self._held: NDArray[np.float32] | None = None  # features of all rows of the store
        valid = store.valid(array, "mask") if self.masks else store.valid(array)
        quarantined = np.zeros_like(valid)
        quarantined[[entry.row for entry in store.quarantined]] = True
        missing = ~valid & ~quarantined
        if missing.any() and not self.allow_partial:
            raise InputError(
                f"{store.path} is not complete: {missing.sum()} of {len(valid)} rows have no {array!r} yet; run "
                "samtl embed again to finish it, or go on without them with --allow-partial"
            )
        samples = samples_of(store, array)
        usable = samples.usable
        #: How many rows are not usable.
        self.left_out = {
            "quarantined": int((~valid & quarantined).sum()),
            "missing": int(missing.sum()),
            "unlabelled": int((valid & ~usable).sum()),
        }
        _require_labels(usable, self.left_out["unlabelled"], store.path)
        fewest = fewest_classes(store.task)
        if len(store.classes) < fewest or not usable.any():
            raise InputError(
                f"a head needs embedded rows of at least {fewest} classes, and {store.path} has {usable.sum()} usable "
                f"rows and {len(store.classes)} classes"
            )
        if self.group_by is not None:
            samples = replace(samples, groups=groups_by(samples.ids, self.group_by))
        self.samples = samples

    def keep_ids(self, why: str, others: Sequence[Set[str]]) -> None:
        """Leave out the samples whose ids are not in all of some sets, and count them."""
        if not others:
            return
        samples = self.samples
        kept = [all(name in ids for ids in others) for name in samples.ids]
        usable = samples.usable & np.array(kept, dtype=bool)
        if not usable.any():
            raise InputError(
                f"{self.store.path} and the other stores have no usable sample in common"
            )
        self.left_out[why] = int((samples.usable & ~usable).sum())
        self.samples = replace(samples, usable=usable)

    def files(self) -> dict[str, bytes]:
        """Read what `predict` needs beside the head where the store is not: weights that come from the images."""
        state = self.store.state
        return {name: state.storage.read(name) for name in state.identity.files}

    @functools.cached_property
    def digest(self) -> str:
        """Digest of all samples of the store with their labels, images and masks; the same for every array."""
        store = self.store
        # As they are learnt from: the hashes of the dataset's own masks are not known of all rows.
        rows = np.flatnonzero(store.valid("mask")).tolist() if self.masks else ()
        masks = {row: store.checksum("mask", row) for row in rows}
        return state_of(store, store.labels, self.samples.images, masks)

    @property
    def about(self) -> dict[str, Any]:
        """Fields of a `Config` that say what is learnt from."""
        store = self.store
        return {name: getattr(store, name) for name in _OF_STORE} | {
            "kind": "head",
            "features": self.array,
            "columns": self._groups,
            "samples_digest": self.digest,
            "resolution": store.image_size if self.masks else 0,
            "order": "" if self.array == "pooled" else "windows",
            "store": as_text(store.name),
            "store_path": as_text(store.path),
        }

    def mask(self, row: int) -> Mask:
        """Read the mask of a row at the encoder's resolution, without padding."""
        height, width = self._shape(row)
        mask: Mask = self.store.row("mask", int(row))[:height, :width]
        return mask

    def fit(self, head: Head, split: Split, clock: Clock) -> dict[str, Any]:
        """Read the features of the training part and learn from them."""
        store, array, labels = self.store, self.array, self.samples.labels
        if isinstance(head, PooledHead):
            X, validation = self.read(split.train), self.read(split.validation)
            clock.start("fit")
            held_back = (validation, labels[split.validation])
            head.fit(X, labels[split.train], held_back, clock.on_event, store.task)
            return {}
        targets = Targets(store, array, None if self.masks else labels)
        held = held_in_memory(store, array, len(split.seen))
        training = Feed(store, array, split.train, targets, held)
        validating = Feed(store, array, split.validation, targets, held)
        clock.start("fit")
        about: dict[str, Any] = {"task": store.task, "n_classes": len(store.classes)}
        about |= {"shape": store.shape(array)[1:], "codes": labels[split.train]}
        first = moments_of(store, array, split.train[:STATISTICS_ROWS])
        statistics = torch.stack([*first]).mean(0)
        head.fit(training, validating, statistics, **about, on_event=clock.on_event)
        return {}

    def answers(self, head: Head, name: str, rows: Rows, clock: Clock) -> Iterator[Answers]:
        """Predict rows, some at a time."""
        at_once = AT_ONCE[self.samples.task]
        for start in range(0, len(rows), at_once):
            some = rows[start : start + at_once]
            yield {name: self.answer(head, some, self.read(some))}

    def answer(self, head: Any, rows: Rows, features: NDArray[Any]) -> Any:
        """Predict rows from their features: (n, K) probabilities or (n, 1) numbers, or a mask for each."""
        if not self.masks:
            return head.outputs(features)
        shapes = [self._shape(row) for row in rows]
        return head.class_maps(features, shapes, self.store.image_size)

    def floor(self, split: Split, seed: int, majority: int) -> Iterator[Answers] | str:
        """Fit a linear head to image statistics; or predict the most frequent class for every pixel."""
        store, labels = self.store, self.samples.labels
        if self.masks:
            shapes = map(self._shape, split.test)
            return ({FLOOR: [np.full(shape, majority, np.uint8)]} for shape in shapes)
        if FLOOR_FEATURES not in store.arrays:
            return f"the store has no {FLOOR_FEATURES}"
        each = (split.train, split.validation, split.test)
        if absent := (~store.valid(FLOOR_FEATURES)[np.concatenate(each)]).sum():
            return f"the store has no {FLOOR_FEATURES} for {absent} of the rows"
        X, validation, asked = (read_features(store, FLOOR_FEATURES, rows).numpy() for rows in each)
        head = LINEAR[store.task](random_state=seed)
        held_back = (validation, labels[split.validation])
        head.fit(X, labels[split.train], held_back, task=store.task)
        return iter([{FLOOR: head.outputs(asked)}])

    def hold(self) -> None:
        """Read all features now and keep them if they are small enough."""
        rows = self.samples.rows  # others may not be there yet
        if self._held is None and held_in_memory(self.store, self.array, len(rows)):
            values = self._columns(self.store.read(self.array, rows))
            self._held = np.zeros((len(self.samples.ids), *values.shape[1:]), values.dtype)
            self._held[rows] = values

    def read(self, rows: Rows) -> NDArray[Any]:
        """Read the features of some rows, (n, ...), of the chosen columns; InputError if they are not finite."""
        if self._held is None:
            return self._columns(read_features(self.store, self.array, rows).numpy())
        held: NDArray[Any] = self._held[rows]
        require_finite(self.store, self.array, rows, torch.from_numpy(held))
        return held

    def _shape(self, row: int) -> tuple[int, int]:
        """Return height and width of a row's image at the encoder's resolution."""
        height, width = self.store.row("original_size", int(row)).tolist()
        return resized_shape(height, width, self.store.image_size)

    def _columns(self, values: NDArray[Any]) -> NDArray[Any]:
        # Products of other layouts differ in the last digit.
        return values if self._chosen is None else np.ascontiguousarray(values[:, self._chosen])

    def _choose(self, patterns: str) -> None:
        if self.array != "pooled":
            raise InputError(
                f"--features chooses columns of pooled, and this head reads {self.array}: leave it out"
            )
        self._chosen, found = choose_columns(self.columns, patterns)
        self._groups = found if len(self._chosen) < len(self.columns) else ()
        self.columns = tuple(self.columns[i] for i in self._chosen)


@dataclass(eq=False)
class Images:
    """The pixels of a dataset's images."""

    dataset: Dataset
    image_size: int = (
        IMAGE_SIZE  #: the resolution of scores, the encoder's of heads to compare with
    )
    state: str = ""  #: `digest` if it is known
    images: tuple[str, ...] = ()  #: sha256 of each image file, which splits need

    def __post_init__(self) -> None:
        data, labels = self.dataset, self.dataset.truth
        self.masks, self.columns = data.task == "segmentation", ()
        usable = np.full(len(data), True) if self.masks else known(labels)
        about = (data.name, data.task, data.sample_ids, data.classes)
        self.samples = Samples(*about, labels, usable, data.groups, data.parts, self.images)
        self.left_out = {"unlabelled": int((~self.samples.usable).sum())}
        _require_labels(self.samples.usable, self.left_out["unlabelled"], data.name)

    def files(self) -> dict[str, bytes]:
        """Return nothing: a baseline reads pixels."""
        return {}

    @functools.cached_property
    def digest(self) -> str:
        """Digest of all samples with their labels, images and masks; that of `Data` if a store has the same."""
        if self.state:
            return self.state
        data, masks = self.dataset, {}
        for row in range(len(data)) if self.masks else ():
            with contextlib.suppress(InputError):  # if it is needed, training says so
                mask = read_mask(data, row, read_image(data, row).shape[:2])
                masks[row] = crc32c(mask_square(mask, self.image_size).tobytes())
        return state_of(data, data.truth, self.images, masks)

    @property
    def about(self) -> dict[str, Any]:
        """Fields of a `Config` that say what is learnt from."""
        data = self.dataset
        return {
            "kind": "baseline",
            "features": "pixels",
            "samples_digest": self.digest,
            "resolution": self.image_size if self.masks else 0,
            "dataset": data.name,
            "note": data.note,
        }

    def mask(self, row: int) -> Mask:
        """Read the mask of an image and resize it."""
        mask = read_mask(self.dataset, row, read_image(self.dataset, row).shape[:2])
        height, width = resized_shape(mask.shape[0], mask.shape[1], self.image_size)
        return mask_square(mask, self.image_size)[:height, :width]

    def fit(self, model: PixelBaseline, split: Split, clock: Clock) -> dict[str, Any]:
        """Learn from the images of the training part; return what weights that began with."""
        clock.start("fit")
        model.fit(self.dataset, split.train, split.validation, clock.on_event)
        clock.add("fit", model.cached_seconds())
        return {"weights": model.weights, "untrained": model.untrained}

    def answers(
        self, model: PixelBaseline, name: str, rows: Rows, clock: Clock
    ) -> Iterator[Answers]:
        """Predict rows, some at a time, as the baseline's companions do."""
        for said in model.predict_all(self.dataset, rows, image_size=self.image_size):
            yield {key: [mask] for key, mask in said.items()} if self.masks else said
        clock.add("score", model.cached_seconds())

    def floor(self, split: Split, seed: int, majority: int) -> Iterator[Answers] | str:
        """Fit the baseline of that name."""
        floor = FloorBaseline(random_state=seed)
        floor.fit(self.dataset, split.train, split.validation)
        return self.answers(floor, FLOOR, split.test, Clock())


def _require_labels(usable: NDArray[np.bool_], unlabelled: int, where: Path | str) -> None:
    """Raise InputError if no image has a label."""
    if unlabelled and not usable.any():
        raise InputError(
            f"there is nothing to learn from: no image of {where} has a label ({unlabelled} could be used); fit on a "
            "dataset with labels, and predict these with samtl predict"
        )


def state_of(
    of: Store | Dataset,
    labels: NDArray[Any],
    images: Sequence[str] = (),
    masks: Mapping[int, int] | None = None,
) -> str:
    """Digest samples with their labels, the sha256 of their images and the checksums of their masks, by row."""
    named: list[list[Any]] = [
        [name, None if label != label else label, image]
        for name, label, image in zip_longest(of.sample_ids, labels.tolist(), images, fillvalue="")
    ]
    for row, checksum in (masks or {}).items():
        named[row].append(checksum)
    return digest({"classes": list(of.classes), "samples": sorted(named, key=itemgetter(0))})


def array_for(store: Store, name: str, head: Head) -> str:
    """Return the array that a head reads; InputError if it is for another task, or the store lacks the array."""
    array = head.tiers.get(store.task)
    if array is None:
        tiers = {n: registry.load("heads", n).Head.tiers for n in registry.names("heads")}
        raise InputError(
            f"the head {name} is for {' and '.join(head.tiers)}, and {store.path} is for {store.task}: heads for that "
            f"are {', '.join(other for other, tasks in tiers.items() if store.task in tasks)}"
        )
    if array not in store.arrays:
        raise InputError(
            f"the head {name} needs the tier {array}, and {store.path} has {', '.join(store.tiers) or 'none'}: add it "
            f"with samtl embed --tiers {array} --out {store.path} and the options that the store was made with"
        )
    return array
