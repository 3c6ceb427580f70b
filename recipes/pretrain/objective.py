"""VICReg (Bardes et al. 2022, arXiv 2105.04906): alike for two views of one thing, spread out over all things."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss, relu

# The paper's weights of the three terms.
INVARIANCE, VARIANCE, COVARIANCE = 25.0, 25.0, 1.0
_SLOPE = 1e-4  # below the root of a variance


@dataclass(frozen=True)
class Terms:
    """The parts of the loss, scalars: how far two views are apart, how narrow and how entangled the channels are."""

    invariance: Tensor
    variance: Tensor
    covariance: Tensor

    @property
    def total(self) -> Tensor:
        """The weighted sum."""
        return (
            INVARIANCE * self.invariance + VARIANCE * self.variance + COVARIANCE * self.covariance
        )


def vicreg(one: Tensor, other: Tensor) -> Terms:
    """Compute the loss of embeddings of two views.

    Parameters
    ----------
    one, other : Tensor of float32, (n, channels)
        Row i of each is of the same thing; n is at least 2.
    """
    return Terms(
        mse_loss(one, other),
        (_narrowness(one) + _narrowness(other)) / 2,
        _entanglement(one) + _entanglement(other),
    )


def _narrowness(x: Tensor) -> Tensor:
    """How far the channels' standard deviations stay below 1, on average."""
    return relu(1 - (x.var(dim=0) + _SLOPE).sqrt()).mean()


def _entanglement(x: Tensor) -> Tensor:
    """Add up the squares of the covariances between different channels, for each channel."""
    centred = x - x.mean(dim=0)
    covariance = centred.T @ centred / (len(x) - 1)
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / x.shape[1]


def expander(width: int, wide: int) -> nn.Sequential:
    """Make the network between what is kept and what the loss sees: (n, width) to (n, wide). It is thrown away."""
    return nn.Sequential(
        nn.Linear(width, wide),
        nn.BatchNorm1d(wide),
        nn.ReLU(),
        nn.Linear(wide, wide),
        nn.BatchNorm1d(wide),
        nn.ReLU(),
        nn.Linear(wide, wide, bias=False),
    )


@torch.no_grad()
def effective_rank(x: Tensor) -> float:
    """Compute the effective rank of features: RankMe (Garrido et al. 2023, arXiv 2210.02885).

    Parameters
    ----------
    x : Tensor, (n, channels)

    Returns
    -------
    float
        Between 1 (all rows lie on a line through 0) and min(n, channels); NaN if a feature is NaN.
    """
    if not x.isfinite().all():
        return math.nan
    shares = torch.linalg.svdvals(x.float().cpu())
    shares = shares / shares.sum().clamp(min=1e-12)
    return float(torch.exp(-(shares * torch.log(shares + 1e-12)).sum()))
