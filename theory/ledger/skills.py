"""Skills whose policy, scores and Fisher matrix are known exactly.

A skill is a policy ``pi_theta(y | x)`` near the base point ``theta*``, all written in the displacement
``D = theta - theta*``, with the data drawn from the base policy itself (Assumption 1 of "The Geometry of
Alignment Collapse" holds by construction). Its outcomes are enumerated: row i has the probability
``weights[i]`` under prompts and base policy, so that every expectation is a sum.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol, runtime_checkable

import numpy as np

from theory import onset
from theory.ledger.maps import PolynomialMap, SmoothMap
from theory.series import Series, exponential, logarithm, multiply
from theory.statistics import ScoreStatistics

# Gauss-Hermite with three nodes: moments up to the fifth of a standard normal number are exact
_NODES = (-np.sqrt(3.0), 0.0, np.sqrt(3.0))
_NODE_WEIGHTS = (1 / 6, 2 / 3, 1 / 6)


@runtime_checkable
class Skill(Protocol):
    """What the ledger asks of a skill; N outcomes, n parameters."""

    @property
    def weights(self) -> np.ndarray:
        """Probabilities of the outcomes under the base policy, shape (N,)."""
        ...

    def scores(self) -> np.ndarray:
        """Gradients s of the log-probabilities at the base point, shape (N, n)."""
        ...

    def log_hessians(self) -> np.ndarray:
        """Hessians of the log-probabilities at the base point, shape (N, n, n)."""
        ...

    def fisher(self, displacement: np.ndarray) -> np.ndarray:
        """``F(theta* + D)``, the expectation over that point's own policy, shape (n, n)."""
        ...

    def utility_loss(self, displacement: np.ndarray) -> float:
        """``E[l(theta*) - l(theta* + D)]`` over the base policy, in its stable form."""
        ...


def statistics(skill: Skill, velocity: np.ndarray, acceleration: np.ndarray) -> ScoreStatistics:
    """Score statistics of a skill along ``theta' = v``, ``theta'' = a``, in float64."""
    v = velocity.astype(np.float64)
    return ScoreStatistics.from_scores(
        skill.scores().astype(np.float64),
        v,
        acceleration.astype(np.float64),
        fisher="exact",
        curvature=skill.log_hessians().astype(np.float64) @ v @ v,
        weights=skill.weights.astype(np.float64),
    )


def second_derivatives(skill: Skill, velocity: np.ndarray, acceleration: np.ndarray) -> np.ndarray:
    """``l'' = s.a + v^T Hess(l) v`` of every outcome, shape (N,), in the skill's own scalars."""
    return skill.scores() @ acceleration + skill.log_hessians() @ velocity @ velocity


def quartic_law(skill: Skill, velocity: np.ndarray, acceleration: np.ndarray) -> np.ndarray:
    """Coefficients of the utility loss up to t^4 where ``s.v = 0``: zeros and ``E[(l'')^2] / 8``, shape (5,)."""
    onset_square = skill.weights @ second_derivatives(skill, velocity, acceleration) ** 2
    return np.array([0, 0, 0, 0, onset_square / 8], dtype=object)


def cubic_moment(weights: np.ndarray, first: np.ndarray, second: np.ndarray) -> Any:
    """``E[l' l''] / 2 + E[(l')^3] / 6``, the coefficient of t^3 in the utility loss, in the scalars of the outcomes.

    Args:
        weights: probabilities of the outcomes, shape (N,).
        first: l' of every outcome, shape (N,).
        second: l'' of every outcome, shape (N,).
    """
    return weights @ (first * second / 2 + first**3 / 6)


def fisher_at_base(skill: Skill) -> np.ndarray:
    """``F = E[s s^T]`` at the base point as a sum over outcomes, shape (n, n), in the skill's own scalars."""
    scores = skill.scores()
    return (scores * skill.weights[:, None]).T @ scores


def fisher_derivative(skill: Skill, direction: np.ndarray) -> np.ndarray:
    """``DF(theta*)[u]``, shape (n, n), in the skill's own scalars.

    Differentiating ``F = E_theta[s s^T]``, whose expectation moves too, gives
    ``E[(Hess l u) s^T + s (Hess l u)^T + (s.u) s s^T]``.
    """
    scores, bent = skill.scores(), skill.log_hessians() @ direction
    weighted = scores * skill.weights[:, None]
    mixed = bent.T @ weighted
    return mixed + mixed.T + (weighted * (scores @ direction)[:, None]).T @ scores


