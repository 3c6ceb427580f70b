"""SAM-CONV: outputs of the right shape, sizes that are known, and a mask that sees beyond its token."""

import pytest
import torch

from samtl.heads.conv import Head
from samtl.heads.trainer import isolated

pytestmark = pytest.mark.usefixtures("one_thread")


def network(task, width=16, k=3, channels=10, side=8):
    head = Head(width=width)
    head.adopt(task, list(range(k)), (channels, side, side))
    with isolated(0):
        return head.network().eval()


@pytest.mark.parametrize("side", [4, 8, 16])
@pytest.mark.parametrize("width", [4, 16, 20])
def test_a_score_for_each_class_or_pixel(width, side):
    x = torch.randn(2, 10, side, side)
    assert network("classification", width, side=side)(x).shape == (2, 3)
    assert network("segmentation", width, side=side)(x).shape == (2, 3, 4 * side, 4 * side)


def test_every_weight_takes_part():
    for task in ("classification", "segmentation"):
        net = network(task)
        out = net(torch.randn(2, 10, 8, 8, generator=torch.Generator().manual_seed(0)))
        (out**2).sum().backward()
        assert all(p.grad.abs().sum() > 0 for p in net.parameters())


def test_a_pixel_sees_the_tokens_beside_its_own_and_no_further():
    net = network("segmentation")
    x = torch.randn(1, 10, 8, 8, generator=torch.Generator().manual_seed(0))
    moved = x.clone()
    moved[:, :, 4, 4] += 5
    changed = (net(moved) != net(x)).any(1)[0]
    expected = torch.zeros(32, 32, dtype=torch.bool)
    expected[12:24, 12:24] = True
    assert torch.equal(changed, expected)


def test_a_classifier_is_told_mean_and_maximum_of_what_was_found():
    """A narrow road is in the maximum, a forest in the mean."""
    net = network("classification").network
    seen = []
    for part in (net.features, net.scores):
        part.register_forward_hook(lambda part, inputs, out: seen.append((inputs[0], out)))
    net(torch.randn(2, 10, 8, 8, generator=torch.Generator().manual_seed(0)))
    (_, features), (pooled, _) = seen
    assert features.shape == (2, 21, 4, 4)  # half as many places on each side
    flat = features.flatten(2)
    assert torch.equal(pooled, torch.cat([features.mean((2, 3)), flat.max(2).values], dim=1))


def test_the_default_is_as_small_as_it_is_said_to_be():
    """Light heads: a fraction of the encoder's 90 million weights."""
    for task, most in (("classification", 400_000), ("segmentation", 200_000)):
        head = Head()
        head.adopt(task, list(range(10)), (256, 16, 16))
        assert sum(p.numel() for p in head.network().parameters()) < most
