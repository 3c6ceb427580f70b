"""The same seed gives the same weights and predictions to the last bit, whatever the number of threads."""

import threading
import time

import numpy as np
import pytest
import torch
from torch import nn
from toys import blobs, stripes

from samtl import registry
from samtl._runtime import parts
from samtl.baselines.networks import BatchNorm
from samtl.heads.base import PooledHead
from samtl.heads.grid import moments
from samtl.heads.training.trainer import InMemory

HEADS = [
    (name, task)
    for name in registry.names("heads")
    for task in registry.load("heads", name).Head.tiers
    if task in ("classification", "segmentation")
]
THREADS = 1, 2, 8


@pytest.fixture
def divided(monkeypatch):
    """Divide small batches, too."""
    monkeypatch.setattr(parts, "SMALL", 1)


@pytest.fixture(params=["float32", "bfloat16"])
def precision(request, monkeypatch):
    monkeypatch.setenv("SAMTL_DTYPE", request.param)
    return request.param


def brief(made):
    names = made.get_params()
    few = {"epochs": 1, "batch_size": 24, "patience": 2}
    return made.set_params(**{name: value for name, value in few.items() if name in names})


def outcomes(fit):
    """What a fit comes to with several numbers of threads: bytes of weights and predictions, by role."""
    before, found = torch.get_num_threads(), []
    for threads in THREADS:
        torch.set_num_threads(threads)
        try:
            model, predicted = fit()
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(before)
        tensors = {role: array.tobytes() for role, array in model.tensors().items()}
        found.append({**tensors, "predictions": np.ascontiguousarray(predicted).tobytes()})
    return found


def require_equal(found):
    first, *others = found
    for other in others:
        assert [role for role in first if other[role] != first[role]] == []


@pytest.mark.parametrize(("name", "task"), HEADS)
def test_heads_do_not_depend_on_threads(name, task, divided, precision):
    random = np.random.default_rng(0)
    head = registry.load("heads", name).Head
    shape = (700,) if issubclass(head, PooledHead) else (64, 8, 8)
    n = 300 if len(shape) == 1 else 60
    X = random.normal(size=(n, *shape)).astype(np.float32)
    y = random.integers(0, 3, n if task == "classification" else (n, 32, 32))

    def fit():
        model = brief(head(random_state=3))
        if len(shape) == 1:
            return model.fit(X, y), model.predict_proba(X)
        training, held = (
            InMemory(torch.from_numpy(X[part]), torch.from_numpy(y[part]))
            for part in (slice(0, 50), slice(50, None))
        )
        model.fit(
            training, held, moments(training.inputs).mean(0), task=task, n_classes=3, shape=shape
        )
        return model, model.predict_proba(X[:7])

    require_equal(outcomes(fit))


@pytest.mark.parametrize("name", ["cnn", "unet"])
def test_baselines_do_not_depend_on_threads(name, divided, precision):
    data = stripes(60) if name == "cnn" else blobs(60)
    size = {"image_size": 32} | ({"width": 8} if name == "unet" else {})

    def fit():
        model = brief(registry.load("baselines", name).Baseline(random_state=3, **size))
        model.fit(data, np.arange(48), np.arange(48, 54))
        said = model.predict_all(data, np.arange(54, 60), image_size=64)
        return model, np.concatenate([next(iter(one.values())).ravel() for one in said])

    require_equal(outcomes(fit))


@pytest.mark.parametrize(
    ("kind", "name"),
    [("heads", name) for name, _ in HEADS] + [("baselines", name) for name in ("cnn", "unet")],
)
def test_no_network_draws_from_the_generator_that_all_threads_share(kind, name):
    module = registry.load(kind, name)
    model = module.Head() if kind == "heads" else module.Baseline()
    if not hasattr(model, "network"):
        return
    tasks = getattr(model, "tiers", None) or model.tasks
    for task in tasks:
        model.adopt(task, [0, 1], (8,) if isinstance(model, PooledHead) else (8, 4, 4))
        for layer in model.network().modules():
            assert not isinstance(layer, nn.modules.dropout._DropoutNd)
            assert not isinstance(layer, nn.modules.batchnorm._BatchNorm) or isinstance(
                layer, BatchNorm
            )


def test_batch_norm_over_parts_is_that_of_the_whole_batch(divided):
    random = torch.Generator().manual_seed(0)
    x = torch.randn(10, 6, 9, 9, generator=random) * 3 + 5
    slope = torch.randn(10, 6, 9, 9, generator=random)
    plain, ours = nn.BatchNorm2d(6), BatchNorm(6)
    for layer in (plain, ours):
        with torch.no_grad():
            layer.weight.copy_(torch.arange(1, 7) / 3)
            layer.bias.copy_(torch.arange(6) - 3)
    whole = x.clone().requires_grad_()
    plain(whole).backward(slope)
    some = [part.clone().requires_grad_() for part in parts.split(x)]
    assert len(some) == parts.PARTS

    def slopes(out, part, slope):
        return torch.autograd.grad(out, [part, ours.weight, ours.bias], slope)

    out = parts.each(ours, some)
    dx, dweight, dbias = zip(*parts.each(slopes, out, some, parts.split(slope)), strict=True)
    with torch.no_grad():
        expected = nn.functional.batch_norm(x, None, None, plain.weight, plain.bias, training=True)
    for found, right in (
        (torch.cat(out), expected),
        (torch.cat(dx), whole.grad),
        (sum(dweight), plain.weight.grad),
        (sum(dbias), plain.bias.grad),
        (ours.running_mean, plain.running_mean),
        (ours.running_var, plain.running_var),
    ):
        torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-5)


# Parts


def test_parts_keep_their_order_and_each_has_one_thread():
    def work(a, b):
        time.sleep(0.002 * (7 - a))
        return a + b, torch.get_num_threads()

    assert parts.each(work, range(7), range(0, 70, 10)) == [(11 * i, 1) for i in range(7)]


@pytest.mark.parametrize("threads", THREADS)
def test_no_more_parts_are_computed_at_the_same_time_than_there_are_threads(threads):
    running, most, lock = 0, 0, threading.Lock()

    def work(i):
        nonlocal running, most
        for _ in range(3):
            with lock:
                running += 1
                most = max(most, running)
            time.sleep(0.002)
            with lock:
                running -= 1
            assert parts.exchange(i) == [0, 1, 2, 3]
        return parts.position()

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with parts.one_thread():
            assert parts.each(work, range(4)) == [0, 1, 2, 3]
    finally:
        torch.set_num_threads(before)
    assert most <= threads
    assert parts.position() is None


def test_a_part_that_fails_does_not_leave_the_others_waiting():
    def work(i):
        if i == 2:
            raise ValueError("part 2")
        return parts.exchange(i)

    for _ in range(2):
        with pytest.raises(ValueError, match="part 2"):
            parts.each(work, range(4))
    assert parts.each(parts.exchange, range(3)) == [[0, 1, 2]] * 3
