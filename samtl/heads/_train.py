"""The one training loop of everything that learns by gradient steps.

It knows nothing of features, grids or pixels: a model, a loss, and sources of batches. AdamW, linear warm-up into a
cosine, clipped gradients, early stopping on the validation part with the best weights kept; bfloat16 products where
the hardware has them, float32 weights everywhere.
"""

from __future__ import annotations

import copy
import functools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from samtl.errors import InputError
from samtl.heads._base import Epoch
from samtl.machine import bounded, native_bfloat16
from samtl.preprocess import IGNORE

Loss = Callable[[Tensor, Tensor], Tensor]


class Source(Protocol):
    """Samples that come in batches; `len` is the number of samples in one pass."""

    def __len__(self) -> int: ...

    def batches(
        self, size: int, generator: torch.Generator | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Give every sample once as (inputs, targets): shuffled by `generator`, or in order where it is None."""
        ...


@dataclass(frozen=True)
class InMemory:
    """A source of tensors that are held whole; both have the samples along their first axis."""

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def batches(
        self, size: int, generator: torch.Generator | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Give every sample once."""
        if generator is None:
            yield from zip(
                torch.split(self.inputs, size), torch.split(self.targets, size), strict=True
            )
            return
        for rows in torch.split(torch.randperm(len(self), generator=generator), size):
            yield self.inputs[rows], self.targets[rows]


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes
    ----------
    epochs : int
        Most passes over the training part; the cosine ends with the last.
    batch_size : int
    learning_rate : float
        At the end of the warm-up.
    weight_decay : float
        AdamW's, on matrices only.
    patience : int
        Epochs without a better validation loss after which training ends.
    warmup : float
        Part of all steps, in [0, 1), over which the rate rises.
    clip : float
        Largest norm of a step's gradient.
    precision : {"auto", "float32", "bfloat16"}
        What products are computed in; `auto` is bfloat16 where the CPU multiplies it natively.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    patience: int
    warmup: float = 0.05
    clip: float = 1.0
    precision: str = "auto"


@dataclass(frozen=True)
class Outcome:
    """What came of a training run; the model holds the weights of `best_epoch` (counted from 1).

    `stopped` says why it ended: `epochs`, `patience`, or `diverged at step N`. `samples` were learnt from in
    `seconds` of training (validation not counted), of which `waited` were spent waiting for data.
    """

    curves: tuple[Epoch, ...]
    best_epoch: int
    stopped: str
    samples: int
    seconds: float
    waited: float
    recipe: Recipe

    def tell(self, model: Any) -> None:
        """Set what a trained head or baseline knows of its training.

        `curves_`, `n_iter_`, `best_epoch_`, `stopped_`; `rate_`, samples learnt from in a second; `waiting_`, the part
        of the time spent waiting for data; `recipe_`, with what the defaults came to.
        """
        model.n_iter_, model.best_epoch_ = len(self.curves), self.best_epoch
        model.stopped_ = self.stopped
        model.rate_ = self.samples / max(self.seconds, 1e-9)
        model.waiting_ = self.waited / max(self.seconds, 1e-9)
        model.recipe_ = self.recipe
        model.curves_ = {
            name: [getattr(epoch, name) for epoch in self.curves]
            for name in Epoch.__dataclass_fields__
            if name != "epochs"
        }


@contextmanager
def isolated(seed: int) -> Iterator[None]:
    """Make models and train them here: what a caller set torch to neither matters nor changes.

    That is no_grad, inference_mode, the default dtype and the random state. Initial weights and dropout can only draw
    from torch's global generator, which therefore starts at `seed`.
    """
    dtype = torch.get_default_dtype()
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed GPUs as well
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)


