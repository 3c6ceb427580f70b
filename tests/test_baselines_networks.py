"""The networks: their sizes, what they are given, and how scores become a map."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn
from toys import blobs, stripes

from samtl.baselines import cnn, unet
from samtl.baselines.networks import Normalised, class_map
from samtl.heads import trainer as _train


def n_weights(network):
    return sum(p.numel() for p in network.parameters())


def test_pixels_are_normalised_as_imagenet_is():
    pixels = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    torch.testing.assert_close(Normalised(nn.Identity())(pixels), (pixels / 255 - mean) / std)


def test_the_unet_scores_every_pixel_and_sees_far():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = unet.UNet(4, 3).eval().double()  # far effects are faint in untrained weights
        image = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    scores = network(image)
    assert scores.shape == (1, 3, 64, 96)
    image[0, :, 0, 0] += 10
    changed = (network(image) != scores)[0].any(dim=0)
    assert changed[:64, :64].float().mean() > 0.9


def test_the_unet_has_the_published_products():
    """Ronneberger et al. 2015, figure 1, but for 3 channels in; then half as wide."""
    with torch.device("meta"):
        network, default = unet.UNet(64, 2), unet.Baseline()._layers(2)
    kinds = (nn.Conv2d, nn.ConvTranspose2d)
    products = sum(m.weight.numel() for m in network.modules() if isinstance(m, kinds))
    widths = [64, 128, 256, 512, 1024]
    down = sum(9 * (a * b + b * b) for a, b in itertools.pairwise([3, *widths]))
    up = sum(4 * a * b + 9 * (2 * a * a + a * a) for a, b in itertools.pairwise(widths))
    assert products == down + up + 2 * 64
    assert n_weights(default) == 7_763_074


def test_a_map_has_the_images_own_shape():
    # Left half class 1, right half class 0, of a wide image that fills the upper half of the square.
    scores = torch.zeros(2, 8, 8)
    scores[1, :4, :4], scores[0, :4, 4:] = 1, 1
    scores[1, 4:] = 100  # beneath the image: padding
    made = class_map(scores, 50, 100, 64)
    assert made.shape == (32, 64)
    assert made.dtype == np.uint8
    assert (made[:24, :32] == 1).all()
    assert (made[:24, 32:] == 0).all()


@pytest.mark.parametrize(
    ("kind", "data", "params"), [(cnn.Baseline, stripes, {}), (unet.Baseline, blobs, {"width": 4})]
)
@pytest.mark.usefixtures("one_thread")
def test_training_starts_once_from_the_weights_of_another_and_is_shorter(
    kind, data, params, monkeypatch
):
    monkeypatch.setattr(_train, "WARM_SAMPLES", 12)
    rows, fast = np.arange(20), {"image_size": 32, "epochs": 4, "patience": 4, **params}
    first = kind(**fast, random_state=1).fit(data(), rows[:8], rows[8:12])
    before = copied(first)

    def fit(baseline):
        return baseline.fit(data(), rows[:12], rows[12:16])

    def warm(**changes):
        baseline = kind(**fast | changes)
        baseline.start_from(first)
        return fit(baseline)

    still = differing(copied(warm(lr=1e-30, weight_decay=0)), before)
    assert all("running" in name for name in still)  # batch norms' statistics
    moved = warm()
    assert moved.recipe_.epochs == 1
    assert differing(copied(moved), before) > still
    assert not differing(copied(first), before)
    assert not differing(copied(fit(moved)), copied(fit(kind(**fast))))


def copied(baseline):
    return {name: array.copy() for name, array in baseline.tensors().items()}


def differing(one, other):
    """Names of the tensors that are not the same to the bit."""
    return {name for name, array in one.items() if not np.array_equal(array, other[name])}
