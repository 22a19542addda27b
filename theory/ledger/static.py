"""Models on which a static expansion of the utility loss, at a fixed displacement, is tried.

Each knows what is true of it (``expansion``) and what Proposition 3.3 prints (``printed``).
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import partial

import numpy as np

from theory.ledger.claim import Slack, at_least, exact
from theory.ledger.maps import PolynomialMap
from theory.ledger.skills import SoftmaxSkill, cubic_moment, fisher_at_base
from theory.series import Series, constant, logarithm, zeros

_bounded = partial(
    at_least,
    tolerance=1e-9,
    reason="the remainder is a difference of numbers up to theta^(-1/2) times larger, each good to 1e-15",
)
_ORDER = 3


@dataclass(frozen=True, eq=False)
class SoftmaxLine:
    """A rational softmax skill, beside outcomes that the base policy never produces, along a straight line.

    The policy moves the mass ``m = sum_j off_j(D)`` to those outcomes and shares ``1 - m`` among the others as
    the softmax says.

    Attributes:
        skill: the softmax skill, over Fractions, with polynomial logits.
        direction: D, shape (n,), of Fractions.
        off: probabilities of the outcomes outside the base support; values and gradients vanish at ``D = 0``.
    """

    skill: SoftmaxSkill
    direction: np.ndarray
    off: PolynomialMap

    def loss_series(self) -> Series:
        """Coefficients of the utility loss of ``tau D`` up to tau^3, shape (4,)."""
        line = constant(self.skill.logits.origin, _ORDER)
        line[1] = self.direction
        missing = self.off.value_along(line).sum(axis=1)
        one = constant(np.array(Fraction(1), dtype=object), _ORDER)
        return self.skill.utility_loss_along(line) - logarithm(one - missing)

    def quadratic(self) -> Fraction:
        """``D^T F D / 2``, from the scores."""
        return self.direction @ fisher_at_base(self.skill) @ self.direction / 2

    def off_terms(self) -> tuple[Fraction, Fraction]:
        """Quadratic and cubic part of m."""
        d = self.direction
        return (self.off.quadratic @ d @ d).sum() / 2, (self.off.cubic @ d @ d @ d).sum() / 6

    def cubic(self) -> Fraction:
        """``E[(s.D) D^T Hess(l) D] / 2 + E[(s.D)^3] / 6``."""
        first = self.skill.scores() @ self.direction
        second = self.skill.log_hessians() @ self.direction @ self.direction
        return cubic_moment(self.skill.weights, first, second)

    def expansion(self) -> Slack:
        """The utility loss to third order: the Fisher form, the mass outside the support, the cubic."""
        extra, extra_cubic = self.off_terms()
        truth = zeros((_ORDER + 1,), self.direction)
        truth[2], truth[3] = self.quadratic() + extra, self.cubic() + extra_cubic
        return exact(self.loss_series(), truth)

    def printed(self) -> Slack:
        """The quadratic coefficient is ``D^T F D / 2``."""
        return exact(self.loss_series()[2], self.quadratic())


@dataclass(frozen=True)
class WeierstrassTower:
    """``pi_theta(k, +-) = 2^(-k-1) (1 +- sin(2^(2k/5) theta) / 2)`` for k = 1, 2, ...: smooth for every outcome.

    Its Fisher information is finite, but the third derivatives of the log-probabilities are not summable.

    Attributes:
        theta: the displacement, positive and below 1.
    """

    theta: float

    # sum_k 2^(-k) min(x^2/8, x^4/24) with x = 2^(2k/5) theta, split at x = sqrt 3: two geometric series
    CONSTANT = 3**0.75 / 24 / (1 - 2**-0.6) + 3**-0.25 / 8 / (1 - 2**-0.2)
    FISHER = 0.25 * 2**-0.2 / (1 - 2**-0.2)

    def remainder(self, theta: float) -> float:
        """Utility loss minus ``F theta^2 / 2``, good for theta above 2^-60."""
        k = np.arange(1, 241)
        # -log(1 - sin^2/4)/2 is the mean of -log(1 +- sin/2) over the two signs
        losses = -0.5 * np.log1p(-0.25 * np.sin(2 ** (0.4 * k) * theta) ** 2)
        return float(losses @ 0.5**k - self.FISHER * theta**2 / 2)

    def expansion(self) -> Slack:
        """``|Delta u - F theta^2/2| <= C theta^(5/2)``."""
        bound = self.CONSTANT * self.theta**2.5
        return _bounded(bound, abs(self.remainder(self.theta)))

    def printed(self) -> Slack:
        """The remainder over theta^3 stays within a factor 2 when theta falls to theta / 2^16."""
        small = self.theta / 2**16
        here, there = (abs(self.remainder(x)) / x**3 for x in (self.theta, small))
        return _bounded(2 * here, there)

    def lower_bound(self) -> Slack:
        """``Delta u >= F theta^2/2 - C theta^(5/2)``."""
        bound = self.CONSTANT * self.theta**2.5
        return _bounded(self.remainder(self.theta), -bound, scale=bound)
