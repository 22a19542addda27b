"""A skill, a fine-tuning loss, and the gradient flow of the one seen by the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from theory.aic import Estimate, estimate
from theory.ledger.maps import NegativeAngle, PolynomialMap, Radius, SmoothMap, polynomial, symmetric
from theory.ledger.skills import GaussianSkill, SoftmaxSkill, fisher_at_base, statistics
from theory.series import Series, integral_curve, rational
from theory.spectra import projector
from theory.statistics import ScoreStatistics

FLOW_TOLERANCE = 1e-13  # relative, of the integrator: an order of magnitude above rounding


@dataclass(frozen=True, eq=False)
class Scenario:
    """Gradient flow ``theta' = -grad L`` from the base point of a skill.

    Attributes:
        skill: the skill.
        loss: the fine-tuning loss L, a map with one output.
        rank: d, of the projector on the top eigenspace.
    """

    skill: SoftmaxSkill | GaussianSkill
    loss: SmoothMap
    rank: int = 1

    @cached_property
    def gradient(self) -> np.ndarray:
        """g, shape (n,)."""
        return self.loss.jacobian(self.loss.origin)[0]

    @cached_property
    def hessian(self) -> np.ndarray:
        """H, shape (n, n)."""
        return self.loss.hessian(self.loss.origin)[0]

    @property
    def velocity(self) -> np.ndarray:
        """``v = -g``."""
        return -self.gradient

    @property
    def acceleration(self) -> np.ndarray:
        """``a = H g``."""
        return self.hessian @ self.gradient

    @cached_property
    def statistics(self) -> ScoreStatistics:
        """Score statistics along the flow, in float64."""
        return statistics(self.skill, self.velocity, self.acceleration)

    @cached_property
    def estimate(self) -> Estimate:
        """Every number of the alignment instability condition, with no bootstrap."""
        return estimate(self.statistics, min(self.rank, self.statistics.num_samples), resamples=0, splits=1)

    @cached_property
    def fisher(self) -> np.ndarray:
        """F at the base point in float64, shape (n, n)."""
        return fisher_at_base(self.skill).astype(np.float64)

    @cached_property
    def projector(self) -> np.ndarray:
        """P, on the top-d eigenspace of F, shape (n, n)."""
        return projector(self.fisher, self.rank)

    def flow(self, times: np.ndarray) -> np.ndarray:
        """Displacements at increasing times, shape (T, n), by SciPy's DOP853 (the circle's in closed form)."""
        if isinstance(self.loss, NegativeAngle):
            return np.stack([-2 * np.sin(times / 2) ** 2, np.sin(times)], axis=1)  # cos t - 1 without cancellation
        return integrate(lambda d: -self.loss.jacobian(d)[0], self.loss.origin, times)

    def utility_losses(self, times: np.ndarray) -> np.ndarray:
        """Utility loss at increasing times, shape (T,)."""
        return np.array([self.skill.utility_loss(d) for d in self.flow(times)])

    @cached_property
    def quartic_coefficient(self) -> Any:
        """The coefficient of t^4 in the utility loss, measured on the path itself, in the scenario's scalars.

        It is read off the power series where skill and loss have one (exactly over Fractions). Otherwise it
        is the limit of ``utility loss / t^4`` extrapolated from finite times, to a relative accuracy of about
        1e-10, and needs a path on which ``F g = 0``.
        """
        if isinstance(self.loss, PolynomialMap) and self.skill.has_series:
            return self.skill.utility_loss_along(self.series(4))[4]
        rate = max(np.linalg.norm(self.gradient), np.linalg.norm(self.hessian))
        times = 2.0 ** np.arange(-8, -3) / rate
        return limit_at_zero(times, self.utility_losses(times) / times**4)

    def series(self, order: int) -> Series:
        """The flow as a power series, exact over Fractions; the loss must be polynomial."""
        loss = self.loss
        if not isinstance(loss, PolynomialMap):
            raise ValueError("the flow has a series here only if the loss is polynomial")
        return integral_curve(lambda curve: -loss.jacobian_along(curve)[:, 0], self.loss.origin, order)


def integrate(field: Callable[[np.ndarray], np.ndarray], start: np.ndarray, times: np.ndarray) -> np.ndarray:
    """The solution of ``theta' = field(theta)`` from time 0 at increasing times, shape (T, n), by DOP853."""
    from scipy.integrate import solve_ivp

    solution = solve_ivp(
        lambda _, point: field(point),
        (0.0, float(times[-1])),
        start,
        method="DOP853",
        t_eval=times,
        rtol=FLOW_TOLERANCE,
        atol=FLOW_TOLERANCE * 1e-6,
    )
    return solution.y.T


def limit_at_zero(times: np.ndarray, values: np.ndarray) -> float:
    """The value at t = 0 of the polynomial through the points (Richardson's extrapolation in t).

    The error is of the order of the product of the times.
    """
    others = times[None] - np.diag(times - 1.0)  # row i: every time, with 1 in place of its own
    gaps = times[None] - times[:, None] + np.eye(len(times))
    return float(np.prod(others / gaps, axis=1) @ values)


