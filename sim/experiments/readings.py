"""What is predicted of a path from its derivatives at 0, and what a measured loss curve shows of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sim.fields import Derivatives
from sim.skills import Skill
from theory import onset
from theory.aic import estimate

_ROUNDING = 1e-10  # of its natural scale: a leak or onset coefficient below is rounding
_FEWEST = 10  # times that seven coefficients are fitted to
_MISFIT = 1e-5  # relative, of a polynomial that describes a loss curve


@dataclass(frozen=True)
class Onset:
    """What is predicted of a path from its derivatives at 0."""

    leak: float
    coupling: float
    gamma_star: float
    path: Derivatives
    correlation: float | None

    @property
    def crossover(self) -> float | None:
        """``2 leak / gamma_star``; None without a leak or an onset."""
        return onset.crossover(self.leak, self.gamma_star) if self.leak > 0 and self.gamma_star > 0 else None


def predict(skill: Skill, path: Derivatives, rank: int) -> Onset:
    """Leak, coupling and onset coefficient of a path, with rounding set to 0."""
    stats = skill.statistics(path.velocity, path.acceleration)
    found = estimate(stats, min(rank, stats.num_samples), resamples=0, splits=1)
    root = float(found.eigenvalues[0]) ** 0.5
    leak = _without_rounding(found.leak, root * stats.velocity_norm)
    bending = stats.acceleration_norm + stats.velocity_norm**2  # in parameters and, at unit curvature, in the policy
    gamma_star = _without_rounding(onset.onset_coefficient(stats), root * bending)
    correlation = onset.correlation(stats) if leak > 0 and gamma_star > 0 else None
    return Onset(leak, found.coupling, gamma_star, path, correlation)


def _without_rounding(value: float, scale: float) -> float:
    return value if value > _ROUNDING * scale else 0.0


def power_coefficients(times: np.ndarray, losses: np.ndarray, end: float, lowest: int) -> dict[int, float]:
    """Coefficients of the polynomial of degree 8 that fits a loss curve up to ``end`` in relative error.

    Args:
        times: shape (T,), positive.
        losses: shape (T,), positive up to ``end``.
        end: of the times used.
        lowest: first power of t that the loss has: 2 with a leak, 4 without.

    Returns:
        The coefficient of each power from the lowest to 8.
    """
    powers = range(lowest, 9)
    used = times <= end
    t = times[used] / end
    design = np.stack([t**k for k in powers], axis=1) / losses[used, None]
    solution = np.linalg.lstsq(design, np.ones(len(t)), rcond=None)[0]
    return {k: float(x / end**k) for k, x in zip(powers, solution, strict=True)}


class NoFitError(ValueError):
    """No polynomial describes a loss curve near its start."""


def onset_fit(times: np.ndarray, losses: np.ndarray, end: float, lowest: int) -> dict[int, float]:
    """As :func:`power_coefficients`, with ``end`` halved until the polynomial describes the losses.

    Raises:
        NoFitError: if it does so nowhere that holds enough times.
    """
    while np.count_nonzero(times <= end) >= _FEWEST:
        found = power_coefficients(times, losses, end, lowest)
        used = times <= end
        fitted = sum(c * times[used] ** k for k, c in found.items())
        if np.abs(fitted / losses[used] - 1).max() < _MISFIT:
            return found
        end /= 2
    raise NoFitError(f"no polynomial in t describes the losses before t = {2 * end:.3g}")


def slope_crosses(times: np.ndarray, losses: np.ndarray, level: float) -> float | None:
    """The first time at which the log-log slope passes a level upwards, by interpolation."""
    slope = onset.local_slope(times, losses)
    after = np.flatnonzero((slope[:-1] < level) & (slope[1:] >= level))
    if after.size == 0:
        return None
    i = int(after[0])
    share = (level - slope[i]) / (slope[i + 1] - slope[i])
    return float(np.exp((1 - share) * np.log(times[i]) + share * np.log(times[i + 1])))
