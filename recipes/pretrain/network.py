"""SAM's forward pass for training: differentiable, on views smaller than the encoder's input, with hidden tokens."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.init import trunc_normal_, zeros_
from torch.utils.checkpoint import checkpoint

from samtl.encoders.fast.attention import fused, merge, query_bias, relative_positions, split
from samtl.encoders.sam import CHANNELS, VARIANTS, WINDOW, build

INITIAL_STD = 0.02


class Network(nn.Module):
    """A trainable encoder.

    A view of fewer tokens than the encoder's input is placed somewhere on its grid of positions. Nothing is resampled,
    so that what is learnt on small views holds for whole images.

    Parameters
    ----------
    name : str
        One of `samtl.encoders.sam.NAMES`.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.taps = VARIANTS[name].taps
        self.encoder: Any = build(name)
        self.hidden = nn.Parameter(
            torch.zeros(VARIANTS[name].width)
        )  # stands where a token is hidden
        for parameter, value in self.encoder.named_parameters():
            if "rel_pos" in parameter:
                continue  # 0: distances that are seldom seen favour nothing
            if value.ndim == 2 or parameter == "pos_embed":
                trunc_normal_(value, std=INITIAL_STD)
            elif parameter.endswith("bias"):
                zeros_(value)
        trunc_normal_(self.hidden, std=INITIAL_STD)

    @property
    def side(self) -> int:
        """Tokens along the side of the encoder's whole input."""
        return int(self.encoder.pos_embed.shape[1])

    def forward(
        self,
        x: Tensor,
        corner: tuple[int, int] = (0, 0),
        hidden: Tensor | None = None,
        recompute: bool = False,
    ) -> tuple[Tensor, list[Tensor]]:
        """Encode views.

        Parameters
        ----------
        x : Tensor, (batch, 3, size, size)
            Normalised; 16 pixels a token.
        corner : (row, column)
            Position of the views' first token on the encoder's grid.
        hidden : Tensor of bool, (batch, size / 16, size / 16), optional
            Tokens that the encoder does not see.
        recompute : bool
            Whether activations of blocks are recomputed instead of kept: a third more work, far less memory.

        Returns
        -------
        dense : Tensor, (batch, 256, size / 16, size / 16)
        means : list of Tensor of float32, (batch, width)
            Of the output of each block with global attention, over all tokens.
        """
        x = self.encoder.patch_embed(x)
        if hidden is not None:
            x = torch.where(hidden[..., None], self.hidden.to(x.dtype), x)
        row, column = corner
        tokens = x.shape[1]
        # Contiguous: a convolution's output is not, and all that follows would have its order in memory.
        x = (
            x + self.encoder.pos_embed[:, row : row + tokens, column : column + tokens]
        ).contiguous()
        means = []
        for index, block in enumerate(self.encoder.blocks):
            if recompute and torch.is_grad_enabled():
                x = checkpoint(_through, block, x, use_reentrant=False, preserve_rng_state=False)
            else:
                x = _through(block, x)
            if index in self.taps:
                means.append(x.float().mean(dim=(1, 2)))
        return self.encoder.neck(x.permute(0, 3, 1, 2)), means


def pooled_width(name: str) -> int:
    """Count the channels of `pooled` for an encoder."""
    variant = VARIANTS[name]
    return 2 * CHANNELS + len(variant.taps) * variant.width


def pooled(dense: Tensor, means: list[Tensor]) -> Tensor:
    """Summarise views as the tier `pooled` does, but for the maxima: (batch, 512 + blocks * width) in float32."""
    x = dense.float().flatten(2)
    # A little above 0, where the root has no slope.
    deviation = (x.var(dim=2, correction=0) + 1e-6).sqrt()
    return torch.cat([x.mean(dim=2), deviation, *means], dim=1)


def _through(block: Any, x: Tensor) -> Tensor:
    """Do what `segment_anything`'s `Block.forward` does: (batch, height, width, dim) to the same."""
    batch, height, width, _ = x.shape
    window = WINDOW if block.window_size else height
    layer, normed = block.attn, block.norm1(x)
    q, k, v = split(layer.qkv(normed), layer.qkv.bias, layer.num_heads, window)
    rows, columns = query_bias(
        q,
        *(
            relative_positions(window, _middle(t, window))
            for t in (layer.rel_pos_h, layer.rel_pos_w)
        ),
    )
    # Others are reported to give NaN on the way back (cuDNN), or hold every score (math).
    ways = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
    with sdpa_kernel(ways) if x.device.type == "cuda" else nullcontext():
        heads = fused(q * layer.scale, k, v, rows, columns)
    seen = merge(heads, batch, height, width, window)
    x = x + layer.proj(seen)
    return x + block.mlp(block.norm2(x))  # type: ignore[no-any-return]


def _middle(table: Tensor, size: int) -> Tensor:
    """Take the relative positions of so many tokens along a side from the middle of a table for more."""
    zero = table.shape[0] // 2
    return table[zero - size + 1 : zero + size]
