"""Section 5: the expansion of the fine-tuning path, and the alignment instability condition."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np

from theory.ledger.claim import Claim, Example, Parameter, Slack, Verdict, at_least, equal, worst
from theory.ledger.maps import PolynomialMap, polynomial
from theory.ledger.scenarios import Coefficients, Scenario, integrate, quadratic_loss
from theory.ledger.section5_prose import CONSTANT_FISHER, STATIC_PROJECTION
from theory.ledger.skills import GaussianSkill, SoftmaxSkill, fisher_at_base
from theory.series import Series

_FLOAT = "eigenvalues and projections are computed in float64"
_EXACT = "both sides are exact fractions"
_SHAPE = (Parameter("dimension", 2, 4), Parameter("prompts", 1, 3), Parameter("outcomes", 2, 3))
_SCALE = Parameter("scale", 1e-6, 1e6, "log")


def _exact_scenario(
    rng: np.random.Generator, dimension: int, prompts: int, outcomes: int, scale: float, sharpness: float = 1.0
) -> Scenario:
    """A random softmax skill and loss over Fractions, with loss and logits in units of their own."""
    coefficients = Coefficients(rng, exact=True)
    skill = SoftmaxSkill(
        coefficients.probabilities(prompts),
        coefficients.probabilities(prompts, outcomes),
        coefficients.map(prompts * outcomes, dimension).scaled(Fraction(sharpness)),
    )
    loss = coefficients.loss(dimension).scaled(Fraction(scale))
    return Scenario(skill, loss, int(rng.integers(1, dimension + 1)))


def _plane(eigenvalues: tuple[float, float], gradient: tuple[float, float], rank: int = 1) -> Scenario:
    """A linear Gaussian skill with ``F = diag(eigenvalues)``, and a linear loss."""
    mean = polynomial(np.diag(np.sqrt(eigenvalues)))
    return Scenario(GaussianSkill(mean, 1.0, outputs=2), polynomial(np.array([gradient])), rank)


def quadratic_coefficient(scenario: Scenario) -> float | Fraction:
    """The coefficient of t^2 in the utility loss, from the power series of path and policy."""
    return scenario.skill.utility_loss_along(scenario.series(2))[2]


# --- Definition 5.1


def _leak_bounded(scenario: Scenario) -> Slack:
    found = scenario.estimate
    bound = found.eigenvalues[0] * found.overlap**2 + found.tail * found.velocity_norm**2
    return at_least(bound, float(2 * quadratic_coefficient(scenario)), 1e-10, _FLOAT)


def _leak_bounded_by_overlap(scenario: Scenario) -> Slack:
    found = scenario.estimate
    return at_least(found.eigenvalues[0] * found.overlap**2, float(2 * quadratic_coefficient(scenario)), 1e-10, _FLOAT)


def _no_tail(rng: np.random.Generator) -> Scenario:
    scenario = _exact_scenario(rng, 3, 2, 3, 1.0)
    return Scenario(scenario.skill, scenario.loss, rank=3)


DEFINITION_5_1 = Claim(
    key="5.1",
    title="Alignment instability condition",
    source="Definition 5.1, section 5",
    statement=r"""A skill and a fine-tuning loss satisfy the alignment instability condition with parameters
$(d, \lambda, \gamma, \epsilon)$ if (1) $\lambda_{d} \ge \lambda$ and $\sum_{j > d} \lambda_{j} \le \epsilon$,
(2) $\|P g\| \le \epsilon$, and (3) $\|F^{1/2} P H g\| \ge \gamma$.

A definition can be neither true nor false. Conditions (1) and (2), as the paper uses them, are read as: to first
order fine-tuning leaves the skill alone, up to $v \le \sqrt{\lambda_{1}} \epsilon$, where $v^2 = g^T F g$ and
$\Delta u = v^2 t^2 / 2 + O(t^3)$. This reading is what is tested.""",
    hypotheses=("$P$ projects on the top-$d$ eigenspace of $F$.", r"$g$ and $H$ are taken at $\theta^*$."),
    verdict=Verdict.CORRECTED,
    why="one epsilon bounds an eigenvalue sum and a gradient norm; the leak passes through the tail",
    correction=r"""Give the two conditions tolerances of their own, $\epsilon_{F}$ (units of an eigenvalue) for the
