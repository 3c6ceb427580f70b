"""How often 95 % intervals cover the truth: samples are drawn from populations whose scores are known."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.paired import Row
from samtl.errors import UnknownName
from samtl.metrics import classification, multilabel, regression, segmentation
from samtl.metrics.calibration import BINS, bin_of
from samtl.metrics.intervals import Score
from samtl.metrics.paired import ImageScores, Predictions, paired_differences

POPULATION = 40_000  # samples
SCENE = 20  # samples
PIXELS = 10_000  # of an image
RESAMPLES, SLOW_RESAMPLES = 200, 50  # of the plain bootstrap
SAMPLES = (10, 30, 120, 1000, 5000)  # that are held out
IMAGES = (2, 4, 6, 10, 20, 60, 1000)  # with masks
#: Populations that few samples cannot tell from better ones; drawn from only if they are named.
EXTREME = ("masks-a-fifth-floods",)

Random = np.random.Generator
Rows = NDArray[np.int64]
Scores = Mapping[str, Score]
Figures = dict[str, NDArray[np.float64]]


@dataclass(frozen=True, eq=False)
class Labels:
    """What a classifier says of a population; `scenes` are runs of `SCENE` samples, or there are none."""

    truth: Rows  #: (N,)
    chances: NDArray[np.float64]  #: (N, K)
    scenes: bool = False

    @property
    def rows(self) -> int:
        """How many samples there are."""
        return len(self.truth)

    def truths(self) -> Figures:
        """Return the scores of the population."""
        return self.plain(np.arange(self.rows)[None])

    def plain(self, draws: Rows) -> Figures:
        """Return plain scores of samples, (B, n) rows to (B,) each; the calibration error is not corrected."""
        k, n = self.chances.shape[1], draws.shape[1]
        nth = np.arange(len(draws))[:, None]
        guess, top = self.chances.argmax(1), self.chances.max(1)
        cells = nth * k * k + (self.truth * k + guess)[draws]
        matrices = np.bincount(cells.ravel(), minlength=len(draws) * k * k).reshape(-1, k, k)
        bins = (nth * BINS + bin_of(top)[draws]).ravel()
        gaps = np.bincount(bins, (top - (guess == self.truth))[draws].ravel(), len(draws) * BINS)
        chosen = self.chances[np.arange(self.rows), self.truth]
        return {
            **{name: score(matrices) for name, score in classification.OF_MATRIX.items()},
            "ece": abs(gaps).reshape(-1, BINS).sum(1) / n,
            "log_loss": -np.log(np.maximum(chosen, 2.2e-16))[draws].mean(1),
        }

    def scored(self, rows: Rows) -> Scores:
        """Score some of the samples."""
        return classification.score(
            self.truth[rows], self.chances[rows], _scenes(rows, self.scenes)
        )


@dataclass(frozen=True, eq=False)
class Images:
    """The confusion of a population of images; `scenes` are runs of `SCENE` images, or there are none."""

    matrices: NDArray[np.int64]  #: (N, 2, 2)
    scenes: bool = False

    @property
    def rows(self) -> int:
        """How many images there are."""
        return len(self.matrices)

    @functools.cached_property
    def single(self) -> dict[str, NDArray[np.float64]]:
        """The scores of each image."""
        return segmentation.scores(self.matrices)

    def truths(self) -> Figures:
        """Return the scores of the population."""
        return self.plain(np.arange(self.rows)[None])

    def plain(self, draws: Rows) -> Figures:
        """Return plain scores of images, (B, n) rows to (B,) each."""
        pooled = segmentation.scores(self.matrices[draws].sum(1))
        means = {name: values[draws].mean(1) for name, values in self.single.items()}
        return means | {f"pooled_{name}": values for name, values in pooled.items()}

    def scored(self, rows: Rows) -> Scores:
        """Score some of the images."""
        return segmentation.score(self.matrices[rows], _scenes(rows, self.scenes))


@dataclass(frozen=True, eq=False)
class Rest:
    """Answers of a population that one function scores: of several labels, or numbers."""

    module: Any  #: `samtl.metrics.multilabel` or `regression`
    truth: NDArray[Any]
    said: NDArray[np.float64]
    scenes = False

    @property
    def rows(self) -> int:
        """How many samples there are."""
        return len(self.truth)

    def truths(self) -> Figures:
        """Return the scores of the population."""
        found = self.module.figures(self.truth, self.said)
        return {name: np.array([value]) for name, (value, _) in found.items()}

    def plain(self, draws: Rows) -> Figures:
        """Return plain scores of samples, (B, n) rows to (B,) each."""
        each = [self.module.figures(self.truth[rows], self.said[rows]) for rows in draws]
        return {name: np.array([one[name][0] for one in each]) for name in each[0]}

    def scored(self, rows: Rows) -> Scores:
        """Score some of the samples."""
        found: Scores = self.module.score(self.truth[rows], self.said[rows])
        return found


@dataclass(frozen=True, eq=False)
class Pair:
    """Two models on one population."""

    models: tuple[Labels | Images, Labels | Images]
    metrics: tuple[str, ...]

    @property
    def rows(self) -> int:
        """How many samples there are."""
        return self.models[0].rows

    @property
    def scenes(self) -> bool:
        """Whether samples come in scenes."""
        return self.models[0].scenes

    def truths(self) -> Figures:
        """Return the differences of the population's scores."""
        return self.plain(np.arange(self.rows)[None])

    def plain(self, draws: Rows) -> Figures:
        """Return differences of plain scores of samples, (B, n) rows to (B,) each."""
        one, other = (model.plain(draws) for model in self.models)
        return {f"difference/{name}": one[name] - other[name] for name in self.metrics}

    def scored(self, rows: Rows) -> Scores:
        """Compare both models on some of the samples."""
        outcomes = {f"model {i}": [_outcome(model, rows)] for i, model in enumerate(self.models)}
        found = {}
        for name in self.metrics:
            (gap,) = paired_differences(outcomes, name).values()
            found[f"difference/{name}"] = Score(gap.value, gap.low, gap.high)
        return found


