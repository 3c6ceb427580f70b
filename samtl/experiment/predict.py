"""A trained head or baseline on new images, or on the rows of a store: a table of probabilities, or masks.

A head gets its features from the run's own encoder, with the weights, the preprocessing and the compute dtype that it
learnt from; anything else is refused.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from samtl.datasets import Dataset
from samtl.datasets.files.listing import BANDS, FolderTree, bands_in, kind_of, options_of
from samtl.embed.decode import Decoded, decode_row, decoded_ahead
from samtl.embed.plan import images_per_call
from samtl.embed.reload import reload_encoder
from samtl.encoders.device import resolve_device
from samtl.errors import InputError, MismatchError
from samtl.experiment.features import AT_ONCE
from samtl.experiment.output import Output, Predicted, PredictResult, Skipped, place_for
from samtl.experiment.run import Run, read_run
from samtl.experiment.tables import PREDICTIONS, mask_name
from samtl.heads.io import load
from samtl.images.bands import told_range
from samtl.images.codecs import SUFFIXES
from samtl.images.transforms import resized_shape
from samtl.splits.labels import no_label
from samtl.store.fingerprint import differences
from samtl.store.reader import Store, open_store
from samtl.store.storage import locate

_FILES_AT_ONCE = 32  # for a baseline
_OF_RUN = ("kind", "name", "task", "encoder", "weights", "untrained", "note")


class Trained(Run, frozen=True, kw_only=True, eq=False):
    """A run with its trained head or baseline."""

    model: Any

    def answers(
        self, features: NDArray[Any], columns: Sequence[str], sizes: Any, side: int, own: bool
    ) -> Any:
        """Predict the features of n images: (n, K) probabilities or (n, 1) numbers, or n masks.

        `columns` are those of `pooled`, `sizes` height and width of each image, which masks have if `own`, `side` that
        of the encoder's square.
        """
        if self.task == "segmentation":
            pairs = [(int(height), int(width)) for height, width in sizes]
            shapes = [resized_shape(*pair, side) for pair in pairs]
            return self.model.class_maps(features, shapes, side, pairs if own else None)
        if self.features == "pooled":
            features = features[:, [columns.index(name) for name in self.model.columns_]]
        return self.model.outputs(features)


def read_trained(run: str | Path | Run) -> Trained:
    """Read a run folder with its model; raises as `read_run`."""
    found = read_run(run, whole=True)
    return Trained(**msgspec.structs.asdict(found), model=load(found.path))


def predict(
    run: str | Path | Run,
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
    """Predict with a trained head or baseline: classes or numbers of new images, or masks of them.

    Classification gives a table, `image,predicted,p_<class>...`, in which several classes of an image have `;` between
    them; regression gives `image,predicted`. Segmentation gives a folder: for each image a PNG of
    class indices with a palette, and a table, `image,mask,share_<class>...`, with each class's share of the pixels.
    An image that cannot be used is skipped and listed.

    Parameters
    ----------
    run : path or Run
        A run folder.
    images : path, optional
        A folder, with every image below it, in natural order; or one image file. Masks have the images' own size.
        Bands are named as for datasets: `PATH?bands=B02,B03,B04,B08&units=reflectance x 10000`.
    from_store : path, Store or True, optional
        Instead of images, the rows of a store that was made with the run's encoder: the store, a folder with one, or
        True for the only one where stores are by default. No image is read and no encoder is loaded. The tables have
        `sample_id` in the place of `image`; masks have the encoder's resolution.
    out : path, optional
        The folder that predictions are written into, by default `predictions`; or the name of a table, NAME.csv. Masks
        are put into `masks` in it if it holds anything else. If there are predictions, these get the next number.
    overwrite : bool
        Whether earlier predictions there are replaced.
    checkpoint : path, optional
        The weights of the run's encoder if they came from a file or lie elsewhere now.
    device : str
        What the encoder, or a baseline with pretrained weights, runs on: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
    batch_size : int or "auto"
        Images in one call of the encoder.
    on_event : callable, optional
        Called with `Predicted` after each image, and with `Skipped` for each that cannot be used.
    should_stop : callable, optional
        Asked between images; once it returns True the work ends, and nothing is left behind.

    Returns
    -------
    PredictResult

    Raises
    ------
    InputError
        The run is none or damaged, there is no image or no store, `out` is taken, or an option has no effect.
    MismatchError
        The encoder, or the store, is not the one that the head learnt from.
    ResourceError
        The disk or the device gives out.
    """
    began = time.perf_counter()
    tell = on_event or (lambda event: None)
    if (images is None) == (from_store is None or from_store is False):
        raise InputError("predict from images or from a store: use one of --images, --from-store")
    trained = read_trained(run)
    place, beside = place_for(out, trained.task, overwrite)
    dataset = None
    if images is None:
        _refuse("the rows of a store", checkpoint=checkpoint, device=device, batch_size=batch_size)
        store = _store(trained, from_store)
        source, column, names = str(store.path), "sample_id", store.sample_ids
        answers = _stored(trained, store)
    else:
        dataset = _listed(images, trained, place)
        source, column, names = str(images), "image", dataset.sample_ids
        told = None if checkpoint is None else str(checkpoint)
        if trained.kind == "head":
            answers = _encoded(trained, dataset, told, device, batch_size)
        else:
            _refuse(trained.name, batch_size=batch_size)
            answers = _by_pixels(trained, dataset, told, device)
    skipped: list[Skipped] = []
    ranges: list[NDArray[np.float32]] = []
    interrupted = False
    with (
        closing(answers),
        Output(place, trained.task, trained.classes, column, overwrite) as output,
    ):
        for image, answer in answers:
            if interrupted := should_stop():
                break
            name = names[image.row]
            if dataset and dataset.reading.count and image.image_stats is not None:
                ranges.append(image.image_stats.reshape(4, -1)[2:])
            if answer is None:
                skipped.append(Skipped(name, image.code, image.reason))
                tell(skipped[-1])
            else:
                mask = mask_name(image.row, name) if images is None else _mask_of(name)
                output.write(name, mask, answer)
            tell(Predicted(output.rows, len(skipped), len(names)))
        else:
            output.finish()
    place = output.place
    masks = place if trained.task == "segmentation" and not interrupted else None
    counts, means = output.by_class()
    return PredictResult(
        run=Path(run),
        source=source,
        table=None if interrupted else masks / PREDICTIONS if masks else place,
        masks=masks,
        rows=output.rows,
        beside=beside,
        counts=counts,
        means=means,
        skipped=tuple(skipped),
        values=told_range(np.array(ranges), dataset.units) if dataset and ranges else "",
        seconds=time.perf_counter() - began,
        interrupted=interrupted,
        **{name: getattr(trained, name) for name in _OF_RUN},
    )


#: Probabilities, (K,) float64, a number, (1,), or a mask, (height, width) uint8; None if an image is unusable.
_Answers = Generator[tuple[Decoded, NDArray[Any] | None], None, None]


def _refuse(what: str, **options: Any) -> None:
    """Raise InputError if an option is given that has no effect."""
    for name, value in options.items():
        if value not in (None, "auto"):
            option = f"--{name.replace('_', '-')}"
            raise InputError(f"{option} has no effect on {what}: leave it out")


def _listed(images: str | Path, trained: Trained, place: Path) -> Dataset:
    """List images without labels as a dataset."""
    text, _, query = str(images).partition("?")
    path, options = Path(text).expanduser(), options_of("images", query, BANDS)
    kind = kind_of(path)
    if kind == "nothing":
        raise InputError(f"{str(path)!r} does not exist; expected a folder of images, or an image")
    ids = FolderTree(path).images() if kind == "folder" else [path.name]
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
            if (other := seen.setdefault(_mask_of(name), name)) != name:
                raise InputError(
                    f"{other!r} and {name!r} would both have the mask {_mask_of(name)!r}: rename one of them"
                )
    tree = FolderTree(path if kind == "folder" else path.resolve().parent)
    labels = (no_label(trained.task),) * len(ids)
    known = bands_in(options)
    return Dataset("images", trained.classes, tuple(ids), labels, tree.read, **known)


def _mask_of(image: str) -> str:
    return str(PurePosixPath(image).with_suffix(".png"))


def _encoded(
    trained: Trained, dataset: Dataset, checkpoint: str | None, device: str, batch_size: int | str
) -> _Answers:
    """Load the run's encoder, and predict from its output."""
    target = resolve_device(device)
    at_once = images_per_call(batch_size, target.type, untold=8)
    encoder = reload_encoder(trained.identity, trained.weights, trained.path, checkpoint, device)
    columns, side, array = encoder.spec.features, encoder.spec.image_size, trained.features

    def predicted(images: list[Decoded]) -> Iterable[NDArray[Any] | None]:
        pixels = [image.pixels for image in images if image.pixels is not None]
        features = encoder.encode(pixels, [array])[array]
        finite = np.isfinite(features).reshape(len(features), -1).all(axis=1)
        sizes = np.array([image.original_size for image in images])[finite]
        found = features[finite]
        said = iter(trained.answers(found, columns, sizes, side, own=True) if len(found) else ())
        return [next(said) if ok else None for ok in finite]

    dataset = dataset.taking(encoder.spec.bands, encoder.spec.units)
    decoded = decoded_ahead(dataset, iter(range(len(dataset))), side, at_once, str(target))
    return _answered(decoded, at_once, predicted)