tail and $\epsilon_{g}$ (units of a gradient) for $\|P g\|$. What they bound together is the leak:
$v^2 = g^T F g \le \lambda_{1} \epsilon_{g}^2 + \epsilon_{F} \|g\|^2$. With $P g = 0$ the leak can still be
$\sqrt{\epsilon_{F}} \|g\|$.""",
    derivation=r"""$F$ commutes with $P$, so $g^T F g = (Pg)^T F (Pg) + (g - Pg)^T F (g - Pg)$. The first part is at
most $\lambda_{1} \|Pg\|^2$. The second is at most $\lambda_{d+1} \|g\|^2$, and $\lambda_{d+1}$ is at most the tail,
because eigenvalues are not negative.

That one $\epsilon$ cannot serve both is a matter of units: in the coordinates $\theta / c$ every eigenvalue is
multiplied by $c^2$ and the gradient by $c$.""",
    evidence=r"""The leak is measured on the utility loss itself: $v^2$ is twice the coefficient of $t^2$ in $\Delta u$
along the gradient flow, an exact fraction for random softmax skills with several prompts. The bound comes from the
estimated spectrum and overlap. Sizes of the loss and of the logits vary over many orders of magnitude.""",
    check=_leak_bounded,
    build=_exact_scenario,
    parameters=(*_SHAPE, _SCALE, Parameter("sharpness", 1e-3, 1e3, "log")),
    printed=_leak_bounded_by_overlap,
    counterexamples=(
        Example(
            "leak through the tail",
            r"$F = \mathrm{diag}(1, 0.01)$, $d = 1$, $g = (0, -1)$: condition (2) holds with $P g = 0$, and "
            r"$\Delta u = 0.01 t^2 / 2$.",
            lambda: _plane((1.0, 0.01), (0.0, -1.0)),
        ),
    ),
    accepted=_no_tail,
    boundary=(
        Example(
            "all through the tail",
            r"$F = \mathrm{diag}(1, 0.01)$, $d = 1$, $g = (0, -1)$: $v^2 = \epsilon_{F} \|g\|^2$.",
            lambda: _plane((1.0, 0.01), (0.0, -1.0)),
        ),
        Example(
            "all through the sharpest direction",
            r"$F = \mathrm{diag}(4, 0)$, $d = 1$, $g = (-3, 0)$: $v^2 = \lambda_{1} \|P g\|^2$.",
            lambda: _plane((4.0, 0.0), (-3.0, 0.0)),
        ),
    ),
    tightness=1e-12,
)


# --- Section 5.1, first-order regime


@dataclass(frozen=True, eq=False)
class _FirstOrder:
    """A scenario whose gradient overlaps the sharp subspace by at least ``overlap``: c."""

    scenario: Scenario
    overlap: float


def _build_first_order(rng: np.random.Generator, share: float, **shape: Any) -> _FirstOrder:
    scenario = _exact_scenario(rng, **shape)
    return _FirstOrder(scenario, share * scenario.estimate.overlap)


def _initial_speed(scenario: Scenario) -> float:
    """``lim |P D| / t`` on the path, with P from the eigenvectors of F."""
    return float(np.linalg.norm(scenario.projector @ scenario.series(1)[1].astype(np.float64)))


def _first_order_rates(case: _FirstOrder) -> Slack:
    scenario, c = case.scenario, case.overlap
    leak = 2 * quadratic_coefficient(scenario)
    form = scenario.gradient @ fisher_at_base(scenario.skill) @ scenario.gradient
    exact, found = isinstance(form, Fraction), scenario.estimate
    unit = found.eigenvalues[0] * found.velocity_norm**2
    return worst(
        _distance_rate(scenario),
        equal(leak, form, 0.0 if exact else 1e-14, _EXACT if exact else "rounding", part="utility loss"),
        at_least(float(leak), found.sharpness * c**2, 1e-12, _FLOAT, scale=unit, part="lower bound"),
    )


def _distance_rate(scenario: Scenario) -> Slack:
    """``lim |P D| / t`` is the estimated overlap ``|P g|``; P without directions on which F vanishes.

    Both sides are multiplied by the gap over the largest eigenvalue, by whose inverse P magnifies rounding.
    """
    found = scenario.estimate
    if found.rank > found.numerical_rank > 0:
        return _distance_rate(replace(scenario, rank=found.numerical_rank))
    speed, unit = _initial_speed(scenario), found.eigenvalues[0] * found.velocity_norm
    return equal(found.gap * speed, found.gap * found.overlap, 1e-13, _FLOAT, scale=unit, part="distance")


def _first_order_as_printed(case: _FirstOrder) -> Slack:
    scenario, c = case.scenario, case.overlap
    leak, top = float(2 * quadratic_coefficient(scenario)), scenario.estimate.eigenvalues[0]
    return worst(
        at_least(10 * c, _initial_speed(scenario), 0.0, "Theta(ct) with constants that do not depend on g"),
        at_least(leak, 1e-6 * top * c**2, 0.0, "quadratic degradation at some rate"),
    )


def _sharp_overlap(rng: np.random.Generator) -> _FirstOrder:
    scenario = _exact_scenario(rng, 3, 2, 3, 1.0)
    top = Scenario(scenario.skill, scenario.loss, rank=1)
    return _FirstOrder(top, top.estimate.overlap)


FIRST_ORDER = Claim(
    key="5.1a",
    title="First-order regime",
    source="section 5.1",
    statement=r"""If $\|P g\| \ge c > 0$, the projected displacement grows linearly,
