"""Two forward passes through the modules of SAM's image encoder: `segment_anything`'s own, and a fast one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from samtl.encoders.attention import Attention
from samtl.encoders.linear import Linear
from samtl.errors import UnknownName


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

    def __init__(self, model: Any, taps: Sequence[int]) -> None:
        super().__init__(model, taps)
        self.blocks = [_Block(block, model.pos_embed.shape[1]) for block in model.blocks]


class _Block:
    """`segment_anything`'s `Block.forward`; `side` is the image's in tokens."""

    def __init__(self, block: Any, side: int) -> None:
        self.norm1, self.norm2 = block.norm1, block.norm2
        self.attention = Attention(block.attn, block.window_size or side, side)
        self.widen, self.narrow = (
            Linear(layer, side**2) for layer in (block.mlp.lin1, block.mlp.lin2)
        )

    def __call__(self, x: Tensor) -> Tensor:
        x = self.attention.plus(self.norm1(x), x)
        return self.narrow.plus(self.widen.gelu(self.norm2(x)), x)


ENGINES: dict[str, type[Reference]] = {"fast": Fast, "reference": Reference}


def check_engine(name: str) -> None:
    """Raise UnknownName unless `name` is that of an engine."""
    if name not in ENGINES:
        raise UnknownName("engine", name, ENGINES)
