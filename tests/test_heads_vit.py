"""SAM-ViT: outputs of the right shape, positions that count, and a mask that sees the whole image."""

import pytest
import torch

from samtl.heads.trainer import isolated
from samtl.heads.vit import Head

pytestmark = pytest.mark.usefixtures("one_thread")


def network(task, k=3, channels=10, side=8, **params):
    head = Head(**{"width": 64, **params})
    head.adopt(task, list(range(k)), (channels, side, side))
    with isolated(0):
        return head.network().eval()


def grids(n=2, side=8):
    return torch.randn(n, 10, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("side", [4, 8, 16])
@pytest.mark.parametrize(("width", "depth"), [(64, 1), (128, 2)])
def test_a_score_for_each_class_or_pixel(width, depth, side):
    x, size = grids(side=side), {"width": width, "depth": depth, "side": side}
    assert network("classification", **size)(x).shape == (2, 3)
    assert network("segmentation", **size)(x).shape == (2, 3, 4 * side, 4 * side)


def test_depth_is_the_number_of_blocks():
    one, two = (
        sum(p.numel() for p in network("classification", depth=depth).parameters())
        for depth in (1, 2)
    )
    attention, hidden, norms = 4 * (64 + 1) * 64, (64 + 1) * 128 + (128 + 1) * 64, 2 * 2 * 64
    assert two - one == attention + hidden + norms


def test_every_weight_takes_part():
    for task in ("classification", "segmentation"):
        net = network(task)
        (net(grids()) ** 2).sum().backward()
        idle = [name for name, p in net.named_parameters() if not p.grad.abs().sum() > 0]
        assert idle == []


def test_positions_count():
    net = network("classification")
    x = grids()
    moved = torch.roll(x, 2, dims=3)  # by a whole token
    assert not torch.allclose(net(x), net(moved), atol=1e-4)
    with torch.no_grad():
        next(p for name, p in net.named_parameters() if "positions" in name).zero_()
    torch.testing.assert_close(net(x), net(moved), atol=1e-5, rtol=1e-5)


def test_a_pixel_sees_the_whole_image_and_its_own_place_best():
    net = network("segmentation")
    x = grids(1)
    moved = x.clone()
    moved[:, :, 4, 4] += 5
    change = (net(moved) - net(x)).detach().abs().amax(1)[0]
    assert (change > 0).all()
    here = change[16:20, 16:20].mean()
    assert here > 5 * change[:8].mean()


def test_the_default_is_as_small_as_it_is_said_to_be():
    """Light heads: a fraction of the encoder's 90 million weights."""
    for task, side in (("classification", 16), ("segmentation", 64)):
        head = Head()
        head.adopt(task, list(range(10)), (256, side, side))
        assert sum(p.numel() for p in head.network().parameters()) < 1_000_000


@pytest.mark.parametrize("params", [{"width": 96}, {"width": 0}, {"depth": 0}])
def test_sizes_that_make_no_block_are_refused(params):
    (name,) = params
    with pytest.raises(ValueError, match=f"{name} must be"):
        Head(**params)._check()
