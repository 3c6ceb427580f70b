"""Whether 8-bit products are close enough: some of a dataset's own images, encoded in both ways before a pass."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from samtl.embed.decode import decoded_ahead
from samtl.embed.pipeline import load_encoder
from samtl.embed.plan import Job
from samtl.encoders.base import EncoderSpec
from samtl.encoders.torch_encoder import INT8

IMAGES, TRIED = 8, 64  # images that are compared; images that are decoded to find as many
LEAST_COSINE = 0.999  # of every token with the one in float
MOST_ERROR = 0.01  # relative L2 distance of an image's pooled features from those in float


def compare(job: Job) -> dict[str, float]:
    """Encode images of a pass in 8-bit products and in float.

    Returns how many `images` that are, the least `token_cosine` over all tokens that an image covers, and the largest
    `pooled_error`, the relative L2 distance of an image's pooled features. No image counts as no closeness.
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
    device = plan.device.partition(",")[0]
    found, spec = [], None
    for one in (in_float(job), job):  # one after the other, since two large encoders may not fit
        encoder = load_encoder(one, device)
        found.append(encoder.encode(pixels, ("pooled", "dense")))
        spec = encoder.spec
    assert spec is not None
    exact, ours = found
    differences = zip(ours["pooled"], exact["pooled"], strict=True)
    cosines = zip(ours["dense"], exact["dense"], pixels, strict=True)
    return {
        "images": len(pixels),
        "token_cosine": min(_least_cosine(*one, spec) for one in cosines),
        "pooled_error": max(_error(*one) for one in differences),
    }


def close_enough(figures: Mapping[str, float]) -> bool:
    """Whether a pass may compute in 8-bit products."""
    return figures["token_cosine"] >= LEAST_COSINE and figures["pooled_error"] <= MOST_ERROR


def in_float(job: Job) -> Job:
    """Return the same pass without 8-bit products."""
    dtype = job.plan.compute_dtype.removeprefix(INT8)
    return replace(job, plan=replace(job.plan, compute_dtype=dtype, engine="fast"))


def _least_cosine(
    ours: NDArray[np.float16],
    exact: NDArray[np.float16],
    pixels: NDArray[np.uint8],
    spec: EncoderSpec,
) -> float:
    """Compare two dense outputs, (channels, rows, columns), where the image is."""
    rows, columns = (-(-side // spec.patch) for side in pixels.shape[:2])
    a, b = (
        one[:, :rows, :columns].reshape(len(one), -1).astype(np.float64) for one in (ours, exact)
    )
    lengths = np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0)
    return float(((a * b).sum(0) / np.maximum(lengths, 1e-30)).min())


def _error(ours: NDArray[np.float32], exact: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(ours - exact) / max(float(np.linalg.norm(exact)), 1e-30))
