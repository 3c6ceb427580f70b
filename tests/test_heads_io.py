"""A saved head can be used as before, and nothing but a saved head is loaded."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from samtl.errors import InputError
from samtl.heads import conv, knn, logreg, mlp
from samtl.heads.grid import moments
from samtl.heads.io import load, save
from samtl.heads.training.trainer import InMemory

pytestmark = pytest.mark.usefixtures("one_thread")


def data():
    random = np.random.default_rng(0)
    y = random.integers(0, 3, 90)
    return random.normal(size=(90, 7)).astype(np.float32) + y[:, None], y


@pytest.fixture(scope="module")
def models():
    source = InMemory(torch.randn(4, 5, 4, 4), torch.randint(0, 3, (4, 16, 16)))
    about = {"task": "segmentation", "n_classes": 3, "shape": (5, 4, 4)}
    statistics = moments(source.inputs).mean(0)
    return {
        "logreg": logreg.Head().fit(*data()),
        "mlp": mlp.Head(hidden=(16, 8), epochs=5).fit(*data()),
        "conv": conv.Head(width=64, epochs=1).fit(source, source, statistics, **about),
    }


@pytest.mark.parametrize("name", ["logreg", "mlp"])
def test_a_loaded_head_can_be_saved_and_fitted_again(models, tmp_path, name):
    X, y = data()
    columns = [f"c{i}" for i in range(7)]
    save(models[name], tmp_path, columns=columns)
    head = load(tmp_path)
    save(head, tmp_path)
    assert load(tmp_path).columns_ == head.columns_ == tuple(columns)
    np.testing.assert_array_equal(head.fit(X, y).predict_proba(X), models[name].predict_proba(X))
    head.fit(X, np.array(["river", "forest", "crop"])[y])
    save(head, tmp_path)
    np.testing.assert_array_equal(load(tmp_path).predict(X), head.predict(X))


POOLED, OTHER = "logreg mlp", "not a model that samtl wrote"
REFUSED = [
    (POOLED, lambda c, t: c.pop("facts"), "facts"),
    (POOLED, lambda c, t: c.update(more=1), "more"),
    (POOLED, lambda c, t: c.update(format=2), "format is 2"),
    (POOLED, lambda c, t: c["parameters"].update(gamma=1), "gamma"),
    (POOLED, lambda c, t: c["facts"].pop(next(iter(c["facts"]))), "facts"),
    (POOLED, lambda c, t: c.update(parameters=[1]), "parameters"),
    (POOLED, lambda c, t: c.update(classes=[0]), "2 or more"),
    (POOLED, lambda c, t: c.update(classes=[0.5, 1.5, 2.5]), "classes"),
    (POOLED, lambda c, t: c.update(classes=[0, 1, 2, 3]), "must be float(32|64) of shape"),
    (POOLED, lambda c, t: c.update(columns=["a"]), "1 columns for 7 features"),
    (POOLED, lambda c, t: c.update(name="../mlp"), "mlp"),
    (POOLED, lambda c, t: c.update(name="logrek"), "did you mean logreg"),
    (POOLED, lambda c, t: c.update(kind="encoders"), "encoders"),
    (POOLED, lambda c, t: c.update(task="segmentation"), "segmentation"),
    (POOLED, lambda c, t: c.update(shape=[7, 4, 4]), r"\(7, 4, 4\)"),
    (POOLED, lambda c, t: c.update(shape=[0]), "shape"),
    (POOLED, lambda c, t: c.update(shape=7), "shape"),
    ("conv", lambda c, t: c.update(task="detection"), "detection"),
    ("conv", lambda c, t: c.update(task="classification"), "expected the tensors"),
    ("conv", lambda c, t: c.update(shape=[5, 4, 8]), r"\(5, 4, 8\)"),
    ("conv", lambda c, t: c.update(shape=[6, 4, 4]), "must be float32 of shape"),
    ("conv", lambda c, t: c.update(classes=[1, 2, 3]), "numbered from 0"),
    ("conv", lambda c, t: c["parameters"].update(width=-64), OTHER),
    ("conv", lambda c, t: c["parameters"].update(width="wide"), OTHER),
    ("conv", lambda c, t: c.update(name="vit"), "depth"),
    (POOLED, lambda c, t: t.pop(min(t)), "expected the tensors"),
    (POOLED, lambda c, t: t.update(extra=t[min(t)]), "expected the tensors"),
    (POOLED, lambda c, t: t.update({min(t): t[min(t)][:-1]}), r"and is .* of shape \((6,|2, 7)\)"),
    (POOLED, lambda c, t: t.update({min(t): t[min(t)].astype(np.float16)}), "is float16"),
    (POOLED, lambda c, t: t.update({min(t): t[min(t)] * np.nan}), "not finite"),
]


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [(name, change, said) for names, change, said in REFUSED for name in names.split()],
)
def test_what_save_does_not_write_is_refused(models, tmp_path, name, change, said):
    save(models[name], tmp_path)
    card = json.loads((tmp_path / "head.json").read_text())
    tensors = load_file(tmp_path / "head.safetensors")
    change(card, tensors)
    (tmp_path / "head.json").write_text(json.dumps(card))
    save_file(tensors, tmp_path / "head.safetensors")
    with pytest.raises(InputError, match=said):
        load(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "[" * 100_000, "\xff"])
def test_a_card_that_is_no_object_is_refused(models, tmp_path, text):
    save(models["logreg"], tmp_path)
    (tmp_path / "head.json").write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=OTHER):
        load(tmp_path)


def test_a_file_cut_short_elsewhere_or_gone_is_refused(models, tmp_path):
    folder, other = tmp_path / "run", tmp_path / "other"
    folder.mkdir()
    save(models["mlp"], folder)
    for name in ("head.safetensors", "head.json"):
        path = (folder / name).rename(other)
        (folder / name).symlink_to(path)
        with pytest.raises(InputError, match=name.replace(".", r"\.")):
            load(folder)
        path.replace(folder / name)
    path = folder / "head.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(InputError, match="not a safetensors file"):
        load(folder)
    for name in ("head.safetensors", "head.json"):
        (folder / name).unlink()
        with pytest.raises(InputError, match="holds no saved model"):
            load(folder)


def test_what_cannot_be_saved_is_said(tmp_path):
    X, y = data()
    with pytest.raises(InputError, match="cannot be saved; use plain numbers"):
        save(logreg.Head(random_state=np.random.RandomState(0)).fit(X, y), tmp_path)
    with pytest.raises(InputError, match="takes 7 features, but 2 column names"):
        save(logreg.Head().fit(X, y), tmp_path, columns=["a", "b"])
    with pytest.raises(InputError, match="integer or string labels"):
        save(logreg.Head().fit(X, y == 1), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("count", [0, 41, "all"])
def test_more_neighbours_than_samples_are_refused(tmp_path, count):
    X = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    save(knn.Head().fit(X, np.arange(40) % 2), tmp_path)
    path = tmp_path / "head.json"
    card = json.loads(path.read_text())
    card["facts"]["neighbours_"] = count
    path.write_text(json.dumps(card))
    with pytest.raises(InputError):
        load(tmp_path)
