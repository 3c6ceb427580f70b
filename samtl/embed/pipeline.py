"""One process's part of a pass: blocks of images decoded, encoded and committed, all at the same time.

Decoding (threads), encoding (this thread on a CPU, threads for a GPU) and writing (threads) overlap. The unit of
progress is a block: a pass that is interrupted goes on with the blocks that have no record.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import itertools
import random
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samtl import registry
from samtl._runtime import Note, prefetch
from samtl.embed.changes import look
from samtl.embed.decode import Decoded, decoded_ahead
from samtl.embed.plan import Job, specs_of
from samtl.encoders.base import Encoder
from samtl.errors import ResourceError
from samtl.images.bands import Bands
from samtl.images.codecs import BadImage
from samtl.store.fingerprint import make_identity
from samtl.store.format import ENCODER
from samtl.store.log import OK, QUARANTINED, UNLISTED
from samtl.store.state import Quarantined
from samtl.store.writer import Writer, open_writer


@dataclass(frozen=True)
class Progress:
    """How far a pass is."""

    encoded: int  #: images that it is through with
    pending_rows: int  #: images that it has to encode in all
    bytes_written: int  #: committed so far
    quarantined: int  #: images of this pass that could not be used
    images_per_second: float  #: since the end of the first batch, which warms up; 0 until then
    seconds_left: float | None  #: None until there is a rate


Told = Progress | Quarantined | Note


def overlap(device: str) -> tuple[int, int]:
    """Choose how many batches are in the encoder at the same time, 0 if this thread encodes, and blocks being written.

    On a GPU two batches are in flight, so that it does not wait for results to be copied and written; MPS allows only
    one thread. On a CPU the encoder has the cores, and little is lost if the process is killed.
    """
    return {"cpu": (0, 1), "mps": (1, 4)}.get(device, (2, 4))


def load_encoder(job: Job, device: str) -> Encoder:
    """Load the encoder of a pass on one of its devices."""
    plan = job.plan
    encoder: Encoder = registry.load("encoders", plan.encoder).Encoder(
        plan.encoder,
        job.weights or job.config.source,
        device,
        plan.compute_dtype,
        plan.image_size,
        plan.engine,
        Bands(plan.bands, job.dataset.units),
    )
    return encoder


def start_writer(job: Job, encoder: Encoder, device: str) -> Writer:
    """Open the store of a pass, making it if it is not there; MismatchError if another encoder made it."""
    weights = encoder.weights
    packages = ["samtl", "torch", "segment-anything", "numpy", "pillow"]
    packages += {"transformers"} & sys.modules.keys()  # of an encoder from there
    about = {
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "device": device,
        "engine": job.plan.engine,
    }
    of_weights: dict[str, Any] = {"weights": weights.description, "untrained": weights.untrained}
    if job.closeness:
        about["closeness"] = of_weights["closeness"] = job.closeness
    if job.weights is not None:
        of_weights["files"] = {ENCODER: hashlib.sha256(job.weights).hexdigest()}
    identity = make_identity(
        encoder.fingerprint(), specs_of(encoder.spec), of_weights, job.block_rows
    )
    return open_writer(job.storage, identity, job.table, job.arrays, about, job.state)


@dataclass
class Meter:
    """Counts what a pass does, under the names of `Progress`, and tells it."""

    tell: Callable[[Told], None]
    pending: int
    encoded: int = 0
    quarantined: int = 0
    bytes_written: int = 0
    _warm: float = 0.0
    _cold: int = 0  # images of the first batch

    def advance(self, images: int) -> None:
        """Count the images of a batch."""
        self.encoded += images
        if not self._warm:
            self._warm, self._cold = time.monotonic(), self.encoded
        self.report()

    def report(self) -> None:
        """Tell how far the pass is."""
        since, left = self.encoded - self._cold, self.pending - self.encoded
        rate = since / (time.monotonic() - self._warm) if since else 0.0
        done = self.encoded, self.pending, self.bytes_written, self.quarantined
        self.tell(Progress(*done, rate, left / rate if rate else None))


@dataclass
class Block:
    """A block on its way: the arrays that it lacks, and its images by their positions in the table, as they come."""

    number: int
    arrays: tuple[str, ...]
    positions: list[int]
    items: dict[int, Decoded] = field(default_factory=dict)


_Batch = list[tuple[Block, Decoded]]


def encode_blocks(
    job: Job,
    encoder: Encoder,
    writer: Writer,
    device: str,
    tell: Callable[[Told], None],
    should_stop: Callable[[], bool],
    processes: int = 1,
) -> Meter:
    """Encode and commit the pending blocks of a pass, except those that other writers commit meanwhile.

    `tell` is called with `Progress` after each batch and `Quarantined` for each image that cannot be used. If
    `should_stop`, asked between batches, is true, the block in flight is finished. Raises ResourceError if the disk,
    the device or the drive of the images gives out.
    """
    pending, names = writer.pending(), job.dataset.sample_ids
    rows = int(np.isin(job.table.rows // writer.state.identity.block_rows, pending).sum())
    meter = Meter(tell, rows)
    batches_at_once, writes = overlap(device)
    batch_size = job.plan.batch_size or encoder.best_batch(rows)
    writer.about["batch_size"] = batch_size
    blocks: dict[int, Block] = {}
    writing: deque[tuple[Block, Future[int | None]]] = deque()

    def positions() -> Iterator[int]:
        # In random order, so that writers that know nothing of each other rarely do the same block.
        for number in random.sample(pending, len(pending)):
            listed = [position for position in writer.positions(number) if position >= 0]
            if lacking := writer.missing(number):
                blocks.update(dict.fromkeys(listed, Block(number, lacking, listed)))
                yield from listed
            else:  # another writer has done it meanwhile
                meter.pending -= len(listed)

    def settle(most: int) -> None:
        while len(writing) > most:
            block, future = writing.popleft()
            written = future.result()
            if written is None:  # another writer was faster
                meter.encoded -= len(block.positions)
                meter.pending -= len(block.positions)
            meter.bytes_written += written or 0

    decoded = decoded_ahead(
        job.dataset, positions(), job.plan.image_size, batch_size, device, processes, job.config.untrusted, job.tried
    )  # fmt: skip
    batches = _batches(decoded, blocks, batch_size, should_stop)
    ready = _encoded(encoder, batches, job.plan.tiers, batches_at_once)
    with (
        closing(decoded),
        closing(ready),
        ThreadPoolExecutor(writes, thread_name_prefix="write") as disk,
    ):
        for batch in ready:
            # The disk had the time of one batch, so a kill costs a block and a batch at most.
            settle(writes - 1)
            for block, found in batch:
                block.items[found.row] = item = _checked(job, writer, found)
                if item.code:
                    meter.quarantined += 1
                    tell(Quarantined(item.row, names[item.row], item.code, item.reason))
                if len(block.items) == len(block.positions):
                    _require_readable(job, writer, block)
                    settle(writes - 1)
                    writing.append((block, disk.submit(commit, writer, block)))
            meter.advance(len(batch))
        settle(0)
    meter.report()
    return meter


def _batches(
    decoded: Iterator[Decoded],
    blocks: dict[int, Block],
    batch_size: int,
    should_stop: Callable[[], bool],
) -> Iterator[_Batch]:
    """Take batches until the images are through; if asked to stop, only what the block in flight still lacks."""
    left = 0  # of the block that the last image belongs to
    while True:
        room = min(batch_size, left) if should_stop() else batch_size
        batch = [(blocks.pop(item.row), item) for item in itertools.islice(decoded, room)]
        if not batch:
            return
        block, last = batch[-1]
        left = block.positions[-1] - last.row
        yield batch


def encoded(encoder: Encoder, items: Sequence[Decoded], tiers: Sequence[str]) -> list[Decoded]:
    """Put what the encoder makes of images in the place of their pixels."""
    pixels = [item.pixels for item in items if item.pixels is not None]
    outputs = encoder.encode(pixels, tiers) if pixels and tiers else {}
    rows = ({name: output[i] for name, output in outputs.items()} for i in itertools.count())
    return [
        item if item.pixels is None else replace(item, pixels=None, outputs=next(rows))
        for item in items
    ]


def _encoded(
    encoder: Encoder, batches: Iterator[_Batch], tiers: Sequence[str], threads: int
) -> Generator[_Batch, None, None]:
    """Yield batches with what the encoder makes of them; images for which it is not finite are bad."""

    def encode(batch: _Batch) -> _Batch:
        wanted = [name for name in tiers if any(name in block.arrays for block, _ in batch)]
        blocks, items = zip(*batch, strict=True)
        found = encoded(encoder, items, wanted)
        for i, item in enumerate(found):
            arrays = (item.outputs[name] for name in wanted if name in item.outputs)
            if not all(map(_finite, arrays)):
                reason = "the encoder gave NaN or infinity for this image"
                found[i] = replace(item, code="nonfinite", reason=reason)
        return list(zip(blocks, found, strict=True))

    if threads:
        yield from prefetch(encode, batches, threads, depth=threads + 1)
    else:
        yield from map(encode, batches)


def _finite(array: NDArray[Any]) -> bool:
    """Return whether every number is finite; numpy takes ten times as long for those of 16 bits."""
    if array.dtype == np.float16:
        return bool(((array.view(np.uint16) & 0x7C00) != 0x7C00).all())
    return bool(np.isfinite(array).all())


def _checked(job: Job, writer: Writer, item: Decoded) -> Decoded:
    """Mark an image as bad if its row belongs to another image."""
    row = int(job.table.rows[item.row])
    before = writer.state.log.image(row) or job.table.images[item.row]
    if not before or not item.image_sha256 or before == item.image_sha256:
        return item
    reason = "the image is not the one that this row's other arrays were made from"
    return replace(item, code="changed", reason=reason)


def commit(writer: Writer, block: Block) -> int | None:
    """Write a block and return the bytes of its shards, None if another writer was faster."""
    rows = writer.block_rows(block.number)
    unlisted = Decoded(-1, code=UNLISTED)
    items = [block.items.get(position, unlisted) for position in writer.positions(block.number)]
    codes = [
        item.code and (item.code if item is unlisted else QUARANTINED + item.code) for item in items
    ]
    columns = [{**vars(item), **item.outputs} for item in items]
    return writer.write_block(
        block.number,
        {name: [None if c["code"] else c[name] for c in columns] for name in block.arrays},
        [code or OK for code in codes],
        {row: item.reason for row, item in zip(rows, items, strict=True) if item.reason},
        [item.image_sha256 for item in items],
        [item.mask_sha256 for item in items] if "mask" in block.arrays else (),
    )


def _require_readable(job: Job, writer: Writer, block: Block) -> None:
    """Raise ResourceError if unreadable files are the drive's fault, which is no property of the files.

    That is so if an image that could be read before, or its mask, cannot be read any more; or, if none could be read
    before, if no other can.
    """
    items = block.items.values()
    if not any(item.unread for item in items):
        return
    tried = [item.row for item in items if not item.unread][:1]
    if not tried and (row := writer.known_good()) is not None:
        tried = [int(job.table.position[row])]
    names = [job.dataset.sample_ids[at] for at in tried or range(len(job.table))[:16]]
    why = [found.error for _, found in look(job.dataset, names)]
    if all(error is not None and not isinstance(error, BadImage) for error in why):
        raise ResourceError(
            f"images of {job.dataset.name} cannot be read any more ({why[0]}): is it still where it was? What was "
            "committed before is kept; run the same command again to go on"
        )
