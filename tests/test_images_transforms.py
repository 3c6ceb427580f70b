"""The same pixels as SAM's own transform, and which tokens they reach."""

import importlib.util
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from samtl.errors import InputError
from samtl.images.transforms import (
    IGNORE,
    check_image_size,
    grid_cells,
    mask_square,
    resize_longest_side,
    resized_shape,
)


def test_image_sizes_are_multiples_of_a_patch_up_to_2048():
    for size in (16, 256, 1024, 2048):
        check_image_size(size)
    for size in (0, -16, 8, 100, 1000, 2064):
        with pytest.raises(InputError, match=f"got {size}"):
            check_image_size(size)


@pytest.mark.parametrize(("side", "cells"), [(1, 1), (15, 15), (16, 16), (17, 16), (64, 16)])
def test_a_grid_has_sixteen_cells_or_its_tokens(side, cells):
    assert grid_cells(side) == cells


@pytest.fixture(scope="module")
def sam_transform():
    """segment_anything's own ResizeLongestSide, on the two torchvision functions that it calls.

    For a Pillow image, torchvision's `resize` is `Image.resize`, (width, height) swapped, bilinear.
    """
    package = importlib.util.find_spec("segment_anything").submodule_search_locations[0]
    functional, names = types.ModuleType("functional"), {}
    functional.to_pil_image = Image.fromarray
    functional.resize = lambda image, size: image.resize(size[::-1], Image.Resampling.BILINEAR)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional"):
            patch.setitem(sys.modules, name, functional)
        exec(Path(package, "utils", "transforms.py").read_text(), names)
    return names["ResizeLongestSide"](1024)


@pytest.mark.parametrize(
    ("height", "width"),
    [(64, 64), (1024, 1024), (600, 800), (911, 37), (2000, 1500), (1, 1), (1025, 7)],
)
def test_pixels_are_those_of_sam(sam_transform, height, width):
    pixels = np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)
    theirs = sam_transform.apply_image(pixels)
    ours = resize_longest_side(pixels)
    assert ours.dtype == np.uint8
    assert ours.shape == theirs.shape
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() == 0


@given(st.integers(1, 5000), st.integers(1, 5000))
@settings(deadline=None)
def test_size_is_that_of_sam(sam_transform, height, width):
    theirs = sam_transform.get_preprocess_shape(height, width, 1024)
    assert resized_shape(height, width) == tuple(max(1, side) for side in theirs)


masks = st.tuples(st.integers(1, 90), st.integers(1, 90), st.integers(0, 2**32 - 1)).map(
    lambda drawn: np.random.default_rng(drawn[2]).integers(0, 6, drawn[:2], np.uint8)
)


@given(masks, st.sampled_from([16, 64, 80]))
def test_a_mask_fills_its_part_of_the_square_and_no_more(mask, size):
    square = mask_square(mask, size)
    assert square.shape == (size, size)
    assert square.dtype == np.uint8
    height, width = resized_shape(*mask.shape, size)
    inside = np.zeros((size, size), bool)
    inside[:height, :width] = True
    np.testing.assert_array_equal(square == IGNORE, ~inside)
    assert set(np.unique(square[inside])) <= set(np.unique(mask))
