"""Images with masks: which belong together, what their values mean, and what is refused before hours are spent."""

import io
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_images_codecs import png
from zips import encoded, pack, picture, unpack

from samtl.datasets import resolve
from samtl.errors import InputError
from samtl.images.codecs import BadImage

HEIGHT, WIDTH = 5, 7


def values(*some, shape=(HEIGHT, WIDTH)):
    """Give an array that holds these values and no others."""
    return np.resize(np.array(some, np.uint8), shape)


def mask(*some, **options):
    return encoded(values(*some, **options))


FILES = {f"images/{i}.jpg": picture(i, form="JPEG") for i in (1, 2, 10)} | {
    f"masks/{i}.png": mask(0, 255, i) for i in (1, 2, 10)
}


@pytest.fixture
def root(tmp_path):
    return unpack(tmp_path / "My Roads", FILES)


def listed(root, options=""):
    return resolve(f"masks:{root}{options}")


def replaced(root, **files):
    """Replace or add files; `__` stands for the slash and `_` before the suffix for the dot."""
    unpack(root, {re.sub("_(?=[a-z]+$)", ".", k.replace("__", "/")): v for k, v in files.items()})
    return root


class TestListing:
    @pytest.mark.parametrize("make", [pack, unpack])
    def test_images_in_natural_order_with_their_masks(self, tmp_path, make):
        dataset = listed(make(tmp_path / "a", FILES))
        assert dataset.name == "masks-a"
        assert dataset.sample_ids == ("1.jpg", "2.jpg", "10.jpg")
        assert dataset.labels == (-1, -1, -1)
        assert dataset.classes == ("background", "foreground")
        assert (dataset.task, dataset.groups, dataset.parts) == ("segmentation", (), ())
        assert dataset.read("10.jpg") == FILES["images/10.jpg"]
        for sample_id in dataset.sample_ids:
            found = dataset.read_mask(sample_id)
            assert found.dtype == np.uint8
            np.testing.assert_array_equal(found, values(0, 1, 0))

    @pytest.mark.parametrize(
        ("images", "masks"),
        [("Image", "MASK"), ("img", "labels"), ("top/SAT", "top/Map"), ("sat", "gt")],
    )
    def test_folders_go_by_several_names(self, tmp_path, images, masks):
        files = {f"{images}/a.png": picture(), f"{masks}/a.png": mask(0, 255)}
        for make in (pack, unpack):
            assert listed(make(tmp_path / make.__name__, files)).sample_ids == ("a.png",)

    @pytest.mark.parametrize(
        ("files", "told"),
        [
            ({}, "no folder"),
            ({"images/1.png": b""}, "'images'.*gt or label or"),
            ({"a/1.png": b"", "b/1.png": b""}, "'a', 'b'"),
            ({"top/a/1.png": b""}, "'a' in 'top'"),
            ({"images/1.png": b"", "img/1.png": b"", "masks/1.png": b""}, "exactly one called image"),
            ({"images/1.txt": b"", "masks/1.png": b""}, "no images in 'images'"),
            ({"images/1.png": b"", "masks/1.txt": b""}, "no masks in 'masks'"),
        ],
    )  # fmt: skip
    def test_other_layouts_are_refused_with_the_one_expected(self, tmp_path, files, told):
        (tmp_path / "a").mkdir()
        with pytest.raises(InputError, match=told) as caught:
            listed(unpack(tmp_path / "a", files))
        assert "PATH/images (or image, img, sat)" in str(caught.value)


