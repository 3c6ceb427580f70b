"""Multinomial logistic regression with scaling and strength of the penalty chosen on validation samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax
from threadpoolctl import threadpool_limits

from samtl.heads.base import (
    Candidate,
    Features,
    Floats,
    Layout,
    OnEvent,
    PooledHead,
    Rows,
    moments,
    reciprocal,
    scaled,
)
from samtl.heads.logistic import Problem

GRID = tuple(10.0 ** (step / 2) for step in range(-8, 7))  # C from 1e-4 to 1e3 in half decades
# The search stops each fit early: the ranking of penalties is known long before the last digit.
SEARCH_TOL, SEARCH_ITER = 1e-5, 200
_ROLES = ("mean", "factor", "coef", "intercept")
RISES = 2  # worse candidates in a row after which weaker penalties are not tried


@dataclass(eq=False, repr=False)
class Head(PooledHead):
    """Logistic regression with an L2 penalty on scaled features; the optimum is that of scikit-learn's.

    The pair (scaling, C) with the least validation loss wins. The loss is smooth in C, unlike accuracy, and rewards
    honest probabilities. The winner is then fitted to training and validation part together.

    Parameters
    ----------
    scaling : {"auto", "standard", "none"}
        `standard` divides each column by its standard deviation; `none` divides all columns by one number, which
        keeps their proportions; `auto` tries both. Constant columns are ignored.
    C : float, optional
        Inverse strength of the penalty, above 0; by default chosen from 1e-4 to 1e3.
    max_iter : int
        Most iterations of the final fit.
    tol : float
        The final fit ends at an iteration that decreases the mean loss by less, relative to a loss above 1.
    random_state : int
        For the validation part that is drawn if none is passed.

    Attributes
    ----------
    coef_ : (K, F) float64
        Weights of the scaled features, one row for each class, also of two classes.
    intercept_ : (K,) float64
    mean_, factor_ : (F,) float64
        Features are scaled as (X - mean_) * factor_.
    C_, scaling_ : float, str
        The chosen pair.
    n_iter_, converged_ : int, bool
        Iterations of the final fit, and whether they were fewer than `max_iter`.
    """

    facts = ("C_", "scaling_", "n_iter_", "converged_")

    #: The result does not depend on the starting point.
    convex = True

    scaling: str = "auto"
    C: float | None = None
    max_iter: int = 1000
    tol: float = 1e-6
    random_state: Any = 0

    def gains(self, n: int, task: str) -> bool:
        """Return True: a warm start always shortens the fit, and does not change the result."""
        return True

    def start_from(self, other: Self) -> None:
        """Start the next fit from the settings and weights of a fitted head, such as one of fewer samples.

        The scaling is then the other's, and the search leaves its penalty only for better ones next to it.
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
        start: Any = self.__dict__.pop("_start", None)
        point = None
        if start is not None:
            point = _Point(start.coef_, start.intercept_, start.mean_, start.factor_)
        k = len(self.classes_)
        # With so few columns, one for each class, several threads would spend their time at barriers.
        with threadpool_limits(1, "blas"):
            if len(held) and len(scalings) * len(grid) > 1:
                for scaling in scalings if start is None else (start.scaling_,):
                    training, validation = (X[train], codes[train]), (X[held], codes[held])
                    search = _Search(scaling, grid, training, validation, k, point, on_event)
                    found = search.all() if start is None else search.nearby(start.C_)
                    least = min(tried + found, key=lambda candidate: candidate.validation_loss)
                    tried += found
                    if least in found:
                        self.scaling_, self.C_, point = scaling, least.C, search.points[least.C]
            else:  # nothing to choose, or one sample of each class
                self.scaling_, self.C_ = scalings[0], 1.0 if self.C is None else self.C
            self.mean_, self.factor_ = _scale(X, self.scaling_)
            begin = _moved(point, self.mean_, self.factor_, k)
            problem = Problem(scaled(X, self.mean_, self.factor_), codes, k)
            coef, self.intercept_, self.n_iter_, self.converged_ = problem.solve(
                self.C_, *begin, self.tol, self.max_iter
            )
            # The layout that they have when read from a file: sums in another one differ in the last digit.
            self.coef_ = np.ascontiguousarray(coef)
        self.curves_ = {
            name: [getattr(candidate, name) for candidate in tried]
            for name in Candidate.__dataclass_fields__
        }

    def _logits(self, X: Features) -> Floats:
        return np.asarray(((X - self.mean_) * self.factor_) @ self.coef_.T + self.intercept_)

    def tensors(self) -> dict[str, NDArray[Any]]:
        return {role: getattr(self, f"{role}_") for role in _ROLES}

    def layout(self) -> Layout:
        k, f = len(self.classes_), self.n_features_in_
        shapes = (f,), (f,), (k, f), (k,)
        return {role: ("float64", shape) for role, shape in zip(_ROLES, shapes, strict=True)}

    def restore(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        for role in _ROLES:
            setattr(self, f"{role}_", tensors[role])


class _Point(NamedTuple):
    """Weights, and the scaling of the features that they are for."""

    coef: Floats
    intercept: Floats
    mean: Floats
    factor: Floats


def _scale(X: Features, scaling: str) -> tuple[Floats, Floats]:
    """Compute mean and factor of each column."""
    mean, deviation = moments(X)
    if scaling == "none":
        common = np.sqrt((deviation**2).mean())
        deviation = np.where(deviation > 0, common, 0.0)
    return mean, reciprocal(deviation)


def _moved(start: _Point | None, mean: Floats, factor: Floats, k: int) -> tuple[Floats, Floats]:
    """Convert the weights of a point to another scaling of the features, or return zeros."""
    if start is None:
        return np.zeros((k, len(mean))), np.zeros(k)
    raw = start.coef * start.factor
    return raw * reciprocal(factor), start.intercept + raw @ (mean - start.mean)


class _Search:
    """Tries penalties for one scaling; each fit starts from the last."""

    def __init__(
        self,
        scaling: str,
        grid: tuple[float, ...],
        training: tuple[Features, Rows],
        validation: tuple[Features, Rows],
        k: int,
        start: _Point | None,
        on_event: OnEvent,
    ) -> None:
        self.scaling, self.grid, self.on_event = scaling, grid, on_event
        mean, factor = self.scale = _scale(training[0], scaling)
        self.problem = Problem(scaled(training[0], mean, factor), training[1], k)
        self.judged, self.truth = scaled(validation[0], mean, factor), validation[1]
        if not np.isfinite(self.judged).all():
            raise ValueError(
                "the validation part is infinite once it is scaled like the training part"
            )
        self.weights = _moved(start, mean, factor, k)
        self.tried: dict[int, Candidate] = {}
        self.points: dict[float, _Point] = {}

    def all(self) -> list[Candidate]:
        """Go from strong to weak penalties while the loss improves."""
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
            if at != first:
                break
        return list(self.tried.values())

    def _loss(self, i: int) -> float:
        if i not in self.tried:
            C = self.grid[i]
            coef, intercept, iterations, _ = self.problem.solve(
                C, *self.weights, SEARCH_TOL, SEARCH_ITER
            )
            self.weights = coef, intercept
            self.points[C] = _Point(coef, intercept, *self.scale)
            chances = softmax(self.judged @ coef.T + intercept, axis=1)
            right = chances[np.arange(len(self.truth)), self.truth]
            loss = -np.log(np.maximum(right, np.finfo(np.float64).tiny)).mean()
            hits = (chances.argmax(axis=1) == self.truth).mean()
            self.tried[i] = Candidate(self.scaling, C, float(loss), float(hits), iterations)
            self.on_event(self.tried[i])
        return self.tried[i].validation_loss
