"""A saved head predicts bit for bit what it did, and nothing but a saved head is loaded."""

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from samtl.errors import InputError
from samtl.heads import conv, logreg, mlp, vit
from samtl.heads.io import load, save
from samtl.heads.trainer import InMemory

pytestmark = pytest.mark.usefixtures("one_thread")


def data():
    random = np.random.default_rng(0)
    y = random.integers(0, 3, 90)
    return random.normal(size=(90, 7)).astype(np.float32) + y[:, None], y


@pytest.fixture(scope="module", params=["logreg", "mlp"])
def fitted(request):
    made = logreg.Head() if request.param == "logreg" else mlp.Head(hidden=(16, 8), epochs=5)
    return made.fit(*data())


@pytest.fixture
def saved(fitted, tmp_path):
    """A head that was saved into `tmp_path`."""
    save(fitted, tmp_path, columns=[f"c{i}" for i in range(7)], class_names=["a", "b", "c"])
    return fitted


def test_a_loaded_head_can_be_saved_and_fitted_again(saved, tmp_path):
    head = load(tmp_path)
    assert head.columns_ == tuple(f"c{i}" for i in range(7))
    (tmp_path / "copy").mkdir()
    save(head, tmp_path / "copy")
    assert load(tmp_path / "copy").columns_ == head.columns_
    X, y = data()
    np.testing.assert_array_equal(head.fit(X, y).predict_proba(X), saved.predict_proba(X))
    head.fit(X, np.array(["river", "forest", "crop"])[y])
    save(head, tmp_path / "copy")
    np.testing.assert_array_equal(load(tmp_path / "copy").predict(X), head.predict(X))


def edit(path, change):
    card = json.loads((path / "head.json").read_text())
    change(card)
    (path / "head.json").write_text(json.dumps(card))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda card: card.pop("facts"), "facts"),
        (lambda card: card.update(more=1), "more"),
        (lambda card: card.update(format=2), "format is 2"),
        (lambda card: card["parameters"].update(gamma=1), "gamma"),
        (lambda card: card["facts"].popitem(), "facts"),
        (lambda card: card.update(parameters=[1]), "parameters"),
        (lambda card: card.update(classes=[0]), "2 or more"),
        (lambda card: card.update(classes=[0.5, 1.5, 2.5]), "classes"),
        (lambda card: card.update(classes=[0, 1, 2, 3]), "must be float(32|64) of shape"),
        (lambda card: card.update(columns=["a"]), "1 columns for 7 features"),
        (lambda card: card.update(name="../mlp"), "mlp"),
        (lambda card: card.update(name="logrek"), "did you mean logreg"),
        (lambda card: card.update(kind="encoders"), "encoders"),
        (lambda card: card.update(task="segmentation"), "segmentation"),
        (lambda card: card.update(shape=[7, 4, 4]), r"\(7, 4, 4\)"),
        (lambda card: card.update(shape=[0]), "shape"),
        (lambda card: card.update(shape=7), "shape"),
    ],
)
def test_a_card_that_is_not_as_written_is_refused(saved, tmp_path, change, said):
    edit(tmp_path, change)
    with pytest.raises(InputError, match=said):
        load(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "[" * 100_000, "\xff"])
def test_a_card_that_is_no_object_is_refused(saved, tmp_path, text):
    (tmp_path / "head.json").write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match="not a model that samtl wrote"):
        load(tmp_path)


