"""Decoding in worker processes: the same result, and a file that ends its worker costs itself only."""

import os

import crashing
import numpy as np
import pytest
from test_images_codecs import SEEDS, encoded, png

from samtl.errors import ResourceError
from samtl.images import safe_decoder
from samtl.images.codecs import BadImage, prepare
from samtl.images.safe_decoder import SafeDecoder

pytestmark = pytest.mark.slow


@pytest.fixture
def decoder():
    made = SafeDecoder(seconds=1)
    yield made
    made.close()


def test_results_and_refusals_are_those_of_this_process(decoder):
    for data in SEEDS.values():
        ours, theirs = prepare(data, 16), decoder.prepare(data, 16)
        np.testing.assert_array_equal(ours.pixels, theirs.pixels)
        np.testing.assert_array_equal(ours.statistics, theirs.statistics)
        assert ours.size == theirs.size
    refused = {b"": "empty", SEEDS["png"][:99]: "truncated", png(2, 2, 16, 2): "unsupported_mode"}
    for data, code in refused.items():
        with pytest.raises(BadImage) as caught:
            decoder.prepare(data, 16)
        assert caught.value.code == code


@pytest.mark.parametrize("data", [b"die", b"sleep", b"spin", b"once"])
def test_an_image_that_ends_its_worker_costs_itself_only(decoder, monkeypatch, tmp_path, data):
    """A worker that dies once is replaced, and the image is decoded."""
    monkeypatch.setenv("MARK", str(tmp_path / "mark"))
    monkeypatch.setattr(safe_decoder, "_prepare", crashing.prepare)
    monkeypatch.setattr(safe_decoder, "_PATIENCE", 8)
    if data != b"once":
        with pytest.raises(BadImage) as caught:
            decoder.prepare(data, 16)
        assert caught.value.code == "undecodable"
    assert decoder.prepare(b"once", 16).size == (1, 1)


def test_memory_is_limited(decoder):
    decoder.memory = 2**26
    with pytest.raises(BadImage) as caught:
        decoder.prepare(encoded(np.zeros((9000, 9900, 3), np.uint8)), 64)
    assert caught.value.code in ("too_large", "undecodable")


def test_a_worker_that_cannot_start_is_no_fault_of_the_image(decoder, monkeypatch):
    monkeypatch.setattr(safe_decoder, "_start", os._exit)
    with pytest.raises(ResourceError):
        decoder.prepare(SEEDS["png"], 16)
