"""The floor is what it says: known classifiers on known statistics, and colours alone."""

import numpy as np
import pytest
import toys
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from samtl.baselines.floor import Baseline
from samtl.baselines.pixels import read_image
from samtl.datasets import IGNORE
from samtl.heads import logreg
from samtl.images.codecs import statistics

TRAIN, HELD, TEST = np.arange(30), np.arange(30, 45), np.arange(45, 60)


def test_classification_is_of_the_statistics():
    dataset = toys.stripes(classes=4)
    found = list(Baseline().fit(dataset, TRAIN, HELD).predict_all(dataset, TEST))
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
    baseline = Baseline().fit(dataset, np.arange(12), [])
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
    made = Baseline().fit(dataset, rows[:16], rows[16:]).predict_all(dataset, rows, image_size=32)
    found = np.concatenate([guess["mean-colour"].ravel() for guess in made])
    assert (found == expected).mean() > 0.9995  # ties between rounded colours
    assert len(np.unique(found)) == 4


def test_the_most_frequent_class_everywhere():
    dataset = toys.blobs()

    def predicted():
        baseline = Baseline().fit(dataset, [0, 1], [2])
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
    baseline = Baseline().fit(dataset, np.arange(12), [])
    assert baseline.tensors()["counts"][2] == 0
    np.testing.assert_allclose(baseline.tensors()["means"], [*toys.COLOURS[:2], [0, 0, 0]])
    black = toys.encoded(np.zeros((32, 32, 3), np.uint8))  # the colour of no pixels at all
    dataset.read.content[dataset.sample_ids[3]] = black
    found = baseline.predict_all(dataset, [0, 3], image_size=32)
    assert set(np.unique([each["mean-colour"] for each in found])) <= {0, 1}
