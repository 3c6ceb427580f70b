"""The contract of every head, for each task it has: it learns, repeats itself, survives saving, refuses the rest."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
import torch
import workers

from samtl import registry
from samtl.errors import InputError
from samtl.heads import grid
from samtl.heads.base import Epoch, PooledHead
from samtl.heads.io import load, save
from samtl.heads.training import trainer
from samtl.heads.training.trainer import InMemory

pytestmark = pytest.mark.usefixtures("one_thread")

# Small and quick to train; a head that is not here is tried with its defaults.
SMALL = {
    "mlp": {"hidden": (32,), "epochs": 30, "lr": 3e-3},
    "conv": {"width": 32, "epochs": 35, "lr": 1e-2, "dropout": 0.0},
    "vit": {"width": 64, "epochs": 35, "lr": 1e-2, "dropout": 0.0},
}
CASES = [
    (name, task)
    for name in registry.names("heads")
    for task in registry.load("heads", name).Head.tiers
]
every_head = pytest.mark.parametrize(("name", "task"), CASES)
by_steps = pytest.mark.parametrize(("name", "task"), [c for c in CASES if c[0] in SMALL])


def made(name, **params):
    return registry.load("heads", name).Head(**{**SMALL.get(name, {}), **params})


def brief(name, epochs, **params):
    """A head, with this many epochs if it learns by steps."""
    return made(name, **({"epochs": epochs, "patience": epochs} if name in SMALL else {}), **params)


def pooled(name):
    return issubclass(registry.load("heads", name).Head, PooledHead)


def problem(name, task, n=32, k=3, seed=0):
    """Features that tell the classes apart, and the classes: of samples, or of the pixels of 16 x 16 masks."""
    random = np.random.default_rng(seed)
    if task == "segmentation":
        targets = np.zeros((n, 16, 16), dtype=np.int64)
        for i, mask in enumerate(targets):
            top, left = random.integers(0, 9, 2)
            mask[top : top + 7, left : left + 7] = 1 + i % (k - 1)
        cells = targets.reshape(n, 4, 4, 4, 4).transpose(0, 2, 4, 1, 3).reshape(n, 16, 4, 4)
        inputs = np.concatenate([cells == c for c in range(1, k)], axis=1).astype(np.float64)
    else:
        centres = np.random.default_rng(7).normal(size=(k, 8)) * 3
        targets = np.arange(n) % k
        inputs = centres[targets]
        if task == "multilabel":
            targets = (np.arange(n)[:, None] // 2 ** np.arange(k)) % 2
            inputs = targets @ centres
        if task == "regression":
            targets = random.normal(50, 20, n)
            inputs = np.outer((targets - 50) / 20, centres[0])
        if not pooled(name):
            inputs = np.repeat(inputs, 16, axis=1).reshape(n, 8, 4, 4)
    inputs = inputs + random.normal(0, 0.1 if task == "segmentation" else 0.5, inputs.shape)
    return inputs.astype(np.float32), targets


def fit(head, task, training, validation=None, on_event=None):
    validation = validation or training
    if isinstance(head, PooledHead):
        return head.fit(*training, validation=validation, on_event=on_event, task=task)
    sources = [InMemory(*map(torch.from_numpy, part)) for part in (training, validation)]
    classes = training[1].shape[1] if task == "multilabel" else int(training[1].max()) + 1
    about = {"task": task, "n_classes": classes, "shape": training[0].shape[1:]}
    statistics = grid.moments(sources[0].inputs).mean(0)
    return head.fit(*sources, statistics, **about, on_event=on_event)


def right(said, targets, task):
    """The share of what is right, or as good as that."""
    if task == "multilabel":
        return ((said >= 0.5) == targets).mean()
    if task == "regression":
        return (abs(said[:, 0] - targets) < 10).mean()
    return (said.argmax(1) == targets).mean()


def copied(head):
    return {role: array.copy() for role, array in head.tensors().items()}


def differing(one, other):
    """Names of the tensors that are not the same to the bit."""
    assert one.keys() == other.keys()
    return {role for role in one if not np.array_equal(one[role], other[role])}


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def fitted(request):
    """Give (name, task, head), trained on three classes."""
    name, task = request.param
    longer = {"epochs": 100} if (name, task) == ("mlp", "multilabel") else {}
    head = fit(made(name, **longer), task, problem(name, task), problem(name, task, seed=1))
    return name, task, head


def test_learns_a_separable_problem(fitted):
    name, task, head = fitted
    inputs, targets = problem(name, task, n=40, seed=2)
    chances = head.outputs(inputs)
    assert right(chances, targets, task) > 0.99
    assert chances.dtype == np.float64
    classes = 1 if task == "regression" else 3
    assert chances.shape == (40, classes, *(targets.shape[1:] if task == "segmentation" else ()))
    if task in ("classification", "segmentation"):
        np.testing.assert_allclose(chances.sum(1), 1, rtol=1e-12)
    if task != "regression":
        assert ((chances >= 0) & (chances <= 1)).all()
        np.testing.assert_array_equal(head.predict_proba(inputs), chances)
    if task in ("multilabel", "regression") and pooled(name):
        said = head.predict(inputs)
        assert said.shape == targets.shape
    # They do not hang on the rows beside.
    alone = np.concatenate([head.outputs(inputs[i : i + 1]) for i in range(40)])
    np.testing.assert_allclose(alone, chances, atol=1e-4 if task == "regression" else 1e-5)


OVERFIT = {
    "logreg": {"C": 1e3},
    "ridge": {"alpha": 1e-6},
    "mlp": {"epochs": 100, "dropout": 0.0, "lr": 1e-2, "patience": 100},
    "conv": {"epochs": 60, "weight_decay": 0.0, "patience": 60},
    "vit": {"epochs": 120, "lr": 5e-3, "weight_decay": 0.0, "patience": 120},
}


@every_head
def test_overfits_one_batch(name, task):
    """The targets of other samples are learnt by heart: no layer is cut off, none too narrow."""
    n = 4 if task == "segmentation" else 8
    inputs, targets = problem(name, task, n=n)
    batch = inputs, np.roll(targets, 3, axis=0)[np.random.default_rng(0).permutation(n)]
    head = fit(made(name, **OVERFIT.get(name, {})), task, batch)
    assert right(head.outputs(batch[0]), batch[1], task) > 0.99


@every_head
def test_the_same_seed_gives_the_same_weights_whatever_the_caller_set(name, task):
    training = problem(name, task, n=12)

    def train(seed):
        state = torch.get_rng_state()
        head = fit(brief(name, 2, random_state=seed), task, training)
        assert torch.equal(torch.get_rng_state(), state)
        torch.rand(3)  # what a caller draws in between does not matter
        return head, head.outputs(training[0])

    one, chances = train(4)
    others = [train(4)]
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            others.append(train(4))
            assert not torch.is_grad_enabled()
    torch.set_default_dtype(torch.float64)
    try:
        others.append(train(4))
    finally:
        torch.set_default_dtype(torch.float32)
    for other, found in others:
        assert not differing(one.tensors(), other.tensors())
        assert one.curves_ == other.curves_
        np.testing.assert_array_equal(found, chances)
    if name in SMALL:  # what learns by steps starts from random weights
        assert differing(one.tensors(), train(5)[0].tensors())


def test_a_saved_head_predicts_the_same_to_the_bit(fitted, tmp_path):
    name, task, head = fitted
    inputs, _ = problem(name, task, n=10, seed=3)
    before = copied(head)
    save(head, tmp_path, class_names=["a", "b", "c"])
    again = load(tmp_path)
    assert (type(again), again.task_, again.shape_) == (type(head), task, inputs.shape[1:])
    assert again.get_params() == head.get_params()
    classes = [0] if task == "regression" else [0, 1, 2]
    assert again.classes_.tolist() == head.classes_.tolist() == classes
    assert all(getattr(again, fact) == getattr(head, fact) for fact in head.facts)
    np.testing.assert_array_equal(again.outputs(inputs), head.outputs(inputs))
    assert not differing(again.tensors(), before)
    assert head.layout() == {role: (str(a.dtype), a.shape) for role, a in before.items()}
    (tmp_path / "twice").mkdir()
    save(again, tmp_path / "twice", class_names=["a", "b", "c"])
    for file in ("head.json", "head.safetensors"):
        assert (tmp_path / "twice" / file).read_bytes() == (tmp_path / file).read_bytes()


@pytest.mark.slow
def test_another_process_predicts_the_same(tmp_path):
    start = {"mp_context": get_context("spawn"), "initializer": torch.set_num_threads}
    with ProcessPoolExecutor(1, **start, initargs=(1,)) as pool:
        for name, task in CASES:
            inputs, targets = problem(name, task, n=8)
            head = fit(brief(name, 1), task, (inputs, targets))
            save(head, tmp_path)
            found = pool.submit(workers.predicted, tmp_path, inputs).result()
            np.testing.assert_array_equal(found, head.outputs(inputs))


def test_wrong_shapes_are_refused(fitted):
    name, task, head = fitted
    inputs, targets = problem(name, task, n=4)
    channels = inputs.shape[1]
    wrong = [inputs[:, :-1], np.concatenate([inputs, inputs], axis=1)]
    expected = (ValueError, f"expecting {channels} features")  # scikit-learn's own
    if not pooled(name):
        expected = (InputError, rf"takes features of shape \({channels}, 4, 4\), .*got \(")
        wrong += [inputs[:, :, :2], inputs[:, 0], inputs[0]]
    for array in wrong:
        with pytest.raises(expected[0], match=expected[1]):
            head.outputs(array)
    with pytest.raises((InputError, ValueError), match="features"):
        fit(made(name), task, (inputs, targets), (inputs[:, :-1], targets))
    if not pooled(name):
        source = InMemory(*map(torch.from_numpy, (inputs, targets)))
        moments = grid.moments(source.inputs).mean(0)
        with pytest.raises(InputError, match=r"takes features of shape .*, got \("):
            made(name).fit(source, source, moments, task=task, n_classes=3, shape=(channels, 8, 8))
    if task == "segmentation":
        with pytest.raises(InputError, match=r"masks of shape \(\d, 16, 16\), got \(\d, 8, 8\)"):
            fit(made(name), task, (inputs, targets[:, :8, :8].copy()))


@every_head
def test_curves_say_what_was_seen(name, task):
    seen = []
    training, validation = problem(name, task, n=16), problem(name, task, n=8, seed=1)
    head = fit(brief(name, 4), task, training, validation, seen.append)
    if name == "knn":  # takes no time
        assert not seen
        return
    for column, values in head.curves_.items():
        assert [getattr(event, column) for event in seen] == values
    known = 0 if task == "regression" else len(seen)  # numbers have no accuracy
    assert sum(0 <= value <= 1 for value in head.curves_["validation_accuracy"]) == known
    if name in SMALL:
        assert isinstance(seen[0], Epoch)
        assert head.n_iter_ == len(seen) == 4
        assert head.best_epoch_ == 1 + int(np.argmin(head.curves_["validation_loss"]))
        assert head.stopped_ == "epochs"
    assert all(str(event) for event in seen)


@every_head
def test_a_parameter_out_of_its_range_is_refused(name, task):
    wrong = {"epochs": 0, "batch_size": 1.5, "patience": 0, "lr": 0, "weight_decay": -1}
    wrong |= {
        "dropout": 1,
        "width": 6,
        "depth": 0,
        "hidden": (0,),
        "C": 0,
        "scaling": "odd",
        "alpha": 0,
        "neighbours": 0,
    }
    tried = [key for key in wrong if key in made(name).get_params()]
    assert tried
    for key in tried:
        with pytest.raises(ValueError, match=key):
            fit(made(name, **{key: wrong[key]}), task, problem(name, task, n=8))


@by_steps
def test_inputs_are_standardised_by_the_training_part(name, task):
    inputs, targets = problem(name, task)
    scale = 10.0 ** (np.arange(inputs.shape[1]) % 3 - 1)
    inputs = np.moveaxis(np.moveaxis(inputs, 1, -1) * scale + 2, -1, 1).astype(np.float32)
    head = fit(brief(name, 1), task, (inputs, targets), (inputs + 100, targets))
    exact, axes = inputs.astype(np.float64), (0, *range(2, inputs.ndim))
    for role, array in head.tensors().items():
        if role.endswith(".mean"):
            np.testing.assert_allclose(array, exact.mean(axes), rtol=1e-5)
        if role.endswith(".factor"):
            np.testing.assert_allclose(1 / array, exact.std(axes), rtol=1e-4)


@every_head
def test_a_constant_input_says_nothing_whatever_it_holds_later(name, task):
    inputs, targets = problem(name, task)
    inputs[:, 0] = 0.1
    moved = inputs.copy()
    moved[:, 0] = 1e30
    head = fit(brief(name, 2), task, (inputs, targets))
    np.testing.assert_array_equal(head.outputs(moved), head.outputs(inputs))


@pytest.mark.parametrize(
    ("params", "task", "n", "expected"),
    [
        ({}, "classification", 2000, (20, 128, 2e-3)),
        ({}, "segmentation", 2000, (60, 4, 2e-3)),
        ({"epochs": 3, "batch_size": 7, "lr": 0.5}, "segmentation", 2000, (3, 7, 0.5)),
        ({}, "classification", 100, (20, 12, 2e-3)),  # eight steps in a pass over few samples
    ],
)
def test_what_is_left_open_depends_on_the_task(params, task, n, expected):
    head = registry.load("heads", "conv").Head(width=4, **params)
    head.adopt(task, [0, 1, 2], (3, 4, 4))
    recipe = head.begin(n, torch.tensor([[0.0] * 3, [1.0] * 3])).recipe
    assert (recipe.epochs, recipe.batch_size, recipe.learning_rate) == expected


@pytest.mark.parametrize(
    ("task", "classes", "shape", "said"),
    [
        ("detection", 3, (6, 4, 4), "detection"),
        ("classification", 1, (6, 4, 4), "at least 2 classes"),
        ("classification", 3, (6, 4), r"got \(6, 4\)"),
        ("classification", 3, (6, 4, 8), r"got \(6, 4, 8\)"),
        ("classification", 3, (6, 5, 5), "the side even"),
        ("classification", 3, (0, 4, 4), r"got \(0, 4, 4\)"),
    ],
)
def test_what_a_head_on_grids_is_not_for(task, classes, shape, said):
    with pytest.raises(InputError, match=said):
        made("conv").fit((), (), None, task=task, n_classes=classes, shape=shape)


@by_steps
def test_training_starts_once_from_the_weights_of_another_and_is_shorter(name, task, monkeypatch):
    monkeypatch.setattr(trainer, "WARM_SAMPLES", 32)
    first = fit(made(name, epochs=2), task, problem(name, task))
    before = copied(first)
    inputs, targets = problem(name, task, seed=1)
    other = 2 * inputs + 1, targets

    def warm(epochs, **params):
        head = made(name, epochs=epochs, **params)
        head.start_from(first)
        return fit(head, task, other)

    # A rate of next to nothing leaves the weights.
    changed = differing(copied(warm(1, lr=1e-30, weight_decay=0.0, random_state=7)), before)
    assert changed
    assert all(
        role.endswith(("mean", "factor", "scale")) for role in changed
    )  # of the samples at hand
    head = warm(4)
    # To its end: the weights get worse before they get better.
    assert (head.recipe_.epochs, head.recipe_.patience) == (1, 1)
    assert not differing(first.tensors(), before)
    cold = copied(fit(made(name, epochs=4), task, other))
    assert differing(copied(head), cold)
    assert not differing(copied(fit(head, task, other)), cold)
