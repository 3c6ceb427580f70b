"""Generated roads with exact masks, `synthetic-roads[:N[:SEED]]`: N images, six of each scene, no download."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from samtl.datasets.base import Dataset
from samtl.datasets.landscapes import PAVED, SIZE, Draw, bmp, edge, mix
from samtl.datasets.synthetic import NOTE, drawing, generated

NAMES = {
    "synthetic-roads": "Generated roads with exact masks, `synthetic-roads[:N[:SEED]]`: N images"
}
PER_SCENE = 6


def open_dataset(argument: str | None, root: Path | None, download: bool = True) -> Dataset:
    """List generated images of roads, which are made when they are read, and their masks.

    `argument` is as in `synthetic`, 24 images by default. One side has 256 pixels, the other 192 to 256. Groups are
    scenes, whose images share their tones. Raises InputError.
    """
    count, name, seed = generated("synthetic-roads", argument, root, 24)
    groups = tuple(f"scene_{i // PER_SCENE + 1}" for i in range(count))
    return Dataset(
        name=name,
        classes=("background", "road"),
        sample_ids=tuple(f"{group}/{i}.bmp" for i, group in enumerate(groups, 1)),
        labels=(-1,) * count,
        read=functools.partial(_image, seed),
        note=NOTE,
        read_mask=functools.partial(_mask, seed),
        groups=groups,
    )


def _image(seed: int, sample_id: str) -> bytes:
    return bmp(_drawn(seed, sample_id)[0])


def _mask(seed: int, sample_id: str) -> NDArray[np.uint8]:
    return _drawn(seed, sample_id)[1]


def _drawn(seed: int, sample_id: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draw one to three roads through fields and houses: pixels, (H, W, 3), and their mask, (H, W).

    Colour alone does not give the roads away: some fields and a third of the roofs have their tone.
    """
    scene, draw = drawing(seed, sample_id, r"scene_[1-9]\d*")
    look = Draw(seed, scene, 0)
    paved, number = look.tone(PAVED[:3]), draw.parcels()[0]
    land = mix(mix(*look.pair(), draw.noise(draw.between(24, 90))), look.tone(), number * 0.8)
    land = mix(land, paved, np.where(number < 0.12, 0.9, 0.0))
    roofs = [paved, look.tone(PAVED), look.tone(PAVED)]
    land = draw.houses(land, draw.between(22, 32), roofs, draw.between(0.05, 0.4))
    mask = np.zeros((SIZE, SIZE), dtype=np.uint8)
    for _ in range(int(draw.between(1, 4))):
        beyond = draw.winding(draw.between(8, 30)) - draw.between(4, 10)
        land = mix(land, paved + (draw.noise(5, 1) - 0.5) * 0.03, edge(beyond))
        mask[beyond <= 0] = 1
    short = int(draw.between(192, SIZE + 1))
    height, width = (short, SIZE) if draw.random() < 0.5 else (SIZE, short)
    return draw.develop(land, look)[:height, :width], mask[:height, :width]
