"""Images with masks, and the roads of Cheng et al.: what belongs together, what values mean, what is refused soon."""

import io
import itertools
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter
from test_images_codecs import geotiff, png
from zips import encoded, pack, picture, unpack

from samtl.datasets import PARTS, resolve, roads
from samtl.errors import InputError
from samtl.images.codecs import BadImage, decode, decode_mask

HEIGHT, WIDTH = 5, 7


def values(*some, shape=(HEIGHT, WIDTH)):
    """Make an array that holds these values and no others."""
    return np.resize(np.array(some, np.uint8), shape)


def mask(*some, **options):
    return encoded(values(*some, **options))


SOFT = np.linspace(0, 255, HEIGHT * WIDTH).astype(np.uint8).reshape(HEIGHT, WIDTH)
MASKS = {1: values(0, 255, 1, 254), 2: values(0, 255, 2, 253), 10: SOFT}
FILES = {f"images/{i}.jpg": picture(i, form="JPEG") for i in MASKS}
FILES |= {f"masks/{i}.png": encoded(pixels) for i, pixels in MASKS.items()}


@pytest.fixture
def root(tmp_path):
    return unpack(tmp_path / "My Roads", FILES)


def listed(root, options=""):
    return resolve(f"masks:{root}{options}")


@pytest.mark.parametrize("make", [pack, unpack])
@pytest.mark.parametrize(
    "folders", ["images masks", "Image MASK", "img labels", "top/SAT top/Map", "sat gt"]
)
def test_images_in_natural_order_with_their_masks(tmp_path, make, folders):
    names = dict(zip(("images", "masks"), folders.split(), strict=True))
    files = {f"{names[k.split('/')[0]]}/{k.split('/')[1]}": data for k, data in FILES.items()}
    dataset = listed(make(tmp_path / "a", files))
    assert (dataset.name, dataset.classes) == ("masks-a", ("background", "foreground"))
    assert dataset.sample_ids == ("1.jpg", "2.jpg", "10.jpg")
    assert dataset.labels == (-1, -1, -1)
    assert (dataset.task, dataset.groups, dataset.parts) == ("segmentation", (), ())
    assert dataset.read("10.jpg") == FILES["images/10.jpg"]
    for i, pixels in MASKS.items():
        found = dataset.read_mask(f"{i}.jpg")
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, pixels > 127)


UNMATCHED = [f"images/{i}.png" for i in range(1, 9)] + [f"masks/{i}.png" for i in range(5, 11)]


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ("", "no folder"),
        ("images/1.png", "'images'.*gt or label or"),
        ("a/1.png b/1.png", "'a', 'b'"),
        ("top/a/1.png", "'a' in 'top'"),
        ("images/1.png img/1.png masks/1.png", "exactly one called image"),
        ("images/1.txt masks/1.png", "no images in 'images'"),
        ("images/1.png masks/1.txt", "no masks in 'masks'"),
        (
            " ".join(UNMATCHED),
            r"4 of 8 .*\('1\.png', '2\.png', '3\.png' and 1 more\) and 2 of 6 .*\('9\.png', '10\.png'\)",
        ),
    ],
)
def test_other_layouts_are_refused_with_the_one_expected(tmp_path, names, told):
    expected = r"PATH/images \(or image, img, sat, input\)|stem=REGEX"
    with pytest.raises(InputError, match=f"{told}.*({expected})"):
        listed(unpack(tmp_path, dict.fromkeys(names.split(), b"")))


@pytest.mark.parametrize("option", [r"^(\d+)_", r"\d+", r"(\d+)_(?:sat|mask)"])
def test_names_are_matched_and_grouped_by_what_a_regex_finds(tmp_path, option):
    files = {f"sat/{i}_sat.jpg": picture(form="JPEG") for i in (7, 12)}
    files |= {"gt/7_mask.png": mask(0), "gt/12_mask.png": mask(0, 255)}
    dataset = listed(unpack(tmp_path / "a", files), rf"?stem={option}&group=^\d")
    assert dataset.sample_ids == ("7_sat.jpg", "12_sat.jpg")
    assert [dataset.read_mask(i).max() for i in dataset.sample_ids] == [0, 1]
    assert dataset.groups == ("7", "1")


