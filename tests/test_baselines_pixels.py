"""Pixels come once each, as squares, turned together with their masks, and only from what can be read."""

import numpy as np
import pytest
import torch
import toys
from hypothesis import given
from hypothesis import strategies as st

from samtl.baselines import pixels as _pixels
from samtl.baselines.pixels import (
    Pixels,
    square,
    squares,
    turned,
)
from samtl.datasets import IGNORE
from samtl.errors import InputError
from samtl.images.transforms import mask_square


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def everything(source, size, order=None):
    inputs, targets = zip(*source.batches(size, order), strict=True)
    return torch.cat(inputs), torch.cat(targets)


def test_labelled_images_in_order():
    dataset = toys.stripes(n=20)
    rows = np.array([7, 3, 11])
    source = Pixels(dataset, rows, 32, augment=True)
    assert len(source) == 3
    batches = list(source.batches(2, None))
    assert [tuple(inputs.shape) for inputs, _ in batches] == [(2, 3, 32, 32), (1, 3, 32, 32)]
    inputs, targets = everything(source, 2)
    assert (inputs.dtype, targets.dtype) == (torch.uint8, torch.int64)
    assert inputs.is_contiguous(memory_format=torch.channels_last)
    assert targets.tolist() == [dataset.labels[row] for row in rows]
    for row, made in zip(rows, inputs, strict=True):  # in order, nothing is turned
        expected = square(_pixels.read_image(dataset, row), 32)
        np.testing.assert_array_equal(made.permute(1, 2, 0).numpy(), expected)


def test_masks_lie_on_their_images():
    dataset = toys.blobs(n=6)
    inputs, targets = everything(Pixels(dataset, np.arange(6), 64), 4)
    assert targets.shape == (6, 64, 64)
    assert targets.dtype == torch.int64
    for i, target in enumerate(targets):
        expected = mask_square(dataset.read_mask.content[dataset.sample_ids[i]], 64)
        np.testing.assert_array_equal(target.numpy(), expected)
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


def ways(image):
    """The eight ways to lay a square down."""
    turns = [np.rot90(image, k) for k in range(4)]
    return [way for turn in turns for way in (turn, turn[:, ::-1])]


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
        assert any(np.array_equal(after, way) for way in ways(before))


def test_images_to_predict_on_are_read_without_targets():
    dataset = toys.blobs(n=7)
    dataset.read_mask.forbidden = set(dataset.sample_ids)
    found = list(squares(dataset, np.array([6, 0, 1, 2, 5]), 32, 2))
    assert [len(inputs) for inputs, _ in found] == [2, 2, 1]
    assert [shape for _, shapes in found for shape in shapes] == [
        toys.SHAPES[row % 3] for row in (6, 0, 1, 2, 5)
    ]


def test_a_damaged_image_is_named():
    dataset = toys.stripes()
    dataset.read.content[dataset.sample_ids[2]] = b"no image"
    with pytest.raises(InputError, match=r"image '2/002\.png' of stripes cannot be used"):
        Pixels(dataset, np.arange(4), 32)


def test_an_image_that_goes_during_training_is_named(monkeypatch):
    dataset = toys.stripes()
    monkeypatch.setattr(_pixels, "HELD_BYTES", 0)
    batches = Pixels(dataset, np.arange(9), 32).batches(2, None)
    next(batches)
    dataset.read.content[dataset.sample_ids[7]] = OSError("the network drive is gone")
    with pytest.raises(InputError, match=r"'1/007\.png' of stripes .*the network drive is gone"):
        list(batches)


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (np.zeros((31, 32), np.uint8), r"shape \(31, 32\), and its image \(32, 32\)"),
        (np.full((32, 32), 3, np.uint8), "classes below 3, .* got 3"),
        (FileNotFoundError("no such file"), "cannot be read"),
        (_pixels.BadImage("truncated", "cut short"), r"cannot be used \(cut short\)"),
    ],
)  # fmt: skip
def test_a_mask_that_does_not_fit_is_named(mask, said):
    dataset = toys.blobs()
    dataset.read_mask.content["000.png"] = mask
    with pytest.raises(InputError, match=rf"the mask of '?'000\.png' of blobs .*{said}"):
        Pixels(dataset, np.arange(3), 32)