@dataclass(frozen=True, eq=False)
class SoftmaxSkill:
    """``pi_D(k | x) = p_xk e^{z_xk(D)} / sum_j p_xj e^{z_xj(D)}`` for several prompts x.

    Because the logits vanish at the base point, every probability there is a given number p, and a skill over
    Fractions stays exact.

    Attributes:
        prompts: probabilities of the X prompts, shape (X,).
        base: p, shape (X, K), rows summing to 1, all positive.
        logits: z, a map to R^{X K}, outcomes of one prompt beside each other.
    """

    prompts: np.ndarray
    base: np.ndarray
    logits: SmoothMap

    @property
    def has_series(self) -> bool:
        """Whether :meth:`utility_loss_along` applies."""
        return isinstance(self.logits, PolynomialMap)

    @property
    def weights(self) -> np.ndarray:
        """Probabilities of prompt and outcome, shape (X K,)."""
        return (self.prompts[:, None] * self.base).ravel()

    def in_floats(self) -> SoftmaxSkill:
        """The skill in float64; its logits must be polynomial."""
        if not isinstance(self.logits, PolynomialMap):
            raise ValueError("a skill is put in float64 here only if its logits are polynomial")
        return SoftmaxSkill(self.prompts.astype(float), self.base.astype(float), self.logits.in_floats())

    def scores(self) -> np.ndarray:
        """``A - E A`` with the Jacobian A of the logits, shape (X K, n)."""
        return self._centred(self.logits.jacobian(self.logits.origin), self.base)

    def log_hessians(self) -> np.ndarray:
        """``Q - E Q - Cov(A)``, shape (X K, n, n)."""
        scores = self.scores()
        outer = scores[:, :, None] * scores[:, None, :]
        curved = self._centred(self.logits.hessian(self.logits.origin), self.base)
        return curved - (outer - self._centred(outer, self.base))

    def log_ratios(self, displacement: np.ndarray) -> np.ndarray:
        """``l(theta* + D) - l(theta*)``, shape (X K,), accurate for small D."""
        z = self._by_prompt(self.logits.value(displacement))
        return (z - np.log1p((self.base * np.expm1(z)).sum(axis=1, keepdims=True))).ravel()

    def utility_loss(self, displacement: np.ndarray) -> float:
        """``E[phi(d)]`` over the outcomes."""
        return onset.utility_loss(self.log_ratios(displacement), self.weights)

    def fisher(self, displacement: np.ndarray) -> np.ndarray:
        """Shape (n, n)."""
        base = self.base * np.exp(self._by_prompt(self.log_ratios(displacement)))
        scores = self._centred(self.logits.jacobian(displacement), base)
        return (scores * (self.prompts[:, None] * base).ravel()[:, None]).T @ scores

    def log_ratios_along(self, curve: Series) -> Series:
        """Coefficients of ``l(theta(t)) - l(theta*)`` along a curve with ``curve[0] = 0``, shape (p + 1, X K).

        The k-th one is ``l^(k) / k!``, exact over Fractions. The logits must be polynomial.
        """
        if not isinstance(self.logits, PolynomialMap):
            raise ValueError("the log-probabilities have a series here only if the logits are polynomial")
        z = self.logits.value_along(curve).reshape(len(curve), *self.base.shape)
        partition = (self.base * exponential(z)).sum(axis=2)
        partition[0] /= partition[0]  # it is 1, which a sum in float64 may miss by rounding
        return (z - logarithm(partition)[:, :, None]).reshape(len(curve), -1)

    def utility_loss_along(self, curve: Series) -> Series:
        """Coefficients of the utility loss ``E[-d]`` along a curve with ``curve[0] = 0``, shape (p + 1,)."""
        return -self.log_ratios_along(curve) @ self.weights

    def _by_prompt(self, values: np.ndarray) -> np.ndarray:
        return values.reshape(*self.base.shape, *values.shape[1:])

    def _centred(self, values: np.ndarray, base: np.ndarray) -> np.ndarray:
        """Values minus their mean over the outcomes of each prompt."""
        grouped = self._by_prompt(values)
        weight = base.reshape(*base.shape, *(1,) * (values.ndim - 1))
        return (grouped - (weight * grouped).sum(axis=1, keepdims=True)).reshape(values.shape)


@dataclass(frozen=True, eq=False)
class GaussianSkill:
    """``N(m(D), I / precision)`` with a smooth mean m in R^k, ``m(0) = 0``; the closed-form skill.

    The outcomes are the nodes of a tensor Gauss-Hermite rule: sums over them are exact expectations of
    polynomials up to degree five in each coordinate of y. Keep k at most 3, or use only what needs no nodes.

    Attributes:
        mean: m.
        precision: the inverse variance; the sharpness where the mean has orthonormal gradients.
        outputs: k.
    """

    mean: SmoothMap
    precision: float | int | Fraction
    outputs: int = 1

    @property
    def has_series(self) -> bool:
        """Whether :meth:`utility_loss_along` applies."""
        return isinstance(self.mean, PolynomialMap)

    @property
    def weights(self) -> np.ndarray:
        """Shape (3^k,)."""
        return np.array([np.prod(w) for w in itertools.product(_NODE_WEIGHTS, repeat=self.outputs)])

    def scores(self) -> np.ndarray:
        """``precision (y - m) . Dm``, shape (3^k, n)."""
        return self.precision * self._noise() @ self.mean.jacobian(self.mean.origin)

    def log_hessians(self) -> np.ndarray:
        """``precision ((y - m) . D^2 m - Dm^T Dm)``, shape (3^k, n, n)."""
        bent = np.tensordot(self._noise(), self.mean.hessian(self.mean.origin), axes=1)
        return self.precision * bent - self.fisher(self.mean.origin)

    def fisher(self, displacement: np.ndarray) -> np.ndarray:
        """``precision Dm^T Dm``, shape (n, n)."""
        jacobian = self.mean.jacobian(displacement)
        return self.precision * jacobian.T @ jacobian

    def utility_loss(self, displacement: np.ndarray) -> float:
        """``precision |m(D)|^2 / 2``."""
        shift = self.mean.value(displacement)
        return float(self.precision * shift @ shift / 2)

    def utility_loss_along(self, curve: Series) -> Series:
        """Coefficients of the utility loss along a curve with ``curve[0] = 0``; the mean must be polynomial."""
        if not isinstance(self.mean, PolynomialMap):
            raise ValueError("the utility loss has a series here only if the mean is polynomial")
        shift = self.mean.value_along(curve)
        return self.precision * multiply(shift, shift).sum(axis=1) / 2

    def _noise(self) -> np.ndarray:
        nodes = np.array(list(itertools.product(_NODES, repeat=self.outputs)))
        return nodes / np.sqrt(float(self.precision))
