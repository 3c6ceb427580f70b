"""The encoder pass: a dataset through a frozen encoder into a store, once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from samtl import registry
from samtl._runtime import Note, peak_memory
from samtl.datasets import Dataset
from samtl.embed.fleet import Fleet
from samtl.embed.pipeline import Pass, Progress
from samtl.embed.plan import (
    STORED_DTYPES,
    TIERS,
    Job,
    Plan,
    prepare,
)
from samtl.encoders.base import Weights
from samtl.errors import ResourceError
from samtl.images.transforms import Preprocessing
from samtl.store.durable import DISK_ERRORS
from samtl.store.fingerprint import Fingerprint
from samtl.store.reader import Quarantined, open_store
from samtl.store.writer import StoreWriter, open_writer

if TYPE_CHECKING:
    from samtl.encoders.sam import Encoder

SPARE = 1.02  # of the bytes to be written, for folders and records


@dataclass(frozen=True)
class Reading:
    """How many images of a store's rows were read to see whether they are what they were, and how many are to be."""

    done: int
    images: int


Event = Reading | Plan | Progress | Quarantined | Note


@dataclass(frozen=True)
class EmbedResult:
    """What a pass did.

    Attributes
    ----------
    store : Path
    fingerprint, snapshot : str
        Identity of the store's rows, and of what is committed now.
    weights : str
        What the encoder's weights are.
    untrained : bool
        True where they are random numbers.
    rows, encoded, missing : int
        Rows of the store that count; encoded by this pass; still to be encoded after it.
    quarantined : tuple of Quarantined
        All of the store's, not only of this pass.
    bytes_written : int
    seconds : float
        From the first image to the last commit.
    images_per_second : float
    peak_memory : int
        The process's largest resident size so far, in bytes.
    interrupted : bool
    plan : Plan
    """

    store: Path
    fingerprint: str
    snapshot: str
    weights: str
    untrained: bool
    rows: int
    encoded: int
    missing: int
    quarantined: tuple[Quarantined, ...]
    bytes_written: int
    seconds: float
    images_per_second: float
    peak_memory: int
    interrupted: bool
    plan: Plan

    def to_json(self) -> dict[str, object]:
        """Give the result as JSON values, the plan's fields beside its own."""
        content = asdict(self)
        return {**content.pop("plan"), **content, "store": str(self.store)}


