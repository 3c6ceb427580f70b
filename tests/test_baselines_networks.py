"""The networks of baselines: sizes, weights, the pixels that they are given, and how scores become a map."""

import hashlib
import itertools

import numpy as np
import pytest
import torch
import toys
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from samtl.baselines import pixels as _pixels
from samtl.baselines import unet, vgg19
from samtl.baselines.networks import Normalised, class_map
from samtl.baselines.pixels import Pixels, turned
from samtl.datasets import IGNORE
from samtl.encoders.weights.checkpoints import Official
from samtl.errors import InputError
from samtl.heads.io import load, save
from samtl.images.transforms import mask_square


def test_pixels_are_normalised_as_imagenet_is():
    pixels = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
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
    assert sum(p.numel() for p in default.parameters()) == 7_763_074


def test_a_map_has_the_images_own_shape():
    # Left half class 1, right half class 0, of a wide image that fills the upper half of the square.
    scores = torch.zeros(2, 8, 8)
    scores[1, :4, :4], scores[0, :4, 4:] = 1, 1
    scores[1, 4:] = 100  # beneath the image: padding
    made = class_map(scores, 50, 100, 64)
    assert (made.shape, made.dtype) == ((32, 64), np.uint8)
    assert (made[:24, :32] == 1).all()
    assert (made[:24, 32:] == 0).all()


def test_vgg19_has_the_architecture_of_the_published_weights():
    state = vgg19.convolutions().state_dict()
    places = [0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34]
    assert list(state) == [f"{n}.{part}" for n in places for part in ("weight", "bias")]
    widths = [3, 64, 64, 128, 128, *[256] * 4, *[512] * 8]
    shapes = [tuple(state[f"{n}.weight"].shape) for n in places]
    assert shapes == [(b, a, 3, 3) for a, b in itertools.pairwise(widths)]
    assert sum(tensor.numel() for tensor in state.values()) == 20_024_384
    assert vgg19.OFFICIAL.file == f"vgg19-{vgg19.OFFICIAL.sha256}.pth"


@pytest.fixture
def vgg(monkeypatch):
    """Make VGG-19 narrow, which is quick; gives a function that writes its weights as torchvision does."""
    monkeypatch.setattr(vgg19, "BLOCKS", ((4,), (4, 4), (8,), (8,), (8,)))
    monkeypatch.setattr(vgg19, "N_FEATURES", 16)

    def write(path, seed=0):
        random = torch.Generator().manual_seed(seed)
        shapes = {f"features.{k}": t.shape for k, t in vgg19.convolutions().state_dict().items()}
        shapes["classifier.0.weight"] = (2, 2)  # of the linear layers
        torch.save({k: torch.randn(s, generator=random) / 4 for k, s in shapes.items()}, path)
        return path

    return write


def fitted(checkpoint):
    baseline = vgg19.Baseline(str(checkpoint), image_size=32, device="cpu")
    return baseline.fit(toys.stripes(), np.arange(24), np.arange(24, 36))


def test_official_weights_of_vgg19_are_named(vgg, tmp_path, monkeypatch):
    path = vgg(tmp_path / "state.pth")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    file = path.rename(tmp_path / f"vgg19-{digest}.pth")
    official = Official(f"http://127.0.0.1:9/{file.name}", file.stat().st_size, digest)
    monkeypatch.setattr(vgg19, "OFFICIAL", official)
    monkeypatch.setenv("SAMTL_WEIGHTS", str(tmp_path))  # where it was downloaded to
    for checkpoint in ("official", file):
        baseline = fitted(checkpoint)
        assert (baseline.weights, baseline.untrained) == (f"official {file.name}", False)


def test_weights_of_vgg19_that_were_exchanged_are_noticed(vgg, tmp_path):
    dataset, baseline = toys.stripes(), fitted(vgg(tmp_path / "own.pth"))
    save(baseline, tmp_path)
    expected, found = (next(b.predict_all(dataset, [5])) for b in (baseline, load(tmp_path)))
    np.testing.assert_array_equal(found["vgg19"], expected["vgg19"])
    vgg(tmp_path / "own.pth", seed=1)
    with pytest.raises(InputError, match=r"fitted with the weights file own\.pth"):
        next(load(tmp_path).predict_all(dataset, [5]))


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
        found = [everything(source, 5, order()) for source in (kept, streamed)]
        torch.testing.assert_close(*found, rtol=0, atol=0)
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
