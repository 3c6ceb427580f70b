"""Losses of heads and baselines: cross-entropy, and for masks cross-entropy + Dice."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy as cross_entropy

from samtl.errors import InputError
from samtl.images.transforms import IGNORE


def cross_entropy_dice(logits: Tensor, targets: Tensor) -> Tensor:
    """Compute the mean cross-entropy plus the soft Dice loss (Milletari et al. 2016, "V-Net", section 3).

    The Dice loss is 1 - Dice of the foreground classes, with sums over all valid pixels of the batch. It gives weight
    to classes that cover little, such as roads.

    Parameters
    ----------
    logits : Tensor of float32, (batch, K, height, width)
        Class 0 is the background.
    targets : Tensor of int64, (batch, height, width)
        Class indices; 255 is ignored in both terms.

    Raises
    ------
    InputError
        If the shapes differ.
    """
    expected = len(logits), *logits.shape[2:]
    if tuple(targets.shape) != expected:
        raise InputError(f"expected masks of shape {expected}, got {tuple(targets.shape)}")
    valid = targets != IGNORE
    known = torch.where(valid, targets, 0)
    log_chances = logits.log_softmax(dim=1)
    surprise = -log_chances.gather(1, known[:, None])[:, 0] * valid
    entropy = surprise.sum() / valid.sum().clamp(min=1)
    dice = logits.new_zeros(())
    foreground = range(1, logits.shape[1])
    for index in foreground:
        chance = log_chances[:, index].exp() * valid
        truth = (known == index) & valid
        # One pixel in both terms, so that Dice is 1 for a class that is neither there nor predicted.
        both = (chance * truth).sum() + 0.5
        dice = dice + 2 * both / (chance.sum() + truth.sum() + 1)
    return entropy + 1 - dice / len(foreground)
