"""Whether a fast compute dtype is exact enough: some of a dataset's own images, encoded in two ways before a pass."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samtl.embed.decode import decoded_ahead
from samtl.embed.pipeline import load_encoder
from samtl.embed.plan import Job
from samtl.encoders.compute import resolve_compute
from samtl.encoders.device import resolve_device

IMAGES, TRIED = 8, 64  # images that are compared; images that are decoded to find as many
LEAST_COSINE = 0.999  # of every token with the one in float
MOST_ERROR = 0.01  # relative L2 distance of an image's pooled features from those in float


def compare(job: Job) -> dict[str, float]:
    """Encode images of a pass in its compute dtype and in that of `in_float`.

    Returns how many `images` that are, the least `token_cosine` over all tokens that an image covers, and the largest
    `pooled_error`, the relative L2 distance of an image's pooled features; NaN if any is. No image counts as far.
    """
    plan = job.plan
    dataset = replace(job.dataset, read_mask=None)
    tried = range(min(len(dataset), TRIED))
    ahead = decoded_ahead(
        dataset, tried, plan.image_size, IMAGES, "cpu", untrusted=job.config.untrusted
    )
    with closing(ahead):
        usable = (one.pixels for one in ahead if one.pixels is not None)
        pixels = list(itertools.islice(usable, IMAGES))
    if not pixels:
        return {"images": 0, "token_cosine": 0.0, "pooled_error": 1.0}
    # One after the other, since two large encoders may not fit.
    (exact, patch), (ours, _) = (_encoded(one, pixels) for one in (in_float(job), job))
    differences = zip(ours["pooled"], exact["pooled"], strict=True)
    cosines = zip(ours["dense"], exact["dense"], pixels, strict=True)
    return {
        "images": len(pixels),
        "token_cosine": float(np.min([_least_cosine(*one, patch) for one in cosines])),
        "pooled_error": float(np.max([_error(*one) for one in differences])),
    }


def must_compare(job: Job) -> bool:
    """Whether a pass begins a store in 8-bit products, or in a float16 that nobody asked for, whose range is small."""
    plan, unasked = job.plan, job.config.dtype == "auto"
    fast = plan.engine == "int8" or (plan.compute_dtype == "float16" and unasked)
    return fast and job.state is None and plan.pending_rows > 0


def close_enough(figures: Mapping[str, float]) -> bool:
    """Whether a pass may go on with what was compared."""
    return figures["token_cosine"] >= LEAST_COSINE and figures["pooled_error"] <= MOST_ERROR


def in_float(job: Job) -> Job:
    """Return the same pass in the dtype that it would compute in without 8-bit products, and not float16 unasked."""
    device = resolve_device(job.plan.device.partition(",")[0])
    dtype = resolve_compute(job.config.dtype, "fast", device)
    if dtype == "float16" and job.config.dtype == "auto":
        dtype = "float32"
    engine = "fast" if job.plan.engine == "int8" else job.plan.engine
    return replace(job, plan=replace(job.plan, compute_dtype=dtype, engine=engine, speeds={}))


def _encoded(job: Job, pixels: Sequence[NDArray[np.uint8]]) -> tuple[dict[str, NDArray[Any]], int]:
    """Return the outputs of an encoder, and the side of its patches in pixels."""
    encoder = load_encoder(job, job.plan.device.partition(",")[0])
    return encoder.encode(pixels, ("pooled", "dense")), encoder.spec.patch


def _least_cosine(
    ours: NDArray[np.float16],
    exact: NDArray[np.float16],
    pixels: NDArray[np.uint8],
    patch: int,
) -> float:
    """Compare two dense outputs, (channels, rows, columns), where the image is."""
    rows, columns = (-(-side // patch) for side in pixels.shape[:2])
    a, b = (
        one[:, :rows, :columns].reshape(len(one), -1).astype(np.float64) for one in (ours, exact)
    )
    lengths = np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0)
    return float(((a * b).sum(0) / np.maximum(lengths, 1e-30)).min())


def _error(ours: NDArray[np.float32], exact: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(ours - exact) / max(float(np.linalg.norm(exact)), 1e-30))
