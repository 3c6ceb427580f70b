"""What networks beside SAM's need of weights: part of a hash, part of a file, variance that survives ReLUs."""

import numpy as np
import pytest
import torch
from torch import nn

from samtl.encoders.checkpoints import (
    Official,
    Origin,
    load_weights,
    tensors_digest,
)
from samtl.errors import InputError

HERE = Origin("http://127.0.0.1:9/", "body.", "Use another file")


def model():
    return nn.Linear(3, 2)


def test_a_hash_may_be_known_in_part():
    part = Official("a.pth", 1, "abcdef01")
    assert part.is_this("abcdef01" + "2" * 56)
    assert not part.is_this("abcdef11" + "2" * 56)
    assert part.told_sha256 == "abcdef01..."
    whole = Official("a.pth", 1, "0" * 64)
    assert whole.is_this("0" * 64)
    assert whole.told_sha256 == "0" * 64


@pytest.mark.parametrize("prefix", ["", "body."])
def test_a_file_with_the_network_or_with_more(tmp_path, prefix):
    donor, made = model(), model()
    state = {prefix + key: tensor for key, tensor in donor.state_dict().items()}
    if prefix:
        state["head.weight"] = torch.zeros(1)
    torch.save(state, tmp_path / "a.pth")
    weights = load_weights(made, str(tmp_path / "a.pth"), None, "linear", HERE)
    assert (weights.description, weights.untrained) == ("file a.pth", False)
    assert weights.sha256 == tensors_digest(donor) == tensors_digest(made)


def test_a_file_of_another_network_is_refused_with_what_to_do(tmp_path):
    torch.save(nn.Linear(4, 2).state_dict(), tmp_path / "a.pth")
    with pytest.raises(
        InputError,
        match=r"not of the architecture linear: 1 have another shape .*Use another file$",
    ):
        load_weights(model(), str(tmp_path / "a.pth"), None, "linear", HERE)


@pytest.mark.parametrize("gain", [1, 2])
def test_the_gain_is_that_of_the_variance(gain):
    made = nn.Linear(500, 2000, bias=False)
    origin = Origin("", "body.", "", gain)
    weights = load_weights(made, "random:7", None, "linear", origin)
    assert weights.untrained
    inputs = np.random.default_rng(0).normal(size=500).astype(np.float32)
    with torch.no_grad():
        outputs = made(torch.from_numpy(inputs)).numpy()
    assert outputs.var() == pytest.approx(gain * (inputs**2).mean(), rel=0.1)
