"""SAM's attention without its N x N bias: the same sums in the same precision, for a band of queries at a time.

As shipped, a global block of ViT-B holds several (12, 4096, 4096) tensors at once and passes over each from main
memory. Here the scores of a band of queries are made, normalised and used while they are in the cache. The bias of a
query for a key is the sum of its bias for the key's row and for the key's column. It is either written out for the band
and the product of queries and keys is added to it, or made part of that product as a dot product with two one-hot
vectors. The first needs fewer multiplications; the second is plain attention, for which a GPU has a fused kernel.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, unflatten
from torch.nn.functional import pad, scaled_dot_product_attention

from samtl.encoders.fast.int8 import Int8Linear
from samtl.encoders.fast.linear import Linear

# Queries per band for many tokens on a CPU, one head at a time, and otherwise.
CPU_BAND, BAND = 128, 256
# With more tokens than this a CPU is faster if the bias is written out.
MANY = 1024
# Fused kernels take queries of at most this many channels, in multiples of eight.
WIDEST, EIGHT = 256, 8

Way = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


class Attention:
    """`segment_anything`'s `Attention.forward` including windows, with everything constant computed once.

    Tokens see each other within squares of `window` tokens; for global attention this is `side`, the image's.
    """

    def __init__(
        self, module: Any, window: int, side: int, linear: type[Linear | Int8Linear] = Linear
    ) -> None:
        self.window = window
        self.heads: int = module.num_heads
        self.scale: float = module.scale
        self.qkv, self.proj = linear(module.qkv, side**2), linear(module.proj, side**2)
        self.of_rows = relative_positions(window, module.rel_pos_h)
        self.of_columns = relative_positions(window, module.rel_pos_w)

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        """Compute the attention of x plus another tensor, both (batch, height, width, dim)."""
        batch, height, width, _ = x.shape
        q, k, v = split(self.qkv(x), self.qkv.bias, self.heads, self.window)
        rows, columns = query_bias(q, self.of_rows, self.of_columns)
        way = _way(q.device.type, q.shape[2], q.shape[3] + 2 * self.window)
        seen = way(q * self.scale, k, v, rows, columns)
        return self.proj.plus(merge(seen, batch, height, width, self.window), other)


def relative_positions(size: int, table: Tensor) -> Tensor:
    """Look up the relative position of every query to every key along a side of `size` tokens.

    `table` is the parameter `rel_pos_h` or `rel_pos_w`, (2 * size - 1, head_dim); returns (size, size, head_dim).
    """
    steps = torch.arange(size, device=table.device)
    return table[steps[:, None] - steps[None, :] + size - 1]


def query_bias(q: Tensor, of_rows: Tensor, of_columns: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the bias of each query for the rows and the columns of keys, each (windows, heads, tokens, window).

    `q` is not scaled, (windows, heads, tokens, size); for `of_rows` and `of_columns` see `relative_positions`.
    """
    grid = unflatten(q, 2, of_rows.shape[:2])
    rows = torch.einsum("nhyxc,ykc->nhyxk", grid, of_rows).flatten(2, 3)
    columns = torch.einsum("nhyxc,xkc->nhyxk", grid, of_columns).flatten(2, 3)
    return rows, columns


def _way(device: str, tokens: int, channels: int) -> Way:
    """Choose the fastest way; `channels` are those of a query with its biases."""
    if device == "cpu":
        return added if tokens > MANY else _folded
    return fused if device == "cuda" and channels <= WIDEST else _folded


def added(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Attend with the bias of a band written out, one head after the other; for rows and columns see `query_bias`.

    q, k, v and the result are (windows, heads, tokens, size), the queries scaled.
    """
    windows, heads, tokens, size = q.shape
    # In the order that `merge` reads.
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
    """Attend with the bias as part of the product of queries and keys; arguments as in `added`."""
    queries, keys = _with_bias(q, k, rows, columns)
    keys = keys.transpose(-1, -2)
    windows, heads, tokens, size = q.shape
    out = q.new_empty(windows, tokens, heads, size).transpose(1, 2)
    for start in range(0, tokens, BAND):
        band = slice(start, start + BAND)
        out[:, :, band] = (queries[:, :, band] @ keys).softmax(dim=-1) @ v
    return out


def fused(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Attend by torch's fused kernel, which needs values as wide as queries; arguments as in `added`."""
    queries, keys = _with_bias(q, k, rows, columns)
    size, wide = v.shape[-1], queries.shape[-1]
    more = -wide % EIGHT
    queries, keys = pad(queries, (0, more)), pad(keys, (0, more))
    values = pad(v, (0, wide + more - size))
    return scaled_dot_product_attention(queries, keys, values, scale=1.0)[..., :size]


def _with_bias(q: Tensor, k: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Extend queries and keys to (windows, heads, tokens, size + 2 * side), so that their product contains the bias.

    A query is extended by its biases for all rows and columns, a key by ones at its own row and column.
    """
    windows, heads, tokens, size = k.shape
    side = rows.shape[-1]
    place = torch.arange(tokens, device=k.device)
    keys = k.new_zeros(windows, heads, tokens, size + 2 * side)
    keys[..., :size] = k
    keys[:, :, place, size + place // side] = 1
    keys[:, :, place, size + side + place % side] = 1
    return torch.cat([q, rows, columns], dim=-1), keys


# `segment_anything` pads the tokens with zeros to whole windows before it computes queries, keys and values. Those of a
# zero are the bias, so `split` writes the bias at padded places instead of computing it; tokens beside it do see it.


def split(qkv: Tensor, padding: Tensor, heads: int, window: int) -> Tensor:
    """Cut (batch, height, width, 3 * heads * size) into windows: (3, windows, heads, window * window, size).

    `padding` is the row of a token of zeros. If one window is the whole image, the result is a view.
    """
    _, height, width, channels = qkv.shape
    tokens = qkv.flatten(1, 2)
    if not height == width == window:
        _, taken, outside = _places(height, width, window, qkv.device)
        tokens = tokens.index_select(1, taken)
        tokens[:, outside] = padding
    cut = tokens.reshape(-1, window**2, 3, heads, channels // (3 * heads))
    return cut.permute(2, 0, 3, 1, 4)


def merge(seen: Tensor, batch: int, height: int, width: int, window: int) -> Tensor:
    """Put windows (windows, heads, window * window, size) together to (batch, height, width, heads * size)."""
    tokens = seen.transpose(1, 2).reshape(batch, -1, seen.shape[1] * seen.shape[3])
    if not height == width == window:
        tokens = tokens.index_select(1, _places(height, width, window, seen.device)[0])
    return tokens.view(batch, height, width, -1)


@functools.cache
def _places(
    height: int, width: int, window: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the place in the windows of each token, the token at each place, and the places that are padding."""
    with torch.inference_mode(False):  # they are used in training, too
        rows, columns = torch.arange(height)[:, None], torch.arange(width)
        down, across = -(-height // window), -(-width // window)
        inner = rows % window * window + columns % window
        places = ((rows // window * across + columns // window) * window**2 + inner).flatten()
        taken = torch.full((down * across * window**2,), -1)
        taken[places] = torch.arange(height * width)
        outside = (taken < 0).nonzero().flatten()
        return places.to(device), taken.clamp(min=0).to(device), outside.to(device)
