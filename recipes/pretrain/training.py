"""A training run: its steps, its log, and resuming."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recipes.pretrain import state as _state
from recipes.pretrain.network import Network, pooled, pooled_width
from recipes.pretrain.objective import (
    Terms,
    effective_rank,
    expander,
    vicreg,
)
from recipes.pretrain.recipe import Recipe, Stage
from recipes.pretrain.views import (
    at_points,
    cut,
    draw_crops,
    draw_hidden,
    normalised,
    recoloured,
    shared_points,
)
from samtl._runtime import bounded, duration
from samtl.encoders.sam import CHANNELS
from samtl.errors import InputError, ResourceError, SamtlError
from samtl.images.transforms import PATCH

_log = logging.getLogger(__name__)

LOG = "log.jsonl"
LOG_EVERY, SAVE_EVERY = 50, 120.0  # steps; seconds
# Of more tokens in a step and view, what blocks keep for their gradients would fill a GPU of 80 GB.
MOST_KEPT = 420_000
_RANKED = 512  # rows that the effective rank is computed of, at most


@dataclass(frozen=True)
class Progress:
    """A step that was done.

    Attributes
    ----------
    step : int
        Counted from 1.
    images : int
        Seen so far, each time it was seen.
    loss : float
    global_invariance, global_variance, global_covariance : float
        Of the pooled output's embeddings.
    dense_invariance, dense_variance, dense_covariance : float
        Of the tokens'.
    rank : float
        Directions that the pooled output fills.
    learning_rate : float
    seconds : float
        Of training so far, including earlier sessions.
    """

    step: int
    images: int
    loss: float
    global_invariance: float
    global_variance: float
    global_covariance: float
    dense_invariance: float
    dense_variance: float
    dense_covariance: float
    rank: float
    learning_rate: float
    seconds: float

    def to_line(self) -> str:
        """Write it as a line of the log."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, value in values.items():
            if isinstance(value, float):
                values[name] = float(f"{value:.6g}")
        return json.dumps(values) + "\n"


class Learner(nn.Module):
    """An encoder and the expanders of its losses.

    Parameters
    ----------
    recipe : Recipe
    """

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.network = Network(recipe.encoder)
        self.whole = expander(pooled_width(recipe.encoder), recipe.wide)
        self.places = expander(CHANNELS, recipe.wide)


