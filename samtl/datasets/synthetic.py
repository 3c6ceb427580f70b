"""Generated land-cover-like images, `synthetic[:N[:SEED]]`: N for each of 8 classes, no download.

A class shows in its structure (rows, crowns, blocks, bands, shores) and hardly in its colours.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

import numpy as np

from samtl.datasets.base import Dataset
from samtl.datasets.landscapes import PAVED, WATER, Draw, Field, bmp, cells, edge, mix
from samtl.errors import InputError

NOTE = "generated images: figures show that the machinery works, and nothing about real data"
_MAX_COUNT, _MAX_SEED = 1_000_000, 2**32 - 1


def open_dataset(argument: str | None, root: Path | None, download: bool = True) -> Dataset:
    """List generated images, 256 x 256 RGB, that are made when they are read.

    `argument` is `N` or `N:SEED`: how many images of each class, 40 by default, and a seed, 0 by default. An image
    depends only on the seed, its class and its number: the first ten of each class are the same whether ten or a
    thousand are listed. The dataset is named after the seed if it is not 0. Raises InputError.
    """
    count, name, seed = generated("synthetic", argument, root, 40)
    return Dataset(
        name=name,
        classes=tuple(_SCENES),
        sample_ids=tuple(f"{scene}/{i}.bmp" for scene in _SCENES for i in range(1, count + 1)),
        labels=tuple(label for label in range(len(_SCENES)) for _ in range(count)),
        read=functools.partial(_image, seed),
        note=NOTE,
    )


def generated(
    name: str, argument: str | None, root: Path | None, default: int
) -> tuple[int, str, int]:
    """Parse the argument `N` or `N:SEED` of a generated dataset; return the count, the dataset's name and the seed."""
    if root is not None:
        raise InputError(f"{name} images are made, not read; leave --root {root} out")
    text = f"{default}" if argument is None else argument
    match = re.fullmatch(r"([0-9]{1,7})(?::([0-9]{1,10}))?", text, re.ASCII)
    count, seed = (int(match[1]), int(match[2] or 0)) if match else (0, 0)
    if not 1 <= count <= _MAX_COUNT or seed > _MAX_SEED:
        raise InputError(
            f"{name} takes N or N:SEED, a number of images from 1 to {_MAX_COUNT:,} and a seed up to {_MAX_SEED}, as "
            f"in {name}:100; got {argument!r}"
        )
    return count, f"{name}-seed{seed}" if seed else name, seed


def drawing(seed: int, sample_id: str, scenes: str) -> tuple[str, Draw]:
    """Return the scene of a generated image, which matches the regular expression `scenes`, and its random numbers."""
    match = re.fullmatch(rf"({scenes})/([1-9][0-9]{{0,6}})\.bmp", sample_id, re.ASCII)
    if match is None:
        raise InputError(f"no generated image is called {sample_id!r}")
    return match[1], Draw(seed, match[1], int(match[2]))


def _image(seed: int, sample_id: str) -> bytes:
    scene, draw = drawing(seed, sample_id, "|".join(_SCENES))
    return bmp(draw.develop(_SCENES[scene](draw), draw))


def _crops(draw: Draw) -> Field:
    number, across = draw.parcels()
    _, t = cells(across, draw.between(5, 9))
    return mix(*draw.pair(), number * 0.6 + (np.abs(t - 0.5) * 2 - 0.5) * 0.7)


def _forest(draw: Draw) -> Field:
    apart = draw.between(7, 12)
    crown, mark = draw.crowns(apart, apart * 0.35)
    dark, light = draw.pair()
    return mix(dark * 0.7, light, edge(crown, apart / 2) * mark * (draw.noise(70, 2) + 0.4))


def _highway(draw: Draw) -> Field:
    side, half = draw.winding(draw.between(5, 15)), draw.between(6, 10)
    scene = mix(_ground(draw), draw.tone(), edge(side - half - draw.between(2, 5), 3))
    scene = mix(scene, draw.tone(PAVED), edge(side - half))
    return mix(scene, np.full((3, 1, 1), 0.8), edge(side - 1))


def _lake(draw: Draw) -> Field:
    height = draw.noise(draw.between(90, 160), 4)
    level = np.sort(height, axis=None)[int(draw.between(0.4, 0.85) * height.size)]
    return _shore(draw, (height - level) * 220)


def _orchard(draw: Draw) -> Field:
    apart = draw.between(8, 14)
    crown, _ = draw.crowns(apart, apart / 2)
    soil, leaf = draw.pair()
    return mix(mix(soil, soil * 0.8, draw.noise(40)), leaf, edge(crown + apart * 0.15))


def _pasture(draw: Draw) -> Field:
    scene = mix(*draw.pair(), draw.noise(draw.between(50, 120), 4))
    shrub, mark = draw.crowns(draw.between(18, 34), 4)
    return mix(scene, draw.tone(), edge(shrub) * (mark < draw.between(0.05, 0.5)))


def _residential(draw: Draw) -> Field:
    scene, roofs = mix(*draw.pair(), draw.noise(22)), [draw.tone(PAVED) for _ in range(3)]
    return draw.houses(scene, draw.between(14, 22), roofs, 0.9)


def _river(draw: Draw) -> Field:
    return _shore(draw, draw.winding(draw.between(20, 50)) - draw.between(9, 18))


def _shore(draw: Draw, height: Field) -> Field:
    """Fill what is below 0 with water, behind a beach."""
    scene = mix(_ground(draw), draw.tone(), edge(height - draw.between(2, 8), 4))
    return mix(scene, draw.tone(WATER) + (draw.noise(5, 1) - 0.5) * 0.03, edge(height))


def _ground(draw: Draw) -> Field:
    """Draw what surrounds the structure of a class: meadows, fields and shrubs."""
    scene = mix(*draw.pair(), draw.noise(draw.between(24, 90)))
    scene = mix(scene, draw.tone(), draw.parcels()[0] * draw.between(0, 0.8))
    shrub, mark = draw.crowns(draw.between(12, 24), 4)
    return mix(scene, draw.tone(), edge(shrub) * (mark < draw.between(0, 0.4)))


_DRAWN = (_crops, _forest, _highway, _lake, _orchard, _pasture, _residential, _river)
_SCENES = {draw.__name__.removeprefix("_").title(): draw for draw in _DRAWN}
