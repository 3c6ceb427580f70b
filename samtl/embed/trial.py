"""What is tried before a pass: some of its images are encoded, for its time, and to see that it is not in vain."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from samtl import _download
from samtl._runtime import Note, peak_memory
from samtl.embed.decode import Decoded, decoded_ahead
from samtl.embed.pipeline import encoded, load_encoder
from samtl.embed.plan import Job
from samtl.encoders.base import Encoder
from samtl.encoders.compute import resolve_compute
from samtl.encoders.device import resolve_device
from samtl.errors import InputError, ResourceError
from samtl.store.fingerprint import require_same

TRIED = 100  # images that are decoded before they are all taken to be unusable
LONG = 1.0  # seconds: a batch that takes as long is not encoded again, now that the encoder is warm
COMPARED = 8  # images that are encoded in two ways
LEAST_COSINE = 0.999  # of every token with the one in float
MOST_ERROR = 0.01  # relative L2 distance of an image's pooled features from those in float


def must_compare(job: Job) -> bool:
    """Whether a pass begins a store in 8-bit products, or in a float16 that nobody asked for, whose range is small."""
    plan, unasked = job.plan, job.config.dtype == "auto"
    fast = plan.engine == "int8" or (plan.compute_dtype == "float16" and unasked)
    return fast and job.state is None and plan.pending_rows > 0


def compared(job: Job, tell: Callable[[Note], None]) -> tuple[Job, Encoder]:
    """Compare a pass with one in floats; return that of the two which is exact enough, with its encoder."""
    device = _device(job)
    dtype = resolve_compute(job.config.dtype, "fast", resolve_device(device))
    if dtype == "float16" and job.config.dtype == "auto":
        dtype = "float32"
    engine = "fast" if job.plan.engine == "int8" else job.plan.engine
    exact = replace(job, plan=replace(job.plan, compute_dtype=dtype, engine=engine, speeds={}))
    tell(Note(f"comparing {job.plan.compute_dtype} with {dtype} on some of the images"))
    pixels = [item.pixels for item in _decoded(job, COMPARED) if item.pixels is not None]
    if pixels:
        # One after the other, since two large encoders may not fit.
        expected = load_encoder(exact, device).encode(pixels, ("pooled", "dense"))
        encoder = load_encoder(job, device)
        found = encoder.encode(pixels, ("pooled", "dense"))
        figures = closeness(found, expected, pixels, encoder.spec.patch)
        told = (
            f"{job.plan.compute_dtype} beside {dtype}, {len(pixels)} images: least cosine of a token "
            f"{figures['token_cosine']:.5f}, largest error of pooled features {figures['pooled_error']:.2%}"
        )
        if close_enough(figures):
            tell(Note(told))
            return replace(job, closeness=figures), encoder
        tell(Note(f"{told}: too far, so the pass computes in {dtype}"))
        del encoder
    return exact, load_encoder(exact, device)


def closeness(
    ours: Mapping[str, NDArray[Any]],
    exact: Mapping[str, NDArray[Any]],
    pixels: Sequence[NDArray[np.uint8]],
    patch: int,
) -> dict[str, float]:
    """Compare what two encoders give for the same images.

    Returns how many `images` that are, the least `token_cosine` over all tokens that an image covers, and the largest
    `pooled_error`, the relative L2 distance of an image's pooled features; NaN if any is.
    """
    cosines = []
    for one, other, image in zip(ours["dense"], exact["dense"], pixels, strict=True):
        rows, columns = (-(-side // patch) for side in image.shape[:2])
        a, b = (torch.from_numpy(x[:, :rows, :columns]).double() for x in (one, other))
        cosines.append(float(torch.cosine_similarity(a, b, dim=0, eps=1e-30).min()))
    lengths = np.linalg.norm(exact["pooled"], axis=1).clip(1e-30)
    errors = np.linalg.norm(ours["pooled"] - exact["pooled"], axis=1) / lengths
    return {
        "images": len(pixels),
        "token_cosine": float(np.min(cosines)),
        "pooled_error": float(np.max(errors)),
    }


def close_enough(figures: Mapping[str, float]) -> bool:
    """Whether a pass may go on with what was compared."""
    return figures["token_cosine"] >= LEAST_COSINE and figures["pooled_error"] <= MOST_ERROR


def load_without_download(job: Job) -> tuple[Encoder, str]:
    """Load the encoder of a pass, and say that its weights are random if the real ones are not on this machine."""
    try:
        with _download.forbidden():
            return load_encoder(job, _device(job)), ""
    except _download.NotHere as missing:
        stand_in = replace(job, config=replace(job.config, checkpoint="random:0"))
        return load_encoder(stand_in, _device(job)), str(missing)


def timed(job: Job, encoder: Encoder, missing: str = "") -> Job:
    """Encode some images of a pass, and return it with these, and with its time, memory and batch size in the plan.

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
    kind, _, number = _device(job).partition(":")
    batch_size = plan.batch_size or encoder.best_batch(plan.pending_rows)
    cores, began = os.cpu_count() or 1, time.perf_counter()
    # A CPU takes no more at a time, whatever the size of a batch.
    tried = _decoded(job, min(batch_size, cores) if kind == "cpu" else batch_size)
    decoding = (time.perf_counter() - began) / len(tried)
    usable = [item for item in tried if item.pixels is not None]
    fresh = state is None or not state.marked("ok").any()
    if not usable:
        if fresh:
            raise _unusable(job, tried)
        return replace(job, plan=plan)
    for _ in range(2):
        began = time.perf_counter()
        made = encoded(encoder, usable, plan.tiers)
        seconds = time.perf_counter() - began
        if seconds > LONG:
            break
    arrays = [array for item in made for array in item.outputs.values()]
    if fresh and not any(np.isfinite(array).any() for array in arrays):
        raise InputError(
            f"the encoder gives NaN or infinity for each of {len(made)} images: try --dtype float32, or other weights "
            "with --checkpoint"
        )
    each = seconds / len(made)
    # On a GPU other cores decode meanwhile, on a CPU these are the same.
    each = each + decoding / cores if kind == "cpu" else max(each, decoding)
    on_gpu = torch.cuda.max_memory_allocated(int(number or 0)) if kind == "cuda" else 0
    told = replace(
        plan,
        batch_size=batch_size,
        seconds=each * plan.pending_rows / len(plan.device.split(",")),
        memory=peak_memory(),
        device_memory=on_gpu,
    )
    return replace(job, plan=told, tried={} if missing else {item.row: item for item in made})


def _device(job: Job) -> str:
    return job.plan.device.partition(",")[0]


def _decoded(job: Job, wanted: int) -> list[Decoded]:
    """Decode the first images of a pass until as many as `wanted` are usable."""
    rows, kind = job.pending[: max(TRIED, wanted)].tolist(), _device(job).partition(":")[0]
    found: list[Decoded] = []
    ahead = decoded_ahead(
        job.dataset, rows, job.plan.image_size, wanted, kind, untrusted=job.config.untrusted
    )
    with closing(ahead):
        while wanted and (item := next(ahead, None)):
            found.append(item)
            wanted -= item.pixels is not None
    return found


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
