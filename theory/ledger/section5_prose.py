"""Sections 5.2 and 5.3: what the prose says of constant Fisher matrices and of static projections."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from theory.ledger.claim import Claim, Example, Parameter, Slack, Verdict, at_least, equal, exact, worst
from theory.ledger.maps import PolynomialMap, polynomial
from theory.ledger.scenarios import Coefficients, Scenario, integrate, limit_at_zero, quadratic_loss
from theory.ledger.skills import GaussianSkill
from theory.series import rational

_SCALE = Parameter("scale", 1e-6, 1e6, "log")


def _constant_fisher(
    rng: np.random.Generator, dimension: int, outputs: int, scale: float, precision: float
) -> Scenario:
    """A Gaussian skill with linear mean, over Fractions, and a loss with ``F g = 0``."""
    coefficients = Coefficients(rng, exact=True)
    mean = coefficients.map(outputs, dimension, degree=1, kernel=1)
    loss = coefficients.loss(dimension, kernel=1).scaled(Fraction(scale))
    return Scenario(GaussianSkill(mean, Fraction(precision), outputs), loss, rank=outputs)


def _constant_fisher_law(scenario: Scenario) -> Slack:
    skill, curve = scenario.skill, scenario.series(4)
    fisher = skill.fisher(scenario.loss.origin)
    utility = skill.utility_loss_along(curve)
    bent = scenario.acceleration @ fisher @ scenario.acceleration
    return worst(
        exact(skill.fisher(curve[1]), fisher, part="constant Fisher matrix"),
        exact(2 * curve[2], scenario.acceleration, part="curvature of the path"),
        exact(utility[:4], 0 * utility[:4], part="quartic onset"),
        exact(8 * utility[4], bent, part="onset coefficient"),
    )


def _straight(scenario: Scenario) -> Slack:
    _, first, second = scenario.series(2).astype(np.float64)
    across = second - first * (first @ second) / (first @ first)
    return equal(across, 0 * across, 1e-12, "rounding", scale=max(np.linalg.norm(second), np.linalg.norm(first)))


def _radial(rng: np.random.Generator) -> Scenario:
    scenario = _constant_fisher(rng, 3, 1, 1.0, 1.0)
    gradient = rational([0, 0, int(rng.integers(1, 5))])
    return Scenario(scenario.skill, quadratic_loss(gradient, rational(np.eye(3, dtype=int)) * int(rng.integers(1, 5))))


def _curved_on_flat() -> Scenario:
    loss = quadratic_loss(rational([0, -1]), rational([[0, 2], [2, 0]]))
    return Scenario(GaussianSkill(polynomial(rational([[1, 0]])), Fraction(1)), loss)


CONSTANT_FISHER = Claim(
    key="5.2",
    title="Constant Fisher matrix, straight lines",
    source="section 5.2, in prose",
    statement=r"""If the Fisher matrix were constant, gradient flow would proceed in straight lines and a gradient
orthogonal to the sensitive subspace would stay orthogonal: the bending comes from the rotation of the subspace.""",
    hypotheses=(r"$F(\theta)$ does not depend on $\theta$.", r"Gradient flow on a smooth fine-tuning loss."),
    verdict=Verdict.REFUTED,
    why="the path is bent by the Hessian of the fine-tuning loss, whatever the Fisher matrix does",
    correction=r"""The path $\theta(t) = \theta^* - t g + \frac{t^2}{2} H g + O(t^3)$ does not involve $F$ at all. For a
linear Gaussian skill ($F$ constant) with $F g = 0$ it still gives
$\Delta u = \frac{t^4}{8} \|F^{1/2} H g\|^2 + O(t^5)$. The rotation of the subspace enters only through
$g^T (\nabla^2 \ell) g$, the second part of $\ell''$.""",
    derivation=r"""Gradient flow sees the fine-tuning loss alone, so its curvature is $\theta'' = H g$; the path is
straight to second order if and only if $H g$ is parallel to $g$. For $\ell$ with a mean $m$ linear in $\theta$,
$\Delta u = \frac{1}{2} D^T F D$ exactly; put $D = -t g + \frac{t^2}{2} H g + O(t^3)$ with $F g = 0$.""",
    evidence=r"""Exact fractions, no tolerance: Gaussian skills with a linear mean of one or two outputs, random cubic