@pytest.mark.parametrize(
    "ends", [("", "_mask"), ("_sat", "-Label"), ("_RGB", "_label"), ("_1", "_1_gt")]
)
@pytest.mark.parametrize("folders", [("images", "masks"), ("train", "train_labels")])
def test_usual_ends_of_names_need_no_regex(tmp_path, ends, folders):
    names = [f"{folder}/{{}}{end}.png" for folder, end in zip(folders, ends, strict=True)]
    files = {names[0].format(i): picture(i) for i in (7, 12)}
    files |= {names[1].format(i): mask(0, 255 * (i == 7)) for i in (7, 12)}
    dataset = listed(unpack(tmp_path, files))
    assert [dataset.read_mask(i).max() for i in dataset.sample_ids] == [1, 0]
    unpack(tmp_path, {f"{folders[1]}/7-map.png": mask(0)})
    with pytest.raises(InputError, match=r"3 of 3 masks have no image .*stem="):
        listed(tmp_path)


def test_same_names_count_before_their_ends(tmp_path):
    names = ("a_sat", "a_map", "b")
    files = {
        f"{folder}/{name}.png": mask(0, 255) for folder in ("images", "masks") for name in names
    }
    assert len(listed(unpack(tmp_path, files))) == 3


@pytest.mark.parametrize(
    ("option", "classes", "expected"),
    [
        ("?foreground=3", "background foreground", (0, 1, 0, 0)),
        ("?foreground=3,200", "background foreground", (0, 1, 1, 0)),
        ("?foreground=3&ignore=255", "background foreground", (0, 1, 0, 255)),
        ("?ignore=3,200", "background foreground", (0, 255, 255, 1)),
        ("?classes=sea:0,road:3,roof:200,tree:255", "sea road roof tree", (0, 1, 2, 3)),
        ("?classes=road:3,sea:0&ignore=200,255", "road sea", (1, 0, 255, 255)),
    ],
)
def test_values_mean_what_the_options_say(tmp_path, option, classes, expected):
    files = {"images/a.png": picture(), "masks/a.png": mask(0, 3, 200, 255)}
    dataset = listed(unpack(tmp_path, files), option)
    assert dataset.classes == tuple(classes.split())
    np.testing.assert_array_equal(dataset.read_mask("a.png"), values(*expected))


def test_another_coding_is_another_dataset(root):
    """So that a store of masks that were read in one way is not continued in another."""
    options = ("", "?foreground=255", "?foreground=2", "?ignore=2", "?foreground=255&ignore=2")
    names = [resolve(f"masks:{option}", root).name for option in options]
    assert names[0] == "masks-My-Roads"
    assert len(set(names)) == len(names)


# Layouts: an image, its mask, and its id, in a part.
LAYOUTS = {
    "in parts": ("{}/images/{}.jpg", "{}/masks/{}.png", "{}/{}.jpg"),
    "sat and map": ("{}/sat/{}.tiff", "{}/map/{}.tif", "{}/{}.tiff"),
    "input and output": ("roads/{}/input/{}.tiff", "roads/{}/output/{}.tif", "{}/{}.tiff"),
    "labels beside parts": ("tiff/{}/{}.tiff", "tiff/{}_labels/{}.tif", "{}/{}.tiff"),
    "parts by two": ("{}_images/{}.png", "{}_masks/{}.png", "{}_images/{}.png"),
    "parts in folders": ("images/{}/{}.jpg", "masks/{}/{}.png", "{}/{}.jpg"),
    "side by side in parts": ("{}/{}_sat.jpg", "{}/{}_mask.png", "{}/{}_sat.jpg"),
}
INSIDE = ("input and output", "labels beside parts")
FORMS = {".png": "PNG", ".jpg": "JPEG", ".tif": "TIFF", ".tiff": "TIFF"}


