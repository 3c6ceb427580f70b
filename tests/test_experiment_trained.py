"""A head that is loaded again says what its run said, and behaves as a classifier of scikit-learn."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import stubs
import toys
from fake_runs import read_csv
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import ConfusionMatrixDisplay, r2_score
from sklearn.model_selection import cross_val_score
from sklearn.utils.validation import check_is_fitted

import samtl
from samtl.errors import InputError, MismatchError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Stores of labelled images, two of them unusable, and of images with masks; and runs on them."""
    root = tmp_path_factory.mktemp("made")
    masked = toys.blobs(12, classes=2, shapes=((32, 32), (16, 40)))
    store = samtl.open(stubs.embedded(root, stubs.small_dataset(), 64, ["pooled", "grid"]))
    masks = samtl.open(stubs.embedded(root, masked, 64, ["dense"]))
    small = {"width": 4, "epochs": 1}
    runs = {
        "logreg": samtl.fit_head(store, "logreg", 0.25, out=root),
        "columns": samtl.fit_head(store, "logreg", 0.25, features="mean,max", out=root),
        "conv": samtl.fit_head(store, "conv", 0.25, params=small, out=root),
        "masks": samtl.fit_head(masks, "conv", 0.25, params=small, out=root),
        "floor": samtl.fit_baseline(stubs.toy_dataset(37), "floor", 0.25, out=root),
    }
    return SimpleNamespace(root=root, store=store, masks=masks, runs=runs)


@pytest.mark.parametrize("name", ["logreg", "columns", "conv"])
def test_it_predicts_what_the_run_predicted(made, name):
    run, store = made.runs[name], made.store
    head = samtl.load_head(run)
    assert (head.class_names, head.classes_.tolist()) == (store.classes, [0, 1, 2])
    table = read_csv(run.path / "predictions.csv")
    rows = [store.row_of[line["sample_id"]] for line in table]
    chances = [[float(line[f"p_{name}"]) for name in store.classes] for line in table]
    np.testing.assert_allclose(head.predict_proba(store, rows), chances, atol=1e-6)
    columns = {"columns": "mean,max"}.get(name)
    X, y = store.features(head.tier, rows=rows, columns=columns)
    np.testing.assert_allclose(head.predict_proba(X), chances, atol=1e-6)
    assert head.predict(X).tolist() == head.predict(store, rows).tolist()
    assert [store.classes[i] for i in head.predict(X)] == [line["predicted"] for line in table]
    assert head.score(X, y) == pytest.approx(run.metrics["accuracy"].value)


def test_it_is_a_classifier_of_scikit_learn(made):
    head = samtl.load_head(str(made.runs["logreg"].path))
    check_is_fitted(head)
    assert is_classifier(head)
    X, y = made.store.features()
    assert clone(head).predict(X[:5].tolist()).tolist() == head.predict(X[:5]).tolist()
    calibrated = CalibratedClassifierCV(FrozenEstimator(head), ensemble=False).fit(X, y)
    assert calibrated.predict_proba(X).shape == (len(X), 3)
    with pytest.raises(InputError, match="trained already"):
        cross_val_score(head, X, y, error_score="raise")
    pytest.importorskip("matplotlib").use("agg")
    ConfusionMatrixDisplay.from_estimator(head, X, y)


def test_masks_line_up_with_those_of_the_store(made):
    head, store = samtl.load_head(made.runs["masks"].path), made.masks
    found, truth = head.predict(store), store.read("mask")
    assert (found.shape, found.dtype) == (truth.shape, truth.dtype)
    assert (truth[found == 255] == 255).all()
    assert (found == 255).any(axis=(1, 2)).sum() == 6  # images that are wide
    X, _ = store.features("dense")
    inside = truth != 255
    np.testing.assert_array_equal(head.predict(X)[inside], found[inside])
    chances = head.predict_proba(store, rows=[3])
    assert chances.shape == (1, 2, 16, 16)
    np.testing.assert_allclose(chances.sum(axis=1), 1)


def test_what_does_not_fit_is_refused(made, tmp_path):
    head, store = samtl.load_head(made.runs["columns"]), made.store
    X, _ = store.features()
    with pytest.raises(InputError, match="columns mean, max"):
        head.predict(X)
    for wrong in (X[0], X[:, :3], store.features("grid")[0]):
        with pytest.raises(InputError, match="takes features"):
            head.predict(wrong)
    with pytest.raises(InputError, match="2 rows"):
        head.predict(store)
    with pytest.raises(InputError, match="of a store"):
        head.predict(X, rows=[1])
    with pytest.raises(InputError, match="no rows"):
        head.predict(store, rows=[])
    other = samtl.open(stubs.embedded(tmp_path, stubs.toy_dataset(9), 128, ["pooled"]))
    with pytest.raises(MismatchError, match="image_size"):
        head.predict(other)
    with pytest.raises(InputError, match="baseline"):
        samtl.load_head(made.runs["floor"])
    with pytest.raises(InputError, match="no run"):
        samtl.load_head(tmp_path)


def test_numbers_and_several_classes(tmp_path):
    images = stubs.toy_dataset(40, classes=2)
    sets = tuple(((0,), (1,), (0, 1), ())[i % 4] for i in range(40))
    several = replace(images, labels=sets, name="several")
    measured = replace(images, labels=tuple(map(float, range(40))), classes=("height",), name="m")
    stores = [samtl.open(stubs.embedded(tmp_path, d, 64, ["pooled"])) for d in (several, measured)]
    heads = [
        samtl.load_head(samtl.fit_head(store, name, 0.25))
        for store, name in zip(stores, ("logreg", "ridge"), strict=True)
    ]
    for store, head in zip(stores, heads, strict=True):
        X, y = store.features()
        np.testing.assert_array_equal(head.predict(store), head.predict(X))
        assert head.predict(X).shape == y.shape
        assert head.score(X, y) <= 1
    assert [is_regressor(head) for head in heads] == [False, True]
    assert heads[0].predict_proba(stores[0]).shape == (40, 2)
    np.testing.assert_array_equal(
        heads[0].predict(stores[0]), heads[0].predict_proba(stores[0]) >= 0.5
    )
    assert not hasattr(heads[1], "predict_proba")
    X, y = stores[1].features()
    assert heads[1].score(X, y) == pytest.approx(r2_score(y, heads[1].predict(X)))
    assert (y.dtype, stores[0].features()[1].shape) == (np.float64, (40, 2))
