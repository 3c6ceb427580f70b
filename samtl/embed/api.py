"""The encoder pass: the images of a dataset through a frozen encoder into a store, once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from samtl._runtime import Note, peak_memory, size
from samtl.datasets import Dataset, MapStyle
from samtl.embed.copies import Copies, count_copies
from samtl.embed.devices import encode_on_devices
from samtl.embed.fitted import keep_weights, with_weights
from samtl.embed.pipeline import Meter, Progress, encode_blocks, load_encoder, start_writer
from samtl.embed.plan import EmbedConfig, Plan, prepare
from samtl.embed.trial import compared, load_without_download, must_compare, timed
from samtl.errors import ResourceError
from samtl.splits.labels import label_texts
from samtl.store.reader import Store
from samtl.store.state import Quarantined, load_state
from samtl.store.writer import Writer


@dataclass(frozen=True)
class Reading:
    """How many images of a store were compared with the dataset, and how many are to be."""

    done: int
    images: int


Event = Reading | Plan | Progress | Quarantined | Note


@dataclass(frozen=True)
class EmbedResult:
    """What a pass did."""

    store: Path | str  #: str in a bucket
    fingerprint: str  #: identity of the store's rows
    snapshot: str  #: identity of what is committed now
    weights: str  #: what the encoder's weights are
    untrained: bool  #: whether they are random
    rows: int  #: samples of the store
    encoded: int  #: by this pass
    missing: int  #: still to be encoded
    quarantined: tuple[Quarantined, ...]  #: all of the store's, not only of this pass
    copies: Copies  #: identical images among all of the store's
    bytes_written: int
    seconds: float  #: from the first image to the last commit
    images_per_second: float
    peak_memory: int  #: the process's largest resident size so far, in bytes
    interrupted: bool
    plan: Plan

    def to_json(self) -> dict[str, object]:
        """Return the result as JSON values, the plan's fields beside its own."""
        content = asdict(self)
        del content["plan"]
        return {**self.plan.to_json(), **content, "store": str(self.store)}


