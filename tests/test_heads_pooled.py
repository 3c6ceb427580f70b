"""`logreg` has the optimum of scikit-learn's logistic regression; `mlp` learns what a line cannot separate."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from samtl.heads import knn, logreg, mlp
from samtl.heads.base import moments, reciprocal, scaled
from samtl.heads.io import load, save
from samtl.heads.logreg import Head
from samtl.metrics.calibration import fit_temperature

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = mlp.Head(hidden=(32,), epochs=20, lr=1e-2)


def problem(n=300, f=20, k=4, seed=0, spread=1.0):
    """Features of many scales, classes overlapping: half the columns say something about them."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(9).normal(size=(k, f)) * (np.arange(f) % 2)
    y = random.integers(0, k, n)
    X = centres[y] * spread + random.normal(size=(n, f))
    return (X * 10.0 ** (np.arange(f) % 5 - 2) + 3).astype(np.float32), y


@parametrize_with_checks([Head(), SMALL])
def test_is_a_scikit_learn_estimator(estimator, check):
    check(estimator)


@pytest.mark.parametrize("scaling", ["standard", "none"])
@pytest.mark.parametrize("k", [2, 4])
@pytest.mark.parametrize("shape", [(300, 20), (60, 150)], ids=["tall", "wide"])
@pytest.mark.parametrize("C", [0.01, 1.0])
def test_solution_is_that_of_scikit_learn(scaling, k, shape, C):
    """`none` is scikit-learn on centred features, with all of them in one other unit."""
    X, y = problem(*shape, k=k)
    params = {"scaling": scaling, "C": C, "tol": 1e-12}
    ours, other_unit = Head(**params).fit(X, y), Head(**params).fit(X * 1024, y)
    exact = X.astype(np.float64)
    unit = exact.std(0) if scaling == "standard" else np.sqrt(exact.var(0).mean())
    Z = (exact - exact.mean(0)) / unit
    theirs = LogisticRegression(C=C, tol=1e-8, max_iter=10_000).fit(Z, y)
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(Z), atol=2e-4)
    np.testing.assert_allclose(other_unit.predict_proba(X * 1024), ours.predict_proba(X), atol=1e-4)
    coef = ours.coef_ if k > 2 else ours.coef_[1:] - ours.coef_[:1]
    np.testing.assert_allclose(coef, theirs.coef_, atol=2e-3)


def test_the_best_candidate_wins_and_is_fitted_to_both_parts():
    """Scaling and weights of the search come from the training part: scikit-learn on it gives the same losses."""
    X, y = problem(400, spread=0.5)
    Xv, yv = problem(150, seed=1, spread=0.5)
    Xv = Xv + np.float32(5)  # elsewhere: scaling by both parts would show
    head = Head(tol=1e-10).fit(X, y, validation=(Xv, yv))
    curves = head.curves_
    assert set(curves["scaling"]) == {"standard", "none"}
    scaler = StandardScaler().fit(X.astype(np.float64))
    for i in np.flatnonzero(np.array(curves["scaling"]) == "standard"):
        plain = LogisticRegression(C=curves["C"][i], tol=1e-8, max_iter=10_000)
        right = plain.fit(scaler.transform(X), y).predict_proba(scaler.transform(Xv))
        loss = -np.log(right[np.arange(len(yv)), yv]).mean()
        assert curves["validation_loss"][i] == pytest.approx(loss, rel=0.03)
    best = int(np.argmin(curves["validation_loss"]))
    assert (head.scaling_, head.C_) == (curves["scaling"][best], curves["C"][best])
    both = np.concatenate([X, Xv]), np.concatenate([y, yv])
    alone = Head(scaling=head.scaling_, C=head.C_, tol=1e-10).fit(*both)
    np.testing.assert_allclose(head.predict_proba(X), alone.predict_proba(X), atol=1e-3)
    assert alone.curves_["C"] == []  # with both settings given there is nothing to choose


def test_the_search_ends_when_the_loss_rises():
    X, y = problem(60, f=60, spread=0.3)  # as many features as samples: weak penalties overfit
    losses = Head(scaling="standard").fit(X, y).curves_["validation_loss"]
    assert len(losses) < len(logreg.GRID)
    assert int(np.argmin(losses)) == len(losses) - 3


def test_constant_columns_and_wild_scales_do_no_harm():
    X, y = problem(spread=2.0)
    extra = np.full((len(X), 2), 0.1), X[:, :1] * 1e30, X[:, 1:2] * 1e-30
    wild = np.concatenate([X, *extra], axis=1).astype(np.float32)
    for scaling in ("standard", "none", "auto"):
        head = Head(scaling=scaling).fit(wild, y)
        assert np.isfinite(head.predict_proba(wild)).all()
        assert head.converged_
    doubled = np.concatenate([X, X[:, :2]], axis=1)  # what the wild columns amount to
    expected = Head(scaling="standard", C=0.1).fit(doubled, y).predict_proba(doubled)
    head = Head(scaling="standard", C=0.1).fit(wild, y)
    np.testing.assert_allclose(head.predict_proba(wild), expected, atol=1e-3)


