"""Two views of each image: crops, flips, right-angle turns and colours, for a whole batch at a time on any device.

What a satellite sees has no up and no left, so all eight flips and turns are alike. Hues stay, since land cover is told
by them; light and haze differ, and so do brightness and contrast.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, avg_pool2d, grid_sample, interpolate, pad

from samtl.images.transforms import PIXEL_MEAN, PIXEL_STD

# How far brightness and contrast, both, and how far saturation are multiplied; how often any of them; and how often an
# image turns grey or is blurred.
BRIGHTNESS, SATURATION, COLOURED, GREY, BLURRED = 0.3, 0.2, 0.8, 0.1, 0.2
CELL = 4  # tokens along the side of the squares that are hidden
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


@dataclass(frozen=True)
class Crops:
    """Positions of the views of a batch; coordinates are x before y, -1 to 1 from edge to edge.

    Attributes
    ----------
    side : Tensor of float32, (batch,)
        Of the crop, as a part of the image's.
    centre : Tensor of float32, (batch, 2)
        In the image's coordinates.
    turn : Tensor of float32, (batch, 2, 2)
        Orthogonal, of -1, 0 and 1: from the view's axes to the image's.
    """

    side: Tensor
    centre: Tensor
    turn: Tensor

    def from_image(self, points: Tensor) -> Tensor:
        """Turn points of the images, (batch, n, 2), into points of their views."""
        return (points - self.centre[:, None]) / self.side[:, None, None] @ self.turn


def draw_crops(batch: int, smallest: float, largest: float, generator: torch.Generator) -> Crops:
    """Draw crops whose areas are uniform between those of two sides; any two of one image overlap.

    Parameters
    ----------
    batch : int
    smallest, largest : float
        Sides as parts of the image's, from 0.5: two halves always touch.
    generator : torch.Generator
        Of the CPU.
    """

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    side = (smallest**2 + (largest**2 - smallest**2) * uniform(batch)).sqrt()
    centre = (2 * uniform(batch, 2) - 1) * (1 - side)[:, None]
    quarter = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    turns = torch.stack([torch.linalg.matrix_power(quarter, k) for k in range(4)])
    flips = torch.stack([torch.eye(2), torch.diag(torch.tensor([-1.0, 1.0]))])
    which = torch.randint(8, (batch,), generator=generator)
    return Crops(side, centre, turns[which % 4] @ flips[which // 4])


def cut(images: Tensor, crops: Crops, size: int) -> Tensor:
    """Cut a view from each image and enlarge it, as Pillow's bilinear filter would.

    Parameters
    ----------
    images : Tensor, (batch, channels, side, side)
    crops : Crops
    size : int
        Side of the views in pixels.

    Returns
    -------
    Tensor, (batch, channels, size, size)
    """
    map_ = torch.cat([crops.side[:, None, None] * crops.turn, crops.centre[:, :, None]], dim=2)
    grid = affine_grid(
        map_.to(images.device), [len(images), images.shape[1], size, size], align_corners=False
    )
    return grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def at_points(maps: Tensor, points: Tensor) -> Tensor:
    """Read maps at points, between their cells bilinearly.

    Parameters
    ----------
    maps : Tensor, (batch, channels, side, side)
    points : Tensor, (batch, n, 2)

    Returns
    -------
    Tensor, (batch, n, channels)
    """
    found = grid_sample(maps, points[:, None], padding_mode="border", align_corners=False)
    return found[:, :, 0].transpose(1, 2)


def shared_points(
    one: Crops, other: Crops, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw points that both views of each image show.

    Returns
    -------
    one, other : Tensor of float32, (batch, count, 2)
        The same points in the coordinates of either view.
    """
    low = torch.maximum(one.centre - one.side[:, None], other.centre - other.side[:, None])
    high = torch.minimum(one.centre + one.side[:, None], other.centre + other.side[:, None])
    share = torch.rand(len(low), count, 2, generator=generator)
    points = low[:, None] + share * (high - low).clamp(min=0)[:, None]
    return one.from_image(points), other.from_image(points)


def recoloured(images: Tensor, generator: torch.Generator) -> Tensor:
    """Change brightness, contrast and saturation, and turn some images grey or blurred.

    Parameters
    ----------
    images : Tensor of float32, (batch, 3, side, side)
        0 to 1.
    generator : torch.Generator
        Of the CPU.

    Returns
    -------
    Tensor of float32, (batch, 3, side, side)
        0 to 1.
    """

    def chance(share: float) -> Tensor:
        drawn = torch.rand(len(images), 1, 1, 1, generator=generator) < share
        return drawn.to(images.device)

    def factor(reach: float) -> Tensor:
        drawn = 1 + reach * (2 * torch.rand(len(images), 1, 1, 1, generator=generator) - 1)
        return drawn.to(images.device)

    luma = torch.tensor(_LUMA, device=images.device).view(1, 3, 1, 1)

    def grey(x: Tensor) -> Tensor:
        return (x * luma).sum(dim=1, keepdim=True)

    x = images * factor(BRIGHTNESS)
    mean = grey(x).mean(dim=(2, 3), keepdim=True)
    x = mean + (x - mean) * factor(BRIGHTNESS)
    x = grey(x) + (x - grey(x)) * factor(SATURATION)
    x = torch.where(chance(COLOURED), x, images)
    x = torch.where(chance(GREY), grey(x).expand_as(x), x)
    blurred = avg_pool2d(pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return torch.where(chance(BLURRED), blurred, x).clamp(0, 1)


def normalised(views: Tensor) -> Tensor:
    """Normalise pixels from 0 to 1 as SAM's preprocessing does those from 0 to 255."""
    mean, std = (
        torch.tensor(values, device=views.device).view(1, 3, 1, 1) / 255
        for values in (PIXEL_MEAN, PIXEL_STD)
    )
    return (views - mean) / std


def draw_hidden(
    batch: int, tokens: int, share: float, often: float, generator: torch.Generator
) -> Tensor:
    """Choose which tokens of each view are hidden: squares of 4 x 4, in some of the views.

    Parameters
    ----------
    batch, tokens : int
        Views, and tokens along the side of one.
    share : float
        Of a view's squares.
    often : float
        Share of the views in which any is.
    generator : torch.Generator
        Of the CPU.

    Returns
    -------
    Tensor of bool, (batch, tokens, tokens)
    """
    cells = -(-tokens // CELL)
    squares = torch.rand(batch, 1, cells, cells, generator=generator) < share
    squares &= torch.rand(batch, 1, 1, 1, generator=generator) < often
    grown = interpolate(squares.float(), scale_factor=CELL, mode="nearest")
    return grown[:, 0, :tokens, :tokens] > 0