$\|P(\theta(t) - \theta^*)\| = \Theta(c t)$, and the utility loss quadratically in $t$.""",
    hypotheses=(
        r"Gradient flow $\theta' = -\nabla L$ from $\theta^*$, $L$ twice continuously differentiable.",
        r"$\|P g\| \ge c > 0$.",
    ),
    verdict=Verdict.CORRECTED,
    why="Omega(ct), or Theta of t |Pg|; it guarantees degradation only if lambda_d > 0",
    correction=r"""$\|P(\theta(t) - \theta^*)\| = t \|P g\| + O(t^2) \ge c t - O(t^2)$, and
$\Delta u = \frac{t^2}{2} g^T F g + O(t^3) \ge \lambda_{d} c^2 t^2 / 2 - O(t^3)$, which
guarantees degradation only if $\lambda_{d} > 0$.""",
    derivation=r"""$\theta(t) - \theta^* = -t g + O(t^2)$; apply $P$ and take norms. The local quadratic form
(Proposition 3.3) gives $\Delta u = \frac{t^2}{2} g^T F g + O(t^3)$, and
$g^T F g \ge (P g)^T F (P g) \ge \lambda_{d} \|P g\|^2 \ge \lambda_{d} c^2$, because $F$ commutes with $P$.

An upper bound $O(c t)$ does not follow from $\|P g\| \ge c$: nothing keeps $\|P g\|$ from being much larger
than $c$.""",
    evidence=r"""The coefficient of $t^2$ in the utility loss along the flow of random softmax skills, as an
