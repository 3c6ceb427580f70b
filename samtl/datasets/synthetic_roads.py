"""Generated roads with exact masks, `synthetic-roads[:N[:SEED]]`: N images, six of each scene, no download."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from samtl.datasets import landscapes as _scenes
from samtl.datasets.base import Dataset
from samtl.datasets.synthetic import NOTE, count_and_seed, png
from samtl.errors import InputError

NAMES = {
    "synthetic-roads": "Generated roads with exact masks, `synthetic-roads[:N[:SEED]]`: N images"
}

DEFAULT_COUNT = 24
PER_SCENE = 6

_ID = re.compile(r"scene_(?P<scene>[1-9][0-9]{0,6})/roads_(?P<number>[1-9][0-9]{0,6})\.png")


@dataclass(frozen=True)
class _Generator:
    seed: int

    def draw(self, sample_id: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
        match = _ID.fullmatch(sample_id)
        number = int(match["number"]) if match else 0
        if match is None or int(match["scene"]) != _scene(number):
            raise InputError(
                f"a generated image of roads is called like scene_1/roads_1.png, not {sample_id!r}"
            )
        return _scenes.draw_roads(self.seed, _scene(number), number)


class _Images(_Generator):
    def __call__(self, sample_id: str) -> bytes:
        return png(self.draw(sample_id)[0])


class _Masks(_Generator):
    def __call__(self, sample_id: str) -> npt.NDArray[np.uint8]:
        return self.draw(sample_id)[1].astype(np.uint8)


def open_dataset(argument: str | None, root: Path | None, download: bool = True) -> Dataset:
    """List generated images of roads.

    An image depends on nothing but the seed and its number: the first ten are the same whether ten
    or a thousand are listed.

    Parameters
    ----------
    argument : str, optional
        `N` or `N:SEED`: how many images, 24 by default, and another seed than 0.
    root : None
        There are no files to point to.
    download : bool
        Has no meaning here.

    Returns
    -------
    Dataset
        RGB PNG files with one side of 256 pixels and the other of 192 to 256, and their masks, made
        when they are read. Groups are scenes, whose images share their tones. Named
        `synthetic-roads`, and after the seed where it is not 0.

    Raises
    ------
    InputError
        Where the argument is not of that form, or there is a `root`.
    """
    if root is not None:
        raise InputError(f"synthetic roads are made, not read; leave --root {root} out")
    count, seed = count_and_seed(argument, "synthetic-roads", DEFAULT_COUNT)
    numbers = range(1, count + 1)
    groups = tuple(f"scene_{_scene(i)}" for i in numbers)
    return Dataset(
        name=f"synthetic-roads-seed{seed}" if seed else "synthetic-roads",
        classes=("background", "road"),
        sample_ids=tuple(
            f"{group}/roads_{i}.png" for group, i in zip(groups, numbers, strict=True)
        ),
        labels=(-1,) * count,
        read=_Images(seed),
        note=NOTE,
        read_mask=_Masks(seed),
        groups=groups,
    )


def _scene(number: int) -> int:
    return (number - 1) // PER_SCENE + 1
