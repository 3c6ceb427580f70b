"""SAM's attention without the N x N bias: the same sums in the same precision, a band of queries at a time.

As shipped, a global block of ViT-B holds several (12, 4096, 4096) tensors at once and passes over each
from main memory. Here the scores of a band of queries are made, normalised and used up while they are in the
cache; and the bias is part of the product that makes them, since a query's bias for a key is its bias for the
key's row plus that for the key's column: a dot product with two one-hot vectors.
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
    size = q.shape[-1]
    queries = q.new_empty(batch, heads, tokens, size + height + width)
    torch.mul(q, attention.scale, out=queries[..., :size])  # type: ignore[arg-type]
    grid = q.reshape(batch, heads, height, width, size)
    for start, side, table, formula in (
        (size, height, attention.rel_pos_h, "bnhwc,hkc->bnhwk"),
        (size + height, width, attention.rel_pos_w, "bnhwc,wkc->bnhwk"),
    ):
        bias = torch.einsum(formula, grid, relative_positions(side, table))  # type: ignore[arg-type]
        queries[..., start : start + side] = bias.flatten(2, 3)
    # A key is followed by ones at its row and at its column: they pick its two biases from the query's.
    place = torch.arange(tokens, device=x.device)
    keys = q.new_zeros(batch, heads, size + height + width, tokens)
    keys[:, :, :size] = k.transpose(-1, -2)
    keys[:, :, size + place // width, place] = 1
    keys[:, :, size + height + place % width, place] = 1

    v = v.contiguous()
    out = torch.empty_like(q)
    for start in range(0, tokens, BAND):
        band = slice(start, start + BAND)
        out[:, :, band] = (queries[:, :, band] @ keys).softmax(dim=-1) @ v
    out = out.transpose(1, 2).reshape(batch, height, width, dim)
    return attention.proj(out)  # type: ignore[no-any-return,operator]