def _by_pixels(trained: Trained, dataset: Dataset, checkpoint: str | None, device: str) -> _Answers:
    """Predict with a baseline, a few files at a time: it refuses a whole dataset for one bad image."""
    model, masks = trained.model, trained.task == "segmentation"
    if "checkpoint" in model.get_params():
        model.set_params(device=device, checkpoint=checkpoint or model.checkpoint)
    else:
        _refuse(trained.name, checkpoint=checkpoint, device=device)
    asked = replace(dataset, read_mask=_no_mask if masks else None)

    def predicted(images: list[Decoded]) -> Iterable[NDArray[Any]]:
        rows = [image.row for image in images]
        found = model.predict_all(asked, rows, image_size=max(images[0].original_size))
        said = (next(iter(each.values())) for each in found)
        return said if masks else itertools.chain(*said)

    decoded = (decode_row(dataset, row, 1) for row in range(len(dataset)))
    return _answered(decoded, 1 if masks else _FILES_AT_ONCE, predicted)


def _no_mask(sample_id: str) -> NDArray[np.uint8]:
    raise InputError(f"{sample_id!r} has no mask")


def _answered(
    images: Generator[Decoded, None, None],
    at_once: int,
    predicted: Callable[[list[Decoded]], Iterable[NDArray[Any] | None]],
) -> _Answers:
    """Predict images, some at a time; `predicted` gives None for an image if the encoder's output is not finite."""
    with closing(images):
        while batch := list(itertools.islice(images, at_once)):
            good = [image for image in batch if not image.code]
            found = iter(predicted(good) if good else ())
            for image in batch:
                answer = None if image.code else next(found)
                if answer is None and not image.code:
                    reason = "the encoder's output for this image is NaN or infinite"
                    image = replace(image, code="nonfinite", reason=reason)
                yield image, answer


