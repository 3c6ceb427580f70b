"""A trained head or baseline on new images, or on the rows of a store: a table of probabilities, or masks.

A head gets its features from the run's own encoder, with the weights, the preprocessing and the compute dtype that it
learnt from; anything else is refused. What comes out is there whole or not at all.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samtl.baselines.base import PixelBaseline
from samtl.datasets import Dataset, Reader
from samtl.datasets.listing import (
    FolderReader,
    expanded,
    flaw,
    images_below,
    kind_of,
)
from samtl.embed.decode import Decoded, decode_row, decoded_ahead
from samtl.embed.plan import images_per_call
from samtl.embed.reload import reload_encoder
from samtl.encoders.device import resolve_device
from samtl.errors import InputError, MismatchError
from samtl.experiment.head_trial import stored_masks
from samtl.experiment.output import TABLE, Output, place_for
from samtl.experiment.tables import mask_name
from samtl.experiment.trained import Trained, read_trained
from samtl.heads.base import Floats
from samtl.heads.grid import GridHead
from samtl.images.codecs import SUFFIXES
from samtl.images.transforms import resized_shape
from samtl.store.find import locate
from samtl.store.fingerprint import differences
from samtl.store.reader import Store, open_store

_ROWS_AT_ONCE = 256  # of a store, for the probabilities of classes
_IMAGES_AT_ONCE = 32  # as files in memory, for a baseline


@dataclass(frozen=True)
class Skipped:
    """An image, or a row of a store, that nothing could be predicted for."""

    image: str
    code: str
    reason: str


@dataclass(frozen=True)
class Predicted:
    """How far a prediction is: images done and skipped, of so many."""

    done: int
    skipped: int
    total: int

    def __str__(self) -> str:
        return f"predicted {self.done} of {self.total}"


@dataclass(frozen=True)
class PredictResult:
    """What was predicted, and where it is.

    Attributes
    ----------
    run : Path
    kind, name : str
        `head` or `baseline`, and its name.
    task : str
        `classification` or `segmentation`.
    source : str
        The images' folder or file, or the store.
    table : Path or None
        The CSV file, with a line for each image; None where the work was interrupted, which leaves nothing behind.
    masks : Path or None
        The folder of the masks, of a segmentation.
    rows : int
        Images predicted.
    counts : dict of str to int
        Images of each predicted class; of a segmentation, those with a pixel of it.
    means : dict of str to float
        Mean probability of each class; of a segmentation, the mean share of an image's pixels. 0 without images.
    skipped : tuple of Skipped
    seconds : float
    encoder, weights : str
        What the features came from, "" where there is none.
    untrained : bool
        Whether those weights are random numbers.
    note : str
        What readers must know about the dataset that was learnt from, or "".
    interrupted : bool
    """

    run: Path
    kind: str
    name: str
    task: str
    source: str
    table: Path | None
    masks: Path | None
    rows: int
    counts: dict[str, int]
    means: dict[str, float]
    skipped: tuple[Skipped, ...]
    seconds: float
    encoder: str
    weights: str
    untrained: bool
    note: str
    interrupted: bool

    def to_json(self) -> dict[str, object]:
        """Give the result as JSON values."""
        paths = {"run": self.run, "table": self.table, "masks": self.masks}
        return {**asdict(self), **{name: path and str(path) for name, path in paths.items()}}


def predict(
    run: str | Path,
    images: str | Path | None = None,
    *,
    from_store: str | Path | Store | bool | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    checkpoint: str | Path | None = None,
    device: str = "auto",
    batch_size: int | str = "auto",
    on_event: Callable[[Predicted | Skipped], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> PredictResult:
    """Predict with a trained head or baseline: classes of new images, or masks of them.

    Classification gives a table, `image,predicted,p_<class>...`. Segmentation gives a folder: for each image a PNG of
    class indices with a palette, and a table, `image,mask,share_<class>...`, with each class's share of the pixels.
    An image that cannot be used is skipped and listed.

    Parameters
    ----------
    run : path
        A run folder.
    images : path, optional
        A folder, with every image below it, in natural order; or one image file. Masks have the images' own size.
    from_store : path, Store or True, optional
        Instead of images, the rows of a store that was made with the run's encoder: the store, a folder with one, or
        True for the only one where stores are by default. No image is read and no encoder is loaded. The tables have
        `sample_id` in the place of `image`; masks have the encoder's resolution.
    out : path, optional
        The file of a classification, by default `predictions.csv`; the folder of a segmentation, by default `masks`.
    overwrite : bool
        Whether what an earlier prediction left there may be replaced.
    checkpoint : path, optional
        The weights of the run's encoder, where they came from a file or lie elsewhere now; see `samtl.embed`.
    device : str
        What the encoder runs on: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
    batch_size : int or "auto"
        Images in one call of the encoder.
    on_event : callable, optional
        Called with `Predicted` after each image, and with `Skipped` for each that cannot be used.
    should_stop : callable, optional
        Asked between images; where it says True the work ends, and nothing is left behind.

    Returns
    -------
    PredictResult

    Raises
    ------
    InputError
        Where the run is none or damaged, there is no image or no store, or `out` is taken.
    MismatchError
        Where the encoder, or the store, is not what the head learnt from.
    ResourceError
        Where the disk or the device gives out.
    """
    began = time.perf_counter()
    tell = on_event or (lambda event: None)
    if (images is None) == (from_store is None or from_store is False):
        raise InputError("predict from images or from a store: give one of --images, --from-store")
    trained = read_trained(run)
    place = place_for(out, trained.task, overwrite)
    if images is None:
        if checkpoint is not None:
            raise InputError("--from-store loads no encoder: leave --checkpoint out")
        source = _stored(trained, from_store)
    else:
        dataset = _listed(images, trained, place)
        by = _by_pixels if trained.kind == "baseline" else _encoded
        told = None if checkpoint is None else str(checkpoint)
        source = by(trained, dataset, told, device, batch_size)

    tally = _Tally(len(trained.classes))
    interrupted = False
    with (
        closing(source.items),
        Output(place, trained.task, trained.classes, source.column, overwrite) as output,
    ):
        for item in source.items:
            if should_stop():
                interrupted = True
                break
            if item.answer is None:
                tally.skipped.append(Skipped(item.image, item.code, item.reason))
                tell(tally.skipped[-1])
            else:
                tally.add(*output.write(item.image, item.mask, item.answer))
            tell(Predicted(tally.rows, len(tally.skipped), source.total))
        if not interrupted:
            output.publish()
    masks = None if interrupted or trained.task == "classification" else place
    table = None if interrupted else place if masks is None else masks / TABLE
    means = tally.sums / max(tally.rows, 1)
    return PredictResult(
        run=Path(run),
        kind=trained.kind,
        name=trained.name,
        task=trained.task,
        source=source.store or str(images),
        table=table,
        masks=masks,
        rows=tally.rows,
        counts=dict(zip(trained.classes, tally.counts.tolist(), strict=True)),
        means=dict(zip(trained.classes, means.tolist(), strict=True)),
        skipped=tuple(tally.skipped),
        seconds=time.perf_counter() - began,
        encoder=trained.encoder,
        weights=source.weights,
        untrained=source.untrained,
        note=trained.note,
        interrupted=interrupted,
    )


@dataclass(frozen=True)
class _Item:
    """One image: its probabilities, (K,) float64, or its mask, (height, width) uint8; or why there are none."""

    image: str
    mask: str  # the file of its mask, below the folder of the masks
    answer: NDArray[Any] | None = None
    code: str = ""
    reason: str = ""


@dataclass(frozen=True)
class _Source:
    """What is predicted, image after image, as they are asked for."""

    column: str  # what the tables call an image
    total: int
    weights: str
    untrained: bool
    items: Generator[_Item, None, None]
    store: str = ""


def _listed(images: str | Path, trained: Trained, place: Path) -> Dataset:
    """List images without labels as a dataset, refusing what cannot be predicted without a surprise."""
    path = expanded(images)
    kind = kind_of(path)
    if kind == "file":
        path = path.resolve()
        ids = [path.name]
        if flaw(path.name) is not None:
            raise InputError(f"the name {path.name!a} {flaw(path.name)}; rename the file")
        path = path.parent
    elif kind == "folder":
        ids = images_below(path, path, SUFFIXES)
    else:
        raise InputError(f"{str(path)!r} does not exist; expected a folder of images, or an image")
    if not ids:
        raise InputError(
            f"there is no image in {str(path)!r}: expected are {', '.join(sorted(SUFFIXES))}"
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
    return Dataset("images", trained.classes, tuple(ids), (-1,) * len(ids), FolderReader(path))


def _mask_of(image: str) -> str:
    return str(PurePosixPath(image).with_suffix(".png"))


def _encoded(
    trained: Trained, dataset: Dataset, checkpoint: str | None, device: str, batch_size: int | str
) -> _Source:
    """Load the run's encoder, and predict from what it makes of the images."""
    target = resolve_device(device)
    at_once = images_per_call(batch_size, target.type, untold=8)
    encoder = reload_encoder(
        trained.identity,
        trained.weights,
        trained.path,
        f"the one that the head of {trained.path} learnt from",
        checkpoint,
        device,
    )
    chosen = trained.chosen(encoder.spec.features)
    side = encoder.spec.image_size

    def items() -> Generator[_Item, None, None]:
        decoded = decoded_ahead(dataset, iter(range(len(dataset))), side, at_once, str(target))
        with closing(decoded):
            while batch := list(itertools.islice(decoded, at_once)):
                good = [item for item in batch if item.pixels is not None]
                answers: Iterator[NDArray[Any] | None] = iter(())
                if good:
                    pixels = [item.pixels for item in good if item.pixels is not None]
                    features = encoder.encode(pixels, [trained.array])[trained.array]
                    answers = iter(_answers(trained, features, chosen, good, side))
                for item in batch:
                    yield _item(dataset, item, next(answers) if item.pixels is not None else None)

    about = encoder.weights
    return _Source("image", len(dataset), about.description, about.untrained, items())


