"""Every baseline learns, repeats itself, survives saving, and reads only what it may; the floor is what it says."""

import numpy as np
import pytest
import toys
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from samtl import registry
from samtl.baselines import floor, vgg19
from samtl.baselines.pixels import read_image
from samtl.datasets import IGNORE
from samtl.errors import InputError
from samtl.heads import logreg
from samtl.heads.io import load, save
from samtl.images.codecs import statistics

pytestmark = pytest.mark.usefixtures("one_thread")

# Small and quick to train; a baseline that is not here is tried with its defaults.
SMALL = {
    "cnn": {"image_size": 32, "epochs": 8, "batch_size": 8},
    "unet": {"image_size": 32, "width": 8, "epochs": 20, "batch_size": 4, "lr": 1e-2},
    "vgg19": {"checkpoint": "random:0", "image_size": 32, "device": "cpu"},
}
SIZE = 32  # longest side of class maps: that of the images, so that colours stay as they are
CASES = [
    (name, task)
    for name in registry.names("baselines")
    for task in registry.load("baselines", name).Baseline.tasks
]


@pytest.fixture(scope="module", autouse=True)
def _narrow():
    """Make VGG-19 narrow, which is quick; all else about it stays."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vgg19, "BLOCKS", ((16,), (16, 16), (32,), (32,), (64,)))
        patch.setattr(vgg19, "N_FEATURES", 128)
        yield


def make(name, **parameters):
    return registry.load("baselines", name).Baseline(**{**SMALL.get(name, {}), **parameters})


TOYS = {
    "classification": toys.stripes, "multilabel": toys.several, "regression": toys.numbers,
    "segmentation": toys.blobs,
}  # fmt: skip


def toy(task, **parameters):
    return TOYS[task](**parameters)


def parts(dataset):
    """Rows to train on, to validate on, to test on: of each class in each part."""
    train, validation = len(dataset) // 2, len(dataset) * 3 // 4
    return np.split(np.arange(len(dataset)), [train, validation])


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def fitted(request):
    """Give (name, task, dataset, baseline)."""
    name, task = request.param
    dataset = toy(task)
    train, validation, test = parts(dataset)
    readers = [r for r in (dataset.read, dataset.read_mask) if r is not None]
    for reader in readers:
        reader.forbidden = {dataset.sample_ids[row] for row in test}
    baseline = make(name).fit(dataset, train, validation)
    assert {*dataset.read.asked} == {dataset.sample_ids[row] for row in (*train, *validation)}
    dataset.read.forbidden = set()  # the masks stay so: predicting needs none
    return name, task, dataset, baseline


def predicted(baseline, dataset, rows):
    found = baseline.predict_all(dataset, rows, image_size=SIZE)
    return [next(iter(each.values())) for each in found]


def test_it_learns_what_can_be_told_apart(fitted):
    name, task, dataset, baseline = fitted
    assert baseline.untrained == (name == "vgg19")
    assert baseline.weights == ("untrained (random:0)" if name == "vgg19" else "")
    rows = parts(dataset)[2]
    found = predicted(baseline, dataset, rows)
    if task == "regression":
        hits = abs(np.concatenate(found)[:, 0] - dataset.truth[rows]) < 2
    elif task == "multilabel":
        hits = (np.concatenate(found) >= 0.5) == dataset.truth[rows]
    elif task == "classification":
        chances = np.concatenate(found)
        assert chances.shape == (len(rows), 3)
        assert chances.dtype == np.float64
        np.testing.assert_allclose(chances.sum(axis=1), 1, rtol=1e-9)
        hits = chances.argmax(axis=1) == np.array(dataset.labels)[rows]
    else:
        truth = [dataset.read_mask.content[dataset.sample_ids[row]] for row in rows]
        about = [(guess.dtype, guess.shape) for guess in found]
        assert about == [(np.uint8, mask.shape) for mask in truth]
        hits = np.concatenate([(m == g)[m != IGNORE] for m, g in zip(truth, found, strict=True)])
    assert hits.mean() >= 0.99


@pytest.mark.parametrize(("name", "task"), CASES)
def test_a_seed_gives_the_same_weights_and_a_validation_part_may_be_empty(name, task):
    short = {"epochs": 1} if name in ("cnn", "unet") else {}
    one, other = (make(name, **short).fit(toy(task, n=12), np.arange(12)) for _ in range(2))
    np.testing.assert_equal(one.tensors(), other.tensors())
    assert one.curves_ == other.curves_
    assert predicted(one, toy(task), []) == []
    assert len(predicted(one, toy(task), [0])) == 1


def test_a_saved_one_predicts_the_same(fitted, tmp_path):
    _, _, dataset, baseline = fitted
    save(baseline, tmp_path)
    again, rows = load(tmp_path), parts(dataset)[2]
    expected = list(baseline.predict_all(dataset, rows, image_size=SIZE))
    found = list(again.predict_all(dataset, rows, image_size=SIZE))
    assert [list(each) for each in found] == [list(each) for each in expected]
    np.testing.assert_equal(found, expected)


def test_another_dataset_is_refused(fitted):
    name, task, _, baseline = fitted
    other = toy("segmentation" if task == "classification" else "classification")
    more = () if task == "regression" else (toy(task, classes=4),)
    for wrong in (*more, other):
        with pytest.raises(InputError, match=f"was fitted for {task} into"):
            baseline.predict_all(wrong, [0])
    if len(baseline.tasks) == 1:
        with pytest.raises(InputError, match=f"{name} is for {task}, not {other.task}"):
            make(name).fit(other, [0, 1, 2], [3])


WRONG = {
    "cnn": {"epochs": 0, "batch_size": 1.5, "lr": float("nan"), "weight_decay": -1, "dropout": 1},
    "unet": {"width": 0, "image_size": 16, "lr": 0, "patience": "long"},
    "vgg19": {"image_size": 100},
    "floor": {"neighbours": 0},
}


@pytest.mark.parametrize("name", WRONG)
def test_parameters_out_of_range_are_refused(name):
    for parameter, value in WRONG[name].items():
        baseline = make(name, **{parameter: value})
        with pytest.raises(InputError, match=f"{parameter} must be"):
            baseline.fit(toy(baseline.tasks[0]), [0, 1, 2], [3])


@pytest.mark.parametrize(("name", "task"), CASES)
def test_an_image_that_is_gone_is_named(name, task):
    dataset = toy(task)
    lost = dataset.sample_ids[4]
    dataset.read.content[lost] = FileNotFoundError(2, "No such file or directory")
    with pytest.raises(InputError, match=f"image '{lost}' of {dataset.name} cannot be read"):
        make(name).fit(dataset, *parts(dataset)[:2])


def test_a_class_without_an_image_is_named():
    with pytest.raises(InputError, match="'class2' has none"):
        make("cnn").fit(toys.stripes(), [0, 1, 3], [2])


TRAIN, HELD, TEST = np.arange(30), np.arange(30, 45), np.arange(45, 60)


def test_classification_is_of_the_statistics():
    dataset = toys.stripes(classes=4)
    found = list(floor.Baseline().fit(dataset, TRAIN, HELD).predict_all(dataset, TEST))
    assert [list(each) for each in found] == [["logreg", "knn"]]
    X = np.stack([statistics(read_image(dataset, row)) for row in range(60)])
    y = np.array(dataset.labels)
    head = logreg.Head().fit(X[TRAIN], y[TRAIN], (X[HELD], y[HELD]))
    np.testing.assert_array_equal(found[0]["logreg"], head.predict_proba(X[TEST]))
    knn = make_pipeline(StandardScaler(), KNeighborsClassifier(5)).fit(X[:45], y[:45])
    np.testing.assert_array_equal(found[0]["knn"], knn.predict_proba(X[TEST]))


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_colours_that_never_vary_are_told_apart_exactly(classes):
    dataset = toys.blobs(classes=classes, noise=0)
    baseline = floor.Baseline().fit(dataset, np.arange(12), [])
    for row, found in enumerate(baseline.predict_all(dataset, np.arange(24), image_size=32)):
        mask = dataset.read_mask(dataset.sample_ids[row])
        known = mask != IGNORE
        np.testing.assert_array_equal(found["mean-colour"][known], mask[known])


def test_mean_colour_is_discriminant_analysis_without_frequencies():
    dataset, rows = toys.blobs(classes=4, noise=60), np.arange(24)  # overlapping
    images = [read_image(dataset, row) for row in rows]
    masks = [dataset.read_mask(sample) for sample in dataset.sample_ids]
    colours = np.concatenate([i[m != IGNORE] for i, m in zip(images, masks, strict=True)])
    codes = np.concatenate([m[m != IGNORE] for m in masks])
    known = LinearDiscriminantAnalysis(priors=[0.25] * 4).fit(colours, codes)
    expected = known.predict(np.concatenate([image.reshape(-1, 3) for image in images]))
    baseline = floor.Baseline().fit(dataset, rows[:16], rows[16:])
    made = baseline.predict_all(dataset, rows, image_size=32)
    found = np.concatenate([guess["mean-colour"].ravel() for guess in made])
    assert (found == expected).mean() > 0.9995  # ties between rounded colours
    assert len(np.unique(found)) == 4


def test_the_most_frequent_class_everywhere():
    dataset = toys.blobs()

    def predicted():
        baseline = floor.Baseline().fit(dataset, [0, 1], [2])
        return next(baseline.predict_all(dataset, [3], image_size=50))

    found = predicted()
    assert list(found) == ["mean-colour", "all-background"]
    assert not found["all-background"].any()
    assert found["all-background"].shape == found["mean-colour"].shape
    for mask in dataset.read_mask.content.values():
        mask[mask == 0] = 2
    assert (predicted()["all-class2"] == 2).all()


def test_a_class_without_pixels_is_never_claimed_and_what_is_ignored_never_learnt():
    dataset = toys.blobs(classes=3, noise=0)
    for mask in dataset.read_mask.content.values():
        mask[mask == 2] = IGNORE
    baseline = floor.Baseline().fit(dataset, np.arange(12), [])
    assert baseline.tensors()["counts"][2] == 0
    np.testing.assert_allclose(baseline.tensors()["means"], [*toys.COLOURS[:2], [0, 0, 0]])
    black = toys.encoded(np.zeros((32, 32, 3), np.uint8))  # the colour of no pixels at all
    dataset.read.content[dataset.sample_ids[3]] = black
    found = baseline.predict_all(dataset, [0, 3], image_size=32)
    assert set(np.unique([each["mean-colour"] for each in found])) <= {0, 1}
