"""Both engines are one function, block by block."""

import copy

import pytest
import torch

from samtl.encoders import sam
from samtl.encoders._engines import ENGINES, check_engine, engine
from samtl.encoders._weights import load_weights
from samtl.errors import InputError, UnknownName


@pytest.fixture(scope="module")
def model():
    plain = sam.build("tiny", 256).eval().requires_grad_(False)
    load_weights(plain, "random:5", None, "tiny")
    return plain


def run(name, model, x):
    seen = []
    with torch.inference_mode():
        return engine(name, copy.deepcopy(model), (2, 5))(x, seen.append), seen


@pytest.mark.parametrize("batch", [1, 3])
def test_engines_agree_on_the_output_and_at_the_taps(model, batch):
    x = torch.randn(batch, 3, 256, 256, generator=torch.Generator().manual_seed(1))
    out, taps = run("fast", model, x)
    expected, expected_taps = run("reference", model, x)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    assert len(taps) == len(expected_taps) == 2
    for ours, theirs in zip(taps, expected_taps, strict=True):
        assert ours.shape == (batch, 16, 16, 192)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_the_reference_is_the_plain_module(model):
    x = torch.randn(1, 3, 256, 256)
    out, _ = run("reference", model, x)
    with torch.inference_mode():
        torch.testing.assert_close(out, model(x), rtol=0, atol=0)


def test_names():
    assert set(ENGINES) == {"fast", "compiled", "reference"}
    with pytest.raises(UnknownName, match="fast"):
        check_engine("fsat")
    with pytest.raises(InputError, match="engine"):
        sam.Encoder("tiny", device="cpu", engine="other")


def test_an_encoder_gives_the_same_by_both():
    """Two images at a time, which on a CPU are encoded in threads."""
    images = [torch.randint(0, 256, (128, 96, 3), dtype=torch.uint8).numpy() for _ in range(2)]
    fast, reference = (
        sam.Encoder("tiny", "random:5", "cpu", "float32", 128, name).encode(images)
        for name in ("fast", "reference")
    )
    for name, expected in reference.items():
        torch.testing.assert_close(
            torch.from_numpy(fast[name]), torch.from_numpy(expected), rtol=1e-2, atol=2e-3
        )
