"""SAM's attention without the N x N bias: the same sums in the same precision, a band of queries at a time.

As shipped, a global block of ViT-B holds several (12, 4096, 4096) tensors at once and passes over each from main
memory. Here the scores of a band of queries are made, normalised and used up while they are in the cache. The bias of a
query for a key is its bias for the key's row plus that for the key's column, and comes in on the way in one of two
forms: written out for the band, where the product that makes the scores is added to it; or as a part of that product,
its dot product with two one-hot vectors. The first needs fewer multiplications and an array as large as the scores. The
second makes it the plain attention for which a GPU has a fused kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from samtl.encoders.linear import Linear
from samtl.encoders.windows import merge, split

# Queries per band: for many tokens on a CPU, one head at a time; and else. Windows of 196 tokens fit in one band.
CPU_BAND, BAND = 128, 256
# With more tokens a CPU is faster where the bias is written out.
MANY = 1024
# Fused kernels take queries of so many channels at most, in eights.
WIDEST, EIGHT = 256, 8

Way = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


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


class Attention:
    """What `segment_anything`'s `Attention.forward` does, windows included, with everything constant computed once.

    Parameters
    ----------
    module : nn.Module
        A `segment_anything.modeling.image_encoder.Attention` with relative positions.
    window : int
        Tokens along the side of the squares in which all see each other; the image's for global attention.
    side : int
        Tokens along the image's side.
    """

    def __init__(self, module: Any, window: int, side: int) -> None:
        self.window = window
        self.heads: int = module.num_heads
        self.scale: float = module.scale
        self.qkv, self.proj = (Linear(layer, side**2) for layer in (module.qkv, module.proj))
        self.of_rows = relative_positions(window, module.rel_pos_h)
        self.of_columns = relative_positions(window, module.rel_pos_w)

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        """Attend, and add something: both are (batch, height, width, dim), and so is the result."""
        batch, height, width, _ = x.shape
        q, k, v = split(self.qkv(x), self.qkv.bias, self.heads, self.window)
        seen = merge(self._seen(q, k, v), batch, height, width, self.window)
        return self.proj.plus(seen, other)

    def _seen(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend within windows; all are (windows, heads, tokens, size)."""
        rows, columns = of_queries(q, self.of_rows, self.of_columns)
        q = q * self.scale
        return _way(q.device.type, q.shape[2], q.shape[3] + 2 * self.window)(q, k, v, rows, columns)


def of_queries(q: Tensor, of_rows: Tensor, of_columns: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the bias of each query for the rows and the columns of keys.

    Parameters
    ----------
    q : Tensor, (windows, heads, window * window, size)
        Not scaled.
    of_rows, of_columns : Tensor, (window, window, size)
        As `relative_positions` gives them.

    Returns
    -------
    rows, columns : Tensor, (windows, heads, window * window, window)
    """
    grid = torch.unflatten(q, 2, of_rows.shape[:2])
    rows = torch.einsum("nhyxc,ykc->nhyxk", grid, of_rows).flatten(2, 3)
    columns = torch.einsum("nhyxc,xkc->nhyxk", grid, of_columns).flatten(2, 3)
    return rows, columns


def _way(device: str, tokens: int, wide: int) -> Way:
    """Choose: `wide` is the channels of a query with its biases."""
    if device == "cpu":
        return _added if tokens > MANY else _folded
    return fused if device == "cuda" and wide <= WIDEST else _folded


def _added(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Attend with the bias of a band written out, one head after the other.

    Parameters
    ----------
    q, k, v : Tensor, (windows, heads, tokens, size)
        The queries scaled.
    rows, columns : Tensor, (windows, heads, tokens, window)
        The bias of each query for the rows and the columns of keys.

    Returns
    -------
    Tensor, (windows, heads, tokens, size)
        Tokens before heads in memory, as `merge` wants them.
    """
    windows, heads, tokens, size = q.shape
    out = q.new_empty(windows, tokens, heads, size).transpose(1, 2)
    side = rows.shape[-1]
    scores = q.new_empty(min(CPU_BAND, tokens), side, side)
    for window in range(windows):
        for head in range(heads):
            one = window, head
            keys, values = k[one].T.contiguous(), v[one].contiguous()
            for start in range(0, tokens, CPU_BAND):
                band = slice(start, start + CPU_BAND)
                here = scores[: tokens - start]
                torch.add(rows[one][band, :, None], columns[one][band, None, :], out=here)
                flat = here.flatten(1).addmm_(q[one][band], keys)
                out[one][band] = flat.softmax(dim=-1) @ values
    return out


def _folded(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Attend with the bias as a part of the product of queries and keys; arguments are those of `_added`."""
    queries, keys = _with_bias(q, k, rows, columns)
    keys = keys.transpose(-1, -2)
    windows, heads, tokens, size = q.shape
    out = q.new_empty(windows, tokens, heads, size).transpose(1, 2)
    for start in range(0, tokens, BAND):
        band = slice(start, start + BAND)
        out[:, :, band] = (queries[:, :, band] @ keys).softmax(dim=-1) @ v
    return out


def fused(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Attend as `_folded` does, by torch's fused attention; it wants values as wide as queries."""
    queries, keys = _with_bias(q, k, rows, columns)
    size, wide = v.shape[-1], queries.shape[-1]
    more = -wide % EIGHT
    queries, keys = pad(queries, (0, more)), pad(keys, (0, more))
    values = pad(v, (0, wide + more - size))
    return scaled_dot_product_attention(queries, keys, values, scale=1.0)[..., :size]


def _with_bias(q: Tensor, k: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Lengthen queries and keys so that their products contain the bias: (windows, heads, tokens, size + 2 * side).

    A query is followed by its biases for all rows and columns, a key by ones at its own, which pick two of them.
    """
    windows, heads, tokens, size = k.shape
    side = rows.shape[-1]
    place = torch.arange(tokens, device=k.device)
    keys = k.new_zeros(windows, heads, tokens, size + 2 * side)
    keys[..., :size] = k
    keys[:, :, place, size + place // side] = 1
    keys[:, :, place, size + side + place % side] = 1
    return torch.cat([q, rows, columns], dim=-1), keys