class TestMatching:
    def test_both_directions_are_told_at_once(self, tmp_path):
        files = {f"images/{i}.png": picture() for i in range(1, 9)}
        files |= {f"masks/{i}.png": mask(0) for i in range(5, 11)}
        with pytest.raises(InputError, match="stem=REGEX") as caught:
            listed(unpack(tmp_path, files))
        assert "4 of 8 images have no mask (1.png, 2.png, 3.png, ...)" in str(caught.value)
        assert "and 2 of 6 masks have no image (9.png, 10.png)" in str(caught.value)

    @pytest.mark.parametrize("option", [r"^(\d+)_", r"\d+", r"(\d+)_(?:sat|mask)"])
    def test_names_are_matched_by_what_a_regex_finds(self, tmp_path, option):
        files = {f"sat/{i}_sat.jpg": picture(form="JPEG") for i in (7, 12)}
        files |= {"gt/7_mask.png": mask(0), "gt/12_mask.png": mask(0, 255)}
        dataset = listed(unpack(tmp_path / "a", files), f"?stem={option}")
        assert dataset.sample_ids == ("7_sat.jpg", "12_sat.jpg")
        assert [dataset.read_mask(i).max() for i in dataset.sample_ids] == [0, 1]

    @pytest.mark.parametrize(
        ("option", "told"),
        [
            ("(", "is no regular expression"),
            ("^2", "finds nothing in '1.jpg'"),
            (".", "two images are both known as '1'"),
        ],
    )
    def test_a_regex_that_does_not_do(self, root, option, told):
        with pytest.raises(InputError, match=told):
            listed(root, f"?stem={option}")

    def test_groups_by_a_regex(self, root):
        assert listed(root, "?group=^\\d").groups == ("1", "2", "1")
        with pytest.raises(InputError, match="finds nothing in"):
            listed(root, "?group=scene")


class TestCoding:
    @pytest.mark.parametrize(
        ("option", "classes", "expected"),
        [
            ("", ("background", "foreground"), (0, 0, 1, 1)),
            ("?", ("background", "foreground"), (0, 0, 1, 1)),
            ("?foreground=3", ("background", "foreground"), (0, 1, 0, 0)),
            ("?foreground=3,200", ("background", "foreground"), (0, 1, 1, 0)),
            ("?foreground=3&ignore=255", ("background", "foreground"), (0, 1, 0, 255)),
            ("?ignore=3,255", ("background", "foreground"), (0, 255, 1, 255)),
            ("?classes=sea:0,road:3,roof:200,tree:255", ("sea", "road", "roof", "tree"), (0, 1, 2, 3)),
            ("?classes=road:3,sea:0&ignore=200,255", ("road", "sea"), (1, 0, 255, 255)),
        ],
    )  # fmt: skip
    def test_options(self, tmp_path, option, classes, expected):
        raw = values(0, 3, 200, 255)
        dataset = listed(
            unpack(tmp_path, {"images/a.png": picture(), "masks/a.png": encoded(raw)}), option
        )
        assert dataset.classes == classes
        np.testing.assert_array_equal(dataset.read_mask("a.png"), values(*expected))

    def test_another_coding_is_another_dataset(self, root):
        """So that a store of masks that were read in one way is not continued in another."""
        options = ("", "?foreground=255", "?foreground=2", "?ignore=2", "?foreground=255&ignore=2")
        names = [listed(root, option).name for option in options]
        assert names[0] == "masks-My-Roads"
        assert len(set(names)) == len(names)

    @pytest.mark.parametrize(
        ("option", "told"),
        [
            ("?foregrund=1", "stem=.*foreground=.*classes=.*ignore=.*group=.*'foregrund=1'"),
            ("?foreground", "foreground"),
            ("?foreground=1&foreground=2", "foreground"),
            ("?foreground=1&classes=a,b", "foreground=.*classes="),
            ("?foreground=256", "foreground="),
            ("?ignore=1,,2", "ignore="),
            ("?ignore=-1", "ignore="),
            ("?foreground=7&ignore=7", "7 is"),
            ("?classes=a:7,b:8&ignore=8", "8 is"),
            ("?classes=a,", "2 to 255 classes"),
            ("?classes=a,a", "once"),
            ("?classes=a:1,b", "once"),
            ("?classes=a:x,b", "classes="),
        ],
    )
    def test_options_that_are_none(self, root, option, told):
        with pytest.raises(InputError, match=told):
            listed(root, option)


VOC = [0, 0, 0, 128, 0, 0, 0, 128, 0]  # the usual palette's black, red and green


def palette(colours, *some):
    image = Image.new("P", (WIDTH, HEIGHT))
    image.putdata(values(*some).ravel().tolist())
    image.putpalette(colours)
    return encoded(image)


