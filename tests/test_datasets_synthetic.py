"""Generated images and roads: the same everywhere."""

import hashlib
import pickle

import numpy as np
import pytest

from samtl.datasets import resolve
from samtl.errors import InputError
from samtl.images.codecs import decode

# Of all images, and of the masks of roads. Stores recognise rows by their images' bytes, so a change here makes every
# store of generated images a stranger.
DIGESTS = {"synthetic:1": "c6f869446e43151e", "synthetic-roads:12": "70e76df369316bd0"}
NAMES = ["synthetic", "synthetic-roads"]


@pytest.mark.parametrize("spec", DIGESTS)
def test_images_are_the_same_on_every_machine(spec):
    dataset, drawn = resolve(spec), hashlib.sha256()
    for sample_id in dataset.sample_ids:
        pixels = decode(dataset.read(sample_id))
        drawn.update(pixels)
        if dataset.read_mask:
            mask = dataset.read_mask(sample_id)
            assert (mask.dtype, mask.shape) == (np.uint8, pixels.shape[:2])
            drawn.update(mask.tobytes())
    assert drawn.hexdigest()[:16] == DIGESTS[spec]


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