def _store(trained: Trained, which: str | Path | Store | bool | None) -> Store:
    """Open the store that is meant, which must have been made with the run's encoder."""
    if trained.kind == "baseline":
        raise InputError(
            f"{trained.path} is of a baseline, which reads pixels and no store: use --images"
        )
    store = which
    if not isinstance(store, Store):
        store = open_store(locate(None if isinstance(store, bool) else store))
    require_encoder(trained, store)
    return store


def require_encoder(trained: Trained, store: Store) -> None:
    """Raise MismatchError if a store was not made with a run's encoder, InputError if it lacks the head's array."""
    if found := differences(store.identity, trained.identity):
        raise MismatchError(
            f"{store.path} was not made with the encoder that the head of {trained.path} learnt from; name another "
            "store with --cache, or predict from the images with --images:",
            found,
        )
    if (array := trained.features) not in store.arrays:
        raise InputError(
            f"the head of {trained.path} needs the tier {array}, and {store.path} has "
            f"{', '.join(store.tiers) or 'none'}: add it with samtl embed --tiers {array}"
        )


def _stored(trained: Trained, store: Store) -> _Answers:
    """Predict every row of a store, in order."""
    array = trained.features
    own = ("original_size",) if trained.task == "segmentation" else ()
    valid = store.valid(array, *own)
    columns = store.columns(array) if array == "pooled" else ()
    bad = {entry.row: (entry.code, entry.reason) for entry in store.quarantined}
    missing = "missing", "the row is not embedded yet; run samtl embed again to finish the store"

    def image(row: int) -> Decoded:
        code, reason = ("", "") if valid[row] else bad.get(row, missing)
        return Decoded(row, code=code, reason=reason)

    def predicted(images: list[Decoded]) -> Any:
        rows = np.array([image.row for image in images])
        sizes = store.read(*own, rows) if own else None
        side = store.image_size
        return trained.answers(store.read(array, rows), columns, sizes, side, own=False)

    return _answered((image(row) for row in range(len(store))), AT_ONCE[trained.task], predicted)
