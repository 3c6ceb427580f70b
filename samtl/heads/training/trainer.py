"""The training loop of everything that learns by gradient steps.

AdamW, linear warm-up into a cosine, clipped gradients, early stopping on the validation part with the best weights
kept; products in bfloat16 if this machine is faster with it, weights in float32.
"""

from __future__ import annotations

import copy
import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from samtl._io import digest
from samtl._runtime import bounded, parts, probe
from samtl._runtime.probe import Work
from samtl.errors import InputError
from samtl.heads.base import Epoch
from samtl.heads.training.layers import drawing_from
from samtl.images.transforms import IGNORE

WARM_SAMPLES, WARM_SHARE = 75_000, 0.25  # see `warm_epochs`
_TRIAL = 2**20  # values in the samples that show which dtype is faster


class Source(Protocol):
    """Samples that come in batches; `len` is the number of samples in one pass."""

    def __len__(self) -> int: ...

    def batches(
        self, size: int, generator: torch.Generator | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every sample once as (inputs, targets), shuffled by `generator` or, if that is None, in order."""
        ...


@dataclass(frozen=True)
class InMemory:
    """A source of tensors with the samples along their first axis."""

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def batches(
        self, size: int, generator: torch.Generator | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every sample once."""
        for rows in torch.split(in_order(len(self), generator), size):
            yield self.inputs[rows], self.targets[rows]


def in_order(n: int, generator: torch.Generator | None) -> Tensor:
    """Return the positions of n samples, shuffled by `generator` or, if that is None, ascending."""
    return torch.arange(n) if generator is None else torch.randperm(n, generator=generator)


@dataclass(frozen=True)
class Recipe:
    """Parameters of a training."""

    epochs: int  #: most passes over the training part; the cosine ends with the last
    batch_size: int
    learning_rate: float  #: at the end of the warm-up
    weight_decay: float  #: AdamW's, on matrices only
    patience: int  #: epochs without a better validation loss after which training ends
    warmup: float = 0.05  #: share of all steps, in [0, 1), over which the rate rises
    clip: float = 1.0  #: largest norm of a step's gradient
    #: Of products: float32, bfloat16, or auto, the faster one, which a training writes in its place.
    precision: str = "auto"


def warm_epochs(epochs: int, n: int) -> int:
    """Return how many of these epochs to train weights that were learnt from some of the same n samples.

    A quarter of them, but enough to see 75,000 samples: with fewer, heads on little data stay two points of accuracy
    behind those trained from scratch (EuroSAT, `conv`, 10 to 20 % of the images).
    """
    return min(epochs, max(math.ceil(WARM_SAMPLES / n), math.ceil(WARM_SHARE * epochs)))


def mixed(precision: str) -> torch.autocast:
    """Make the context in which products are in a dtype, and weights in float32."""
    # The cache of converted weights would be shared by threads.
    low = precision == "bfloat16"
    return torch.autocast("cpu", torch.bfloat16, enabled=low, cache_enabled=False)


@contextmanager
def isolated(seed: int) -> Iterator[None]:
    """Neither depend on nor change the caller's settings of torch while models are made and trained.

    These are no_grad, inference_mode, the default dtype, the number of threads and the random state. Initial weights
    can only be drawn from torch's global generator, which therefore starts at `seed`.
    """
    dtype = torch.get_default_dtype()
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.random.fork_rng(devices=[]),
        parts.one_thread(),
    ):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed GPUs as well
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)


@dataclass
class Tally:
    """Running sums of loss and correct predictions over batches; `step` is the last one of the epoch."""

    step: int = 0
    loss: float = 0.0
    right: int = 0
    samples: int = 0
    targets: int = 0  # labels, or valid pixels of masks; numbers do not count

    def add(self, value: float, logits: Tensor, targets: Tensor) -> None:
        self.loss += value * len(targets)
        self.samples += len(targets)
        if targets.is_floating_point():
            return
        several = targets.shape == logits.shape  # classes may apply
        self.right += int(((logits > 0) if several else logits.argmax(1)).eq(targets).sum())
        self.targets += len(targets) if targets.ndim == 1 else int((targets != IGNORE).sum())

    @property
    def means(self) -> tuple[float, float]:
        """Loss and accuracy, NaN if there is none."""
        return self.loss / self.samples, self.right / self.targets if self.targets else math.nan