class Training:
    """A new or resumed run in a folder.

    Parameters
    ----------
    images : Tensor of uint8, (n, 3, pixels, pixels)
    digest : str
        Of the images.
    recipe : Recipe
    out : Path
        A folder, created if needed.
    device : torch.device

    Raises
    ------
    InputError
        If the folder holds a run of other images or another recipe.

    Attributes
    ----------
    step : int
        Steps done so far.
    learner : Learner
    """

    def __init__(
        self, images: Tensor, digest: str, recipe: Recipe, out: Path, device: torch.device
    ) -> None:
        self.recipe, self.out, self.device = recipe, out, device
        self.about: dict[str, object] = {"recipe": recipe.to_dict(), "images": digest}
        self.step, self.seconds = 0, 0.0
        with _seeded(recipe.seed):
            self.learner = Learner(recipe)
        self.optimiser = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": decay}
                for matrices, decay in zip(
                    _by_shape(self.learner), (recipe.weight_decay, 0.0), strict=True
                )
            ],
            lr=recipe.learning_rate,
            betas=(0.9, 0.95),
            fused=device.type in ("cpu", "cuda"),
        )
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--out {out} cannot be a folder: {error.strerror}") from error
        state: dict[str, Tensor] = {}
        if (out / _state.FILE).exists():
            state, about = _state.read_tensors(out / _state.FILE)
            self._take_up(about)
        with bounded("this training run", "use smaller batches (--stage) or another --device"):
            self.learner.to(device)
            self.images = images.to(device)
            if state:
                _state.unpack(state, self.step, self.learner, self.optimiser)
        self._trim_log()

    @property
    def done(self) -> bool:
        """Whether every step is done."""
        return self.step == self.recipe.steps

    def run(
        self,
        should_stop: Callable[[], bool] = lambda: False,
        on_step: Callable[[Progress], None] = lambda progress: None,
    ) -> bool:
        """Train to the end or until `should_stop`; returns whether the end was reached.

        What was learnt is kept either way, and every two minutes.

        Raises
        ------
        SamtlError
            If the loss is no longer finite.
        ResourceError
            If memory runs out or the disk fails.
        """
        saved, began = time.monotonic(), time.monotonic() - self.seconds
        self.learner.train()
        for step, (stage, seen) in enumerate(self.recipe.plan()):
            if step < self.step:
                continue
            if should_stop():
                break
            logged = (step + 1) % LOG_EVERY == 0 or step + 1 == self.recipe.steps
            with bounded(
                f"a step of {stage.batch_size} images, {stage.tokens} tokens a side,",
                "use smaller batches (--stage)",
            ):
                told = self._learn(step, stage, seen, logged)
            self.step, self.seconds = step + 1, time.monotonic() - began
            if logged:
                progress = Progress(
                    step=self.step,
                    images=seen + stage.batch_size,
                    **told,
                    learning_rate=self._rate(step),
                    seconds=self.seconds,
                )
                if not math.isfinite(progress.loss):
                    raise SamtlError(
                        f"the loss is {progress.loss} after {self.step} steps: what was kept before stays in "
                        f"{self.out}; begin anew with a smaller --learning-rate"
                    )
                self._log_line(progress.to_line())
                on_step(progress)
            if time.monotonic() - saved > SAVE_EVERY:
                self.save()
                saved = time.monotonic()
        self.save()
        return self.done

    def save(self) -> None:
        """Keep what was learnt."""
        about = {**self.about, "step": self.step, "seconds": self.seconds}
        tensors = _state.packed(self.learner, self.optimiser)
        if not all(bool(t.isfinite().all()) for t in tensors.values() if t.is_floating_point()):
            raise SamtlError(
                f"a weight is no number any more after {self.step} steps: what was kept before stays in {self.out}; "
                "begin anew with a smaller --learning-rate"
            )
        _state.write_tensors(self.out / _state.FILE, tensors, about)

    def _learn(self, step: int, stage: Stage, seen: int, logged: bool) -> dict[str, float]:
        """Take one step; returns the loss, its parts and the rank if they are to be logged."""
        recipe = self.recipe
        generator = _generator(recipe.seed, "step", step)
        rows = self._rows(seen, stage.batch_size).to(self.device)
        images = self.images[rows].float() / 255
        size, both = stage.tokens * PATCH, range(2)
        one, other = (
            draw_crops(len(images), stage.smallest, stage.largest, generator) for _ in both
        )
        places = shared_points(one, other, recipe.points, generator)
        seen_by_both, kept = [], []
        network = self.learner.network
        for crop, points in zip((one, other), places, strict=True):
            view = normalised(cut(recoloured(images, generator), crop, size))
            hidden = draw_hidden(
                len(images), stage.tokens, recipe.hidden_share, recipe.hidden_often, generator
            )
            free = network.side - stage.tokens + 1
            row, column = (int(torch.randint(free, (), generator=generator)) for _ in both)
            with self._mixed():
                dense, means = network(
                    view,
                    (row, column),
                    hidden.to(self.device),
                    stage.batch_size * stage.tokens**2 > MOST_KEPT,
                )
            kept.append(pooled(dense, means))
            seen_by_both.append(at_points(dense.float(), points.to(self.device)).flatten(0, 1))
        with self._mixed():
            of_wholes = [self.learner.whole(features) for features in kept]
            of_places = [self.learner.places(features) for features in seen_by_both]
        whole = vicreg(*(embedded.float() for embedded in of_wholes))
        parts = vicreg(*(embedded.float() for embedded in of_places))
        share = recipe.dense_share
        loss = (1 - share) * whole.total + share * parts.total
        for group in self.optimiser.param_groups:
            group["lr"] = self._rate(step)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.learner.parameters(), recipe.clip)
        self.optimiser.step()
        if not logged:  # a number would make the processor wait for the GPU
            return {}
        return {
            "loss": loss.item(),
            **_named("global", whole),
            **_named("dense", parts),
            "rank": effective_rank(kept[0].detach()[:_RANKED]),
        }

    def _mixed(self) -> torch.autocast:
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.recipe.dtype == "bfloat16"
        )

    def _rows(self, seen: int, count: int) -> Tensor:
        """Return the next images of an endless sequence of permutations."""
        n = len(self.images)
        rows: list[Tensor] = []
        while count:
            epoch, at = divmod(seen, n)
            order = torch.randperm(n, generator=_generator(self.recipe.seed, "epoch", epoch))
            rows.append(order[at : at + count])
            seen, count = seen + len(rows[-1]), count - len(rows[-1])
        return torch.cat(rows)

    def _rate(self, step: int) -> float:
        """Linear warm-up into a cosine."""
        recipe = self.recipe
        rising = max(1, round(recipe.warmup * recipe.steps))
        if step < rising:
            return recipe.learning_rate * (step + 1) / rising
        share = (step - rising) / max(1, recipe.steps - rising)
        return recipe.learning_rate * (1 + math.cos(math.pi * share)) / 2

    def _take_up(self, about: dict[str, object]) -> None:
        for what, name in (("recipe", "another recipe"), ("images", "other images")):
            if json.dumps(about.get(what)) != json.dumps(self.about[what]):
                raise InputError(
                    f"{self.out} holds a training run with {name}: give another --out, or what it was begun with; "
                    f"it has {_difference(about.get(what), self.about[what])}"
                )
        step, seconds = about.get("step"), about.get("seconds")
        if not isinstance(step, int) or not isinstance(seconds, float) or step < 0:
            raise InputError(f"{self.out / _state.FILE} is damaged: remove it to begin anew")
        self.step, self.seconds = min(step, self.recipe.steps), seconds
        _log.info("going on after step %d of %d", self.step, self.recipe.steps)

    def _trim_log(self) -> None:
        """Leave out of the log what was learnt and not kept."""
        path = self.out / LOG
        if not path.exists():
            return
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if _step_of(line) <= self.step]
        if len(kept) < len(lines):
            temporary = path.with_suffix(".new")
            temporary.write_text("".join(kept), encoding="utf-8")
            temporary.replace(path)

    def _log_line(self, line: str) -> None:
        try:
            with (self.out / LOG).open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            raise ResourceError(
                f"{self.out / LOG} could not be written: {error.strerror}"
            ) from error


