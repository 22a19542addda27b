"""Rank correlations of predictors with an outcome, with bootstrap intervals over clusters.

Observations that share a cluster (fine-tunes on one set, say) are not independent: resamples draw whole clusters with
replacement, and an observation that is drawn twice counts twice. Both correlations are therefore taken with weights,
which for whole numbers are those of the sample with every observation repeated as often. Ties are treated as usual:
mean ranks in Spearman's rho, tau-b for Kendall's tau.

Where observations fall into strata (fine-tunes by different methods) that differ in level, a pooled correlation is that
of the strata as much as that within them. With strata given, an observation is ranked among those of its own stratum
only: Spearman's rho is the correlation of these ranks, as shares of the stratum and about its mean, over all strata
together; Kendall's tau-b counts the pairs within strata. Between strata of one size, without ties, such a rho is the
mean of the strata's own.

The intervals are percentiles over resampled clusters, not corrected but for holding the measured value. With nine
clusters of four, two of them in each of two strata, those of rho cover its value in 93 to 97 of a hundred simulated
samples, and in 88 where rho is 0.86 (benchmarks/study_power.py); what they mean with fewer than five clusters is
anyone's guess.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from theory.resampling import bootstrap_weights, percentile_interval
from theory.statistics import Scalar

LEVEL = 0.95
_ROUNDING = 1e-9  # two ways to rank alike differ by so little


@dataclass(frozen=True)
class RankCorrelation:
    """Rank correlations of one predictor with one outcome.

    Attributes:
        spearman: Spearman's rho, or None where the predictor or the outcome is constant, within every stratum if there
            are strata.
        spearman_interval: percentile bootstrap interval over clusters; None without resamples.
        kendall: Kendall's tau-b, or None likewise.
        kendall_interval: likewise.
        count: observations.
        clusters: number of different clusters.
    """

    spearman: float | None
    spearman_interval: tuple[float, float] | None
    kendall: float | None
    kendall_interval: tuple[float, float] | None
    count: int
    clusters: int


@dataclass(frozen=True)
class Advantage:
    """By how much one predictor's rank correlation exceeds another's, on the same observations.

    Attributes:
        difference: ``rho(predictor, outcome) - sign * rho(other, outcome)``; None where either is undefined.
        interval: percentile bootstrap interval over clusters, both correlations taken on the same resamples.
        sign: +1 or -1, the direction in which the other predictor is read: that of its own correlation with the
            outcome, which favours it.
        count: observations.
    """

    difference: float | None
    interval: tuple[float, float] | None
    sign: int
    count: int

    @property
    def better(self) -> bool:
        """Whether the whole interval lies above zero."""
        return self.interval is not None and self.interval[0] > _ROUNDING

    @property
    def worse(self) -> bool:
        """Whether the whole interval lies below zero."""
        return self.interval is not None and self.interval[1] < -_ROUNDING


def weighted_spearman(
    x: Float[np.ndarray, " N"],
    y: Float[np.ndarray, " N"],
    weights: Float[np.ndarray, "B N"],
    strata: Int[np.ndarray, " N"] | None = None,
) -> Float[np.ndarray, " B"]:
    """Spearman's rho under each of B weightings; NaN where one of the variables is constant (within all strata).

    Args:
        x: one variable.
        y: the other.
        weights: not negative, each row with a positive sum; only their proportions count.
        strata: number of each observation's stratum; None for one stratum.
    """
    _check(x, y)
    together = _together(strata, len(x))
    a, b = (_centred_ranks(v, weights, together) for v in (x, y))
    forms = [(weights * left * right).sum(axis=1) for left, right in ((a, b), (a, a), (b, b))]
    defined = _varies(x, weights, strata) & _varies(y, weights, strata)
    return _ratio(forms[0], np.sqrt(forms[1] * forms[2]), defined)


def weighted_kendall(
    x: Float[np.ndarray, " N"],
    y: Float[np.ndarray, " N"],
    weights: Float[np.ndarray, "B N"],
    strata: Int[np.ndarray, " N"] | None = None,
) -> Float[np.ndarray, " B"]:
    """Kendall's tau-b under each of B weightings; NaN as for rho. Arguments as `weighted_spearman`."""
    _check(x, y)
    together = _together(strata, len(x))
    orders = [together * ((v[:, None] > v[None, :]).astype(np.float64) - (v[:, None] < v[None, :])) for v in (x, y)]
    pairs = [orders[0] * orders[1], orders[0] ** 2, orders[1] ** 2]
    forms = [((weights @ form) * weights).sum(axis=1) for form in pairs]
    defined = _varies(x, weights, strata) & _varies(y, weights, strata)
    return _ratio(forms[0], np.sqrt(forms[1] * forms[2]), defined)


