"""The one training loop: its rate, its decay, its early stopping, and what it does when a loss is no number."""

import copy
import itertools

import pytest
import torch
from torch import nn

from samtl.errors import InputError
from samtl.heads import trainer as _train
from samtl.heads.layers import Dropout
from samtl.heads.trainer import InMemory, Recipe, Tally, Trainer, isolated, shortened, warmed
from samtl.images.transforms import IGNORE

pytestmark = pytest.mark.usefixtures("one_thread")

RECIPE = Recipe(epochs=5, batch_size=16, learning_rate=1e-3, weight_decay=0.0, patience=5)


def parts(n=64, seed=0):
    """Samples of three classes, around centres that are apart."""
    random = torch.Generator().manual_seed(seed)
    targets = torch.arange(n) % 3
    inputs = 3 * torch.eye(3, 8)[targets] + torch.randn(n, 8, generator=random)
    return InMemory(inputs, targets)


def linear(seed=0):
    with isolated(seed):
        return nn.Linear(8, 3)


def train(model, loss, training, validation, recipe, seed, tell):
    trainer = Trainer(model, loss, len(training), recipe, seed, tell)
    return trainer.run(training, validation)


def run(model, recipe=RECIPE, seen=None, loss=nn.functional.cross_entropy, held=None, seed=0):
    tell = (seen if seen is not None else []).append
    return train(model, loss, parts(), held or parts(24, seed=1), recipe, seed, tell)


def but(**changes):
    return Recipe(**{**vars(RECIPE), **changes})


# What is learnt


def test_figures_are_means_over_samples_whatever_the_batches():
    """With a rate of nothing the model stays, and its loss is that of all samples at once."""
    model, seen = linear(), []
    run(model, but(epochs=1, batch_size=7, learning_rate=1e-30, precision="float32"), seen)
    for source, loss, accuracy in (
        (parts(), seen[0].train_loss, seen[0].train_accuracy),
        (parts(24, seed=1), seen[0].validation_loss, seen[0].validation_accuracy),
    ):
        with torch.no_grad():
            logits = model(source.inputs)
        expected = nn.functional.cross_entropy(logits, source.targets).item()
        assert loss == pytest.approx(expected, rel=1e-5)
        hits = (logits.argmax(1) == source.targets).float().mean().item()
        assert accuracy == pytest.approx(hits)


def test_of_masks_known_pixels_are_counted():
    targets = torch.zeros(4, 2, 2, dtype=torch.int64)
    targets[:, 0] = IGNORE
    targets[0, 1, 0] = 1
    source = InMemory(torch.zeros(4, 1, 2, 2), targets)

    class Zeroes(nn.Conv2d):
        """Says class 0 everywhere."""

        def forward(self, x):
            return torch.cat([x + 1, x], dim=1) + 0 * super().forward(x)

    seen = []
    entropy = nn.CrossEntropyLoss(ignore_index=IGNORE)
    train(Zeroes(1, 2, 1), entropy, source, source, but(epochs=1), 0, seen.append)
    assert seen[0].train_accuracy == seen[0].validation_accuracy == 7 / 8


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


# How it steps


@pytest.fixture
def steps(monkeypatch):
    """Collect what the optimiser sees in each step: (rate, norm of the gradient)."""
    seen = []
    step = torch.optim.AdamW.step

    def spy(self, *args, **kwargs):
        groups = self.param_groups
        assert groups[0]["lr"] == groups[1]["lr"]
        gradients = [p.grad.norm() for group in groups for p in group["params"]]
        seen.append((groups[0]["lr"], torch.stack(gradients).norm().item()))
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    return seen