Population = Labels | Images | Rest | Pair


def bench_coverage(
    cases: Sequence[str] = (),
    repeats: int = 300,
    seed: int = 0,
    on_row: Callable[[Row], None] | None = None,
) -> list[Row]:
    """Draw samples from populations, and count the intervals that hold the population's score.

    Parameters
    ----------
    cases : sequence of str
        Populations: 98%, rare-classes, scenes, masks-good, pair-98% and so on; by default all but those that few
        samples cannot tell from better ones.
    repeats : int
        Draws from each population.
    seed : int
        Seed of the populations and the draws.
    on_row : callable, optional
        Called with each figure.

    Returns
    -------
    list of Row
        `METRIC/N`: the share of intervals that cover for N held-out samples or images, of the worst population, from
        the worst to the best; and the same with `/bootstrap` for percentile intervals of a plain bootstrap. Scenes are
        held out as a whole, at least two.
    """
    known = dict(populations())
    for name in cases:
        if name not in known:
            raise UnknownName("population", name, known)
    found: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for name, make in known.items():
        if name not in cases if cases else name in EXTREME:
            continue
        population = make(np.random.default_rng([seed, *name.encode()]))
        for n in IMAGES if "masks" in name else SAMPLES:
            for metric, shares in covered(population, n, repeats, seed).items():
                found.setdefault((metric, n), []).append(shares)
    rows = []
    for (metric, n), both in found.items():
        for kind, shares in zip(("", "/bootstrap"), zip(*both, strict=True), strict=True):
            least, most = min(shares), max(shares)
            rows.append(Row(f"{metric}/{n}{kind}", least, "share", spread=(least, most)))
            if on_row is not None:
                on_row(rows[-1])
    return rows