losses with $F g = 0$. The coefficients of $t^0, ..., t^4$ of the utility loss along the flow are compared with the
law, and the Fisher matrix away from $\theta^*$ with that at $\theta^*$.""",
    check=_constant_fisher_law,
    build=_constant_fisher,
    parameters=(
        Parameter("dimension", 2, 5),
        Parameter("outputs", 1, 2),
        _SCALE,
        Parameter("precision", 1e-6, 1e6, "log"),
    ),
    printed=_straight,
    counterexamples=(
        Example(
            "a flat skill on a bent path",
            r"Skill $N(x, 1)$, $L = -y + 2 x y$: $F = \mathrm{diag}(1, 0)$ everywhere, $\theta'' = (-2, 0)$ is "
            r"orthogonal to $g$, and $\Delta u = t^4 / 2 + O(t^5)$.",
            _curved_on_flat,
        ),
    ),
    accepted=_radial,
)


@dataclass(frozen=True, eq=False)
class _Projection:
    """A fixed projection ``I - P`` applied at every step, or to the initial gradient only."""

    scenario: Scenario
    every_step: bool

    @property
    def velocity(self) -> np.ndarray:
        """Shape (n,), orthogonal to the sensitive subspace."""
        return self.scenario.projector @ self.scenario.gradient - self.scenario.gradient

    @property
    def acceleration(self) -> np.ndarray:
        """``(Dv) v``, shape (n,)."""
        bent = -self.scenario.hessian @ self.velocity
        return bent - self.scenario.projector @ bent if self.every_step else bent

    def field(self, displacement: np.ndarray) -> np.ndarray:
        """The update field v, shape (n,)."""
        gradient = self.scenario.loss.jacobian(displacement)[0]
        removed = gradient if self.every_step else self.scenario.gradient
        return self.scenario.projector @ removed - gradient

    def coupling(self, acceleration: np.ndarray) -> float:
        """``|F^(1/2) P a|^2``."""
        inside = self.scenario.projector @ acceleration
        return float(inside @ self.scenario.fisher @ inside)


def _build_projection(
    rng: np.random.Generator, dimension: int, prompts: int, outcomes: int, scale: float, every_step: int = 1
) -> _Projection:
    scenario = Coefficients(rng).scenario(dimension, prompts, outcomes, rank=int(rng.integers(1, dimension)))
    loss = scenario.loss
    assert isinstance(loss, PolynomialMap)
    return _Projection(Scenario(scenario.skill, loss.scaled(scale), scenario.rank), bool(every_step))


def _bending(case: _Projection) -> float:
    """``lim |F^(1/2) P D|^2 / t^4``, extrapolated from the path."""
    rate = np.linalg.norm(case.scenario.hessian) + np.linalg.norm(case.velocity)
    times = 2.0 ** np.arange(-9, -4) / rate
    points = integrate(case.field, np.zeros(len(case.velocity)), times)
    return limit_at_zero(times, np.array([case.coupling(d) / t**4 for t, d in zip(times, points, strict=True)]))


def _projection_law(case: _Projection) -> Slack:
    unit = case.scenario.estimate.eigenvalues[0] * float(np.linalg.norm(case.scenario.hessian @ case.velocity)) ** 2
    bending = equal(
        4 * _bending(case), case.coupling(case.acceleration), 1e-7, "extrapolation to t = 0", scale=unit, part="bending"
    )
    if not case.every_step:
        return bending
    time = 0.2 / np.linalg.norm(case.scenario.hessian)
    (end,) = integrate(case.field, np.zeros(len(case.velocity)), np.array([time]))
    inside = case.scenario.projector @ end
    return worst(bending, equal(inside, 0 * inside, 1e-12, "rounding", scale=np.linalg.norm(end), part="displacement"))


def _bends_back(case: _Projection) -> Slack:
    printed = case.coupling(case.scenario.hessian @ case.velocity)
    return at_least(4 * _bending(case), 0.5 * printed, 0.0, "half of the printed rate", scale=printed)


STATIC_PROJECTION = Claim(
    key="5.3",
    title="Static projections fail inevitably",
    source="section 5.3, in prose",
    statement=r"""Unless projections are continuously updated, curvature coupling (condition 3) inevitably bends the
trajectory back into the sensitive subspace: $\|F^{1/2} P(\theta(t) - \theta^*)\| = \gamma t^2 / 2 + O(t^3)$ with
$\gamma > 0$.""",
    hypotheses=(
        r"$P$ is the projector on the top-$d$ eigenspace of $F(\theta^*)$, computed once.",
        r"Updates follow $-(I - P) \nabla L(\theta)$: the fixed projection is applied at every step.",
    ),
    verdict=Verdict.REFUTED,
    why="a fixed projection applied at every step keeps P (theta - theta*) = 0 for all time",
    correction=r"""With $\theta' = -(I - P) \nabla L(\theta)$, $P(\theta(t) - \theta^*) = 0$ for every $t$, and
condition 3 has $\gamma = 0$. What remains is the curvature of the skill itself, $v^T (\nabla^2 \ell) v$, which still
makes the utility loss quartic. If only the initial gradient is projected, the statement is right, with $\gamma =
\|F^{1/2} P H (I - P) g\|$.""",
    derivation=r"""$P \theta' = -P (I - P) \nabla L = 0$, so $P(\theta(t) - \theta^*)$ is constant. The acceleration
of this field is $a = (I - P) H (I - P) g$, so that $P a = 0$.

If the projection is applied to the gradient at $\theta^*$ only, the field is
$-\nabla L(\theta) + P g$ with the velocity $v = -(I - P) g$ and the acceleration $-H v$, whose part in the subspace
has no reason to vanish.""",
    evidence=r"""Random softmax skills (with a tail) and cubic losses. Both fields are integrated by DOP853: at a finite
time $P(\theta(t) - \theta^*)$ is compared with 0, and the limit of
$\|F^{1/2} P (\theta(t) - \theta^*)\|^2 / t^4$, extrapolated from five times, with $\|F^{1/2} P a\|^2 / 4$.""",
    check=_projection_law,
    build=_build_projection,
    parameters=(
        Parameter("dimension", 2, 4),
        Parameter("prompts", 1, 3),
        Parameter("outcomes", 2, 4),
        _SCALE,
        Parameter("every_step", 0, 1),
    ),
    printed=_bends_back,
    counterexamples=(
        Example(
            "a projection at every step",
            r"Skill $N(x, 1)$, $L = -y + 2 x y$ and $I - P = \mathrm{diag}(0, 1)$: the path is the line $x = 0$.",
            lambda: _Projection(
                Scenario(
                    GaussianSkill(polynomial(np.array([[1.0, 0.0]])), 1.0),
                    quadratic_loss(np.array([0.0, -1.0]), np.array([[0.0, 2.0], [2.0, 0.0]])),
                ),
                every_step=True,
            ),
        ),
    ),
    accepted=lambda rng: _build_projection(rng, 3, 2, 3, 1.0, every_step=0),
)
