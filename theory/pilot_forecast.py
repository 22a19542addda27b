"""The utility loss at the end of a fine-tune, extrapolated from its first steps.

The time of a run is its accumulated learning rate S = sum of the steps' rates, schedule included. Early on the loss
grows as S^2 (the displacement grows in proportion, and the loss with its square); later the steps of a stochastic
optimiser decorrelate and the gradient shrinks, so that the exponent falls. No law fixes by how much: the power law
below takes the exponent of the last pilot points as it is, and its interval is that of the fit alone: it is too narrow
wherever the exponent goes on to change, as it does in most runs that are much longer than their pilot.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import stats

from theory.statistics import Scalar

LEAST_POINTS = 3  # of a fit with an interval
LEVEL = 0.95


@dataclass(frozen=True)
class Forecast:
    """A forecast at one time.

    Attributes:
        method: "power law", "proportional", "quadratic" or "last".
        value: the forecast.
        low, high: prediction interval of the fit, or None where the method has none.
        exponent: of the power of S.
        num_points: pilot points that it rests on.
    """

    method: str
    value: float
    low: float | None
    high: float | None
    exponent: float
    num_points: int


def forecasts(
    accumulated: Float[np.ndarray, " T"], losses: Float[np.ndarray, " U"], target: Scalar
) -> dict[str, Forecast]:
    """Forecasts at an accumulated learning rate, by method.

    "power law": least squares in the logarithms over the later half of the points (three at least), with Student's
    95 % prediction interval; "quadratic" and "proportional": the last point scaled by (S/S_k)^2 and S/S_k; "last":
    the last point itself. The fixed exponents are what the fit has to beat.

    Args:
        accumulated: (T,) S at the pilot points, positive and increasing.
        losses: (T,) utility loss there.
        target: S at the end, at least the last pilot point's.

    Raises:
        ValueError: if the points are not as described or the target lies before them.
    """
    if accumulated.shape != losses.shape or accumulated.size == 0:
        raise ValueError(f"expected one loss for each pilot point, got {losses.shape} for {accumulated.shape}")
    if not (accumulated[0] > 0 and (np.diff(accumulated) > 0).all()):
        raise ValueError("the accumulated learning rates must be positive and increasing")
    if not target >= accumulated[-1]:
        raise ValueError(f"the end, {target:.3g}, lies before the last pilot point, {accumulated[-1]:.3g}")
    ratio, last = float(target / accumulated[-1]), float(losses[-1])
    found = {
        name: Forecast(name, last * ratio**exponent, None, None, exponent, 1)
        for name, exponent in (("quadratic", 2.0), ("proportional", 1.0), ("last", 0.0))
    }
    later = slice(min(len(losses) // 2, max(0, len(losses) - LEAST_POINTS)), None)
    x, u = accumulated[later], losses[later]
    if len(u) < LEAST_POINTS or not (u > 0).all():
        return found
    return {"power law": _power_law(np.log(x), np.log(u), math.log(target))} | found


def _power_law(x: Float[np.ndarray, " T"], y: Float[np.ndarray, " T"], at: float) -> Forecast:
    """Line through (x, y) = (log S, log loss), and its prediction interval at one x."""
    count, centred = len(x), x - x.mean()
    spread = float(centred @ centred)
    slope = float(centred @ y) / spread
    residual = y - y.mean() - slope * centred
    away = at - float(x.mean())
    centre = float(y.mean()) + slope * away
    variance = float(residual @ residual) / (count - 2) * (1 + 1 / count + away**2 / spread)
    width = float(stats.t.ppf((1 + LEVEL) / 2, count - 2)) * math.sqrt(variance)
    low, high = _exp(centre - width), _exp(centre + width)
    return Forecast("power law", _exp(centre), low, high, slope, count)


def _exp(x: float) -> float:
    """e^x, held inside the range of a double."""
    return math.exp(min(max(x, -700.0), 700.0))