def embed(
    dataset: str | Dataset | MapStyle = "eurosat",
    encoder: str = "sam_vit_b",
    *,
    root: str | Path | None = None,
    group_by: str | None = None,
    checkpoint: str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    image_size: int | None = None,
    bands: Sequence[str] | None = None,
    tiers: Sequence[str] | None = None,
    limit: int | None = None,
    per_class: int | None = None,
    batch_size: int | str = "auto",
    engine: str = "fast",
    out: str | Path | None = None,
    check_images: bool = True,
    untrusted: bool = False,
    on_event: Callable[[Event], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> EmbedResult:
    """Embed every image of a dataset with a frozen encoder, and keep the embeddings in a store.

    If the store exists, only what it lacks is computed: the rest of an interrupted pass, further tiers, images that are
    new or changed. Images that are gone are not listed any more; labels are those that the dataset has now. Several
    commands may work on one store at the same time.

    Parameters
    ----------
    dataset : str, Dataset or map-style data set
        A name that `samtl ls datasets` shows, `folder:PATH` or `masks:PATH`.

        Or a dataset of your own, or one that gives samples by their number, as TorchGeo's and torchvision's do: see
        `samtl.from_torch`.
    encoder : str
        A name that `samtl ls encoders` shows; `hf:FOLDER` or `hf:REPO[@REVISION]` is a vision backbone of transformers.
    root : str or Path, optional
        Folder or archive with the dataset's files.
    group_by : str, optional
        A regular expression that finds in each sample id what the image was cut from, such as its scene. Replaces the
        dataset's own groups.
    checkpoint : str or Path, optional
        `official`, a file or folder with weights of the same architecture, in the containers of common trainers and of
        the Hugging Face hub, or `random:SEED` for untrained weights. For `rcf`, `patches:SEED`, or another store, whose
        filters are taken.
    device : str
        `auto`, `cpu`, `cuda`, `cuda:N` or `mps`. Several, separated by commas, or `cuda:all`, share the work.
    dtype : str
        What to compute in: `auto`, `float32`, `bfloat16` or `float16`. `auto` is what the store was begun with; else
        $SAMTL_DTYPE, or what this machine is fastest in, which is measured at first use.
    image_size : int, optional
        Pixels that an image's longest side is resized to, a multiple of the encoder's patch (16, or 14) up to 2048; by
        default what the store was begun with, or the encoder's own, for `rcf` the images'. The cost grows with its
        square.
    bands : sequence of str, optional
        Bands of the images that the encoder takes, in the order of its input, by common names such as `nir,red,green`
        or `B08`; by default those that it was trained with, or what the store was begun with.
    tiers : sequence of str, optional
        What to keep: any of `pooled`, `grid` and `dense`. By default what the store was begun with; else `pooled,grid`
        for classification, and all for segmentation.
    limit : int, optional
        Take at most this many images, at random but the same ones each time.
    per_class : int, optional
        Take this many images of each class, at random but the same ones each time.
    batch_size : int or str
        Images per call of the encoder, or `auto`.
    engine : str
        `fast`, or `reference`: the network's own forward pass, which is slower and gives the same values to
        within rounding. Or `int8`, on CPUs: linear layers multiply 8-bit integers, if that is close enough for eight of
        the images.
    out : str or Path, optional
        The store, NAME.zarr, or the folder in which it gets its usual name; `s3://BUCKET/...` for a bucket. By default
        $SAMTL_CACHE, or ./cache.
    check_images : bool
        Whether to read the images and masks of rows that are embedded, to see whether they changed.
    untrusted : bool
        Decode images in processes with limits of memory and time, as for files from strangers; half as fast.
    on_event : callable, optional
        Called with `Reading` while images are compared, a `Plan`, `Progress` after each batch, `Quarantined` for each
        image that cannot be used, and `Note`.
    should_stop : callable, optional
        Asked between batches, and between images that are compared; if it returns True, the pass ends after the block
        in flight, or without a change to the store if images are still compared.

    Returns
    -------
    EmbedResult

    Raises
    ------
    InputError
        For an argument, dataset or checkpoint that is not what it must be.
    MismatchError
        If the store was made with another encoder, preprocessing or dataset.
    DamageError
        If the store is damaged.
    ResourceError
        If the disk or the device gives out; what was committed stays.
    """
    tell = on_event or (lambda event: None)
    config = EmbedConfig(
        dataset, encoder, root, group_by, checkpoint, device, dtype, image_size, bands, tiers, limit, per_class,
        batch_size, engine, out, check_images, untrusted,
    )  # fmt: skip
    job = prepare(config, lambda done, total: tell(Reading(done, total)), should_stop)
    plan, seconds = job.plan, 0.0
    if job.stopped:
        assert job.state is not None
        meter, store, interrupted = Meter(tell, 0), Store(job.state), True
    else:
        # Folders and records take a little more.
        if plan.bytes_free is not None and plan.bytes_to_write * 1.02 > plan.bytes_free:
            tell(plan)
            raise ResourceError(
                f"{plan.store} needs {size(plan.bytes_to_write)} more, but its disk has {size(plan.bytes_free)} free: "
                "free some, choose another disk with --out, or keep less with --tiers pooled,grid"
            )
        if config.engine == "int8" != plan.engine:
            tell(Note(f"the store was begun in {plan.compute_dtype}, and goes on in it"))
        devices, job = plan.device.split(","), with_weights(job)
        job, model = (
            compared(job, tell) if must_compare(job) else (job, load_encoder(job, devices[0]))
        )
        began = time.monotonic()
        job = timed(job, model)
        plan = job.plan
        tell(plan)
        keep_weights(job)
        if len(devices) == 1 or not plan.pending_rows:
            writer = start_writer(job, model, devices[0])
            meter = encode_blocks(job, model, writer, devices[0], tell, should_stop)
        else:
            del model  # each device's process loads its own
            meter = encode_on_devices(job, devices, tell, should_stop)
            state = load_state(job.storage)
            assert state is not None
            writer = Writer(state, job.arrays)
        seconds = time.monotonic() - began
        store, interrupted = Store(writer.finish()), bool(writer.pending())
        plan = replace(plan, batch_size=int(str(writer.about.get("batch_size", plan.batch_size))))
    return EmbedResult(
        store=plan.store,
        fingerprint=store.fingerprint,
        snapshot=store.snapshot,
        weights=store.weights,
        untrained=store.untrained,
        rows=len(store),
        encoded=meter.encoded,
        missing=store.missing,
        quarantined=store.quarantined,
        copies=count_copies(
            label_texts(store.labels, store.classes), map(store.image_sha256, range(len(store)))
        ),
        bytes_written=meter.bytes_written,
        seconds=seconds,
        images_per_second=meter.encoded / seconds if seconds else 0.0,
        peak_memory=peak_memory(),
        interrupted=interrupted,
        plan=plan,
    )


def plan(
    dataset: str | Dataset | MapStyle = "eurosat",
    encoder: str = "sam_vit_b",
    *,
    on_read: Callable[[int, int], None] = lambda done, total: None,
    **options: Any,
) -> Plan:
    """Return what `embed` would do with the same arguments, without downloading anything or writing to the store.

    A batch is encoded, with random weights if those of the encoder are not on this machine. `on_read` is called with
    the number of images that were read, and that are to be read. Raises what `embed` raises.
    """
    job = prepare(EmbedConfig(dataset, encoder, **options), on_read, download=False)
    job = with_weights(job)
    return timed(job, *load_without_download(job)).plan
