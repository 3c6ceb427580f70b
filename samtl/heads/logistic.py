"""Solver for logistic regression, multinomial or one for each class, with several penalties on one set of features.

Features are correlated, and the problem is long and narrow: scikit-learn's solver takes some 200 passes over them for
each penalty. Here they are rotated once to the axes of their covariance, where the curvature of the loss is nearly
known, and scipy's L-BFGS works in coordinates in which the loss is nearly round.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, softmax

from samtl.heads.base import Features, Floats, Rows, moments, reciprocal, scaled

_DOUBLE = 2**22  # numbers in features up to which float64 costs nothing
_CACHED = 2**21  # bytes of features that stay in a core's cache between two products


class Point(NamedTuple):
    """Weights (K, F) and (K,), and the scaling of the features that they are for, (F,) and (F,)."""

    coef: Floats
    intercept: Floats
    mean: Floats
    factor: Floats


class Problem:
    """Minimises the sum of cross-entropies + |coef|^2 / (2 C), without a penalty on intercepts.

    X are features, (n, F) float32, `codes` class indices, (n,) int64, or 0 and 1 for each class, (n, K); for `scaling`
    see `samtl.heads.logreg.Head`. With two classes, coefficients are those into which scikit-learn's single row splits.
    """

    def __init__(
        self,
        X: Features,
        codes: Rows,
        n_classes: int,
        scaling: str,
        sample_weights: Floats | None = None,
    ) -> None:
        (self.n, self.features), self.classes, self.scaling = X.shape, n_classes, scaling
        self.mean, deviation = moments(X)
        if scaling == "none":
            common = np.sqrt((deviation**2).mean())
            deviation = np.where(deviation > 0, common, 0.0)
        self.factor = reciprocal(deviation)
        X = self.scaled(X)
        spread, self._axes = np.linalg.eigh((X.T @ X).astype(np.float64))
        self._spread = np.maximum(spread, 0)
        self._dtype = np.float64 if X.size <= _DOUBLE else np.float32
        self._rotated = X.astype(self._dtype, copy=False) @ self._axes.astype(self._dtype)
        self._codes, self._sample_weights = codes, sample_weights
        self._at_once = max(128, _CACHED // (4 * max(self.features, n_classes)))

    def scaled(self, X: Features) -> Features:
        """Scale features like those of the problem."""
        return scaled(X, self.mean, self.factor)

    def moved(self, start: Point | None) -> Point:
        """Convert a point to the problem's scaling, or return zeros."""
        k = self.classes
        if start is None:
            return Point(np.zeros((k, self.features)), np.zeros(k), self.mean, self.factor)
        raw = start.coef * start.factor
        intercept = start.intercept + raw @ (self.mean - start.mean)
        return Point(raw * reciprocal(self.factor), intercept, self.mean, self.factor)

    def solve(self, C: float, start: Point, tol: float, max_iter: int) -> tuple[Point, int, bool]:
        """Solve for one penalty, from a point in the problem's scaling; see the parameters of `logreg`.

        Returns the point, the number of iterations, and whether it converged.
        """
        k, coef, intercept = self.classes, start.coef, start.intercept
        one_row = k == 2 and self._codes.ndim == 1  # which scikit-learn penalises
        weight = (2 if one_row else 1) / C
        # The loss curves by about p (1 - p) along each axis times its spread; the penalty adds its own.
        curvature = self._uncertainty(coef, intercept)
        size = 1 / np.sqrt(curvature * self._spread + weight)
        lift = 1 / np.sqrt(curvature * self.n)

        def unpacked(point: Floats) -> tuple[Floats, Floats]:
            return point[:-k].reshape(self.features, k) * size[:, None], point[-k:] * lift

        def objective(point: Floats) -> tuple[float, Floats]:
            weights, offsets = unpacked(point)
            loss, slope, slope0 = self._loss(weights, offsets)
            value = loss + 0.5 * weight * float((weights**2).sum())
            slopes = (slope + weight * weights) * size[:, None]
            return value / self.n, np.append(slopes.ravel(), slope0 * lift) / self.n

        packed = np.append(((self._axes.T @ coef.T) / size[:, None]).ravel(), intercept / lift)
        options = {"maxiter": max_iter, "maxfun": 20 * max_iter, "ftol": tol, "gtol": 0.0}
        found = minimize(objective, packed, jac=True, method="L-BFGS-B", options=options)
        weights, offsets = unpacked(found.x)
        coef = (self._axes @ weights).T
        intercept = offsets - offsets.mean() if self._codes.ndim == 1 else offsets
        point = Point(coef, intercept, self.mean, self.factor)
        return point, int(found.nit), bool(found.success)

    def _loss(self, weights: Floats, offsets: Floats) -> tuple[float, Floats, Floats]:
        """Sum of cross-entropies and its slopes, (F, K) and (K,), in the rotated features."""
        narrow, offset = weights.astype(self._dtype), offsets.astype(self._dtype)
        total, slope, slope0 = 0.0, np.zeros(weights.shape), np.zeros(len(offset))
        for start in range(0, self.n, self._at_once):
            z = self._rotated[start : start + self._at_once]
            codes = self._codes[start : start + self._at_once]
            surprise, scores = _surprise(z @ narrow + offset, codes)
            if self._sample_weights is not None:
                weight = self._sample_weights[start : start + self._at_once]
                surprise, scores = surprise * weight, scores * weight[:, None]
            total += float(surprise.sum(dtype=np.float64))
            slope += z.T @ scores
            slope0 += scores.sum(axis=0, dtype=np.float64)
        return total, slope, slope0

    def _uncertainty(self, coef: Floats, intercept: Floats) -> float:
        """Compute the mean of p (1 - p), over at most some thousand samples; at least 0.001."""
        z = self._rotated[:: max(1, self.n // 4096)]
        scores = z @ (self._axes.T @ coef.T) + intercept
        chances = softmax(scores, axis=1) if self._codes.ndim == 1 else expit(scores)
        return max(float((chances * (1 - chances)).mean()), 1e-3)


def _surprise(scores: Floats, codes: Rows) -> tuple[Floats, Floats]:
    """Cross-entropies, (n,) or (n, K), and their slopes with respect to the scores, (n, K), which take their place."""
    if codes.ndim == 2:
        surprise = np.logaddexp(0, scores) - codes * scores
        expit(scores, out=scores)
        scores -= codes
        return surprise, scores
    scores -= scores.max(axis=1, keepdims=True)
    nth = np.arange(len(scores))
    right = scores[nth, codes]
    np.exp(scores, out=scores)
    sums = scores.sum(axis=1, keepdims=True)
    scores /= sums
    scores[nth, codes] -= 1
    return np.log(sums[:, 0]) - right, scores
