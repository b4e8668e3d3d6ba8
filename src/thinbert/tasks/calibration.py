"""Probabilities that mean what they say: how sure a model is, fitted to how often it is right."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_BINS = 10
_ROUNDS = 100
_LARGEST = 700.0  # log odds beyond which a float64 holds no probability

Values = Sequence[float] | NDArray[np.float64]


def log_odds(probabilities: Values) -> NDArray[np.float64]:
    p = np.asarray(probabilities, np.float64)
    with np.errstate(divide="ignore"):
        odds: NDArray[np.float64] = np.clip(np.log(p) - np.log1p(-p), -_LARGEST, _LARGEST)
    return odds


def fit(odds: Values, truth: Sequence[bool]) -> tuple[float, float]:
    """(slope, offset) for which sigmoid(slope * odds + offset) is the likeliest probability of `truth` (Platt 1999).

    The truths are pulled a little towards the middle, by one count of each kind, so that the optimum is finite also
    where the odds tell them apart without a mistake.
    """
    x, y = np.asarray(odds, np.float64), np.asarray(truth, bool)
    target = np.where(y, (y.sum() + 1) / (y.sum() + 2), 1 / ((~y).sum() + 2))
    slope, offset = logistic(np.stack([x, np.ones_like(x)], axis=1), target, np.array([1.0, 0.0]))
    return float(slope), float(offset)


def logistic(A: NDArray[np.float64], target: NDArray[np.float64], w: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights [K] for which sigmoid(A w) is the likeliest probability of the targets, from the weights `w` on.

    Newton's method on a convex loss, its steps halved until it falls. A is [N, K]; targets are between 0 and 1.
    """

    def loss(w: NDArray[np.float64]) -> float:
        z = A @ w
        return float((np.logaddexp(0, z) - target * z).sum())

    for _ in range(_ROUNDS):
        p = 1 / (1 + np.exp(-np.clip(A @ w, -500, 500)))
        gradient = A.T @ (p - target)
        curvature = A.T @ (A * (p * (1 - p))[:, None]) + 1e-9 * np.eye(len(w))
        step = np.linalg.solve(curvature, gradient)
        while loss(w - step) > loss(w) and np.abs(step).max() > 1e-12:
            step = step / 2
        w = w - step
        if np.abs(step).max() < 1e-9:
            break
    return w


def auroc(scores: Values, truth: Sequence[bool]) -> float:
    """Probability that a true case scores higher than a false one, equals counting half. nan without one of each."""
    x, y = np.asarray(scores, np.float64), np.asarray(truth, bool)
    if y.all() or not y.any():
        return float("nan")
    _, place, count = np.unique(x, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[place]  # from 1, equals sharing their mean
    positive = int(y.sum())
    return float((rank[y].sum() - positive * (positive + 1) / 2) / (positive * (len(y) - positive)))


def calibration_error(probabilities: Values, truth: Sequence[bool]) -> float:
    """Mean distance of what is said from how often it is so, over ten equal ranges of probability, weighted by their
    numbers of cases (expected calibration error, Guo et al. 2017)."""
    p, y = np.asarray(probabilities, np.float64), np.asarray(truth, np.float64)
    bins = np.minimum((p * _BINS).astype(int), _BINS - 1)
    return float(sum(abs(p[bins == b].sum() - y[bins == b].sum()) for b in range(_BINS)) / len(p))
