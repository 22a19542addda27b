"""Rank correlations of predictors with an outcome, with bootstrap intervals over clusters.

Observations that share a cluster (fine-tunes on one set, say) are not independent: resamples draw whole clusters with
replacement, and an observation that is drawn twice counts twice. Both correlations are therefore taken with weights,
which for whole numbers are those of the sample with every observation repeated as often. Ties are treated as usual:
mean ranks in Spearman's rho, tau-b for Kendall's tau.

The percentile bootstrap over few clusters (fewer than about ten) is somewhat too narrow; nothing here corrects that.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from theory.resampling import bootstrap_weights, percentile_interval
from theory.statistics import Scalar

LEVEL = 0.95
_ROUNDING = 1e-9  # two ways to rank alike differ by so little


@dataclass(frozen=True)
class RankCorrelation:
    """Rank correlations of one predictor with one outcome.

    Attributes:
        spearman: Spearman's rho, or None where the predictor or the outcome is constant.
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


def weighted_spearman(
    x: Float[np.ndarray, " N"], y: Float[np.ndarray, " N"], weights: Float[np.ndarray, "B N"]
) -> Float[np.ndarray, " B"]:
    """Spearman's rho under each of B weightings; NaN where one of the variables is constant.

    Args:
        x: one variable.
        y: the other.
        weights: not negative, each row with a positive sum; only their proportions count.
    """
    _check(x, y)
    ranks = _mean_ranks(x, weights), _mean_ranks(y, weights)
    total = weights.sum(axis=1, keepdims=True)
    centred = [r - (weights * r).sum(axis=1, keepdims=True) / total for r in ranks]
    forms = [(weights * a * b).sum(axis=1) for a, b in ((centred[0], centred[1]), *((c, c) for c in centred))]
    return _ratio(forms[0], np.sqrt(forms[1] * forms[2]), _varies(x, weights) & _varies(y, weights))


def weighted_kendall(
    x: Float[np.ndarray, " N"], y: Float[np.ndarray, " N"], weights: Float[np.ndarray, "B N"]
) -> Float[np.ndarray, " B"]:
    """Kendall's tau-b under each of B weightings; NaN where one of the variables is constant. Arguments as above."""
    _check(x, y)
    orders = [(v[:, None] > v[None, :]).astype(np.float64) - (v[:, None] < v[None, :]) for v in (x, y)]
    pairs = [orders[0] * orders[1], orders[0] ** 2, orders[1] ** 2]
    forms = [((weights @ form) * weights).sum(axis=1) for form in pairs]
    return _ratio(forms[0], np.sqrt(forms[1] * forms[2]), _varies(x, weights) & _varies(y, weights))


def rank_correlation(
    x: Float[np.ndarray, " N"],
    y: Float[np.ndarray, " N"],
    clusters: Int[np.ndarray, " N"],
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
        resamples: 0 for no intervals.
        seed: of the resamples.
        level: confidence level.

    Raises:
        ValueError: if lengths do not fit, there is no observation, or a value is NaN.
    """
    once, draws = _weightings(x, clusters, resamples, seed)
    found = [(measure(x, y, once), measure(x, y, draws)) for measure in (weighted_spearman, weighted_kendall)]
    (rho, rhos), (tau, taus) = found
    return RankCorrelation(
        spearman=_plain(rho[0]),
        spearman_interval=_interval(rhos, level),
        kendall=_plain(tau[0]),
        kendall_interval=_interval(taus, level),
        count=len(x),
        clusters=len(np.unique(clusters)),
    )


def advantage(
    x: Float[np.ndarray, " N"],
    other: Float[np.ndarray, " N"],
    y: Float[np.ndarray, " N"],
    clusters: Int[np.ndarray, " N"],
    *,
    resamples: int,
    seed: int,
    level: Scalar = LEVEL,
) -> Advantage:
    """Whether a predictor ranks the outcome better than another one does, by Spearman's rho.

    Arguments as `rank_correlation`; `other` is the predictor to beat.
    """
    once, draws = _weightings(x, clusters, resamples, seed)
    ahead, behind = weighted_spearman(x, y, once)[0], weighted_spearman(other, y, once)[0]
    sign = -1 if behind < 0 else 1
    resampled = weighted_spearman(x, y, draws) - sign * weighted_spearman(other, y, draws)
    return Advantage(_plain(ahead - sign * behind), _interval(resampled, level), sign, len(x))


def _weightings(
    x: Float[np.ndarray, " N"], clusters: Int[np.ndarray, " N"], resamples: int, seed: int
) -> tuple[Float[np.ndarray, "1 N"], Float[np.ndarray, "B N"]]:
    """Each observation once, and the resamples."""
    if len(x) == 0:
        raise ValueError("a rank correlation needs at least one observation")
    once = np.full(len(x), 1.0)
    return once[None, :], bootstrap_weights(once / len(x), resamples, seed, clusters)


def _mean_ranks(values: Float[np.ndarray, " N"], weights: Float[np.ndarray, "B N"]) -> Float[np.ndarray, "B N"]:
    """Weight below each value and half of that at it: the mean rank, up to a constant."""
    below = (values[None, :] < values[:, None]).astype(np.float64)
    same = (values[None, :] == values[:, None]).astype(np.float64)
    return weights @ (below + same / 2).T


def _varies(values: Float[np.ndarray, " N"], weights: Float[np.ndarray, "B N"]) -> np.ndarray:
    """Whether a variable takes two values or more where the weights are positive: exactly, not up to rounding."""
    present = weights > 0
    high = np.where(present, values, -np.inf).max(axis=1)
    low = np.where(present, values, np.inf).min(axis=1)
    return np.asarray(high > low)


def _ratio(
    above: Float[np.ndarray, " B"], below: Float[np.ndarray, " B"], defined: np.ndarray
) -> Float[np.ndarray, " B"]:
    found = np.divide(above, below, out=np.full(len(above), np.nan), where=defined & (below > 0))
    return np.clip(found, -1.0, 1.0)


def _check(x: Float[np.ndarray, " N"], y: Float[np.ndarray, " M"]) -> None:
    if x.shape != y.shape:
        raise ValueError(f"expected one outcome for each value of the predictor, got {len(y)} for {len(x)}")
    if np.isnan(x).any() or np.isnan(y).any():
        raise ValueError("values to be ranked must be numbers, got NaN")


def _interval(values: Float[np.ndarray, " B"], level: Scalar) -> tuple[float, float] | None:
    return percentile_interval(values, float(level)) if len(values) else None


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
