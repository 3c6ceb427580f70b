"""Images come in order, ahead of whoever takes them but not without bound, and what is wrong with one is told."""

import errno

import numpy as np
import pytest
import stubs

from samtl.datasets import Dataset
from samtl.embed import decode as decoding
from samtl.errors import ResourceError
from samtl.images.codecs import decode, statistics


@pytest.mark.parametrize("device", ["cpu", "cuda:1"])
def test_each_image_is_resized_and_measured(device):
    dataset = stubs.toy_dataset(7, bad={4: "truncated", 5: "unreadable"})
    rows = [6, 0, 5, 1, 4, 2]
    found = list(decoding.decoded_ahead(dataset, iter(rows), 64, 2, device))
    assert [item.row for item in found] == rows
    assert [item.code for item in found] == ["", "", "unreadable", "", "truncated", ""]
    assert [item.unread for item in found] == [False, False, True, False, False, False]
    for item in (found[0], found[1], found[3], found[5]):
        shape = stubs.SHAPES[item.row % 3]
        assert item.original_size == shape
        assert max(item.pixels.shape[:2]) == 64
        pixels = np.asarray(decode(dataset.read(dataset.sample_ids[item.row])))
        np.testing.assert_array_equal(item.image_stats, statistics(pixels))


def test_a_drive_that_gives_out_is_no_property_of_an_image():
    def read(sample_id):
        raise OSError(errno.EIO, "Input/output error")

    dataset = Dataset("toy", ("a", "b"), ("a/0.png",), (0,), read)
    with pytest.raises(ResourceError, match=r"reading a/0.png failed: Input/output error"):
        decoding.decode_row(dataset, 0, 64)