def _answers(
    trained: Trained,
    features: NDArray[Any],
    chosen: NDArray[np.int64] | None,
    images: Sequence[Decoded],
    side: int,
) -> list[NDArray[Any] | None]:
    """Predict from the encoder's output; None where it is not finite."""
    found: list[NDArray[Any] | None] = [None] * len(features)
    fine = np.flatnonzero(np.isfinite(features).reshape(len(features), -1).all(axis=1))
    if not len(fine):
        return found
    if trained.task == "classification":
        answers = list(_chances(trained, features[fine], chosen))
    else:
        sizes = [images[i].original_size for i in fine.tolist()]
        shapes = [resized_shape(height, width, side) for height, width in sizes]
        answers = trained.model.class_maps(features[fine], shapes, side, sizes)
    for i, answer in zip(fine, answers, strict=True):
        found[i] = answer
    return found


def _chances(trained: Trained, features: NDArray[Any], chosen: NDArray[np.int64] | None) -> Floats:
    """Give the probabilities of the classes, (n, ...) to (n, K)."""
    chances: Floats = trained.model.predict_proba(
        features if chosen is None else features[:, chosen]
    )
    return chances


def _item(dataset: Dataset, decoded: Decoded, answer: NDArray[Any] | None) -> _Item:
    image = dataset.sample_ids[decoded.row]
    code, reason = decoded.code, decoded.reason
    if answer is None and not code:
        code, reason = "nonfinite", "the encoder gave NaN or infinity for this image"
    return _Item(image, _mask_of(image), answer, code, reason)


