"""The null model: how much of a random direction a subspace catches by chance.

Let g be uniform on the unit sphere of R^n and P an orthogonal projector of rank d (Theorem 4.1 of "The
Geometry of Alignment Collapse"). Its energy ``|P g|^2`` is Beta distributed with parameters d/2 and
(n - d)/2: write ``g = z / |z|`` with z standard normal, so that ``|P g|^2`` is a chi-square with d degrees of
freedom over itself plus an independent one with n - d. Nothing here is sampled. Chernoff's bound on the tails
is that of Dasgupta and Gupta, "An elementary proof of a theorem of Johnson and Lindenstrauss" (2003).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from theory.statistics import Scalar

# the largest c with P(| |Pg|^2 - d/n | >= eps d/n) <= 2 exp(-c eps^2 d) for all d <= n and eps in (0, 1)
CHERNOFF_CONSTANT = (1 - math.log(2)) / 2


@dataclass(frozen=True)
class OverlapLaw:
    """The law of ``|P g|^2`` for a uniformly random unit vector g and a projector P of rank d in R^n.

    Attributes:
        dimension: n.
        rank: d.

    Raises:
        ValueError: if d is not in 1..n.
    """

    dimension: int
    rank: int

    def __post_init__(self) -> None:
        """Validate."""
        if not 1 <= self.rank <= self.dimension:
            raise ValueError(
                f"a projector in {self.dimension} dimensions has a rank in 1..{self.dimension}, got {self.rank}"
            )

    @property
    def mean(self) -> float:
        """``d / n``, the energy that chance gives."""
        return self.rank / self.dimension

    @property
    def variance(self) -> float:
        """``2 d (n - d) / (n^2 (n + 2))``."""
        return 2 * self.mean * (1 - self.mean) / (self.dimension + 2)

    @property
    def _beta(self) -> tuple[float, float]:
        return self.rank / 2, (self.dimension - self.rank) / 2

    def cdf(self, energy: Float[np.ndarray, "*E"] | Scalar) -> Float[np.ndarray, "*E"]:
        """``P(|P g|^2 <= energy)``: 0 below 0, and 1 from 1 on."""
        from scipy.special import betainc

        x = _numbers(energy)
        if self.rank == self.dimension:  # P = I: the energy is 1
            return np.asarray((x >= 1).astype(np.float64))
        return np.asarray(betainc(*self._beta, np.clip(x, 0.0, 1.0)))

    def sf(self, energy: Float[np.ndarray, "*E"] | Scalar) -> Float[np.ndarray, "*E"]:
        """``P(|P g|^2 >= energy)``, with its relative accuracy where it is tiny."""
        from scipy.special import betaincc

        x = _numbers(energy)
        if self.rank == self.dimension:
            return np.asarray((x <= 1).astype(np.float64))
        return np.asarray(betaincc(*self._beta, np.clip(x, 0.0, 1.0)))

    def quantile(self, probability: Float[np.ndarray, "*E"] | Scalar) -> Float[np.ndarray, "*E"]:
        """The energy that ``|P g|^2`` stays below with this probability.

        Raises:
            ValueError: if a probability is not in [0, 1].
        """
        from scipy.special import betaincinv, betaln

        p = np.asarray(probability, dtype=np.float64)
        if not np.all((p >= 0) & (p <= 1)):
            raise ValueError(f"a quantile needs probabilities in [0, 1], got {probability}")
        if self.rank == self.dimension:
            return np.ones(p.shape)
        a, b = self._beta
        energy = np.asarray(betaincinv(a, b, p))
        lost = np.isnan(energy)  # SciPy's answer to some p below 1e-110, where p = x^a / (a B(a, b))
        tiny = np.exp((np.log(np.where(lost, p, 1.0)) + math.log(a) + betaln(a, b)) / a)
        return np.where(lost, tiny, energy)

    def deviation_probability(self, eps: Scalar) -> float:
        """``P(| |P g|^2 - d/n | >= eps d/n)``, exactly; the left side of Lemma A.3.

        Raises:
            ValueError: if eps is negative or not a number.
        """
        if not eps >= 0:
            raise ValueError(f"a relative deviation cannot be negative, got {eps}")
        if eps == 0:
            return 1.0
        return float(self.cdf((1 - eps) * self.mean) + self.sf((1 + eps) * self.mean))

    def chernoff_exponent(self, energy: Float[np.ndarray, "*E"] | Scalar) -> Float[np.ndarray, "*E"]:
        """``(n/2) KL(Bernoulli(d/n) || Bernoulli(energy))``: 0 at the mean, infinite outside [0, 1].

        The tail beyond ``energy``, on its side of the mean, has probability at most exp of minus this
        (Dasgupta and Gupta 2003, Lemma 2.2: with ``energy = beta d/n`` it is
        ``beta^(d/2) (1 + (1 - beta) d/(n - d))^((n - d)/2)``).

        Raises:
            ValueError: if an energy is not a number.
        """
        from scipy.special import kl_div

        x = _numbers(energy)
        # kl_div(a, b) = a log(a/b) - a + b, infinite for b < 0; the added terms cancel in the sum
        p = self.mean
        return np.asarray(self.dimension / 2 * (kl_div(p, x) + kl_div(1 - p, 1 - x)))

    def enrichment(self, energy: Scalar) -> Enrichment:
        """How far an observed energy ``|P v|^2 / |v|^2`` is above chance.

        Args:
            energy: share of the squared norm, in [0, 1].

        Raises:
            ValueError: if it is not in [0, 1].
        """
        if not 0 <= energy <= 1:
            raise ValueError(
                f"the energy is the share |P v|^2 / |v|^2 of a squared norm and lies in [0, 1], got {energy}"
            )
        return Enrichment(float(energy) / self.mean, float(self.sf(energy)), float(self.cdf(energy)))


class Enrichment(NamedTuple):
    """An observed energy against the null model.

    Attributes:
        ratio: energy over d/n; 1 is chance.
        p_value: exact probability that a random direction has at least this energy.
        p_value_low: exact probability that it has at most this energy.
    """

    ratio: float
    p_value: float
    p_value_low: float


def concentration_exponent(rank: int, eps: Scalar) -> float:
    """``c eps^2 d`` with ``c = (1 - ln 2)/2``: each tail of Lemma A.3 has probability at most exp of minus this.

    Raises:
        ValueError: if the rank is not positive, or eps not in (0, 1).
    """
    if rank < 1:
        raise ValueError(f"the rank must be positive, got {rank}")
    if not 0 < eps < 1:
        raise ValueError(f"the bound is for relative deviations in (0, 1), got {eps}")
    return float(CHERNOFF_CONSTANT * eps**2 * rank)


def concentration_bound(rank: int, eps: Scalar) -> float:
    """``min(1, 2 exp(-c eps^2 d))`` with ``c = (1 - ln 2)/2``: Lemma A.3's bound, in every dimension n >= d.

    It is below 1 only for ``d > ln 2 / (c eps^2)``: never for d <= 4.

    Raises:
        ValueError: if the rank is not positive, or eps not in (0, 1).
    """
    return min(1.0, 2 * math.exp(-concentration_exponent(rank, eps)))


def _numbers(energy: Float[np.ndarray, "*E"] | Scalar) -> Float[np.ndarray, "*E"]:
    x = np.asarray(energy, dtype=np.float64)
    if np.isnan(x).any():
        raise ValueError("an energy must be a number, got NaN")
    return x
