"""The encoder pass: a dataset through a frozen encoder into a store, once.

Decoding and resizing (threads), encoding (on a CPU this thread, for a GPU threads) and writing (threads) overlap. The
unit of progress is a block of 16 rows: what is interrupted goes on at the first block that is not committed.
"""

from __future__ import annotations

import errno
import importlib.metadata
import itertools
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from samtl import registry
from samtl.ahead import ahead
from samtl.datasets import Dataset
from samtl.decoding import Decoded, decoded_ahead
from samtl.errors import InputError, ResourceError
from samtl.images import BadImage
from samtl.machine import peak_memory
from samtl.planning import STORED_DTYPES, TIERS, Job, Plan, prepare
from samtl.store.fingerprint import Fingerprint
from samtl.store.layout import BLOCK_ROWS
from samtl.store.log import OK, QUARANTINED
from samtl.store.reader import Quarantined, open_store
from samtl.store.writer import StoreWriter, open_writer

if TYPE_CHECKING:
    from samtl.encoders.sam import Encoder

SPARE = 1.02  # of the bytes to be written, for folders and records

_DISK = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EIO,
    errno.EROFS,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
}


@dataclass(frozen=True)
class Progress:
    """How far a pass is.

    Attributes
    ----------
    encoded : int
        Rows encoded by this pass.
    pending_rows : int
        Rows that it has to encode in all.
    bytes_written : int
        Committed to disk so far.
    quarantined : int
        Images of this pass that could not be used.
    images_per_second : float
        Since the end of the first batch, which warms up; 0 until then.
    seconds_left : float or None
        None until there is a rate.
    """

    encoded: int
    pending_rows: int
    bytes_written: int
    quarantined: int
    images_per_second: float
    seconds_left: float | None


Event = Plan | Progress | Quarantined
_Encoded = tuple[list[Decoded], list[dict[str, NDArray[Any]] | None]]


@dataclass(frozen=True)
class Overlap:
    """What goes on at the same time, and is lost if the process is killed.

    Attributes
    ----------
    batches : int
        That the encoder has beside the one that is taken over; 0 where it is this thread that encodes.
    writes : int
        Blocks that are being written.
    """

    batches: int
    writes: int


