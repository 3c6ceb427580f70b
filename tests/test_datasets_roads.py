"""The roads of Cheng et al. in their shipped parts, as they may lie on a disk."""

import numpy as np
import pytest
from zips import encoded, pack, unpack

from samtl.datasets import PARTS, resolve, roads
from samtl.errors import InputError

ROAD = np.zeros((6, 8, 3), np.uint8)
ROAD[2:4] = 255
FORMS = {"bmp": "BMP", "png": "PNG", "jpg": "JPEG", "tif": "TIFF"}


def made(image="image{}.bmp", label="{}.bmp", parts=("Train", "Validation", "Test")):
    """Make the files of a small copy."""
    files = {}
    for part in parts:
        for i in (1, 2, 10):
            files[f"{part}/image/{image.format(i)}"] = encoded(ROAD // 2 + i, FORMS[image[-3:]])
            for folder in ("label", "centerline"):
                files[f"{part}/{folder}/{label.format(i)}"] = encoded(ROAD, FORMS[label[-3:]])
    return files


@pytest.mark.parametrize("make", [pack, unpack])
@pytest.mark.parametrize(
    ("top", "image", "label"),
    [
        ("", "image{}.bmp", "{}.bmp"),
        ("TGRS road/", "Image{}.jpg", "{}.tif"),
        ("", "{}.png", "{}.png"),
        ("TGRS road/", "image{}.bmp", "image{}.png"),
    ],
)
def test_images_with_labels_in_their_parts(tmp_path, make, top, image, label):
    files = {f"{top}{name}": data for name, data in made(image, label).items()}
    dataset = resolve("roads", make(tmp_path / "data", files))
    assert (dataset.name, dataset.classes) == ("roads", ("background", "road"))
    assert dataset.sample_ids == tuple(f"{p}/{image.format(i)}" for p in PARTS for i in (1, 2, 10))
    assert dataset.parts == tuple(p for p in PARTS for _ in range(3))
    assert dataset.labels == (-1,) * 9
    assert dataset.task == "segmentation"
    sample_id = dataset.sample_ids[4]
    assert dataset.read(sample_id) == files[f"{top}Validation/image/{image.format(2)}"]
    np.testing.assert_array_equal(dataset.read_mask(sample_id), ROAD[..., 0] > 127)


def test_the_whole_is_160_20_44_and_a_part_says_so(tmp_path, monkeypatch):
    assert list(roads.COUNTS.items()) == [("train", 160), ("validation", 20), ("test", 44)]
    root = unpack(tmp_path, made())
    note = resolve("roads", root).note
    assert "do not redistribute images or embeddings" in note
    assert note.endswith("224 expected, got 9 (3 train, 3 validation, 3 test)")
    monkeypatch.setattr(roads, "COUNTS", dict.fromkeys(PARTS, 3))
    assert resolve("roads", root).note == note.partition("; not the published")[0]


def test_without_a_root_it_says_where_to_get_it():
    for download in (True, False):
        with pytest.raises(InputError, match=r"ipythonx/tgrs-road.*--root.*image/\*\.bmp"):
            resolve("roads", download=download)
    with pytest.raises(InputError, match="takes no argument, got '5'"):
        resolve("roads:5")


SHORT = dict.fromkeys(
    (name for name in made() if "/label/" in name and "Val" not in name), encoded(ROAD[1:], "BMP")
)


@pytest.mark.parametrize(
    ("files", "told"),
    [
        (made(parts=("Train", "Test")), "exactly one called validation"),
        ({k: v for k, v in made().items() if "Test/label" not in k}, "in 'Test'"),
        ({k: v for k, v in made().items() if "label/2." not in k}, "1 of 3 images have no mask"),
        (made(image="image_{}.bmp"), "3 of 3 images have no mask .* and 3 of 3 masks"),
        (made() | {"Test/image/2.bmp": encoded(ROAD, "BMP")}, "two images are both known as '2'"),
        (made() | SHORT, "6 of 9 .*image1.bmp is 8 x 6, its mask 8 x 5"),
        ({f"{p}/{n}/x.txt": b"" for p in PARTS for n in ("image", "label")}, "no images"),
    ],
)
@pytest.mark.parametrize("make", [pack, unpack])
def test_other_layouts_are_refused(tmp_path, make, files, told):
    with pytest.raises(InputError, match=told):
        resolve("roads", make(tmp_path / "data", files))
