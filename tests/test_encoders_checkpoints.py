"""Weights come from where they are said to come from, and nothing in a file is ever run."""

import hashlib
import io
import json
import os
import pickle
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from samtl.encoders import sam
from samtl.encoders.weights.checkpoints import Official, load_weights, tensors_digest
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


def in_sam(state, prefix="image_encoder."):
    return {f"{prefix}{k}": t for k, t in state.items()} | {"mask_decoder.iou_token.weight": ONES}


def hugging_face(state):
    names = {
        "blocks.": "layers.",
        ".norm": ".layer_norm",
        "patch_embed.proj": "patch_embed.projection",
    }
    names |= {"neck.0": "neck.conv1", "neck.1": "neck.layer_norm1"}
    names |= {"neck.2": "neck.conv2", "neck.3": "neck.layer_norm2"}
    for ours, theirs in names.items():
        state = {k.replace(ours, theirs): t for k, t in state.items()}
    return in_sam(state, "vision_encoder.")


def sharded(state, folder):
    parts = {f"model-{i}.safetensors": dict(list(state.items())[i::2]) for i in (0, 1)}
    for name, tensors in parts.items():
        save_file(tensors, folder / name)
    places = {key: name for name, tensors in parts.items() for key in tensors}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return index


ONES = torch.ones(1, 256)
OPTIMIZER = {"state": {}, "param_groups": [{"lr": 1e-4}]}
CONTAINERS = {
    "encoder alone": lambda state: state,
    "whole SAM": in_sam,
    "half precision": lambda state: {k: t.half() for k, t in state.items()},
    "ordered": lambda state: OrderedDict(in_sam(state)),
    "SAM-HQ": lambda state: in_sam(state) | {"mask_decoder.hf_token.weight": ONES},
    "MedSAM's trainer": lambda state: {"model": in_sam(state), "optimizer": OPTIMIZER, "epoch": 9},
    "micro-sam's trainer": lambda state: {
        "model_state": in_sam(state, "sam.image_encoder."), "optimizer_state": {"lr": 1.0}, "best_metric": 0.3,
    },
    "Lightning": lambda state: {
        "state_dict": in_sam(state, "model.image_encoder."), "epoch": 3, "pytorch-lightning_version": "2.2",
    },
    "data parallel": lambda state: in_sam(state, "module.image_encoder."),
    "arguments beside it": lambda state: {"model": in_sam(state), "args": Namespace(lr=1)},
    "Hugging Face": hugging_face,
}  # fmt: skip


@pytest.mark.parametrize("kind", CONTAINERS)
def test_files_of_the_architecture(donor, tmp_path, kind):
    path = tmp_path / "w.pth"
    torch.save(CONTAINERS[kind](donor.state_dict()), path)
    model, weights = sam.load("tiny", str(path))
    assert (weights.untrained, weights.description) == (False, f"file {path.name}")
    assert weights.sha256 == tensors_digest(model)
    assert (weights.sha256 == tensors_digest(donor)) is (kind != "half precision")
    torch.testing.assert_close(model.state_dict(), donor.state_dict(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["one", "several", "a folder", "a folder of several", "old names"])
def test_files_of_the_hub(donor, tmp_path, kind):
    state = {k: t.contiguous() for k, t in hugging_face(donor.state_dict()).items()}
    path = tmp_path / "model.safetensors"
    if "several" in kind:
        path = sharded(state, tmp_path)
    elif kind == "old names":
        torch.save(state, tmp_path / "pytorch_model.bin")
    else:
        save_file(state, path)
    _, weights = sam.load("tiny", str(path if kind in ("one", "several") else tmp_path))
    assert weights.sha256 == tensors_digest(donor)


def test_weights_of_another_image_size(tmp_path):
    """They are what a network of that size has, and are resampled from there."""
    small, path = sam.load("tiny", "random:3", 256)[0], tmp_path / "w.pth"
    torch.save({"model": in_sam(small.state_dict())}, path)
    assert sam.load("tiny", str(path), 256)[1].sha256 == tensors_digest(small)
    model, weights = sam.load("tiny", str(path), 512)
    assert weights.sha256 == tensors_digest(small)
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, 512, 512)).shape == (1, 256, 32, 32)


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
        ("a.pth", saved({"blocks.0.attn.qkv.linear_a_q.weight": ONES}), "LoRA"),
        ("a.pth", saved({"model": {"image_encoder.trunk.pos_embed": ONES}}), "SAM 2"),
        ("a.pth", saved({"image_encoder.layers.0.norm1.weight": ONES}), "MobileSAM"),
        ("a.pth", saved({"epoch": 3, "model": {}}), "state dict"),
        ("a.pth", saved(sam.build("tiny")), "was not run"),  # a whole module
        ("a.pth", b"\n<!DOCTYPE html>", "web page"),
        ("a.pth", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        ("a.json", b'{"weight_map": {"pos_embed": "../nowhere.safetensors"}}', "cannot be read"),
        (".", None, "folder without"),
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


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_weights_of_a_failed_training_are_refused(donor, value):
    state = {k: t.clone() for k, t in donor.state_dict().items()}
    for tensor in state.values() if value == 0 else [state["blocks.3.mlp.lin1.weight"]]:
        tensor.fill_(value)
    torch.save(state, "w.pth")
    with pytest.raises(InputError):
        sam.load("tiny", "w.pth")


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
