"""The three tiers of an encoder's output: dense, averaged in cells, and pooled to one vector.

Everything but the block means is a function of the dense output as stored (float16), so that a tier that is added later
has the same values. Padding is excluded from every average.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d


def feature_names(channels: int, blocks: Mapping[int, int]) -> tuple[str, ...]:
    """Name the columns of `pooled`; `blocks` maps the index of each block whose mean is kept to its width."""
    output = [f"{what}_{c:03d}" for what in ("mean", "max", "std") for c in range(channels)]
    inner = [f"block{b:02d}_mean_{c:04d}" for b, width in blocks.items() for c in range(width)]
    return (*output, *inner)


def valid_mask(
    tokens: Sequence[tuple[int, int]], grid: tuple[int, int], device: torch.device
) -> Tensor:
    """Return 1 for the (rows, columns) of tokens that each image covers, 0 for padding: float32 (batch, 1, *grid)."""
    mask = torch.zeros(len(tokens), 1, *grid, device=device)
    for one, (rows, columns) in zip(mask, tokens, strict=True):
        one[:, :rows, :columns] = 1
    return mask


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Average over valid tokens: (batch, channels, h, w) to (batch, channels), in float32."""
    return (x.float() * mask).sum(dim=(2, 3)) / mask.sum(dim=(2, 3))


def grid(dense: Tensor, mask: Tensor, cells: int) -> Tensor:
    """Average valid tokens in cells, (batch, channels, h, w) to (batch, channels, cells, cells), both float16.

    Cells without a valid token are 0.
    """
    if dense.shape[-2:] == (cells, cells):
        return dense * mask.to(torch.float16)
    totals, shares = _cell_means(dense.float() * mask, cells), _cell_means(mask, cells)
    return (totals / shares.clamp(min=1 / mask[0].numel())).to(torch.float16)


def _cell_means(x: Tensor, cells: int) -> Tensor:
    """Average in cells, which overlap by a token if their number does not divide the side."""
    height, width = x.shape[-2:]
    if height == width and height % cells == 0:
        return avg_pool2d(x, height // cells)
    if x.device.type == "mps":  # supports only multiples
        return adaptive_avg_pool2d(x.cpu(), cells).to(x.device)
    return adaptive_avg_pool2d(x, cells)


def pooled(dense: Tensor, block_means: Sequence[Tensor], mask: Tensor) -> Tensor:
    """Mean, maximum and population standard deviation over valid tokens, then the means of the tapped blocks.

    From `dense`, (batch, channels, h, w) float16, `block_means`, (batch, width) float32 each, and `mask`,
    (batch, 1, h, w), to (batch, 3 * channels + sum of widths) float32; columns as in `feature_names`.
    """
    x = dense.float()
    mean = masked_mean(x, mask)
    maximum = x.masked_fill(mask == 0, -torch.inf).amax(dim=(2, 3))
    variance = masked_mean((x - mean[:, :, None, None]) ** 2, mask)
    return torch.cat([mean, maximum, variance.sqrt(), *block_means], dim=1)
