"""Generated roads: the same everywhere, with exact masks that colour alone does not give away."""

import hashlib
import pickle

import numpy as np
import pytest

from samtl.datasets import landscapes as _scenes
from samtl.datasets import resolve
from samtl.errors import InputError
from samtl.images.codecs import decode

# Of the first images under seed 0. Rows of stores are recognised by their bytes.
DIGESTS = {1: "d43816e3547f4e2a", 2: "366060ff4fbd9e36", 3: "66ab9728c9674450"}


class TestListing:
    def test_the_default(self):
        dataset = resolve("synthetic-roads")
        assert dataset.name == "synthetic-roads"
        assert dataset.classes == ("background", "road")
        assert len(dataset) == 24
        assert dataset.sample_ids[:2] == ("scene_1/roads_1.png", "scene_1/roads_2.png")
        assert dataset.sample_ids[-1] == "scene_4/roads_24.png"
        assert [dataset.groups.count(f"scene_{i}") for i in range(1, 5)] == [6] * 4
        assert dataset.labels == (-1,) * 24
        assert dataset.task == "segmentation"
        assert dataset.note == resolve("synthetic:1").note

    def test_seeds_make_other_datasets_under_other_names(self):
        zero, seven = resolve("synthetic-roads:2:0"), resolve("synthetic-roads:2:7")
        assert (zero.name, seven.name) == ("synthetic-roads", "synthetic-roads-seed7")
        assert zero.read(zero.sample_ids[0]) != seven.read(zero.sample_ids[0])

    def test_an_image_depends_on_its_number_only(self):
        few, more = resolve("synthetic-roads:8"), resolve("synthetic-roads:20")
        assert more.sample_ids[:8] == few.sample_ids
        assert more.groups[:8] == few.groups
        last = few.sample_ids[7]
        assert few.read(last) == more.read(last)
        np.testing.assert_array_equal(few.read_mask(last), more.read_mask(last))

    @pytest.mark.parametrize(
        "argument", ["", "0", "x", "1:", "1:2:3", "1000001", "1:4294967296", "٣"]
    )
    def test_other_arguments_are_refused(self, argument):
        with pytest.raises(InputError, match="synthetic-roads takes N or N:SEED"):
            resolve(f"synthetic-roads:{argument}")

    def test_a_root_is_refused(self, tmp_path):
        with pytest.raises(InputError, match="leave --root"):
            resolve("synthetic-roads", tmp_path)

    @pytest.mark.parametrize(
        "sample_id",
        ["", "roads_1.png", "scene_2/roads_1.png", "scene_1/roads_7.png", "scene_1/roads_0.png",
         "scene_1/roads_1.png\n"],
    )  # fmt: skip
    def test_other_ids_are_refused(self, sample_id):
        dataset = resolve("synthetic-roads")
        for read in (dataset.read, dataset.read_mask):
            with pytest.raises(InputError, match="is called like scene_1/roads_1"):
                read(sample_id)

    def test_it_can_be_sent_to_another_process(self):
        dataset = resolve("synthetic-roads:1:3")
        copy = pickle.loads(pickle.dumps(dataset))
        assert copy.read("scene_1/roads_1.png") == dataset.read("scene_1/roads_1.png")
        assert copy.read_mask("scene_1/roads_1.png").any()


@pytest.fixture(scope="module")
def drawn():
    """Pixels and masks of two scenes."""
    dataset = resolve("synthetic-roads:12")
    return [(decode(dataset.read(i)), dataset.read_mask(i)) for i in dataset.sample_ids]


class TestImages:
    @pytest.mark.parametrize("number", DIGESTS)
    def test_are_the_same_on_every_machine(self, number):
        pixels, road = _scenes.draw_roads(0, 1, number)
        assert hashlib.sha256(pixels.tobytes() + road.tobytes()).hexdigest()[:16] == DIGESTS[number]

    def test_have_masks_of_their_size_and_sizes_that_need_padding(self, drawn):
        for pixels, mask in drawn:
            assert mask.shape == pixels.shape[:2]
            assert mask.dtype == np.uint8
            assert max(mask.shape) == 256
            assert min(mask.shape) >= 192
            assert 0.02 < mask.mean() < 0.4
        assert len({mask.shape for _, mask in drawn}) > 4
        assert any(h > w for h, w in (mask.shape for _, mask in drawn))
        assert any(h < w for h, w in (mask.shape for _, mask in drawn))

    def test_a_scene_shares_its_tones(self, drawn):
        means = np.array([p.reshape(-1, 3).mean(axis=0) for p, _ in drawn]).reshape(2, 6, 3)
        between = np.abs(means[0].mean(axis=0) - means[1].mean(axis=0)).max()
        assert between > 2 * means.std(axis=1).max()

    def test_roads_are_of_one_tone_that_occurs_beside_them_too(self, drawn):
        """So that colour alone finds the roads, and much else."""
        precision, recall = [], []
        for pixels, mask in drawn:
            tone = np.median(pixels[mask == 1].astype(int), axis=0)
            alike = np.abs(pixels.astype(int) - tone).max(axis=2) < 16
            recall.append(alike[mask == 1].mean())
            precision.append(mask[alike].mean())
        assert min(recall) > 0.7
        assert 0.4 < np.mean(precision) < 0.9

    def test_roads_are_wide_enough_for_the_encoders_tokens(self, drawn):
        """At 4 pixels a token, roads of 8 to 20 pixels are seen by at least one token across."""
        for _, mask in drawn[:4]:
            inside = mask.astype(bool)
            widest = inside
            for _ in range(3):
                widest = (
                    widest[1:-1, 1:-1] & widest[:-2, 1:-1] & widest[2:, 1:-1] & widest[1:-1, :-2]
                    & widest[1:-1, 2:]
                )  # fmt: skip
            assert widest.any()
            runs = np.diff(np.flatnonzero(np.diff(np.pad(inside, 1).ravel().astype(int))))[::2]
            assert np.median(runs) >= 8
