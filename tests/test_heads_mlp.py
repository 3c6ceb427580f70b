"""`mlp` learns what a line cannot separate, keeps its best weights, and minds neither scales nor constants."""

import numpy as np
import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from samtl.heads import logreg
from samtl.heads.mlp import Head

SMALL = {"hidden": (32,), "epochs": 40, "lr": 3e-3}


pytestmark = pytest.mark.usefixtures("one_thread")


def blobs(n=300, k=3, f=8, seed=0, spread=3.0):
    """Classes around far centres."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(k, f)) * spread
    y = random.integers(0, k, n)
    return (centres[y] + random.normal(size=(n, f))).astype(np.float32), y


def rings(n=400, seed=0):
    """An inner and an outer ring, which no line separates."""
    random = np.random.default_rng(seed)
    y = random.integers(0, 2, n)
    angle, radius = random.random(n) * 2 * np.pi, 1 + 2 * y + random.normal(size=n) * 0.2
    return np.stack([np.cos(angle) * radius, np.sin(angle) * radius], axis=1), y


@parametrize_with_checks([Head(hidden=(32,), epochs=30, lr=3e-3)])
def test_is_a_scikit_learn_estimator(estimator, check):
    check(estimator)


def test_learns_what_a_line_cannot():
    test = rings(seed=1)
    assert Head(**SMALL).fit(*rings()).score(*test) > 0.98
    assert logreg.Head().fit(*rings()).score(*test) < 0.7


def test_several_hidden_layers():
    head = Head(**SMALL | {"hidden": [16, 12]}).fit(*blobs())
    assert [weight.shape for weight, _ in head.layers_] == [(16, 8), (12, 16), (3, 12)]
    assert head.score(*blobs(seed=1)) > 0.99


def test_scaling_comes_from_the_training_part():
    X, y = blobs()
    Xv, yv = blobs(seed=1)
    head = Head(**SMALL).fit(X, y, validation=(Xv + 100, yv))
    np.testing.assert_allclose(head.mean_, X.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(head.factor_, 1 / X.std(axis=0), rtol=1e-5)


def test_a_constant_column_says_nothing_whatever_it_holds_later():
    X, y = blobs()
    X[:, 2] = 0.1
    head = Head(**SMALL).fit(X, y)
    moved = X.copy()
    moved[:, 2] = 1e30
    np.testing.assert_array_equal(head.predict_proba(moved), head.predict_proba(X))


def test_classes_of_one_sample_need_no_validation_part():
    head = Head(**SMALL).fit(np.eye(3), ["a", "b", "c"])
    assert head.predict(np.eye(3)).tolist() == ["a", "b", "c"]


# Warm starts


def started(X, y, other, **params):
    """The weights that training of `X`, `y` from another head starts with: a rate of next to nothing leaves them."""
    head = Head(**SMALL | {"lr": 1e-30, "weight_decay": 0.0, "epochs": 1} | params)
    head.start_from(other)
    return head.fit(X, y)


def test_training_starts_from_the_weights_of_another():
    first = Head(**SMALL).fit(*blobs())
    head = started(*blobs(500, seed=3), first)
    for (weight, bias), (other, other_bias) in zip(head.layers_, first.layers_, strict=True):
        np.testing.assert_array_equal(weight, other)
        np.testing.assert_array_equal(bias, other_bias)
        assert weight is not other
    # Features are scaled by the samples at hand, as ever.
    plain = Head(**SMALL).fit(*blobs(500, seed=3))
    np.testing.assert_array_equal(head.mean_, plain.mean_)
    np.testing.assert_array_equal(head.factor_, plain.factor_)


def test_a_warm_start_is_for_one_training():
    X, y = blobs()
    first = Head(**SMALL).fit(X, y)
    head = Head(**SMALL | {"epochs": 5})
    cold = head.fit(X, y).predict_proba(X)
    head.start_from(first)
    assert head.fit(X, y).curves_["train_loss"][0] < 0.1 < first.curves_["train_loss"][0]
    np.testing.assert_array_equal(head.fit(X, y).predict_proba(X), cold)
