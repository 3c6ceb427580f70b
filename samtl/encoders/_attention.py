"""SAM's attention without the N x N bias: the same sums in the same precision, a band of queries at a time.

As shipped, a global block of ViT-B holds several (12, 4096, 4096) tensors at once and passes over each
from main memory. Here the scores of a band of queries are made, biased, normalised and used up while
they are in the cache.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Queries per band. 128 to 256 were fastest on CPUs for 4096 tokens; windows of 196 tokens fit in one band.
BAND = 256


def relative_positions(size: int, table: Tensor) -> Tensor:
    """Look up the relative position of every query to every key along one side.

    Parameters
    ----------
    size : int
        Tokens along the side.
    table : Tensor, (2 * size - 1, head_dim)
        The learnt parameter `rel_pos_h` or `rel_pos_w`.

    Returns
    -------
    Tensor, (size, size, head_dim)
    """
    steps = torch.arange(size, device=table.device)
    return table[steps[:, None] - steps[None, :] + size - 1]


def attend(attention: nn.Module, x: Tensor) -> Tensor:
    """Compute what `segment_anything`'s `Attention.forward` does.

    Parameters
    ----------
    attention : nn.Module
        A `segment_anything.modeling.image_encoder.Attention` with relative positions.
    x : Tensor, (batch, height, width, dim)

    Returns
    -------
    Tensor, (batch, height, width, dim)
    """
    batch, height, width, dim = x.shape
    heads: int = attention.num_heads  # type: ignore[assignment]
    tokens = height * width
    qkv = attention.qkv(x).reshape(batch, tokens, 3, heads, -1)  # type: ignore[operator]
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (batch, heads, tokens, head_dim)

    by_row = relative_positions(height, attention.rel_pos_h)  # type: ignore[arg-type]
    by_column = relative_positions(width, attention.rel_pos_w)  # type: ignore[arg-type]
    grid = q.reshape(batch, heads, height, width, -1)
    bias_h = torch.einsum("bnhwc,hkc->bnhwk", grid, by_row).reshape(batch, heads, tokens, height, 1)
    bias_w = torch.einsum("bnhwc,wkc->bnhwk", grid, by_column).reshape(
        batch, heads, tokens, 1, width
    )

    q = q * attention.scale
    keys = k.transpose(-1, -2)
    out = torch.empty_like(q)
    for start in range(0, tokens, BAND):
        band = slice(start, start + BAND)
        scores = q[:, :, band] @ keys
        scores = scores.unflatten(-1, (height, width))
        scores = scores.add_(bias_h[:, :, band]).add_(bias_w[:, :, band]).flatten(-2)
        out[:, :, band] = scores.softmax(dim=-1) @ v
    out = out.transpose(1, 2).reshape(batch, height, width, dim)
    return attention.proj(out)  # type: ignore[no-any-return,operator]
