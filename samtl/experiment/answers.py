"""Where predictions come from: new images through the run's encoder, images through a baseline, or rows of a store."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from samtl.baselines.base import PixelBaseline
from samtl.datasets import Dataset
from samtl.datasets.listing import FolderTree, flaw, kind_of
from samtl.embed.decode import Decoded, decode_row, decoded_ahead
from samtl.embed.plan import images_per_call
from samtl.embed.reload import reload_encoder
from samtl.encoders.device import resolve_device
from samtl.errors import InputError, MismatchError
from samtl.experiment.head_trial import stored_masks
from samtl.experiment.run import Run, read_run
from samtl.experiment.tables import mask_name
from samtl.heads.base import Floats, PooledHead
from samtl.heads.io import load
from samtl.images.codecs import SUFFIXES
from samtl.images.transforms import resized_shape
from samtl.store.fingerprint import differences
from samtl.store.reader import Store, open_store
from samtl.store.storage import locate

_ROWS_AT_ONCE = 256  # of a store, for the probabilities of classes
_IMAGES_AT_ONCE = 32  # as files in memory, for a baseline


@dataclass(frozen=True)
class Skipped:
    """An image, or a row of a store, that nothing could be predicted for."""

    image: str
    code: str
    reason: str


class Trained(Run, frozen=True, kw_only=True, eq=False):
    """A run with its trained head or baseline."""

    model: Any

    @property
    def array(self) -> str:
        """The store's array, and tier, that the head reads."""
        return str(self.model.tiers[self.task])

    def chosen(self, columns: Sequence[str]) -> NDArray[np.int64] | None:
        """Return which of the columns of `pooled` the head reads; None if it does not read `pooled`."""
        if not isinstance(self.model, PooledHead):
            return None
        missing = set(self.model.columns_) - set(columns)
        if missing:
            raise InputError(
                f"the head of {self.path} reads the column {min(missing)!r}, which its encoder does not have"
            )
        return np.array([columns.index(name) for name in self.model.columns_])

    def chances(self, features: NDArray[Any], chosen: NDArray[np.int64] | None) -> Floats:
        """Return the probabilities of the classes, (n, ...) to (n, K)."""
        read = features if chosen is None else features[:, chosen]
        found: Floats = self.model.predict_proba(read)
        return found


def read_trained(run: str | Path) -> Trained:
    """Read a run folder with its model; raises as `read_run`."""
    found = read_run(run, whole=True)
    return Trained(**msgspec.structs.asdict(found), model=load(found.path))


#: What an image is called, the file of its mask, and its probabilities, (K,) float64, or mask, (height, width) uint8.
Answer = tuple[str, str, NDArray[Any] | Skipped]


class Source(NamedTuple):
    """What is predicted, image after image, as the answers are asked for."""

    column: str  # what the tables call an image
    total: int
    weights: str
    untrained: bool
    answers: Iterator[Answer]
    store: str = ""


def listed(images: str | Path, trained: Trained, place: Path) -> Dataset:
    """List images without labels as a dataset."""
    path = Path(images).expanduser()
    kind = kind_of(path)
    if kind == "file":
        path = path.resolve()
        ids = [path.name]
        if flaw(path.name) is not None:
            raise InputError(f"the name {path.name!a} {flaw(path.name)}; rename the file")
        path = path.parent
    elif kind == "folder":
        ids = FolderTree(path).images()
    else:
        raise InputError(f"{str(path)!r} does not exist; expected a folder of images, or an image")
    if not ids:
        raise InputError(
            f"there is no image in {str(path)!r}: expected {', '.join(sorted(SUFFIXES))}"
        )
    if trained.task == "segmentation":
        if kind == "folder" and place.resolve().is_relative_to(path.resolve()):
            raise InputError(
                f"{place} lies in the folder of images, and masks would be taken for images the next time: name "
                "another folder with --out"
            )
        seen: dict[str, str] = {}
        for name in ids:
            other = seen.setdefault(_mask_of(name), name)
            if other != name:
                raise InputError(
                    f"{other!r} and {name!r} would both have the mask {_mask_of(name)!r}: rename one of them"
                )
    return Dataset("images", trained.classes, tuple(ids), (-1,) * len(ids), FolderTree(path).read)


def _mask_of(image: str) -> str:
    return str(PurePosixPath(image).with_suffix(".png"))


def encoded(
    trained: Trained, dataset: Dataset, checkpoint: str | None, device: str, batch_size: int | str
) -> Source:
    """Load the run's encoder, and predict from its output."""
    target = resolve_device(device)
    at_once = images_per_call(batch_size, target.type, untold=8)
    encoder = reload_encoder(trained.identity, trained.weights, trained.path, checkpoint, device)
    chosen = trained.chosen(encoder.spec.features)
    side = encoder.spec.image_size

    def predicted(images: Sequence[Decoded]) -> Iterator[NDArray[Any] | None]:
        pixels = [image.pixels for image in images if image.pixels is not None]
        features = encoder.encode(pixels, [trained.array])[trained.array]
        fine = np.isfinite(features).reshape(len(features), -1).all(axis=1)
        sizes = [image.original_size for image, good in zip(images, fine, strict=True) if good]
        found: Iterator[NDArray[Any]] = iter(())
        if sizes and trained.task == "classification":
            found = iter(trained.chances(features[fine], chosen))
        elif sizes:
            shapes = [resized_shape(height, width, side) for height, width in sizes]
            found = iter(trained.model.class_maps(features[fine], shapes, side, sizes))
        return (next(found) if good else None for good in fine)

    def answers() -> Iterator[Answer]:
        decoded = decoded_ahead(dataset, iter(range(len(dataset))), side, at_once, str(target))
        with closing(decoded):
            while batch := list(itertools.islice(decoded, at_once)):
                yield from _answered(dataset, batch, predicted)

    about = encoder.weights
    return Source("image", len(dataset), about.description, about.untrained, answers())