def test_the_rate_rises_then_falls(steps):
    run(linear(), but(learning_rate=1.0, warmup=0.2))
    rates = [rate for rate, _ in steps]
    assert len(rates) == 20
    assert rates[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert all(a > b for a, b in itertools.pairwise(rates[4:]))
    assert 0 < rates[-1] < 0.02


def test_gradients_are_clipped(steps):
    run(linear(), but(clip=0.1), loss=lambda *a: 1e4 * nn.functional.cross_entropy(*a))
    assert all(norm == pytest.approx(0.1, rel=1e-3) for _, norm in steps)


def test_only_matrices_decay():
    """With no slope to follow, AdamW's decay is all that moves a weight; biases stay."""
    model = nn.Linear(8, 3)
    with torch.no_grad():
        model.weight.fill_(1.0)
        model.bias.fill_(1.0)
    recipe = but(epochs=1, learning_rate=0.1, weight_decay=0.5)
    run(model, recipe, loss=lambda logits, targets: logits.sum() * 0.0)
    assert (model.weight < 1).all()
    assert (model.bias == 1).all()


@pytest.mark.parametrize(
    ("precision", "native", "expected"),
    [
        ("auto", True, torch.bfloat16),
        ("auto", False, torch.float32),
        ("float32", True, torch.float32),
        ("bfloat16", False, torch.bfloat16),
    ],
)
def test_products_are_in_bfloat16_where_it_is_native(precision, native, expected, monkeypatch):
    monkeypatch.setattr(_train, "native_bfloat16", lambda device: native)
    seen, model = set(), linear()
    model.register_forward_hook(lambda module, inputs, out: seen.add(out.dtype))
    run(model, but(epochs=1, precision=precision))
    assert seen == {expected}
    assert model.weight.dtype == torch.float32


# When it ends


def test_training_ends_after_patience_with_the_best_weights():
    """Validation labels at odds with the training ones: every pass makes it worse, the first stays."""
    held = parts(24, seed=1)
    held = InMemory(held.inputs, (held.targets + 1) % 3)
    model, states = linear(), []
    Trainer(
        model,
        nn.functional.cross_entropy,
        64,
        but(epochs=50, patience=3, learning_rate=1e-2),
        0,
        lambda epoch: states.append(model.weight.detach().clone()),
    ).run(parts(), held)
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
    outcome = run(model, seen=seen)
    assert outcome.stopped == "diverged at step 11"  # in the third pass of four steps
    assert outcome.best_epoch == len(seen) == 2
    assert torch.isfinite(model.weight).all()


def test_a_loss_that_is_no_number_before_there_are_weights_is_an_error():
    def root(logits, targets):
        return (logits.sum() * 0).sqrt()  # finite at 0, its slope is not

    held = parts(24, seed=1)
    held.inputs[5, 5] = float("inf")
    for model, options, step in (
        (Exploding(after=0), {}, 1),
        (linear(), {"loss": root}, 2),
        (linear(), {"held": held}, 4),
    ):
        with pytest.raises(
            InputError, match=rf"diverged at step {step}: .*lower the learning rate"
        ):
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

    source = parts()
    slow = Slow(source.inputs, source.targets)
    outcome = train(
        Model(8, 3), nn.functional.cross_entropy, slow, parts(), but(epochs=2), 0, print
    )
    assert outcome.waited == 2 * 4 * 3.0
    assert outcome.seconds == 2 * 4 * 1.0  # validation is not counted


# In steps


def trainer(seed, seen, **changes):
    """Train a model that draws random numbers in every step, of torch's own dropout and of ours."""
    with isolated(seed):
        model = nn.Sequential(
            nn.Linear(8, 16), nn.Dropout(0.3), nn.ReLU(), Dropout(0.3), nn.Linear(16, 3)
        )
    return Trainer(model, nn.functional.cross_entropy, 64, but(**changes), seed, seen.append)


def late(one, held):
    """Train a step at a time, each epoch judged by a copy after the next was learnt."""
    frozen, sealed = copy.deepcopy(one.model), None
    while not one.finished:
        for inputs, targets in parts().batches(16, one.order):
            one.learn(inputs, targets)
            yield
        if sealed is not None:
            judged = Tally()
            one.judge(frozen, judged, held.inputs, held.targets)
            one.settle(sealed, judged, frozen.state_dict())
        sealed = one.seal()
        frozen.load_state_dict(one.model.state_dict())


def test_trainers_that_take_turns_and_are_judged_late_learn_as_alone():
    held = parts(24, seed=1)
    held = InMemory(held.inputs, (held.targets + (torch.arange(24) % 4 == 0)) % 3)
    ways = [{}, {"epochs": 40, "patience": 2, "learning_rate": 0.3}]
    seen, seen_alone = [[], []], [[], []]
    alone = [trainer(i, seen_alone[i], **way).run(parts(), held) for i, way in enumerate(ways)]
    several = [trainer(i, seen[i], **way) for i, way in enumerate(ways)]
    for _ in itertools.zip_longest(*(late(one, held) for one in several)):
        torch.rand(3)  # whatever else draws meanwhile
    assert [one.stopped for one in several] == ["epochs", "patience"]
    assert seen == seen_alone
    for one, other in zip(several, alone, strict=True):
        assert (one.stopped, one.best_epoch) == (other.stopped, other.best_epoch)
        assert not one.model.training
        for mine, theirs in zip(one.model.parameters(), other.model.parameters(), strict=True):
            assert torch.equal(mine, theirs)


# From weights that were learnt before


@pytest.mark.parametrize(
    ("n", "epochs", "expected"),
    [
        (75_000, 40, 10),  # a quarter
        (75_000, 41, 11),  # rounded up
        (15_000, 8, 5),  # enough to see 75,000 samples
        (7_500, 20, 10),
        (2_700, 20, 20),  # never more than without
        (10**9, 3, 1),
    ],
)
def test_a_warm_training_is_shorter(n, epochs, expected):
    recipe = but(epochs=epochs)
    # To its end: the weights get worse before they get better.
    assert warmed(recipe, n) == but(epochs=expected, patience=expected)
    assert shortened(epochs, n) is (2 * expected <= epochs)