def covered(
    population: Population, n: int, repeats: int, seed: int
) -> dict[str, tuple[float, float]]:
    """Return the shares of intervals of n samples that cover, of ours and of the plain bootstrap, by metric."""
    random, truth = np.random.default_rng([seed, n]), population.truths()
    resamples = RESAMPLES if not isinstance(population, Rest) else SLOW_RESAMPLES
    hits = {metric: np.zeros(2) for metric in truth}
    for _ in range(repeats):
        rows = _drawn(random, population, n)
        draws = rows[random.integers(0, len(rows), (resamples, len(rows)))]
        resampled = population.plain(draws)
        for metric, score in population.scored(rows).items():
            low, high = np.quantile(resampled[metric], [0.025, 0.975])
            value = float(np.squeeze(truth[metric]))
            hits[metric] += _holds(score.low, value, score.high), _holds(low, value, high)
    return {metric: tuple((count / repeats).tolist()) for metric, count in hits.items()}


def _holds(low: float, value: float, high: float) -> bool:
    return bool(low - 1e-9 <= value <= high + 1e-9)


def _drawn(random: Random, population: Population, n: int) -> Rows:
    """Draw n samples; of scenes, as many whole ones, at least two."""
    if not population.scenes:
        return random.integers(0, population.rows, n)
    scenes = random.integers(0, population.rows // SCENE, max(2, n // SCENE))
    scenes = np.unique(scenes)
    return (scenes[:, None] * SCENE + np.arange(SCENE)).ravel()


def _scenes(rows: Rows, scenes: bool) -> list[str]:
    return [str(row // SCENE) for row in rows] if scenes else []


def _outcome(model: Labels | Images, rows: Rows) -> Predictions | ImageScores:
    ids = tuple(map(str, range(len(rows))))
    groups = tuple(_scenes(rows, model.scenes))
    if isinstance(model, Labels):
        return Predictions(ids, model.truth[rows], model.chances[rows].argmax(1), None, groups)
    matrices = model.matrices[rows]
    counts = segmentation.class_counts(matrices)
    return ImageScores(ids, segmentation.scores(matrices), (), counts, groups)


def populations() -> Iterator[tuple[str, Callable[[Random], Population]]]:
    """Yield the name and the maker of each population."""
    for percent in (60.0, 90.0, 98.0, 99.9, 100.0):
        yield f"{percent:g}%", lambda random, p=percent: _labels(random, p / 100)  # type: ignore[misc]
    yield "two-classes", lambda random: _labels(random, 0.95, classes=2)
    yield "rare-classes", lambda random: _labels(random, 0.9, ratio=200)
    yield "overconfident", lambda random: _labels(random, 0.8, sharpness=3)
    yield "underconfident", lambda random: _labels(random, 0.9, sharpness=0.4)
    yield "scenes", lambda random: _labels(random, 0.9, scenes=True)
    for kind in (
        "good",
        "middling",
        "poor",
        "a-fifth-fails",
        "a-fifth-floods",
        "mostly-perfect",
        "some-empty",
    ):
        yield f"masks-{kind}", lambda random, k=kind: Images(_matrices(random, k, POPULATION))  # type: ignore[misc]
    yield "masks-scenes", lambda random: Images(_matrices(random, "scenes", POPULATION), True)
    for shift in (1.0, 3.0):
        yield f"tags-{shift:g}", lambda random, s=shift: _tags(random, s)  # type: ignore[misc]
    for noise in (0.1, 1.0):
        yield f"numbers-{noise:g}", lambda random, z=noise: _numbers(random, z)  # type: ignore[misc]
    for percent in (70.0, 98.0, 99.9):
        yield (
            f"pair-{percent:g}%",
            lambda random, p=percent: _pair(random, p / 100),  # type: ignore[misc]
        )
    yield "pair-rare-classes", lambda random: _pair(random, 0.9, ratio=200)
    yield "pair-scenes", lambda random: _pair(random, 0.85, scenes=True)
    yield "pair-masks", _pair_of_masks


def _tags(random: Random, shift: float) -> Rest:
    """Make several labels of a sample, from frequent to rare, that a model finds better with a larger shift."""
    truth = random.random((POPULATION, 6)) < np.geomspace(0.5, 0.02, 6)
    evidence = random.normal(size=truth.shape) + shift * truth - shift / 2
    return Rest(multilabel, truth.astype(np.int64), 1 / (1 + np.exp(-shift * evidence)))


def _numbers(random: Random, noise: float) -> Rest:
    truth = random.normal(size=POPULATION)
    return Rest(regression, truth, truth + noise * random.standard_t(5, POPULATION))


def _pair(random: Random, accuracy: float, **options: float) -> Pair:
    one = _labels(random, accuracy, **options)  # type: ignore[arg-type]
    chances = one.chances.copy()
    some = random.random(one.rows) < 0.05  # where the other one errs
    chances[some] = np.roll(chances[some], 1, axis=1)
    better = random.random(one.rows) < 0.05
    chances[better] = 0.01
    chances[better, one.truth[better]] = 1
    chances /= chances.sum(1, keepdims=True)
    models = (one, Labels(one.truth, chances, one.scenes))
    return Pair(models, ("accuracy", "balanced_accuracy", "macro_f1"))


def _pair_of_masks(random: Random) -> Pair:
    matrices = _matrices(random, "middling", POPULATION)
    worse = matrices.copy()
    lost = (worse[:, 1, 1] * random.beta(1, 4, len(worse))).astype(np.int64)
    worse[:, 1, 1] -= lost
    worse[:, 1, 0] += lost
    return Pair((Images(matrices), Images(worse)), ("iou", "pooled_iou"))


def _labels(
    random: Random,
    accuracy: float,
    classes: int = 10,
    ratio: float = 1,
    sharpness: float = 1,
    scenes: bool = False,
) -> Labels:
    """Make labels and probabilities; the most frequent class has `ratio` times the samples of the rarest.

    Probabilities are right with a sharpness of 1, too bold above it and too timid below.
    """
    shares = np.geomspace(1, ratio, classes)
    truth = random.choice(classes, POPULATION, p=shares / shares.sum())
    noise = random.normal(size=(POPULATION, classes))
    easier = np.repeat(random.normal(0, 0.8, POPULATION // SCENE), SCENE) if scenes else 0.0
    nth = np.arange(POPULATION)
    low, high = 0.0, 20.0
    for _ in range(30):  # the skill that has the accuracy
        skill = (low + high) / 2
        evidence = noise.copy()
        evidence[nth, truth] += skill + easier
        right = (evidence.argmax(1) == truth).mean()
        low, high = (skill, high) if right < accuracy else (low, skill)
    logits = evidence * min(skill, 5) * sharpness
    chances = np.exp(logits - logits.max(1, keepdims=True))
    return Labels(truth, chances / chances.sum(1, keepdims=True), scenes)


def _matrices(random: Random, kind: str, n: int) -> NDArray[np.int64]:
    """Make the confusion of images of background and one class by the area of the class and its IoU."""
    area = PIXELS * np.clip(np.exp(random.normal(-2.3, 0.8, n)), 0.001, 0.7)
    fails = random.random(n)
    if kind == "good":
        iou = random.beta(30, 2, n)
    elif kind == "poor":
        iou = random.beta(1, 5, n)
    elif kind in ("a-fifth-fails", "a-fifth-floods"):
        iou = np.where(fails < 0.2, random.beta(1, 9, n), random.beta(18, 2, n))
    elif kind == "mostly-perfect":
        iou = np.where(fails < 0.1, random.beta(1, 9, n), 1.0)
    elif kind == "scenes":
        centre = np.repeat(random.beta(3, 3, n // SCENE), SCENE)
        iou = random.beta(8 * centre + 0.1, 8 * (1 - centre) + 0.1)
    else:
        iou = random.beta(3, 3, n)
    more = random.random(n) * (1 - iou)
    if kind == "a-fifth-floods":
        more = np.where(fails < 0.2, np.minimum(1 / np.maximum(iou, 0.05), PIXELS / area) - 1, more)
    hit = np.minimum(iou * (1 + more), 1) * area
    missed, wrong = area - hit, more * area
    if kind == "some-empty":
        empty = fails < 0.3
        hit, missed = np.where(empty, 0, hit), np.where(empty, 0, missed)
        wrong = np.where(empty, np.where(fails < 0.15, 0, 30), wrong)
    rest = PIXELS - hit - missed - wrong
    cells = np.stack([rest, wrong, missed, hit], axis=1).round().astype(np.int64)
    return np.maximum(cells, 0).reshape(n, 2, 2)