def overlap(device: str) -> Overlap:
    """Say what a pass does at the same time on a device such as `cpu`.

    A GPU is through with a batch before its results are at their place in memory, or on disk; so there are two in
    flight, and several blocks. On a CPU the encoder has the cores, and images are dear.
    """
    return Overlap(0, 1) if device == "cpu" else Overlap(2, 4)


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
        Rows of the store; encoded by this pass; still to be encoded after it.
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
    on_event: Callable[[Event], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> EmbedResult:
    """Push every image of a dataset through a frozen encoder and keep the embeddings.

    Where the store exists already, only what it lacks is computed: the rest of an interrupted pass, or further tiers.

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
        `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
    dtype : str
        What to compute in: `auto`, `float32`, `bfloat16` or `float16`. `auto` is what the store was
        begun with, if it was; else bfloat16 where the hardware multiplies it natively, else float32.
    image_size : int, optional
        What an image's longest side is resized to before the encoder sees it, in pixels, a multiple of 16 up to 2048.
        By default the 1024 that SAM was trained with; of a store that `out` names, what that was begun with. The cost
        goes roughly with its square. Heads on grids need an even number of tokens a side.
    tiers : sequence of {"pooled", "grid16", "dense"}
    limit, per_class : int, optional
        Take only some images, at random but the same ones each time: see `samtl.datasets.subset`.
    batch_size : int or "auto"
    engine : {"fast", "reference"}
        Which way the encoder computes; `reference` is `segment_anything`'s own forward pass, to compare with.
    out : str or Path, optional
        The store; a path that does not end in `.zarr` is the folder in which it gets its usual name.
    on_event : callable, optional
        Called with a `Plan`, then `Progress` after each batch, and `Quarantined` for each image that cannot be used.
    should_stop : callable, optional
        Asked between batches; where it says True, the pass ends after the block in flight.

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
        out=out,
    )  # fmt: skip
    tell(job.plan)
    if job.plan.bytes_to_write * SPARE > job.plan.bytes_free:
        raise ResourceError(
            f"{job.plan.store} needs {job.plan.bytes_to_write / 2**30:.2f} GiB more, but its disk has "
            f"{job.plan.bytes_free / 2**30:.2f} GiB free: free some, choose another disk with --out, or keep less "
            "with --tiers pooled,grid16"
        )
    weights = None if checkpoint is None else str(checkpoint)
    model = registry.load("encoders", encoder).Encoder(
        encoder, weights, device, job.dtype, job.plan.image_size, engine
    )
    try:
        return _run(job, model, tell, should_stop)
    except OSError as error:
        if error.errno not in _DISK:
            raise
        raise ResourceError(
            f"the disk of {job.plan.store} gave out: {error.strerror}. What was committed before is kept; "
            "make room or mend it, then run the same command again to go on"
        ) from error


@dataclass
class _Block:
    """The rows of a block as they come from the encoder."""

    number: int
    rows: range
    arrays: dict[str, list[object]]
    status: list[str] = field(default_factory=list)
    unread: list[bool] = field(default_factory=list)
    reasons: dict[int, str] = field(default_factory=dict)
    images: list[str] = field(default_factory=list)


def _require_readable(block: _Block, dataset: Dataset) -> None:
    """Stop where unreadable files are the drive's fault, which is no property of theirs to be kept.

    It is where a whole block is unreadable, or where an image that could be read before, or its mask, cannot be any
    more.
    """
    fine = [row for row, unread in zip(block.rows, block.unread, strict=True) if not unread]
    if len(fine) == len(block.rows) or (not fine and len(block.rows) < BLOCK_ROWS):
        return
    why = next(iter(block.reasons.values()))
    if fine:
        try:
            dataset.read(dataset.sample_ids[fine[0]])
            if dataset.read_mask is not None:
                dataset.read_mask(dataset.sample_ids[fine[0]])
        except BadImage:  # bytes were had
            return
        except (OSError, InputError) as error:
            why = str(error)
        else:
            return
    raise ResourceError(
        f"images of {dataset.name} cannot be read any more ({why}): is it still where it was? What was "
        "committed before is kept; run the same command again to go on"
    )


def _run(
    job: Job, model: Encoder, tell: Callable[[Event], None], should_stop: Callable[[], bool]
) -> EmbedResult:
    weights = model.weights
    fingerprint = Fingerprint(
        model.name,
        weights.sha256,
        model.preprocessing.to_dict(),
        model.preprocessing.image_size,
        model.compute_dtype,
        STORED_DTYPES,
    )
    about = {"weights": weights.description, "untrained": weights.untrained}
    with open_writer(
        job.plan.store, fingerprint, about, job.rows, job.columns, job.arrays
    ) as writer:
        done = _Pass(job, model, writer, tell, should_stop)
        done.run()
        store = open_store(job.plan.store)
    return EmbedResult(
        store=job.plan.store,
        fingerprint=store.fingerprint,
        snapshot=store.snapshot,
        weights=weights.description,
        untrained=weights.untrained,
        rows=len(store),
        encoded=done.encoded,
        missing=store.missing,
        quarantined=store.quarantined,
        bytes_written=done.bytes_written,
        seconds=done.seconds,
        images_per_second=done.encoded / done.seconds if done.seconds else 0.0,
        peak_memory=peak_memory(),
        interrupted=done.interrupted,
        plan=job.plan,
    )


class _Pass:
    """One pass over the blocks that are not committed."""

    def __init__(
        self,
        job: Job,
        model: Encoder,
        writer: StoreWriter,
        tell: Callable[[Event], None],
        should_stop: Callable[[], bool],
    ) -> None:
        self.job, self.model, self.writer = job, model, writer
        self.tell, self.should_stop = tell, should_stop
        self.encoded = self.bytes_written = self.bad = 0
        self.seconds = 0.0
        self.interrupted = False
        self._started = self._warm = 0.0
        self._warm_rows = 0
        self._writing: deque[Future[int]] = deque()
        self.overlap = overlap(job.plan.device)
        self._about = _environment(job.plan)

    def run(self) -> None:
        """Encode and commit, block after block."""
        pending = [b for b in range(self.writer.blocks) if self.writer.missing(b)]
        rows = (row for block in pending for row in self.writer.block_rows(block))
        size, most = self.model.preprocessing.image_size, self.job.plan.batch_size
        decoded = decoded_ahead(self.job.dataset, rows, size, most, self.job.plan.device)
        block: _Block | None = None
        self._started = time.monotonic()
        with (
            closing(decoded),
            closing(self._encoded(decoded)) as encoded,
            ThreadPoolExecutor(self.overlap.writes, thread_name_prefix="write") as disk,
        ):
            for batch, outputs in encoded:
                # The disk had the time of one batch; so a kill costs a block and a batch at most.
                self._settle(self.overlap.writes - 1)
                for item, arrays in zip(batch, outputs, strict=True):
                    block = block or self._new_block(item.row)
                    self._add(block, item, arrays)
                    if len(block.status) == len(block.rows):
                        _require_readable(block, self.job.dataset)
                        self._commit(disk, block)
                        block = None
                self._advance(len(batch))
            self._settle()
        self.interrupted = self.encoded < sum(len(self.writer.block_rows(b)) for b in pending)
        self.seconds = time.monotonic() - self._started
        self._report()

    def _encoded(self, decoded: Iterator[Decoded]) -> Generator[_Encoded, None, None]:
        """Give batches with what the encoder made of them."""

        def encode(batch: list[Decoded]) -> _Encoded:
            return batch, self._encode(batch)

        if not self.overlap.batches:
            yield from map(encode, self._batches(decoded))
            return
        workers = self.overlap.batches
        yield from ahead(encode, self._batches(decoded), workers, depth=workers + 1)

    def _batches(self, decoded: Iterator[Decoded]) -> Iterator[list[Decoded]]:
        """Take batches until the images are through; when stopping, only what the block in flight still lacks."""
        left = 0  # of the block that the last image belongs to
        while True:
            room = self.job.plan.batch_size
            if self.should_stop():
                room = min(room, left)
            batch = list(itertools.islice(decoded, room))
            if not batch:
                return
            last = batch[-1].row
            left = self.writer.block_rows(last // BLOCK_ROWS).stop - 1 - last
            yield batch

    def _encode(self, batch: Sequence[Decoded]) -> list[dict[str, NDArray[Any]] | None]:
        """Give each image's arrays, or None where there was no image or no finite result."""
        good = [item.pixels for item in batch if item.pixels is not None]
        outputs = self.model.encode(good, self.job.plan.tiers) if good else {}
        position = itertools.count()
        found: list[dict[str, NDArray[Any]] | None] = []
        for item in batch:
            if item.pixels is None:
                found.append(None)
                continue
            i = next(position)
            arrays = {name: output[i] for name, output in outputs.items()}
            finite = all(bool(np.isfinite(array).all()) for array in arrays.values())
            found.append(arrays if finite else None)
        return found

    def _new_block(self, row: int) -> _Block:
        number = row // BLOCK_ROWS
        return _Block(
            number,
            self.writer.block_rows(number),
            {name: [] for name in self.writer.missing(number)},
        )

    def _add(self, block: _Block, item: Decoded, arrays: Mapping[str, NDArray[Any]] | None) -> None:
        code, reason = item.code, item.reason
        if item.pixels is not None and arrays is None:
            code, reason = "nonfinite", "the encoder gave NaN or infinity for this image"
        earlier = self.writer.earlier_images(block.number)
        before = earlier[len(block.status)] if earlier else ""
        if before and item.image_sha256 and before != item.image_sha256:
            code = "changed"
            reason = "the image is not the one that this row's other arrays were made from"
        row: dict[str, object] = {
            **(arrays or {}),
            "image_stats": item.image_stats,
            "original_size": item.original_size,
            "mask": item.mask,
        }
        if code:
            row = {name: self.writer.specs[name].empty_row() for name in block.arrays}
            quarantined = Quarantined(item.row, self.job.rows.sample_ids[item.row], code, reason)
            block.reasons[item.row] = reason
            self.bad += 1
            self.tell(quarantined)
        # What is known without the image is kept even where there is none.
        row |= {
            "label": self.job.rows.labels[item.row],
            "sample_id": self.job.rows.sample_ids[item.row],
        }
        for name, values in block.arrays.items():
            values.append(row[name])
        block.status.append(QUARANTINED + code if code else OK)
        block.unread.append(item.unread)
        block.images.append(item.image_sha256)

    def _commit(self, disk: ThreadPoolExecutor, block: _Block) -> None:
        """Hand a block to a writing thread, which works while the next batch is encoded."""
        self._settle(self.overlap.writes - 1)
        self._writing.append(disk.submit(self._write, block))

    def _settle(self, left: int = 0) -> None:
        """Wait until no more than so many blocks are being written."""
        while len(self._writing) > left:
            self.bytes_written += self._writing.popleft().result()

    def _write(self, block: _Block) -> int:
        record = self.writer.write_block(
            block.number, block.arrays, block.status, block.reasons, block.images, self._about
        )
        return sum(file.size for file in record.files.values())

    def _advance(self, rows: int) -> None:
        self.encoded += rows
        if not self._warm:
            self._warm, self._warm_rows = time.monotonic(), self.encoded
        self._report()

    def _report(self) -> None:
        since = self.encoded - self._warm_rows
        rate = since / (time.monotonic() - self._warm) if since else 0.0
        left = self.job.plan.pending_rows - self.encoded
        self.tell(
            Progress(
                self.encoded,
                self.job.plan.pending_rows,
                self.bytes_written,
                self.bad,
                rate,
                left / rate if rate else None,
            )
        )


def _environment(plan: Plan) -> dict[str, object]:
    """What is worth knowing about how a row was made, though it is not identity."""
    packages = ("samtl", "torch", "segment-anything", "numpy", "pillow")
    return {
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "device": plan.device,
        "engine": plan.engine,
        "batch_size": plan.batch_size,
    }
