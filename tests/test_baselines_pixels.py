"""Pixels come once each, as squares, turned together with their masks, and only from what can be read."""

import numpy as np
import pytest
import torch
import toys
from hypothesis import given
from hypothesis import strategies as st

from samtl.baselines import pixels as _pixels
from samtl.baselines.pixels import Pixels, turned
from samtl.datasets import IGNORE
from samtl.errors import InputError
from samtl.images.transforms import mask_square


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def everything(source, size, order=None):
    inputs, targets = zip(*source.batches(size, order), strict=True)
    return torch.cat(inputs), torch.cat(targets)


def test_masks_lie_on_their_images():
    dataset = toys.blobs(n=6)
    inputs, targets = everything(Pixels(dataset, np.arange(6), 64), 4)
    masks = [mask_square(mask, 64) for mask in dataset.read_mask.content.values()]
    np.testing.assert_array_equal(targets, masks)
    assert targets.dtype == torch.int64
    assert (targets[1] == IGNORE).sum() > 20 * 64  # the second is tall: right of it is nothing
    assert inputs.shape == (6, 3, 64, 64)


@pytest.mark.parametrize("make", [toys.stripes, toys.blobs])
def test_kept_or_decoded_anew_is_the_same(make, monkeypatch):
    dataset, rows = make(n=23), np.arange(22, 0, -1)
    kept = Pixels(dataset, rows, 32, augment=True)
    monkeypatch.setattr(_pixels, "HELD_BYTES", 0)
    dataset.read.asked.clear()
    streamed = Pixels(dataset, rows, 32, augment=True)
    assert not dataset.read.asked
    for order in (lambda: None, generator):
        for one, other in zip(
            everything(kept, 5, order()), everything(streamed, 5, order()), strict=True
        ):
            assert torch.equal(one, other)
    assert len(dataset.read.asked) == 2 * len(rows)


@given(st.integers(0, 2**32), st.integers(1, 6), st.integers(2, 5))
def test_turning_moves_pixels_and_masks_alike(seed, n, side):
    masks = torch.arange(n * side * side).view(n, side, side)
    inputs = torch.stack([masks, masks + 1, masks + 2], dim=3)
    made, targets = turned(inputs, masks, generator(seed))
    assert made.shape == inputs.shape
    assert made.is_contiguous()
    for c in range(3):
        assert torch.equal(made[..., c], targets + c)
    for before, after in zip(masks.numpy(), targets.numpy(), strict=True):
        turns = [np.rot90(before, k) for k in range(4)]
        assert any(np.array_equal(after, way) for t in turns for way in (t, t[:, ::-1]))


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (np.zeros((31, 32), np.uint8), "size, 32 x 32, .* is 32 x 31"),
        (np.full((32, 32), 3, np.uint8), "below 3, .* holds 3"),
        (FileNotFoundError("no such file"), "cannot be read"),
        (_pixels.BadImage("truncated", "cut short"), r"cannot be used \(cut short\)"),
    ],
)  # fmt: skip
def test_a_mask_that_does_not_fit_is_named(mask, said):
    dataset = toys.blobs()
    dataset.read_mask.content["000.png"] = mask
    with pytest.raises(InputError, match=rf"the mask of '?'000\.png' of blobs .*{said}"):
        Pixels(dataset, np.arange(3), 32)
