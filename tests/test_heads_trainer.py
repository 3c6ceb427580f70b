"""The one training loop: its rate, its decay, its early stopping, and what it does when a loss is no number."""

import copy
import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from samtl.errors import InputError
from samtl.heads import mlp
from samtl.heads.training import trainer as _train
from samtl.heads.training.layers import Dropout
from samtl.heads.training.trainer import InMemory, Recipe, Tally, Trainer, isolated, warm_epochs
from samtl.images.transforms import IGNORE

pytestmark = pytest.mark.usefixtures("one_thread")

RECIPE = Recipe(epochs=5, batch_size=16, learning_rate=1e-3, weight_decay=0.0, patience=5)


def parts(n=64, seed=0):
    """Samples of three classes, around centres that are apart."""
    random = torch.Generator().manual_seed(seed)
    targets = torch.arange(n) % 3
    inputs = 3 * torch.eye(3, 8)[targets] + torch.randn(n, 8, generator=random)
    return InMemory(inputs, targets)


HELD = parts(24, seed=1)


def linear(seed=0):
    with isolated(seed):
        return nn.Linear(8, 3)


def run(model, tell=lambda epoch: None, loss=cross_entropy, training=None, held=HELD, **changes):
    training = training or parts()
    recipe = replace(RECIPE, **changes)
    return Trainer(model, loss, len(training), recipe, 0, tell).run(training, held)


def test_figures_are_means_over_samples_whatever_the_batches():
    """With a rate of nothing the model stays, and its loss is that of all samples at once."""
    model, seen = linear(), []
    run(model, seen.append, epochs=1, batch_size=7, learning_rate=1e-30, precision="float32")
    for source, loss, accuracy in (
        (parts(), seen[0].train_loss, seen[0].train_accuracy),
        (HELD, seen[0].validation_loss, seen[0].validation_accuracy),
    ):
        with torch.no_grad():
            logits = model(source.inputs)
        assert loss == pytest.approx(cross_entropy(logits, source.targets).item(), rel=1e-5)
        hits = (logits.argmax(1) == source.targets).float().mean().item()
        assert accuracy == pytest.approx(hits)


def test_of_masks_known_pixels_are_counted():
    targets = torch.zeros(4, 2, 2, dtype=torch.int64)
    targets[:, 0] = IGNORE
    targets[0, 1, 0] = 1
    tally = Tally()
    tally.add(0.5, torch.tensor([1.0, 0.0])[None, :, None, None].expand(4, 2, 2, 2), targets)
    assert tally.means == (0.5, 7 / 8)


