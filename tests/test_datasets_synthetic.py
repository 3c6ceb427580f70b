"""Generated images: the same everywhere, of classes that colours alone do not tell apart."""

import hashlib
import io
import pickle

import numpy as np
import pytest
from PIL import Image
from threadpoolctl import threadpool_limits

from samtl.datasets import landscapes as _scenes
from samtl.datasets import resolve
from samtl.datasets.synthetic import png
from samtl.errors import InputError
from samtl.images import codecs as images

# Of image 1 of each class under seed 0. Rows of stores are recognised by their bytes, so a change
# here makes every store of generated images a stranger.
DIGESTS = {
    "Crops": "1b1e08939ce1082a",
    "Forest": "7d09c8c6f7edd4f9",
    "Highway": "79c459fa3a732655",
    "Lake": "2c3c78acc1d4377c",
    "Orchard": "f2df6037afe7f263",
    "Pasture": "0f99646f49e2c7c4",
    "Residential": "6ef4143bc5b19fec",
    "River": "d21c942029b33c32",
}


class TestListing:
    def test_the_default(self):
        dataset = resolve("synthetic")
        assert dataset.name == "synthetic"
        assert dataset.classes == tuple(sorted(DIGESTS))
        assert len(dataset) == 8 * 40
        assert [dataset.labels.count(c) for c in range(8)] == [40] * 8
        assert dataset.sample_ids[:2] == ("Crops/Crops_1.png", "Crops/Crops_2.png")
        assert dataset.sample_ids[-1] == "River/River_40.png"
        assert "generated" in dataset.note

    def test_ids_begin_with_their_class(self):
        dataset = resolve("synthetic:12")
        for sample_id, label in zip(dataset.sample_ids, dataset.labels, strict=True):
            assert sample_id.startswith(dataset.classes[label] + "/")
        assert len(set(dataset.sample_ids)) == len(dataset) == 96

    def test_seeds_make_other_datasets_under_other_names(self):
        zero, seven = resolve("synthetic:2:0"), resolve("synthetic:2:7")
        assert (zero.name, seven.name) == ("synthetic", "synthetic-seed7")
        assert zero.sample_ids == seven.sample_ids
        for sample_id in zero.sample_ids:
            assert zero.read(sample_id) != seven.read(sample_id)

    def test_more_images_contain_the_fewer(self):
        few, more = resolve("synthetic:2"), resolve("synthetic:5")
        assert set(few.sample_ids) < set(more.sample_ids)
        assert few.name == more.name
        assert few.read("River/River_2.png") == more.read("River/River_2.png")

    @pytest.mark.parametrize(
        "argument",
        ["", "0", "-1", "x", "1.5", "1:", ":1", "1:2:3", "1000001", "1:4294967296", "٣", " 1"],
    )
    def test_other_arguments_are_refused(self, argument):
        with pytest.raises(InputError, match="N or N:SEED"):
            resolve(f"synthetic:{argument}")

    def test_a_root_is_refused(self, tmp_path):
        with pytest.raises(InputError, match="leave --root"):
            resolve("synthetic", tmp_path)

    @pytest.mark.parametrize(
        "sample_id",
        ["", "River", "River/1.png", "River/Lake_1.png", "Sea/Sea_1.png", "River/River_0.png",
         "River/River_1.jpg", "../River/River_1.png", "River/River_1.png\n"],
    )  # fmt: skip
    def test_other_ids_are_refused(self, sample_id):
        with pytest.raises(InputError, match="is called like Forest"):
            resolve("synthetic").read(sample_id)

    def test_it_can_be_sent_to_another_process(self):
        dataset = pickle.loads(pickle.dumps(resolve("synthetic:1:3")))
        assert dataset.read("Lake/Lake_1.png") == resolve("synthetic:1:3").read("Lake/Lake_1.png")


class TestImages:
    @pytest.mark.parametrize("name", DIGESTS)
    def test_are_the_same_on_every_machine(self, name):
        digest = hashlib.sha256(_scenes.draw(0, name, 1).tobytes()).hexdigest()
        assert digest[:16] == DIGESTS[name]

    @pytest.mark.parametrize("name", DIGESTS)
    def test_use_the_whole_range_modestly(self, name):
        for index in range(1, 4):
            pixels = _scenes.draw(5, name, index)
            assert pixels.shape == (256, 256, 3)
            assert pixels.dtype == np.uint8
            light = pixels.mean(axis=2)
            assert 60 < light.mean() < 190
            assert 12 < light.std() < 70
            assert (pixels == 255).mean() < 0.1
            assert (pixels == 0).mean() < 0.1

    def test_differ_within_a_class(self):
        for name in DIGESTS:
            one, other = _scenes.draw(0, name, 1), _scenes.draw(0, name, 2)
            assert (one != other).mean() > 0.5

    def test_decode_to_what_was_drawn(self):
        data = resolve("synthetic").read("Forest/Forest_3.png")
        np.testing.assert_array_equal(images.decode(data), _scenes.draw(0, "Forest", 3))

    @pytest.mark.parametrize("shape", [(1, 1), (7, 300), (256, 256), (300, 7)])
    def test_png_is_read_by_others(self, shape):
        pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
        with Image.open(io.BytesIO(png(pixels))) as image:
            image.verify()  # checks the sums of all chunks
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png(pixels)))), pixels)


def texture(pixels):
    """Mean and deviation of rectified random 5 x 5 filters at three scales."""
    random = np.random.default_rng(0)
    features = []
    for step in (1, 2, 4):
        side = 256 // step
        small = pixels.astype(np.float32).reshape(side, step, side, step, 3).mean(axis=(1, 3))
        windows = np.lib.stride_tricks.sliding_window_view(small, (5, 5), axis=(0, 1))
        filters = random.normal(size=(75, 16)).astype(np.float32)
        filters -= filters.mean(axis=0)
        answers = windows[:: 8 // step, :: 8 // step].reshape(-1, 75) @ filters
        answers = np.maximum(answers, 0)
        features += [answers.mean(axis=0), answers.std(axis=0)]
    return np.log(np.concatenate(features) + 1)


def accuracy(features, labels):
    """Of a linear classifier, over four held-out quarters."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.model_selection import cross_val_score

    model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
    return cross_val_score(model, np.stack(features), labels, cv=4).mean()


def test_structure_tells_the_classes_apart_and_colour_hardly():
    dataset = resolve("synthetic:24")
    pixels = [images.decode(dataset.read(i)) for i in dataset.sample_ids]
    with threadpool_limits(1):  # small products; threads would only wait for each other
        colours = accuracy([images.statistics(p) for p in pixels], dataset.labels)
        structure = accuracy([texture(p) for p in pixels], dataset.labels)
    assert 0.25 < colours < 0.7
    assert structure > 0.8
    assert structure > colours + 0.2
