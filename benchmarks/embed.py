"""Duration of a whole encoder pass, against the encoder alone on pixels that are already in memory."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.paired import TIER_IN_ROWS, Row, against, alternating
from benchmarks.paired import alone as alone_row
from samtl.embed.api import embed
from samtl.embed.fitted import takes_from_images, with_weights
from samtl.embed.pipeline import load_encoder
from samtl.embed.plan import EmbedConfig, prepare


def bench_embed(
    encoder: str = "tiny",
    checkpoint: str | None = None,
    dataset: str = "synthetic:8",
    *,
    root: str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    engine: str = "fast",
    image_size: int | None = None,
    batch_size: int | str = "auto",
    limit: int | None = None,
    tiers: Sequence[str] = ("pooled", "pooled+grid", "pooled+grid+dense"),
    rounds: int = 3,
    out: str | Path | None = None,
    on_row: Callable[[Row], None] | None = None,
    on_event: Callable[[str], None] | None = None,
) -> list[Row]:
    """Measure passes over the same images with several choices of tiers, alternating with the encoder alone.

    A pass is timed from the first image to the last commit: reading, decoding, resizing, encoding, reducing, writing.
    The encoder alone gets batches of the same size, normalised and on its device, and its output stays there.

    Parameters
    ----------
    encoder : str
        Name of the encoder.
    checkpoint : str, optional
        Weights, as for embed; by default untrained ones, since the duration does not depend on them.
    dataset : str
        Dataset to embed. On a GPU, some tens of batches are needed until stages overlap.
    root : path, optional
        Folder of the dataset.
    device : str
        One device: auto, cpu, cuda, cuda:N or mps.
    dtype : str
        Dtype to compute in: auto, float32, bfloat16 or float16.
    engine : str
        `fast`, `reference` or `int8`; the comparison with floats before a pass in 8-bit products is not timed.
    image_size : int, optional
        Side of the encoder's input in pixels.
    batch_size : int or "auto"
        Images in a batch.
    limit : int, optional
        Largest number of images.
    tiers : sequence of str
        Passes to measure, by the tiers that each keeps, joined by `+`. With `--engine int8` each pass also encodes
        eight images twice before it begins.
    rounds : int
        Rounds of each pair; figures are medians.
    out : path, optional
        Folder to write temporary stores in, by default that for temporary files.
    on_row, on_event : callable, optional
        Called with each figure, and with a line about each step.

    Returns
    -------
    list of Row
        `embed/TIERS` in seconds, with the ratio to `encoder-alone`; then `encoder-alone`.
    """
    if checkpoint is None and not takes_from_images(encoder):
        checkpoint = "random:0"
    told, add = on_event or (lambda text: None), on_row or (lambda row: None)
    options: dict[str, Any] = {
        "root": root, "checkpoint": checkpoint, "device": device, "dtype": dtype, "engine": engine,
        "image_size": image_size, "batch_size": batch_size, "limit": limit,
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="samtl-bench-", dir=out) as folder:
        options |= {"tiers": "+".join(tiers).split("+"), "out": Path(folder) / "bench.zarr"}
        job = prepare(EmbedConfig(dataset, encoder, **options), download=False)
    plan = job.plan
    told(f"loading {encoder}")
    model: Any = load_encoder(with_weights(job), plan.device)
    # The same for all sides, even if a pass would choose another.
    options["batch_size"] = batch = plan.batch_size or model.best_batch(plan.rows)
    shape = batch, len(plan.bands), plan.image_size, plan.image_size
    pixels = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(
        model.device, model.dtype
    )

    def alone() -> float:
        told("the encoder alone")
        began = time.perf_counter()
        for start in range(0, plan.rows, batch):
            output = model.forward(pixels[: plan.rows - start])
        output[0, 0, 0, 0].item()  # waits for the device
        return time.perf_counter() - began

    def whole(kept: str) -> float:
        told(f"a pass that keeps {kept}")
        with tempfile.TemporaryDirectory(prefix="samtl-bench-", dir=out) as folder:
            options.update(tiers=kept.split("+"), out=Path(folder) / "bench.zarr")
            return embed(dataset, encoder, **options).seconds

    sides: dict[str, Callable[[], float]] = {"alone": alone}
    for kept in tiers:
        name = "+".join(TIER_IN_ROWS.get(tier, tier) for tier in kept.split("+"))
        sides[name] = partial(whole, kept)
    values = alternating(sides, rounds)
    of = values.pop("alone")
    rows = [
        against(f"embed/{name}", "s", found, "encoder-alone", of) for name, found in values.items()
    ]
    rows.append(alone_row("encoder-alone", "s", of))
    for row in rows:
        add(row)
    return rows
