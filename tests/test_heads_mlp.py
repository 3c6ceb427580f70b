"""`mlp` learns what a line cannot separate, is the same for the same seed, and leaves torch as it was."""

import itertools

import numpy as np
import pytest
import torch
from sklearn.utils.estimator_checks import parametrize_with_checks

from samtl.errors import InputError
from samtl.heads import logreg
from samtl.heads._train import InMemory, Recipe, train
from samtl.heads.mlp import Head

SMALL = {"hidden": (32,), "epochs": 40, "lr": 3e-3}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """These nets are too small to share, and the cores are not ours alone."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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


def noise(n=200, f=30):
    """Labels that have nothing to do with the features."""
    random = np.random.default_rng(0)
    return random.normal(size=(n, f)).astype(np.float32), random.integers(0, 2, n)


@parametrize_with_checks([Head(hidden=(32,), epochs=30, lr=3e-3)])
def test_is_a_scikit_learn_estimator(estimator, check):
    check(estimator)


def test_learns_classes_that_are_apart():
    head = Head(**SMALL).fit(*blobs())
    assert head.score(*blobs(seed=1)) > 0.99


def test_learns_what_a_line_cannot():
    test = rings(seed=1)
    assert Head(**SMALL).fit(*rings()).score(*test) > 0.98
    assert logreg.Head().fit(*rings()).score(*test) < 0.7


def test_defaults_learn_from_few_samples():
    assert Head().fit(*blobs(n=40)).score(*blobs(seed=1)) > 0.99


def test_several_hidden_layers():
    head = Head(**SMALL | {"hidden": [16, 12]}).fit(*blobs())
    assert [weight.shape for weight, _ in head.layers_] == [(16, 8), (12, 16), (3, 12)]
    assert head.score(*blobs(seed=1)) > 0.99


def test_the_same_seed_gives_the_same_weights():
    heads = [Head(**SMALL, random_state=seed).fit(*blobs()) for seed in (4, 4, 5)]
    weights = [[array for layer in head.layers_ for array in layer] for head in heads]
    for one, same, other in zip(*weights, strict=True):
        np.testing.assert_array_equal(one, same)
        assert (one != other).any()
    assert heads[0].curves_ == heads[1].curves_


def test_what_was_drawn_before_does_not_matter():
    torch.manual_seed(1)
    first = Head(**SMALL).fit(*blobs())
    torch.rand(17)
    np.random.default_rng().random()
    np.testing.assert_array_equal(first.layers_[0][0], Head(**SMALL).fit(*blobs()).layers_[0][0])


def test_torch_is_left_as_it_was():
    state = torch.get_rng_state()
    plain = Head(**SMALL).fit(*blobs())
    assert (torch.get_rng_state() == state).all()
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            again = Head(**SMALL).fit(*blobs())
            assert not torch.is_grad_enabled()
        np.testing.assert_array_equal(again.layers_[0][0], plain.layers_[0][0])
    torch.set_default_dtype(torch.float64)
    try:
        again = Head(**SMALL).fit(*blobs())
    finally:
        torch.set_default_dtype(torch.float32)
    np.testing.assert_array_equal(again.layers_[0][0], plain.layers_[0][0])


def test_the_best_weights_are_kept():
    """On labels that are noise the validation loss soon only rises: training ends, and the best epoch is what stays."""
    X, y = noise()
    Xv, yv = X[:50] + 0, np.random.default_rng(1).integers(0, 2, 50)
    head = Head(hidden=(64,), epochs=200, lr=3e-3, patience=5).fit(X, y, validation=(Xv, yv))
    losses = head.curves_["validation_loss"]
    assert head.stopped_ == "patience"
    assert head.n_iter_ == len(losses) == head.best_epoch_ + 5 < 200
    assert losses[head.best_epoch_ - 1] == min(losses)
    right = head.predict_proba(Xv)[np.arange(50), yv]
    assert -np.log(right).mean() == pytest.approx(min(losses), rel=1e-5)


def test_curves_say_what_was_seen():
    seen = []
    head = Head(**SMALL).fit(*blobs(), on_event=seen.append)
    assert list(head.curves_) == [
        "epoch", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy",
    ]  # fmt: skip
    assert head.curves_["epoch"] == list(range(1, head.n_iter_ + 1))
    assert [event.validation_loss for event in seen] == head.curves_["validation_loss"]
    assert "validation accuracy" in str(seen[0])
    assert head.curves_["train_loss"][-1] < head.curves_["train_loss"][0]
    assert all(0 <= value <= 1 for value in head.curves_["train_accuracy"])


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


def test_scales_do_not_matter():
    X, y = blobs()
    plain = Head(**SMALL).fit(X, y).predict_proba(X)
    scales = np.array([1e-30, 1e-6, 1, 1, 1e6, 1e9, 1e30, 1], dtype=np.float32)
    head = Head(**SMALL).fit(X * scales, y)
    np.testing.assert_allclose(head.predict_proba(X * scales), plain, atol=1e-2)


def test_a_row_is_predicted_the_same_alone():
    X, y = blobs()
    head = Head(**SMALL).fit(X, y)
    alone = np.concatenate([head.predict_proba(X[i : i + 1]) for i in range(20)])
    np.testing.assert_allclose(alone, head.predict_proba(X)[:20], rtol=1e-12)


def test_classes_of_one_sample_need_no_validation_part():
    head = Head(**SMALL).fit(np.eye(3), ["a", "b", "c"])
    assert head.predict(np.eye(3)).tolist() == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"hidden": (8, 0)}, r"hidden\[1\] must be at least 1"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"lr": 0}, "lr must be above 0"),
        ({"weight_decay": -1}, "weight_decay not below"),
    ],
)
def test_parameters_out_of_range(params, said):
    with pytest.raises(ValueError, match=said):
        Head(**params).fit(*blobs(50))


class Exploding(torch.nn.Linear):
    """A model whose outputs are no numbers from a given call in training on."""

    def __init__(self, after):
        super().__init__(8, 3)
        self.calls, self.after = 0, after

    def forward(self, x):
        self.calls += self.training
        return super().forward(x) * (float("nan") if self.calls > self.after else 1)


def parts():
    X, y = blobs(64)
    return InMemory(torch.from_numpy(X), torch.from_numpy(y))


RECIPE = Recipe(epochs=5, batch_size=16, learning_rate=1e-3, weight_decay=0.0, patience=5)


def run(model, recipe=RECIPE, seen=None):
    loss = torch.nn.functional.cross_entropy
    return train(
        model, loss, parts(), parts(), recipe, 0, (seen if seen is not None else []).append
    )


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_weights():
    torch.manual_seed(0)
    model, seen = Exploding(after=10), []
    outcome = run(model, seen=seen)
    assert outcome.stopped == "diverged at step 11"  # in the third pass of four steps
    assert outcome.best_epoch == len(seen) == 2
    assert torch.isfinite(model.weight).all()


def test_a_loss_that_never_was_a_number_is_an_error():
    with pytest.raises(InputError, match=r"diverged at step 1: .*lower the learning rate"):
        run(Exploding(after=0))


def test_every_sample_comes_once_and_in_another_order_each_time():
    source = InMemory(torch.arange(10)[:, None], torch.arange(10))
    generator = torch.Generator().manual_seed(0)
    orders = [
        torch.cat([targets for _, targets in source.batches(4, generator)]).tolist()
        for _ in range(2)
    ]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(10))
    assert orders[0] != orders[1]
    plain = [targets.tolist() for _, targets in source.batches(4, None)]
    assert plain == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_the_rate_rises_then_falls(monkeypatch):
    rates = []
    step = torch.optim.AdamW.step

    def spy(self, *args, **kwargs):
        rates.append([group["lr"] for group in self.param_groups])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    run(torch.nn.Linear(8, 3), Recipe(5, 16, 1.0, 0.0, 5, warmup=0.2, clip=1.0))
    assert all(a == b for a, b in rates)
    rates = [a for a, _ in rates]
    assert rates[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert all(a > b for a, b in itertools.pairwise(rates[4:]))
    assert 0 < rates[-1] < 0.02


def test_only_matrices_decay():
    """With no slope to follow, AdamW's decay is all that moves a weight; biases stay."""
    model = torch.nn.Linear(8, 3)
    with torch.no_grad():
        model.weight.fill_(1.0)
        model.bias.fill_(1.0)
    train(
        model,
        lambda logits, targets: logits.sum() * 0.0,
        parts(),
        parts(),
        Recipe(1, 16, 0.1, 0.5, 5),
        0,
        print,
    )
    assert (model.weight < 1).all()
    assert (model.bias == 1).all()
