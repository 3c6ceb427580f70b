"""Parameters of a training run: everything that determines its result except the images."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass

from samtl.errors import InputError

_STAGE = re.compile(r"(\d+):(\d+):(\d+)(?::([\d.]+)-([\d.]+))?", re.ASCII)
_FEWEST, _MOST = 4, 64  # tokens along a view's side


@dataclass(frozen=True)
class Stage:
    """A part of the run, with views of one size.

    Attributes
    ----------
    tokens : int
        Along the side of a view, 4 to 64; multiples of 14 fill whole windows.
    batch_size : int
        Images in a step; twice as many views.
    steps : int
    smallest, largest : float
        Sides of crops as parts of the image's, 0.5 to 1.
    """

    tokens: int
    batch_size: int
    steps: int
    smallest: float = 0.5
    largest: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Stage:
        """Read `TOKENS:BATCH:STEPS` or `TOKENS:BATCH:STEPS:SMALLEST-LARGEST`.

        Raises
        ------
        InputError
            If it has another form, or a number is out of its range.
        """
        match = _STAGE.fullmatch(text)
        wrong = ""
        if match is None:
            wrong = "it does not look like that"
        else:
            try:
                sides = [float(side) for side in match.group(4, 5) if side is not None]
            except ValueError:
                sides = [-1.0]
            stage = cls(*map(int, match.group(1, 2, 3)), *sides)
            if not _FEWEST <= stage.tokens <= _MOST:
                wrong = f"a view has {_FEWEST} to {_MOST} tokens along its side"
            elif stage.batch_size < 2 or stage.steps < 1:
                wrong = "a step has at least two images, and a stage a step"
            elif not 0.5 <= stage.smallest <= stage.largest <= 1:
                wrong = "crops are from 0.5 to 1 of an image's side, the smaller number first"
        if wrong:
            raise InputError(
                f"--stage {text}: expected TOKENS:BATCH:STEPS, or TOKENS:BATCH:STEPS:SMALLEST-LARGEST such as "
                f"28:512:4000:0.5-0.9; {wrong}"
            )
        return stage


# An image of 64 pixels that is embedded at 1024 has a token for each pixel. Views of 28 tokens have 0.6 to 0.9 of one
# and are many for their cost; those of 42 have 0.7 to 1.3, and those of 64 all the distances and positions that there
# are, at 1 to 1.7. They take turns, so that the rate is high and low for each.
ROUND = (Stage(28, 512, 300, 0.5, 0.7), Stage(42, 224, 100), Stage(64, 128, 40, 0.6, 1.0))
ROUNDS = 7
STAGES = ROUND * ROUNDS


@dataclass(frozen=True)
class Recipe:
    """Parameters of a training.

    Attributes
    ----------
    encoder : str
        One of `samtl.encoders.sam.NAMES`.
    stages : tuple of Stage
    pixels : int
        Side that images are brought to before views are cut.
    seed : int
    learning_rate : float
        AdamW's at the end of the warm-up; a cosine takes it to 0.
    weight_decay : float
        On matrices only.
    warmup : float
        Part of all steps.
    clip : float
        Largest norm of a step's gradient.
    dense_share : float
        Of the loss on tokens in the whole loss.
    points : int
        Places compared in a pair of views.
    hidden_share, hidden_often : float
        Share of a view's tokens that are hidden, and of the views in which any are.
    wide : int
        Channels that the loss is computed on.
    dtype : str
        What products are computed in, "float32" or "bfloat16".
    """

    encoder: str = "tiny"
    stages: tuple[Stage, ...] = STAGES
    pixels: int = 64
    seed: int = 0
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup: float = 0.05
    clip: float = 3.0
    dense_share: float = 0.25
    points: int = 8
    hidden_share: float = 0.4
    hidden_often: float = 0.5
    wide: int = 1024
    dtype: str = "float32"

    @property
    def steps(self) -> int:
        """Steps in all."""
        return sum(stage.steps for stage in self.stages)

    def plan(self) -> Iterator[tuple[Stage, int]]:
        """Yield each step's stage and the number of images seen before it."""
        seen = 0
        for stage in self.stages:
            for _ in range(stage.steps):
                yield stage, seen
                seen += stage.batch_size

    def describe(self) -> str:
        """Describe it in a line."""
        steps: dict[tuple[int, int], int] = {}
        for stage in self.stages:
            kind = stage.batch_size, stage.tokens
            steps[kind] = steps.get(kind, 0) + stage.steps
        stages = ", ".join(
            f"{n} steps of {images} images, {tokens} tokens a side"
            for (images, tokens), n in steps.items()
        )
        return f"{self.encoder}: {stages}; {self.dtype}, seed {self.seed}"

    def to_dict(self) -> dict[str, object]:
        """Return the fields as JSON values."""
        return {**dataclasses.asdict(self), "stages": [dataclasses.asdict(s) for s in self.stages]}
