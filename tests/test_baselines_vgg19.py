"""VGG-19 has the published architecture, and its weights are those that it names."""

import hashlib
import itertools

import numpy as np
import pytest
import torch
import toys

from samtl.baselines import vgg19
from samtl.baselines.vgg19 import Baseline, convolutions
from samtl.encoders.checkpoints import Official
from samtl.errors import InputError
from samtl.heads.io import load, save

ROWS = np.arange(24), np.arange(24, 36), np.arange(36, 60)


def test_the_architecture_is_that_of_the_published_weights():
    state = convolutions().state_dict()
    places = [0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34]
    assert list(state) == [f"{n}.{part}" for n in places for part in ("weight", "bias")]
    widths = [3, 64, 64, 128, 128, *[256] * 4, *[512] * 8]
    shapes = [tuple(state[f"{n}.weight"].shape) for n in places]
    assert shapes == [(b, a, 3, 3) for a, b in itertools.pairwise(widths)]
    assert sum(tensor.numel() for tensor in state.values()) == 20_024_384
    assert vgg19.OFFICIAL.file == f"vgg19-{vgg19.OFFICIAL.sha256}.pth"


@pytest.fixture
def narrow(monkeypatch):
    """Make the network narrow, which is quick; all else about it stays."""
    monkeypatch.setattr(vgg19, "BLOCKS", ((4,), (4, 4), (8,), (8,), (8,)))
    monkeypatch.setattr(vgg19, "N_FEATURES", 16)


def published_state(seed=0):
    """A state dict with torchvision's names, the linear layers' among them."""
    network = convolutions()
    random = torch.Generator().manual_seed(seed)
    state = {
        f"features.{key}": torch.randn(tensor.shape, generator=random) / 4
        for key, tensor in network.state_dict().items()
    }
    return {**state, "classifier.0.weight": torch.zeros(2, 2), "classifier.0.bias": torch.zeros(2)}


def make(**parameters):
    return Baseline(**{"image_size": 32, "device": "cpu", **parameters})


def test_official_weights_are_named(narrow, tmp_path, monkeypatch):
    torch.save(published_state(), tmp_path / "state.pth")
    digest = hashlib.sha256((tmp_path / "state.pth").read_bytes()).hexdigest()[:8]
    file = (tmp_path / "state.pth").rename(tmp_path / f"vgg19-{digest}.pth")
    official = Official(f"http://127.0.0.1:9/{file.name}", file.stat().st_size, digest)
    monkeypatch.setattr(vgg19, "OFFICIAL", official)
    monkeypatch.setenv("SAMTL_WEIGHTS", str(tmp_path))  # where it was downloaded to
    for checkpoint in ("official", str(file)):
        baseline = make(checkpoint=checkpoint).fit(toys.stripes(), *ROWS[:2])
        assert (baseline.weights, baseline.untrained) == (f"official {file.name}", False)


def test_weights_that_were_exchanged_are_noticed(narrow, tmp_path):
    dataset = toys.stripes()
    torch.save(published_state(), tmp_path / "own.pth")
    baseline = make(checkpoint=str(tmp_path / "own.pth")).fit(dataset, *ROWS[:2])
    save(baseline, tmp_path)
    expected, found = (next(b.predict_all(dataset, [5])) for b in (baseline, load(tmp_path)))
    np.testing.assert_array_equal(found["vgg19"], expected["vgg19"])
    torch.save(published_state(seed=1), tmp_path / "own.pth")
    with pytest.raises(InputError, match=r"fitted with the weights file own\.pth"):
        next(load(tmp_path).predict_all(dataset, [5]))