def test_features_that_are_all_constant_give_the_shares_of_the_classes():
    head = Head().fit(np.ones((40, 3)), [0] * 30 + [1] * 10)
    np.testing.assert_allclose(head.predict_proba(np.zeros((1, 3))), [[0.75, 0.25]], atol=1e-3)


def test_labels_of_the_validation_part_must_be_known():
    X, y = problem(50)
    with pytest.raises(ValueError, match=r"labels unknown to y: \[7\]"):
        Head().fit(X, y, validation=(X[:2], [0, 7]))


def test_scaling_is_exact_for_large_means():
    """Deviations of a column far from zero come from float64 sums, and slices do not change them."""
    random = np.random.default_rng(0)
    X = (random.normal(size=(10_000, 3)) * [1, 1e-3, 1e4] + [1e4, 1, 0]).astype(np.float32)
    mean, deviation = moments(X)
    np.testing.assert_allclose(mean, X.astype(np.float64).mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(deviation, X.astype(np.float64).std(axis=0), rtol=1e-9)
    Z = scaled(X, mean, reciprocal(deviation))
    assert Z.dtype == np.float32
    np.testing.assert_allclose(Z.std(axis=0, dtype=np.float64), 1, rtol=1e-5)


def test_starting_from_a_head_of_fewer_samples_comes_to_the_same():
    X, y = problem(600, spread=0.5)
    validation = problem(150, seed=1, spread=0.5)
    few = Head().fit(X[:200], y[:200], validation)
    cold = Head(tol=1e-12).fit(X, y, validation)
    warm = Head(tol=1e-12)
    warm.start_from(few)
    warm.fit(X, y, validation)
    assert (warm.scaling_, warm.C_) == (cold.scaling_, cold.C_)
    np.testing.assert_allclose(warm.predict_proba(X), cold.predict_proba(X), atol=1e-4)
    assert len(warm.curves_["C"]) < len(cold.curves_["C"])
    fresh = warm.fit(X, y, validation)  # a start is for one fit
    assert len(fresh.curves_["C"]) == len(cold.curves_["C"])


def rings(n=400, seed=0):
    """An inner and an outer ring, which no line separates."""
    random = np.random.default_rng(seed)
    y = random.integers(0, 2, n)
    angle, radius = random.random(n) * 2 * np.pi, 1 + 2 * y + random.normal(size=n) * 0.2
    return np.stack([np.cos(angle) * radius, np.sin(angle) * radius], axis=1), y


def test_learns_what_a_line_cannot():
    test = rings(seed=1)
    head = mlp.Head(hidden=[24, 12], epochs=30, lr=1e-2).fit(*rings())
    assert head.score(*test) > 0.98
    assert Head().fit(*rings()).score(*test) < 0.7
    shapes = [array.shape for array in head.tensors().values() if array.ndim == 2]
    assert shapes == [(24, 2), (12, 24), (2, 12)]


def test_classes_of_one_sample_need_no_validation_part():
    head = mlp.Head(epochs=40, lr=1e-2).fit(np.eye(3), ["a", "b", "c"])
    assert head.predict(np.eye(3)).tolist() == ["a", "b", "c"]


@pytest.mark.parametrize(
    "head",
    [Head(C=100.0, scaling="none"), mlp.Head(hidden=(64,), epochs=30, patience=30), knn.Head()],
)
def test_calibration_makes_probabilities_honest_and_changes_no_class(head, tmp_path):
    X, y = problem(600, 40, spread=0.25)
    X, y, new_X, new_y = X[:300], y[:300], X[300:], y[300:]
    plain = clone(head).fit(X, y)
    calibrated = clone(head).set_params(calibrate=True).fit(X, y)
    before, after = plain.predict_proba(new_X), calibrated.predict_proba(new_X)
    np.testing.assert_array_equal(before.argmax(1), after.argmax(1))
    assert log_loss(new_y, after) < log_loss(new_y, before) + 1e-3
    assert plain.temperature_ == 1
    save(calibrated, tmp_path)
    np.testing.assert_array_equal(load(tmp_path).predict_proba(new_X), after)


def test_the_temperature_is_that_of_overconfident_logits():
    random = np.random.default_rng(0)
    logits = random.normal(size=(20_000, 5)) * 2
    codes = (logits + random.gumbel(size=logits.shape)).argmax(axis=1)
    assert fit_temperature(logits * 3, codes) == pytest.approx(3, rel=0.05)


def test_numbers_have_no_temperature():
    X, y = problem()
    with pytest.raises(ValueError, match="calibrate"):
        mlp.Head(calibrate=True, epochs=1).fit(X, y.astype(float), task="regression")