def train(
    model: nn.Module,
    loss: Loss,
    training: Source,
    validation: Source,
    recipe: Recipe,
    seed: int,
    on_epoch: Callable[[Epoch], None],
) -> Outcome:
    """Train a model in place.

    The same seed gives the same weights on the same machine with the same number of threads. Torch's own random
    state is as before afterwards.

    Parameters
    ----------
    model : nn.Module
        Maps a batch of inputs to logits, classes along axis 1.
    loss : callable
        `loss(logits, targets)` gives the mean over the batch.
    training, validation : Source
    recipe : Recipe
    seed : int
        For the order of samples and for dropout.
    on_epoch : callable
        Called after each pass.

    Raises
    ------
    InputError
        Where the loss stops being finite before there are weights worth keeping.
    ResourceError
        Where memory gives out.
    """
    order = torch.Generator().manual_seed(seed)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=recipe.learning_rate, fused=True)
    steps = recipe.epochs * math.ceil(len(training) / recipe.batch_size)
    rising = max(1, round(recipe.warmup * steps))
    step = 0
    curves: list[Epoch] = []
    best: tuple[float, int, dict[str, Tensor]] = (math.inf, 0, {})
    stopped = "epochs"
    samples, seconds, waited = 0, 0.0, 0.0
    mixed = _autocast(recipe.precision)
    remedy = "lower --batch-size, or --image-size where pixels are read"
    with isolated(seed), bounded("training", remedy):
        for epoch in range(1, recipe.epochs + 1):
            model.train()
            tally = _Tally()
            clock = _Waiting(training.batches(recipe.batch_size, order))
            for inputs, targets in clock:
                rate = (
                    (step + 1) / rising
                    if step < rising
                    else (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising))) / 2
                )
                for group in optimiser.param_groups:
                    group["lr"] = recipe.learning_rate * rate
                step += 1
                optimiser.zero_grad(set_to_none=True)
                with mixed():
                    logits = model(inputs)
                value = loss(logits.float(), targets)
                tally.add(value.item(), logits, targets)
                if not math.isfinite(tally.loss):
                    stopped = f"diverged at step {step}"
                    break
                value.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
                optimiser.step()
            samples += tally.samples
            seconds += clock.seconds
            waited += clock.waited
            judged = _judge(model, loss, validation, recipe.batch_size, mixed)
            if stopped != "epochs" or not math.isfinite(judged.mean_loss):
                stopped = stopped if stopped != "epochs" else f"diverged at step {step}"
                break
            curves.append(
                Epoch(
                    epoch,
                    recipe.epochs,
                    tally.mean_loss,
                    tally.accuracy,
                    judged.mean_loss,
                    judged.accuracy,
                )
            )
            on_epoch(curves[-1])
            if judged.mean_loss < best[0]:
                best = (judged.mean_loss, epoch, copy.deepcopy(model.state_dict()))
            elif epoch - best[1] >= recipe.patience:
                stopped = "patience"
                break
    if not best[2]:
        raise InputError(
            f"training {stopped}: the loss is no longer a number, and there are no earlier weights to keep; "
            "lower the learning rate, or look for extreme values in the features"
        )
    model.load_state_dict(best[2])
    model.eval()
    return Outcome(tuple(curves), best[1], stopped, samples, seconds, waited, recipe)


class _Waiting:
    """Goes through batches and keeps the time: in all, and how much of it was spent waiting for the next one."""

    def __init__(self, batches: Iterator[tuple[Tensor, Tensor]]) -> None:
        self.batches = batches
        self.seconds = self.waited = 0.0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        began = asked = time.perf_counter()
        for batch in self.batches:
            self.waited += time.perf_counter() - asked
            yield batch
            asked = time.perf_counter()
            self.seconds = asked - began


class _Tally:
    """Running sums over batches."""

    def __init__(self) -> None:
        self.loss = self.right = 0.0
        self.samples = self.targets = 0

    def add(self, value: float, logits: Tensor, targets: Tensor) -> None:
        self.loss += value * len(targets)
        self.right += int((logits.argmax(1) == targets).sum())
        self.samples += len(targets)
        # Of masks, pixels count.
        self.targets += len(targets) if targets.ndim == 1 else int((targets != IGNORE).sum())

    @property
    def mean_loss(self) -> float:
        return self.loss / self.samples

    @property
    def accuracy(self) -> float:
        return self.right / max(self.targets, 1)


def _autocast(precision: str) -> Callable[[], AbstractContextManager[Any]]:
    if precision == "bfloat16" or (precision == "auto" and native_bfloat16(torch.device("cpu"))):
        return functools.partial(torch.autocast, "cpu", torch.bfloat16)
    return nullcontext


def _judge(
    model: nn.Module,
    loss: Loss,
    source: Source,
    batch_size: int,
    mixed: Callable[[], AbstractContextManager[Any]],
) -> _Tally:
    model.eval()
    tally = _Tally()
    with torch.no_grad():
        for inputs, targets in source.batches(2 * batch_size, None):
            with mixed():
                logits = model(inputs).float()
            tally.add(loss(logits, targets).item(), logits, targets)
    return tally
