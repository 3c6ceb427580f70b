"""Logistic regression with scaling and strength of the penalty chosen on validation samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from scipy.special import softmax
from threadpoolctl import threadpool_limits

from samtl._runtime import Note
from samtl.heads.base import (
    CLASS_WEIGHTS,
    Candidate,
    Features,
    Floats,
    LinearHead,
    OnEvent,
    Rows,
    balanced,
    check_choice,
    check_ranges,
)
from samtl.heads.logistic import Point, Problem

GRID = tuple(10.0 ** (step / 2) for step in range(-8, 7))  # C from 1e-4 to 1e3 in half decades
# The search stops each fit early: the ranking of penalties is known long before the last digit.
SEARCH_TOL, SEARCH_ITER = 1e-5, 200
_SLOW = 2**30  # products in one pass over the features
RISES = 2  # worse candidates in a row after which weaker penalties are not tried


@dataclass(eq=False, repr=False)
class Head(LinearHead):
    """Logistic regression with an L2 penalty on scaled features; the optimum is that of scikit-learn's.

    It is multinomial or, if several classes may apply, one for each class, all with the same penalty.

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
    class_weights : {"balanced"}, optional
        `balanced` weights samples inversely to the size of their class, in every loss. For classification.
    calibrate : bool
        Whether one temperature, chosen on the validation part, scales the logits (for classification). A head of the
        training part alone is fitted for that, too.
    random_state : int
        For the validation part that is drawn if none is passed.

    Attributes
    ----------
    coef_, intercept_, mean_, factor_
        See `samtl.heads.base.LinearHead`.
    C_, scaling_ : float, str
        The chosen pair.
    n_iter_, converged_ : int, bool
        Iterations of the final fit, and whether they were fewer than `max_iter`.
    """

    tiers: ClassVar[dict[str, str]] = {"classification": "pooled", "multilabel": "pooled"}
    facts = ("C_", "scaling_", "n_iter_", "converged_", "temperature_")
    #: The result does not depend on the starting point.
    convex = True

    scaling: str = "auto"
    C: float | None = None
    max_iter: int = 1000
    tol: float = 1e-6
    class_weights: str | None = None
    calibrate: bool = False
    random_state: Any = 0

    def gains(self, n: int, task: str) -> bool:
        """Return True: a warm start always shortens the fit. Its search may end at another penalty."""
        return True

    def start_from(self, other: Self) -> None:
        """Start the next fit from the settings and weights of a fitted head, such as one of fewer samples.

        The scaling is then the other's, and the search leaves its penalty only for better ones next to it.
        """
        self._start = other

    def _check(self) -> None:
        check_choice(self, "scaling", ("auto", "standard", "none"))
        check_choice(self, "class_weights", CLASS_WEIGHTS)
        check_choice(self, "calibrate", (False, True))
        check_ranges(self, C="positive", max_iter=1, tol="not negative")

    def _fit(
        self, X: Features, codes: Rows, train: Rows, held: Rows, seed: int, on_event: OnEvent
    ) -> None:
        k, point, tried = len(self.classes_), None, dict[Candidate, Point]()
        if self.class_weights and self.task_ != "classification":
            raise ValueError(f"class_weights is for classification, not for {self.task_}")

        def weights(some: Rows) -> Floats | None:
            return balanced(codes[train], k)[codes[some]] if self.class_weights else None

        start: Any = self.__dict__.pop("_start", None)
        if len(X) * X.shape[1] * k > _SLOW:
            on_event(
                Note(
                    f"logistic regression of {k:,} classes on {len(X):,} samples with {X.shape[1]:,} features is slow: "
                    "minutes in all; mlp is faster, and a given C spares the search for it"
                )
            )
        scalings = ("standard", "none") if self.scaling == "auto" else (self.scaling,)
        grid = GRID if self.C is None else (self.C,)
        self.scaling_, self.C_ = scalings[0], 1.0 if self.C is None else self.C
        if start is not None:
            point = Point(start.coef_, start.intercept_, start.mean_, start.factor_)
        # With so few columns, one for each class, several threads would spend their time at barriers.
        with threadpool_limits(1, "blas"):
            # There is nothing to judge by if there is one sample of each class.
            if len(held) and len(scalings) * len(grid) > 1:
                at = start and start.C_
                for scaling in (start.scaling_,) if start else scalings:
                    problem = Problem(X[train], codes[train], k, scaling, weights(train))
                    judged = X[held], codes[held], weights(held)
                    tried |= _search(problem, judged, grid, point, at, on_event)
                    best = min(tried, key=lambda candidate: candidate.validation_loss)
                    self.scaling_, self.C_, point = best.scaling, best.C, tried[best]
            every = weights(np.arange(len(codes)))
            problem = Problem(X, codes, k, self.scaling_, every)
            found, self.n_iter_, self.converged_ = problem.solve(
                self.C_, problem.moved(point), self.tol, self.max_iter
            )
        self.mean_, self.factor_, self.intercept_ = found.mean, found.factor, found.intercept
        # The layout that they have when read from a file: sums in another one differ in the last digit.
        self.coef_ = np.ascontiguousarray(found.coef)
        columns = Candidate.__dataclass_fields__
        self.curves_ = {name: [getattr(one, name) for one in tried] for name in columns}


def _search(
    problem: Problem,
    held: tuple[Features, Rows, Floats | None],
    grid: tuple[float, ...],
    start: Point | None,
    C: float | None,
    on_event: OnEvent,
) -> dict[Candidate, Point]:
    """Try penalties on the validation part (features, classes, weights), each fit starting from the last.

    From strong to weak ones while the loss improves or, if a penalty `C` was best before, from that to better ones.
    """
    X, codes, weights = held
    judged, point = problem.scaled(X), problem.moved(start)
    if not np.isfinite(judged).all():
        raise ValueError("the validation part is infinite once it is scaled like the training part")
    losses: dict[int, float] = {}
    tried: dict[Candidate, Point] = {}

    def loss(i: int) -> float:
        nonlocal point
        if i not in losses:
            point, iterations, _ = problem.solve(grid[i], point, SEARCH_TOL, SEARCH_ITER)
            losses[i], hits = _judged(judged @ point.coef.T + point.intercept, codes, weights)
            candidate = Candidate(problem.scaling, grid[i], losses[i], hits, iterations)
            tried[candidate] = point
            on_event(candidate)
        return losses[i]

    if C is None:
        best = 0
        for i in range(len(grid)):
            best = i if loss(i) <= loss(best) else best
            if i - best == RISES:
                break
        return tried
    first = best = min(range(len(grid)), key=lambda i: abs(np.log(grid[i] / C)))
    loss(best)
    for step in (1, -1):
        while 0 <= best + step < len(grid) and loss(best + step) < loss(best):
            best += step
        if best != first:
            break
    return tried


def _judged(scores: Floats, codes: Rows, weights: Floats | None) -> tuple[float, float]:
    """Return the mean cross-entropy, over the classes too if several may apply, and the share of right answers."""
    if codes.ndim == 2:
        losses = np.logaddexp(0, scores) - codes * scores
        return float(losses.mean()), float(((scores > 0) == codes).mean())
    chances = softmax(scores, axis=1)
    right = np.maximum(chances[np.arange(len(codes)), codes], np.finfo(np.float64).tiny)
    loss = float(np.average(-np.log(right), weights=weights))
    return loss, float((chances.argmax(axis=1) == codes).mean())
