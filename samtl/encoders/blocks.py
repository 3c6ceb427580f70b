"""Through the same modules with the same weights in two ways: as `segment_anything` goes, and fast."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor

from samtl.encoders.attention import Attention
from samtl.encoders.linear import Linear

Tap = Callable[[Tensor], None]


class Engine(Protocol):
    """Maps normalised, padded pixels to the neck's output; `note` is a line that a user should read, or ""."""

    note: str

    def __call__(self, x: Tensor, tap: Tap) -> Tensor:
        """Run the encoder.

        Parameters
        ----------
        x : Tensor, (batch, 3, size, size)
            In the model's dtype.
        tap : callable
            Called with the output (batch, side, side, width) of each block with global attention.

        Returns
        -------
        Tensor, (batch, 256, side, side)
        """
        ...


class _Engine:
    """What `ImageEncoderViT.forward` does, given blocks that map tokens to tokens, (batch, side, side, width)."""

    note = ""

    def __init__(
        self, model: Any, blocks: Sequence[Callable[[Tensor], Tensor]], taps: Sequence[int]
    ) -> None:
        self.model, self.blocks, self.taps = model, blocks, taps

    def __call__(self, x: Tensor, tap: Tap) -> Tensor:
        x = self.model.patch_embed(x) + self.model.pos_embed
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self.taps:
                tap(x)
        return self.model.neck(x.permute(0, 3, 1, 2))  # type: ignore[no-any-return]


class Reference(_Engine):
    """Every module's own forward pass.

    Parameters
    ----------
    model : nn.Module
        An `ImageEncoderViT`.
    taps : sequence of int
        Blocks with global attention.
    """

    def __init__(self, model: Any, taps: Sequence[int]) -> None:
        super().__init__(model, list(model.blocks), taps)


class Fast(_Engine):
    """The same sums in less time; parameters are those of `Reference`. The model is used up: see `Linear`."""

    def __init__(self, model: Any, taps: Sequence[int]) -> None:
        side = model.pos_embed.shape[1]
        super().__init__(model, [_Block(block, side) for block in model.blocks], taps)


class _Block:
    """What `segment_anything`'s `Block.forward` does; `side` is that of the image in tokens."""

    def __init__(self, block: Any, side: int) -> None:
        self.norm1, self.norm2 = block.norm1, block.norm2
        self.attention = Attention(block.attn, block.window_size or side, side)
        self.wider, self.back = (
            Linear(layer, side**2) for layer in (block.mlp.lin1, block.mlp.lin2)
        )

    def __call__(self, x: Tensor) -> Tensor:
        x = self.attention.plus(self.norm1(x), x)
        return self.back.plus(self.wider.gelu(self.norm2(x)), x)
