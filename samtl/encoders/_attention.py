"""SAM's attention without the N x N bias: the same sums in the same precision, a band of queries at a time.

As shipped, a global block of ViT-B holds several (12, 4096, 4096) tensors at once and passes over each from main
memory. Here the scores of a band of queries are made, normalised and used up while they are in the cache. The bias of a
query for a key is its bias for the key's row plus that for the key's column, and comes in on the way in one of two
forms: written out for the band and added by the product that makes the scores; or as a part of that product, its dot
product with two one-hot vectors. The first needs fewer multiplications and an array as large as the scores, the second
fewer calls.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Queries per band: for many tokens on a CPU, one head at a time; and else. Windows of 196 tokens fit in one band.
CPU_BAND, BAND = 128, 256
# With more tokens a CPU is faster where the bias is written out.
MANY = 1024


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
    q, k, v = qkv.permute(2, 0, 3, 1, 4).flatten(1, 2)  # each (batch * heads, tokens, head_dim)
    grid = q.reshape(batch * heads, height, width, -1)
    of_rows, of_columns = (
        torch.einsum(formula, grid, relative_positions(side, table)).flatten(1, 2)  # type: ignore[arg-type]
        for side, table, formula in (
            (height, attention.rel_pos_h, "bhwc,hkc->bhwk"),
            (width, attention.rel_pos_w, "bhwc,wkc->bhwk"),
        )
    )
    q = q * attention.scale
    way = _added if x.device.type == "cpu" and tokens > MANY else _folded
    out = way(q, k, v, of_rows, of_columns)
    out = out.reshape(batch, heads, tokens, -1).transpose(1, 2).reshape(batch, height, width, dim)
    return attention.proj(out)  # type: ignore[no-any-return,operator]


def _added(q: Tensor, k: Tensor, v: Tensor, of_rows: Tensor, of_columns: Tensor) -> Tensor:
    """Attend with the bias of a band written out, one head after the other.

    Parameters
    ----------
    q, k, v : Tensor, (batch, tokens, head_dim)
        The queries scaled.
    of_rows, of_columns : Tensor, (batch, tokens, height) and (batch, tokens, width)
        The bias of each query for the rows and the columns of keys.
    """
    out = torch.empty_like(q)
    for one in range(len(q)):
        keys, values = k[one].T.contiguous(), v[one].contiguous()
        for start in range(0, q.shape[1], CPU_BAND):
            band = slice(start, start + CPU_BAND)
            bias = (of_rows[one, band, :, None] + of_columns[one, band, None, :]).flatten(1)
            out[one, band] = torch.addmm(bias, q[one, band], keys).softmax(dim=-1) @ values
    return out


def _folded(q: Tensor, k: Tensor, v: Tensor, of_rows: Tensor, of_columns: Tensor) -> Tensor:
    """Attend with the bias as a part of the product of queries and keys; arguments are those of `_added`."""
    batch, tokens, size = q.shape
    height, width = of_rows.shape[-1], of_columns.shape[-1]
    queries = torch.cat([q, of_rows, of_columns], dim=-1)
    # A key is followed by ones at its row and at its column: they pick its two biases from the query's.
    place = torch.arange(tokens, device=q.device)
    keys = q.new_zeros(batch, size + height + width, tokens)
    keys[:, :size] = k.transpose(-1, -2)
    keys[:, size + place // width, place] = 1
    keys[:, size + height + place % width, place] = 1
    v = v.contiguous()
    out = torch.empty_like(q)
    for start in range(0, tokens, BAND):
        band = slice(start, start + BAND)
        out[:, band] = (queries[:, band] @ keys).softmax(dim=-1) @ v
    return out
