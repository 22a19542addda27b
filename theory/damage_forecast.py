"""The utility loss at the end of a training, forecast from what was measured on the way.

In the logarithms of accumulated learning rate S and loss u a power law is a line. Real trainings follow one only for a
while: the exponent starts at 2 (the displacement grows in proportion to S, the loss with its square) and falls as steps
decorrelate and gradients shrink. So the line's slope may drift:

    log u(S) = c + integral of p(log S) + noise,    p a Brownian motion in log S that starts near 1.5 (s.d. 1),

with the size of the drift and of the noise unknown: both are averaged over a grid by how well they explain the points.
The interval therefore widens with the distance of the extrapolation, in the log as its power 3/2, and never falls below
the scatter of the points around the curve. benchmarks/forecast_coverage.py measures how often it holds the end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy import optimize, special

from theory.statistics import Scalar

LEAST_POINTS = 3
LEVEL = 0.9
_NEWEST = 40  # points that are used: older ones say little about the end
_SLOPE, _SLOPE_SD = 1.5, 1.0  # of the exponent before anything is seen: fine-tunes lie between 0 and 2
_OFFSET_SD = 10.0  # of log u at the first point, about the mean of the points
# Neither is allowed to be near 0, though a few points may lie on a line: benchmarks/forecast_coverage.py.
_DRIFTS = (0.4, 0.8, 1.6)  # standard deviation of the change of the exponent while S grows e-fold
_NOISES = tuple(float(x) for x in np.geomspace(0.05, 1.0, 8))  # standard deviation of log u


@dataclass(frozen=True)
class EndForecast:
    """A forecast of the loss at one accumulated learning rate.

    Attributes:
        value: median.
        low, high: ends of the central interval of probability `level`.
        exponent: of the power law at the last point.
        num_points: that it rests on.
        level: of the interval.
    """

    value: float
    low: float
    high: float
    exponent: float
    num_points: int
    level: float


def forecast_end(
    accumulated: Float[np.ndarray, " T"], losses: Float[np.ndarray, " T"], target: Scalar, *, level: Scalar = LEVEL
) -> EndForecast | None:
    """Forecast the loss that will be measured at an accumulated learning rate; None from fewer than 3 usable points.

    Args:
        accumulated: S at the points, not decreasing; points at S = 0, or without a positive finite loss, are left out.
        losses: measured there, in any unit.
        target: S at the end, at least that of the last point.
        level: probability of the interval, in (0, 1).

    Raises:
        ValueError: if S decreases, the target lies before the last point, or the level is no probability.
    """
    if (np.diff(accumulated) < 0).any() or (accumulated.size and not target >= accumulated[-1]):
        raise ValueError("expected accumulated learning rates that do not decrease, and a target not before the last")
    if not 0 < level < 1:
        raise ValueError(f"expected a level between 0 and 1, got {level}")
    usable: Bool[np.ndarray, " T"] = (accumulated > 0) & (losses > 0) & np.isfinite(losses)
    x, y = np.log(accumulated[usable])[-_NEWEST:], np.log(losses[usable])[-_NEWEST:]
    if len(np.unique(x)) < LEAST_POINTS:
        return None
    weights, means, deviations, slopes = _posteriors(x - x[0], y - y.mean(), math.log(target) - float(x[0]))
    low, middle, high = (
        float(np.exp(np.clip(_quantile(weights, means, deviations, p) + y.mean(), -700, 700)))
        for p in ((1 - float(level)) / 2, 0.5, (1 + float(level)) / 2)
    )
    return EndForecast(middle, low, high, float(weights @ slopes), len(x), float(level))


def _posteriors(
    x: Float[np.ndarray, " T"], y: Float[np.ndarray, " T"], at: float
) -> tuple[
    Float[np.ndarray, " G"], Float[np.ndarray, " G"], Float[np.ndarray, " G"], Float[np.ndarray, " G"]
]:  # fmt: skip
    """For each point of the grid of drift and noise: its weight, and mean, deviation and last slope of the curve."""
    drifts, noises = (part.ravel() for part in np.meshgrid(_DRIFTS, _NOISES, indexing="ij"))
    bends = drifts[:, None, None] ** 2
    prior = _line(x, x) + bends * _bend(x, x)
    cross = (_line(x, np.array([at])) + bends * _bend(x, np.array([at])))[:, :, 0]
    # Of the slope at the last point with the curve before it.
    slope_cross = _SLOPE_SD**2 * x + bends[:, :, 0] * x**2 / 2
    factor = np.linalg.cholesky(prior + noises[:, None, None] ** 2 * np.eye(len(x)))
    known = np.broadcast_to(y - _SLOPE * x, cross.shape)
    white, seen, seen_slope = np.moveaxis(np.linalg.solve(factor, np.stack([known, cross, slope_cross], axis=2)), 2, 0)
    evidences = -(white**2).sum(axis=1) / 2 - np.log(np.diagonal(factor, axis1=1, axis2=2)).sum(axis=1)
    left = np.maximum(_line_variance(at) + drifts**2 * at**3 / 3 - (seen**2).sum(axis=1), 0.0)
    means, slopes = _SLOPE * at + (seen * white).sum(axis=1), _SLOPE + (seen_slope * white).sum(axis=1)
    return special.softmax(evidences), means, np.sqrt(left + noises**2), slopes


def _line(x: Float[np.ndarray, " T"], other: Float[np.ndarray, " U"]) -> Float[np.ndarray, "T U"]:
    """Covariance of offset and first slope."""
    return _OFFSET_SD**2 + _SLOPE_SD**2 * np.outer(x, other)


def _line_variance(at: float) -> float:
    return _OFFSET_SD**2 + _SLOPE_SD**2 * at**2


def _bend(x: Float[np.ndarray, " T"], other: Float[np.ndarray, " U"]) -> Float[np.ndarray, "T U"]:
    """Covariance of an integrated Brownian motion that starts at 0."""
    small, large = np.minimum.outer(x, other), np.maximum.outer(x, other)
    return small**2 * (3 * large - small) / 6


def _quantile(
    weights: Float[np.ndarray, " G"], means: Float[np.ndarray, " G"], deviations: Float[np.ndarray, " G"], p: float
) -> float:
    """Quantile of a mixture of normal distributions."""
    far = special.ndtri(max(p, 1 - p)) + 1.0
    low, high = float((means - far * deviations).min()), float((means + far * deviations).max())
    return float(optimize.brentq(lambda z: float(weights @ special.ndtr((z - means) / deviations)) - p, low, high))