def _by_pixels(
    trained: Trained, dataset: Dataset, checkpoint: str | None, device: str, batch_size: int | str
) -> _Source:
    """Predict with a baseline, some files at a time: it refuses all of a dataset for one image that is no good."""
    model: PixelBaseline = trained.model
    if "checkpoint" in model.get_params():
        model.set_params(device=device)
        if checkpoint is not None:
            model.set_params(checkpoint=checkpoint)
    elif checkpoint is not None:
        raise InputError(f"the baseline {trained.name} loads no weights: leave --checkpoint out")
    at_once = (
        _IMAGES_AT_ONCE if batch_size == "auto" else images_per_call(batch_size, "cpu", untold=8)
    )

    def items() -> Generator[_Item, None, None]:
        for start in range(0, len(dataset), at_once):
            once = replace(dataset, read=_Once(dataset.read))
            rows = range(start, min(start + at_once, len(dataset)))
            batch = [decode_row(once, row, 1) for row in rows]
            good = [item for item in batch if item.pixels is not None]
            answers = iter(_by_baseline(trained, once, good))
            for item in batch:
                yield _item(dataset, item, next(answers) if item.pixels is not None else None)

    return _Source("image", len(dataset), trained.weights, trained.untrained, items())


class _Once:
    """Reads each file once and keeps it: to be looked at first, and predicted from afterwards."""

    def __init__(self, read: Reader) -> None:
        self.read = read
        self.files: dict[str, bytes] = {}

    def __call__(self, sample_id: str) -> bytes:
        if sample_id not in self.files:
            self.files[sample_id] = self.read(sample_id)
        return self.files[sample_id]


