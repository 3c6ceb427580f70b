"""The contract of every encoder: what its spec declares is what comes, for images of any shape and in any unit."""

import json

import numpy as np
import pytest

from samtl import registry
from samtl.encoders.base import TIERS, Bands
from samtl.errors import InputError
from samtl.images.bands import BYTES, REFLECTANCE, RGB, UNITS

# Names with a colon stand for many, which have files of their own.
NAMES = [name for name in registry.names("encoders") if ":" not in name]
SHAPES = ((64, 64), (64, 40), (20, 64), (7, 64))


def spec_of(name, image_size=64, bands=None, units=REFLECTANCE):
    describe = registry.load("encoders", name).spec
    own = describe(name).bands or RGB  # of what takes any
    size = image_size and image_size - image_size % describe(name).patch
    return describe(name, size, Bands(tuple(bands or own), units))


def smallest():
    """Name the smallest encoder of each module."""
    names = sorted(NAMES, key=lambda name: len(spec_of(name).features), reverse=True)
    return sorted({registry.load("encoders", name).__name__: name for name in names}.values())


def images_for(spec, seed=0):
    """Draw images of several shapes, whose longest side is the encoder's."""
    random, size = np.random.default_rng(seed), spec.image_size
    shapes = [(h * size // 64, w * size // 64, len(spec.bands)) for h, w in SHAPES]
    return [random.uniform(0, 2750, shape).astype(np.float32) for shape in shapes]


def load(name, spec, seed=0):
    module = registry.load("encoders", name)
    source = f"random:{seed}"
    if hasattr(module, "fit"):  # its weights come from images
        source = module.fit(iter(images_for(spec, seed)), spec.default_checkpoint, "drawn")
    bands = Bands(spec.bands, spec.units)
    return module.Encoder(name, source, "cpu", "float32", spec.image_size, bands=bands)


@pytest.fixture(scope="module", params=smallest())
def encoder(request):
    return load(request.param, spec_of(request.param))


@pytest.mark.parametrize("name", NAMES)
def test_a_spec_is_whole_and_decides_the_fingerprint(name):
    spec = spec_of(name)
    assert (spec.name, spec.units, *spec_of(name, None).grid) >= (name, REFLECTANCE, 1, 1)
    assert spec.image_size % spec.patch == 0
    assert len(set(spec.features)) == len(spec.features) == spec.shape("pooled")[0]
    assert spec.shape("dense") == (spec.channels, *spec.grid)
    assert set(spec.stored_dtypes) == set(TIERS)
    made = [spec.fingerprint("0", "float32"), spec.fingerprint("1", "float32")]
    others = [spec_of(name, 128), *(spec_of(name, units=units) for units in UNITS)]
    others += [spec_of(name, bands=spec.bands[::-1])]
    made += [other.fingerprint("0", "float32") for other in others if other != spec]
    texts = {json.dumps(each, sort_keys=True, allow_nan=False) for each in made}
    assert len(texts) == len(made) == 6
    assert json.loads(json.dumps(made[0])) == made[0]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [7, -16, 1_000_000])
def test_sizes_are_whole_patches(name, size):
    with pytest.raises(InputError, match="--image-size"):
        registry.load("encoders", name).spec(name, size)


def test_outputs_are_as_declared(encoder):
    spec, images = encoder.spec, images_for(encoder.spec)
    whole = encoder.encode(images)
    for tier in TIERS:
        assert whole[tier].shape == (len(images), *spec.shape(tier))
        assert whole[tier].dtype == spec.stored_dtypes[tier]
        assert np.isfinite(whole[tier]).all()
        np.testing.assert_array_equal(encoder.encode(images, (tier,))[tier], whole[tier])
    for i, image in enumerate(images):
        alone = encoder.encode([image])["pooled"][0]
        np.testing.assert_allclose(alone, whole["pooled"][i], rtol=1e-3, atol=1e-4)
    assert len(np.unique(whole["pooled"], axis=0)) == len(images)
    assert 1 <= encoder.best_batch(3) <= 3


def test_padding_is_in_no_mean(encoder):
    spec, images = encoder.spec, images_for(encoder.spec)
    made = encoder.encode(images)
    for i, image in enumerate(images):
        rows, columns = (-(-side // spec.patch) for side in image.shape[:2])
        tokens = made["dense"][i, :, :rows, :columns].astype(np.float64)
        mean = made["pooled"][i][: spec.channels]
        np.testing.assert_allclose(mean, tokens.mean(axis=(1, 2)), rtol=1e-3, atol=1e-3)


def test_weights_are_named_and_told(encoder):
    spec, images = encoder.spec, images_for(encoder.spec)
    again, other = load(spec.name, spec), load(spec.name, spec, 1)
    assert again.fingerprint() == encoder.fingerprint() != other.fingerprint()
    assert encoder.fingerprint()["compute_dtype"] == encoder.compute_dtype == "float32"
    first, second, third = (each.encode(images)["pooled"] for each in (encoder, again, other))
    np.testing.assert_array_equal(first, second)
    assert not np.allclose(first, third)
    assert encoder.weights.untrained or hasattr(registry.load("encoders", spec.name), "fit")


def test_units_are_converted(encoder):
    """Pictures and reflectances of one scene look alike to an encoder that has units of its own."""
    spec = encoder.spec
    if hasattr(registry.load("encoders", spec.name), "fit"):
        pytest.skip(f"{spec.name} has no units of its own")
    found = load(spec.name, spec_of(spec.name, units=BYTES)).encode(
        [(image * (255 / 2750)).astype(np.float32) for image in images_for(spec)]
    )
    expected = encoder.encode(images_for(spec))["pooled"]
    np.testing.assert_allclose(found["pooled"], expected, rtol=0.01, atol=0.01)