class Trainer:
    """One model's training, a batch and an epoch at a time, so that several can share one pass over their data.

    `learn` takes the steps of an epoch, `seal` ends it, `judge` computes its validation loss and `settle` records it.
    Judging may come late: what was learnt after the last epoch is forgotten. `run` does all of this for one model.

    Parameters
    ----------
    model : nn.Module
        Maps a batch of inputs to logits, classes along axis 1; trained in place.
    loss : callable
        `loss(logits, targets)` returns the mean over the batch.
    n : int
        Samples in an epoch.
    recipe : Recipe
    seed : int
        For the order of samples (`order`) and for dropout.
    on_epoch : callable
        Called with each settled epoch.
    name : str
        Of what is trained, for what is remembered of its speed.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        n: int,
        recipe: Recipe,
        seed: int,
        on_epoch: Callable[[Epoch], None],
        name: str = "a network",
    ) -> None:
        self.model, self.loss, self.recipe, self.on_epoch = model, loss, recipe, on_epoch
        self.name = name
        self.order = torch.Generator().manual_seed(seed)
        seeds = torch.randint(2**62, (parts.PARTS,), generator=torch.Generator().manual_seed(seed))
        self._draws = [torch.Generator().manual_seed(one) for one in seeds.tolist()]
        self._parameters = list(model.parameters())
        decay = {True: recipe.weight_decay, False: 0.0}  # of matrices, and of vectors
        groups: list[dict[str, Any]] = [
            {
                "params": [p for p in model.parameters() if (p.ndim > 1) is k],
                "weight_decay": decay[k],
            }
            for k in decay
        ]
        self._optimiser = torch.optim.AdamW(groups, lr=recipe.learning_rate, fused=True)
        self._steps = recipe.epochs * math.ceil(n / recipe.batch_size)
        self._step = 0
        self._tally = Tally()
        self._least, self._weights = math.inf, dict[str, Tensor]()
        self.curves: list[Epoch] = []  #: the settled epochs
        self.best_epoch = 0  #: from 1; the model of a finished training has its weights
        self.stopped = ""  #: why training ended: `epochs`, `patience` or `diverged at step N`
        self.diverged = False  #: the loss is no longer finite, and the rest of the epoch not learnt
        self.samples = 0  #: learnt from
        self.seconds = 0.0  #: that this took, without waiting and validation
        self.waited = 0.0  #: seconds spent waiting for data; `learn`'s caller adds to it

    @property
    def finished(self) -> bool:
        """Whether the last epoch was settled."""
        return bool(self.stopped)

    @property
    def judged_at_once(self) -> int:
        """How many validation samples are judged at a time."""
        return 2 * self.recipe.batch_size

    def learn(self, inputs: Tensor, targets: Tensor) -> None:
        """Take one step."""
        if self.diverged or self.stopped:
            return
        if self.recipe.precision == "auto":
            self._choose(inputs, targets)
        began = time.perf_counter()
        self.model.train()
        for group in self._optimiser.param_groups:
            group["lr"] = self.recipe.learning_rate * self._rate()
        self._step += 1
        divided = parts.split(inputs)
        logits = parts.each(self._forward, divided, self._draws[: len(divided)])
        whole = torch.cat([part.detach() for part in logits]).float().requires_grad_()
        value = self.loss(whole, targets)
        self._tally.add(value.item(), whole.detach(), targets)
        self.diverged = not math.isfinite(self._tally.loss)
        if not self.diverged:
            value.backward()  # type: ignore[no-untyped-call]
            assert whole.grad is not None
            slopes = torch.tensor_split(whole.grad.to(logits[0].dtype), len(divided))
            found = zip(*parts.each(self._backward, logits, slopes), strict=True)
            for parameter, gradients in zip(self._parameters, found, strict=True):
                parameter.grad = functools.reduce(torch.add, gradients)
            nn.utils.clip_grad_norm_(self._parameters, self.recipe.clip)
            self._optimiser.step()
        self.samples += len(targets)
        self.seconds += time.perf_counter() - began

    def _forward(self, inputs: Tensor, draws: torch.Generator) -> Tensor:
        with drawing_from(draws), mixed(self.recipe.precision):
            logits: Tensor = self.model(inputs)
        return logits

    def _backward(self, logits: Tensor, slopes: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(logits, self._parameters, slopes)

    def _choose(self, inputs: Tensor, targets: Tensor) -> None:
        """Find out which dtype is faster, from steps of a copy on some samples of a batch."""
        count = min(max(_TRIAL // inputs[0].numel(), 2), 128)
        few = torch.arange(count) % len(targets)

        def prepare(precision: str) -> Work:
            model = copy.deepcopy(self.model).train()

            def step() -> None:
                with torch.random.fork_rng(devices=[]):
                    model.zero_grad()
                    with mixed(precision):
                        logits = model(inputs[few])
                    self.loss(logits.float(), targets[few]).backward()  # type: ignore[no-untyped-call]

            return step

        shapes = [tuple(tensor.shape) for tensor in self.model.parameters()]
        work = (
            f"training {self.name} on {'x'.join(map(str, inputs.shape[1:]))} ({digest(shapes)[:8]})"
        )
        precision = probe.fastest_dtype(work, prepare)
        self.recipe = replace(self.recipe, precision=precision)

    def _rate(self) -> float:
        rising = max(1, round(self.recipe.warmup * self._steps))
        if self._step < rising:
            return (self._step + 1) / rising
        done = (self._step - rising) / max(1, self._steps - rising)
        return (1 + math.cos(math.pi * done)) / 2

    def seal(self) -> Tally:
        """Finish the epoch, return its totals and reset the counters."""
        tally, self._tally = self._tally, Tally()
        tally.step = self._step
        return tally

    def judge(self, model: nn.Module, tally: Tally, inputs: Tensor, targets: Tensor) -> None:
        """Add a batch of the validation part to a tally, for this model or a copy of it."""
        model.eval()

        @torch.no_grad()
        def score(some: Tensor) -> Tensor:
            with mixed(self.recipe.precision):
                logits: Tensor = model(some)
            return logits.float()

        logits = torch.cat(parts.each(score, parts.split(inputs)))
        tally.add(self.loss(logits, targets).item(), logits, targets)

    def settle(self, learnt: Tally, judged: Tally, weights: Mapping[str, Tensor]) -> None:
        """Record an epoch, and decide whether it is the last; `weights` is the model's state at its end.

        Raises InputError if the loss is not finite before there are weights worth keeping.
        """
        if self.stopped:
            return
        if not math.isfinite(learnt.loss) or not math.isfinite(judged.loss):
            self._stop(f"diverged at step {learnt.step}")
            return
        epoch, epochs = len(self.curves) + 1, self.recipe.epochs
        self.curves.append(Epoch(epoch, epochs, *learnt.means, *judged.means))
        self.on_epoch(self.curves[-1])
        loss = self.curves[-1].validation_loss
        if loss < self._least:
            self._least, self.best_epoch = loss, epoch
            self._weights = {name: value.clone() for name, value in weights.items()}
        elif epoch - self.best_epoch >= self.recipe.patience:
            self._stop("patience")
        if epoch == epochs and not self.stopped:
            self._stop("epochs")

    def _stop(self, why: str) -> None:
        self.stopped = why
        if not self._weights:
            raise InputError(
                f"training {why}: the loss is no longer a number, and there are no earlier weights to keep; "
                "lower the learning rate, or look for extreme values in the features"
            )
        self.model.load_state_dict(self._weights)
        self.model.eval()

    def run(self, training: Source, validation: Source) -> Self:
        """Train to the end.

        The same seed gives the same weights to the last bit, whatever the number of threads, on the same processor with
        the same version of torch and the same dtype, which a recipe with `auto` chooses by what was measured. Raises
        InputError as `settle` does, and ResourceError if memory runs out.
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
                for inputs, targets in validation.batches(self.judged_at_once, None):
                    self.judge(self.model, judged, inputs, targets)
                self.settle(learnt, judged, self.model.state_dict())
        return self
