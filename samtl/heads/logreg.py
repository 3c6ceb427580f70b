"""Multinomial logistic regression with scaling and strength of the penalty chosen on validation samples."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from samtl.heads._base import (
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

GRID = tuple(10.0 ** (step / 2) for step in range(-8, 7))  # C from 1e-4 to 1e3 in half decades
# The search stops each fit early: the ranking of penalties shows long before the last digit does. A looser
# tolerance would be met before the first step of a warm start, and the same fit counted twice.
SEARCH_TOL, SEARCH_ITER = 1e-4, 200
RISES = 2  # candidates in a row with a worse loss, after which weaker penalties are not tried


class Head(PooledHead):
    """scikit-learn's `LogisticRegression` (L2 penalty, L-BFGS) on scaled features.

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
        Largest slope at which the final fit ends, as in scikit-learn.
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

    def __init__(
        self,
        scaling: str = "auto",
        C: float | None = None,
        max_iter: int = 1000,
        tol: float = 1e-4,
        random_state: Any = 0,
    ) -> None:
        self.scaling = scaling
        self.C = C
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state

    def _fit(
        self, X: Features, codes: Rows, train: Rows, held: Rows, seed: int, on_event: OnEvent
    ) -> None:
        if self.scaling not in ("auto", "standard", "none"):
            raise ValueError(f"scaling must be auto, standard or none, got {self.scaling!r}")
        if self.C is not None and not self.C > 0:
            raise ValueError(f"C must be above 0, got {self.C!r}")
        scalings = ("standard", "none") if self.scaling == "auto" else (self.scaling,)
        grid = GRID if self.C is None else (self.C,)
        tried: list[Candidate] = []
        with threadpool_limits(1, "blas"), warnings.catch_warnings():
            # One thread: products with so few columns (one for each class) spend their time at barriers
            # otherwise; on 2 cores and 21,600 x 1,152 features two threads take 2.8 times as long.
            # That a fit stopped before the tolerance is kept in `converged_`.
            warnings.simplefilter("ignore", ConvergenceWarning)
            if len(held) and len(scalings) * len(grid) > 1:
                for scaling in scalings:
                    tried += self._search(scaling, grid, X, codes, train, held, on_event)
                best = min(tried, key=lambda candidate: candidate.validation_loss)
                self.scaling_, self.C_ = best.scaling, best.C
            else:  # nothing to choose, or (one sample of each class) nothing to choose on
                self.scaling_, self.C_ = scalings[0], 1.0 if self.C is None else self.C
            self.mean_, self.factor_ = _scale(X, self.scaling_)
            model = LogisticRegression(C=self.C_, tol=self.tol, max_iter=self.max_iter)
            model.fit(scaled(X, self.mean_, self.factor_), codes)
        self.curves_ = {
            name: [getattr(candidate, name) for candidate in tried]
            for name in Candidate.__dataclass_fields__
        }
        self.coef_, self.intercept_ = _one_row_per_class(model)
        self.n_iter_ = int(model.n_iter_[0])
        self.converged_ = self.n_iter_ < self.max_iter

    def _search(
        self,
        scaling: str,
        grid: tuple[float, ...],
        X: Features,
        codes: Rows,
        train: Rows,
        held: Rows,
        on_event: OnEvent,
    ) -> list[Candidate]:
        """Walk from strong to weak penalties, each fit starting from the last, while the loss improves."""
        mean, factor = _scale(X[train], scaling)
        seen, judge = scaled(X[train], mean, factor), scaled(X[held], mean, factor)
        model = LogisticRegression(warm_start=True, tol=SEARCH_TOL, max_iter=SEARCH_ITER)
        tried: list[Candidate] = []
        rises = 0
        for C in grid:
            model.set_params(C=C).fit(seen, codes[train])
            chances = model.predict_proba(judge).astype(np.float64)
            right = chances[np.arange(len(held)), codes[held]]
            loss = -np.log(np.maximum(right, np.finfo(np.float64).tiny)).mean()
            hits = (chances.argmax(axis=1) == codes[held]).mean()
            tried.append(Candidate(scaling, C, float(loss), float(hits), int(model.n_iter_[0])))
            on_event(tried[-1])
            least = min(candidate.validation_loss for candidate in tried)
            rises = 0 if loss <= least else rises + 1
            if rises == RISES:
                break
        return tried

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


def _one_row_per_class(model: LogisticRegression) -> tuple[Floats, Floats]:
    """Weights (K, F) and intercepts (K,) in float64; of two classes scikit-learn keeps the second alone."""
    coef = np.asarray(model.coef_, dtype=np.float64)
    intercept = np.asarray(model.intercept_, dtype=np.float64)
    if len(coef) == 1:
        coef = np.vstack([np.zeros_like(coef), coef])
        intercept = np.append(0.0, intercept)
    return coef, intercept
