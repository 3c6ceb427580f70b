"""Tokens of an image cut into windows, after queries, keys and values are there.

`segment_anything` pads the tokens with zeros to whole windows, and computes queries, keys and values of the padding
like any others. Those of a zero are the bias, the same everywhere; so they need not be computed, only be put where
they belong: padding is seen by the tokens beside it.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, unflatten


def split(qkv: Tensor, padding: Tensor, heads: int, window: int) -> Tensor:
    """Cut queries, keys and values into windows.

    Parameters
    ----------
    qkv : Tensor, (batch, height, width, 3 * heads * size)
    padding : Tensor, (3 * heads * size,)
        Those of a token of zeros.
    heads, window : int
        Heads of attention, and tokens along the side of a window.

    Returns
    -------
    Tensor, (3, windows, heads, window * window, size)
        With batch * rows of windows * windows in a row of them. A view where there is one window of the whole image.
    """
    batch, height, width, _ = qkv.shape
    if height == width == window:
        whole = qkv.reshape(batch, window * window, 3, heads, -1)
        return whole.permute(2, 0, 3, 1, 4)
    down, across = -(-height // window), -(-width // window)
    size = qkv.shape[-1] // (3 * heads)
    out = qkv.new_empty(3, batch, down, across, heads, window, window, size)
    for i, rows in _regions(height, window):
        for j, columns in _regions(width, window):
            part = qkv[:, rows, columns]
            tall, wide = (min(window, side) for side in part.shape[1:3])
            cut = unflatten(unflatten(part, 2, (-1, wide)), 1, (-1, tall))
            # (batch, down, tall, across, wide, 3, heads, size)
            cut = unflatten(cut, 5, (3, heads, size))
            out[:, :, i, j, :, :tall, :wide] = cut.permute(5, 0, 1, 3, 6, 2, 4, 7)
    outside = padding.view(3, 1, 1, heads, 1, 1, size)
    if height % window:
        out[:, :, -1, :, :, height % window :] = outside
    if width % window:
        out[:, :, :, -1, :, :, width % window :] = outside
    return out.view(3, -1, heads, window * window, size)


def merge(seen: Tensor, batch: int, height: int, width: int, window: int) -> Tensor:
    """Put windows together again, without their padding.

    Parameters
    ----------
    seen : Tensor, (windows, heads, window * window, size)
    batch, height, width, window : int

    Returns
    -------
    Tensor, (batch, height, width, heads * size)
    """
    heads, size = seen.shape[1], seen.shape[3]
    if height == width == window:
        return seen.transpose(1, 2).reshape(batch, height, width, -1)
    down, across = -(-height // window), -(-width // window)
    grid = seen.view(batch, down, across, heads, window, window, size)
    out = seen.new_empty(batch, height, width, heads, size)
    for i, rows in _regions(height, window):
        for j, columns in _regions(width, window):
            part = out[:, rows, columns]
            tall, wide = (min(window, side) for side in part.shape[1:3])
            cut = unflatten(unflatten(part, 2, (-1, wide)), 1, (-1, tall))
            cut.copy_(grid[:, i, j, :, :tall, :wide].permute(0, 1, 4, 2, 5, 3, 6))
    return out.flatten(3)


def _regions(side: int, window: int) -> Iterator[tuple[slice, slice]]:
    """Give whole windows and the one at the edge: their numbers, and the tokens in them."""
    whole = side // window
    if whole:
        yield slice(0, whole), slice(0, whole * window)
    if side % window:
        yield slice(whole, whole + 1), slice(whole * window, side)