def circle(sharpness: float = 1.0) -> Scenario:
    """Skill ``N(|theta|, 1/sharpness)`` at (1, 0), loss minus the angle: the flow stays on the circle."""
    return Scenario(GaussianSkill(Radius(), sharpness), NegativeAngle())


def tight_family(beta: float, sharpness: float = 1.0) -> Scenario:
    """Skill ``N(|theta|, 1/sharpness)`` at (1, 0), loss ``-y + beta (x - 1) y``: Theorem Q's bound is tight."""
    skill = GaussianSkill(Radius(), sharpness)
    return Scenario(skill, quadratic_loss(np.array([0.0, -1.0]), np.array([[0.0, beta], [beta, 0.0]])))


def quadratic_loss(gradient: np.ndarray, hessian: np.ndarray) -> PolynomialMap:
    """``L = g.D + D^T H D / 2``."""
    return polynomial(gradient[None], hessian[None])


class Coefficients:
    """Random coefficients of polynomial maps, as float64 or as small Fractions."""

    def __init__(self, rng: np.random.Generator, exact: bool = False) -> None:
        self.rng = rng
        self.exact = exact

    def tensor(self, *shape: int) -> np.ndarray:
        """Independent coefficients: standard normal, or Fractions of size about 1."""
        if self.exact:
            return rational(self.rng.integers(-6, 7, shape)) / rational(self.rng.integers(1, 5, shape))
        return self.rng.standard_normal(shape)

    def probabilities(self, *shape: int) -> np.ndarray:
        """Positive, summing to 1 along the last axis, from 1/13 to 12 times each other."""
        counts = self.rng.integers(1, 13, shape)
        values: Any = rational(counts) if self.exact else counts.astype(np.float64)
        return values / values.sum(axis=-1, keepdims=True)

    def map(self, outputs: int, dimension: int, degree: int = 3, kernel: int = 0) -> PolynomialMap:
        """A random polynomial map whose linear part vanishes on the last ``kernel`` coordinates."""
        linear = self.tensor(outputs, dimension)
        if kernel:
            linear[:, dimension - kernel :] *= 0
        quadratic = symmetric(self.tensor(outputs, dimension, dimension), 2) if degree > 1 else None
        cubic = symmetric(self.tensor(outputs, dimension, dimension, dimension), 3) if degree > 2 else None
        return polynomial(linear, quadratic, cubic)

    def softmax(self, dimension: int, prompts: int, outcomes: int, degree: int = 3, kernel: int = 0) -> SoftmaxSkill:
        """A random softmax skill; F vanishes on the last ``kernel`` coordinates."""
        logits = self.map(prompts * outcomes, dimension, degree, kernel)
        return SoftmaxSkill(self.probabilities(prompts), self.probabilities(prompts, outcomes), logits)

    def loss(self, dimension: int, degree: int = 3, kernel: int = 0) -> PolynomialMap:
        """A random loss; with ``kernel`` its gradient lives on the last coordinates only, so ``F g = 0``."""
        loss = self.map(1, dimension, degree)
        if kernel:
            loss.linear[:, : dimension - kernel] *= 0
        return loss

    def scenario(
        self, dimension: int, prompts: int, outcomes: int, *, degree: int = 3, kernel: int = 0, rank: int = 1
    ) -> Scenario:
        """A random skill and loss; ``kernel`` as in both."""
        skill = self.softmax(dimension, prompts, outcomes, degree, kernel)
        return Scenario(skill, self.loss(dimension, 3, kernel), rank)


def prescribed_spectrum(
    rng: np.random.Generator, dimension: int, prompts: int, outcomes: int, gap: float, sharpness: float
) -> tuple[SoftmaxSkill, int]:
    """A random softmax skill whose F has the eigenvalue ``sharpness`` after a given gap, and the rank d before it.

    The gap is in units of the sharpness. ``prompts (outcomes - 1)`` must be at least the dimension.
    """
    skill = Coefficients(rng).softmax(dimension, prompts, outcomes)
    rank = int(rng.integers(1, dimension))
    eigenvalues = np.concatenate([rng.uniform(1.0, 2.0, rank) + gap, rng.uniform(0.1, 1.0, dimension - rank)])
    eigenvalues[rank - 1 : rank + 1] = 1.0 + gap, 1.0
    axes = np.linalg.qr(rng.standard_normal((dimension, dimension)))[0]
    root = np.sqrt(sharpness * eigenvalues)[:, None] * axes.T
    lower = np.linalg.cholesky(fisher_at_base(skill))
    logits = polynomial(
        skill.logits.jacobian(skill.logits.origin) @ np.linalg.solve(lower.T, root),
        skill.logits.hessian(skill.logits.origin),
    )
    return SoftmaxSkill(skill.prompts, skill.base, logits), rank
