"""A trained head or baseline on new images, or on the rows of a store: a table of probabilities, or masks.

A head gets its features from the run's own encoder, with the weights, the preprocessing and the compute dtype that it
learnt from; anything else is refused.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

from samtl.errors import InputError
from samtl.experiment.answers import (
    Skipped,
    by_pixels,
    encoded,
    listed,
    read_trained,
    stored,
)
from samtl.experiment.output import Output, place_for
from samtl.experiment.tables import PREDICTIONS
from samtl.store.reader import Store


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
    """What was predicted, and where it is."""

    run: Path
    kind: str  #: `head` or `baseline`
    name: str
    task: str  #: `classification` or `segmentation`
    source: str  #: the images' folder or file, or the store
    table: (
        Path | None
    )  #: a line for each image; None if the work was interrupted, which leaves nothing behind
    masks: Path | None  #: the folder of the masks, of a segmentation
    rows: int  #: images predicted
    counts: dict[
        str, int
    ]  #: images of each predicted class; of a segmentation, those with a pixel of it
    means: dict[str, float]  #: mean probability, or share of the pixels, of each class
    skipped: tuple[Skipped, ...]
    seconds: float
    encoder: str  #: what the features came from, or ""
    weights: str
    untrained: bool  #: whether these weights are random numbers
    note: str  #: what readers must know about the dataset that was learnt from
    interrupted: bool

    def to_json(self) -> dict[str, object]:
        """Return the result as JSON values."""
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
        Whether an earlier prediction there may be replaced.
    checkpoint : path, optional
        The weights of the run's encoder if they came from a file or lie elsewhere now; see `samtl.embed`.
    device : str
        What the encoder runs on: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
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
        The run is none or damaged, there is no image or no store, or `out` is taken.
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
    place = place_for(out, trained.task, overwrite)
    if images is None:
        if checkpoint is not None:
            raise InputError("--from-store loads no encoder: leave --checkpoint out")
        source = stored(trained, from_store)
    else:
        dataset = listed(images, trained, place)
        by = by_pixels if trained.kind == "baseline" else encoded
        told = None if checkpoint is None else str(checkpoint)
        source = by(trained, dataset, told, device, batch_size)
    skipped: list[Skipped] = []
    interrupted = False
    with (
        closing(source.answers),  # type: ignore[type-var]  # all are generators
        Output(place, trained.task, trained.classes, source.column, overwrite) as output,
    ):
        for image, mask, answer in source.answers:
            if should_stop():
                interrupted = True
                break
            if isinstance(answer, Skipped):
                skipped.append(answer)
                tell(answer)
            else:
                output.write(image, mask, answer)
            tell(Predicted(output.rows, len(skipped), source.total))
        if not interrupted:
            output.publish()
    masks = None if interrupted or trained.task == "classification" else place
    means = output.sums / max(output.rows, 1)
    return PredictResult(
        run=Path(run),
        kind=trained.kind,
        name=trained.name,
        task=trained.task,
        source=source.store or str(images),
        table=None if interrupted else masks / PREDICTIONS if masks else place,
        masks=masks,
        rows=output.rows,
        counts=dict(zip(trained.classes, output.counts.tolist(), strict=True)),
        means=dict(zip(trained.classes, means.tolist(), strict=True)),
        skipped=tuple(skipped),
        seconds=time.perf_counter() - began,
        encoder=trained.encoder,
        weights=source.weights,
        untrained=source.untrained,
        note=trained.note,
        interrupted=interrupted,
    )