def _answered(
    dataset: Dataset,
    images: Sequence[Decoded],
    predicted: Callable[[Sequence[Decoded]], Iterator[NDArray[Any] | None]],
) -> Iterator[Answer]:
    """Predict the images that could be decoded; None is predicted from what is not finite."""
    good = [image for image in images if image.pixels is not None]
    found = predicted(good) if good else iter(())
    for image in images:
        name = dataset.sample_ids[image.row]
        answer = None if image.pixels is None else next(found)
        reason = image.reason or "the encoder's output for this image is NaN or infinite"
        skipped = Skipped(name, image.code or "nonfinite", reason)
        yield name, _mask_of(name), skipped if answer is None else answer


def by_pixels(
    trained: Trained, dataset: Dataset, checkpoint: str | None, device: str, batch_size: int | str
) -> Source:
    """Predict with a baseline, a few files at a time: it refuses a whole dataset for one bad image."""
    model: PixelBaseline = trained.model
    if "checkpoint" in model.get_params():
        model.set_params(device=device)
        if checkpoint is not None:
            model.set_params(checkpoint=checkpoint)
    elif checkpoint is not None:
        raise InputError(f"the baseline {trained.name} loads no weights: leave --checkpoint out")
    at_once = _IMAGES_AT_ONCE
    if batch_size != "auto":
        at_once = images_per_call(batch_size, "cpu", untold=8)
    masks = trained.task == "segmentation"

    def answers() -> Iterator[Answer]:
        for start in range(0, len(dataset), at_once):
            rows = range(start, min(start + at_once, len(dataset)))
            once = replace(dataset, read=_Once(dataset), read_mask=None)
            batch = [decode_row(once, row, 1) for row in rows]
            asked = replace(once, read_mask=_no_mask if masks else None)

            def predicted(
                images: Sequence[Decoded], asked: Dataset = asked
            ) -> Iterator[NDArray[Any]]:
                if not masks:
                    for block in model.predict(asked, [image.row for image in images]):
                        yield from block
                    return
                for image in images:
                    size = max(image.original_size)
                    yield from model.predict(asked, [image.row], image_size=size)

            yield from _answered(dataset, batch, predicted)

    return Source("image", len(dataset), trained.weights, trained.untrained, answers())


class _Once:
    """Reads each file once and keeps it: it is decoded to be checked, and then again by the baseline."""

    def __init__(self, dataset: Dataset) -> None:
        self.read = dataset.read
        self.files: dict[str, bytes] = {}

    def __call__(self, sample_id: str) -> bytes:
        if sample_id not in self.files:
            self.files[sample_id] = self.read(sample_id)
        return self.files[sample_id]


def _no_mask(sample_id: str) -> NDArray[np.uint8]:
    raise InputError(f"{sample_id!r} has no mask")


def stored(trained: Trained, which: str | Path | Store | bool | None) -> Source:
    """Predict from the rows of a store."""
    if trained.kind == "baseline":
        raise InputError(
            f"{trained.path} is of a baseline, which reads pixels and no store: use --images"
        )
    store = which
    if not isinstance(store, Store):
        store = open_store(locate(None if isinstance(which, bool) else which))  # type: ignore[arg-type]
    found = differences(store.identity, trained.identity)
    if found:
        raise MismatchError(
            f"{store.path} was not made with the encoder that the head of {trained.path} learnt from; name another "
            "store with --cache, or predict from the images with --images:",
            found,
        )
    if trained.array not in store.arrays:
        raise InputError(
            f"the head of {trained.path} needs the tier {trained.array}, and {store.path} has "
            f"{', '.join(store.tiers) or 'none'}: add it with samtl embed --tiers {trained.array}"
        )
    about = store.weights, store.untrained
    return Source("sample_id", len(store), *about, _rows(trained, store), str(store.path))


def _rows(trained: Trained, store: Store) -> Iterator[Answer]:
    """Predict every row of a store, in order, or say why it is not."""
    valid = store.valid(trained.array, "original_size")
    bad = {entry.row: entry for entry in store.quarantined}
    usable = np.flatnonzero(valid)
    if trained.task == "segmentation":
        found = stored_masks(store, trained.model, usable)
    else:
        found = _stored_chances(trained, store, usable)
    for row, sample_id in enumerate(store.sample_ids):
        code = "missing"
        reason = "the row is not embedded yet; run samtl embed again to finish the store"
        if row in bad:
            code, reason = bad[row].code, bad[row].reason
        answer = next(found) if valid[row] else Skipped(sample_id, code, reason)
        yield sample_id, mask_name(row, sample_id), answer


def _stored_chances(
    trained: Trained, store: Store, rows: NDArray[np.int64]
) -> Iterator[NDArray[Any]]:
    chosen = trained.chosen(store.columns("pooled")) if trained.array == "pooled" else None
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        features = store.read(trained.array, rows[start : start + _ROWS_AT_ONCE])
        yield from trained.chances(features, chosen)