class TestWrongMasks:
    def test_another_size_is_told_when_listed(self, root):
        turned = mask(0, shape=(WIDTH, HEIGHT))
        replaced(root, masks__2_png=turned, masks__10_png=turned)
        with pytest.raises(InputError, match=r"2 of 3 .*images/2\.jpg is 7 x 5, its mask 5 x 7"):
            listed(root)

    @pytest.mark.parametrize(
        ("data", "option"),
        [
            (mask(0, 1), "?foreground=1"),
            (mask(0, 100), "?foreground=100"),
            (mask(0, 1, 2), "?classes=class0:0,class1:1,class2:2"),
            (mask(0, 128, 255), "?classes=class0:0,class1:128,class2:255"),
            (palette(VOC, 0, 1, 2), "?classes=class0:0,class1:1,class2:2"),
            (palette([0, 0, 0, 99, 99, 99], 0, 1), "?foreground=1"),
            (png(WIDTH, HEIGHT, 4, 0, (b"\0" + b"\x01\x20" * 2) * HEIGHT), "?classes=class0:0,class1:1,class2:2"),
        ],
        ids=["0 1", "0 100", "0 1 2", "0 128 255", "palette", "grey palette", "4 bits"],
    )  # fmt: skip
    def test_numbers_of_classes_are_no_light(self, root, data, option):
        """Fault: every pixel was background, and the advice for palettes and 4 bits did not help."""
        replaced(root, masks__1_png=data)
        with pytest.raises(InputError, match=re.escape(f"masks:PATH{option}")):
            listed(root)
        for i in (1, 2, 10):
            replaced(root, **{f"masks__{i}_png": data})
        assert listed(root, option).read_mask("1.jpg").max() >= 1

    def test_soft_edges_are_fine(self, tmp_path):
        soft = np.linspace(0, 255, HEIGHT * WIDTH).astype(np.uint8).reshape(HEIGHT, WIDTH)
        files = {"images/a.png": picture(), "masks/a.png": encoded(soft)}
        dataset = listed(unpack(tmp_path, files))
        np.testing.assert_array_equal(dataset.read_mask("a.png"), soft > 127)

    @pytest.mark.parametrize(
        "data",
        [
            encoded(np.dstack([values(0, 255)] * 2 + [values(0)])),
            encoded(np.full((HEIGHT, WIDTH), 300, np.uint16)),
            encoded(np.full((HEIGHT, WIDTH, 4), 255, np.uint8)),
            picture(form="JPEG"),
        ],
        ids=["colours", "16 bits", "alpha", "jpeg"],
    )
    def test_a_kind_of_mask_that_is_not_read_is_told_when_listed(self, root, data):
        with pytest.raises(InputError, match=r"the mask masks/2\.png in .* cannot be used"):
            listed(replaced(root, masks__2_png=data))

    @pytest.mark.parametrize("make", [pack, unpack])
    @pytest.mark.parametrize("data", [b"", mask(0, 255)[:44], b"no mask"])
    def test_a_damaged_mask_is_told_when_read(self, tmp_path, make, data):
        dataset = listed(make(tmp_path / "a", FILES | {"masks/2.png": data}))
        assert dataset.read_mask("1.jpg").max() == 1
        with pytest.raises(BadImage, match="the image's mask cannot be used") as caught:
            dataset.read_mask("2.jpg")
        assert caught.value.code == "mask_unreadable"


def test_a_foreground_that_is_nowhere_is_told_before_hours_are_spent(tmp_path):
    files = {f"images/{i}.png": picture() for i in range(3)}
    files |= {f"masks/{i}.png": mask(0, 255) for i in range(3)}
    root = unpack(tmp_path, files)
    with pytest.raises(InputError, match=r"none of 3 .* values 0, 255"):
        resolve("masks:?foreground=1", root)
    assert len(resolve("masks:?foreground=255", root)) == 3


@pytest.mark.data
def test_the_real_roads():
    if "SAMTL_DATA" not in os.environ:
        pytest.skip("SAMTL_DATA is unset: no folder with roads_dubai.zip to read")
    path = Path(os.environ["SAMTL_DATA"]) / "roads_dubai.zip"
    dataset = listed(path, r"?group=dubai_(t\d+)&classes=background:0,road:255")
    assert len(dataset) == 72
    assert dataset.classes == ("background", "road")
    assert sorted(set(dataset.groups)) == [f"t{i}" for i in range(1, 9)]
    for sample_id in dataset.sample_ids[::23]:
        found = dataset.read_mask(sample_id)
        assert set(np.unique(found)) <= {0, 1}
        assert found.shape == np.asarray(Image.open(io.BytesIO(dataset.read(sample_id)))).shape[:2]
