"""E6 and E8: updates kept out of the sensitive subspace by a projector that is fixed, or refreshed."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np

from theory.ledger.claim import Claim, Parameter, Slack, Verdict, equal, exact, worst
from theory.ledger.maps import PolynomialMap, polynomial
from theory.ledger.paths import steps
from theory.ledger.scenarios import Coefficients, Scenario, circle, integrate
from theory.ledger.skills import SoftmaxSkill, quartic_law
from theory.series import Series, contract, integral_curve, multiply, reciprocal

SUPPORT = r"Assumption 1, with $\pi_{\theta^*}(y|x) > 0$ for every response that $\pi_\theta$ can give"
SMOOTH = r"$\ell$ and $L_{FT}$ are $C^3$ near $\theta^*$, with bounded derivatives"


@dataclass(frozen=True, eq=False)
class FixedProjection:
    """A flow projected by the P of its start.

    Attributes:
        scenario: a softmax skill over Fractions and a loss whose gradient need not avoid the range of F.
        projector: orthogonal, on a space that holds the range of F, shape (n, n).
        time: at which the circle is measured.
        sharpness: lambda of the circle.
    """

    scenario: Scenario
    projector: np.ndarray
    time: float
    sharpness: float


def _build_fixed(
    rng: np.random.Generator, prompts: int, outcomes: int, dimension: int, time: float, sharpness: float
) -> FixedProjection:
    make, n = Coefficients(rng, exact=True), dimension + 1
    skill = make.softmax(n, prompts, outcomes, kernel=1)
    normal = make.tensor(n)
    normal[0] += 7  # not 0: entries are at most 6
    mirror = np.eye(n, dtype=int) - 2 * np.multiply.outer(normal, normal) / (normal @ normal)
    logits = skill.logits
    assert isinstance(logits, PolynomialMap)
    turned = replace(skill, logits=replace(logits, linear=logits.linear @ mirror))
    return FixedProjection(Scenario(turned, make.loss(n)), mirror[:, :dimension] @ mirror[:dimension], time, sharpness)


def _check_fixed(case: FixedProjection) -> Slack:
    skill, loss = case.scenario.skill, case.scenario.loss
    assert isinstance(skill, SoftmaxSkill)
    assert isinstance(loss, PolynomialMap)
    free = np.eye(len(case.projector), dtype=int) - case.projector
    path = integral_curve(lambda point: -loss.jacobian_along(point)[:, 0] @ free, loss.origin, 4)
    velocity = -free @ case.scenario.gradient
    predicted = quartic_law(skill, velocity, 0 * velocity)  # s.a = 0 as well
    return worst(
        exact(path @ case.projector, path * 0, part="displacement"),
        exact(skill.utility_loss_along(path), predicted, part="utility loss"),
        _check_fixed_circle(case),
    )


def _check_fixed_circle(case: FixedProjection) -> Slack:
    """On the circle the projected flow is ``x = 1``, ``y + y^3/3 = t``."""
    flat = circle(case.sharpness)
    path = integrate(lambda d: -flat.loss.jacobian(d)[0] * [0.0, 1.0], flat.loss.origin, np.array([case.time]))
    y = 2 * np.sinh(np.arcsinh(1.5 * case.time) / 3)
    expected = case.sharpness / 2 * (y * y / (np.sqrt(1 + y * y) + 1)) ** 2
    reason = "the integrator's tolerance, four times over because the loss is quartic"
    return equal(flat.skill.utility_loss(path[0]), expected, 1e-11, reason, part="circle")


_E6 = Claim(
    key="E6",
    title="Static projection",
    source="this project",
    statement=r"""The flow $\theta' = -(I - P) \nabla L$ with the projector $P$ of the start keeps $P (\theta -
\theta^*) = 0$, so that the coupling is 0. If rank $F = d$ its loss is still quartic:
$\Delta u = \frac{1}{8} \mathbb{E}\left[ (v^T \nabla^2 \ell v)^2 \right] t^4 + O(t^5), \quad v = -(I - P) g.$
It can do harm. On the circle (skill $N(\|\theta\|, 1/\lambda)$, loss minus the angle) the plain flow has $\Delta u =
0$, the projected one $x = 1$, $y + y^3/3 = t$, $\Delta u = \frac{\lambda}{2} (\sqrt{1 + y^2} - 1)^2 \approx \lambda
t^4/8$.""",
    hypotheses=(SUPPORT, SMOOTH, "the range of $F(\\theta^*)$ lies in that of $P$ (zero tail)"),
    verdict=Verdict.HOLDS,
    why="a fixed projector removes the coupling but not the Hessian of the log-probability",
    derivation=r"""$P \theta' = 0$ at all times. At the start $v = -(I-P) g$ and $a = (I-P) H (I-P) g$. Zero tail gives
$s = P s$ almost surely, so $s \cdot v = s \cdot a = 0$, $\ell'' = v^T \nabla^2 \ell v$, and F3 with $k = 2$ is the
law. On the circle $\nabla L = (y, -x)/r^2$, projected off $e_1$: $x = 1$, $y' = 1/(1 + y^2)$, so $y + y^3/3 = t$. The
plain flow turns about the origin and keeps $r = 1$.""",
    evidence="""Random softmax skills over fractions, the kernel of F in a random direction: displacement and utility
