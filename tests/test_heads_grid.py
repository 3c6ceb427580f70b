"""What the heads on grids share: standardising by the training part, masks at any size, defaults of each task."""

import numpy as np
import pytest
import torch
from torch import nn

from samtl.errors import InputError
from samtl.heads import conv, vit
from samtl.heads import grid as _grid
from samtl.heads.grid import GridHead
from samtl.heads.layers import Stem
from samtl.heads.trainer import InMemory

pytestmark = pytest.mark.usefixtures("one_thread")


def samples(n=24, k=3, channels=6, side=4, seed=0):
    """Grids whose class is the channel with the largest numbers."""
    random = torch.Generator().manual_seed(seed)
    targets = torch.arange(n) % k
    inputs = torch.randn(n, channels, side, side, generator=random)
    inputs[torch.arange(n), targets] += 3
    return InMemory(inputs, targets)


def fit(head, training, validation=None, task="classification", k=3):
    return head.fit(
        training,
        validation or training,
        task=task,
        n_classes=k,
        shape=training.inputs.shape[1:],
    )


def small(**params):
    return conv.Head(**{"width": 16, "epochs": 10, "lr": 1e-2, **params})


def stem(head):
    return next(m for m in head._network.modules() if isinstance(m, Stem))


# Standardising


def test_channels_are_standardised_by_the_training_part():
    training, validation = samples(), samples(seed=1)
    scale = torch.tensor([1e-3, 1.0, 30.0, 1.0, 1.0, 1.0])[:, None, None]
    training = InMemory(training.inputs * scale + 2, training.targets)
    head = fit(small(epochs=1), training, InMemory(validation.inputs + 100, validation.targets))
    flat = training.inputs.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(stem(head).mean.double(), flat.mean(1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        1 / stem(head).factor.double(), flat.std(1, correction=0), rtol=1e-3, atol=0
    )


def test_a_constant_channel_says_nothing_whatever_it_holds_later():
    training = samples()
    training.inputs[:, 4] = 0.1
    training.inputs[:, 5] = 0
    head = fit(small(), training)
    inputs = training.inputs.numpy()
    moved = inputs.copy()
    moved[:, 4:] = 1000
    assert stem(head).factor[4:].tolist() == [0, 0]
    np.testing.assert_allclose(head.logits(moved), head.logits(inputs), rtol=1e-6, atol=1e-6)


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
    flat = training.inputs[:8].transpose(0, 1).flatten(1)
    torch.testing.assert_close(stem(head).mean, flat.mean(1))


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


def test_what_is_left_open_depends_on_the_task(monkeypatch):
    recipes = []

    def watch(self, training, validation):
        recipes.append((self.recipe, self.loss.__name__))
        self.samples, self.seconds, self.waited = 30, 1.5, 0.5
        return self

    monkeypatch.setattr(_grid.Trainer, "run", watch)
    images = samples(2000, channels=3)
    masks = InMemory(images.inputs, torch.zeros(2000, 16, 16, dtype=torch.int64))
    head = fit(conv.Head(width=4), images)
    assert (head.rate_, head.waiting_) == (15, 0.25)
    fit(conv.Head(width=4), masks, task="segmentation")
    fit(conv.Head(width=4, epochs=3, batch_size=7, lr=0.5), masks, task="segmentation")
    found = [(r.epochs, r.batch_size, r.learning_rate, loss) for r, loss in recipes]
    assert found == [
        (20, 128, 2e-3, "cross_entropy"),
        (60, 4, 2e-3, "cross_entropy_dice"),
        (3, 7, 0.5, "cross_entropy_dice"),
    ]
    fit(conv.Head(width=4), samples(100, channels=3))
    assert recipes[-1][0].batch_size == 12  # eight steps in a pass over few samples


@pytest.mark.parametrize(
    ("task", "classes", "shape", "said"),
    [
        ("detection", 3, (6, 4, 4), "classification or segmentation, and there is no task"),
        ("classification", 1, (6, 4, 4), "at least 2 classes, numbered from 0"),
        ("classification", 3, (6, 4), r"\(channels, side, side\), .*got \(6, 4\)"),
        ("classification", 3, (6, 4, 8), "the side even"),
        ("classification", 3, (6, 5, 5), "the side even"),
        ("classification", 3, (0, 4, 4), "a grid of features"),
    ],
)
def test_what_a_grid_head_is_not_for(task, classes, shape, said):
    with pytest.raises(InputError, match=said):
        small().fit(samples(), samples(), task=task, n_classes=classes, shape=shape)


# Warm starts

WARM = [
    (conv.Head, {"width": 16}, "classification"),
    (vit.Head, {"width": 64}, "classification"),
    (conv.Head, {"width": 8}, "segmentation"),
    (vit.Head, {"width": 64}, "segmentation"),
]


def of_task(task, seed=0):
    source = samples(seed=seed)
    if task == "classification":
        return source
    masks = torch.arange(24 * 256).view(24, 16, 16) % 3
    return InMemory(source.inputs, masks)


@pytest.mark.parametrize(("kind", "params", "task"), WARM)
def test_training_starts_from_the_weights_of_another(kind, params, task):
    first = fit(kind(**params, epochs=2, lr=1e-2), of_task(task), task=task)
    before = {name: array.copy() for name, array in first.tensors().items()}
    head = kind(**params, epochs=1, random_state=7)
    head.start_from(first)
    other = InMemory(2 * of_task(task).inputs + 1, of_task(task).targets)
    head.adopt(task, [0, 1, 2], (6, 4, 4))
    statistics = head._statistics(other)
    trainer = head.begin(24, statistics)
    scales = ("mean", "factor")  # of the samples at hand
    for name, array in head.tensors().items():
        same = np.array_equal(array, before[name])
        assert same != name.endswith(scales), name
    trainer.run(other, other)
    head.finish(trainer)
    for name, array in first.tensors().items():
        np.testing.assert_array_equal(array, before[name])
    assert any(not np.array_equal(a, before[n]) for n, a in head.tensors().items())


@pytest.mark.parametrize(("kind", "params", "task"), WARM[:2])
def test_a_warm_start_is_for_one_training(kind, params, task):
    cold = fit(kind(**params, epochs=2), of_task(task)).tensors()
    first = fit(kind(**params, epochs=2, random_state=5), of_task(task))
    head = kind(**params, epochs=2)
    head.start_from(first)
    warm = {name: array.copy() for name, array in fit(head, of_task(task)).tensors().items()}
    again = fit(head, of_task(task)).tensors()
    for name, array in cold.items():
        np.testing.assert_array_equal(again[name], array)
    assert any(not np.array_equal(warm[name], array) for name, array in cold.items())
