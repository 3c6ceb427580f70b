"""Time to decode, measure and resize images, against plain Pillow."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from benchmarks.paired import Row, paired
from samtl.datasets import resolve
from samtl.images.codecs import prepare

IMAGES = 8
NOISE = (0, 4, 8)  # standard deviations; more detail makes a larger file


def bench_images(
    size: int = 1024, rounds: int = 5, on_row: Callable[[Row], None] | None = None
) -> list[Row]:
    """Measure JPEGs of generated scenes, on one core.

    Parameters
    ----------
    size : int
        Side of the images and of the encoder's input in pixels.
    rounds : int
        Rounds of each pair; figures are medians.
    on_row : callable, optional
        Called with each figure.

    Returns
    -------
    list of Row
        `decode/SIZE/KiB` in milliseconds for each image, KiB being the mean size of the files, against `pillow`, which
        decodes and resizes, and measures nothing.
    """
    found = []
    for deviation in NOISE:
        files = _jpegs(size, deviation)
        kib = sum(map(len, files)) // len(files) // 1024
        ours = _timed(lambda data: prepare(data, size), files)
        theirs = _timed(lambda data: _plain(data, size), files)
        found.append(paired(f"decode/{size}/{kib}-KiB", "ms", ours, "pillow", theirs, rounds))
        if on_row is not None:
            on_row(found[-1])
    return found


def _jpegs(size: int, deviation: float) -> list[bytes]:
    dataset, random = resolve(f"synthetic-roads:{IMAGES}"), np.random.default_rng(0)
    files = []
    for name in dataset.sample_ids:
        with Image.open(io.BytesIO(dataset.read(name))) as scene:
            pixels = np.asarray(scene.resize((size, size), Image.Resampling.BICUBIC), np.float64)
        noisy = pixels + random.normal(0, deviation, pixels.shape)
        file = io.BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def _plain(data: bytes, size: int) -> object:
    with Image.open(io.BytesIO(data)) as image:
        resized = image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
        return np.asarray(resized)


def _timed(work: Callable[[bytes], object], files: Sequence[bytes]) -> Callable[[], float]:
    def measure() -> float:
        began = time.perf_counter()
        for data in files:
            work(data)
        return 1000 * (time.perf_counter() - began) / len(files)

    return measure
