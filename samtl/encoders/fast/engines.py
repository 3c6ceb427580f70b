"""Forward passes through the modules of SAM's image encoder: `segment_anything`'s own, and fast ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from samtl.encoders.fast.attention import Attention
from samtl.encoders.fast.int8 import Int8Linear
from samtl.encoders.fast.linear import Linear
from samtl.encoders.torch_encoder import Forward
from samtl.errors import UnknownName

# Tokens that a CPU takes through an MLP at a time, so that what is between its layers is not fetched from memory.
BAND = 1024
# The linear layers of each engine's blocks; `reference` runs the blocks of `segment_anything` themselves.
LAYERS: dict[str, type[Linear | Int8Linear] | None] = {
    "fast": Linear,
    "reference": None,
    "int8": Int8Linear,
}


def check_engine(name: str) -> None:
    """Raise UnknownName unless `name` is that of an engine."""
    if name not in LAYERS:
        raise UnknownName("engine", name, LAYERS)


def forward_pass(engine: str, model: Any, taps: Sequence[int]) -> Forward:
    """Return an engine's forward pass through an `ImageEncoderViT`, which also passes on the outputs of blocks `taps`.

    It maps (batch, 3, size, size) to (batch, channels, side, side). If it is not `reference`, the weights of linear
    layers are moved out of the model.
    """
    layer, side = LAYERS[engine], model.pos_embed.shape[1]
    blocks = [_Block(block, side, layer) if layer else block for block in model.blocks]

    def forward(x: Tensor, tap: Any) -> Tensor:
        x = model.patch_embed(x) + model.pos_embed
        for index, block in enumerate(blocks):
            x = block(x)
            if index in taps:
                tap(x)
        return model.neck(x.permute(0, 3, 1, 2))  # type: ignore[no-any-return]

    return forward


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