def first(tensors, change):
    """Change the array that comes first."""
    role = min(tensors)
    tensors[role] = change(tensors[role])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop(min(t)), "expected the tensors"),
        (lambda t: t.update(extra=t[min(t)]), "expected the tensors"),
        (lambda t: first(t, lambda a: a[:-1]), r"and is .* of shape \((6,|2, 7)\)"),
        (lambda t: first(t, lambda a: a.astype(np.float16)), "is float16"),
        (lambda t: first(t, lambda a: a * np.nan), "not finite"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(saved, tmp_path, change, said):
    tensors = load_file(tmp_path / "head.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "head.safetensors")
    with pytest.raises(InputError, match=said):
        load(tmp_path)


def test_a_file_cut_short_or_gone_is_refused(saved, tmp_path):
    path = tmp_path / "head.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(InputError, match="not a safetensors file"):
        load(tmp_path)
    for name in ("head.safetensors", "head.json"):
        (tmp_path / name).unlink()
        with pytest.raises(InputError, match="holds no saved model"):
            load(tmp_path)


def test_what_cannot_be_saved_is_said(tmp_path):
    X, y = data()
    with pytest.raises(InputError, match="cannot be saved; use plain numbers"):
        save(logreg.Head(random_state=np.random.RandomState(0)).fit(X, y), tmp_path)
    with pytest.raises(InputError, match="takes 7 features, but 2 column names"):
        save(logreg.Head().fit(X, y), tmp_path, columns=["a", "b"])
    with pytest.raises(InputError, match="integer or string labels"):
        save(logreg.Head().fit(X, y == 1), tmp_path)
    assert list(tmp_path.iterdir()) == []


# Heads on grids


def grid_head(made=conv.Head, task="segmentation"):
    """A head on grids, hardly trained."""
    random = np.random.default_rng(0)
    inputs = torch.from_numpy(random.normal(size=(4, 5, 4, 4)).astype(np.float32))
    of_each = (16, 16) if task == "segmentation" else ()
    source = InMemory(inputs, torch.from_numpy(random.integers(0, 3, (4, *of_each))))
    head = made(width=64, epochs=1)
    return head.fit(source, source, task=task, n_classes=3, shape=(5, 4, 4)), inputs.numpy()


@pytest.mark.slow
def test_another_process_predicts_the_same(tmp_path):
    expected = []
    for made in (conv.Head, vit.Head, mlp.Head):
        for task in made.tiers:
            folder = tmp_path / str(len(expected))
            folder.mkdir()
            if made is mlp.Head:
                inputs, y = data()
                head = made(epochs=1).fit(inputs, y)
            else:
                head, inputs = grid_head(made, task)
            save(head, folder)
            np.save(folder / "X.npy", inputs)
            expected.append(hashlib.sha256(head.predict_proba(inputs).tobytes()).hexdigest())
    code = (
        "import sys, hashlib, numpy as np, torch\n"
        "from samtl.heads.io import load\n"
        "torch.set_num_threads(1)\n"
        "for folder in sys.argv[1:]:\n"
        "    chances = load(folder).predict_proba(np.load(folder + '/X.npy'))\n"
        "    print(hashlib.sha256(chances.tobytes()).hexdigest())"
    )
    folders = [str(tmp_path / str(i)) for i in range(len(expected))]
    done = subprocess.run(
        [sys.executable, "-c", code, *folders], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == expected


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda card: card.update(task="detection"), "detection"),
        (lambda card: card.update(task="classification"), "expected the tensors"),
        (lambda card: card.update(shape=[5, 4, 8]), r"\(5, 4, 8\)"),
        (lambda card: card.update(shape=[6, 4, 4]), "must be float32 of shape"),
        (lambda card: card.update(classes=[1, 2, 3]), "numbered from 0"),
        (lambda card: card["parameters"].update(width=-64), "not a model that samtl wrote"),
        (lambda card: card["parameters"].update(width="wide"), "not a model that samtl wrote"),
        (lambda card: card.update(name="vit"), "depth"),
    ],
)
def test_a_card_of_a_grid_that_is_not_as_written_is_refused(masks, tmp_path, change, said):
    save(masks, tmp_path)
    edit(tmp_path, change)
    with pytest.raises(InputError, match=said):
        load(tmp_path)


@pytest.fixture(scope="module")
def masks():
    return grid_head()[0]
