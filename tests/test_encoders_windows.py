"""Windows hold what `segment_anything` computes after it padded with zeros, and come together again."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from samtl.encoders.modeling import modeling
from samtl.encoders.windows import merge, split

HEADS, SIZE = 2, 3
WIDTH = HEADS * SIZE

sides = st.integers(1, 9)


def made(batch, height, width):
    torch.manual_seed(0)
    return torch.randn(batch, height, width, WIDTH), torch.nn.Linear(WIDTH, 3 * WIDTH)


@torch.no_grad()
@settings(deadline=None, max_examples=60)
@given(st.integers(1, 3), sides, sides, st.integers(1, 5))
def test_windows_are_those_of_zero_padded_tokens(batch, height, width, window):
    x, qkv = made(batch, height, width)
    windows, _ = modeling().image_encoder.window_partition(x, window)
    expected = qkv(windows).reshape(len(windows), window**2, 3, HEADS, SIZE).permute(2, 0, 3, 1, 4)
    ours = split(qkv(x), qkv.bias, HEADS, window)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 3), sides, sides, st.integers(1, 5))
def test_merging_is_segment_anythings(batch, height, width, window):
    down, across = -(-height // window), -(-width // window)
    windows = torch.randn(batch * down * across, HEADS, window**2, SIZE)
    padded = (down * window, across * window)
    tokens = windows.transpose(1, 2).reshape(-1, window, window, WIDTH)
    expected = modeling().image_encoder.window_unpartition(tokens, window, padded, (height, width))
    torch.testing.assert_close(
        merge(windows, batch, height, width, window), expected, rtol=0, atol=0
    )


@pytest.mark.parametrize("side", [4, 6, 7])
def test_one_window_is_no_copy(side):
    qkv = torch.randn(2, side, side, 3 * WIDTH)
    ours = split(qkv, torch.zeros(3 * WIDTH), HEADS, side)
    assert ours.shape == (3, 2, HEADS, side**2, SIZE)
    assert ours.data_ptr() == qkv.data_ptr()