def embed(
    dataset: str | Dataset = "eurosat",
    encoder: str = "sam_vit_b",
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
    on_event: Callable[[Event], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> EmbedResult:
    """Push every image of a dataset through a frozen encoder and keep the embeddings.

    Where the store exists already, only what it lacks is computed: the rest of an interrupted pass, further tiers, or
    images that came to the dataset since, or changed. Rows of images that were taken out of it, or changed, no longer
    count, and labels are those that the dataset has now.

    Parameters
    ----------
    dataset : str or Dataset
        A name that `samtl ls datasets` shows, `folder:PATH`, or a dataset of your own.
    encoder : str
        A name that `samtl ls encoders` shows.
    root : str or Path, optional
        Where the dataset's files are.
    group_by : str, optional
        A regular expression that finds in each sample id what the image was cut from, such as its scene; see
        `samtl.datasets.groups_by`. Replaces the dataset's own groups.
    checkpoint : str or Path, optional
        `official`, a file, or `random:SEED` for untrained weights.
    device : str
        `auto`, `cpu`, `cuda`, `cuda:N` or `mps`; several separated by commas, or `cuda:all`, work on the store at the
        same time, a process each.
    dtype : str
        What to compute in: `auto`, `float32`, `bfloat16` or `float16`. `auto` is what the store was
        begun with, if it was; else bfloat16 where the hardware multiplies it natively, else float32.
    image_size : int, optional
        What an image's longest side is resized to before the encoder sees it, in pixels, a multiple of 16 up to 2048.
        By default the 1024 that SAM was trained with; of a store that `out` names, what that was begun with. The cost
        goes roughly with its square. Heads on grids need an even number of tokens a side.
    tiers : sequence of {"pooled", "grid", "dense"}
    limit, per_class : int, optional
        Take only some images, at random but the same ones each time: see `samtl.datasets.subset`.
    batch_size : int or "auto"
    engine : {"fast", "reference"}
        Which way the encoder computes; `reference` is `segment_anything`'s own forward pass, to compare with.
    out : str or Path, optional
        The store; a path that does not end in `.zarr` is the folder in which it gets its usual name. `s3://BUCKET/...`
        is one in a bucket.
    check_images : bool
        Whether to read the image of each row that is done already, and its mask, to see whether they changed.
    on_event : callable, optional
        Called with `Reading` while images are read to be compared, with a `Plan`, then `Progress` after each batch,
        `Quarantined` for each image that cannot be used, and `Note`.
    should_stop : callable, optional
        Asked between batches, and between images that are compared; where it says True, the pass ends after the block
        in flight.

    Returns
    -------
    EmbedResult

    Raises
    ------
    InputError
        For an argument, dataset or checkpoint that is not what it must be.
    MismatchError
        Where the store was made with another encoder, preprocessing or dataset.
    LockedError
        Where another process writes to the store.
    ResourceError
        Where the disk or the device gives out; what was committed stays.
    """
    tell = on_event or (lambda event: None)
    job = prepare(
        dataset, encoder, root=root, group_by=group_by, checkpoint=checkpoint, device=device, dtype=dtype,
        image_size=image_size, tiers=tiers, limit=limit, per_class=per_class, batch_size=batch_size, engine=engine,
        out=out, check_images=check_images,
        on_read=lambda done, all_of: tell(Reading(done, all_of)), should_stop=should_stop,
    )  # fmt: skip
    tell(job.plan)
    free = job.plan.bytes_free
    if free is not None and job.plan.bytes_to_write * SPARE > free:
        raise ResourceError(
            f"{job.plan.store} needs {job.plan.bytes_to_write / 2**30:.2f} GiB more, but its disk has "
            f"{free / 2**30:.2f} GiB free: free some, choose another disk with --out, or keep less "
            "with --tiers pooled,grid"
        )
    source = None if checkpoint is None else str(checkpoint)
    devices = job.plan.device.split(",")
    # Where several processes have an encoder each, this one needs it only to know which it is.
    place, way = (devices[0], engine) if len(devices) == 1 else ("cpu", "reference")
    model = registry.load("encoders", encoder).Encoder(
        encoder, source, place, job.dtype, job.plan.image_size, way
    )
    fingerprint, weights = _fingerprint(model), model.weights
    begin: Callable[[StoreWriter], Pass | Fleet]
    if len(devices) == 1:
        begin = lambda writer: Pass(job, model, writer, tell, should_stop)  # noqa: E731
    else:
        del model
        begin = lambda writer: Fleet(job, devices, source, writer, tell, should_stop)  # noqa: E731
    try:
        return _run(job, fingerprint, weights, begin)
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        raise ResourceError(
            f"the disk of {job.plan.store} gave out: {error.strerror}. What was committed before is kept; "
            "make room or mend it, then run the same command again to go on"
        ) from error


def _fingerprint(model: Encoder) -> Fingerprint:
    return Fingerprint(
        model.spec.name,
        model.weights.sha256,
        Preprocessing(model.spec.image_size).to_dict(),
        model.spec.image_size,
        model.compute_dtype,
        STORED_DTYPES,
    )


def _run(
    job: Job,
    fingerprint: Fingerprint,
    weights: Weights,
    begin: Callable[[StoreWriter], Pass | Fleet],
) -> EmbedResult:
    plan = job.plan
    about = {"weights": weights.description, "untrained": weights.untrained}
    with open_writer(plan.store, fingerprint, about, job.rows, job.columns, job.arrays) as writer:
        writer.stale["mask"] = job.other_masks
        pending = [block for block in range(writer.blocks) if writer.missing(block)]
        done = begin(writer)
        began = time.monotonic()
        done.run(pending)
        seconds = time.monotonic() - began
        store = open_store(plan.store)
    return EmbedResult(
        store=plan.store,
        fingerprint=store.fingerprint,
        snapshot=store.snapshot,
        weights=weights.description,
        untrained=weights.untrained,
        rows=len(store),
        encoded=done.encoded,
        missing=store.missing,
        quarantined=store.quarantined,
        bytes_written=done.bytes_written,
        seconds=seconds,
        images_per_second=done.encoded / seconds if seconds else 0.0,
        peak_memory=peak_memory(),
        interrupted=done.encoded < sum(len(writer.block_rows(block)) for block in pending),
        plan=replace(plan, batch_size=done.batch_size),
    )
