"""The calibration error: how far confidences are from how often they are right."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from samtl.metrics.intervals import NORMAL, Floats, Score, binomial

BINS = 15
_PRIOR = 2.0  # samples of a bin that are as right as they are confident
_GRID = np.concatenate([[0.0], np.geomspace(1e-4, 1, 200)])


def bin_of(confidence: Floats) -> NDArray[np.int64]:
    """Return the bin of each confidence: 15 of equal width, (0, 1/15] to (14/15, 1]."""
    return np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)


def fit_temperature(logits: Floats, codes: NDArray[np.int64]) -> float:
    """Return the temperature T > 0 for which softmax(logits / T) has the least log loss (Guo et al. 2017).

    Parameters
    ----------
    logits : (n, K) float64
        Unnormalised log-probabilities of samples that the model has not learnt from.
    codes : (n,) int64
        Their classes.
    """
    from scipy.optimize import minimize_scalar  # slow to import
    from scipy.special import log_softmax

    def log_loss(log_temperature: float) -> float:
        scores = log_softmax(logits / np.exp(log_temperature), axis=1)
        return -float(scores[np.arange(len(codes)), codes].mean())

    return float(np.exp(minimize_scalar(log_loss, bounds=(-4, 4), method="bounded").x))


def calibration_error(confidence: Floats, hit: NDArray[np.bool_], inflation: float = 1.0) -> Score:
    """Estimate the expected calibration error without bias, with a 95 % interval.

    The error is the mean over the samples of |confidence - accuracy| of the sample's bin (Guo et al. 2017, equation 3).
    Computed from samples it is too large, because noise never cancels in an absolute value; a perfectly calibrated
    model has one, too. As Kumar et al. (2019) do for its square, the part that is expected from noise is taken away:
    the estimate is the error whose expected plug-in value is the one that was seen, and 0 if noise alone explains it.
    The gaps of bins are taken as normally distributed with the proportions that were seen. The interval holds all
    errors under which the plug-in value is no surprise, whichever of three proportions the gaps have, and reaches at
    least as far as what the accuracy of all samples leaves possible.

    Parameters
    ----------
    confidence : (n,) float64
        Probability of the predicted class, in (0, 1].
    hit : (n,) bool
        Whether it is the true one.
    inflation : float
        By what factor groups multiply variances; it widens the interval.
    """
    n, place, right = len(hit), bin_of(confidence), hit.astype(np.float64)
    size = np.bincount(place, minlength=BINS)
    used = size > 0
    size = size[used]
    sure, squares, hits = (
        np.bincount(place, values, BINS)[used] for values in (confidence, confidence**2, right)
    )
    gaps = abs(sure - hits) / n
    seen = float(gaps.sum())
    rate = (hits + _PRIOR * sure / size) / (size + _PRIOR)
    noise = np.sqrt(np.maximum(squares - 2 * rate * sure + size * rate, 1e-12)) / n
    value = _explaining(seen, gaps, noise)[0]
    noise *= np.sqrt(inflation)
    # Proportions of the gaps: as seen, of those that stand out, and blurred by the noise.
    clear = np.sqrt(np.maximum(gaps**2 - noise**2, 0))
    found = [_explaining(seen, shape, noise) for shape in (gaps, clear, gaps + noise)]
    lows, highs = [low for _, low, _ in found], [high for *_, high in found]
    low, high = map(float, binomial(right.sum() / inflation, n / inflation))
    mean = float(confidence.mean())
    least, most = binomial(hits / inflation, size / inflation)
    if ((least <= sure / size) & (sure / size <= most)).all():
        lows = [0.0]  # the normal distribution misjudges few errors
    return Score.around(value, min(lows), min(1.0, max(*highs, mean - low, high - mean)))


def _explaining(seen: float, shape: Floats, noise: Floats) -> tuple[float, float, float]:
    """Return the error under which `seen` is expected, and the least and the largest under which it is no surprise."""
    from scipy import special

    shape = shape if shape.any() else noise
    gaps = _GRID[:, None] * (shape / shape.sum())
    # Mean and variance of the absolute value of a normal variable, summed over the bins.
    means = noise * np.sqrt(2 / np.pi) * np.exp(-((gaps / noise) ** 2) / 2)
    means += gaps * special.erf(gaps / noise / np.sqrt(2))
    spread = NORMAL * np.sqrt((gaps**2 + noise**2 - means**2).sum(1))
    expected = means.sum(1)
    value, low, high = (
        float(np.interp(seen, np.maximum.accumulate(values), _GRID))
        for values in (expected, expected + spread, expected - spread)
    )
    return value, low, high
