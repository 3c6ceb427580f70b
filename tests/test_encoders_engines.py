"""Both engines are one function, block by block."""

import copy
import dataclasses
import os

import pytest
import torch

from samtl.encoders import sam
from samtl.encoders.engines import ENGINES, check_engine, engine
from samtl.encoders.sources import load_weights
from samtl.errors import InputError, UnknownName

pytestmark = pytest.mark.usefixtures("one_thread")


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


def shallow(name, size):
    """One of SAM's three with two blocks, in windows and without; none of its parameters is zero."""
    variant = dataclasses.replace(sam.VARIANTS[name], depth=2, taps=(1,))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sam.VARIANTS, name, variant)
        plain = sam.build(name, size).eval().requires_grad_(False)
    load_weights(plain, "random:3", None, name)
    assert all(parameter.abs().max() > 0 for parameter in plain.parameters())
    return plain


def padded(batch, size):
    """Images that do not fill the square."""
    x = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(size))
    x[:, :, size - size // 3 :] = 0
    x[-1, :, :, size // 2 :] = 0
    return x


@pytest.mark.parametrize(
    ("size", "batch"), [(64, 3), (256, 2), pytest.param(1024, 1, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("name", ["sam_vit_b", "sam_vit_l", "sam_vit_h"])
@torch.inference_mode()
def test_every_size_of_sam_in_every_dtype(name, size, batch):
    """In float32 the same; in 16 bits no further from that than `segment_anything` itself is."""
    if size == 1024 and name != "sam_vit_b" and not os.environ.get("SAMTL_TORTURE"):
        pytest.skip("make torture tries the larger ones at this size, too")
    plain, x = shallow(name, size), padded(batch, size)
    exact = plain(x)

    def error(out):
        return float((out.double() - exact).norm() / exact.norm())

    assert error(engine("fast", copy.deepcopy(plain), (1,))(x, lambda tokens: None)) < 1e-5
    low_dtypes = [torch.bfloat16, torch.float16]  # the second by the second on a CPU
    for dtype in low_dtypes if size < 1024 else low_dtypes[:1]:
        low = copy.deepcopy(plain).to(dtype)
        own = error(low(x.to(dtype)))
        assert own > 1e-4
        ours = engine("fast", low, (1,))(x.to(dtype), lambda tokens: None)
        assert ours.dtype == dtype
        assert error(ours) < 1.05 * own


@pytest.mark.parametrize("size", [512, pytest.param(1024, marks=pytest.mark.slow)])
@torch.inference_mode()
def test_tiny_at_the_larger_sizes(size):
    plain = sam.load("tiny", "random:5", size)[0]
    x = padded(1, size)
    exact = plain(x)
    for dtype, bound in ((torch.float32, 1e-5), (torch.bfloat16, None)):
        low = copy.deepcopy(plain).to(dtype)
        own = (low(x.to(dtype)).float() - exact).norm()
        ours = engine("fast", low, (2, 5))(x.to(dtype), lambda tokens: None).float()
        off = (ours - exact).norm()
        assert off < (1.05 * own if bound is None else bound * exact.norm())
