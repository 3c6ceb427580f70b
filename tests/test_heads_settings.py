"""Settings of heads and baselines: refused before anything is trained, class weights, and the dtype of training."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from stubs import embedded
from sweeps import run as swept
from sweeps import runs
from toys import stripes

from samtl import registry
from samtl.errors import InputError
from samtl.experiment import features, sources
from samtl.experiment.fit import configured, fit_head
from samtl.heads import conv, knn, logreg, mlp
from samtl.heads.io import load
from samtl.report.summary import summarise

NUMBERS = [
    (kind, name, key)
    for kind, made in (("heads", "Head"), ("baselines", "Baseline"))
    for name in registry.names(kind)
    for key, value in getattr(registry.load(kind, name), made)().get_params().items()
    if key
    not in (
        "random_state",
        "checkpoint",
        "device",
        "scaling",
        "class_weights",
        "precision",
        "calibrate",
    )
]
WHOLE = {
    "epochs",
    "batch_size",
    "patience",
    "width",
    "depth",
    "max_iter",
    "image_size",
    "neighbours",
}


@given(
    one=st.sampled_from(NUMBERS),
    value=st.sampled_from(
        [float("nan"), float("inf"), -float("inf"), -1, -0.5, True, "8", [], {}, (0,), (8.0,)]
    )
    | st.floats(1.01, 1000).filter(lambda number: number % 1),
)
def test_a_setting_that_makes_no_sense_is_refused_first(one, value):
    kind, name, key = one
    if isinstance(value, float) and value > 1 and value < 1e9 and key not in WHOLE | {"dropout"}:
        return  # a number that may be meant
    if value == [] and key == "hidden":
        return  # no hidden layer
    with pytest.raises(InputError):
        configured(kind, name, {key: value}, 0)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("mlp", {"lr": float("inf")}),
        ("logreg", {"tol": float("nan")}),
        ("logreg", {"C": float("inf")}),
        ("conv", {"width": 8.0}),
        ("vit", {"depth": 1.5}),
        ("mlp", {"precision": "float16"}),
        ("logreg", {"class_weights": "equal"}),
    ],
)
def test_settings_that_were_trained_with_are_refused(name, wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        configured("heads", name, wrong, 0)


def uneven(n=300):
    """Two classes that overlap, one of them rare."""
    random = np.random.default_rng(0)
    y = (np.arange(n) % 10 == 0).astype(np.int64)
    return (random.normal(size=(n, 3)) + y[:, None]).astype(np.float32), y


def test_balanced_logistic_regression_is_that_of_scikit_learn():
    X, y = uneven()
    ours = logreg.Head(scaling="standard", C=0.5, class_weights="balanced", tol=1e-12)
    ours.fit(X, y)
    Z = (X - X.mean(0, dtype=np.float64)) / X.std(0, dtype=np.float64)
    theirs = LogisticRegression(C=0.5, class_weight="balanced", tol=1e-10, max_iter=1000).fit(Z, y)
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(Z), atol=1e-3)


@pytest.mark.parametrize("name", ["logreg", "mlp"])
def test_a_rare_class_is_found_more_often_with_balanced_weights(name):
    X, y = uneven()
    params = {"epochs": 30, "lr": 1e-2} if name == "mlp" else {}
    made = registry.load("heads", name).Head
    plain, even = (made(class_weights=w, **params).fit(X, y) for w in (None, "balanced"))
    assert (even.predict(X) == 1).sum() > 1.5 * (plain.predict(X) == 1).sum()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return embedded(tmp_path_factory.mktemp("store"), stripes(75), 64, ("pooled", "grid"))


def test_weights_of_classes_are_the_same_in_a_shared_pass(store, tmp_path):
    params = {"conv": {"width": 4, "epochs": 2, "class_weights": "balanced"}}
    swept(store, tmp_path / "a", ["conv"], "label:0.5@0.2", params=params, room=0)
    (one,) = runs(tmp_path / "a")
    alone = fit_head(store, "conv", "label:0.5@0.2", params=params["conv"])
    assert alone.path.name == one.path.name
    tensors = [(run.path / "head.safetensors").read_bytes() for run in (one, alone)]
    assert tensors[0] == tensors[1]


def test_class_weights_do_not_read_the_store_once_more(store, monkeypatch):
    monkeypatch.setattr(sources, "held_in_memory", lambda *arguments: False)
    read, original = [], features.read_features

    def counted(store, array, rows):
        read.append(len(rows))
        return original(store, array, rows)

    monkeypatch.setattr(features, "read_features", counted)
    sums = []
    for weights in (None, "balanced"):
        fit_head(store, "conv", params={"width": 4, "epochs": 1, "class_weights": weights})
        sums.append(sum(read))
        read.clear()
    assert sums[0] == sums[1] > 0


def test_class_weights_are_for_classes():
    X, y = uneven(60)
    several = np.stack([y, 1 - y], axis=1)
    for made in (logreg.Head, mlp.Head):
        with pytest.raises(ValueError, match="for classification"):
            made(class_weights="balanced").fit(X, several, task="multilabel")


def test_a_run_records_its_dtype_and_its_processor(store, monkeypatch):
    monkeypatch.delenv("SAMTL_DTYPE")
    params = {"epochs": 1, "precision": "bfloat16"}
    run = fit_head(store, "mlp", params=params)
    assert run.recipe["precision"] == run.params["precision"] == "bfloat16"
    assert run.machine.keys() == {"processor", "features", "limits"}
    assert run.versions["torch"]


def test_a_model_of_an_earlier_version_is_read(store):
    run = fit_head(store, "conv", params={"epochs": 1, "width": 4})
    path = run.path / "head.json"
    card = json.loads(path.read_text())
    for name in ("precision", "class_weights"):
        del card["parameters"][name]
    path.write_text(json.dumps(card))
    again = load(run.path)
    assert isinstance(again, conv.Head)
    assert (again.precision, again.class_weights) == ("auto", None)


def test_a_slow_logistic_regression_says_so(monkeypatch):
    monkeypatch.setattr(logreg, "_SLOW", 100)
    told = []
    logreg.Head(C=1.0).fit(*uneven(), on_event=told.append)
    assert "slow" in str(told[0])


def test_the_number_of_neighbours_is_chosen_on_the_validation_part():
    X, y = uneven()
    chosen = knn.Head().fit(X, y)
    losses = dict(zip(chosen.curves_["neighbours"], chosen.curves_["validation_loss"], strict=True))
    assert chosen.neighbours_ == min(losses, key=losses.get)
    assert knn.Head(neighbours=3).fit(X, y).neighbours_ == 3
    assert knn.Head(neighbours=9).fit(X[:6], [0, 1] * 3).neighbours_ <= 6


def test_folds_are_summarised_by_mean_and_deviation(store, tmp_path):
    result = swept(store, tmp_path / "a", ["logreg"], "0.4,kfold:3,fold:1/4")
    (summary,) = summarise(result)
    assert summary.splits == ("0.4", "kfold:3", "fold:1/4")
    found = [row["metric_value"] for row in result.rows
             if row["metric_name"] == "accuracy" and row["split"].endswith("/3")]  # fmt: skip
    spread = summary.scores["logreg"]["kfold:3"]
    assert spread.values == pytest.approx(found)
    assert spread.deviation == pytest.approx(np.std(found, ddof=1))
