"""The encoder that made something is had again from what is said of it, and no other passes for it."""

from pathlib import Path

import pytest
from stubs import StubEncoders, install

from samtl.embed.api import _fingerprint
from samtl.embed.reload import reload_encoder
from samtl.errors import InputError, MismatchError

OWNER = Path("a.zarr")


@pytest.fixture
def identity(monkeypatch):
    stubs = install(StubEncoders(), monkeypatch.setattr)
    return _fingerprint(stubs.Encoder("stub", "random:3", dtype="float32")).to_dict()


def reloaded(identity, weights="untrained (random:3)", **options):
    return reload_encoder(identity, weights, OWNER, "the one of the test", **options)


def test_untrained_weights_name_themselves(identity):
    assert reloaded(identity).weights.description == "untrained (random:3)"


def test_what_is_named_goes_before(identity):
    assert reloaded(identity, "file mine.pth", checkpoint="random:3").name == "stub"


def test_weights_of_a_file_must_be_named(identity):
    with pytest.raises(InputError, match=r"a\.zarr had weights of a file \(mine\.pth\)"):
        reloaded(identity, "file mine.pth")


def test_other_weights_are_refused(identity):
    with pytest.raises(MismatchError, match=r"not the one of the test(.|\n)*weights_sha256"):
        reloaded(identity, checkpoint="random:4")


def test_what_is_official_is_loaded_as_such(identity, monkeypatch):
    asked = []
    stubs = install(StubEncoders(), monkeypatch.setattr)
    make = stubs.Encoder
    monkeypatch.setattr(
        stubs, "Encoder", lambda name, source, *rest: asked.append(source) or make(name, source)
    )
    with pytest.raises(MismatchError):
        reloaded(identity, "official sam_vit_b_01ec64.pth")
    assert asked == ["official"]