def rank_correlation(
    x: Float[np.ndarray, " N"],
    y: Float[np.ndarray, " N"],
    clusters: Int[np.ndarray, " N"],
    strata: Int[np.ndarray, " N"] | None = None,
    *,
    resamples: int,
    seed: int,
    level: Scalar = LEVEL,
) -> RankCorrelation:
    """Both rank correlations with their intervals.

    Resamples in which a variable is constant have no correlation and are left out of the interval.

    Args:
        x: the predictor; finite, or infinite where that is its rank.
        y: the outcome.
        clusters: which observations are resampled together.
        strata: which observations are ranked among each other; None for all.
        resamples: 0 for no intervals.
        seed: of the resamples.
        level: confidence level.

    Raises:
        ValueError: if lengths do not fit, there is no observation, or a value is NaN.
    """
    once, draws = _weightings(x, clusters, resamples, seed)
    measures = (weighted_spearman, weighted_kendall)
    (rho, rhos), (tau, taus) = [(measure(x, y, once, strata), measure(x, y, draws, strata)) for measure in measures]
    return RankCorrelation(
        spearman=_plain(rho[0]),
        spearman_interval=_interval(rhos, rho[0], level),
        kendall=_plain(tau[0]),
        kendall_interval=_interval(taus, tau[0], level),
        count=len(x),
        clusters=len(np.unique(clusters)),
    )


def advantage(
    x: Float[np.ndarray, " N"],
    other: Float[np.ndarray, " N"],
    y: Float[np.ndarray, " N"],
    clusters: Int[np.ndarray, " N"],
    strata: Int[np.ndarray, " N"] | None = None,
    *,
    resamples: int,
    seed: int,
    level: Scalar = LEVEL,
) -> Advantage:
    """Whether a predictor ranks the outcome better than another one does, by Spearman's rho.

    Arguments as `rank_correlation`; `other` is the predictor to beat.
    """
    once, draws = _weightings(x, clusters, resamples, seed)
    ahead, behind = (weighted_spearman(v, y, once, strata)[0] for v in (x, other))
    sign = -1 if behind < 0 else 1
    resampled = weighted_spearman(x, y, draws, strata) - sign * weighted_spearman(other, y, draws, strata)
    difference = ahead - sign * behind
    return Advantage(_plain(difference), _interval(resampled, difference, level), sign, len(x))


def _weightings(
    x: Float[np.ndarray, " N"], clusters: Int[np.ndarray, " N"], resamples: int, seed: int
) -> tuple[Float[np.ndarray, "1 N"], Float[np.ndarray, "B N"]]:
    """Each observation once, and the resamples."""
    if len(x) == 0:
        raise ValueError("a rank correlation needs at least one observation")
    once = np.full(len(x), 1.0)
    return once[None, :], bootstrap_weights(once / len(x), resamples, seed, clusters)


def _together(strata: Int[np.ndarray, " N"] | None, count: int) -> Float[np.ndarray, "N N"]:
    """1 for two observations of one stratum, 0 for others."""
    numbers = np.zeros(count, dtype=np.int64) if strata is None else strata
    return (numbers[:, None] == numbers[None, :]).astype(np.float64)


def _centred_ranks(
    values: Float[np.ndarray, " N"], weights: Float[np.ndarray, "B N"], together: Float[np.ndarray, "N N"]
) -> Float[np.ndarray, "B N"]:
    """Mean ranks within strata, as shares of the stratum's weight, minus 1/2, which is their mean in every stratum."""
    below = together * (values[None, :] < values[:, None])
    same = together * (values[None, :] == values[:, None])
    ranks, whole = weights @ (below + same / 2).T, weights @ together
    return np.divide(ranks, whole, out=np.full_like(ranks, 0.5), where=whole > 0) - 0.5


def _varies(
    values: Float[np.ndarray, " N"], weights: Float[np.ndarray, "B N"], strata: Int[np.ndarray, " N"] | None
) -> Bool[np.ndarray, " B"]:
    """Whether a variable takes two values or more in a stratum where the weights are positive: exactly."""
    numbers = np.zeros(len(values), dtype=np.int64) if strata is None else strata
    found = np.zeros(len(weights), dtype=bool)
    for number in np.unique(numbers):
        present = (weights > 0) & (numbers == number)
        high = np.where(present, values, -np.inf).max(axis=1)
        low = np.where(present, values, np.inf).min(axis=1)
        found |= present.any(axis=1) & (high > low)
    return found


def _ratio(
    above: Float[np.ndarray, " B"], below: Float[np.ndarray, " B"], defined: Bool[np.ndarray, " B"]
) -> Float[np.ndarray, " B"]:
    found = np.divide(above, below, out=np.full(len(above), np.nan), where=defined & (below > 0))
    return np.clip(found, -1.0, 1.0)


def _check(x: Float[np.ndarray, " N"], y: Float[np.ndarray, " M"]) -> None:
    if x.shape != y.shape:
        raise ValueError(f"expected one outcome for each value of the predictor, got {len(y)} for {len(x)}")
    if np.isnan(x).any() or np.isnan(y).any():
        raise ValueError("values to be ranked must be numbers, got NaN")


def _interval(values: Float[np.ndarray, " B"], measured: float, level: Scalar) -> tuple[float, float] | None:
    """Percentiles, widened to hold the measured value: resamples have more ties, and can all lie on one side of it."""
    found = percentile_interval(values, float(level)) if len(values) else None
    if found is None or np.isnan(measured):
        return None
    return min(found[0], float(measured)), max(found[1], float(measured))


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