exact fraction, is compared with $g^T F g / 2$ with no tolerance, and with $\lambda_{d} c^2 / 2$ from the estimated
spectrum. The speed of $\|P(\theta(t) - \theta^*)\|$ at $t = 0$, from the path and the eigenvectors of $F$, is compared
with $\|P g\|$ as estimated from scores alone (Gram matrix); $c$ is a share of the estimate.""",
    check=_first_order_rates,
    build=_build_first_order,
    parameters=(*_SHAPE, _SCALE, Parameter("sharpness", 1e-3, 1e3, "log"), Parameter("share", 0.0, 1.0, "uniform")),
    printed=_first_order_as_printed,
    counterexamples=(
        Example(
            "an overlap far above c",
            r"$F = \mathrm{diag}(1, 0)$, $\|P g\| = 1$, $c = 0.001$: $\|P(\theta(t) - \theta^*)\| = 1000 \, c t$.",
            lambda: _FirstOrder(_plane((1.0, 0.0), (-1.0, 0.0)), 1e-3),
        ),
        Example(
            "no sharpness",
            r"$F = \mathrm{diag}(1, 0)$, $d = 2$, $g = (0, -1)$, $c = \|P g\| = 1$: the skill does not change at all.",
            lambda: _FirstOrder(_plane((1.0, 0.0), (0.0, -1.0), rank=2), 1.0),
        ),
    ),
    accepted=_sharp_overlap,
    boundary=(
        Example(
            "along the sharpest direction",
            r"$F = \mathrm{diag}(4, 0)$, $d = 1$, $g = (-3, 0)$, $c = 3$.",
            lambda: _FirstOrder(_plane((4.0, 0.0), (-3.0, 0.0)), 3.0),
        ),
    ),
    tightness=1e-12,
)


# --- Section 5.1, second-order expansion


@dataclass(frozen=True, eq=False)
class _Path:
    """A polynomial loss, and a time within which its flow is tame."""

    loss: PolynomialMap
    time: float


def _build_path(rng: np.random.Generator, dimension: int, share: float, scale: float) -> _Path:
    loss = Coefficients(rng).loss(dimension).scaled(scale)
    rate = np.linalg.norm(loss.quadratic) + np.sqrt(np.linalg.norm(loss.cubic) * np.linalg.norm(loss.linear))
    return _Path(loss, share / float(rate))


def third_derivative(loss: PolynomialMap, displacement: np.ndarray) -> np.ndarray:
    """``theta''' = -(D^2 g[g, g] + (Dg)^2 g)`` of the gradient flow at a point, shape (n,)."""
    gradient, hessian = loss.jacobian(displacement)[0], loss.hessian(displacement)[0]
    return -(loss.cubic[0] @ gradient @ gradient + hessian @ hessian @ gradient)


def taylor_constant(loss: PolynomialMap, points: np.ndarray) -> float:
    """``sup |theta'''| / 6`` over points of the flow, shape (T, n)."""
    return max(float(np.linalg.norm(third_derivative(loss, point))) for point in points) / 6


def _taylor_remainder(case: _Path) -> Slack:
    loss, t = case.loss, case.time
    g, hessian = loss.linear[0], loss.quadratic[0]
    points = integrate(lambda d: -loss.jacobian(d)[0], loss.origin, np.linspace(0.0, t, 17))
    remainder = np.linalg.norm(points[-1] + t * g - t**2 / 2 * hessian @ g)
    velocity, acceleration, third = (_derivatives(loss)[k] for k in (1, 2, 3))
    return worst(
        equal(velocity, -g, 0.0, "no arithmetic", part="velocity"),
        equal(acceleration, hessian @ g, 1e-14, "rounding", part="acceleration"),
        equal(third, third_derivative(loss, loss.origin), 1e-13, "rounding", part="third derivative"),
        at_least(
            taylor_constant(loss, points) * t**3,
            float(remainder),
            1e-8,
            "the flow is integrated to 1e-13, and the remainder is a small part of it",
            part="remainder",
        ),
    )


def _derivatives(loss: PolynomialMap) -> list[np.ndarray]:
    """``theta^(k)(0)`` for k = 0..3, from the power series of the flow."""
    curve: Series = Scenario(GaussianSkill(loss, 1.0), loss).series(3)
    return [curve[0], curve[1], 2 * curve[2], 6 * curve[3]]


SECOND_ORDER = Claim(
    key="5.1b",
    title="Second-order expansion of the path",
    source="section 5.1",
    statement=r"""$\theta(t) = \theta^* - t g + \frac{t^2}{2} H g + O(t^3)$.""",
    hypotheses=(r"Gradient flow $\theta' = -\nabla L$ from $\theta^*$, $L$ three times continuously differentiable.",),
    verdict=Verdict.HOLDS,
    why="Taylor's theorem; the remainder is at most t^3/6 times the largest third derivative",
    derivation=r"""$\theta' = -g(\theta)$, hence $\theta'' = -Dg \, \theta' = H g$ at $\theta^*$ and
$\theta''' = -(D^2 g[g, g] + (Dg)^2 g)$. Taylor's theorem gives the remainder
$\|R(t)\| \le \frac{t^3}{6} \sup \|D^2 g[g, g] + (Dg)^2 g\|$ over the path. With $g$ only once continuously
differentiable the remainder is $o(t^2)$.""",
    evidence=r"""Random cubic losses. The first three derivatives of the flow come from its power series (Picard's
iteration) and are compared with $-g$, $H g$ and $\theta'''$. At a finite time the remainder of the flow, integrated
by SciPy's DOP853, is compared with its bound; the supremum is taken over 17 points of the path.""",
    check=_taylor_remainder,
    build=_build_path,
    parameters=(Parameter("dimension", 2, 5), Parameter("share", 0.05, 0.4, "uniform"), _SCALE),
    boundary=(
        Example(
            "short times",
            r"$L = -x + x y$ at $t = 0.02$: the remainder is $t^3/6$ up to a relative $O(t^2)$.",
            lambda: _Path(quadratic_loss(np.array([-1.0, 0.0]), np.array([[0.0, 1.0], [1.0, 0.0]])), 0.02),
        ),
    ),
    tightness=1e-3,
)


CLAIMS = (DEFINITION_5_1, FIRST_ORDER, SECOND_ORDER, CONSTANT_FISHER, STATIC_PROJECTION)