@pytest.mark.parametrize("make", [pack, unpack])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_parts_of_published_layouts(tmp_path, layout, make):
    files, ids = {"metadata.csv": b"x"}, []
    for part, i in itertools.product(("train", "val", "test"), (7, 12)):
        image, label, sample_id = (form.format(part, i) for form in LAYOUTS[layout])
        files[image] = picture(i, form=FORMS[Path(image).suffix])
        files[label] = encoded(values(*[0] * i, 255), FORMS[Path(label).suffix])
        ids.append(sample_id)
    files[str(Path(image).with_name("a.xml"))] = b"x"
    dataset = listed(make(tmp_path / "a", files))
    assert sorted(dataset.sample_ids) == sorted(ids)
    parts = dict(zip(dataset.sample_ids, dataset.parts, strict=True))
    assert [parts[sample_id] for sample_id in ids] == [part for part in PARTS for _ in range(2)]
    for sample_id, i in zip(ids, (7, 12) * 3, strict=True):
        assert (decode(dataset.read(sample_id)) == decode(picture(i))).all()
        np.testing.assert_array_equal(dataset.read_mask(sample_id), values(*[0] * i, 1))
    assert [str(one) for one in dataset.left_out] == ["1 .xml files"]
    assert len(dataset.readings) == 2
    # Whether another folder in it would hide the only one.
    assert dataset.root == (tmp_path / "a" if make is unpack and layout in INSIDE else None)


@pytest.mark.parametrize(
    "form", [("{}_sat.jpg", "{}_mask.png"), ("{}.jpg", "{}-label.png"), ("{}-img.jpg", "{}_GT.png")]
)
@pytest.mark.parametrize("top", ["", "top/"])
def test_files_side_by_side(tmp_path, form, top):
    files = {top + form[0].format(i): picture(i, form="JPEG") for i in (7, 12)}
    files |= {top + form[1].format(i): mask(0, 255 * (i == 7)) for i in (7, 12)}
    dataset = listed(unpack(tmp_path / "a", files))
    assert dataset.sample_ids == tuple(form[0].format(i) for i in (7, 12))
    assert [dataset.read_mask(i).max() for i in dataset.sample_ids] == [1, 0]
    assert dataset.parts == ()
    assert dataset.root == tmp_path / "a"


def test_parts_without_masks_are_refused(tmp_path):
    files = {
        "train/1_sat.jpg": picture(),
        "train/1_mask.png": mask(0),
        "valid/2_sat.jpg": picture(),
    }
    with pytest.raises(InputError, match=r"'valid' .* no masks"):
        listed(unpack(tmp_path, files))
    assert len(listed(tmp_path / "train")) == 1


