"""Generated images and roads: the same everywhere, with structure that colour alone does not give away."""

import hashlib
import io
import pickle

import numpy as np
import pytest
from PIL import Image

from samtl.datasets import resolve
from samtl.datasets.synthetic import png
from samtl.errors import InputError
from samtl.images.codecs import decode

# Of image 1 of each class, and of the first road with its mask. Rows of stores are recognised by their bytes, so a
# change here makes every store of generated images a stranger.
DIGESTS = {
    "Crops/Crops_1.png": "2538975771d206eb",
    "Forest/Forest_1.png": "c5b75b6cdfdb8ca8",
    "Highway/Highway_1.png": "af92bcbbe008cd87",
    "Lake/Lake_1.png": "c5a2072bda8d6b16",
    "Orchard/Orchard_1.png": "9032f7d8b7402558",
    "Pasture/Pasture_1.png": "4f7b03f37980a05e",
    "Residential/Residential_1.png": "985de003f23d9f57",
    "River/River_1.png": "f521a3b0729a7110",
    "scene_1/roads_1.png": "9b2e17bbdc8711bc",
}


@pytest.mark.parametrize("sample_id", DIGESTS)
def test_images_are_the_same_on_every_machine(sample_id):
    dataset = resolve("synthetic-roads" if "roads" in sample_id else "synthetic")
    drawn = decode(dataset.read(sample_id)).tobytes()
    drawn += dataset.read_mask(sample_id).tobytes() if dataset.read_mask else b""
    assert hashlib.sha256(drawn).hexdigest()[:16] == DIGESTS[sample_id]


class TestListing:
    @pytest.mark.parametrize("name", ["synthetic", "synthetic-roads"])
    def test_seeds_and_counts(self, name):
        zero, seven, more = (resolve(f"{name}:{a}") for a in ("2:0", "2:7", "5"))
        assert (zero.name, seven.name, more.name) == (name, f"{name}-seed7", name)
        assert zero.sample_ids == seven.sample_ids
        assert set(zero.sample_ids) < set(more.sample_ids)
        first = zero.sample_ids[0]
        assert zero.read(first) == more.read(first) == pickle.loads(pickle.dumps(zero)).read(first)
        assert zero.read(first) != seven.read(first)

    @pytest.mark.parametrize("name", ["synthetic", "synthetic-roads"])
    def test_other_arguments_roots_and_ids_are_refused(self, name, tmp_path):
        for argument in (
            "",
            "0",
            "-1",
            "x",
            "1.5",
            "1:",
            ":1",
            "1:2:3",
            "1000001",
            "1:4294967296",
            "٣",
        ):
            with pytest.raises(InputError, match=f"{name} takes N or N:SEED"):
                resolve(f"{name}:{argument}")
        with pytest.raises(InputError, match="leave --root"):
            resolve(name, tmp_path)
        dataset = resolve(name)
        for sample_id in ("", "River/Lake_1.png", "Sea/Sea_1.png", "River/River_0.png", "scene_2/roads_1.png",
                          "../River/River_1.png", "River/River_1.png\n", "scene_1/roads_7.png"):  # fmt: skip
            for read in filter(None, (dataset.read, dataset.read_mask)):
                with pytest.raises(InputError, match="is called"):
                    read(sample_id)


@pytest.mark.parametrize("shape", [(1, 1), (7, 300), (256, 256), (300, 7)])
def test_png_is_read_by_others(shape):
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    with Image.open(io.BytesIO(png(pixels))) as image:
        image.verify()  # checks the sums of all chunks
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png(pixels)))), pixels)


@pytest.fixture(scope="module")
def drawn():
    """Pixels and masks of two scenes."""
    dataset = resolve("synthetic-roads:12")
    return [(decode(dataset.read(i)), dataset.read_mask(i)) for i in dataset.sample_ids]


class TestRoads:
    def test_masks_have_their_images_size_which_needs_padding(self, drawn):
        for pixels, mask in drawn:
            assert mask.shape == pixels.shape[:2]
            assert mask.dtype == np.uint8
            assert max(mask.shape) == 256
            assert min(mask.shape) >= 192
            assert 0.02 < mask.mean() < 0.4
        assert {h > w for h, w in (mask.shape for _, mask in drawn) if h != w} == {True, False}

    def test_roads_have_one_tone_that_occurs_beside_them_too(self, drawn):
        """So that colour alone finds the roads, and much else."""
        precision, recall = [], []
        for pixels, mask in drawn:
            tone = np.median(pixels[mask == 1].astype(int), axis=0)
            alike = np.abs(pixels.astype(int) - tone).max(axis=2) < 16
            recall.append(alike[mask == 1].mean())
            precision.append(mask[alike].mean())
        assert min(recall) > 0.7
        assert 0.4 < np.mean(precision) < 0.9
