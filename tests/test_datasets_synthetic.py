"""Generated images and roads: the same everywhere, with structure that colour alone does not give away."""

import hashlib
import pickle

import numpy as np
import pytest

from samtl.datasets import resolve
from samtl.errors import InputError
from samtl.images.codecs import decode

# Of the first image of each class, and of the first road with its mask. Stores recognise rows by their images' bytes,
# so a change here makes every store of generated images a stranger.
DIGESTS = {
    "Crops/1.bmp": "009f019719e82050",
    "Forest/1.bmp": "c963408fbb7928de",
    "Highway/1.bmp": "f3b855e81014a414",
    "Lake/1.bmp": "fc1e8daaa63d3dcc",
    "Orchard/1.bmp": "a02f3969510f2a03",
    "Pasture/1.bmp": "d19e28250cae4d77",
    "Residential/1.bmp": "c73e7f9f6571f6cf",
    "River/1.bmp": "025b38c4a0da77fc",
    "scene_1/1.bmp": "f7017b3bb1b54382",
}
NAMES = ["synthetic", "synthetic-roads"]


@pytest.mark.parametrize("sample_id", DIGESTS)
def test_images_are_the_same_on_every_machine(sample_id):
    dataset = resolve("synthetic-roads" if "scene" in sample_id else "synthetic")
    drawn = decode(dataset.read(sample_id)).tobytes()
    drawn += dataset.read_mask(sample_id).tobytes() if dataset.read_mask else b""
    assert hashlib.sha256(drawn).hexdigest()[:16] == DIGESTS[sample_id]


@pytest.mark.parametrize("name", NAMES)
def test_seeds_and_counts(name):
    zero, seven, more = (resolve(f"{name}:{a}") for a in ("2:0", "2:7", "5"))
    assert (zero.name, seven.name, more.name) == (name, f"{name}-seed7", name)
    assert zero.sample_ids == seven.sample_ids
    assert set(zero.sample_ids) < set(more.sample_ids)
    first = zero.sample_ids[0]
    assert zero.read(first) == more.read(first) == pickle.loads(pickle.dumps(zero)).read(first)
    assert zero.read(first) != seven.read(first)


@pytest.mark.parametrize("name", NAMES)
def test_other_arguments_roots_and_ids_are_refused(name, tmp_path):
    for text in ("", "0", "-1", "x", "1.5", "1:", ":1", "1:2:3", "1000001", "1:4294967296", "٣"):
        with pytest.raises(InputError, match=f"{name} takes N or N:SEED"):
            resolve(f"{name}:{text}")
    with pytest.raises(InputError, match="leave --root"):
        resolve(name, tmp_path)
    dataset = resolve(name)
    others = ("", "Sea/1.bmp", "River/0.bmp", "scene_0/1.bmp", "../River/1.bmp", "River/1.bmp\n")
    for sample_id in others:
        for read in filter(None, (dataset.read, dataset.read_mask)):
            with pytest.raises(InputError, match="is called"):
                read(sample_id)


def test_roads_have_one_tone_that_occurs_beside_them_too():
    """So that colour alone finds the roads, and much else; and the images need padding."""
    dataset = resolve("synthetic-roads:12")
    shapes, precision, recall = [], [], []
    for sample_id in dataset.sample_ids:
        pixels, mask = decode(dataset.read(sample_id)), dataset.read_mask(sample_id)
        assert mask.shape == pixels.shape[:2]
        assert (mask.dtype, max(mask.shape)) == (np.uint8, 256)
        assert min(mask.shape) >= 192
        assert 0.02 < mask.mean() < 0.4
        shapes.append(mask.shape)
        tone = np.median(pixels[mask == 1].astype(int), axis=0)
        alike = np.abs(pixels.astype(int) - tone).max(axis=2) < 16
        recall.append(alike[mask == 1].mean())
        precision.append(mask[alike].mean())
    assert {h > w for h, w in shapes if h != w} == {True, False}
    assert min(recall) > 0.7
    assert 0.4 < np.mean(precision) < 0.9