def test_links_are_followed_in_the_folder_that_is_named(root, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/images").symlink_to("../My Roads/images")
    (tmp_path / "data/masks").mkdir()
    for i in MASKS:
        (tmp_path / f"data/masks/{i}.png").symlink_to(f"../../My Roads/masks/{i}.png")
    with pytest.raises(InputError, match="--root"):
        listed(tmp_path / "data")
    dataset = resolve("masks:data?ignore=9", tmp_path)
    np.testing.assert_array_equal(dataset.read_mask("1.jpg"), MASKS[1] > 127)


# What is said of options that do not do.
SAID = {
    "is no regular expression": ["?stem=("],
    "finds nothing in '1.jpg'": ["?stem=^2", "?group=scene"],
    "two images are both known as '1'": ["?stem=."],
    "stem=.*foreground=.*classes=.*ignore=.*group=.*'foregrund=1'": ["?foregrund=1"],
    "foreground": ["?foreground", "?foreground=1&foreground=2"],
    "foreground=.*classes=": ["?foreground=1&classes=a,b"],
    "foreground=": ["?foreground=256"],
    r"none of 3 .* values 0, 1, 2, .* and \d+ more": ["?foreground=3"],
    "ignore=": ["?ignore=1,,2", "?ignore=-1"],
    "7 is": ["?foreground=7&ignore=7"],
    "8 is": ["?classes=a:7,b:8&ignore=8"],
    "2 to 255 classes": ["?classes=a,"],
    "once": ["?classes=a,a", "?classes=a:1,b"],
    "classes=": ["?classes=a:x,b"],
    "values or colours": [
        "?classes=a:#000000,b:1",
        "?classes=a:#000000,b:#ffffff&ignore=7",
        "?ignore=%23ff0000",
    ],
    "each value once": ["?classes=a:#ff0000,b:#FF0000"],
    "#ff0000 is": ["?classes=a:#ff0000,b:#0000ff&ignore=#ff0000"],
    "or colours as #ff0000": ["?classes=a:#ff,b:#000"],
}


@pytest.mark.parametrize(("told", "option"), [(t, o) for t, some in SAID.items() for o in some])
def test_options_that_do_not_do(root, option, told):
    with pytest.raises(InputError, match=told):
        listed(root, option)


def palette(colours, *some):
    image = Image.fromarray(values(*some)).convert("P")
    image.putpalette(colours)
    return encoded(image)


VOC = [0, 0, 0, 128, 0, 0, 0, 128, 0]  # the usual palette's black, red and green
GREYS = [0, 0, 0, 255, 255, 255, 128, 128, 128]
FOUR_BITS = png(WIDTH, HEIGHT, 4, 0, (b"\0" + b"\x01\x20" * 2) * HEIGHT)


def areas(*some):
    """Make a mask with an area of each value."""
    return encoded(np.repeat(np.array([some], np.uint8), 9, axis=1).repeat(9, axis=0))


SIX = "background:0,class1:1,class2:2,class3:3,class4:4,class5:5"
TENTHS = [25 * i for i in range(11)]
NUMBERED = {
    "?classes=background:0,foreground:1": [
        [mask(0, 1)],
        [mask(0, 1), mask(0)],
        [mask(1), mask(0)],
        [palette([0, 0, 0, 99, 99, 99], 0, 1)],
        *[[geotiff(values(0, 1)[None].astype(t))] for t in ("uint16", "int32", "float32")],
        [encoded(values(0, 1).astype(np.uint16))],
    ],
    "?classes=background:0,foreground:100": [[mask(0, 100)], [mask(100)]],
    "?classes=background:0,foreground:200": [[mask(0, 200)]],
    "?classes=background:1,foreground:2": [[mask(1, 2)]],
    "?classes=background:0,class1:1,class2:2": [
        [mask(0, 1, 2)],
        [mask(0, 1), mask(0, 2)],
        [palette(VOC, 0, 1, 2)],
        [palette(GREYS, 0, 1), palette(GREYS, 0, 1, 2)],
        [FOUR_BITS],
    ],
    "?classes=background:0,class128:128,class255:255": [[mask(0, 128, 255)]],
    "?classes=background:0,foreground:1&ignore=255": [[mask(0, 1, 255)], [mask(0, 1, 255), mask(0, 255)]],
    f"?classes={SIX}": [[mask(*range(6))]],
    f"?classes={SIX}&ignore=255": [[areas(*range(6), 255)], [mask(*range(6)), mask(0, 255)]],
    "?classes=background:0," + ",".join(f"class{v}:{v}" for v in TENTHS[1:]): [[areas(*TENTHS)]],
    # A few files of another coding among many.
    "?foreground=1,255": [[mask(0, 1), mask(0, 1), mask(0, 255)], [mask(0, 255), mask(0, 1)]],
}  # fmt: skip


@pytest.mark.parametrize(
    ("option", "masks"), [(o, m) for o, some in NUMBERED.items() for m in some]
)
def test_numbers_of_classes_are_refused_with_the_option_that_reads_them(tmp_path, option, masks):
    """Fault: every pixel was background, 255 was foreground although it meant "unlabelled"; the advice did not help."""
    files = {f"masks/{i}.png": data for i, data in enumerate(masks)}
    shapes = [decode_mask(data).shape for data in masks]
    files |= {f"images/{i}.png": picture(shape=shape) for i, shape in enumerate(shapes)}
    with pytest.raises(InputError) as caught:
        listed(unpack(tmp_path, files))
    assert str(caught.value).endswith(f"masks:PATH{option}")
    dataset, background = listed(tmp_path, option), int("background:1" in option)
    found = [dataset.read_mask(sample_id) for sample_id in dataset.sample_ids]
    for classes, data in zip(found, masks, strict=True):
        stored = decode_mask(data)
        assert len(np.unique(classes)) == len(np.unique(stored))
        assert ((classes == 0) == (stored == background)).all()
    assert dataset.understood().unusable == 0


COLOURS = np.array([[0, 0, 0], [0, 255, 255], [255, 255, 0], [255, 0, 255]], np.uint8)
CODED = values(0, 1, 2, 3)
NAMED = "?classes=0:#000000,road:#00FFFF,field:#ffff00&ignore=%23ff00ff"


def coloured(pixels=CODED, **options):
    return encoded(COLOURS[pixels], **options)


@pytest.mark.parametrize(
    "data",
    [
        coloured(),
        coloured(form="TIFF"),
        coloured(form="BMP"),
        palette(COLOURS.ravel().tolist(), 0, 1, 2, 3),
        encoded(np.dstack([COLOURS[CODED], values(255)])),
    ],
    ids=["PNG", "TIFF", "BMP", "palette", "opaque"],
)
def test_colours_are_classes_if_they_are_named(tmp_path, data):
    """Fault: masks in colours could not be read at all."""
    files = {f"images/{i}.png": picture() for i in (1, 2)}
    dataset = listed(unpack(tmp_path, files | {"masks/1.png": data, "masks/2.png": mask(0)}), NAMED)
    assert dataset.classes == ("0", "road", "field")
    np.testing.assert_array_equal(dataset.read_mask("1.png"), values(0, 1, 2, 255))
    np.testing.assert_array_equal(dataset.read_mask("2.png"), values(0))
    told = "colours in masks: '#000000' 0; '#00ffff' road; '#ffff00' field; '#ff00ff' ignored"
    assert dataset.readings == (told,)


def test_other_colours_are_refused_with_the_option_that_reads_them(tmp_path):
    files = {f"images/{i}.png": picture() for i in range(40)}
    files |= {f"masks/{i}.png": coloured(CODED % 3) for i in range(40)}
    with pytest.raises(InputError) as caught:
        listed(unpack(tmp_path, files))
    option = "?classes=background:#000000,class1:#00ffff,class2:#ffff00"
    assert str(caught.value).endswith(f"masks:PATH{option}")
    names = {listed(tmp_path, o).name for o in (option, option + ",class3:#123456", NAMED)}
    assert len(names) == 3
    with pytest.raises(InputError, match=r"'#ffff00', too, in classes="):
        listed(tmp_path, "?classes=a:#000000,b:#00ffff")
    with pytest.raises(InputError, match=r"none of 14 .* foreground"):
        listed(tmp_path, "?classes=a:#111111,b:#222222&ignore=#000000,#00ffff,#ffff00")
    unpack(tmp_path, {"masks/1.png": coloured()})  # is not sampled
    with pytest.raises(BadImage, match="'#ff00ff', too, in classes=") as told:
        listed(tmp_path, option).read_mask("1.png")
    assert told.value.code == "mask_values"


def test_photographs_are_no_masks_in_colours(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)
    clear = encoded(np.dstack([COLOURS[CODED], values(0, 255)]))
    for data in (encoded(pixels), coloured(form="JPEG"), clear):
        unpack(tmp_path, {"images/1.png": picture(), "masks/1.png": data})
        with pytest.raises(InputError, match=r"cannot be used: (?!.*its colours)"):
            listed(tmp_path)
        with pytest.raises(InputError):
            listed(tmp_path, NAMED)


SHARP = (np.indices((64, 96)).sum(axis=0) % 40 < 12) * np.uint8(255)


@pytest.mark.parametrize(
    "soften",
    [
        lambda image: image,
        lambda image: image.filter(ImageFilter.GaussianBlur(2)),
        lambda image: image.resize((48, 32), Image.Resampling.BILINEAR).resize(image.size, Image.Resampling.BICUBIC),
        lambda image: Image.open(io.BytesIO(encoded(image, "JPEG", quality=50))),
    ],
)  # fmt: skip
def test_soft_edges_and_blurred_ends_are_black_and_white(tmp_path, soften):
    data = encoded(soften(Image.fromarray(SHARP)))
    dataset = listed(
        unpack(tmp_path, {"images/1.png": picture(shape=SHARP.shape), "masks/1.png": data})
    )
    assert (dataset.read_mask("1.png") == SHARP // 255).mean() > 0.9
    assert dataset.understood().readings == (
        "values in masks: up to 127 background, others foreground",
    )


def test_what_values_were_taken_for_is_told(root):
    unpack(root, {f"masks/{i}.png": mask(0, 1, 7, 9) for i in (1, 2, 10)})
    told = listed(root, "?classes=sea:0,land:1,town:7&ignore=9").readings
    assert told == ("values in masks: 0 sea; 1 land; 7 town; 9 ignored",)
    assert listed(root, "?foreground=7").readings == (
        "values in masks: 0, 1, 9 background; 7 foreground",
    )
    found = listed(root, "?foreground=1,7").understood().pixels
    assert found == {"background": 17 / 35, "foreground": 18 / 35}


def test_another_coding_in_a_file_that_is_not_sampled_is_told_when_read(tmp_path):
    files = {f"images/{i}.png": picture() for i in range(40)}
    files |= {f"masks/{i}.png": mask(0, 1 if i == 1 else 255) for i in range(40)}
    dataset = listed(unpack(tmp_path, files))
    with pytest.raises(BadImage, match="mask") as caught:
        dataset.read_mask("1.png")
    assert caught.value.code == "mask_values"
    assert dataset.read_mask("2.png").max() == 1


USELESS = r"the mask masks/2\.png in .* cannot be used"


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (mask(0, shape=(WIDTH, HEIGHT)), r"2 of 3 .*images/2\.jpg is 7 x 5, its mask 5 x 7"),
        (encoded(np.dstack([values(0, 255)] * 2 + [values(0)])), USELESS),
        (encoded(np.full((HEIGHT, WIDTH), 300, np.uint16)), USELESS),
        (encoded(np.full((HEIGHT, WIDTH, 4), 254, np.uint8)), USELESS),
        (picture(form="JPEG"), USELESS),
    ],
)
def test_masks_that_do_not_do_are_told_when_listed(root, data, told):
    with pytest.raises(InputError, match=told):
        listed(unpack(root, {"masks/2.png": data, "masks/10.png": data}))


