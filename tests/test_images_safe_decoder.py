"""Decoding in worker processes: the same result, and a file that ends its worker costs itself only."""

import os

import numpy as np
import pytest
from test_images_codecs import SEEDS, encoded, png
from workers import prepare as ended

from samtl.errors import ResourceError
from samtl.images import safe_decoder
from samtl.images.codecs import BadImage, prepare
from samtl.images.safe_decoder import SafeDecoder

pytestmark = pytest.mark.slow
BOMB = encoded(np.zeros((9000, 9900, 3), np.uint8), "PNG")


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
    for data, code in (
        (b"", "empty"),
        (SEEDS["png"][:99], "truncated"),
        (png(2, 2, 16, 2), "unsupported_mode"),
    ):
        with pytest.raises(BadImage) as caught:
            decoder.prepare(data, 16)
        assert caught.value.code == code


@pytest.mark.parametrize("data", [b"die", b"sleep", b"spin"])
def test_an_image_that_ends_its_worker_costs_itself_only(decoder, monkeypatch, tmp_path, data):
    monkeypatch.setenv("MARK", str(tmp_path / "mark"))
    monkeypatch.setattr(safe_decoder, "_prepare", ended)
    monkeypatch.setattr(safe_decoder, "_PATIENCE", 8)
    with pytest.raises(BadImage) as caught:
        decoder.prepare(data, 16)
    assert caught.value.code == "undecodable"
    assert decoder.prepare(b"fine", 16).size == (1, 1)


def test_a_worker_that_dies_once_is_replaced(decoder, monkeypatch, tmp_path):
    monkeypatch.setenv("MARK", str(tmp_path / "mark"))
    monkeypatch.setattr(safe_decoder, "_prepare", ended)
    assert decoder.prepare(b"once", 16).size == (1, 1)


def test_memory_is_limited():
    decoder = SafeDecoder(memory=2**26)
    with pytest.raises(BadImage) as caught:
        decoder.prepare(BOMB, 64)
    decoder.close()
    assert caught.value.code in ("too_large", "undecodable")


def test_a_worker_that_cannot_start_is_no_fault_of_the_image(decoder, monkeypatch):
    monkeypatch.setattr(safe_decoder, "_start", os._exit)
    with pytest.raises(ResourceError):
        decoder.prepare(SEEDS["png"], 16)
