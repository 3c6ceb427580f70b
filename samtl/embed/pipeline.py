"""One process's part of a pass: blocks of images decoded, encoded, taken over and committed, all at the same time.

Decoding and resizing (threads), encoding (on a CPU this thread, for a GPU threads) and writing (threads) overlap. The
unit of progress is a block of 16 rows: what is interrupted goes on at the first block that is not committed.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from samtl._runtime import Note, prefetch
from samtl.embed.decode import Decoded, decoded_ahead
from samtl.embed.plan import Job, Plan
from samtl.errors import InputError, ResourceError
from samtl.images.codecs import BadImage
from samtl.store.layout import BLOCK_ROWS, TIER_ARRAYS
from samtl.store.log import OK, QUARANTINED, SUPERSEDED
from samtl.store.reader import Quarantined
from samtl.store.writer import StoreWriter

if TYPE_CHECKING:
    from samtl.encoders.sam import Encoder


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


Told = Progress | Quarantined | Note
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
    flight, and several blocks. On MPS one thread alone may use the device. On a CPU the encoder has the cores, and
    images are dear.
    """
    return {"cpu": Overlap(0, 1), "mps": Overlap(1, 4)}.get(device, Overlap(2, 4))


class Pass:
    """One encoder at work on blocks.

    Parameters
    ----------
    job : Job
        Its plan names this encoder's device.
    model : Encoder
    writer : StoreWriter
    tell : callable
        Called with `Progress` of this pass after each batch, `Quarantined` for each image that cannot be used, and
        each `Note`.
    should_stop : callable
        Asked between batches; where it says True, the pass ends after the block in flight.
    processes : int
        That share this machine's cores.

    Attributes
    ----------
    encoded, bytes_written : int
    batch_size : int
        The plan's, or what the device was found to be fastest with.
    """

    def __init__(
        self,
        job: Job,
        model: Encoder,
        writer: StoreWriter,
        tell: Callable[[Told], None],
        should_stop: Callable[[], bool],
        processes: int = 1,
    ) -> None:
        self.job, self.model, self.writer = job, model, writer
        self.tell, self.should_stop = tell, should_stop
        self.processes = processes
        self.encoded = self.bytes_written = self.bad = 0
        self._note = ""
        self._warm = 0.0
        self._warm_rows = 0
        self._writing: deque[Future[int]] = deque()
        self.overlap = overlap(job.plan.device)
        self.batch_size = job.plan.batch_size or model.best_batch(job.plan.pending_rows)
        self._tiers = frozenset(TIER_ARRAYS.values())
        self._about = _environment(job.plan, self.batch_size)

    def run(self, blocks: Iterable[int]) -> None:
        """Encode and commit blocks, one after the other; each is asked for a little before its turn."""
        rows = (row for block in blocks for row in self.writer.block_rows(block))
        decoded = decoded_ahead(
            self.job.dataset,
            rows,
            self.model.spec.image_size,
            self.batch_size,
            self.job.plan.device,
            self.processes,
            frozenset(self.job.rows.superseded),
        )
        block: _Block | None = None
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
                        self._require_readable(block)
                        self._commit(disk, block)
                        block = None
                self._advance(len(batch))
            self._settle()
        self._report()

    def _encoded(self, decoded: Iterator[Decoded]) -> Generator[_Encoded, None, None]:
        """Give batches with what the encoder made of them."""

        def encode(batch: list[Decoded]) -> _Encoded:
            return batch, self._encode(batch)

        if not self.overlap.batches:
            yield from map(encode, self._batches(decoded))
            return
        workers = self.overlap.batches
        yield from prefetch(encode, self._batches(decoded), workers, depth=workers + 1)

    def _batches(self, decoded: Iterator[Decoded]) -> Iterator[list[Decoded]]:
        """Take batches until the images are through; when stopping, only what the block in flight still lacks."""
        left = 0  # of the block that the last image belongs to
        while True:
            room = self.batch_size
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
        encoded = [item.pixels is not None and self._wants_encoder(item.row) for item in batch]
        good = [
            b.pixels
            for b, wanted in zip(batch, encoded, strict=True)
            if wanted and b.pixels is not None
        ]
        outputs = self.model.encode(good, self.job.plan.tiers) if good else {}
        position = itertools.count()
        found: list[dict[str, NDArray[Any]] | None] = []
        for item, wanted in zip(batch, encoded, strict=True):
            if not wanted:
                found.append(None if item.pixels is None else {})
                continue
            i = next(position)
            arrays = {name: output[i] for name, output in outputs.items()}
            finite = all(bool(np.isfinite(array).all()) for array in arrays.values())
            found.append(arrays if finite else None)
        return found

    def _wants_encoder(self, row: int) -> bool:
        """Tell whether the block of a row lacks more than what can be read off the dataset."""
        return any(name in self._tiers for name in self.writer.missing(row // BLOCK_ROWS))

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
        before = self.writer.earlier_image(item.row)
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
            block.reasons[item.row] = reason
            if code != SUPERSEDED:
                name = self.job.rows.sample_ids[item.row]
                self.bad += 1
                self.tell(Quarantined(item.row, name, code, reason))
        # What is known without the image is kept even where there is none.
        row |= {
            "label": self.job.rows.labels[item.row],
            "sample_id": self.job.rows.sample_ids[item.row],
        }
        for name, values in block.arrays.items():
            values.append(row[name])
        block.status.append(QUARANTINED + code if code else OK)
        block.unread.append(item.unread)
        if "mask" in block.arrays:
            block.masks.append(item.mask_sha256)
        block.images.append(item.image_sha256 or (before if code == SUPERSEDED else ""))

    def _require_readable(self, block: _Block) -> None:
        """Stop where unreadable files are the drive's fault, which is no property of theirs to be kept.

        It is where a whole block is unreadable, or where an image that could be read before, or its mask, cannot be any
        more.
        """
        counted = [i for i, s in enumerate(block.status) if s != QUARANTINED + SUPERSEDED]
        fine = [block.rows[i] for i in counted if not block.unread[i]]
        if len(fine) == len(counted):
            return
        if not fine and len(counted) < BLOCK_ROWS:
            # Of a few images, all may be bad by themselves: see whether another can be read that could.
            known = self.writer.known_good()
            fine = [] if known is None else [known]
            if not fine:
                return
        why = next(block.reasons[block.rows[i]] for i in counted if block.unread[i])
        if fine:
            dataset, name = self.job.dataset, self.job.dataset.sample_ids[fine[0]]
            try:
                dataset.read(name)
                if dataset.read_mask is not None:
                    dataset.read_mask(name)
            except BadImage:  # bytes were had
                return
            except (OSError, InputError) as error:
                why = str(error)
            else:
                return
        raise ResourceError(
            f"images of {self.job.dataset.name} cannot be read any more ({why}): is it still where it was? What was "
            "committed before is kept; run the same command again to go on"
        )

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
            block.number,
            block.arrays,
            block.status,
            block.reasons,
            block.images,
            self._about,
            block.masks,
        )
        return sum(file.size for file in record.files.values())

    def _advance(self, rows: int) -> None:
        self.encoded += rows
        if self.model.note != self._note:
            self._note = self.model.note
            self.tell(Note(self._note))
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
    masks: list[str] = field(default_factory=list)


def _environment(plan: Plan, batch_size: int) -> dict[str, object]:
    """What is worth knowing about how a row was made, though it is not identity."""
    packages = ("samtl", "torch", "segment-anything", "numpy", "pillow")
    return {
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "device": plan.device,
        "engine": plan.engine,
        "batch_size": batch_size,
    }