def remaining(progress: Progress, recipe: Recipe, first: int, seconds: float) -> str:
    """Estimate the remaining time from the tokens of the steps since the first of this session."""
    costs = [stage.batch_size * stage.tokens**2 for stage, _ in recipe.plan()]
    done = sum(costs[first : progress.step])
    return duration(seconds * sum(costs[progress.step :]) / max(1, done))


def _named(of: str, terms: Terms) -> dict[str, float]:
    return {f"{of}_{field.name}": getattr(terms, field.name).item() for field in fields(terms)}


def _by_shape(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Matrices, and what has one axis."""
    every = list(model.parameters())
    return [p for p in every if p.ndim > 1], [p for p in every if p.ndim <= 1]


def _generator(seed: int, what: str, number: int) -> torch.Generator:
    """Return a CPU generator for one step or epoch, so that a resumed run equals an uninterrupted one."""
    digest = hashlib.sha256(f"samtl pretraining {seed} {what} {number}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Initial weights draw from torch's global generator alone; leave it as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return math.inf  # a line that was being written when the machine went down


def _difference(have: Any, wanted: Any) -> str:
    if isinstance(have, dict) and isinstance(wanted, dict):
        for key in wanted:
            if have.get(key) != wanted[key]:
                return f"{key} {have.get(key)} where {wanted[key]} was asked for"
    return f"{str(have)[:12]} where {str(wanted)[:12]} was asked for"
