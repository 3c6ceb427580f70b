"""Data sets as TorchGeo and torchvision have them: what their samples are taken for, and what is refused."""

import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import toys
from PIL import Image
from torch.utils.data import ConcatDataset, IterableDataset, Subset, TensorDataset

import samtl
from samtl.errors import InputError
from samtl.images.codecs import BadImage, decode

N = 6
PIXELS = np.random.default_rng(0).integers(0, 256, (N, 12, 10, 3), np.uint8)
CLASSES = ["Forest", "River"]


class TorchGeo:
    """Dicts of float32 tensors (bands, height, width), and targets of int64, as TorchGeo's data sets give them."""

    def __init__(self, images, targets=None, key="label", **attributes):
        self.images, self.given, self.key = images, targets, key
        vars(self).update(attributes)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image = torch.from_numpy(np.asarray(self.images[index])).permute(2, 0, 1).float()
        sample = {"image": image, "crs": "EPSG:32632"}
        if self.given is not None:
            sample[self.key] = torch.as_tensor(self.given[index], dtype=torch.long)
        return sample


class ImageFolder:
    """Pairs of a Pillow image and a number, with the attributes of torchvision's `ImageFolder`."""

    def __init__(self, root, transform=None):
        self.root, self.transform = root, transform
        self.classes = sorted(path.name for path in root.iterdir())
        self.class_to_idx = {name: i for i, name in enumerate(self.classes)}
        self.samples = self.imgs = [
            (str(path), self.class_to_idx[path.parent.name]) for path in sorted(root.glob("*/*"))
        ]
        self.targets = [target for _, target in self.samples]
        self.reads = 0

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        self.reads += 1
        path, target = self.samples[index]
        with Image.open(path) as file:
            image = file.convert("RGB")
        return (self.transform(image) if self.transform else image), target