def _by_baseline(
    trained: Trained, dataset: Dataset, images: Sequence[Decoded]
) -> Iterator[NDArray[Any]]:
    """Predict from the files that could be decoded."""
    masks = _no_mask if trained.task == "segmentation" else None
    dataset = replace(dataset, read_mask=masks)
    model: PixelBaseline = trained.model
    if trained.task == "classification":
        if images:
            for block in model.predict(dataset, [image.row for image in images]):
                yield from block
        return
    for image in images:
        yield from model.predict(dataset, [image.row], image_size=max(image.original_size))


def _no_mask(sample_id: str) -> NDArray[np.uint8]:
    raise InputError(f"{sample_id!r} has no mask")


def _stored(trained: Trained, which: str | Path | Store | bool | None) -> _Source:
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
    return _Source(
        "sample_id",
        len(store),
        store.weights,
        store.untrained,
        _rows(trained, store),
        str(store.path),
    )


def _rows(trained: Trained, store: Store) -> Generator[_Item, None, None]:
    """Give every row of a store, in order: predicted, or with the reason why it is not."""
    valid = store.valid(trained.array, "original_size")
    bad = {entry.row: entry for entry in store.quarantined}
    usable = np.flatnonzero(valid)
    if isinstance(trained.model, GridHead) and trained.task == "segmentation":
        answers = (answer for _, answer in stored_masks(store, trained.model, usable))
    else:
        answers = _stored_chances(trained, store, usable)
    for row, sample_id in enumerate(store.sample_ids):
        mask = mask_name(row, sample_id)
        if valid[row]:
            yield _Item(sample_id, mask, next(answers))
        elif row in bad:
            yield _Item(sample_id, mask, None, bad[row].code, bad[row].reason)
        else:
            reason = "the row is not embedded yet; run samtl embed again to finish the store"
            yield _Item(sample_id, mask, None, "missing", reason)


def _stored_chances(
    trained: Trained, store: Store, rows: NDArray[np.int64]
) -> Generator[NDArray[Any], None, None]:
    pooled = trained.array == "pooled"
    chosen = trained.chosen(store.columns(trained.array)) if pooled else None
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        features = store.read(trained.array, rows[start : start + _ROWS_AT_ONCE])
        yield from _chances(trained, features, chosen)


class _Tally:
    """Counts what was predicted."""

    def __init__(self, n_classes: int) -> None:
        self.rows = 0
        self.counts = np.zeros(n_classes, dtype=np.int64)
        self.sums = np.zeros(n_classes)
        self.skipped: list[Skipped] = []

    def add(self, figures: Floats, found: NDArray[np.bool_]) -> None:
        """Add an image's probabilities or shares, and which classes it counts for."""
        self.rows += 1
        self.sums += figures
        self.counts += found
