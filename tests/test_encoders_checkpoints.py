"""Weights come from where they are said to come from, and nothing in a file is ever run."""

import hashlib
import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from samtl.encoders import sam
from samtl.encoders.checkpoints import Official, load_weights, tensors_digest
from samtl.errors import InputError, ResourceError


@pytest.fixture
def model():
    return sam.build("tiny")


@pytest.fixture(scope="module")
def donor():
    return sam.load("tiny", "random:3")[0]


def test_a_seed_names_the_same_bits_everywhere(model, donor):
    weights = load_weights(model, "random:0", None, "tiny")
    assert (weights.untrained, weights.description) == (True, "untrained (random:0)")
    assert weights.sha256 == "099df50a906c83a11f1df93f3c7da4332214737ef7668798da4c63bcaa87cc9c"
    assert weights.sha256 != tensors_digest(donor)
    for name, parameter in model.named_parameters():
        assert parameter.std() > 0, name
        assert "rel_pos" not in name or parameter.abs().max() > 0.01


@pytest.mark.parametrize("gain", [1, 2])
def test_the_gain_is_that_of_the_variance(gain):
    layer = nn.Linear(500, 2000, bias=False)
    load_weights(layer, "random:7", None, "linear", gain=gain)
    inputs = np.random.default_rng(0).normal(size=500).astype(np.float32)
    with torch.no_grad():
        outputs = layer(torch.from_numpy(inputs)).numpy()
    assert outputs.var() == pytest.approx(gain * (inputs**2).mean(), rel=0.1)


@pytest.mark.parametrize("kind", ["encoder alone", "whole SAM", "safetensors", "half precision"])
def test_files_of_the_architecture(donor, tmp_path, kind):
    state, path = donor.state_dict(), tmp_path / "w.pth"
    if kind == "whole SAM":
        state = {f"image_encoder.{k}": t for k, t in state.items()}
        state["mask_decoder.iou_token.weight"] = torch.zeros(1, 256)
    if kind == "half precision":
        state = {k: t.half() for k, t in state.items()}
    if kind == "safetensors":
        path = path.with_suffix(".safetensors")
        save_file(state, path)
    else:
        torch.save(state, path)
    model, weights = sam.load("tiny", str(path))
    assert (weights.untrained, weights.description) == (False, f"file {path.name}")
    assert weights.sha256 == tensors_digest(model)
    assert (weights.sha256 == tensors_digest(donor)) is (kind != "half precision")
    torch.testing.assert_close(model.state_dict(), donor.state_dict(), rtol=1e-3, atol=1e-4)


class Exploit:
    def __reduce__(self):
        return os.system, ("touch ran",)


def saved(content):
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("source", "content", "said"),
    [
        *((source, None, source) for source in ("random:", "random:-1", "random:1.5", "nowhere")),
        *(("a.pth", content, r"a\.pth") for content in (b"", b"no checkpoint", b"PK\x03\x04 cut")),
        ("official", None, "tiny has no official checkpoint"),
        ("a.pth", saved([1, 2]), "state dict"),
        ("a.pth", saved({"pos_embed": Exploit()}), "was not run"),
        ("a.pth", pickle.dumps({"pos_embed": Exploit()}), "was not run"),
        ("a.pth", saved({"pos_embed": torch.zeros(9)}), "architecture tiny: .*Use another"),
    ],
)
def test_what_holds_no_weights_is_refused_and_never_run(model, monkeypatch, source, content, said):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    if content is not None:
        Path(source).write_bytes(content)
    before = tensors_digest(model)
    with pytest.raises(InputError, match=said):
        load_weights(model, source, None, "tiny", remedy="Use another file")
    assert tensors_digest(model) == before
    assert not Path("ran").exists()


def test_official_weights_are_known_by_digits_of_their_hash(model, donor, tmp_path, monkeypatch):
    monkeypatch.setenv("SAMTL_WEIGHTS", str(tmp_path))  # where they were downloaded to
    path = tmp_path / "tiny_official.pth"
    torch.save(donor.state_dict(), path)
    digits = hashlib.sha256(path.read_bytes()).hexdigest()[:8]  # of some no more are published
    official = Official(f"http://127.0.0.1:9/{path.name}", 1, digits)
    for source in ("official", str(path)):
        weights = load_weights(model, source, official, "tiny")
        assert (weights.untrained, weights.description) == (False, f"official {path.name}")
        assert weights.sha256 == tensors_digest(donor)
    path.write_bytes(b"damaged")
    with pytest.raises(InputError, match=digits):
        load_weights(model, str(path), official, "tiny")
    with pytest.raises(ResourceError, match=path.name):  # it would be downloaded again
        load_weights(model, "official", official, "tiny")
