"""What is kept of one forward pass: the dense output, its average in 16 x 16 cells, and pooled statistics.

Everything but the block means is a function of the output *as stored* (float16), so a tier that is added later, or
recomputed from the `dense` array, comes out the same. Padding never enters an average.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d

from samtl.images.transforms import grid_cells

TIERS = ("pooled", "grid", "dense")
CHANNELS = 256


def pooled_columns(taps: Sequence[int], width: int) -> tuple[str, ...]:
    """Name the columns of `pooled` in their order.

    Parameters
    ----------
    taps : sequence of int
        Indices of the blocks with global attention, 0 is the first block.
    width : int
        Channels before the neck.
    """
    of_output = [f"{what}_{c:03d}" for what in ("mean", "max", "std") for c in range(CHANNELS)]
    of_blocks = [f"block{tap:02d}_mean_{c:04d}" for tap in taps for c in range(width)]
    return (*of_output, *of_blocks)


def validity(tokens: Sequence[tuple[int, int]], side: int, device: torch.device) -> Tensor:
    """Mark the tokens that cover at least one pixel.

    Returns
    -------
    Tensor of float32, (batch, 1, side, side)
        1 where valid, 0 on padding.
    """
    mask = torch.zeros(len(tokens), 1, side, side, device=device)
    for one, (rows, columns) in zip(mask, tokens, strict=True):
        one[:, :rows, :columns] = 1
    return mask


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Average over valid tokens: (batch, channels, side, side) to (batch, channels), in float32."""
    return (x.float() * mask).sum(dim=(2, 3)) / mask.sum(dim=(2, 3))


def grid(dense: Tensor, mask: Tensor) -> Tensor:
    """Average valid tokens in cells: 4 x 4 tokens each where an image is 1024 pixels wide.

    Parameters
    ----------
    dense : Tensor of float16, (batch, 256, side, side)
    mask : Tensor of float32, (batch, 1, side, side)

    Returns
    -------
    Tensor of float16, (batch, 256, cells, cells)
        With `samtl.images.transforms.grid_cells(side)` cells; 0 in those without a valid token.
    """
    side = dense.shape[-1]
    cells = grid_cells(side)
    totals, shares = _averaged(dense.float() * mask, cells), _averaged(mask, cells)
    return (totals / shares.clamp(min=1 / side**2)).to(torch.float16)


def _averaged(x: Tensor, cells: int) -> Tensor:
    """Average in cells that overlap by a token where the side is no multiple of their number."""
    side = x.shape[-1]
    if side % cells == 0:
        return avg_pool2d(x, side // cells)
    if x.device.type == "mps":  # where torch has this for multiples alone
        return adaptive_avg_pool2d(x.cpu(), cells).to(x.device)
    return adaptive_avg_pool2d(x, cells)


def pooled(dense: Tensor, block_means: Sequence[Tensor], mask: Tensor) -> Tensor:
    """Mean, maximum and population standard deviation over valid tokens, then the means of the tapped blocks.

    Parameters
    ----------
    dense : Tensor of float16, (batch, 256, side, side)
    block_means : sequence of Tensor of float32, (batch, width)
        Means over valid tokens of each global-attention block's output.
    mask : Tensor of float32, (batch, 1, side, side)

    Returns
    -------
    Tensor of float32, (batch, 768 + blocks * width)
        Columns as `pooled_columns` names them.
    """
    x = dense.float()
    mean = masked_mean(x, mask)
    maximum = x.masked_fill(mask == 0, -torch.inf).amax(dim=(2, 3))
    variance = masked_mean((x - mean[:, :, None, None]) ** 2, mask)
    return torch.cat([mean, maximum, variance.sqrt(), *block_means], dim=1)