def test_an_image_that_cannot_be_used_is_no_fault_of_its_mask(root):
    """Fault: its mask was refused, and the dataset with it."""
    wide = encoded(values(0, 255).astype(np.uint16) * 257)
    dataset = listed(unpack(root, {"images/2.jpg": wide}))
    assert (len(dataset), dataset.understood().unusable) == (3, 1)


@pytest.mark.parametrize("make", [pack, unpack])
@pytest.mark.parametrize(
    ("data", "code"),
    [(b"", "empty"), (mask(0, 255)[:44], "truncated"), (b"no mask", "not_an_image")],
)
def test_a_damaged_mask_is_told_when_read(tmp_path, make, data, code):
    dataset = listed(make(tmp_path / "a", FILES | {"masks/2.png": data}))
    assert dataset.read_mask("1.jpg").max() == 1
    with pytest.raises(BadImage) as caught:
        dataset.read_mask("2.jpg")
    assert caught.value.code == code


# Roads

ROAD = np.zeros((6, 8, 3), np.uint8)
ROAD[2:4] = 255


def made(image="image{}.bmp", label="{}.bmp", parts=("Train", "Validation", "Test")):
    """Make the files of a small copy."""
    files = {}
    for part, i in itertools.product(parts, (1, 2, 10)):
        files[f"{part}/image/{image.format(i)}"] = encoded(ROAD // 2 + i)
        for folder in ("label", "centerline"):
            files[f"{part}/{folder}/{label.format(i)}"] = encoded(ROAD)
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
def test_roads_with_labels_in_their_parts(tmp_path, make, top, image, label):
    files = {f"{top}{name}": data for name, data in made(image, label).items()}
    dataset = resolve("roads", make(tmp_path / "data", files))
    assert (dataset.name, dataset.classes) == ("roads", ("background", "road"))
    assert dataset.sample_ids == tuple(f"{p}/{image.format(i)}" for p in PARTS for i in (1, 2, 10))
    assert dataset.parts == tuple(p for p in PARTS for _ in range(3))
    sample_id = dataset.sample_ids[4]
    assert dataset.read(sample_id) == files[f"{top}Validation/image/{image.format(2)}"]
    np.testing.assert_array_equal(dataset.read_mask(sample_id), ROAD[..., 0] > 127)


def test_all_roads_are_160_20_44_and_a_part_says_so(tmp_path, monkeypatch):
    assert list(roads.COUNTS.items()) == [("train", 160), ("validation", 20), ("test", 44)]
    root = unpack(tmp_path, made())
    note = resolve("roads", root).note
    assert "do not redistribute images or embeddings" in note
    assert note.endswith("224 expected, got 9 (3 train, 3 validation, 3 test)")
    monkeypatch.setattr(roads, "COUNTS", dict.fromkeys(PARTS, 3))
    assert resolve("roads", root).note == note.partition("; not the published")[0]


def test_without_a_root_it_is_told_where_to_get_roads():
    for download in (True, False):
        with pytest.raises(InputError, match=r"ipythonx/tgrs-road.*--root.*image/\*\.bmp"):
            resolve("roads", download=download)
    with pytest.raises(InputError, match="takes no argument, got '5'"):
        resolve("roads:5")


@pytest.mark.parametrize(
    ("files", "told"),
    [
        (made(parts=("Train", "Test")), "each part, but 'Train/, Test/'"),
        ({k: v for k, v in made().items() if "Test/label" not in k}, "in 'Test'"),
        (made(image="image_{}.bmp"), "3 of 3 images have no mask .* and 3 of 3 masks"),
        (made() | {"Test/image/2.bmp": encoded(ROAD)}, "two images are both known as '2'"),
    ],
)
@pytest.mark.parametrize("make", [pack, unpack])
def test_other_layouts_of_roads_are_refused(tmp_path, make, files, told):
    with pytest.raises(InputError, match=told):
        resolve("roads", make(tmp_path / "data", files))


@pytest.mark.data
def test_real_roads():
    if "SAMTL_DATA" not in os.environ:
        pytest.skip("SAMTL_DATA is unset: no folder with roads_dubai.zip to read")
    path = Path(os.environ["SAMTL_DATA"]) / "roads_dubai.zip"
    dataset = listed(path, r"?group=dubai_(t\d+)&classes=background:0,road:255")
    assert (len(dataset), dataset.classes) == (72, ("background", "road"))
    assert sorted(set(dataset.groups)) == [f"t{i}" for i in range(1, 9)]
    for sample_id in dataset.sample_ids[::23]:
        found = dataset.read_mask(sample_id)
        assert set(np.unique(found)) <= {0, 1}
        assert found.shape == decode(dataset.read(sample_id)).shape[:2]