def test_every_sample_comes_once_and_in_another_order_each_time():
    source = InMemory(torch.arange(10)[:, None], torch.arange(10))
    generator = torch.Generator().manual_seed(0)
    orders = [torch.cat([t for _, t in source.batches(4, generator)]).tolist() for _ in range(2)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(10))
    assert orders[0] != orders[1]
    plain = [targets.tolist() for _, targets in source.batches(4, None)]
    assert plain == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_the_rate_rises_then_falls_and_gradients_are_clipped(monkeypatch):
    rates, norms, step = [], [], torch.optim.AdamW.step

    def spy(self, *args, **kwargs):
        groups = self.param_groups
        assert groups[0]["lr"] == groups[1]["lr"]
        rates.append(groups[0]["lr"])
        gradients = [p.grad.norm() for group in groups for p in group["params"]]
        norms.append(torch.stack(gradients).norm().item())
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    way = {"learning_rate": 1.0, "warmup": 0.2, "clip": 0.1}
    run(linear(), loss=lambda *of: 1e8 * cross_entropy(*of), **way)
    assert len(rates) == 20
    assert rates[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert all(a > b for a, b in itertools.pairwise(rates[4:]))
    assert 0 < rates[-1] < 0.02
    assert norms == pytest.approx([0.1] * 20, rel=1e-3)


def test_only_matrices_decay():
    """With no slope to follow, AdamW's decay is all that moves a weight; biases stay."""
    model = nn.Linear(8, 3)
    for parameter in model.parameters():
        nn.init.ones_(parameter)
    flat = {"loss": lambda logits, targets: logits.sum() * 0.0}
    run(model, **flat, epochs=1, learning_rate=0.1, weight_decay=0.5)
    assert (model.weight < 1).all()
    assert (model.bias == 1).all()


@pytest.mark.parametrize(
    ("precision", "told", "low"),
    [("auto", "bfloat16", 1), ("auto", "float32", 0), ("float32", "bfloat16", 0), ("bfloat16", "float32", 1)],
)  # fmt: skip
def test_products_are_in_the_dtype_that_is_told(precision, told, low, monkeypatch):
    monkeypatch.setenv("SAMTL_DTYPE", told)
    seen, model = set(), linear()
    model.register_forward_hook(lambda module, inputs, out: seen.add(out.dtype))
    trainer = run(model, epochs=1, precision=precision)
    assert seen == {torch.bfloat16 if low else torch.float32}
    assert trainer.recipe.precision == ("bfloat16" if low else "float32")
    assert model.weight.dtype == torch.float32


def test_training_ends_after_patience_with_the_best_weights():
    """Validation labels at odds with the training ones: every pass makes it worse, the first stays."""
    odd = InMemory(HELD.inputs, (HELD.targets + 1) % 3)
    model, states = linear(), []
    way = {"epochs": 50, "patience": 3, "learning_rate": 1e-2}
    run(model, lambda epoch: states.append(model.weight.detach().clone()), held=odd, **way)
    assert len(states) == 4
    assert torch.equal(model.weight, states[0])
    assert not torch.equal(model.weight, states[-1])


class Exploding(nn.Linear):
    """A model whose outputs are no numbers from a given call in training on."""

    def __init__(self, after):
        super().__init__(8, 3)
        self.calls, self.after = 0, after

    def forward(self, x):
        self.calls += self.training
        return super().forward(x) * (float("nan") if self.calls > self.after else 1)


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_weights():
    model, seen = Exploding(after=10), []
    outcome = run(model, seen.append)
    assert outcome.stopped == "diverged at step 11"  # in the third pass of four steps
    assert outcome.best_epoch == len(seen) == 2
    assert torch.isfinite(model.weight).all()


def test_a_loss_that_is_no_number_before_there_are_weights_is_an_error():
    def root(logits, targets):
        return (logits.sum() * 0).sqrt()  # finite at 0, its slope is not

    infinite = parts(24, seed=1)
    infinite.inputs[5, 5] = float("inf")
    for model, options, step in (
        (Exploding(after=0), {}, 1),
        (linear(), {"loss": root}, 2),
        (linear(), {"held": infinite}, 4),
    ):
        expected = rf"diverged at step {step}: .*lower the learning rate"
        with pytest.raises(InputError, match=expected):
            run(model, **options)


def test_the_time_spent_waiting_is_told(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(_train.time, "perf_counter", lambda: now[0])

    class Slow(InMemory):
        def batches(self, size, generator):
            for batch in super().batches(size, generator):
                now[0] += 3.0  # to read it
                yield batch

    class Model(nn.Linear):
        def forward(self, x):
            now[0] += 1.0 if self.training else 100.0
            return super().forward(x)

    outcome = run(Model(8, 3), training=Slow(parts().inputs, parts().targets), epochs=2)
    assert outcome.waited == 2 * 4 * 3.0
    assert outcome.seconds == 2 * 4 * 1.0  # validation is not counted


@pytest.mark.parametrize(
    ("way", "stopped"),
    [({}, "epochs"), ({"epochs": 40, "patience": 2, "learning_rate": 0.3}, "patience")],
)
def test_an_epoch_may_be_judged_after_the_next_was_learnt(way, stopped):
    """By a copy, while others draw random numbers: the model draws its own in every step."""
    held = InMemory(HELD.inputs, (HELD.targets + (torch.arange(24) % 4 == 0)) % 3)

    def made():
        with isolated(0):
            layers = nn.Linear(8, 16), Dropout(0.2), nn.ReLU(), Dropout(0.3)
            model = nn.Sequential(*layers, nn.Linear(16, 3))
        return Trainer(model, cross_entropy, 64, replace(RECIPE, **way), 0, lambda epoch: None)

    alone, one = made().run(parts(), held), made()
    frozen, sealed = copy.deepcopy(one.model), None
    while not one.finished:
        for inputs, targets in parts().batches(16, one.order):
            one.learn(inputs, targets)
            torch.rand(3)
        if sealed is not None:
            judged = Tally()
            one.judge(frozen, judged, held.inputs, held.targets)
            one.settle(sealed, judged, frozen.state_dict())
        sealed = one.seal()
        frozen.load_state_dict(one.model.state_dict())
    assert one.stopped == alone.stopped == stopped
    assert (one.curves, one.best_epoch) == (alone.curves, alone.best_epoch)
    assert not one.model.training
    states = one.model.state_dict(), alone.model.state_dict()
    torch.testing.assert_close(*states, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("n", "epochs", "expected"),
    [
        (75_000, 41, 11),  # a quarter, rounded up
        (15_000, 8, 5),  # enough to see 75,000 samples
        (2_700, 20, 20),  # never more than without
        (10**9, 3, 1),
    ],
)
def test_a_warm_training_is_shorter(n, epochs, expected):
    assert warm_epochs(epochs, n) == expected
    head = mlp.Head(epochs=epochs)
    assert head.gains(n, "classification") is (2 * expected <= epochs)
