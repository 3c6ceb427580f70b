"""Cross-entropy + Dice is what it is by hand, on the pixels that are known and on no others."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from samtl.errors import InputError
from samtl.heads.losses import cross_entropy_dice
from samtl.images.transforms import IGNORE


def by_hand(logits, targets):
    """The same, pixel by pixel."""
    n, k, height, width = logits.shape
    entropy, known = 0.0, 0
    both, claimed, there = np.full(k, 0.5), np.full(k, 0.5), np.full(k, 0.5)
    for i, y, x in np.ndindex(n, height, width):
        truth = targets[i, y, x]
        if truth == IGNORE:
            continue
        chances = np.exp(logits[i, :, y, x] - logits[i, :, y, x].max())
        chances /= chances.sum()
        entropy -= np.log(chances[truth])
        known += 1
        both[truth] += chances[truth]
        claimed += chances
        there[truth] += 1
    dice = 2 * both / (claimed + there)
    return entropy / max(known, 1) + 1 - dice[1:].mean()


@given(
    k=st.integers(2, 5),
    n=st.integers(1, 3),
    ignored=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 1000),
)
def test_is_what_it_is_by_hand(k, n, ignored, seed):
    random = np.random.default_rng(seed)
    logits = random.normal(0, 3, (n, k, 3, 4))
    targets = random.integers(0, k, (n, 3, 4))
    targets[random.random(targets.shape) < ignored] = IGNORE
    loss = cross_entropy_dice(torch.from_numpy(logits), torch.from_numpy(targets)).item()
    assert loss == pytest.approx(by_hand(logits, targets), rel=1e-9, abs=1e-9)
    assert loss >= 0


def masks():
    targets = torch.zeros(2, 8, 8, dtype=torch.int64)
    targets[0, 2:5, 2:6], targets[1, 4:, :3] = 1, 2
    return targets


def certain(targets, k=3):
    return 50.0 * torch.nn.functional.one_hot(targets, k).movedim(-1, 1).float()


def test_the_right_answer_costs_nothing_and_a_wrong_one_much():
    targets = masks()
    assert cross_entropy_dice(certain(targets), targets).item() == pytest.approx(0, abs=1e-5)
    assert cross_entropy_dice(certain((targets + 1) % 3), targets).item() > 40


def test_what_is_said_of_ignored_pixels_does_not_matter():
    targets = masks()
    targets[:, :, 6:] = IGNORE
    logits = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = cross_entropy_dice(logits, targets)
    loss.backward()
    assert (logits.grad[..., 6:] == 0).all()
    assert (logits.grad[..., :6] != 0).all()
    other = logits.detach().clone()
    other[..., 6:] = 1e4
    assert torch.equal(cross_entropy_dice(other, targets), loss.detach())


def test_a_batch_without_a_known_pixel_has_a_loss_and_no_slope():
    logits = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = cross_entropy_dice(logits, torch.full((2, 8, 8), IGNORE))
    loss.backward()
    assert loss.item() == 0
    assert (logits.grad == 0).all()


def test_a_class_that_is_neither_there_nor_claimed_costs_nothing():
    targets = torch.zeros(1, 8, 8, dtype=torch.int64)
    targets[:, 2:5, 2:5] = 1
    assert cross_entropy_dice(certain(targets), targets).item() == pytest.approx(0, abs=1e-5)


def test_extreme_scores_stay_finite():
    targets = masks()
    logits = torch.zeros(2, 3, 8, 8)
    logits[:, 0], logits[:, 1] = 1e30, -1e30
    logits.requires_grad_()
    loss = cross_entropy_dice(logits, targets)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("shape", [(2, 4, 4), (1, 8, 8), (2, 8)])
def test_masks_of_another_size_are_refused(shape):
    with pytest.raises(InputError, match=r"expected masks of shape \(2, 8, 8\), got \("):
        cross_entropy_dice(torch.zeros(2, 3, 8, 8), torch.zeros(shape, dtype=torch.int64))
