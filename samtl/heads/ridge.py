"""Ridge regression of a number, with the strength of the penalty chosen on validation samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.base import RegressorMixin
from threadpoolctl import threadpool_limits

from samtl.heads.base import (
    Candidate,
    Features,
    Floats,
    LinearHead,
    OnEvent,
    Rows,
    check_ranges,
    standard,
)

GRID = tuple(10.0 ** (step / 2) for step in range(-12, 7))  # from 1e-6 to 1e3 in half decades
_UNJUDGED = 1.0  # the penalty if there is no validation part
_AT_ONCE = 4096  # rows


@dataclass(eq=False, repr=False)
class Head(RegressorMixin, LinearHead):  # type: ignore[misc]
    """Linear regression with an L2 penalty on standardised features.

    The penalty with the least mean squared error on the validation part wins, and is then used on training and
    validation part together. One decomposition of the features' covariance serves all penalties.

    Parameters
    ----------
    alpha : float, optional
        Strength of the penalty, above 0, beside the mean squared error: scikit-learn's divided by the number of
        samples. By default chosen from 1e-6 to 1e3.
    random_state : int
        For the validation part that is drawn if none is passed.

    Attributes
    ----------
    alpha_ : float
        The chosen one.
    coef_, intercept_, mean_, factor_
        See `samtl.heads.base.LinearHead`.
    """

    task_ = "regression"
    tiers: ClassVar[dict[str, str]] = {"regression": "pooled"}
    facts = ("alpha_",)

    alpha: float | None = None
    random_state: Any = 0

    def _check(self) -> None:
        check_ranges(self, alpha="positive")

    def _fit(
        self,
        X: Features,
        codes: NDArray[Any],
        train: Rows,
        held: Rows,
        seed: int,
        on_event: OnEvent,
    ) -> None:
        grid = GRID if self.alpha is None else (self.alpha,)
        self.alpha_, tried = grid[0] if len(grid) == 1 else _UNJUDGED, list[Candidate]()
        # Sums in one thread, so that they do not depend on how many there are.
        with threadpool_limits(1, "blas"):
            if len(held) and len(grid) > 1:
                several = self._solve(X[train], codes[train], grid)
                spread = codes[train].var() or 1.0
                self.coef_ = several.T
                errors = self._logits(X[held]) - codes[held, None]
                losses = np.square(errors).mean(axis=0) / spread
                self.alpha_ = grid[int(losses.argmin())]
                for alpha, loss in zip(grid, losses.tolist(), strict=True):
                    tried.append(Candidate("standard", 1 / alpha, loss, np.nan, 1))
                    on_event(tried[-1])
            self.coef_ = np.ascontiguousarray(self._solve(X, codes, (self.alpha_,))[:, 0])
        columns = Candidate.__dataclass_fields__
        self.curves_ = {name: [getattr(one, name) for one in tried] for name in columns}

    def _solve(self, X: Features, y: Floats, alphas: tuple[float, ...]) -> Floats:
        """Solve for some penalties: weights (F, penalties) of features that are scaled as `_logits` does then."""
        self.mean_, self.factor_ = standard(X)
        self.intercept_ = np.array([y.mean()])
        gram, product = np.zeros((X.shape[1],) * 2), np.zeros(X.shape[1])
        for start in range(0, len(X), _AT_ONCE):
            rows = slice(start, start + _AT_ONCE)
            scaled = (X[rows] - self.mean_) * self.factor_
            gram += scaled.T @ scaled / len(X)
            product += scaled.T @ (y[rows] - self.intercept_) / len(X)
        spread, axes = np.linalg.eigh(gram)
        inverse = 1 / (np.maximum(spread, 0)[:, None] + np.array(alphas))
        weights: Floats = axes @ ((axes.T @ product)[:, None] * inverse)
        return weights