def to_tensor(image):
    """As torchvision's transform of that name."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


@pytest.fixture
def pictures(tmp_path):
    for i, pixels in enumerate(PIXELS):
        path = tmp_path / "pictures" / CLASSES[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(toys.encoded(pixels))
    return tmp_path / "pictures"


def pixels_of(dataset):
    return {name: decode(dataset.read(name)) for name in dataset.sample_ids}


def test_torchgeo_classification():
    source = TorchGeo(PIXELS, [0, 1, 0, 1, 1, 0], classes=CLASSES, split="train")
    found = samtl.from_torch(source)
    assert (found.name, found.classes, found.labels) == (
        "torch-TorchGeo-train", tuple(CLASSES), (0, 1, 0, 1, 1, 0)
    )  # fmt: skip
    assert found.sample_ids == tuple(f"{i:06d}" for i in range(N))
    np.testing.assert_array_equal([*pixels_of(found).values()], PIXELS)
    assert any("0 to 255" in told for told in found.readings)
    unnamed = samtl.from_torch(TorchGeo(PIXELS, [0, 1, 0, 2, 1, 0]))
    assert unnamed.classes == ("0", "1", "2")


def test_torchvision_gives_the_ids_and_pixels_of_its_folder(pictures):
    source = ImageFolder(pictures)
    found = samtl.from_torch(source)
    folder = samtl.datasets.resolve(f"folder:{pictures}")
    for field in ("classes", "sample_ids", "labels"):
        assert getattr(found, field) == getattr(folder, field)
    assert source.reads <= 2 * N  # labels are listed
    for transform, told in ((None, "8 bits"), (to_tensor, "0 to 1")):
        again = samtl.from_torch(ImageFolder(pictures, transform))
        assert any(told in reading for reading in again.readings)
        assert pixels_of(again).keys() == pixels_of(folder).keys()
        for name, pixels in pixels_of(folder).items():
            np.testing.assert_array_equal(decode(again.read(name)), pixels)


def test_targets_that_are_transformed_are_read_from_the_samples(pictures):
    source = ImageFolder(pictures)
    source.targets = [1 - target for target in source.targets]
    assert samtl.from_torch(source).labels == tuple(target for _, target in source.samples)


def test_subsets_concatenations_and_parts_are_followed(pictures):
    whole = ImageFolder(pictures)
    found = samtl.from_torch(Subset(whole, [4, 1]))
    assert (found.sample_ids, found.labels) == (("River/3.png", "Forest/2.png"), (1, 0))
    assert found.classes == tuple(CLASSES)
    parts = {
        "train": Subset(whole, [0, 3]),
        "val": Subset(whole, [1, 4]),
        "test": Subset(whole, [2, 5]),
    }
    found = samtl.from_torch(parts)
    assert found.parts == ("train",) * 2 + ("validation",) * 2 + ("test",) * 2
    both = samtl.from_torch(ConcatDataset([parts["test"], parts["train"]]))
    assert both.sample_ids == tuple(found.sample_ids[i] for i in (4, 5, 0, 1))
    np.testing.assert_array_equal(
        decode(both.read("River/1.png")), decode(found.read("River/1.png"))
    )
    other = TorchGeo(PIXELS, [0] * N, classes=["a", "b"])
    with pytest.raises(InputError, match="the same classes"):
        samtl.from_torch(ConcatDataset([whole, other]))
    with pytest.raises(InputError, match="train, val and test"):
        samtl.from_torch({"image": whole})


def test_masks_of_torchgeo_and_torchvision():
    masks = np.random.default_rng(1).integers(0, 3, (N, 12, 10))
    masks[:, 0, 0] = 255
    names = ["background", "road", "water"]
    found = samtl.from_torch(TorchGeo(PIXELS, masks, "mask", classes=names))
    assert (found.task, found.classes) == ("segmentation", tuple(names))
    pairs = [
        (Image.fromarray(p), Image.fromarray(m.astype(np.uint8)))
        for p, m in zip(PIXELS, masks, strict=True)
    ]
    layered = TorchGeo(PIXELS, masks[:, None], "mask")
    for other in (
        samtl.from_torch(pairs, classes=names),
        samtl.from_torch(layered, classes=names),
    ):
        for name, mask in zip(other.sample_ids, masks, strict=True):
            np.testing.assert_array_equal(other.read_mask(name), mask)
    binary = samtl.from_torch(TorchGeo(PIXELS, masks % 2, "mask"))
    assert binary.classes == ("background", "foreground")


@pytest.mark.parametrize(
    ("masks", "names"),
    [
        (np.full((N, 12, 10), 2), None),  # no names
        (np.arange(120).reshape(12, 10)[None] % 2 * np.ones((N, 1, 1), int) * 255, ["a", "b"]),
        (np.full((N, 12, 10), 3), ["a", "b", "c"]),
        (np.full((N, 12, 10), -1), ["a", "b"]),
    ],
    ids=["unnamed", "0 and 255", "more than there are names", "negative"],
)
def test_masks_that_may_mean_something_else_are_refused(masks, names):
    with pytest.raises(InputError):
        samtl.from_torch(TorchGeo(PIXELS, masks, "mask", classes=names))


def test_bands_by_their_names_or_positions():
    spectral = np.random.default_rng(2).integers(0, 3000, (N, 12, 10, 5))
    names = {"bands": ("B01", "B02", "B03", "B04", "B08"), "rgb_bands": ("B04", "B03", "B02")}
    source = TorchGeo(spectral, [0, 1] * 3, **names)
    with pytest.raises(InputError, match="value_range"):
        samtl.from_torch(source)
    found = samtl.from_torch(source, value_range=(0, 2550))
    wanted = np.rint(spectral[..., [3, 2, 1]].clip(0, 2550) / 10)
    np.testing.assert_array_equal([*pixels_of(found).values()], wanted)
    assert any("B04, B03, B02" in told for told in found.readings)
    unnamed = TorchGeo(spectral, [0, 1] * 3)
    with pytest.raises(InputError, match="5 bands"):
        samtl.from_torch(unnamed, value_range=(0, 2550))
    again = samtl.from_torch(unnamed, value_range=(0, 2550), bands=(3, 2, 1))
    assert [*map(again.read, again.sample_ids)] == [*map(found.read, found.sample_ids)]
    false_colour = TorchGeo(
        PIXELS, [0, 1] * 3, bands=("B08", "B04", "B03"), rgb_bands=names["rgb_bands"]
    )
    with pytest.raises(InputError, match="B08"):
        samtl.from_torch(false_colour)
    for wrong in ((0, 1), (0, 1, -1)):
        with pytest.raises(InputError, match="three positions"):
            samtl.from_torch(unnamed, bands=wrong)
    with pytest.raises(InputError, match="lower and a higher"):
        samtl.from_torch(unnamed, value_range=(1, 0))


@pytest.mark.parametrize(
    "images",
    [
        PIXELS / 127.5 - 1,  # normalised
        PIXELS * 257.0,  # 16 bits
        PIXELS / 200.0,  # reflectances, some above 1
        PIXELS % 2 * 1.0,  # black, or white?
        PIXELS.astype(np.uint16).view(np.int16),
    ],
    ids=["negative", "16 bits", "up to 1.3", "0 and 1", "integers"],
)
def test_values_that_may_mean_several_things_are_refused(images):
    source = [(image, 0) for image in images]
    with pytest.raises(InputError, match="value_range"):
        samtl.from_torch(source, classes=CLASSES)
    samtl.from_torch(source, classes=CLASSES, value_range=(0, 1))


def test_an_image_that_is_not_as_the_others_is_no_reason_to_stop(encoders, tmp_path):
    images = [*np.repeat(PIXELS, 8, axis=0) / 255]
    images[1] = images[1] * 255  # between those that are looked at
    images[2] = np.full_like(images[2], np.nan)
    found = samtl.from_torch([(image, i % 2) for i, image in enumerate(images)])
    for name in ("000001", "000002"):
        with pytest.raises(BadImage):
            found.read(name)
    result = samtl.embed(found, "stub", out=tmp_path / "a.zarr", tiers=["pooled"])
    assert {one.code for one in result.quarantined} == {"unsupported_mode"}
    assert len(result.quarantined) == 2


class Words(IterableDataset):
    def __iter__(self):
        yield from ()


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ([(image, [0, 2]) for image in PIXELS], "0 or 1 for each class"),
        ([(image, [0, 1][: 1 + i % 2] * 2) for i, image in enumerate(PIXELS)], "for each of"),
        ([(image, float(i % 2)) for i, image in enumerate(PIXELS)], "not certain"),
        ([(image, 0.5 if i else 1) for i, image in enumerate(PIXELS)], "of one kind"),
        ([(image, 100 * (i % 2)) for i, image in enumerate(PIXELS)], "classes="),
        ([{"image": p, "label": 0, "mask": p[..., 0]} for p in PIXELS], "target="),
        ([{"image1": p, "image2": p} for p in PIXELS], "image1"),
        ([(p, 0, 1) for p in PIXELS], "tuple of 3"),
        ([(p, i) if i else (p,) for i, p in enumerate(PIXELS)], "others none"),
        (Words(), "by their number"),
        ([], "no samples"),
        (7, "by their number"),
        (["a.png"] * 3, "str"),
    ],
)  # fmt: skip
def test_what_is_no_such_data_set_is_refused(source, told):
    with pytest.raises(InputError, match=told):
        samtl.from_torch(source)


def test_random_transforms_are_refused():
    class Jittered(TorchGeo):
        def __getitem__(self, index):
            sample = super().__getitem__(index)
            return {**sample, "image": (sample["image"] * random.uniform(0.5, 1)).round()}

    with pytest.raises(InputError, match="random transforms"):
        samtl.from_torch(Jittered(PIXELS, [0, 1] * 3))


def test_other_shapes_of_the_same(pictures):
    texts = [{"image": p, "label": CLASSES[i % 2]} for i, p in enumerate(PIXELS)]
    assert samtl.from_torch(texts).labels == (0, 1) * 3
    both = [{"image": p, "label": 1, "mask": p[..., 0] % 2} for p in PIXELS]
    assert samtl.from_torch(both, target="mask").task == "segmentation"
    assert samtl.from_torch(both, target="label", classes=CLASSES).labels == (1,) * N
    alone = samtl.from_torch(TensorDataset(torch.from_numpy(PIXELS).permute(0, 3, 1, 2)))
    assert (alone.classes, set(alone.labels)) == ((), {-1})
    grey = samtl.from_torch([(p[..., 0], i % 2) for i, p in enumerate(PIXELS)])
    np.testing.assert_array_equal(pixels_of(grey)["000000"][..., 2], PIXELS[0, ..., 0])

    class Features(dict):
        names = CLASSES

    hugging_face = TorchGeo(PIXELS, [0, 1] * 3, features={"label": Features()})
    assert samtl.from_torch(hugging_face).classes == tuple(CLASSES)


def test_a_sample_that_raises_is_quarantined_and_one_of_the_drive_is_not(encoders, tmp_path):
    class Broken(TorchGeo):
        def __getitem__(self, index):
            if index == 1:
                raise RuntimeError("GDAL says no")
            return super().__getitem__(index)

    result = samtl.embed(Broken(PIXELS, [0, 1] * 3), "stub", out=tmp_path / "a.zarr")
    (bad,) = result.quarantined
    assert (bad.sample_id, bad.code) == ("000001", "unreadable")
    assert "GDAL says no" in bad.reason


def test_a_pass_resumes_by_the_pixels(encoders, tmp_path):
    out, labels = tmp_path / "a.zarr", np.arange(40) % 2
    images = np.random.default_rng(3).integers(0, 256, (40, 8, 8, 3), np.uint8)
    source = TorchGeo(images, labels, classes=CLASSES)
    seen = []
    stop = {"on_event": seen.append, "should_stop": lambda: encoders.images >= 20}
    first = samtl.embed(source, "stub", out=out, batch_size=4, **stop)
    assert first.interrupted
    again = samtl.embed(source, "stub", out=out)
    assert (again.missing, encoders.images) == (0, 40)
    turned = TorchGeo(images[::-1], labels[::-1], classes=CLASSES)
    result = samtl.embed(turned, "stub", out=out)
    assert (encoders.images, result.plan.changes.changed) == (40, 40)
    store = samtl.open(out)
    X, y = store.features("pooled", rows=[store.row_of["000003"]])
    before = samtl.embed(source, "stub", out=tmp_path / "b.zarr").store
    other = samtl.open(before)
    np.testing.assert_array_equal(X[0], other["000036"]["pooled"])
    assert y[0] == other["000036"]["label"]
    samtl.embed(TorchGeo(images[:39], labels[:39], classes=CLASSES), "stub", out=out)
    assert len(samtl.open(out)) == 39


def test_it_travels_to_worker_processes(pictures):
    found = samtl.from_torch(ImageFolder(pictures))
    other = pickle.loads(pickle.dumps(found))
    assert [*map(other.read, found.sample_ids)] == [*map(found.read, found.sample_ids)]


def test_the_plan_shows_what_was_guessed(encoders, tmp_path):
    source = TorchGeo(PIXELS, [0, 1] * 3, classes=CLASSES)
    found = samtl.embed(source, "stub", out=tmp_path / "a.zarr").plan.understood
    assert any("0 to 255" in told for told in found.readings)
    assert found.classes == {"Forest": 3, "River": 3}
    with pytest.raises(InputError, match="takes no root"):
        samtl.datasets.resolve(source, root=Path())


def test_several_classes_and_measurements():
    several = np.eye(N, 19, dtype=int) + np.eye(N, 19, k=1, dtype=int)
    found = samtl.from_torch(TorchGeo(PIXELS, several))
    assert (found.task, len(found.classes)) == ("multilabel", 19)
    assert found.labels == tuple((i, i + 1) for i in range(N))
    floats = samtl.from_torch([*zip(PIXELS, torch.from_numpy(several).float(), strict=True)])
    assert floats.labels == found.labels
    single = samtl.from_torch(TorchGeo(PIXELS, np.eye(N, dtype=int)))
    assert (single.task, single.labels) == ("classification", tuple(range(N)))
    assert any("single 1" in told for told in single.readings)
    measured = samtl.from_torch([(p, torch.tensor(i / 4)) for i, p in enumerate(PIXELS)])
    assert (measured.task, measured.classes) == ("regression", ("label",))
    np.testing.assert_array_equal(measured.truth, np.arange(N) / 4)
    named = samtl.from_torch([(p, float(i)) for i, p in enumerate(PIXELS)], classes=["height"])
    assert (named.task, named.classes) == ("regression", ("height",))
