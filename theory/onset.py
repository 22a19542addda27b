"""The utility loss, how it sets in, and bounds on it that hold at finite time.

Along a curve ``theta(t)`` write ``d = l(t) - l(0)`` for the change of a log-probability, ``l', l''`` for its
derivatives at 0 (``l' = s.v``, ``l'' = s.a + v^T Hess(l) v``), and E for the mean over the base policy. The
leak is ``sqrt(E l'^2)`` and the onset coefficient ``gamma_* = sqrt(E l''^2)``. To second order
``d = t l' + t^2/2 l''`` and the utility loss is ``E[d^2]/2``: quadratic in t while the leak dominates,
quartic after the crossover ``t_c = 2 leak / gamma_*``. The quartic law is the corrected form of Corollary 6.3
of "The Geometry of Alignment Collapse", whose coupling gamma leaves out the term ``v^T Hess(l) v``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from theory.statistics import Scalar, ScoreStatistics

_SERIES_RADIUS = 1.0
# phi(d) = d^2 sum_k d^k / (k+2)!; for |d| <= 1 the first term left out is below 1/20! < 1e-18
_SERIES = [1.0 / math.factorial(k + 2) for k in range(18)]


def phi(d: Float[np.ndarray, "*shape"] | Scalar) -> Float[np.ndarray, "*shape"]:
    """``phi(d) = e^d - 1 - d >= 0``, to a relative accuracy of about 1e-15 for every d.

    The direct formula cancels near 0, so the power series replaces it for ``|d| <= 1``. Overflow gives inf.
    """
    x = np.asarray(d, dtype=np.float64)
    small = np.abs(x) <= _SERIES_RADIUS
    inner = np.where(small, x, 0.0)
    series = inner * inner * np.polynomial.polynomial.polyval(inner, _SERIES)
    with np.errstate(over="ignore"):
        direct = np.expm1(x) - np.minimum(x, 800.0)  # e^800 is inf already: no inf - inf
    return np.asarray(np.where(small, series, direct))


def utility_loss(d: Float[np.ndarray, " N"], weights: Float[np.ndarray, " M"] | None = None) -> float:
    """Utility loss ``E[-d]`` of log-probability changes ``d = l_theta - l_base``, as ``E[phi(d)]``.

    Because ``E[e^d] = sum_y pi_base(y) pi_theta(y)/pi_base(y) = 1``, both are the same expectation and both
    equal ``KL(pi_base || pi_theta)`` (Lemma 3.2); but every term of the second is non-negative, so that it
    stays accurate where the first has cancelled.

    Args:
        d: changes of log-probability.
        weights: probabilities of the outcomes under the base policy; None for samples drawn from it.

    Raises:
        ValueError: if there is no sample or the shapes differ.
    """
    if d.size == 0:
        raise ValueError("the utility loss is a mean over samples and needs at least one")
    if weights is None:
        return float(np.mean(phi(d)))
    if weights.shape != d.shape:
        raise ValueError(f"expected one weight for each of the {d.size} changes, got shape {weights.shape}")
    return float(weights @ phi(d))


def leak(stats: ScoreStatistics) -> float:
    """``sqrt(E (s.v)^2) = sqrt(v^T F v)``: the first-order speed of the policy itself."""
    return math.sqrt(stats.expectation(stats.velocity**2))


def onset_coefficient(stats: ScoreStatistics) -> float:
    """``gamma_* = sqrt(E (l'')^2)``, which sets the quartic onset.

    Raises:
        ValueError: if the statistics have no curvature.
    """
    return math.sqrt(stats.expectation(stats.second_derivative**2))


def crossover(leak: Scalar, onset: Scalar) -> float | None:
    """``t_c = 2 leak / gamma_*``, where the quadratic and quartic parts of the loss are equal.

    Infinite if only the onset coefficient vanishes, 0 if only the leak does, and None if both do: a path that
    moves the policy at neither order has no crossover.

    Raises:
        ValueError: if an argument is negative or not a number.
    """
    _require_non_negative(leak=leak, onset=onset)
    if onset == 0:
        return None if leak == 0 else math.inf
    return float(2 * leak / onset)


def correlation(stats: ScoreStatistics) -> float | None:
    """``E[l' l''] / (leak gamma_*)`` in [-1, 1], which sets the cubic part; None if either vanishes.

    It is not centred, because in the population ``E l' = 0``. At -1 the loss is zero again at the crossover.

    Raises:
        ValueError: if the statistics have no curvature.
    """
    scale = leak(stats) * onset_coefficient(stats)
    if scale == 0:
        return None
    return float(np.clip(stats.expectation(stats.velocity * stats.second_derivative) / scale, -1.0, 1.0))


@dataclass(frozen=True, eq=False)
class PredictedLoss:
    """Utility loss predicted to second order, at T times; the whole is the sum of its three parts.

    Attributes:
        t: (T,) times (learning rate x steps).
        utility_loss: (T,) ``E[(t l' + t^2/2 l'')^2] / 2``.
        leak_part: (T,) ``t^2 leak^2 / 2``.
        cross_part: (T,) ``t^3 E[l' l''] / 2``, of either sign.
        quartic_part: (T,) ``t^4 gamma_*^2 / 8``.
    """

    t: Float[np.ndarray, " T"]
    utility_loss: Float[np.ndarray, " T"]
    leak_part: Float[np.ndarray, " T"]
    cross_part: Float[np.ndarray, " T"]
    quartic_part: Float[np.ndarray, " T"]


def predicted_loss(stats: ScoreStatistics, t: Float[np.ndarray, " T"]) -> PredictedLoss:
    """Utility loss at times t, to second order in the path.

    From ``E[phi(d)] = E[d^2]/2 + O(E|d|^3)`` with ``d = t l' + t^2/2 l'' + O(t^3)``; the error is at most
    ``C t (t leak + t^2)^2``, uniformly in the leak.

    Raises:
        ValueError: if the statistics have no curvature, or a time is negative or not finite.
    """
    if not (np.isfinite(t).all() and (t >= 0).all()):
        raise ValueError("the times must be finite and not negative")
    first, second = stats.velocity, stats.second_derivative
    d = t[:, None] * first + t[:, None] ** 2 / 2 * second
    return PredictedLoss(
        t=t,
        utility_loss=d**2 @ stats.sample_weights / 2,
        leak_part=t**2 * leak(stats) ** 2 / 2,
        cross_part=t**3 * stats.expectation(first * second) / 2,
        quartic_part=t**4 * onset_coefficient(stats) ** 2 / 8,
    )


class Bounds(NamedTuple):
    """Lower and upper bound, of the shape of the times."""

    lower: Float[np.ndarray, "*T"]
    upper: Float[np.ndarray, "*T"]


def finite_time_bounds(
    t: Float[np.ndarray, "*T"] | Scalar,
    leak: Scalar,
    onset: Scalar,
    third: Float[np.ndarray, "*T"] | Scalar,
    drop: Float[np.ndarray, "*T"] | Scalar,
    rise: Float[np.ndarray, "*T"] | Scalar,
) -> Bounds:
    """Bounds on ``sqrt(2 utility_loss(t))`` that hold at every t, not only as t -> 0.

    ``sqrt(1 - D/3) (gamma_* t^2/2 - v t - M3 t^3/6)_+  <=  sqrt(2 u)
    <=  e^{D2/2} (gamma_* t^2/2 + v t + M3 t^3/6)``, from ``d^2/2 (1 - D/3) <= phi(d) <= d^2/2 e^{D2}`` for
    ``-D <= d <= D2``, Taylor's theorem with remainder ``t^3 M3 / 6`` in L2, and the triangle inequality. For
    D > 3 the lower bound is 0.

    Args:
        t: times.
        leak: v, root mean square of l'.
        onset: gamma_*, root mean square of l''.
        third: M3, the largest root mean square of l''' on [0, t].
        drop: D, the largest drop of a log-probability by time t (at least 0).
        rise: D2, the largest rise of a log-probability by time t (at least 0).

    Raises:
        ValueError: if an argument is negative or not a number.
    """
    _require_non_negative(t=t, leak=leak, onset=onset, third=third, drop=drop, rise=rise)
    time = np.asarray(t, dtype=np.float64)
    main, rest = onset * time**2 / 2, leak * time + third * time**3 / 6
    shrink = np.sqrt(np.maximum(1 - np.asarray(drop, dtype=np.float64) / 3, 0.0))
    grow = np.exp(np.asarray(rise, dtype=np.float64) / 2)
    return Bounds(np.asarray(shrink * np.maximum(main - rest, 0.0)), np.asarray(grow * (main + rest)))


def local_slope(t: Float[np.ndarray, " T"], u: Float[np.ndarray, " U"]) -> Float[np.ndarray, " T"]:
    """Local exponent ``d log u / d log t``: central differences inside, one-sided at the two ends.

    It is NaN where a loss that is needed is not positive. Exponents are 2 where the leak dominates, 3 at the
    crossover and 4 inside :func:`quartic_window`.

    Raises:
        ValueError: unless there are two or more times, positive and increasing, with one loss each.
    """
    log_t, log_u = _log_log(t, u)
    return np.gradient(log_u, log_t)


class ExponentFit(NamedTuple):
    """A power law ``u = prefactor * t^exponent`` fitted by least squares in the logarithms.

    Attributes:
        exponent: the slope.
        prefactor: loss at t = 1.
        standard_error: of the exponent; NaN for two points.
        num_points: how many times were used.
    """

    exponent: float
    prefactor: float
    standard_error: float
    num_points: int


def fit_exponent(t: Float[np.ndarray, " T"], u: Float[np.ndarray, " U"], window: tuple[Scalar, Scalar]) -> ExponentFit:
    """Fit a power law to the positive losses at times inside ``window`` (both ends included).

    Raises:
        ValueError: if the times are not positive and increasing, or fewer than two points are inside.
    """
    log_t, log_u = _log_log(t, u)
    inside = (t >= window[0]) & (t <= window[1]) & np.isfinite(log_u)
    count = int(inside.sum())
    if count < 2:
        raise ValueError(
            f"an exponent needs at least two positive losses inside the window [{window[0]:.3g}, "
            f"{window[1]:.3g}], got {count}; the times run from {t[0]:.3g} to {t[-1]:.3g}"
        )
    x, y = log_t[inside], log_u[inside]
    centred = x - x.mean()
    spread = centred @ centred
    slope = centred @ y / spread
    residual = y - y.mean() - slope * centred
    error = math.sqrt(residual @ residual / (count - 2) / spread) if count > 2 else math.nan
    return ExponentFit(float(slope), math.exp(y.mean() - slope * x.mean()), error, count)


def quartic_window(leak: Scalar, onset: Scalar, fifth: Scalar) -> tuple[float, float]:
    """The times between which a log-log slope of 4 (within 0.2) can be expected.

    ``(40 leak / gamma_*, 0.15 gamma_*^2 / |E[l'' l''']|)``: below, the leak still shows; above, the next term
    of the law, ``u = gamma_*^2 t^4/8 + E[l'' l'''] t^5/12``. Empty (low >= high) where there is no quartic
    regime; for ``onset = 0`` it is (inf, 0).

    Args:
        leak: root mean square of l'.
        onset: gamma_*, root mean square of l''.
        fifth: ``E[l'' l''']``, of either sign.

    Raises:
        ValueError: if ``leak`` or ``onset`` is negative, or an argument is not a number.
    """
    size = abs(float(fifth))
    _require_non_negative(leak=leak, onset=onset, fifth=size)
    if onset == 0:
        return math.inf, 0.0
    return float(40 * leak / onset), float(0.15 * onset**2 / size) if size > 0 else math.inf


def _require_non_negative(**values: np.ndarray | Scalar) -> None:
    for name, value in values.items():
        if not np.all(np.asarray(value) >= 0):  # also refuses NaN
            raise ValueError(f"{name} must be a number that is not negative, got {value}")


def _log_log(
    t: Float[np.ndarray, " T"], u: Float[np.ndarray, " U"]
) -> tuple[Float[np.ndarray, " T"], Float[np.ndarray, " T"]]:
    """Logarithms of times and losses, NaN where a loss is not positive."""
    if t.shape != u.shape or t.size < 2:
        raise ValueError(f"expected two or more times with one loss each, got shapes {t.shape} and {u.shape}")
    if not (t[0] > 0 and (np.diff(t) > 0).all()):
        raise ValueError("the times must be positive and strictly increasing, so that their logarithms exist")
    return np.log(t), np.log(np.where(u > 0, u, np.nan))
