"""Multinomial logistic regression with scaling and strength of the penalty chosen on validation samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax
from threadpoolctl import threadpool_limits

from samtl.heads.base import (
    Candidate,
    Features,
    Floats,
    OnEvent,
    PooledHead,
    Rows,
    moments,
    reciprocal,
    scaled,
)
from samtl.heads.logistic import Problem

GRID = tuple(10.0 ** (step / 2) for step in range(-8, 7))  # C from 1e-4 to 1e3 in half decades
# The search stops each fit early: the ranking of penalties shows long before the last digit does.
SEARCH_TOL, SEARCH_ITER = 1e-5, 200
RISES = 2  # candidates in a row with a worse loss, after which weaker penalties are not tried


class Head(PooledHead):
    """Logistic regression with an L2 penalty on scaled features: the optimum is that of scikit-learn's.

    The pair (scaling, C) with the least log-loss on the validation part wins; log-loss rather than accuracy because it
    is smooth in C where accuracy is a staircase with ties, and because it keeps the probabilities honest. The winner is
    then fitted to training and validation part together.

    Parameters
    ----------
    scaling : {"auto", "standard", "none"}
        `standard` divides each column by its standard deviation; `none` divides all columns by one common number, which
        leaves their proportions alone; `auto` tries both. Constant columns are ignored.
    C : float, optional
        Inverse strength of the penalty, above 0; chosen from 1e-4 to 1e3 where it is None.
    max_iter : int
        Most iterations of the final fit.
    tol : float
        Decrease of the mean loss in one iteration, relative to it where it is above 1, at which the final fit ends.
    random_state : int
        For the validation part that is drawn where none is given.

    Attributes
    ----------
    coef_ : (K, F) float64
        Weights of the scaled features, one row for each class also where there are two classes.
    intercept_ : (K,) float64
    mean_, factor_ : (F,) float64
        Features are scaled as (X - mean_) * factor_.
    C_, scaling_ : float, str
        The chosen pair.
    n_iter_ : int
        Iterations of the final fit.
    converged_ : bool
        Whether it ended by itself before `max_iter`.
    """

    facts = ("C_", "scaling_", "n_iter_", "converged_")

    #: There is one best head, wherever the search for it starts.
    convex = True
    C_: float
    scaling_: str

    def __init__(
        self,
        scaling: str = "auto",
        C: float | None = None,
        max_iter: int = 1000,
        tol: float = 1e-6,
        random_state: Any = 0,
    ) -> None:
        self.scaling = scaling
        self.C = C
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state

    def gains(self, n: int, task: str) -> bool:
        """Tell whether fitting n samples is shorter from another head: it is, and comes to the same."""
        return True

    def start_from(self, other: Self) -> None:
        """Let the next fit begin with the settings and weights of a fitted head, such as one of fewer samples.

        The scaling is then the other's, and the search leaves its penalty only for better ones beside it.
        """
        self._start = other

    def _check(self) -> None:
        if self.scaling not in ("auto", "standard", "none"):
            raise ValueError(f"scaling must be auto, standard or none, got {self.scaling!r}")
        if self.C is not None and not self.C > 0:
            raise ValueError(f"C must be above 0, got {self.C!r}")

    def _fit(
        self, X: Features, codes: Rows, train: Rows, held: Rows, seed: int, on_event: OnEvent
    ) -> None:
        self._check()
        scalings = ("standard", "none") if self.scaling == "auto" else (self.scaling,)
        grid = GRID if self.C is None else (self.C,)
        tried: list[Candidate] = []
        start: Head | None = self.__dict__.pop("_start", None)
        point = None if start is None else start._point()
        k = len(self.classes_)
        with threadpool_limits(1, "blas"):
            # One thread: products with so few columns (one for each class) spend their time at barriers otherwise.
            if len(held) and len(scalings) * len(grid) > 1:
                for scaling in scalings if start is None else (start.scaling_,):
                    search = _Search(scaling, grid, X, codes, train, held, k, point, on_event)
                    found = search.all() if start is None else search.nearby(start.C_)
                    least = min(tried + found, key=lambda candidate: candidate.validation_loss)
                    tried += found
                    if least in found:
                        self.scaling_, self.C_, point = scaling, least.C, search.points[least.C]
            else:  # nothing to choose, or (one sample of each class) nothing to choose on
                self.scaling_, self.C_ = scalings[0], 1.0 if self.C is None else self.C
            self.mean_, self.factor_ = _scale(X, self.scaling_)
            begin = _moved(point, self.mean_, self.factor_, k)
            problem = Problem(scaled(X, self.mean_, self.factor_), codes, k)
            self.coef_, self.intercept_, self.n_iter_, self.converged_ = problem.solve(
                self.C_, *begin, self.tol, self.max_iter
            )
            # As they are when they come from a file: sums of other layouts differ in the last digit.
            self.coef_ = np.ascontiguousarray(self.coef_)
        self.curves_ = {
            name: [getattr(candidate, name) for candidate in tried]
            for name in Candidate.__dataclass_fields__
        }

    def _point(self) -> _Point:
        return _Point(self.coef_, self.intercept_, self.mean_, self.factor_)

    def _logits(self, X: Features) -> Floats:
        return np.asarray(((X - self.mean_) * self.factor_) @ self.coef_.T + self.intercept_)

    def tensors(self) -> dict[str, NDArray[Any]]:
        """Give `mean`, `factor`, `coef` and `intercept`."""
        return {
            "mean": self.mean_,
            "factor": self.factor_,
            "coef": self.coef_,
            "intercept": self.intercept_,
        }

    def layout(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Give dtype and shape of each of `tensors()`."""
        k, f = len(self.classes_), self.n_features_in_
        return {
            "mean": ("float64", (f,)),
            "factor": ("float64", (f,)),
            "coef": ("float64", (k, f)),
            "intercept": ("float64", (k,)),
        }

    def restore(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        """Take arrays that match `layout()`."""
        self.mean_, self.factor_ = tensors["mean"], tensors["factor"]
        self.coef_, self.intercept_ = tensors["coef"], tensors["intercept"]


def _scale(X: Features, scaling: str) -> tuple[Floats, Floats]:
    """Mean and factor of each column."""
    mean, deviation = moments(X)
    if scaling == "none":
        common = np.sqrt((deviation**2).mean())
        deviation = np.where(deviation > 0, common, 0.0)
    return mean, reciprocal(deviation)


class _Point(NamedTuple):
    """Weights, and how the features that they are for are scaled."""

    coef: Floats
    intercept: Floats
    mean: Floats
    factor: Floats


def _moved(start: _Point | None, mean: Floats, factor: Floats, k: int) -> tuple[Floats, Floats]:
    """Give weights for features that are scaled so, which predict as those at a point; or zeros."""
    if start is None:
        return np.zeros((k, len(mean))), np.zeros(k)
    raw = start.coef * start.factor
    intercept = start.intercept + raw @ (mean - start.mean)
    return raw * np.divide(1.0, factor, out=np.zeros_like(factor), where=factor > 0), intercept


class _Search:
    """Tries penalties for one scaling; each fit starts from the last."""

    def __init__(
        self,
        scaling: str,
        grid: tuple[float, ...],
        X: Features,
        codes: Rows,
        train: Rows,
        held: Rows,
        k: int,
        start: _Point | None,
        on_event: OnEvent,
    ) -> None:
        self.scaling, self.grid, self.on_event = scaling, grid, on_event
        mean, factor = self.scale = _scale(X[train], scaling)
        self.problem = Problem(scaled(X[train], mean, factor), codes[train], k)
        self.judged, self.truth = scaled(X[held], mean, factor), codes[held]
        if not np.isfinite(self.judged).all():
            raise ValueError(
                "the validation part holds infinity once it is scaled as the training part asks for"
            )
        self.weights = _moved(start, mean, factor, k)
        self.tried: dict[int, Candidate] = {}
        self.points: dict[float, _Point] = {}

    def all(self) -> list[Candidate]:
        """Walk from strong to weak penalties while the loss improves."""
        rises = 0
        for i in range(len(self.grid)):
            loss = self._loss(i)
            least = min(candidate.validation_loss for candidate in self.tried.values())
            rises = 0 if loss <= least else rises + 1
            if rises == RISES:
                break
        return list(self.tried.values())

    def nearby(self, C: float) -> list[Candidate]:
        """Go from the penalty that was best before to whichever neighbour is better."""
        first = at = min(range(len(self.grid)), key=lambda i: abs(np.log(self.grid[i] / C)))
        self._loss(at)
        for step in (1, -1):
            while 0 <= at + step < len(self.grid) and self._loss(at + step) < self._loss(at):
                at += step
            if at != first:  # what lies the other way was better nowhere
                break
        return list(self.tried.values())

    def _loss(self, i: int) -> float:
        if i not in self.tried:
            coef, intercept, iterations, _ = self.problem.solve(
                self.grid[i], *self.weights, SEARCH_TOL, SEARCH_ITER
            )
            self.weights = coef, intercept
            self.points[self.grid[i]] = _Point(coef, intercept, *self.scale)
            chances = softmax(self.judged @ coef.T + intercept, axis=1)
            right = chances[np.arange(len(self.truth)), self.truth]
            loss = -np.log(np.maximum(right, np.finfo(np.float64).tiny)).mean()
            hits = (chances.argmax(axis=1) == self.truth).mean()
            self.tried[i] = Candidate(
                self.scaling, self.grid[i], float(loss), float(hits), iterations
            )
            self.on_event(self.tried[i])
        return self.tried[i].validation_loss
