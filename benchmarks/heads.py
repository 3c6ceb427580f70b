"""Training speed of heads and networks: against plain ones, in each dtype, and how long they wait for the store.

Training consists of forward pass, backward pass and optimiser step, on random numbers in memory. The plain versions
compute in float32 in torch's default memory format, standardise in a separate layer, and use torch's
`TransformerEncoderLayer` over all 256 cells of the grid and a class token, with its dropout of 0.1.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.made_store import Make, write_store
from benchmarks.paired import TIER_IN_ROWS, Row, against, alternating
from samtl import registry
from samtl.experiment.features import Feed, Targets
from samtl.heads.grid import UPSAMPLING
from samtl.heads.training.layers import LOSSES
from samtl.heads.training.trainer import InMemory, Recipe, Source, Trainer
from samtl.images.transforms import PATCH
from samtl.store.format import BLOCK_ROWS
from samtl.store.reader import open_store

CHANNELS = 256
ROUNDS = 5


@dataclass(frozen=True)
class Case:
    """One head on one array.

    Attributes
    ----------
    head, task, array : str
    side : int
        Cells along a side of the grid.
    classes, batch : int
    steps, plain_steps : int
        Timed steps of the head and of the plain version.
    blocks : int
        Blocks of 16 rows in the store that the head is trained from.
    kind : {"heads", "baselines"}
        Baselines learn from the `side` x `side` pixels of images; there is no plain version and no store.
    """

    head: str
    task: str
    array: str
    side: int
    classes: int
    batch: int
    steps: int
    plain_steps: int
    blocks: int
    kind: str = "heads"

    @property
    def name(self) -> str:
        """What the names of its rows begin with."""
        return f"{self.head}/{TIER_IN_ROWS.get(self.array, self.array)}"


CASES = (
    Case("conv", "classification", "grid", 16, 10, 128, 12, 3, 256),
    Case("vit", "classification", "grid", 16, 10, 128, 8, 1, 256),
    Case("conv", "segmentation", "dense", 64, 2, 4, 4, 1, 8),
    Case("vit", "segmentation", "dense", 64, 2, 4, 3, 1, 8),
    Case("cnn", "classification", "64", 64, 10, 128, 8, 0, 0, "baselines"),
    Case("unet", "segmentation", "256", 256, 2, 4, 6, 0, 0, "baselines"),
)
DTYPES = ("float32", "bfloat16")


def bench_heads(
    rounds: int = ROUNDS, cases: Sequence[Case] = CASES, on_row: Callable[[Row], None] | None = None
) -> list[Row]:
    """Measure every case.

    Parameters
    ----------
    rounds : int
        Rounds of each pair; figures are medians.
    cases : sequence of Case
    on_row : callable, optional
        Called with each figure.

    Returns
    -------
    list of Row
        `HEAD/TIER/train` in samples per second against `plain`, and against the fastest of the dtypes, which it is
        trained in as well; `HEAD/TIER/waiting`, the share of time that training from a store spends waiting for data.
        Of baselines on pixels `NAME/SIZE/train`, without `plain` and `waiting`.
    """
    rows = []
    for row in _rows(cases, rounds):
        rows.append(row)
        if on_row is not None:
            on_row(row)
    return rows


def _rows(cases: Sequence[Case], rounds: int) -> Iterator[Row]:
    for case in cases:
        yield from _speed(case, rounds)
        if case.kind == "heads":
            yield _waiting(case)


def _speed(case: Case, rounds: int) -> list[Row]:
    inputs, targets = _random(case)
    source = InMemory(_repeat(inputs, case.steps), _repeat(targets, case.steps))
    few = InMemory(inputs[:2], targets[:2])

    def ours(precision: str) -> float:
        recipe = Recipe(1, case.batch, 1e-3, 0.05, 1, precision=precision)
        trained = _train(case, source, few, recipe)
        return trained.samples / trained.seconds

    def plain() -> float:
        some = min(case.batch, 32)  # larger batches are not faster
        return _plain_rate(case, inputs[:some].float(), targets[:some])

    sides = {name: partial(ours, name) for name in ("auto", *DTYPES)}
    if case.kind == "heads":
        sides["plain"] = partial(plain)
    values = alternating(sides, rounds)
    name, auto = f"{case.name}/train", values["auto"]
    rows = [against(name, "samples/s", auto, vs, values[vs]) for vs in sides if vs != "auto"]
    best = max(DTYPES, key=lambda dtype: statistics.median(values[dtype]))
    return [*rows, against(name, "samples/s", auto, f"best: {best}", values[best])]


def _plain_rate(case: Case, inputs: Tensor, targets: Tensor) -> float:
    torch.manual_seed(0)
    model = _plain(case)
    loss = LOSSES[case.task]
    optimiser = torch.optim.AdamW(model.parameters())
    began = 0.0
    for step in range(case.plain_steps + 1):
        if step == 1:  # the first creates the optimiser's state, and is not timed
            began = time.perf_counter()
        optimiser.zero_grad()
        loss(model(inputs), targets).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return case.plain_steps * len(inputs) / (time.perf_counter() - began)


def _waiting(case: Case) -> Row:
    """Measure the share of time that training from a streamed store spends waiting."""
    with tempfile.TemporaryDirectory(prefix="samtl-bench-") as folder:
        store = open_store(_write_store(case, Path(folder) / "bench.zarr"))
        rows = np.arange(len(store))
        labels = None if case.task == "segmentation" else store.labels.astype(np.int64)
        targets = Targets(store, case.array, labels)
        source, few = (Feed(store, case.array, part, targets) for part in (rows, rows[:1]))
        recipe = Recipe(2, case.batch, 1e-3, 0.05, 2)
        done = _train(case, source, few, recipe)
    share = done.waited / (done.seconds + done.waited)
    return Row(f"{case.name}/waiting", share, "share")


def _write_store(case: Case, path: Path) -> Path:
    """Write a store that repeats one block of random numbers."""
    random = np.random.default_rng(0)
    n, size = case.blocks * BLOCK_ROWS, 64 * PATCH
    shape = (BLOCK_ROWS, CHANNELS, case.side, case.side)
    grids = random.standard_normal(shape, np.float32).astype(np.float16)
    masks = random.integers(0, case.classes, (BLOCK_ROWS, size, size), np.uint8)
    arrays: dict[str, Make] = {case.array: lambda rows: grids}
    if case.task == "segmentation":
        arrays["mask"] = lambda rows: masks
    labels = [i % case.classes if case.task == "classification" else -1 for i in range(n)]
    return write_store(path, labels, case.classes, case.task, arrays)


def _random(case: Case) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    inputs = torch.randn(case.batch, CHANNELS, case.side, case.side, generator=random).half()
    up = case.side * UPSAMPLING
    if case.kind == "baselines":
        up = case.side
        inputs = torch.randint(0, 256, (case.batch, 3, up, up), generator=random).byte()
    shape = (case.batch,) if case.task == "classification" else (case.batch, up, up)
    return inputs, torch.randint(0, case.classes, shape, generator=random)


def _repeat(tensor: Tensor, times: int) -> Tensor:
    return tensor.repeat(times, *[1] * (tensor.ndim - 1))


def _train(case: Case, source: Source, few: Source, recipe: Recipe) -> Trainer:
    """Train the network of a head."""
    module = registry.load(case.kind, case.head)
    head = module.Head() if case.kind == "heads" else module.Baseline()
    head.adopt(case.task, list(range(case.classes)), (CHANNELS, case.side, case.side))
    trainer = Trainer(
        head.network(),
        LOSSES[case.task],
        len(source),
        recipe,
        0,
        lambda epoch: None,
        f"{case.head} {case.task}",
    )
    return trainer.run(source, few)


def _plain(case: Case) -> nn.Module:
    scaled = _Standardised()
    if case.head == "conv" and case.task == "classification":
        return nn.Sequential(
            scaled,
            *_plain_layers(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(128, case.classes),
        )
    if case.head == "conv":
        return nn.Sequential(
            scaled, nn.Conv2d(CHANNELS, 96, 1), nn.BatchNorm2d(96), nn.ReLU(), nn.Conv2d(96, 96, 3, padding=1),
            nn.BatchNorm2d(96), nn.ReLU(), *_plain_upsampling(96, case.classes),
        )  # fmt: skip
    patch = 1 if case.task == "classification" else 2
    return nn.Sequential(scaled, _PlainTransformer(case, patch))


def _plain_layers() -> Iterator[nn.Module]:
    for wide, narrow, kernel, stride in ((CHANNELS, 96, 1, 1), (96, 128, 3, 2), (128, 128, 3, 1)):
        yield nn.Conv2d(wide, narrow, kernel, stride, padding=kernel // 2)
        yield nn.BatchNorm2d(narrow)
        yield nn.ReLU()


def _plain_upsampling(width: int, classes: int) -> Iterator[nn.Module]:
    for _ in range(2):
        yield nn.ConvTranspose2d(width, width // 2, 2, stride=2)
        yield nn.BatchNorm2d(width // 2)
        yield nn.ReLU()
        width //= 2
    yield nn.Conv2d(width, classes, 1)


class _Standardised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(CHANNELS, 1, 1), requires_grad=False)
        self.deviation = nn.Parameter(torch.ones(CHANNELS, 1, 1), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.deviation


class _PlainTransformer(nn.Module):
    """A transformer layer on a class token and every cell (or patch), with the embedding's channels as its width."""

    def __init__(self, case: Case, patch: int) -> None:
        super().__init__()
        self.task, self.side = case.task, case.side // patch
        self.patches = (
            nn.Conv2d(CHANNELS, CHANNELS, patch, stride=patch) if patch > 1 else nn.Identity()
        )
        self.token = nn.Parameter(torch.zeros(1, 1, CHANNELS))
        self.positions = nn.Parameter(torch.zeros(1, self.side**2 + 1, CHANNELS))
        self.layer = nn.TransformerEncoderLayer(CHANNELS, 8, batch_first=True)
        self.scores = nn.Linear(CHANNELS, case.classes)
        if case.task == "segmentation":
            self.up = nn.Sequential(
                nn.ConvTranspose2d(CHANNELS, CHANNELS // 2, patch, stride=patch),
                *_plain_upsampling(CHANNELS // 2, case.classes),
            )

    def forward(self, x: Tensor) -> Tensor:
        cells = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), cells], dim=1) + self.positions
        seen = self.layer(tokens)
        if self.task == "classification":
            return self.scores(seen[:, 0])  # type: ignore[no-any-return]
        grid = seen[:, 1:].transpose(1, 2).unflatten(2, (self.side, self.side))
        return self.up(grid)  # type: ignore[no-any-return]
