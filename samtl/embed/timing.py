"""What a pass will cost in time and memory: a batch of its images is encoded before it begins."""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from samtl import _download
from samtl._runtime import peak_memory
from samtl.embed.decode import Decoded, decoded_ahead
from samtl.embed.pipeline import load_encoder
from samtl.embed.plan import Job
from samtl.encoders.base import Encoder
from samtl.errors import InputError, ResourceError
from samtl.store.fingerprint import require_same

TRIED = 100  # images that are decoded before they are all taken to be unusable
_LONG = (
    1.0  # seconds: a batch that takes as long is not encoded again, now that the encoder is warm
)


def load_without_download(job: Job) -> tuple[Encoder, str]:
    """Load the encoder of a pass, and say that its weights are random if the real ones are not on this machine."""
    device = job.plan.device.partition(",")[0]
    try:
        with _download.forbidden():
            return load_encoder(job, device), ""
    except _download.NotHere as missing:
        stand_in = replace(job, config=replace(job.config, checkpoint="random:0"))
        return load_encoder(stand_in, device), str(missing)


def timed(job: Job, encoder: Encoder, missing: str = "") -> Job:
    """Encode some images of a pass, and return the pass with its time, memory and batch size in the plan.

    Nothing is written. With `missing`, the weights are not those of the pass: that says why.

    Raises
    ------
    InputError
        If none of the first images can be used, or the encoder gives NaN or infinity for all of them.
    ResourceError
        If none of the first images can be read, or not even one fits in memory.
    MismatchError
        If the store was made with other weights.
    """
    plan, state = job.plan, job.state
    if state is not None and not missing:
        require_same(state.identity, encoder.fingerprint(), job.storage.url)
    weights = plan.weights if missing else encoder.weights.description
    plan = replace(plan, weights=weights, weights_missing=missing)
    if not plan.pending_rows:
        return replace(job, plan=replace(plan, seconds=0.0))
    kind, _, number = plan.device.partition(",")[0].partition(":")
    batch_size = plan.batch_size or encoder.best_batch(plan.pending_rows)
    began = time.perf_counter()
    tried = _decoded(job, batch_size, kind)
    decoding = (time.perf_counter() - began) / len(tried)
    pixels = [item.pixels for item in tried if item.pixels is not None]
    fresh = state is None or not state.marked("ok").any()
    if not pixels:
        if fresh:
            raise _unusable(job, tried)
        return replace(job, plan=plan)
    seconds, outputs = _encoded(encoder, pixels, plan.tiers)
    if fresh and not any(np.isfinite(array).any() for array in outputs.values()):
        raise InputError(
            f"the encoder gives NaN or infinity for each of {len(pixels)} images: try --dtype float32, or other "
            "weights with --checkpoint"
        )
    each = seconds / len(pixels)
    # On a GPU other cores decode meanwhile, on a CPU these are the same.
    each = each + decoding / (os.cpu_count() or 1) if kind == "cpu" else max(each, decoding)
    on_gpu = torch.cuda.max_memory_allocated(int(number or 0)) if kind == "cuda" else 0
    told = replace(
        plan,
        batch_size=batch_size,
        seconds=each * plan.pending_rows / len(plan.device.split(",")),
        memory=peak_memory(),
        device_memory=on_gpu,
    )
    return replace(job, plan=told)


def _decoded(job: Job, wanted: int, kind: str) -> list[Decoded]:
    """Decode the first images of a pass until as many as `wanted` are usable."""
    found: list[Decoded] = []
    rows = range(min(len(job.dataset), max(TRIED, wanted)))
    ahead = decoded_ahead(
        job.dataset, rows, job.plan.image_size, wanted, kind, untrusted=job.config.untrusted
    )
    with closing(ahead):
        for item in ahead:
            found.append(item)
            wanted -= item.pixels is not None
            if not wanted:
                break
    return found


def _encoded(
    encoder: Encoder, pixels: Sequence[NDArray[np.uint8]], tiers: Sequence[str]
) -> tuple[float, dict[str, NDArray[Any]]]:
    """Encode a batch, twice if that is fast; return the least time and the outputs."""
    least, outputs = math.inf, dict[str, NDArray[Any]]()
    for _ in range(2):
        began = time.perf_counter()
        outputs = encoder.encode(pixels, tiers)
        least = min(least, time.perf_counter() - began)
        if least > _LONG:
            break
    return least, outputs


def _unusable(job: Job, tried: Sequence[Decoded]) -> InputError | ResourceError:
    """Say why the first images cannot be used: the reason that most of them have."""
    (code, count), *others = Counter(item.code for item in tried).most_common()
    first = next(item for item in tried if item.code == code)
    example = f"{job.dataset.sample_ids[first.row]}: {first.reason}"
    which = f"none of the first {len(tried)} images of {job.dataset.name}"
    if all(item.unread for item in tried):
        return ResourceError(f"{which} can be read ({example}): are they still where they were?")
    rest = ", ".join(f"{n} {other}" for other, n in others)
    also = f"; the others are: {rest}" if rest else ""
    return InputError(f"{which} can be used. {count} are {code}, such as {example}{also}")
