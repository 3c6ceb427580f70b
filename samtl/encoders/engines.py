"""Forward passes through the modules of SAM's image encoder: `segment_anything`'s own, and fast ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from samtl.encoders.attention import Attention
from samtl.encoders.int8 import Int8Linear
from samtl.encoders.linear import Linear
from samtl.errors import UnknownName

# Tokens that a CPU takes through an MLP at a time, so that what is between its layers is not fetched from memory.
BAND = 1024


class Reference:
    """The forward pass of an `ImageEncoderViT`, which also passes on the outputs of the blocks `taps`."""

    def __init__(self, model: Any, taps: Sequence[int]) -> None:
        self.model, self.taps = model, taps
        self.blocks: list[Callable[[Tensor], Tensor]] = list(model.blocks)

    def __call__(self, x: Tensor, tap: Callable[[Tensor], None]) -> Tensor:
        """Run the encoder, (batch, 3, size, size) to (batch, channels, side, side).

        `tap` is called with the output (batch, side, side, width) of each tapped block.
        """
        x = self.model.patch_embed(x) + self.model.pos_embed
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self.taps:
                tap(x)
        return self.model.neck(x.permute(0, 3, 1, 2))  # type: ignore[no-any-return]


class Fast(Reference):
    """The same function in less time. The model's weights are moved out of it: see `Linear`."""

    linear: ClassVar[type[Linear | Int8Linear]] = Linear

    def __init__(self, model: Any, taps: Sequence[int]) -> None:
        super().__init__(model, taps)
        self.blocks = [
            _Block(block, model.pos_embed.shape[1], self.linear) for block in model.blocks
        ]


class Int8(Fast):
    """Nearly the same function: linear layers of blocks multiply 8-bit integers."""

    linear = Int8Linear


class _Block:
    """`segment_anything`'s `Block.forward`; `side` is the image's in tokens."""

    def __init__(self, block: Any, side: int, linear: type[Linear | Int8Linear]) -> None:
        self.norm1, self.norm2 = block.norm1, block.norm2
        self.attention = Attention(block.attn, block.window_size or side, side, linear)
        self.widen, self.narrow = (
            linear(layer, side**2) for layer in (block.mlp.lin1, block.mlp.lin2)
        )

    def __call__(self, x: Tensor) -> Tensor:
        x = self.attention.plus(self.norm1(x), x)
        tokens = x.flatten(0, 2)
        band = BAND if x.device.type == "cpu" else len(tokens)
        for seen in torch.split(tokens, band):
            seen.copy_(self.narrow.plus(self.widen.gelu(self.norm2(seen)), seen))
        return x


ENGINES: dict[str, type[Reference]] = {"fast": Fast, "reference": Reference, "int8": Int8}


def check_engine(name: str) -> None:
    """Raise UnknownName unless `name` is that of an engine."""
    if name not in ENGINES:
        raise UnknownName("engine", name, ENGINES)