loss of the projected flow as exact series. The circle's projected flow by a Runge-Kutta method of order 8 against the
closed form.""",
    check=_check_fixed,
    build=_build_fixed,
    parameters=(
        Parameter("prompts", 1, 2),
        Parameter("outcomes", 2, 3),
        Parameter("dimension", 1, 2),
        Parameter("time", 1e-2, 3.0, "log"),
        Parameter("sharpness", 1e-6, 1e6, "log"),
    ),
)


@dataclass(frozen=True, eq=False)
class RefreshedProjection:
    """Gradient descent projected by a P that is computed anew every ``interval`` steps.

    Attributes:
        scenario: a softmax skill over Fractions whose prompts share one logit, so that F has rank 1, and a loss.
        logit: that logit.
        count: K, steps.
        interval: R.
    """

    scenario: Scenario
    logit: PolynomialMap
    count: int
    interval: int

    def off(self, normal: Series, gradient: Series) -> Series:
        """``(I - P) gradient`` with P on the direction ``normal``, shapes (p + 1, n)."""
        along = contract(normal[:, None], gradient)
        square = contract(normal[:, None], normal)
        return gradient - multiply(normal, multiply(along, reciprocal(square)))

    def path(self, order: int) -> Series:
        """Displacement after the steps, a series in the step size."""
        loss = self.scenario.loss
        assert isinstance(loss, PolynomialMap)
        normals: list[Series] = []

        def field(point: Series) -> Series:
            if next(step) % self.interval == 0:
                normals.append(self.logit.jacobian_along(point)[:, 0])
            return -self.off(normals[-1], loss.jacobian_along(point)[:, 0])

        step = itertools.count()
        return steps(field, loss.origin, (1,) * self.count, order)


def _build_refreshed(
    rng: np.random.Generator, prompts: int, dimension: int, count: int, interval: int
) -> RefreshedProjection:
    make = Coefficients(rng, exact=True)
    logit = make.map(1, dimension)
    logit.linear[0, 0] += 7  # not 0: entries are at most 6
    rows = (np.concatenate([part, part * 0] * prompts) for part in (logit.linear, logit.quadratic, logit.cubic))
    skill = SoftmaxSkill(make.probabilities(prompts), make.probabilities(prompts, 2), polynomial(*rows))
    return RefreshedProjection(Scenario(skill, make.loss(dimension)), logit, count, interval)


def _check_refreshed(case: RefreshedProjection) -> Slack:
    skill, whole, rest = case.scenario.skill, *divmod(case.count, case.interval)
    assert isinstance(skill, SoftmaxSkill)
    velocity = -case.off(case.logit.linear[0][None], case.scenario.gradient[None])[0]
    turned = whole * case.interval**2 + rest**2
    predicted = turned**2 * quartic_law(skill, velocity, 0 * velocity)
    return exact(skill.utility_loss_along(case.path(4)), predicted)


_E8 = Claim(
    key="E8",
    title="Refresh interval",
    source="this project",
    statement=r"""$K$ steps of size $\eta$ of projected gradient descent, $T = K \eta$, with the projector computed
anew every $R$ steps, on a skill whose Fisher matrix has constant rank $d$:
$\Delta u = \left( \frac{R}{K} \right)^2 \frac{T^4}{8} \mathbb{E}[h^2] + O(T^5) = \frac{T^2 (R \eta)^2}{8}
\mathbb{E}[h^2] + O(T^5), \quad h = v^T \nabla^2 \ell v,\ v = -(I - P) g,$
if $R$ divides $K$; in general the factor is $(\sum_i R_i^2/K^2)^2$ with the lengths $R_i$ of the intervals. A
projector computed at every step still leaves $T^4 \mathbb{E}[h^2]/(8 K^2)$.""",
    hypotheses=(SUPPORT, SMOOTH, r"$F$ of constant rank $d$ near $\theta^*$"),
    verdict=Verdict.HOLDS,
    why="refreshing turns the quartic t^4 into t^2 times the square of the refresh time",
    derivation=r"""Within an interval of $R_i$ steps that starts at $\theta_i$ the projector is static for $\theta_i$,
so E6 at that point, in $R_i$ steps (E1, with no $s \cdot H g$ term), changes $\ell$ by $\frac{1}{2} (R_i \eta)^2
h(\theta_i)$ to second order, first order excluded because $F(\theta_i) v(\theta_i) = 0$ by the constant rank. As
$h(\theta_i) = h + O(\eta)$, the changes add up to $\frac{\eta^2}{2} h \sum_i R_i^2$, and F1 gives half its mean
square, $\frac{\eta^4}{8} \mathbb{E}[h^2] (\sum_i R_i^2)^2$. For $K/R$ equal intervals $\sum R_i^2 = K R$.""",
    evidence="""Skills over fractions whose prompts share one logit, so that the projector is a rational function: up
to six steps and all refresh intervals, also those that do not divide K, as power series in the step size. The loss up
to the fourth power.""",
    check=_check_refreshed,
    build=_build_refreshed,
    parameters=(
        Parameter("prompts", 1, 3),
        Parameter("dimension", 2, 3),
        Parameter("count", 1, 6),
        Parameter("interval", 1, 6),
    ),
)

CLAIMS = (_E6, _E8)
