"""The one training loop of everything that learns by gradient steps.

It knows nothing of features, grids or pixels: a model, a loss, and sources of batches. AdamW, linear warm-up into a
cosine, clipped gradients, early stopping on the validation part with the best weights kept; bfloat16 products where
the hardware has them, float32 weights everywhere.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from samtl._runtime import bounded, native_bfloat16
from samtl.errors import InputError
from samtl.heads.base import Epoch
from samtl.images.transforms import IGNORE

Loss = Callable[[Tensor, Tensor], Tensor]

WARM_SAMPLES, WARM_SHARE = 75_000, 0.25  # see `warmed`


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


def warmed(recipe: Recipe, n: int) -> Recipe:
    """Give the recipe for weights that were learnt from a part of these samples.

    A quarter of the epochs, but enough to see 75,000 samples: with fewer, heads on little data stay two points of
    accuracy behind those that start from nothing (EuroSAT, `conv`, 10 to 20 % of the images). All of them are run,
    since the loss may rise until the rate falls: without patience one of three seeds gained three points, the others
    nothing (`vit`, 10 to 20 %).

    Parameters
    ----------
    recipe : Recipe
    n : int
        Samples of the training part.
    """
    least = math.ceil(WARM_SAMPLES / n)
    shorter = max(least, math.ceil(WARM_SHARE * recipe.epochs))
    epochs = min(recipe.epochs, shorter)
    return replace(recipe, epochs=epochs, patience=epochs)


def shortened(epochs: int, n: int) -> bool:
    """Tell whether a warm start at least halves the training on n samples.

    One that does not is of little use, and may do harm: with 18 epochs of 20, two of three seeds were no better for
    twice the images (EuroSAT at 256 pixels, `vit` from 10 to 20 %; not compared with training from nothing).
    """
    return 2 * warmed(Recipe(epochs, 1, 1.0, 0.0, 1), n).epochs <= epochs


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


class Tally:
    """Running sums over batches: of the loss, and of what was right; `step` is the one that an epoch ended with."""

    def __init__(self) -> None:
        self.step = 0
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


class Trainer:
    """One model's training, a batch and an epoch at a time, so that several can share one pass over their data.

    An epoch is learnt batch by batch, sealed, judged on the validation part, and settled. Judging may come late: what
    was learnt after an epoch that turns out to be the last is forgotten.

    Parameters
    ----------
    model : nn.Module
        Maps a batch of inputs to logits, classes along axis 1; trained in place.
    loss : callable
        `loss(logits, targets)` gives the mean over the batch.
    n : int
        Samples in an epoch.
    recipe : Recipe
    seed : int
        For the order of samples (`order`) and for dropout.
    on_epoch : callable
        Called with each settled epoch.

    Attributes
    ----------
    order : torch.Generator
    waited : float
        Seconds spent waiting for data; added to by whoever feeds.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        n: int,
        recipe: Recipe,
        seed: int,
        on_epoch: Callable[[Epoch], None],
    ) -> None:
        self.model, self.loss, self.recipe, self.on_epoch = model, loss, recipe, on_epoch
        self.order = torch.Generator().manual_seed(seed)
        self._random = torch.Generator().manual_seed(seed).get_state()
        groups: list[dict[str, Any]] = [
            {
                "params": [p for p in model.parameters() if p.ndim > 1],
                "weight_decay": recipe.weight_decay,
            },
            {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self._optimiser = torch.optim.AdamW(groups, lr=recipe.learning_rate, fused=True)
        self._steps = recipe.epochs * math.ceil(n / recipe.batch_size)
        self._rising = max(1, round(recipe.warmup * self._steps))
        self._step = 0
        self._mixed = _autocast(recipe.precision)
        self._tally = Tally()
        self._curves: list[Epoch] = []
        self._best: tuple[float, int, dict[str, Tensor]] = (math.inf, 0, {})
        self._diverged = False
        self._stopped = ""
        self._samples, self._seconds, self.waited = 0, 0.0, 0.0

    @property
    def finished(self) -> bool:
        """Whether the last epoch was settled."""
        return bool(self._stopped)

    @property
    def diverged(self) -> bool:
        """Whether the loss was no number any more; what is left of the epoch is then not learnt."""
        return self._diverged

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Within a `with` block, dropout draws from this training's own random numbers."""
        outer = torch.default_generator.get_state()
        torch.default_generator.set_state(self._random)
        try:
            yield
        finally:
            self._random = torch.default_generator.get_state()
            torch.default_generator.set_state(outer)

    def learn(self, inputs: Tensor, targets: Tensor) -> None:
        """Take one step."""
        if self._diverged or self._stopped:
            return
        began = time.perf_counter()
        self.model.train()
        for group in self._optimiser.param_groups:
            group["lr"] = self.recipe.learning_rate * self._rate()
        self._step += 1
        self._optimiser.zero_grad(set_to_none=True)
        with self.drawing():
            with self._mixed():
                logits = self.model(inputs)
            value = self.loss(logits.float(), targets)
            self._tally.add(value.item(), logits, targets)
            if not math.isfinite(self._tally.loss):
                self._diverged = True
            else:
                value.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
                self._optimiser.step()
        self._samples += len(targets)
        self._seconds += time.perf_counter() - began

    def _rate(self) -> float:
        """Part of the learning rate: a rise, then half a cosine."""
        step, rising = self._step, self._rising
        if step < rising:
            return (step + 1) / rising
        return (1 + math.cos(math.pi * (step - rising) / max(1, self._steps - rising))) / 2

    def seal(self) -> Tally:
        """End an epoch; gives what it came to, and the next begins."""
        tally, self._tally = self._tally, Tally()
        tally.step = self._step
        return tally

    def judge(self, model: nn.Module, tally: Tally, inputs: Tensor, targets: Tensor) -> None:
        """Add a batch of the validation part to a tally, for this model or a copy of it."""
        model.eval()
        with torch.no_grad():
            with self._mixed():
                logits = model(inputs).float()
            tally.add(self.loss(logits, targets).item(), logits, targets)

    def settle(self, learnt: Tally, judged: Tally, weights: Mapping[str, Tensor]) -> None:
        """Take note of an epoch, and decide whether it is the last.

        Parameters
        ----------
        learnt, judged : Tally
            As `seal` gave it, and of the validation part.
        weights : mapping of str to Tensor
            The model's state when the epoch was sealed; copied where it is the best so far.

        Raises
        ------
        InputError
            Where the loss is no number before there are weights worth keeping.
        """
        if self._stopped:
            return
        if not math.isfinite(learnt.loss) or not math.isfinite(judged.mean_loss):
            self._stop(f"diverged at step {learnt.step}")
            return
        epoch, epochs = len(self._curves) + 1, self.recipe.epochs
        self._curves.append(
            Epoch(
                epoch, epochs, learnt.mean_loss, learnt.accuracy, judged.mean_loss, judged.accuracy
            )
        )
        self.on_epoch(self._curves[-1])
        if judged.mean_loss < self._best[0]:
            kept = {name: value.clone() for name, value in weights.items()}
            self._best = (judged.mean_loss, epoch, kept)
        elif epoch - self._best[1] >= self.recipe.patience:
            self._stop("patience")
        if epoch == epochs and not self._stopped:
            self._stop("epochs")

    def _stop(self, why: str) -> None:
        self._stopped = why
        if not self._best[2]:
            raise InputError(
                f"training {why}: the loss is no longer a number, and there are no earlier weights to keep; "
                "lower the learning rate, or look for extreme values in the features"
            )
        self.model.load_state_dict(self._best[2])
        self.model.eval()

    def run(self, training: Source, validation: Source) -> Self:
        """Train to the end, alone.

        The same seed gives the same weights on the same machine with the same number of threads. Torch's own random
        state is as before afterwards.

        Raises
        ------
        InputError
            As `settle`.
        ResourceError
            Where memory gives out.
        """
        remedy = "lower --batch-size, or --image-size where pixels are read"
        size = self.recipe.batch_size
        with isolated(0), bounded("training", remedy):
            while not self.finished:
                asked = time.perf_counter()
                for inputs, targets in training.batches(size, self.order):
                    self.waited += time.perf_counter() - asked
                    self.learn(inputs, targets)
                    asked = time.perf_counter()
                    if self.diverged:
                        break
                learnt, judged = self.seal(), Tally()
                for inputs, targets in validation.batches(2 * size, None):
                    self.judge(self.model, judged, inputs, targets)
                self.settle(learnt, judged, self.model.state_dict())
        return self

    def outcome(self) -> Outcome:
        """Say what came of it, once it is finished: the model holds the best weights."""
        return Outcome(
            tuple(self._curves),
            self._best[1],
            self._stopped,
            self._samples,
            self._seconds + self.waited,
            self.waited,
            self.recipe,
        )


def train(
    model: nn.Module,
    loss: Loss,
    training: Source,
    validation: Source,
    recipe: Recipe,
    seed: int,
    on_epoch: Callable[[Epoch], None],
) -> Outcome:
    """Train a model in place: see `Trainer`."""
    return (
        Trainer(model, loss, len(training), recipe, seed, on_epoch)
        .run(training, validation)
        .outcome()
    )


def _autocast(precision: str) -> Callable[[], AbstractContextManager[Any]]:
    if precision == "bfloat16" or (precision == "auto" and native_bfloat16(torch.device("cpu"))):
        return functools.partial(torch.autocast, "cpu", torch.bfloat16)
    return nullcontext
