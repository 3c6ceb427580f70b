"""Generated roads with exact masks, `synthetic-roads[:N[:SEED]]`: N images.

Six images show each scene. Nothing is downloaded.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from samtl.datasets.base import Dataset
from samtl.datasets.landscapes import draw_roads
from samtl.datasets.synthetic import NOTE, generated, png
from samtl.errors import InputError

NAMES = {
    "synthetic-roads": "Generated roads with exact masks, `synthetic-roads[:N[:SEED]]`: N images"
}
PER_SCENE = 6

_ID = re.compile(r"scene_(?P<scene>[1-9][0-9]{0,6})/roads_(?P<number>[1-9][0-9]{0,6})\.png")


def open_dataset(argument: str | None, root: Path | None, download: bool = True) -> Dataset:
    """List generated images of roads, RGB PNG files that are made when they are read, and their masks.

    `argument` is as in `synthetic`, 24 images by default. One side has 256 pixels, the other 192 to 256. Groups are
    scenes, whose images share their tones. Raises InputError.
    """
    count, name, seed = generated("synthetic-roads", argument, root, 24)
    groups = tuple(f"scene_{_scene(i)}" for i in range(1, count + 1))
    return Dataset(
        name=name,
        classes=("background", "road"),
        sample_ids=tuple(f"{group}/roads_{i}.png" for i, group in enumerate(groups, 1)),
        labels=(-1,) * count,
        read=functools.partial(_image, seed),
        note=NOTE,
        read_mask=functools.partial(_mask, seed),
        groups=groups,
    )


def _image(seed: int, sample_id: str) -> bytes:
    return png(_draw(seed, sample_id)[0])


def _mask(seed: int, sample_id: str) -> NDArray[np.uint8]:
    return _draw(seed, sample_id)[1].astype(np.uint8)


def _draw(seed: int, sample_id: str) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    match = _ID.fullmatch(sample_id)
    number = int(match["number"]) if match else 0
    if match is None or int(match["scene"]) != _scene(number):
        raise InputError(f"no generated image of roads is called {sample_id!r}")
    return draw_roads(seed, _scene(number), number)


def _scene(number: int) -> int:
    return (number - 1) // PER_SCENE + 1
