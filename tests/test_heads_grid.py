"""What the heads on grids share: standardising by the training part, masks at any size, defaults of each task."""

import numpy as np
import pytest
import torch
from torch import nn

from samtl.errors import InputError
from samtl.heads import conv
from samtl.heads import grid as _grid
from samtl.heads.grid import GridHead
from samtl.heads.trainer import InMemory

pytestmark = pytest.mark.usefixtures("one_thread")


def samples(n=24, k=3, channels=6, side=4, seed=0):
    """Grids whose class is the channel with the largest numbers."""
    random = torch.Generator().manual_seed(seed)
    targets = torch.arange(n) % k
    inputs = torch.randn(n, channels, side, side, generator=random)
    inputs[torch.arange(n), targets] += 3
    return InMemory(inputs, targets)


def fit(head, training, validation=None, task="classification"):
    shape = training.inputs.shape[1:]
    return head.fit(training, validation or training, task=task, n_classes=3, shape=shape)


def small(**params):
    return conv.Head(**{"width": 16, "epochs": 10, "lr": 1e-2, **params})


def test_statistics_need_only_the_first_rows(monkeypatch):
    monkeypatch.setattr(_grid, "STATISTICS_ROWS", 8)
    training = samples(24)
    read = []

    class Watched(InMemory):
        def batches(self, size, generator):
            for batch in super().batches(size, generator):
                read.append((len(batch[1]), generator is None))
                yield batch

    head = fit(
        small(epochs=1, batch_size=4), Watched(training.inputs, training.targets), samples(6)
    )
    assert [n for n, in_order in read if in_order] == [4, 4]
    mean = head.tensors()["network.features.0.mean"]
    np.testing.assert_allclose(mean, training.inputs[:8].mean((0, 2, 3)), rtol=1e-5)


# Predicting


class Known(GridHead):
    """A head whose scores are its first channels, sampled up: nothing is learnt."""

    def __init__(self):
        super().__init__(width=4, epochs=1)

    def _classifier(self, channels, side, n_classes):
        return nn.Flatten()

    def _segmenter(self, channels, side, n_classes):
        return nn.Upsample(scale_factor=4, mode="nearest")


@pytest.fixture
def known():
    """Give such a head with two classes and a grid of 4 x 4, and scores for one image: class 1 in the right half."""
    head = Known()
    head.adopt("segmentation", [0, 1], (2, 4, 4))
    head._network = head.network()
    scores = np.zeros((1, 2, 4, 4), dtype=np.float32)
    scores[0, 1, :, 2:] = 2
    scores[0, 0] = 1
    return head, scores


def test_masks_are_cut_to_the_image(known):
    head, scores = known
    (square,) = head.class_maps(scores, [(64, 64)], 64)
    assert (square.dtype, square.shape) == (np.uint8, (64, 64))
    assert (square[:, 34:] == 1).all()
    assert (square[:, :30] == 0).all()
    (part,) = head.class_maps(scores, [(20, 50)], 64)
    np.testing.assert_array_equal(part, square[:20, :50])


@pytest.mark.parametrize("size", [(128, 128), (32, 32), (40, 100)])
def test_masks_at_the_image_s_own_size(known, size):
    head, scores = known
    shape = (64, 64) if size[0] == size[1] else (26, 64)
    (mask,) = head.class_maps(scores, [shape], 64, [size])
    assert (mask.dtype, mask.shape) == (np.uint8, size)
    edge = size[1] // 2
    np.testing.assert_array_equal(mask, np.tile(np.arange(size[1]) >= edge, (size[0], 1)))


# What it is told


@pytest.mark.parametrize(
    ("params", "task", "n", "expected"),
    [
        ({}, "classification", 2000, (20, 128, 2e-3)),
        ({}, "segmentation", 2000, (60, 4, 2e-3)),
        ({"epochs": 3, "batch_size": 7, "lr": 0.5}, "segmentation", 2000, (3, 7, 0.5)),
        ({}, "classification", 100, (20, 12, 2e-3)),  # eight steps in a pass over few samples
    ],
)
def test_what_is_left_open_depends_on_the_task(params, task, n, expected):
    head = conv.Head(width=4, **params)
    head.adopt(task, [0, 1, 2], (3, 4, 4))
    trainer = head.begin(n, torch.tensor([[0.0] * 3, [1.0] * 3]))
    recipe = trainer.recipe
    assert (recipe.epochs, recipe.batch_size, recipe.learning_rate) == expected
    assert trainer.loss.__name__.endswith("dice") is (task == "segmentation")


@pytest.mark.parametrize(
    ("task", "classes", "shape", "said"),
    [
        ("detection", 3, (6, 4, 4), "detection"),
        ("classification", 1, (6, 4, 4), "at least 2 classes"),
        ("classification", 3, (6, 4), r"got \(6, 4\)"),
        ("classification", 3, (6, 4, 8), r"got \(6, 4, 8\)"),
        ("classification", 3, (6, 5, 5), "the side even"),
        ("classification", 3, (0, 4, 4), r"got \(0, 4, 4\)"),
    ],
)
def test_what_a_grid_head_is_not_for(task, classes, shape, said):
    with pytest.raises(InputError, match=said):
        small().fit(samples(), samples(), task=task, n_classes=classes, shape=shape)
