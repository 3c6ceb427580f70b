"""Weights come from where they are said to come from, and nothing in a file is ever run."""

import functools
import hashlib
import http.server
import io
import os
import pickle
import threading

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
    for key, tensor in donor.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], tensor, rtol=1e-3, atol=1e-4)


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
def test_what_holds_no_weights_is_refused_and_never_run(
    model, tmp_path, monkeypatch, source, content, said
):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    if content is not None:
        (tmp_path / source).write_bytes(content)
    before = tensors_digest(model)
    with pytest.raises(InputError, match=said):
        load_weights(model, source, None, "tiny", remedy="Use another file")
    assert tensors_digest(model) == before
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def published(donor, tmp_path, monkeypatch):
    """An official checkpoint on a local server; gives (Official, served folder, folder of downloads)."""
    folder, kept = tmp_path / "served", tmp_path / "weights"
    folder.mkdir()
    torch.save(donor.state_dict(), folder / "tiny_official.pth")
    content = (folder / "tiny_official.pth").read_bytes()

    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("SAMTL_WEIGHTS", str(kept))
        url = f"http://127.0.0.1:{server.server_port}/tiny_official.pth"
        # Of some checkpoints only the first digits of the sha256 are published.
        yield Official(url, len(content), hashlib.sha256(content).hexdigest()[:8]), folder, kept
        server.shutdown()


def test_a_download_is_verified_and_kept(model, donor, published):
    official, folder, kept = published
    kept.mkdir()
    (kept / official.file).write_bytes(b"a damaged copy is replaced")
    weights = load_weights(model, "official", official, "tiny")
    assert (weights.untrained, weights.description) == (False, "official tiny_official.pth")
    assert weights.sha256 == tensors_digest(donor)
    (folder / official.file).unlink()
    assert load_weights(model, "official", official, "tiny") == weights


def test_a_download_of_something_else_is_refused(model, published):
    official, folder, kept = published
    (folder / official.file).write_bytes(b"something else")
    with pytest.raises(InputError, match=official.sha256):
        load_weights(model, "official", official, "tiny")
    assert not list(kept.glob("*"))


def test_no_server(model, monkeypatch, tmp_path):
    monkeypatch.setenv("SAMTL_WEIGHTS", str(tmp_path / "weights"))
    official = Official("http://127.0.0.1:9/gone.pth", 1, "0" * 64)
    with pytest.raises(ResourceError, match=r"gone\.pth"):
        load_weights(model, "official", official, "tiny")


def test_a_file_that_claims_to_be_official(model, donor, published, tmp_path):
    official, folder, _ = published
    weights = load_weights(model, str(folder / official.file), official, "tiny")
    assert weights.description == f"official {official.file}"
    fake = tmp_path / official.file
    torch.save({k: t + 1 for k, t in donor.state_dict().items()}, fake)
    with pytest.raises(InputError, match=official.sha256):
        load_weights(model, str(fake), official, "tiny")
